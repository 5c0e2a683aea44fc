import json

import pytest
from tensorboardX.proto.event_pb2 import Event

from mrl_jax.runtime.writer import MetricWriter


def read_events(folder):
    """Scalars of all event files as (step, tag, value), by the format's own framing."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + length])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            at += 12 + length + 4
    return found


def test_writes_both_files(tmp_path):
    writer = MetricWriter(tmp_path, 0, active=True)
    writer.write(5, {"train/loss": 0.1, "train/loss/0008": 2.5})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 5, "train/loss": 0.1, "train/loss/0008": 2.5}
    writer.close()
    assert read_events(tmp_path / "tensorboard") == [
        (5, "train/loss", pytest.approx(0.1)),
        (5, "train/loss/0008", 2.5),
    ]


def test_resume_drops_what_the_restored_state_has_not_seen(tmp_path):
    writer = MetricWriter(tmp_path, 0, active=True)
    for step in (10, 20, 30):
        writer.write(step, {"train/loss": step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 40, "train/lo')  # killed while writing
    writer = MetricWriter(tmp_path, 20, active=True)
    writer.write(30, {"train/loss": 31})
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["train/loss"] for line in lines] == [10, 20, 31]


def test_other_processes_write_nothing(tmp_path):
    writer = MetricWriter(tmp_path, 0, active=False)
    writer.write(1, {"train/loss": 1.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []
