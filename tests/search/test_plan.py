import dataclasses
import json

import numpy as np
import pytest

from mrl_jax.errors import DataError
from mrl_jax.search.plan import SCHEMA, SHARES, Asked, Plan, read_plan
from mrl_jax.search.schedule import Schedule

SHORT = Schedule.parse("16:200 > 64")
PLANS = [
    Plan(Schedule.exact(64)),
    Plan(SHORT),
    Plan(SHORT, metric="l2", code="int8", lists=100, list_dim=64, probes=100),
    Plan(Schedule.parse("8:90 > 16:20 > 64"), metric="inner", code="binary"),
    Plan(SHORT, factory="OPQ8,IVF16,PQ8x4fs", parameters="nprobe=4"),
    Plan(SHORT, code="float16", lists=7, list_dim=3),
    Plan(SHORT, asked=Asked.of(-np.arange(300) / 7, 10, 0.95)),
]
ASKED = PLANS[-1].to_json()["asked"]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_through_json(plan, tmp_path):
    content = json.loads(json.dumps(plan.to_json()))
    assert Plan.from_json(content) == plan
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"schema": SCHEMA, "plan": content, "measured": [1, 2]}))
    assert read_plan(path) == plan


def test_a_short_plan_is_enough():
    assert Plan.from_json({"schedule": "16:200 > 64"}) == Plan(SHORT)


def test_a_plan_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLANS[0].probes = 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "dot"}, "metric must be one of cosine, inner, l2; got 'dot'"),
        (
            {"code": "int4"},
            "code must be one of float32, bfloat16, float16, int8, binary; got 'int4'",
        ),
        ({"lists": 0}, "probes must be 1 to lists = 0, got 1"),
        ({"probes": 0}, "probes must be 1 to lists = 1, got 0"),
        ({"probes": 2}, "probes must be 1 to lists = 1, got 2"),
        ({"lists": 4, "probes": 5, "list_dim": 8}, "probes must be 1 to lists = 4, got 5"),
        ({"lists": 4}, "list_dim must be 1 to 64, got 0"),
        ({"lists": 4, "list_dim": 65}, "list_dim must be 1 to 64, got 65"),
        ({"lists": 4, "list_dim": 8, "factory": "Flat"}, "no lists beside it"),
        ({"schedule": "64", "lists": 4, "list_dim": 8}, "lists need a schedule with a shortlist"),
        ({"schedule": "64", "factory": "Flat"}, "factory needs a schedule with one shortlist"),
        ({"schedule": "8:9 > 16:5 > 64", "factory": "Flat"}, "with one shortlist"),
        ({"parameters": "nprobe=4"}, "parameters are of a factory, there is none"),
        ({"schedule": "12:200 > 64", "code": "binary"}, "binary codes need multiples of 8 dims"),
        ({"schedule": "16:200 > 8"}, "rise strictly"),
        ({"schedule": "16"}, None),
        ({"schedule": 16}, "a plan needs a schedule"),
        ({"lists": 2.0, "list_dim": 8}, "lists must be a whole number, got 2.0"),
        ({"probes": True}, "probes must be a whole number, got True"),
        ({"list_dim": "8"}, "list_dim must be a whole number, got '8'"),
        ({"factory": 5}, "factory must be text, got 5"),
        ({"parameters": None}, "parameters must be text, got None"),
        ({"code": ["int8"]}, "code must be one of"),
        ({"asked": []}, r"asked holds no scores of queries: \[\]"),
        ({"asked": {**ASKED, "more": 1}}, "asked holds no scores of queries"),
        ({"asked": {**ASKED, "queries": 0}}, "asked holds no scores of queries"),
        ({"asked": {**ASKED, "k": True}}, "asked holds no scores of queries"),
        ({"asked": {**ASKED, "recall": "1"}}, "asked holds no scores of queries"),
        ({"asked": {**ASKED, "scores": [1.0] * (len(SHARES) - 1)}}, "asked holds no scores"),
        ({"asked": {**ASKED, "scores": [*range(len(SHARES))][::-1]}}, "asked holds no scores"),
        ({"list": 4, "Code": "int8"}, "a plan has no Code, list"),
    ],
)
def test_what_does_not_go_together(changes, message, tmp_path):
    content = {**Plan(SHORT).to_json(), **changes}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"schema": SCHEMA, "plan": content}))
    if message is None:
        assert read_plan(path).schedule == Schedule.exact(16)
        return
    with pytest.raises(ValueError, match=message):
        Plan.from_json(content)
    with pytest.raises(DataError, match=message) as raised:
        read_plan(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("", "is empty"),
        ('{"schema": 1, "plan": {"schedule"', "Expecting"),
        ("[1, 2]", "not a plan of schema 1"),
        ('{"plan": {"schedule": "8:20 > 16"}}', "not a plan of schema 1"),
        ('{"schema": 2, "plan": {"schedule": "8:20 > 16"}}', "not a plan of schema 1"),
        ('{"schema": 1}', "a plan is a JSON object, got None"),
        ('{"schema": 1, "plan": []}', r"a plan is a JSON object, got \[\]"),
        ('{"schema": 1, "plan": {}}', "a plan needs a schedule"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_what_is_no_plan(text, message, tmp_path):
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message) as raised:
        read_plan(path)
    line = str(raised.value)
    assert str(path) in line
    assert "\n" not in line
    assert len(line) < 300
