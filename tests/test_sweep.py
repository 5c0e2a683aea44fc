import json
import os
import signal
import subprocess
import textwrap
import time

import commands
import pytest

from mrl_jax.errors import UsageError
from mrl_jax.sweep import expand, shares_of_cores

SWEEP = """
    from mrl_jax.config import default_config

    def get_config(arg="separate"):
        config = default_config()
        config.name = f"tiny:{{arg}}"
        config.model.name, config.model.width, config.model.depth = "mlp", 16, 1
        config.model.embedding_dim, config.nesting.dims = 8, (2, 8)
        config.head.kind = arg
        config.steps, config.optimizer.warmup_steps = 30, 5
        return config

    def sweep():
        {body}
"""


def write(tmp_path, body):
    path = tmp_path / "tiny.py"
    path.write_text(textwrap.dedent(SWEEP).format(body=body))
    return path


def sweep(path, root, *more):
    return commands.command("mrl_jax.sweep", "--config", path, "--root", root, *more)


def test_digits_sweep_is_every_method_and_seed(tmp_path):
    runs = expand(str(commands.ROOT / "configs/digits.py"), tmp_path)
    assert len(runs) == len({run.folder for run in runs}) == 8 * 3
    assert {run.arg for run in runs} == {
        *("mrl", "mrl_e"),
        *(f"fixed={m}" for m in (2, 4, 8, 16, 32, 64)),
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("yield 'separate', {'sead': 1}", "run 0 of the sweep (separate, {'sead': 1}): unknown"),
        ("yield 'separate', {}; yield 'tied', {'steps': 'x'}", "run 1 of the sweep"),
        ("yield None, {'seed': 1}; yield None, {'seed': 1}", "run 1 of the sweep (None,"),
        ("yield {'seed': 1}", "must yield (arg, overrides) pairs, got {'seed': 1}"),
        ("return []", "yields no run"),
    ],
)
def test_every_run_is_checked_before_any_starts(tmp_path, body, message):
    with pytest.raises(UsageError) as error:
        expand(str(write(tmp_path, body)), tmp_path / "root")
    assert message in str(error.value)
    assert not (tmp_path / "root").exists()


def test_no_sweep_or_an_argument_is_refused(tmp_path):
    (tmp_path / "none.py").write_text("def get_config(): pass")
    with pytest.raises(UsageError, match=r"none.py has no sweep\(\) function"):
        expand(str(tmp_path / "none.py"), tmp_path)
    with pytest.raises(UsageError, match="a sweep chooses the argument itself"):
        expand("configs/digits.py:mrl", tmp_path)


def test_overrides_reach_the_run_with_their_types(tmp_path):
    path = write(tmp_path, "yield 'shared', {'nesting.dims': (4, 8), 'name': 'a b', 'seed': 2}")
    (run,) = expand(str(path), tmp_path / "root")
    from mrl_jax import config

    overrides = [a for a in run.argv if a.startswith("--config.")]
    loaded = config.load(f"{path}:shared", overrides)
    assert (loaded.nesting.dims, loaded.name, loaded.seed) == ((4, 8), "a b", 2)


@pytest.mark.slow
def test_one_failure_does_not_stop_the_others_and_all_is_resumable(tmp_path):
    # The middle run passes the check of its config and fails later, in its own process.
    body = (
        "yield 'separate', {}; yield 'separate', {'data.source': 'image_folder', "
        "'data.path': 'nowhere'}; yield 'shared', {}"
    )
    path, root = write(tmp_path, body), tmp_path / "root"
    done = commands.run(sweep(path, root, "--jobs", "2"))
    assert done.returncode == 3, done.stderr
    assert "1 of 3 runs failed" in done.stderr
    assert "nowhere lacks a train or val folder" in done.stderr
    assert "[  3/3]" in done.stdout
    assert "ETA" in done.stdout
    index = json.loads((root / "sweep.json").read_text())
    folders = [root / run["dir"] for run in index["runs"]]
    assert [(f / "DONE").exists() for f in folders] == [True, False, True]

    # Mended, the same root goes on: what is done is not done again, the index follows.
    path = write(tmp_path, "yield 'separate', {}; yield 'shared', {}; yield 'shared', {'seed': 1}")
    output = commands.succeed(sweep(path, root))
    assert "3 runs, 2 done already, 1 to do" in output
    assert "0 to do" in commands.succeed(sweep(path, root))
    index = json.loads((root / "sweep.json").read_text())
    assert [run["overrides"] for run in index["runs"]] == [{}, {}, {"seed": 1}]
    report = commands.succeed(commands.command("mrl_jax.report", root))
    assert "MRL-E" in report
    assert (root / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_signal_reaches_the_runs_and_the_sweep_can_go_on(tmp_path):
    path = write(tmp_path, "yield 'separate', {'steps': 100000}; yield 'shared', {}")
    root = tmp_path / "root"
    process = subprocess.Popen(
        sweep(path, root, "--jobs", "1"),
        cwd=commands.ROOT,
        env=commands.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(root.glob("*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "the same command continues" in errors
    saved = list(root.glob("*/ckpt/*"))
    assert len(saved) == 1  # the first run saved its state, the second never began
    line = commands.fail(sweep(path, root, "--jobs", "0"), 2)
    assert "--jobs must be >= 1, got 0" in line


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins no processes")
def test_runs_at_a_time_share_the_cores(tmp_path, monkeypatch):
    path, root = (
        write(tmp_path, "yield 'separate', {'steps': 6}; yield 'shared', {}"),
        tmp_path / "r",
    )
    path.write_text(
        "import os\n"
        "print('cores', len(os.sched_getaffinity(0)), 'of', os.cpu_count())\n" + path.read_text()
    )
    commands.succeed(sweep(path, root, "--jobs", "2"))
    cores = len(os.sched_getaffinity(0))
    for log in root.glob("*/log.txt"):
        (line,) = (x for x in log.read_text().splitlines() if x.startswith("cores"))
        assert int(line.split()[1]) in {max(1, cores // 2), max(1, (cores + 1) // 2)}

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 4, 6, 7})
    assert shares_of_cores(2) == [{0, 4, 7}, {2, 6}]
    assert shares_of_cores(1) == [{0, 2, 4, 6, 7}]
    assert shares_of_cores(6) == [set()] * 6
