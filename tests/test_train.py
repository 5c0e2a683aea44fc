import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import commands
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mrl_jax import train
from mrl_jax.errors import NonFiniteError
from mrl_jax.runtime.step import check_finite


def records(workdir: pathlib.Path):
    """All lines of metrics.jsonl without what is measured by the clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith("time/")}
        for line in lines
    ]


def final_arrays(workdir: pathlib.Path):
    """Parameters, optimiser and all of the last checkpoint, by Orbax alone."""
    step = max(int(p.name) for p in (workdir / "ckpt").iterdir())
    with ocp.StandardCheckpointer() as checkpointer:
        path = (workdir / "ckpt" / str(step) / "state").absolute()
        target = checkpointer.metadata(path).item_metadata.tree
        return step, _leaves(checkpointer.restore(path, _shapes(target)))


def _shapes(tree):
    import jax

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), tree
    )


def _leaves(tree):
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def results_of(workdir: pathlib.Path):
    return json.loads((workdir / "results.json").read_text())


@pytest.mark.slow
def test_a_backbone_from_outside_the_package_is_trained_as_that_in_the_table_is(
    digits_run, tmp_path, monkeypatch
):
    (tmp_path / "my_nets.py").write_text(
        "from mrl_jax.models.mlp import Mlp\n"
        "def make(embedding_dim, depth): return Mlp(embedding_dim, width=16, depth=depth)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = ("--config.model.name=my_nets:make", "--config.model.width=0")
    commands.here(commands.train(tmp_path / "run", *own))
    found, expected = (
        [r["train/loss"] for r in records(run)[:10]] for run in (tmp_path / "run", digits_run[0])
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # on as many devices as there are


def test_a_run_leaves_what_it_promises(digits_run):
    workdir, output = digits_run
    assert {p.name for p in workdir.iterdir()} >= {
        *(
            "config.json",
            "facts.json",
            "metrics.jsonl",
            "results.json",
            "DONE",
            "ckpt",
            "tensorboard",
        ),
    }
    assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))
    assert sorted(p.name for p in (workdir / "ckpt").iterdir()) == ["50", "60"]
    for part in ("head/kernel_0008", "examples/s", "ETA 0:00", "compile", "test/top1"):
        assert part in output
    content = results_of(workdir)
    assert content["schema"] == 2
    assert content["run"] == "digits:mrl"
    assert content["config"]["nesting"]["dims"] == [2, 4, 8]
    assert {"commit", "versions", "command", "device"} <= content.keys()
    by_name = commands.by_name(workdir)
    # Separate heads classify the trained dims; neighbours are found at dims between as well.
    assert {d for name, d in by_name if name == "test/top1"} == {2, 4, 8}
    assert {d for name, d in by_name if name == "test/1nn"} == {2, 3, 4, 8}
    assert by_name["test/top1", 8].n == 360
    # Far above the 10 % of guessing, or nothing was learned in these few steps.
    assert by_name["test/top1", 8].value > 0.4


def test_metrics_are_one_record_per_step_in_order(digits_run):
    written = records(digits_run[0])
    assert [r["step"] for r in written] == [*range(1, 61), 60]
    assert {"train/loss", "train/loss/0002", "train/loss/0008"} <= written[0].keys()
    assert written[0]["train/loss"] == pytest.approx(
        sum(written[0][f"train/loss/{m:04d}"] for m in (2, 4, 8)), rel=1e-6
    )
    assert "val/1nn/0003" in written[-1]
    timed = json.loads((digits_run[0] / "metrics.jsonl").read_text().splitlines()[-2])
    shares = [v for k, v in timed.items() if k.startswith("time/") and "examples" not in k]
    assert sum(shares) == pytest.approx(1, abs=1e-3)


def test_called_again_it_redoes_nothing(digits_run):
    before = (digits_run[0] / "results.json").stat().st_mtime_ns
    assert "is done already" in commands.here(commands.train(digits_run[0]))
    assert (digits_run[0] / "results.json").stat().st_mtime_ns == before


def wait_for_step(workdir: pathlib.Path, step: int, process: subprocess.Popen):
    deadline = time.monotonic() + 120
    path = workdir / "metrics.jsonl"
    while time.monotonic() < deadline:
        if path.exists():
            lines = path.read_text().splitlines()
            if len(lines) >= step:
                return
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    pytest.fail(f"step {step} was not reached")


def start(argv, devices=1):
    return subprocess.Popen(
        argv,
        cwd=commands.ROOT,
        env=commands.environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_same_run(workdir, other):
    assert records(workdir) == records(other)
    (step, arrays), (other_step, other_arrays) = final_arrays(workdir), final_arrays(other)
    assert step == other_step
    assert len(arrays) == len(other_arrays) > 10
    for mine, theirs in zip(arrays, other_arrays, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert results_of(workdir)["results"] == results_of(other)["results"]


@pytest.mark.slow  # the default run resumes bit for bit below, and after a kill in test_train_text
def test_resume_after_kills_and_ctrl_c_is_bit_exact(digits_run, tmp_path):
    """SIGKILL early, Ctrl-C, and SIGKILL while a checkpoint is likely being written."""
    workdir = tmp_path / "run"
    for step, number, code in (
        (3, signal.SIGKILL, -signal.SIGKILL),
        (25, signal.SIGINT, 75),
        (41, signal.SIGKILL, -signal.SIGKILL),
    ):
        process = start(commands.train(workdir))
        wait_for_step(workdir, step, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code
        if code == 75:
            stopped = int(errors.split("stopped by a signal after step ")[1].split(",")[0])
            assert str(stopped) in {path.name for path in (workdir / "ckpt").iterdir()}
    output = commands.succeed(commands.train(workdir))
    assert "resuming from step" in output
    assert_same_run(workdir, digits_run[0])


def test_a_signal_saves_and_exits_with_75(digits_run, tmp_path):
    workdir = tmp_path / "run"
    # No regular checkpoint: what is there after the signal was saved because of it.
    late = "--config.checkpoint.every=1000"
    process = start(commands.train(workdir, late))
    wait_for_step(workdir, 12, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert errors.startswith("error: stopped by a signal after step ")
    stopped = int(errors.split("step ")[1].split(",")[0])
    assert [p.name for p in (workdir / "ckpt").iterdir()] == [str(stopped)]
    # No step is lost: the metrics reach up to the saved one.
    assert records(workdir)[-1]["step"] == stopped
    output = commands.succeed(commands.train(workdir, late))
    assert f"resuming from step {stopped}" in output
    assert_same_run(workdir, digits_run[0])


def test_what_a_kill_took_is_made_again_and_nothing_twice(digits_run, tmp_path):
    """Killed between save and evaluation of step 50, with a torn line and without config.json."""
    workdir = shutil.copytree(digits_run[0], tmp_path / "run")
    for name in ("DONE", "results.json", "config.json"):
        (workdir / name).unlink()
    shutil.rmtree(workdir / "ckpt" / "60")
    lines = (workdir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_bytes(b"".join((*lines[:30], b'{"st\xff\n', *lines[30:51])))
    # Where other random numbers are the default, too.
    elsewhere = {"JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_THREEFRY_PARTITIONABLE": "0"}
    output = commands.succeed(commands.train(workdir, "--config.eval.every=50"), **elsewhere)
    assert "resuming from step 50" in output
    assert "jax_default_prng_impl: rbg -> threefry2x32; jax_threefry_part" in output
    assert results_of(workdir)["environment"].items() >= elsewhere.items()
    assert results_of(workdir)["settings"] == results_of(digits_run[0])["settings"]
    assert "holds 1 line that is not a record" in output
    written = records(workdir)
    assert [r["step"] for r in written] == [*range(1, 51), 50, *range(51, 61), 60]
    assert {name.partition("/")[0] for name in written[50]} == {"step", "val"}
    assert written[:50] + written[51:] == records(digits_run[0])


@pytest.mark.slow
def test_killed_between_its_last_record_and_done_a_run_has_no_line_twice(digits_run, tmp_path):
    workdir = shutil.copytree(digits_run[0], tmp_path / "run")
    (workdir / "DONE").unlink()
    commands.succeed(commands.train(workdir))
    assert records(workdir) == records(digits_run[0])


@pytest.mark.slow
def test_resumes_on_another_mesh_with_another_form_of_the_loss(digits_run, tmp_path):
    """From one device to 2x2x2: the values agree as far as the order of summing allows."""
    workdir = shutil.copytree(digits_run[0], tmp_path / "run")
    for name in ("DONE", "results.json"):
        (workdir / name).unlink()
    shutil.rmtree(workdir / "ckpt" / "60")
    sizes = [f"--config.mesh.{axis}=2" for axis in ("data", "fsdp", "tensor")]
    fused = "--config.head.loss=streamed"
    output = commands.succeed(commands.train(workdir, *sizes, fused), devices=8)
    assert "resuming from step 50" in output
    for mine, one in zip(records(workdir)[:60], records(digits_run[0])[:60], strict=True):
        assert mine == pytest.approx(one, rel=1e-5), mine["step"]


@pytest.mark.slow
def test_two_processes_stopped_by_a_signal_to_one_give_the_result_of_one(digits_run, tmp_path):
    """Two real processes with gloo, two devices each, checkpoints and all."""
    workdir = tmp_path / "run"
    launcher = [
        *(commands.sys.executable, "launch/local.py", "--processes", "2"),
        *("--devices_per_process", "2", "--"),
    ]
    mesh = ("--config.mesh.data=2", "--config.mesh.tensor=2")
    process = start([*launcher, *commands.train(workdir, *mesh, "--config.head.loss=plain")])
    wait_for_step(workdir, 1, process)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors + output[-2000:]
    lines = [line for line in (errors + output).splitlines() if "stopped by a signal" in line]
    assert len(lines) == 2
    (stopped,) = {line.split("step ")[1] for line in lines}

    blockwise = "--config.head.loss=blockwise"
    output = commands.succeed([*launcher, *commands.train(workdir, *mesh, blockwise)])
    assert f"resuming from step {stopped.split(',')[0]}" in output
    for mine, one in zip(records(workdir)[:60], records(digits_run[0])[:60], strict=True):
        assert mine == pytest.approx(one, rel=1e-5), mine["step"]
    mine, one = commands.values(workdir), commands.values(digits_run[0])
    assert mine == pytest.approx(one, abs=0.02)
    # Restored by one process, it evaluates alike.
    commands.succeed(commands.command("mrl_jax.evaluate", "--workdir", workdir), devices=4)


def test_a_non_finite_loss_stops_naming_step_and_granularity(tmp_path):
    """A rate at which training explodes; the last checkpoint stays finite."""
    workdir = tmp_path / "run"
    line = commands.refused(
        commands.train(
            workdir,
            "--config.optimizer.name=sgd",
            "--config.optimizer.learning_rate=1e30",
            "--config.optimizer.warmup_steps=0",
        ),
        5,
    )
    assert "step " in line
    assert "loss is not finite at granularity 2, 4, 8" in line
    assert not (workdir / "DONE").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_g": [1.0, np.nan, np.inf]}, "step 7: loss is not finite at granularity 4, 8"),
        ({"loss": np.inf}, "step 7: loss is not finite (inf)"),
        ({"grad_norm": np.nan}, "step 7: grad_norm is not finite (nan)"),
    ],
)
def test_non_finite_numbers_are_named(change, message):
    metrics = {"loss": 3.0, "loss_g": [1.0, 1.0, 1.0], "grad_norm": 1.0, **change}
    with pytest.raises(NonFiniteError) as error:
        check_finite(7, metrics, (2, 4, 8))
    assert str(error.value) == message


def test_a_full_disk_is_one_line(tmp_path):
    """A file size limit stands in for the disk: the same writes fail.

    This also shows for all refusals what a process makes of them: an exit code and one line.
    """
    limited = 'ulimit -f 8; exec "$@"'
    line = commands.fail(["bash", "-c", limited, "bash", *commands.train(tmp_path / "run")], 4)
    assert "cannot write" in line
    assert str(tmp_path / "run") in line


def test_one_workdir_one_run(digits_run, tmp_path, monkeypatch):
    line = commands.refused(commands.train(digits_run[0], "--config.seed=1"), 2)
    assert "holds another run (seed: 0 -> 1)" in line
    # What could not start does not take the folder.
    argv = commands.train(tmp_path, "--config.steps=1", "--config.optimizer.warmup_steps=0")
    line = commands.refused([*argv, "--config.weights=nowhere.safetensors"], 2)
    assert "nowhere.safetensors" in line
    run = train.Training.run

    def try_another_and_run(training):
        assert "is in use by another run" in commands.refused(argv, 2)
        run(training)

    monkeypatch.setattr(train.Training, "run", try_another_and_run)
    commands.here(argv)
    assert (tmp_path / "DONE").read_text() == "step 1\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--config.sead=1"], 2, "unknown config key 'sead'; did you mean 'seed'?"),
        (["--config.nesting.dims=4,2"], 2, "strictly increasing, got 2 after 4"),
        (["--config.data.source=image_folder", "--config.data.path=nowhere"], 3, "nowhere lacks a"),
        (["surplus"], 2, "unexpected argument 'surplus'"),
    ],
)
def test_refusals_have_the_documented_code(tmp_path, arguments, code, message):
    assert message in commands.refused(commands.train(tmp_path / "run", *arguments), code)
    # A refused run does not take the folder: mended, the same command runs.
    assert not (tmp_path / "run" / "config.json").exists()


def test_missing_flags_and_half_a_process_group(tmp_path, monkeypatch):
    line = commands.refused(commands.command("mrl_jax.train", "--workdir", tmp_path), 2)
    assert "--config" in line
    assert "looks like a bucket's address" in commands.refused(commands.train("gs://bucket/run"), 2)
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    line = commands.refused(commands.train(tmp_path / "run"), 2)
    assert "JAX_PROCESS_ID is set but not JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES" in line


def test_a_checkpoint_of_another_run_is_refused_without_its_config(digits_run, tmp_path):
    workdir = shutil.copytree(digits_run[0], tmp_path / "run")
    for name in ("config.json", "results.json"):
        (workdir / name).unlink()
    other = ("--config.model.width=24", "--config.seed=5", "--config.batch_size=64")
    line = commands.refused(commands.train(workdir, *other), 4)
    assert "is of another run (batch_size: 32 -> 64; model.width: 16 -> 24; seed: 0 -> 5)" in line
    assert records(workdir) == records(digits_run[0])
    assert not (workdir / "config.json").exists()
