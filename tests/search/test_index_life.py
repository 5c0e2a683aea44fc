"""Random changes by processes that are killed, while threads read: nothing but what was true."""

import json
import os
import pathlib
import subprocess
import sys
import threading

import life
import numpy as np
import pytest
from commands import ROOT

from mrl_jax.search.index import Index


class Reader:
    """A thread that reads in its own way, and says what it saw that was never true."""

    def __init__(self, folder, held, way, shared):
        self._folder, self._held, self._way, self._shared = folder, held, way, shared
        self._progress = life.progress_of(folder, "r")
        self._generator = np.random.default_rng(len(way))
        self.seen, self.errors, self.stop = set(), [], threading.Event()
        self._index = Index.open(folder)
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        try:
            index = self._index
            while not self.stop.wait(0.03):
                if self._way == "shared":
                    self._ask(self._shared)
                    continue
                if self._way == "old":  # what was there when it was opened, whatever happens
                    self._look(index, (0,))
                    continue
                first = int(self._progress[1])
                if self._way == "refreshed":
                    index.refresh()
                else:
                    index = Index.open(self._folder)
                self._look(index, range(first, int(self._progress[0]) + 1))
        except BaseException as error:
            self.errors.append(f"{self._way}: {error!r}")

    def _look(self, index, moments):
        """All of what an index holds must be that of one moment, which it gives."""
        held = [n for n in moments if life.holds(index, self._held[n])]
        assert held, f"never true from {moments[0]} to {moments[-1]}"
        ids, _ = now = self._held[held[0]]
        query_bd = self._generator.standard_normal((2, life.D)).astype(np.float32)
        assert len(index) == len(ids)
        assert life.is_nearest(life.found(index, query_bd), now, query_bd)
        some = self._generator.permutation(life.POOL)[: life.POOL // 2]
        allowed = np.isin(ids, some)
        if allowed.sum() >= life.K:
            answer = life.found(index, query_bd, allow=some)
            assert life.is_nearest(answer, (ids[allowed], now[1][allowed]), query_bd)
        self.seen.update(held)
        return held

    def _ask(self, index):
        """One answer of an index that another thread refreshes must be that of one moment."""
        first = int(self._progress[1])
        query_bd = self._generator.standard_normal((2, life.D)).astype(np.float32)
        index.refresh()
        answer = life.found(index, query_bd)
        moments = range(first, int(self._progress[0]) + 1)
        held = [n for n in moments if life.is_nearest(answer, self._held[n], query_bd)]
        assert held, f"never true from {moments[0]} to {moments[-1]}"
        self.seen.update(held)


def live(folder, plan, seed, changes):
    """Kills, changes that were made nonetheless, and what each reader saw."""
    _, held = life.lived(seed, changes)
    life.progress_of(folder, "w+")[:] = 0
    index = Index.build(folder, held[0][1], held[0][0], plan=life.PLANS[plan])
    ways = ("shared", "shared", "old", "refreshed", "opened")
    readers = [Reader(folder, held, way, index) for way in ways]
    script = [sys.executable, pathlib.Path(life.__file__), folder, plan, str(seed), str(changes)]
    # OpenMP hangs in a forked process once its parent had several threads.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    for reader in readers:
        reader.thread.start()
    try:
        done = subprocess.run(
            script, env=environment, capture_output=True, text=True, timeout=30 + changes
        )
    finally:
        for reader in readers:
            reader.stop.set()
            reader.thread.join()
    assert done.returncode == 0, done.stderr[-3000:]
    assert [error for reader in readers for error in reader.errors] == []
    for last in (index, Index.open(folder)):
        last.refresh()
        assert life.holds(last, held[-1])
        last.delete([])  # which removes what those that were killed left behind
        last.verify()
    named = 2 + len(index._now.segments)  # the manifest, what all share
    deleted = sum(about["deleted"] is not None for about in index._now.manifest["segments"])
    inside = [path for path in folder.iterdir() if path.name != ".lock"]
    assert len(inside) == named + deleted
    assert len(index._now.segments) <= 8
    return (*json.loads(done.stdout), [reader.seen for reader in readers])


@pytest.mark.parametrize(
    ("plan", "changes"),
    [("lists", 100), *(pytest.param(p, 2500, marks=pytest.mark.slow) for p in life.PLANS)],
)
def test_a_life_of_kills_and_readers(plan, changes, tmp_path):
    kills, nonetheless, seen = live(tmp_path / "index", plan, changes, changes)
    assert kills > changes / 30
    assert nonetheless or changes < 1000
    assert all(seen)
    assert len(set().union(*seen)) > changes / 10
