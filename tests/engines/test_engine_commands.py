"""What the commands of all engines have in common."""

import json

import numpy as np
import pytest

from mrl_jax import errors
from mrl_jax.engines import __main__ as command
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule


@pytest.mark.parametrize(
    "place",
    [
        ["postgres", "query", "--table", "t", "--dsn", "postgresql//bob:S3CRET@h/db"],
        ["postgres", "query", "--table", "t", "--dsn", "postgresql://bob:S3CRET%zz@h/db"],
        ["postgres", "query", "--table", "t", "--dsn", "postgresql://bob:S3CRET@[h/db"],
        ["milvus", "query", "--collection", "c", "--uri", "bob:S3CRET@h:19530"],
        ["milvus", "query", "--collection", "c", "--uri", "http://bob:S3CRET@h:port"],
    ],
)
def test_passwords_are_not_printed(tmp_path, place):
    np.save(tmp_path / "q.npy", np.ones((2, 16), np.float32))
    files = ["--queries", f"{tmp_path}/q.npy", "--out", f"{tmp_path}/f.npz"]
    with pytest.raises(errors.UsageError, match="legal is") as error:
        command.main([*place, *files, "--schedule", "8:5 > 16"])
    assert "S3CRET" not in str(error.value)


def plan(**values):
    return Plan(Schedule.parse("8:5 > 16"), **values)


@pytest.mark.parametrize(
    ("values", "codes", "stays"),
    [
        ({}, ["float32"], None),
        ({"code": "float16"}, ["float16"], None),
        ({"code": "int8"}, ["float32"], "int8 codes"),
        ({"code": "binary"}, [], "binary codes"),
        ({"lists": 1024, "list_dim": 8}, ["float32"], "1,024 clusters"),
        ({"code": "int8", "factory": "HNSW32"}, ["float32"], "int8 codes and its index HNSW32"),
    ],
)
def test_what_stays_behind_of_a_plan_is_said(values, codes, stays):
    note = command._note(plan(**values), codes)
    assert note.startswith(f"note: of the plan, {stays} stay with mrl" if stays else "")
    assert bool(note) == bool(stays)


def test_a_metric_that_is_not_the_plans_is_refused(tmp_path):
    np.save(tmp_path / "z.npy", np.ones((2, 16), np.float32))
    content = json.dumps({"schema": 1, "plan": plan(metric="l2").to_json()})
    (tmp_path / "plan.json").write_text(content)
    argv = ["parquet", "--vectors", f"{tmp_path}/z.npy", "--plan", f"{tmp_path}/plan.json"]
    with pytest.raises(errors.UsageError, match=r"measured by l2, --metric is cosine: leave it ou"):
        command.main([*argv, "--metric", "cosine", "--out", f"{tmp_path}/out"])
    assert not (tmp_path / "out").exists()
