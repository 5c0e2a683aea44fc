"""SIGKILL at every moment of a change: the index is the old one or the new one, and whole."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from brute_force import draw, store
from commands import ROOT

from mrl_jax.search.index import Index
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule

D = 24
PLANS = {
    "flat": Plan(Schedule.parse(f"8:60 > {D}"), code="int8"),
    "lists": Plan(Schedule.parse(f"8:60 > {D}"), lists=4, list_dim=12, probes=4),
    "IVF": Plan(Schedule.parse(f"8:60 > {D}"), factory="IVF4,Flat", parameters="nprobe=4"),
}
CASES = [("build", "lists"), ("add", "flat"), ("delete", "flat"), ("recluster", "IVF")]

# A child makes the change and kills itself before the n-th thing it does to files, for every n.
# Forked, because to start Python and to import takes a hundred times as long as the change.
SCRIPT = """
import json, os, pathlib, shutil, signal, sys
import numpy as np
from mrl_jax.search.index import Index
from mrl_jax.search.plan import Plan
from mrl_jax.store.vectors import open_vectors

folder = pathlib.Path(sys.argv[1])
query_bd = np.load(folder / "query.npy")
vectors = open_vectors(folder / "more.npy", folder / "more-ids.npy")

def do(change, here, plan):
    if change == "build":
        return Index.build(here, vectors, plan=plan)
    index = Index.open(here)
    if change == "add":
        index.add(vectors)
    elif change == "delete":
        index.delete(index.ids[:9])
    else:
        index.compact(recluster=True)
    return index

def facts(index):
    index.verify()
    ids_bk, scores_bk = index.search(query_bd, 5, threads=1)
    size = index.bytes()["vectors"]
    return [index.ids.tolist(), ids_bk.tolist(), scores_bk.tolist(), size]

def killed(n, *arguments):
    child = os.fork()
    if child:
        return not os.WIFEXITED(os.waitpid(child, 0)[1])
    left = n
    def hook(event, arguments):
        nonlocal left
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            left -= 1
            if left == -1:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    try:
        do(*arguments)
    finally:
        os._exit(0)

def case(change, name):
    here, old = folder / "here", folder / name
    plan = Plan.from_json(json.loads((folder / f"{name}.json").read_text()))
    def prepare():
        for path in folder.glob("here*"):
            shutil.rmtree(path)
        if change != "build":
            shutil.copytree(old, here)
    def names():
        inside = sorted(path.name for path in here.iterdir() if path.name != ".lock")
        return len(inside), sorted(path.name for path in folder.glob("here*"))
    prepare()
    before = facts(Index.open(here)) if here.exists() else None
    after, whole, found = facts(do(change, here, plan)), names(), []
    prepare()
    while killed(len(found), change, here, plan):
        now = facts(Index.open(here)) if here.exists() else None
        if now == before:  # what was stopped is done again, and cleans up
            then = facts(do(change, here, plan))
        else:
            Index.open(here).delete([])
            then = facts(Index.open(here))
        found.append([now == before, now == after, then == after, names() == whole])
        prepare()
    return found, facts(Index.open(here)) == after

print(json.dumps([case(*arguments) for arguments in json.loads(sys.argv[2])]))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    np.save(folder / "query.npy", draw(4, D, seed=3))
    store(folder, draw(20, D, seed=5), np.arange(20) + 500, name="more")
    for name, plan in PLANS.items():
        (folder / f"{name}.json").write_text(json.dumps(plan.to_json()))
        old = Index.build(folder / name, store(folder, draw(60, D)), plan=plan)
        old.add(store(folder, draw(5, D, seed=6), np.arange(5) + 900))
        old.delete([1, 2, 903])
    script = [sys.executable, "-c", SCRIPT, folder, json.dumps(CASES)]
    # OpenMP hangs in a forked process once its parent had several threads.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        script, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case))
def test_killed_at_any_moment(outcomes, case):
    found, finished = outcomes[case]
    assert finished
    assert len(found) > 5
    for n, (is_old, is_new, then_new, clean) in enumerate(found):
        assert is_old or is_new, f"damaged when killed at {n}"
        assert then_new, f"cannot go on when killed at {n}"
        assert clean, f"files are left over when killed at {n}"
    # Nothing of it is seen until all of it is.
    states = [is_new for _, is_new, *_ in found]
    assert states == sorted(states)
    assert not states[0]
