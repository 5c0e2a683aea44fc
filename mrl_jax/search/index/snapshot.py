"""What an index holds at one time, and how it is searched."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mrl_jax import extras
from mrl_jax.errors import DataError, UsageError
from mrl_jax.search.index import balance, files, ids, loops, pages, rabitq, segment
from mrl_jax.search.index.likeness import Watch
from mrl_jax.search.index.rows import TOO_LONG, floats
from mrl_jax.search.index.segment import Segment, Shared
from mrl_jax.search.index.threads import alone, cores, one_each
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule

with extras.needed("search", "an index"):
    import pyarrow as pa
    import pyarrow.compute as pc

_BLOCK = 512  # queries a thread works on at a time
_WALKED = 16  # at least, if they walk a graph
_FIXED = ("plan", "width", "shared")  # what a manifest says of all segments
_LEAST_K = 10_000  # the least k that every index accepts, however few vectors it has


@dataclasses.dataclass(frozen=True)
class Effort:
    """How a search is done, see `Index.search`; all of it legal. `planned`: as the plan says."""

    k: int
    keeps: tuple[int, ...]
    probes: int
    parameters: str
    threads: int
    planned: bool


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What an index holds at one time. A change makes a new snapshot and leaves this one as it is.

    A search takes one snapshot and keeps it. Mapped files stay readable after they are removed.
    """

    folder: pathlib.Path
    manifest: dict
    plan: Plan
    width: int
    shared: Shared
    segments: tuple[Segment, ...]
    watch: Watch | None = None  # of searches of all rows, by a plan that was measured

    @classmethod
    def read(cls, folder: pathlib.Path, before: "Snapshot | None" = None) -> "Snapshot":
        """What is in the folder now; raises as `Index.open`.

        What `before`, an older snapshot, holds of it is not opened again.
        """
        while True:
            manifest = files.read_manifest(folder)
            try:
                if before and all(before.manifest[key] == manifest[key] for key in _FIXED):
                    return before.changed(manifest)
                return cls._opened(folder, manifest)
            except DataError:
                # Meanwhile another command may have replaced what this manifest names.
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
        watch = Watch(folder, plan.asked, plan.metric) if plan.asked else None
        nothing = cls(folder, {**manifest, "segments": []}, plan, width, shared, (), watch)
        return nothing.changed(manifest)

    def changed(self, manifest: dict) -> "Snapshot":
        """The snapshot of another manifest; segments that are open here are not opened again."""
        opened = zip(self.manifest["segments"], self.segments, strict=True)
        before = {about["name"]: (about, part) for about, part in opened}
        segments = []
        for about in manifest["segments"]:
            was, part = before.get(about["name"], (None, None))
            written = {key: value for key, value in about.items() if key != "deleted"}
            # Another index may have been built in this folder, whose files have the same names.
            if was is None or not written.items() <= was.items():
                folder = pages.Folder(self.folder / about["name"], about)
                was, part = None, Segment(folder, self.plan, about["rows"], self.width)
            if about["deleted"] is not None and about != was:
                where = self.folder / about["deleted"]["name"]
                part = part.without(files.read_deleted(where, about["deleted"]), where)
            segments.append(part)
        if len({part.ids.kind for part in segments}) > 1:
            raise DataError(f"{self.folder} is damaged: its segments have ids of two kinds")
        return dataclasses.replace(self, manifest=manifest, segments=tuple(segments))

    @property
    def rows(self) -> int:
        """How many rows may be found."""
        return sum(part.alive_rows for part in self.segments)

    @property
    def version(self) -> int:
        """1 when the index is built; each change makes it larger."""
        return self.manifest["version"]

    @property
    def kind(self) -> ids.Kind:
        """Of the ids."""
        return self.segments[0].ids.kind

    @functools.cached_property
    def schema(self) -> pa.Schema | None:
        """Of the attributes; None if there are none."""
        first = self.segments[0].attributes
        return None if first is None else first.schema

    def places(self, asked: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the segments and rows of [n] unique ids; -1 where an id is not there."""
        segment_n, row_n = np.full(len(asked), -1), np.full(len(asked), -1)
        for s, part in enumerate(self.segments):
            place_r = ids.places(asked, part.ids.all())
            found_f = np.flatnonzero((place_r >= 0) & part.alive)
            segment_n[place_r[found_f]], row_n[place_r[found_f]] = s, found_f
        return segment_n, row_n

    def allowing(self, allow: Any) -> "Snapshot":
        """The same, in which only some rows are found, see `Index.search`."""
        if allow is None:
            return self
        parts = zip(self.segments, self._masks(allow), strict=True)
        segments = tuple(part.only(mask) for part, mask in parts)
        return dataclasses.replace(self, segments=segments, watch=None)

    def _masks(self, allow: Any) -> list[np.ndarray]:
        """For each segment which of its rows [N] are allowed."""
        if isinstance(allow, pc.Expression):
            if any(part.attributes is None for part in self.segments):
                raise UsageError("allow is a predicate, but the index has no attributes")
            return [part.attributes.fulfilling(allow) for part in self.segments]
        given = np.asarray(allow)
        if given.dtype != bool:
            asked = ids.taken(allow, self.kind)
            return [ids.among(asked, part.ids.all()) for part in self.segments]
        if given.shape != (self.rows,):
            raise ValueError(f"allow must be [{self.rows}], one for each id, got {given.shape}")
        masks, first = [], 0
        for part in self.segments:
            mask_n = given[first : first + part.alive_rows]
            first += part.alive_rows
            if part.alive_rows < part.rows:
                of_alive_a, mask_n = mask_n, part.alive.copy()
                mask_n[part.alive] = of_alive_a
            masks.append(mask_n)
        return masks

    @functools.cached_property
    def _rows_of_lists(self) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
        """How many rows of each list may be found, and how many it has, [lists]; or no lists."""
        if self.plan.lists == 1:
            return None, None
        alive = np.sum([part.alive_of_lists() for part in self.segments], axis=0)
        return alive, np.sum([part.rows_of_lists() for part in self.segments], axis=0)

    @functools.cached_property
    def share_read(self) -> float | None:
        """The share of its rows that a query like them reads, see `balance`; None: no lists."""
        if self.plan.lists == 1:
            return None
        return balance.share_read(self.segments, self.shared, self.plan, self.width)

    @property
    def slowdown(self) -> float:
        """How many times the share is that of when the clusters were made; 1 without clusters."""
        made = self.manifest["clusters"]
        return 1.0 if made is None or not self.rows else self.share_read / made["read"]

    def effort(
        self,
        k: int,
        keeps: Sequence[int] | None,
        probes: int | None,
        parameters: str | None,
        threads: int | None,
    ) -> Effort:
        """How to search: as the plan says, but for what is given; raises as `Index.search`."""
        keeps = None if keeps is None else tuple(keeps)
        return self._known_effort(k, keeps, probes, parameters, threads)

    @functools.cached_property
    def _known_effort(self) -> Callable[..., Effort]:
        """Most searches are asked for alike, which is checked only once."""
        return functools.lru_cache(64, typed=True)(self._effort)

    def _effort(self, k, keeps, probes, parameters, threads) -> Effort:
        plan, stages = self.plan, self.plan.schedule.stages
        planned = keeps is None and probes is None and parameters is None
        keeps = tuple(s.keep for s in stages) if keeps is None else keeps
        if len(keeps) != len(stages):
            raise ValueError(f"keeps must be {len(stages)} numbers, got {keeps}")
        dims = (s.dim for s in stages)
        Schedule(tuple(zip(dims, keeps, strict=True)), plan.schedule.final).check(k, self.width)
        most = max(_LEAST_K, *(part.rows for part in self.segments))
        if k > most:
            raise ValueError(f"k must be 1 to {most}; got {k}")
        probes = plan.probes if probes is None else probes
        if not 1 <= probes <= plan.lists:
            raise ValueError(f"probes must be 1 to {plan.lists}, got {probes}")
        parameters = plan.parameters if parameters is None else parameters
        if parameters and not plan.factory:
            raise ValueError(f"parameters are of a factory, the plan has none; got {parameters!r}")
        return Effort(k, keeps, probes, parameters, checked_threads(threads), planned)

    def search(self, queries: Any, effort: Effort) -> tuple[np.ndarray, np.ndarray]:
        """Ids and scores [B, k] of the best rows, or [k] of one query, see `Index.search`.

        As long as k rows may be found, k are found.
        """
        query_bd = checked_queries(queries, self.plan.schedule.final)
        first = effort.keeps[0] if effort.keeps else 0
        rows_l = all_l = None
        whole = [part.compares_all(effort.keeps, effort.probes) for part in self.segments]
        if not all(whole):
            rows_l, all_l = self._rows_of_lists

        def found(block_bd):
            prepared = segment.prepare(
                block_bd, self.plan, self.shared, effort.probes, rows_l, all_l, effort.k, first
            )
            return self._found(prepared, effort)

        walked = rabitq.is_one(self.plan.factory) and not (self.plan.rotated or any(whole))
        parts = _in_blocks(found, query_bd, effort.threads, walked)
        if len(parts) == 1:
            id_bk, score_bk = parts[0]
        elif parts:
            id_bk, score_bk = map(np.concatenate, zip(*parts, strict=True))
        else:
            dtype = np.int64 if self.kind == "int64" else object
            id_bk, score_bk = np.empty((0, effort.k), dtype), np.empty((0, effort.k))
        score_bk = score_bk.astype(np.float32)
        if self.watch is not None and effort.planned and len(query_bd):
            self.watch.take(query_bd, score_bk)
        return (id_bk[0], score_bk[0]) if np.ndim(queries) == 1 else (id_bk, score_bk)

    def _found(self, queries: segment.Queries, effort: Effort):
        found_ids, scores = [], []
        for part in self.segments:
            row_bk, score_bk = part.search(
                queries, effort.keeps, effort.probes, effort.k, effort.parameters
            )
            found_ids.append(part.ids.at(row_bk))
            scores.append(score_bk)
        if len(found_ids) == 1:
            return found_ids[0], scores[0]
        id_bc, score_bc = np.concatenate(found_ids, 1), np.concatenate(scores, 1)
        best_bk = np.argsort(-score_bc, 1, kind="stable")[:, : effort.k]
        return np.take_along_axis(id_bc, best_bk, 1), np.take_along_axis(score_bc, best_bk, 1)

    def within(
        self, queries: Any, least: float, threads: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Limits, ids and scores of all rows near enough, see `Index.range_search`."""
        query_bd = checked_queries(queries, self.plan.schedule.final)

        def found(block_bd):
            parts = [part.within(block_bd, least) for part in self.segments]
            ids_f = np.concatenate(
                [p.ids.at(f[1]) for p, f in zip(self.segments, parts, strict=True)]
            )
            query_f, score_f = (np.concatenate([f[which] for f in parts]) for which in (0, 2))
            order_f = np.lexsort((-score_f, query_f))
            counts_b = np.bincount(query_f, minlength=len(block_bd))
            return counts_b, ids_f[order_f], score_f[order_f]

        final = self.plan.schedule.final
        nothing = found(np.empty((0, final), np.float32))
        parts = [nothing, *_in_blocks(found, query_bd[:, :final], threads)]
        counts_b, ids_f, score_f = map(np.concatenate, zip(*parts, strict=True))
        return np.append(0, np.cumsum(counts_b)), ids_f, score_f.astype(np.float32)


def _in_blocks(
    found: Callable[[np.ndarray], Any], query_bd: np.ndarray, threads: int, walked: bool = False
) -> list:
    """What is found of blocks of queries, in order, by so many threads at most.

    Where only graphs are `walked`, or lists of rabitqlib read, no library has threads of its own,
    and a few queries are answered sooner than threads are started.
    """
    least = _WALKED if walked else 1
    size = max(least, min(_BLOCK, -(-len(query_bd) // threads)))
    blocks = [query_bd[i : i + size] for i in range(0, len(query_bd), size)]
    with contextlib.nullcontext() if walked else one_each():
        if len(blocks) <= 1 or threads == 1:
            return [found(block_bd) for block_bd in blocks]
        start = {"max_workers": threads, "initializer": alone}
        with concurrent.futures.ThreadPoolExecutor(**start) as pool:
            return list(pool.map(found, blocks))


def checked_threads(threads: int | None) -> int:
    """How many threads there may be; ValueError if none."""
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    return cores() if threads is None else threads


def checked_queries(queries: Any, dims: int) -> np.ndarray:
    """Queries [B, D] as they are given, or one [D]; ValueError if they cannot be asked."""
    query_bd = np.atleast_2d(floats(queries, "queries"))
    if query_bd.ndim != 2 or query_bd.shape[1] < dims:
        raise ValueError(f"queries must be [B, >= {dims}], got {np.shape(queries)}")
    query_bd = query_bd[:, :dims]
    if query_bd.dtype != np.float32:
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused
            query_bd = query_bd.astype(np.float32)
    query_bd = np.ascontiguousarray(query_bd)
    if len(query_bd) and not loops.lengths(query_bd).max() < TOO_LONG:
        raise ValueError("a query holds NaN or infinity, or is longer than 4e18")
    return query_bd
