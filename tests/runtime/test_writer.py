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
    writer = MetricWriter(tmp_path / "metrics.jsonl", 0, active=True)
    writer.write(5, {"train/loss": 0.1, "train/loss/0008": 2.5})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 5, "train/loss": 0.1, "train/loss/0008": 2.5}
    writer.close()
    assert read_events(tmp_path / "tensorboard") == [
        (5, "train/loss", pytest.approx(0.1)),
        (5, "train/loss/0008", 2.5),
    ]


def test_resume_drops_what_the_restored_state_has_not_seen(tmp_path):
    writer = MetricWriter(tmp_path / "metrics.jsonl", 0, active=True)
    for step in (10, 20, 30):
        writer.write(step, {"train/loss": step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 40, "train/lo')  # killed while writing
    writer = MetricWriter(tmp_path / "metrics.jsonl", 20, active=True)
    writer.write(30, {"train/loss": 31})
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["train/loss"] for line in lines] == [10, 20, 31]


RECORDS = (b'{"step": 10, "train/loss": 1}', b'{"step": 20, "train/loss": 2}')


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 21, "\xff\xfe',
        b'{"step": null}',
        b'{"step": true}',
        b'{"step": 1.5}',
        b'{"train/loss": 1}',
        b"[10]",
        b"null",
        b"[" * 100_000,
        b"<<<<<<< HEAD",
        b"\0" * 64,
    ],
    ids=lambda line: str(line[:20]),
)
def test_lines_that_are_no_records_are_set_aside_alone(tmp_path, capsys, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join((RECORDS[0], line, RECORDS[1], line)))
    MetricWriter(tmp_path / "metrics.jsonl", 20, active=True).close()
    assert path.read_bytes() == b"\n".join((*RECORDS, b""))
    assert (tmp_path / "metrics.damaged").read_bytes() == (line + b"\n") * 2
    assert "metrics.jsonl holds 2 lines that are not records" in capsys.readouterr().out


def test_a_last_record_without_a_line_break_stays(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(RECORDS))
    writer = MetricWriter(tmp_path / "metrics.jsonl", 20, active=True)
    writer.write(30, {"train/loss": 3})
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 30]
    assert not (tmp_path / "metrics.damaged").exists()


def test_a_measurement_of_the_resumed_step_is_known_and_never_there_twice(tmp_path):
    path, measurement = tmp_path / "metrics.jsonl", b'{"step": 20, "val/top1/0008": 0.5}'
    for lines, measured in ((RECORDS, False), ((*RECORDS, measurement, measurement), True)):
        path.write_bytes(b"\n".join((*lines, b"")))
        writer = MetricWriter(tmp_path / "metrics.jsonl", 20, active=True)
        writer.close()
        assert writer.measured is measured
    assert path.read_bytes() == b"\n".join((*RECORDS, measurement, b""))
    # After the last step it is made again.
    writer = MetricWriter(tmp_path / "metrics.jsonl", 20, active=True, measured_anew=True)
    writer.close()
    assert path.read_bytes() == b"\n".join((*RECORDS, b""))


def test_nothing_measured_is_no_record(tmp_path):
    writer = MetricWriter(tmp_path / "metrics.jsonl", 0, active=True)
    writer.write(10, {})
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_other_processes_write_nothing(tmp_path):
    writer = MetricWriter(tmp_path / "metrics.jsonl", 0, active=False)
    writer.write(1, {"train/loss": 1.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []
