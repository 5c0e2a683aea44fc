import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import uuid

import commands
import numpy as np
import pytest

from mrl_jax.engines import ray
from mrl_jax.errors import UsageError
from mrl_jax.search.device.on_disk import top_k_on_disk
from mrl_jax.store.vectors import open_vectors

SCRIPTS = commands.ROOT / "launch" / "ray"


# Starts a cluster as the commands do without --address, says where it is, and ends it when asked.
CLUSTER = """
import sys
from mrl_jax.engines import ray
with ray.connected(None, ray.Workers(2)):
    from ray import get_runtime_context
    print(get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


def environment(mark):
    """One device, as here; Ray's own processes do not live with warnings as errors."""
    return {
        **commands.environment(),
        "PYTHONWARNINGS": "ignore",
        "MRL_JAX_TEST_MARK": mark,
        "RAY_worker_niceness": "0",  # or they wait for other tests
        "RAY_USAGE_STATS_ENABLED": "0",
        # Who does not give the cluster's token is kept out.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": mark,
    }


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster, and the mark of all processes that belong to it."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        cwd=commands.ROOT,
        env=environment(mark),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        address = process.stdout.readline().strip()
        assert address, process.communicate()
        yield address, mark
        output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (0, ""), errors[-3000:]
    _wait_until_ended(mark)


def start(script, cluster, *arguments):
    address, mark = cluster
    command = [sys.executable, SCRIPTS / script, "--address", address, *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=commands.ROOT,
        env=environment(mark),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call_while_a_worker_dies(script, cluster, *arguments):
    """Runs a launch script, and kills a worker while it is at work; gives the last line."""
    with start(script, cluster, "--workers", 2, *arguments) as process:
        os.kill(_at_work(cluster[1], process), signal.SIGKILL)
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return output.splitlines()[-1]


def fail(script, cluster, *arguments):
    """Runs a launch script that must exit with 2 and write one line to stderr; gives that line."""
    with start(script, cluster, *arguments) as process:
        _, errors = process.communicate(timeout=240)
    assert (process.returncode, errors.count("\n")) == (2, 1), errors[-3000:]
    return errors


def _marked(mark):
    """(process id, command line) of all processes of the cluster."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if f"MRL_JAX_TEST_MARK={mark}".encode() in (folder / "environ").read_bytes():
                found.append((int(folder.name), (folder / "cmdline").read_bytes().decode()))
    return found


def _wait_until_ended(mark):
    """The cluster ends with what started it; its last processes may take a moment longer."""
    for _ in range(300):
        if not _marked(mark):
            return
        time.sleep(0.1)
    pytest.fail(f"{_marked(mark)} are still there")


def _at_work(mark, process):
    for _ in range(12000):
        for pid, line in _marked(mark):
            if line.startswith("ray::MapWorker") and ".submit" in line:
                return pid
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    pytest.fail("no worker was seen at work")


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


@pytest.mark.slow
def test_embeds_as_one_process_does_while_a_worker_dies(cluster, tmp_path):
    run = tmp_path / "run"
    commands.succeed(commands.train(run))

    def arguments(out):
        return "--workdir", run, "--input", "train", "--out", out, "--shard_rows", 40

    one, both = tmp_path / "one", tmp_path / "both"
    commands.succeed(commands.command("mrl_jax.embed", *arguments(one)))
    # Either command goes on where the other was.
    shutil.copytree(one, both)
    for path in both.glob("vectors-*.npy"):
        if path.name != "vectors-00003-of-00027.npy":
            path.unlink()
    line = call_while_a_worker_dies("embed.py", cluster, *arguments(both))
    assert line.startswith("1078 vectors of 8 dims, step 60; 26 of 27 shards written, 1 were there")
    assert contents(both) == contents(one)
    # What is wrong is found by a worker, and is the line that the other command prints.
    line = fail("embed.py", cluster, "--workers", 1, *arguments(both), "--dim", 9)
    assert line == "error: dim must be 1 to 8, got 9\n"


@pytest.mark.slow
def test_searches_as_one_process_does_while_a_worker_dies(cluster, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "z.npy", rng.standard_normal((1000, 16)).astype(np.float32))
    np.save(tmp_path / "ids.npy", np.arange(1000)[::-1] * 7)
    np.save(tmp_path / "q.npy", rng.standard_normal((20, 16)).astype(np.float32))
    where = "--vectors", tmp_path / "z.npy", "--ids", tmp_path / "ids.npy"
    what = "--queries", tmp_path / "q.npy", "--dims", "4,16", "--k", 5, "--shard_rows", 128
    out = tmp_path / "found.npz"
    line = call_while_a_worker_dies("search.py", cluster, *where, *what, "--out", out)
    assert line.startswith("5 of 1000 for 20 queries at 2 dims")
    code = (
        "import sys, numpy as np; from mrl_jax.search.device.on_disk import top_k_on_disk as f;"
        "from mrl_jax.store.vectors import open_vectors as v; a = sys.argv;"
        "found = f(v(a[1]), np.load(a[2]), (4, 16), 5, shard_rows=128);"
        "np.savez(a[3], rows=found.rows_gbk, scores=found.scores_gbk)"
    )
    paths = tmp_path / "z.npy", tmp_path / "q.npy", tmp_path / "one.npz"
    commands.succeed([sys.executable, "-c", code, *map(str, paths)])
    one, found = np.load(tmp_path / "one.npz"), np.load(out)
    np.testing.assert_array_equal(found["ids"], (999 - one["rows"]) * 7)
    np.testing.assert_array_equal(found["scores"], one["scores"])
    assert found["dims"].tolist() == [4, 16]
    vectors, queries = open_vectors(tmp_path / "z.npy"), np.load(tmp_path / "q.npy")
    here = top_k_on_disk(vectors, queries, (4, 16), 5)
    np.testing.assert_array_equal(here.rows_gbk, one["rows"])


@pytest.mark.slow
def test_what_does_not_fit_is_refused(cluster):
    # Ray would wait for ever.
    arguments = ("--workers", 2, "--cpus", 5000, "--workdir", "run", "--input", "val")
    line = fail("embed.py", cluster, *arguments, "--out", "out")
    assert line.startswith("error: the Ray cluster has room for 0 of 2 workers with 5000 ")


@pytest.mark.parametrize("workers", [(0,), (1, 0), (1, 1, -1)])
def test_workers_must_be_some(workers):
    with (
        pytest.raises(UsageError, match="at least 1 worker"),
        ray.connected(None, ray.Workers(*workers)),
    ):
        pass


def test_without_loopback_ray_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(ray.coordinator, "has_loopback", lambda: False)
    with (
        pytest.raises(UsageError, match="Ray cannot be used here: the loopback interface is down"),
        ray.connected(None, ray.Workers(1)),
    ):
        pass


def test_room_is_counted_by_node():
    assert ray._room({"CPU": 5.0}, ray.Workers(1, 2)) == 2
    assert ray._room({"CPU": 8.0, "GPU": 3.0}, ray.Workers(1, 2, 1)) == 3
    assert ray._room({"CPU": 8.0}, ray.Workers(1, 2, 1)) == 0


def test_ray_is_not_installed(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(
            UsageError, match=r'Ray needs more packages: pip install "mrl_jax\[engines\]"'
        ),
        ray.connected(None, ray.Workers(1)),
    ):
        pass
