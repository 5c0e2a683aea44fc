"""A life of an index, known beforehand: which changes are made, and what it holds after each.

As a script it makes the changes in child processes that kill themselves at random moments:
python life.py FOLDER PLAN SEED CHANGES
"""

import json
import os
import pathlib
import shutil
import signal
import sys

import numpy as np

from mrl_jax.search.index import Index
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule

D, FIRST, POOL, K = 8, 40, 200, 5
EXACT = {"threads": 1}
PLANS = {
    "exact": Plan(Schedule.exact(D), "l2"),
    "flat": Plan(Schedule.parse(f"4:60 > {D}"), "l2", "int8"),
    "lists": Plan(Schedule.parse(f"4:60 > {D}"), "l2", "float16", lists=4, list_dim=4, probes=4),
    "IVF": Plan(Schedule.parse(f"4:60 > {D}"), "l2", factory="IVF4,Flat", parameters="nprobe=4"),
}
NO_CHANGES = ("compact", "recluster", "copy", "open")
_CHANGES = {
    "add": 40, "upsert": 25, "delete": 20, "delete many": 3, "compact": 3, "recluster": 1,
    "copy": 2, "open": 6,
}  # fmt: skip
_LONGEST = 400  # things done to files until a child kills itself, at most


def lived(seed: int, changes: int):
    """The changes, as (name, ids, vectors), and what there is before, between and after them.

    Each is a pair of ids and vectors, in the order of the index.
    """
    generator = np.random.default_rng(seed)
    vectors = lambda n: generator.standard_normal((n, D)).astype(np.float32)  # noqa: E731
    there = dict(zip(range(FIRST), vectors(FIRST), strict=True))
    made, held = [], [(np.array(list(there)), np.stack(list(there.values())))]
    names, weights = list(_CHANGES), np.array(list(_CHANGES.values()), float)
    for _ in range(changes):
        name = generator.choice(names, p=weights / weights.sum())
        if len(there) < 15 and name.startswith("delete"):
            name = "add"
        if len(there) > POOL - 60 and name == "add":
            name = "delete many"
        ids, z_nd = np.empty(0, int), np.empty((0, D), np.float32)
        if name in ("add", "upsert"):
            rows = 60 if generator.random() < 0.03 else generator.integers(1, 6)
            pool = np.arange(POOL) if name == "upsert" else np.setdiff1d(range(POOL), list(there))
            ids = generator.permutation(pool)[:rows]
            z_nd = vectors(len(ids))
        elif name.startswith("delete"):
            rows = len(there) - 12 if name == "delete many" else generator.integers(1, 4)
            ids = generator.permutation(list(there))[:rows]
        for i in ids.tolist():
            there.pop(i, None)
        there.update(zip(ids[: len(z_nd)].tolist(), z_nd, strict=True))
        made.append((str(name), ids, z_nd))
        same = name in NO_CHANGES
        now = np.array(list(there)), np.stack(list(there.values()))
        held.append(held[-1] if same else now)
    return made, held


def nearest(held, query_bd):
    """Ids and scores [B, K] of the nearest in float64."""
    ids, z_nd = held
    score_bn = -np.square(query_bd[:, None].astype(np.float64) - z_nd).sum(2)
    best_bk = np.argsort(-score_bn, 1)[:, :K]
    return ids[best_bk], np.take_along_axis(score_bn, best_bk, 1)


def found(index, query_bd, **how):
    """What an index finds if it compares all."""
    keeps = (10**6,) * len(index.plan.schedule.stages)
    return index.search(query_bd, K, keeps=keeps, threads=1, **how)


def is_nearest(answer, held, query_bd):
    """Whether an answer is that of what was held then."""
    wanted_ids, wanted_scores = nearest(held, query_bd)
    return np.array_equal(answer[0], wanted_ids) and np.allclose(answer[1], wanted_scores, 1e-4)


def holds(index, held):
    """Whether an index holds this and nothing else, in this order."""
    ids, z_nd = held
    return np.array_equal(index.ids, ids) and np.array_equal(index.get(ids), z_nd)


def progress_of(folder: pathlib.Path, mode: str):
    """Two numbers that processes share: changes begun, and changes known to be on disk."""
    return np.memmap(folder.with_name("progress"), np.int64, mode, shape=(2,))


def _do(index, name, ids, z_nd):
    if name in ("add", "upsert"):
        getattr(index, name)(z_nd, ids)
    elif name.startswith("delete"):
        index.delete(ids)
    elif name in ("compact", "recluster"):
        index.compact(recluster=name == "recluster")
    elif name == "copy":
        copy = index.folder.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.rmtree(f"{copy}.unfinished", ignore_errors=True)
        index.save(copy)
        saved = Index.open(copy)
        saved.verify()
        assert np.array_equal(saved.ids, index.ids)


def _live(folder, made, held, left):
    """Makes the changes from where they are until all are made, or too much is done to files."""

    def hook(event, arguments):
        nonlocal left
        writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    progress, index = progress_of(folder, "r+"), Index.open(folder)
    sys.addaudithook(hook)
    for n in range(int(progress[1]), len(made)):
        progress[0] = n + 1
        name, ids, z_nd = made[n]
        if name == "open":
            index = Index.open(folder)
        _do(index, name, ids, z_nd)
        progress[1] = n + 1
        if n % 7 == 0:
            query_bd = held[n + 1][1][:2] + np.float32(0.1)
            assert holds(index, held[n + 1]), f"after change {n}, {name}, it holds something else"
            assert is_nearest(found(index, query_bd), held[n + 1], query_bd)


def main(folder: pathlib.Path, plan: str, seed: int, changes: int) -> None:
    """Prints how often a child was killed, and how often its change was made nonetheless."""
    made, held = lived(seed, changes)
    # What is compiled at first use is loaded once, not by every child.
    index = Index.build(None, held[0][1], held[0][0], plan=PLANS[plan])
    for name, ids, z_nd in (("upsert", *held[0]), ("recluster", None, None)):
        _do(index, name, ids, z_nd)
        found(index, held[0][1][:2])
    generator, kills, nonetheless = np.random.default_rng(seed), 0, 0
    progress = progress_of(folder, "r+")
    while progress[1] < changes:
        left = int(generator.integers(1, _LONGEST))
        child = os.fork()
        if not child:
            code = 1
            try:
                _live(folder, made, held, left)
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                sys.exit(1)
            continue
        kills += 1
        index = Index.open(folder)
        index.verify()
        begun, done = map(int, progress)
        if begun > done and holds(index, held[begun]):
            nonetheless += made[done][0] not in NO_CHANGES
            progress[1] = begun
        elif not holds(index, held[done]):
            sys.exit(f"killed at change {done}, {made[done][0]}: it holds neither the old nor new")
    print(json.dumps([kills, nonetheless]))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
