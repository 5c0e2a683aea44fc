"""An index as one manifest describes it: opened, searched, never changed."""

import concurrent.futures
import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from mrl_jax.errors import DataError
from mrl_jax.search.index import files, pages, segment, threads
from mrl_jax.search.index.loops import NO_ROW
from mrl_jax.search.index.segment import Allowed, Segment, Shared
from mrl_jax.search.index.sources import NO_ID
from mrl_jax.search.plan import Plan

_BLOCK = 512  # queries a thread works on at a time


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What an index holds at one time. A change makes a new snapshot and leaves this one as it is.

    A search takes one snapshot and keeps it. Mapped files stay readable after they are removed.

    Attributes:
      folder: of the index.
      manifest: what it says.
      plan: what the index was built by.
      width: dims of a vector.
      shared: what all segments are made with.
      segments: in the order they were added.
    """

    folder: pathlib.Path
    manifest: dict
    plan: Plan
    width: int
    shared: Shared
    segments: tuple[Segment, ...]

    @classmethod
    def read(cls, folder: pathlib.Path) -> "Snapshot":
        """What is in the folder now.

        Raises:
          DataError: it is missing, of another version, or its files are not of the sizes and
            shapes that were written.
        """
        while True:
            manifest = files.read_manifest(folder)
            try:
                return cls._opened(folder, manifest)
            except DataError:
                # Another command may have replaced, meanwhile, what this manifest names.
                if files.read_manifest(folder) == manifest:
                    raise

    @classmethod
    def _opened(cls, folder: pathlib.Path, manifest: dict) -> "Snapshot":
        try:
            plan, width = Plan.from_json(manifest["plan"]), manifest["width"]
            plan.schedule.check(1, width)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{folder / files.MANIFEST} is damaged: {error!r}") from error
        about = manifest["shared"]
        shared = Shared(pages.Folder(folder / about["name"], about), plan)
        nothing = cls(folder, {**manifest, "segments": []}, plan, width, shared, ())
        return nothing.changed(manifest)

    def changed(self, manifest: dict) -> "Snapshot":
        """With the segments of another manifest; what is open here is not opened again.

        Raises:
          DataError: as `read`.
        """
        opened = zip(self.manifest["segments"], self.segments, strict=True)
        before = {about["name"]: (about, part) for about, part in opened}
        segments = []
        for about in manifest["segments"]:
            was, part = before.get(about["name"], (None, None))
            if part is None:
                folder = pages.Folder(self.folder / about["name"], about)
                part = Segment(folder, self.plan, about["rows"], self.width)
            if about["deleted"] is not None and about != was:
                where = self.folder / about["deleted"]["name"]
                part = part.without(files.read_deleted(where, about["deleted"]), where)
            segments.append(part)
        return dataclasses.replace(self, manifest=manifest, segments=tuple(segments))

    @functools.cached_property
    def _alive_l(self) -> np.ndarray:
        """How many rows of each list are not deleted, [lists]."""
        return self._rows_of_lists([part.allowed for part in self.segments])

    def _rows_of_lists(self, allowed: Sequence[Allowed]) -> np.ndarray:
        counts = [p.rows_of_lists(a) for p, a in zip(self.segments, allowed, strict=True)]
        return np.sum(counts, axis=0)

    def search(
        self,
        query_bd: np.ndarray,
        k: int,
        keeps: tuple[int, ...],
        probes: int,
        parameters: str,
        most_threads: int,
        allowed: Sequence[Allowed] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and scores [B, k] of the best rows, see `Index.search`, which checks arguments.

        As long as k rows are allowed, k are found. `allowed` says which rows of each segment may
        be; None: all that are not deleted.
        """
        rows_l = None
        if self.plan.lists > 1:
            rows_l = self._alive_l if allowed is None else self._rows_of_lists(allowed)
        if allowed is None:
            allowed = [part.allowed for part in self.segments]

        def found(block_bd):
            first = keeps[0] if keeps else 0
            queries = segment.prepare(block_bd, self.plan, self.shared, probes, rows_l, k, first)
            return self._found(queries, keeps, k, parameters, allowed)

        size = max(1, min(_BLOCK, -(-len(query_bd) // most_threads)))
        blocks = [query_bd[i : i + size] for i in range(0, len(query_bd), size)]
        with threads.one_each():
            if len(blocks) <= 1 or most_threads == 1:
                parts = [found(block_bd) for block_bd in blocks]
            else:
                start = {"max_workers": most_threads, "initializer": threads.alone}
                with concurrent.futures.ThreadPoolExecutor(**start) as pool:
                    parts = list(pool.map(found, blocks))
        if not parts:
            return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
        ids, scores = zip(*parts, strict=True)
        return np.concatenate(ids), np.concatenate(scores).astype(np.float32)

    def _found(self, queries, keeps, k: int, parameters: str, allowed: Sequence[Allowed]):
        ids, scores = [], []
        for part, of_part in zip(self.segments, allowed, strict=True):
            row_bk, score_bk = part.search(queries, keeps, k, parameters, of_part)
            ids.append(np.where(row_bk == NO_ROW, NO_ID, part.ids_of(row_bk)))
            scores.append(score_bk)
        if len(ids) == 1:
            return ids[0], scores[0]
        id_bc, score_bc = np.concatenate(ids, 1), np.concatenate(scores, 1)
        best_bk = np.argsort(-score_bc, 1, kind="stable")[:, :k]
        return np.take_along_axis(id_bc, best_bk, 1), np.take_along_axis(score_bc, best_bk, 1)
