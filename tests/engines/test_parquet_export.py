"""What other engines load is read back by pyarrow, as their loaders do."""

import json

import numpy as np
import plans
import pyarrow.dataset
import pytest

from mrl_jax import errors
from mrl_jax.engines import __main__ as command
from mrl_jax.engines import parquet
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule
from mrl_jax.store.vectors import open_vectors

IDS, Z = plans.vectors(500)
PLAN = Schedule.parse("8:50 > 16:20 > 64")


def read(folder):
    table = pyarrow.dataset.dataset(folder).to_table()
    dims = {f.name: f.type.list_size for f in table.schema if f.name != "id"}
    columns = {
        name: table[name].combine_chunks().flatten().to_numpy().reshape(-1, dim)
        for name, dim in dims.items()
    }
    return table["id"].to_numpy(), columns


def test_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_FILE_BYTES", 200 * 4 * (8 + 16 + 64))
    chunks = ((IDS[i : i + 90], Z[i : i + 90]) for i in range(0, 500, 90))
    assert parquet.export(tmp_path / "new" / "out", chunks, PLAN) == 500
    assert len(list((tmp_path / "new" / "out").iterdir())) > 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    ids, columns = read(tmp_path / "new" / "out")
    np.testing.assert_array_equal(ids, IDS)
    assert {name: z.shape[1] for name, z in columns.items()} == {
        "prefix_8": 8,
        "prefix_16": 16,
        "vector": 64,
    }
    for z in columns.values():
        np.testing.assert_array_equal(z, Z[:, : z.shape[1]])


def test_final_dims_may_be_fewer_than_all(tmp_path):
    parquet.export(tmp_path / "out", [(IDS, Z)], Schedule.parse("8:50 > 48"))
    assert list(read(tmp_path / "out")[1]) == ["prefix_8", "prefix_48", "vector"]


def test_what_breaks_off_leaves_no_folder(tmp_path):
    spoiled = Z.copy()
    spoiled[3] = np.nan
    with pytest.raises(errors.DataError, match=f"id {IDS[3]} holds NaN"):
        parquet.export(tmp_path / "out", [(IDS[:2], Z[:2]), (IDS[2:], spoiled[2:])], PLAN)
    assert not (tmp_path / "out").exists()
    assert parquet.export(tmp_path / "out", [(IDS, Z)], PLAN) == 500
    with pytest.raises(errors.UsageError, match="out exists already"):
        parquet.export(tmp_path / "out", [(IDS, Z)], PLAN)


def test_command(tmp_path, capsys):
    np.save(tmp_path / "z.npy", Z)
    written = {"schema": 1, "plan": Plan(PLAN, "l2").to_json()}
    (tmp_path / "plan.json").write_text(json.dumps(written))
    arguments = ["parquet", "--vectors", f"{tmp_path}/z.npy", "--plan", f"{tmp_path}/plan.json"]
    command.main([*arguments, "--out", f"{tmp_path}/out"])
    said = f"500 vectors, to be compared by l2: {tmp_path}/out\n"
    assert capsys.readouterr().out == said
    np.testing.assert_array_equal(read(tmp_path / "out")[0], np.arange(500))
    about = pyarrow.dataset.dataset(tmp_path / "out").schema.metadata[b"mrl_jax"]
    assert json.loads(about) == {"schedule": str(PLAN), "metric": "l2"}


def test_ids_come_back_as_they_were(tmp_path):
    ids = np.array([2**53 + 1, 2**63 - 1, -(2**63)])
    parquet.export(tmp_path / "out", [(ids, Z[:3])], PLAN)
    vectors = open_vectors(tmp_path / "out" / "part-00000.parquet")
    assert vectors.ids.tolist() == ids.tolist()
    np.testing.assert_array_equal(vectors.read(0, 3), Z[:3])
    for chunks, message in (
        (
            [(ids[:2], Z[:2]), (ids[1:], Z[1:3])],
            "rows 1 and 2 have the same id, 9223372036854775807",
        ),
        ([(ids.astype("u8"), Z[:3])], "row 2 has the id 9223372036854775808, above"),
    ):
        with pytest.raises(errors.DataError, match=message):
            parquet.export(tmp_path / "twice", chunks, PLAN)
        assert not (tmp_path / "twice").exists()
