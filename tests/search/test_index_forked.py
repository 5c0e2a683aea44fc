"""Servers open an index, use it, and fork their workers."""

import subprocess
import sys

from commands import ROOT

SCRIPT = """
import os, pathlib, signal, sys, warnings
import numpy as np
from mrl_jax.errors import UsageError
from mrl_jax.search.device.exact import top_k
from mrl_jax.search.index import Index
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule
from mrl_jax.search.index.rows import InMemory

warnings.simplefilter("ignore")  # of JAX, of forks in general
folder, short = pathlib.Path(sys.argv[1]), Schedule.parse("8:50 > 64")
z_nd = np.random.default_rng(0).standard_normal((1000, 64)).astype(np.float32)
plans = {
    "flat": Plan(short, code="int8"),
    "lists": Plan(short, code="int8", lists=8, list_dim=8, probes=8),
    "graph": Plan(short, factory="HNSW8"),
    "SymphonyQG": Plan(Schedule.parse("64:50 > 64"), factory="SymphonyQG32,8"),
    "IVF": Plan(short, factory="IVF8,Flat", parameters="nprobe=8"),
}
indexes = {n: Index.build(folder / n, InMemory(z_nd), plan=plan) for n, plan in plans.items()}
found = {name: index.search(z_nd[:200], 5)[0] for name, index in indexes.items()}
top_k(z_nd, z_nd[:3], (64,), 1)
if not os.fork():
    signal.alarm(60)
    for name, index in indexes.items():
        for queries, threads in ((200, None), (200, 1), (1, None)):
            ids_bk, _ = index.search(z_nd[:queries], 5, threads=threads)
            assert (ids_bk == found[name][:queries]).all(), name
        more = InMemory(2 * z_nd[:20])
        more.ids = np.arange(20) + 5000
        index.add(more)
        index.compact()
        Index.build(folder / f"{name}-child", InMemory(z_nd), plan=plans[name])
    try:
        top_k(z_nd, z_nd[:3], (64,), 1)
    except UsageError as error:
        assert "this process is a fork of one in which JAX was in use" in str(error)
    else:
        raise AssertionError("JAX was not refused")
    print("done", flush=True)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_forked_child_searches_adds_and_builds(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-3000:]
