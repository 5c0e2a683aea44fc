"""An index on disk: find with few dims, decide with many, on one machine's CPUs."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from mrl_jax.errors import DataError, UsageError
from mrl_jax.search.index import approximate, clusters, files, pages, segment
from mrl_jax.search.index.loops import NO_ROW
from mrl_jax.search.index.rows import NO_ID, TOO_LONG, Legal, Source
from mrl_jax.search.index.segment import Alive, Segment, Shared
from mrl_jax.search.index.threads import alone, cores, one_each
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule

_BLOCK = 512  # queries a thread works on at a time
_LEAST_K = 10_000  # the least k that every index accepts, however few vectors it has


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

    @classmethod
    def read(cls, folder: pathlib.Path) -> "Snapshot":
        """What is in the folder now; raises as `Index.open`."""
        while True:
            manifest = files.read_manifest(folder)
            try:
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
        nothing = cls(folder, {**manifest, "segments": []}, plan, width, shared, ())
        return nothing.changed(manifest)

    def changed(self, manifest: dict) -> "Snapshot":
        """The snapshot of another manifest; segments that are open here are not opened again."""
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
        return np.sum([part.alive_of_lists() for part in self.segments], axis=0)

    def search(
        self,
        query_bd: np.ndarray,
        k: int,
        keeps: tuple[int, ...],
        probes: int,
        parameters: str,
        most_threads: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and scores [B, k] of the best rows, see `Index.search`, which checks arguments.

        As long as k rows are left, k are found.
        """
        rows_l = self._alive_l if self.plan.lists > 1 else None

        def found(block_bd):
            first = keeps[0] if keeps else 0
            queries = segment.prepare(block_bd, self.plan, self.shared, probes, rows_l, k, first)
            return self._found(queries, keeps, k, parameters)

        size = max(1, min(_BLOCK, -(-len(query_bd) // most_threads)))
        blocks = [query_bd[i : i + size] for i in range(0, len(query_bd), size)]
        with one_each():
            if len(blocks) <= 1 or most_threads == 1:
                parts = [found(block_bd) for block_bd in blocks]
            else:
                start = {"max_workers": most_threads, "initializer": alone}
                with concurrent.futures.ThreadPoolExecutor(**start) as pool:
                    parts = list(pool.map(found, blocks))
        if not parts:
            return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
        ids, scores = zip(*parts, strict=True)
        return np.concatenate(ids), np.concatenate(scores).astype(np.float32)

    def _found(self, queries, keeps, k: int, parameters: str):
        ids, scores = [], []
        for part in self.segments:
            row_bk, score_bk = part.search(queries, keeps, k, parameters)
            ids.append(np.where(row_bk == NO_ROW, NO_ID, part.ids_of(row_bk)))
            scores.append(score_bk)
        if len(ids) == 1:
            return ids[0], scores[0]
        id_bc, score_bc = np.concatenate(ids, 1), np.concatenate(scores, 1)
        best_bk = np.argsort(-score_bc, 1, kind="stable")[:, :k]
        return np.take_along_axis(id_bc, best_bk, 1), np.take_along_axis(score_bc, best_bk, 1)


class Index:
    """Vectors with codes of their prefixes, made by `build` and read by `open`.

    It opens without reading what it holds; a search reads codes of prefixes and the few whole
    vectors that decide. Rows added later form a segment of their own, which is searched like the
    first until `compact` merges them.

    Several threads may search it while one changes it: a search sees what was there when it began.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = pathlib.Path(folder)
        # A search reads it once, and a change replaces it by one assignment: threads need no lock.
        self._now = Snapshot.read(self._folder)

    @property
    def plan(self) -> Plan:
        """What it was built by."""
        return self._now.plan

    @property
    def width(self) -> int:
        """Dims of a vector."""
        return self._now.width

    @classmethod
    def open(cls, folder: pathlib.Path) -> "Index":
        """Opens an index; milliseconds, whatever its size. `verify` reads all of it.

        Raises:
          DataError: it is missing, of another version, or its files are not of the sizes and
            shapes that were written.
        """
        return cls(folder)

    @classmethod
    def build(
        cls, folder: pathlib.Path, source: Source, plan: Plan, *, progress=False, seed: int = 0
    ) -> "Index":
        """Writes an index of all vectors of a source, which is read three times at most.

        Only a chunk of vectors is in memory at a time, and examples for the clusters. The folder
        appears when it is whole.

        Raises:
          UsageError: the folder exists, a library is missing, or faiss or float16 cannot do what
            the plan says.
          DataError: the plan does not fit the vectors; NaN, infinity or a vector longer than 4e18;
            or the disk is full.
        """
        folder = pathlib.Path(folder)
        if folder.exists():
            raise UsageError(f"{folder} exists already; remove it or give another folder")
        if plan.schedule.final > source.width:
            raise DataError(
                f"the plan {plan.schedule} needs {plan.schedule.final} dims, "
                f"the vectors have {source.width}"
            )
        if plan.lists > source.rows:
            raise DataError(f"the plan has {plan.lists} lists, there are {source.rows} vectors")
        source = Legal(source)
        with files.finished(folder) as temporary:
            about_shared = _write_shared(temporary / "shared-00001", source, plan, seed)
            shared = Shared(pages.Folder(temporary / "shared-00001", about_shared), plan)
            about = _write_segment(temporary / "segment-00001", source, plan, shared, progress)
            content = {"version": 1, "plan": plan.to_json(), "width": source.width}
            content |= {"shared": about_shared, "segments": [about]}
            files.write_manifest(temporary, content)
        return cls(folder)

    @property
    def rows(self) -> int:
        """How many vectors it finds."""
        return sum(part.alive_rows for part in self._now.segments)

    @property
    def ids(self) -> np.ndarray:
        """The ids of the vectors it finds, in the order they were given."""
        return np.concatenate([part.ids[part.alive] for part in self._now.segments])

    @property
    def vectors(self) -> Alive:
        """The vectors it finds, in the order they were given, read on demand."""
        now = self._now
        return Alive(now.segments, now.width)

    def bytes(self) -> dict[str, int]:
        """What every search may read ("resident"), and whole vectors ("vectors"), in bytes."""
        now = self._now
        resident = now.shared.nbytes + sum(part.resident_bytes for part in now.segments)
        return {"resident": resident, "vectors": sum(x.vectors.nbytes for x in now.segments)}

    def search(
        self,
        query_bd: np.ndarray,
        k: int,
        *,
        keeps: Sequence[int] | None = None,
        probes: int | None = None,
        parameters: str | None = None,
        threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best vectors of each query, the best first.

        Args:
          query_bd: [B, >= final dims of the plan], floating point.
          k: how many.
          keeps: candidates kept by every stage, instead of the plan's.
          probes: lists looked into, instead of the plan's; more where these hold fewer than k
            vectors.
          parameters: of faiss's index, instead of the plan's.
          threads: at most; None: as many as there are cores. BLAS has one limit for the whole
            process: of searches at the same time the first limits it to one thread until it ends.

        Returns:
          ids_bk: [B, k] int64; `NO_ID` only where the index holds fewer.
          scores_bk: [B, k] float32: cosine, product, or minus the squared distance, of the plan's
            final dims; -inf where there is no id. Equal scores are in the order of rows.

        Raises:
          ValueError: illegal arguments, NaN or infinity.
          DataError: a file is damaged.
        """
        now = self._now
        plan, stages = now.plan, now.plan.schedule.stages
        keeps = tuple(s.keep for s in stages) if keeps is None else tuple(keeps)
        if len(keeps) != len(stages):
            raise ValueError(f"keeps must be {len(stages)} numbers, got {keeps}")
        dims = (s.dim for s in stages)
        Schedule(tuple(zip(dims, keeps, strict=True)), plan.schedule.final).check(k, now.width)
        most = max(_LEAST_K, *(part.rows for part in now.segments))
        if k > most:
            raise ValueError(f"k must be 1 to {most}; got {k}")
        probes = plan.probes if probes is None else probes
        if not 1 <= probes <= plan.lists:
            raise ValueError(f"probes must be 1 to {plan.lists}, got {probes}")
        query_bd = _checked(query_bd, plan.schedule.final)
        parameters = plan.parameters if parameters is None else parameters
        if parameters and not plan.factory:
            raise ValueError(
                f"parameters are of faiss, the plan has none of it; got {parameters!r}"
            )
        most_threads = cores() if threads is None else threads
        if most_threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        return now.search(query_bd, k, keeps, probes, parameters, most_threads)

    def add(self, source: Source, *, progress=False) -> None:
        """Adds vectors as a segment of their own, at once or not at all.

        Raises:
          UsageError: another command changes the index.
          DataError: another width, ids that are there already; NaN, infinity or a vector longer
            than 4e18; or the disk is full.
        """
        if source.width != self.width:
            raise DataError(f"vectors have {source.width} dims, the index has {self.width}")
        source = Legal(source)
        with self._changing() as now:
            known_n = np.isin(source.ids, self.ids)
            if known_n.any():
                raise DataError(f"id {source.ids[known_n.argmax()]} is in the index already")
            name = _next(now, "segment")
            with files.finished(self._folder / name) as temporary:
                about = _write_segment(temporary, source, now.plan, now.shared, progress)
            self._commit(now, [*now.manifest["segments"], {**about, "name": name}])

    def delete(self, ids: np.ndarray) -> None:
        """These vectors are found no more; `compact` frees their room.

        Raises:
          UsageError: another command changes the index.
          DataError: an id that is not there, or the disk is full.
          ValueError: ids that are not whole numbers.
        """
        ids = np.asarray(ids)
        if ids.size and (ids.dtype.kind not in "iu" or not np.can_cast(ids.dtype, np.int64)):
            raise ValueError(f"ids must be int64, got {ids.dtype}")
        ids = np.unique(ids.astype(np.int64))
        with self._changing() as now:
            missing_n = ~np.isin(ids, self.ids)
            if missing_n.any():
                raise DataError(f"id {ids[missing_n.argmax()]} is not in the index")
            segments = []
            for part, about in zip(now.segments, now.manifest["segments"], strict=True):
                deleted_n = np.isin(part.ids, ids) | ~part.alive
                if deleted_n.any():
                    path = self._folder / f"{_next(now, 'deleted')}-{about['name']}.npy"
                    about = {**about, "deleted": files.write_deleted(path, deleted_n)}
                segments.append(about)
            self._commit(now, segments)

    def compact(self, *, progress=False) -> None:
        """Merges all segments into one, without deleted rows. Clusters stay as they are.

        Raises:
          UsageError: another command changes the index.
          DataError: nothing is left, or the disk is full.
        """
        with self._changing() as now:
            name = _next(now, "segment")
            source = self.vectors
            if not source.rows:
                raise DataError(f"{self._folder}: all vectors are deleted; build a new index")
            with files.finished(self._folder / name) as temporary:
                about = _write_segment(temporary, source, now.plan, now.shared, progress)
            self._commit(now, [{**about, "name": name}])

    def verify(self) -> None:
        """Reads every file; DataError names one that differs from its checksum."""
        manifest = self._now.manifest
        for about in (manifest["shared"], *manifest["segments"]):
            pages.Folder(self._folder / about["name"], about).check()
        for about in manifest["segments"]:
            if about["deleted"] is not None:
                files.read_deleted(self._folder / about["deleted"]["name"], about["deleted"])

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Snapshot]:
        """The index as it is on disk now, which no other command can change meanwhile."""
        with files.writing(self._folder), files.written(self._folder):
            manifest = files.read_manifest(self._folder)
            # Of commands that were stopped; below, of this one.
            self._remove_left_overs(manifest)
            try:
                if manifest != self._now.manifest:
                    self._now = Snapshot.read(self._folder)
                yield self._now
            finally:
                # What cannot be removed now is removed before the next change.
                with contextlib.suppress(OSError, DataError):
                    self._remove_left_overs(files.read_manifest(self._folder))

    def _remove_left_overs(self, manifest: dict) -> None:
        named = {manifest["shared"]["name"]}
        for about in manifest["segments"]:
            named |= {about["name"], about["deleted"] and about["deleted"]["name"]}
        files.remove_left_overs(self._folder, named)

    def _commit(self, now: Snapshot, segments: list[dict]) -> None:
        """Opens what is new before the manifest names it: after that nothing can fail."""
        manifest = {**now.manifest, "segments": segments, "version": now.manifest["version"] + 1}
        changed = now.changed(manifest)
        files.write_manifest(self._folder, manifest)
        self._now = changed


def _next(now: Snapshot, kind: str) -> str:
    return f"{kind}-{now.manifest['version'] + 1:05d}"


def _checked(query_bd: np.ndarray, dims: int) -> np.ndarray:
    if np.ma.is_masked(query_bd):
        raise ValueError("queries must have a number everywhere, some are masked")
    query_bd = np.asarray(query_bd)
    if query_bd.ndim != 2 or query_bd.shape[1] < dims:
        raise ValueError(f"queries must be [B, >= {dims}], got {query_bd.shape}")
    if not np.issubdtype(query_bd.dtype, np.floating):
        raise ValueError(f"queries must be floating point, got {query_bd.dtype}")
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused
        query_bd = np.ascontiguousarray(query_bd, np.float32)
        norm_b = np.linalg.norm(query_bd[:, :dims], axis=1)
    if not (norm_b < TOO_LONG).all():
        raise ValueError("a query holds NaN or infinity, or is longer than 4e18")
    return query_bd


def _write_segment(folder, source: Source, plan: Plan, shared: Shared, progress: bool) -> dict:
    folder.mkdir(exist_ok=True)
    segment.write(folder, source, plan, shared, progress=progress)
    return {**files.describe(folder), "rows": source.rows, "deleted": None}


def _write_shared(folder: pathlib.Path, source: Source, plan: Plan, seed: int) -> dict:
    """Fits on examples what all segments are made with; gives what the manifest says of it."""
    folder.mkdir()
    dim = plan.schedule.stages[0].dim if plan.factory else plan.list_dim
    rows = min(source.rows, clusters.EXAMPLES * max(plan.lists, 4096))
    if plan.lists > 1:
        example_nd = source.sample(rows, seed, dim)
        centroid_ld = clusters.fit(example_nd, plan.lists, plan.metric, seed)
        files.save(folder / "centroids.npy", centroid_ld)
    if plan.factory:
        example_nd = source.sample(rows, seed, dim)
        trained = approximate.train(example_nd, plan.factory, plan.parameters, plan.metric)
        approximate.write(trained, folder / "trained.faiss")
    return files.describe(folder)
