import contextlib
import json
import os
import re
import signal
import subprocess
import textwrap
import time

import commands
import numpy as np
import pytest
from ml_collections import ConfigDict

from mrl_jax import config as configs
from mrl_jax import report
from mrl_jax import sweep as sweeps
from mrl_jax.errors import DataError, UsageError
from mrl_jax.record import folder as workdir
from mrl_jax.sweep import expand

SWEEP = """
    import pathlib

    import jax.numpy as jnp
    import numpy as np
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


def write(tmp_path, body, before=""):
    path = tmp_path / "tiny.py"
    path.write_text(textwrap.dedent(before) + textwrap.dedent(SWEEP).format(body=body))
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
        ("return None", "sweep() must yield (arg, overrides) pairs, got None"),
        ("return 7", "sweep() must yield (arg, overrides) pairs, got 7"),
        ("return []", "sweep() yields no run"),
        ("return 'ab'", "sweep() must yield (arg, overrides) pairs, got 'a'"),
        ("import sys; sys.exit(0)", "sweep(): it called sys.exit(0)"),
        ("while True: yield None, {}", "sweep(): yields more than 100,000 runs"),
        ("a = []; a.append(a); yield None, {'nesting.dims': a}", "holds itself"),
        ("yield 'separate', {'sead': 1}", "run 0 of the sweep (separate, {'sead': 1}): unknown"),
        ("yield 'separate', {}; yield 'tied', {'steps': 'x'}", "run 1 of the sweep"),
        ("yield None, {'seed': 1}; yield None, {'seed': 1}", "run 1 of the sweep (None,"),
        ("yield {'seed': 1}", "must yield (arg, overrides) pairs, got {'seed': 1}"),
        ("return []", "yields no run"),
        ("yield None, {}; 1 / 0", "sweep(): ZeroDivisionError: division by zero"),
        ("yield None, {'batch_size': 0}", "run 0 of the sweep (None, {'batch_size': 0}): config.b"),
        ("yield None, {'seed': 1}; yield None, {'seed': -1}", "config.seed must be >= 0, got -1"),
        ("yield None, {'batch_size': 12, 'optimizer.accumulate': 8}", "12 is not divisible by the"),
        ("yield None, {'eval.batch_size': 7}", "config.eval.batch_size 7 is not divisible"),
        ("yield None, {'mesh.tensor': 3}", "mesh data=-1, fsdp=1, tensor=3 does not fit 2 devices"),
        ("yield None, {'nesting.dims': (2, 16)}", "nesting dim 16 is wider than the embedding (8"),
        ("yield None, {'nesting.weights': (1,)}", "nesting weights must be one per dim"),
        ("yield None, {'optimizer.name': 'lion'}", "optimizer name must be one of"),
        ("yield None, {'optimizer.decay_mask': 'kernl'}", "decay_mask 'kernl' matches no "),
        ("yield None, {'optimizer.warmup_steps': 30}", "warmup_steps must be in [0, steps=30)"),
        ("yield None, {'eval.measures': ('acuracy',)}", "config.eval.measures: measures are"),
        ("yield None, {'model.name': None}", "'model.name' must be str, got None"),
        ("yield None, {'nesting.dims': None}", "'nesting.dims' must be tuple, got None"),
        ("yield None, {'nesting.dims': {2, 8}}", "'nesting.dims' must be tuple, got {"),
        ("yield None, {'nesting.dims': np.int64(8)}", "'nesting.dims' must be tuple, got 8"),
        ("yield None, {'steps': '30'}", "'steps' must be int, got '30'"),
        ("yield None, {'steps': np.float64(30)}", "'steps' must be int, got 30.0"),
        ("yield None, {'steps': True}", "'steps' must be int, got True"),
        ("yield None, {'data.flip': 1}", "'data.flip' must be bool, got 1"),
        ("yield None, {'nesting.weights': (1, np.nan)}", "cannot be written on a command line"),
        ("yield None, {7: 1}", "unknown config key '7'"),
        ("yield None, {'optimizer': {'name': 'sgd'}}", "'optimizer' is a group; its keys are"),
    ],
)
def test_every_run_is_checked_before_any_starts(tmp_path, body, message):
    with pytest.raises(UsageError) as error:
        expand(str(write(tmp_path, body)), tmp_path / "root", devices=2)
    assert "\n" not in str(error.value)
    assert message in str(error.value)
    assert not (tmp_path / "root").exists()


def test_files_that_are_not_there_are_noticed_before_any_run_starts(tmp_path):
    path = write(tmp_path, "yield None, {'seed': 1}; yield None, {'eval.shifts': ('v2=gone',)}")
    with pytest.raises(DataError, match=r"eval\.shifts=\('v2=gone',\): config\.eval\.shifts: gone"):
        sweeps.main(["--config", str(path), "--root", str(tmp_path / "root"), "--jobs", "1"])
    assert os.listdir(tmp_path / "root") == [".lock"]


def test_no_sweep_an_argument_or_no_job_is_refused(tmp_path):
    (tmp_path / "none.py").write_text("def get_config(): pass")
    with pytest.raises(UsageError, match=r"none.py has no sweep\(\) function"):
        expand(str(tmp_path / "none.py"), tmp_path)
    with pytest.raises(UsageError, match="a sweep chooses the argument itself"):
        expand("configs/digits.py:mrl", tmp_path)
    with pytest.raises(UsageError, match="--jobs must be >= 1, got 0"):
        sweeps.main(["--config", "configs/digits.py", "--root", str(tmp_path), "--jobs", "0"])


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("nesting.dims", "(4, 8)", (4, 8)),
        ("nesting.dims", "2 ** np.arange(1, 4)", (2, 4, 8)),
        ("nesting.dims", "range(2, 9, 3)", (2, 5, 8)),
        ("nesting.weights", "()", ()),
        ("nesting.weights", "tuple(np.linspace(0.5, 1, 2))", (0.5, 1.0)),
        ("nesting.weights", "[np.float32(0.5), jnp.float32(2)]", (0.5, 2.0)),
        ("name", "'a b'", "a b"),
        ("name", "''", ""),
        ("name", "'()'", "()"),
        ("name", "np.str_('x=1,y')", "x=1,y"),
        ("data.path", "pathlib.PurePosixPath('/a:b/c')", "/a:b/c"),
        ("eval.shifts", "[pathlib.PurePosixPath('n=f')]", ("n=f",)),
        ("seed", "np.int64(2)", 2),
        ("seed", "jnp.int32(3)", 3),
        ("batch_size", "np.array(16)", 16),
        ("optimizer.learning_rate", "np.logspace(-3, -1, 3)[1]", 0.01),
        ("optimizer.learning_rate", "np.float32(0.1)", float(np.float32(0.1))),
        ("optimizer.learning_rate", "1", 1.0),
        ("data.flip", "np.bool_(True)", True),
        ("data.flip", "False", False),
        ("sharding", "np.array([['.*', 'replicate']])", ((".*", "replicate"),)),
    ],
)
def test_overrides_reach_the_run_by_value_and_type(tmp_path, key, given, value):
    path = write(tmp_path, f"yield 'separate', {{'{key}': {given}}}")
    (run,) = expand(str(path), tmp_path / "root", devices=1)
    flags = [a for a in run.argv if a.startswith("--config.")]
    found = configs.flatten(configs.load(f"{path}:separate", flags))[key]
    assert (found, type(found)) == (value, type(value))
    assert json.loads(json.dumps(run.overrides))[key] == json.loads(json.dumps(value))


def test_the_command_line_holds_for_every_run(tmp_path):
    path = write(tmp_path, "yield None, {'steps': 40, 'seed': 1}; yield None, {'seed': 2}")
    runs = expand(str(path), tmp_path, ["--config.steps", "9"])
    assert [(run.config.steps, run.overrides) for run in runs] == [
        (9, {"seed": 1}),
        (9, {"seed": 2}),
    ]
    for run in runs:
        flags = run.argv[run.argv.index("--workdir") + 2 :]
        assert configs.load(str(path), flags) == run.config
    with pytest.raises(
        UsageError, match=r"repeats an earlier one: --config\.seed holds for every run"
    ):
        expand(str(path), tmp_path, ["--config.seed=0", "--config.steps=9"])


def folders(path, root, *common):
    return [run.folder for run in expand(str(path), root, common)]


def test_folders_are_named_after_what_a_run_computes(tmp_path):
    path = write(tmp_path, "yield None, {'seed': 1}; yield None, {'seed': 2}")
    names = folders(path, tmp_path)
    assert len({*names}) == 2
    assert folders(path, tmp_path, "--config.log_every=7", "--config.data.path=x") == names
    assert not {*names} & {*folders(path, tmp_path, "--config.batch_size=64")}
    # What sweep() itself sets is what its runs differ in, whatever it is.
    path = write(tmp_path, "yield None, {'data.path': 'a'}; yield None, {'data.path': 'b'}")
    assert len({*folders(path, tmp_path)}) == 2


def test_a_run_keeps_the_folder_that_it_has(tmp_path):
    path = write(tmp_path, "yield None, {'seed': 1}; yield None, {'seed': 2}")
    runs = expand(str(path), tmp_path)
    # An older release called folders otherwise, and had fewer keys.
    content = json.loads(configs.to_json(runs[1].config))
    del content["checkpoint"], content["log_every"]
    for name in ("run-0123abcd", "other-0123abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    assert folders(path, tmp_path) == [runs[0].folder, "run-0123abcd"]
    (tmp_path / runs[0].folder).mkdir()
    (tmp_path / runs[0].folder / "config.json").write_text("{")
    assert folders(path, tmp_path) == [runs[0].folder, "run-0123abcd"]


# Beside a config: lines in each run's log that say which process it is and how many cores it has.
SAID = """
    import os

    print("process", os.getpid())
    if hasattr(os, "sched_getaffinity"):
        print("cores", len(os.sched_getaffinity(0)), "of", os.cpu_count())
"""


def said(log, name):
    """The numbers in the lines of a log that begin with this name."""
    return [int(n) for n in re.findall(rf"^{name} (\d+)", log.read_text(), re.MULTILINE)]


def test_a_run_waits_while_another_process_uses_its_folder(tmp_path, monkeypatch, capsys):
    folder, run = tmp_path / "a", sweeps.Job("mrl", {"seed": 1}, "a", [], ConfigDict())
    with contextlib.ExitStack() as other:
        other.enter_context(workdir.locked(folder))
        monkeypatch.setattr(sweeps.time, "sleep", lambda seconds: other.close())
        assert sweeps.Pool(tmp_path, [])._is_free(folder, run)
        with workdir.locked(folder):  # the other one has ended
            pass
    assert f"mrl seed=1: waiting while another process uses {folder}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_failure_stops_no_other_run_all_is_resumable_and_cores_are_shared(tmp_path, capsys):
    # The middle run passes the check of its config and fails later, in its own process.
    empty = tmp_path / "empty"
    empty.mkdir()
    body = (
        "yield 'separate', {}; yield 'separate', {'data.source': 'image_folder', "
        f"'data.path': {str(empty)!r}}}; yield 'shared', {{}}"
    )
    path, root = write(tmp_path, body, SAID), tmp_path / "root"
    done = commands.run(sweep(path, root, "--jobs", "2"))
    assert done.returncode == 3, done.stderr
    assert "1 of 3 runs failed" in done.stderr
    assert "empty lacks a train or val folder" in done.stderr
    assert "[  3/3]" in done.stdout
    assert "ETA" in done.stdout
    index = json.loads((root / "sweep.json").read_text())
    folders = [root / run["dir"] for run in index["runs"]]
    assert [(f / "DONE").exists() for f in folders] == [True, False, True]
    if hasattr(os, "sched_getaffinity"):  # elsewhere the system pins no processes
        cores = len(os.sched_getaffinity(0))
        for folder in folders:
            (own,) = said(folder / "log.txt", "cores")
            assert own in {max(1, cores // 2), max(1, (cores + 1) // 2)}

    # Mended, the same root goes on: what is done is not done again, the index follows, and runs
    # that the sweep no longer has stand beside it.
    path = write(tmp_path, "yield 'shared', {}; yield 'shared', {'seed': 1}")
    output = commands.succeed(sweep(path, root))
    assert "2 runs, 1 done already, 1 to do" in output
    index = json.loads((root / "sweep.json").read_text())
    arguments = [(run["arg"], run["overrides"]) for run in index["runs"]]
    assert arguments == [("separate", {}), ("shared", {}), ("shared", {"seed": 1})]

    # Keys that change nothing find what is done.
    before = (root / "sweep.json").read_text()
    sweeps.main(["--config", str(path), "--root", str(root), "--config.log_every=7"])
    output = capsys.readouterr().out
    assert "0 to do" in output
    assert "runs that are done keep their own log_every" in output
    assert (root / "sweep.json").read_text() == before
    report.main([str(root)])
    assert "MRL-E" in capsys.readouterr().out
    assert (root / "report.html").stat().st_size > 10_000


@contextlib.contextmanager
def started(path, root):
    """The sweep, in progress; killed at the end, which ends its run as well."""
    with subprocess.Popen(
        sweep(path, root, "--jobs", "1"),
        cwd=commands.ROOT,
        env=commands.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until_it_trains(log, start, process):
    """Until its first, second, ... start has taken steps: before that there is nothing to save."""
    deadline = time.monotonic() + 180
    while not (log.exists() and "examples/s" in "".join(log.read_text().split("$ ")[start:])):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_signalled_or_killed_a_sweep_stops_its_runs_and_the_next_one_waits_and_goes_on(tmp_path):
    path = write(tmp_path, "yield 'separate', {'steps': 100000}; yield 'shared', {}", SAID)
    root = tmp_path / "root"
    log = root / expand(str(path), root)[0].folder / "log.txt"

    def stop(process, number):
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 75, errors
        assert output.count(": stopped") == 2
        assert "FAILED" not in output
        assert "the same command continues" in errors
        # The first run saved its state, the second never began.
        assert {saved.parent.parent for saved in root.glob("*/ckpt/*")} == {log.parent}

    with started(path, root) as first:
        wait_until_it_trains(log, 1, first)
        stop(first, signal.SIGTERM)

    with contextlib.ExitStack() as held:
        with started(path, root) as killed:
            wait_until_it_trains(log, 2, killed)
            # The run is held up: it saves its state only once the next sweep waits for it.
            run = said(log, "process")[-1]
            os.kill(run, signal.SIGSTOP)
            held.callback(os.kill, run, signal.SIGCONT)
        with started(path, root) as following:
            lines = iter(following.stdout.readline, "")
            assert any("waiting while another process uses" in line for line in lines)
            held.close()
            wait_until_it_trains(log, 3, following)
            stop(following, signal.SIGINT)
    text = log.read_text()
    found = re.findall(r"(resuming from|stopped by a signal after) step (\d+)", text)
    assert [what for what, _ in found] == ["stopped by a signal after", "resuming from"] * 2 + [
        "stopped by a signal after"
    ]
    # Each goes on from where the one before stopped, and gets further.
    steps = [int(step) for _, step in found]
    assert steps[:-1:2] == steps[1::2]
    assert steps[0] < steps[2] < steps[4]
    assert "in use" not in text
