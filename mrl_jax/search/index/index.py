"""An index: find with few dims, decide with many, on one machine's CPUs."""

import contextlib
import os
import pathlib
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mrl_jax.errors import DataError, UsageError
from mrl_jax.search.index import attributes as tables
from mrl_jax.search.index import changes, files, pages
from mrl_jax.search.index import ids as names
from mrl_jax.search.index.allowed import Allowed
from mrl_jax.search.index.likeness import Unlike
from mrl_jax.search.index.rows import Rows, Source, source_of
from mrl_jax.search.index.segment import Alive
from mrl_jax.search.index.snapshot import Snapshot
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Metric

Vectors = np.ndarray | Source  # or an array of JAX
Path = pathlib.Path | str


class Index:
    """Vectors with codes of their prefixes, made by `build` and read by `open`.

    It opens without reading what it holds; a search reads codes of prefixes and the few whole
    vectors that decide. Rows added later form segments of their own, which are searched like the
    first. Small ones are merged as they come, so that there are few, however many changes were
    made; `compact` merges all.

    Ids are whole numbers (int64) or texts, whichever it was built with. Rows may have attributes,
    columns of a table by which a search can choose.

    Several threads may search it while one changes it: a search sees what was there when it began.
    Changes are on disk when they return, one at a time. What others change on disk is seen after
    `refresh`, and before every change; until then all searches are of what was there before, which
    stays readable whatever others do.
    """

    def __init__(self, folder: Path, wait: float = 0):
        # A search reads it once, and a change replaces it by one assignment: threads need no lock.
        self._now = Snapshot.read(pathlib.Path(folder))
        self.wait = wait

    @classmethod
    def open(cls, folder: Path, *, wait: float = 0) -> "Index":
        """Opens an index; milliseconds, whatever its size. `verify` reads all of it.

        Args:
          folder: of it.
          wait: see `Index.wait`.

        Raises:
          DataError: it is missing, of another version, or its files are not of the sizes and
            shapes that were written.
          ValueError: `wait` is below 0.
        """
        return cls(folder, wait)

    @property
    def wait(self) -> float:
        """Seconds in which a change waits for another command to end its own; it may be set.

        0: a change is refused at once while there is another one. ValueError if set below 0.
        """
        return self._wait

    @wait.setter
    def wait(self, seconds: float) -> None:
        if not seconds >= 0:
            raise ValueError(f"wait must be a number of seconds, 0 or more; got {seconds}")
        self._wait = float(seconds)

    @classmethod
    def build(
        cls,
        folder: Path | None,
        vectors: Vectors,
        ids: Any = None,
        *,
        plan: Plan | None = None,
        queries: Vectors | None = None,
        target_recall: float | None = None,
        k: int | None = None,
        metric: Metric | None = None,
        memory: int | None = None,
        latency_ms: float | None = None,
        dims: Sequence[int] = (),
        attributes: tables.Table | None = None,
        progress: bool = False,
        seed: int = 0,
    ) -> "Index":
        """Makes an index of all vectors, by a plan or by the fastest that reaches a recall.

        Without a plan one is measured, as `python -m mrl_jax.search plan` does; of few vectors all
        are compared. It promises a recall to queries like those given. Without `queries` these are
        drawn from the vectors, so where queries are of another kind, such as texts that ask for
        photos, some must be given.

        Only a chunk of a source is in memory at a time, and examples for the clusters. The folder
        appears when it is whole.

        Args:
          folder: a new one; None: among temporary files, gone with this object or the process.
          vectors: [N, D] floating point, of numpy or JAX; or a source such as `open_vectors` gives.
          ids: [N] int64 or texts, unique; None: those of the source, row numbers of an array.
          plan: how it is built and searched. The next seven are for making one.
          queries: [>= 40, D], an array or a source.
          target_recall: the share of the k exact nearest to be found (default: 0.99).
          k: how many are mostly asked for (default: 10).
          metric: "cosine" (default), "inner" or "l2".
          memory: bytes that a search may need, see `planner.promises.Wanted`; None: any.
          latency_ms: of 99 % of single queries; None: any.
          dims: prefixes that may be stages; (): powers of two.
          attributes: an Arrow table of N rows, or N values each by column's name.
          progress: whether to show bars.
          seed: of all random choices.

        Raises:
          UsageError: the folder exists, a library is missing, numbers that do not fit the vectors,
            or faiss or float16 cannot do what the plan says.
          DataError: the plan does not fit the vectors, or none reaches the target; NaN, infinity or
            a vector longer than 4e18; ids that occur twice; or the disk is full.
          ValueError: arrays of another shape or type.
        """
        wanted = {
            "target_recall": target_recall, "k": k, "metric": metric, "memory": memory,
            "latency_ms": latency_ms, "dims": tuple(dims) or None,
        }  # fmt: skip
        wanted = {name: value for name, value in wanted.items() if value is not None}
        if plan is not None and (wanted or queries is not None):
            name = next(iter(wanted), "queries")
            raise UsageError(f"a plan is given, which says what {name} would say: give one of both")
        source = Rows(vectors, ids, attributes)
        if folder is not None:
            changes.check_new(pathlib.Path(folder))
        if plan is None:
            from mrl_jax.search.planner import choice  # which needs this module

            asked = None if queries is None else source_of(queries)
            plan = choice.choose(source, asked, wanted, seed, progress)
        if folder is not None:
            changes.build(pathlib.Path(folder), source, plan, seed, progress)
            return cls(folder)
        parent = pathlib.Path(tempfile.mkdtemp(prefix="mrl_jax_index_"))
        try:
            changes.build(parent / "index", source, plan, seed, progress)
            index = cls(parent / "index")
        except BaseException:
            shutil.rmtree(parent, ignore_errors=True)
            raise
        weakref.finalize(index, _remove, parent, os.getpid())
        return index

    def save(self, folder: Path) -> None:
        """Copies it to a new folder, which appears when it is whole; this object stays as it is.

        Raises:
          UsageError: the folder exists, or another command changes the index.
          DataError: the disk is full.
        """
        folder = pathlib.Path(folder)
        changes.check_new(folder)
        with self._changing() as now:
            changes.copy(now, folder)

    def refresh(self) -> None:
        """Sees what others have changed on disk since this object was made or changed it.

        Raises:
          DataError: as `open`.
        """
        with _renewing:  # otherwise a change that another thread makes meanwhile could be forgotten
            if files.read_manifest(self._now.folder) != self._now.manifest:
                self._now = Snapshot.read(self._now.folder, self._now)

    @property
    def folder(self) -> pathlib.Path:
        """Where it is, also if among temporary files."""
        return self._now.folder

    @property
    def plan(self) -> Plan:
        """What it was built by."""
        return self._now.plan

    @property
    def width(self) -> int:
        """Dims of a vector."""
        return self._now.width

    @property
    def version(self) -> int:
        """1 when it is built; each change makes it larger."""
        return self._now.version

    @property
    def rows(self) -> int:
        """How many vectors it finds."""
        return self._now.rows

    def __len__(self) -> int:
        return self.rows

    def __contains__(self, one: object) -> bool:
        now = self._now
        try:
            asked = names.taken(one, now.kind)
        except ValueError:
            return False
        return len(asked) == 1 and bool(now.places(asked)[0][0] >= 0)

    @property
    def ids(self) -> np.ndarray:
        """The ids of the vectors it finds, in the order they were given."""
        return names.as_numpy(self.vectors.ids)

    @property
    def vectors(self) -> Alive:
        """The vectors it finds, in the order they were given, read on demand."""
        now = self._now
        return Alive(now.segments, now.width)

    @property
    def kind(self) -> names.Kind:
        """Of its ids: "int64" or "texts"."""
        return self._now.kind

    @property
    def slowdown(self) -> float:
        """How many times as many rows a query reads as when the clusters were made; 1: as many.

        Of queries like the rows, for the same number of rows. It grows where rows were added that
        are of another kind than the first; a change that makes it 1.5 times larger logs a warning,
        and `compact(recluster=True)` mends it. Without clusters it is 1.
        """
        return self._now.slowdown

    @property
    def unlike(self) -> Unlike | None:
        """How queries score otherwise than those that its plan was made with; None if they do not.

        To queries like those alone a plan that was measured promises its recall. Looked at are the
        scores of the best that searches of this object find as the plan says, among all rows: of
        256 different queries, then of twice as many, up to 4,096, and then anew. The first look
        that finds other scores logs a warning.
        """
        watch = self._now.watch
        return None if watch is None else watch.unlike

    def get(self, ids: Any) -> np.ndarray:
        """The vectors of these ids, [n, D] float32, in this order.

        Raises:
          DataError: an id that is not there.
          ValueError: ids of another type than those of the index.
        """
        now = self._now
        asked = names.taken(ids, now.kind).dictionary_encode()
        segment_u, row_u = changes.found(now, asked.dictionary)
        z_ud = np.empty((len(row_u), now.width), np.float32)
        for s, part in enumerate(now.segments):
            row_n = row_u[segment_u == s]
            z_ud[segment_u == s] = part.vectors.at(row_n)[row_n]
        return z_ud[asked.indices.to_numpy()]

    def bytes(self) -> dict[str, int]:
        """What every search may read ("resident"), and whole vectors ("vectors"), in bytes."""
        now = self._now
        resident = now.shared.nbytes + sum(part.resident_bytes for part in now.segments)
        return {"resident": resident, "vectors": sum(x.vectors.nbytes for x in now.segments)}

    def allowing(self, allow: Any) -> Allowed:
        """The rows that `allow` of `search` says, as they are now, to be searched again and again.

        Raises:
          ValueError: ids of another type than those of the index, or a mask of another shape.
          UsageError: a predicate that cannot be told of the attributes, or there are none.
          DataError: a file is damaged.
        """
        return Allowed(self._now.allowing(allow))

    def search(
        self,
        query_bd: Any,
        k: int,
        *,
        allow: Any = None,
        keeps: Sequence[int] | None = None,
        probes: int | None = None,
        parameters: str | None = None,
        threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best vectors of each query, the best first.

        Args:
          query_bd: [B, >= final dims of the plan] floating point, or one query [>= final dims].
          k: how many.
          allow: which vectors may be found: their ids, of which those that are not there do not
            matter; or [N] bool in the order of `ids`; or a predicate of attributes, such as
            `pyarrow.compute.field("year") >= 2020`. As long as k are allowed, k are found, with the
            recall of the plan: the fewer are allowed, the farther it looks, and where they are few
            all of them are compared. `allowing` looks it up once for many searches.
          keeps: candidates kept by every stage, instead of the plan's.
          probes: lists looked into, instead of the plan's; more where these hold fewer than k
            vectors, or where some of their vectors are deleted or not allowed.
          parameters: of faiss's index, instead of the plan's.
          threads: at most; None: as many as there are cores. BLAS has one limit for the whole
            process: of searches at the same time the first limits it to one thread until it ends.

        Returns:
          ids_bk: [B, k], or [k] of one query: int64, or an array of `str`. `NO_ID` or "" only where
            the index holds fewer, or fewer are allowed.
          scores_bk: [B, k] float32, or [k]: cosine, product, or minus the squared distance, of the
            plan's final dims; -inf where there is no id. Equal scores are in the order of rows.

        Raises:
          ValueError: illegal arguments, NaN or infinity.
          DataError: a file is damaged.
        """
        how = {"keeps": keeps, "probes": probes, "parameters": parameters, "threads": threads}
        return self.allowing(allow).search(query_bd, k, **how)

    def search_batches(
        self, batches: Iterable[Any], k: int, *, allow: Any = None, **how: Any
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What `search` gives for each batch of queries, which is read when its turn has come.

        All of them see the index as it is now, and `allow` is looked up only once.
        """
        return self.allowing(allow).search_batches(batches, k, **how)

    def range_search(
        self, query_bd: Any, least_score: float, *, allow: Any = None, threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All vectors with a score of at least `least_score`: exact, by comparing all.

        Args:
          query_bd: [B, >= final dims of the plan] floating point, or one query.
          least_score: cosine, product, or minus the squared distance.
          allow, threads: as in `search`.

        Returns:
          limits: [B + 1] int64; what query b found is at limits[b] to limits[b + 1] - 1, the best
            first, of the next two.
          ids: [F], see `search`.
          scores: [F] float32.

        Raises:
          ValueError, DataError: as `search`.
        """
        return self.allowing(allow).range_search(query_bd, least_score, threads=threads)

    def add(
        self,
        vectors: Vectors,
        ids: Any = None,
        *,
        attributes: tables.Table | None = None,
        progress: bool = False,
    ) -> None:
        """Adds vectors, at once or not at all; see `Index` for how they are merged.

        Args:
          vectors: [n, D] floating point, or a source.
          ids: [n], new ones; None: those of the source.
          attributes: of n rows, with the columns that the index has.
          progress: whether to show bars.

        Raises:
          UsageError: an array without ids, or another command changes the index and has not ended
            after `wait`.
          DataError: another width, ids that are there already, other attributes; NaN, infinity or a
            vector longer than 4e18; or the disk is full.
          ValueError: arrays of another shape or type.
        """
        source = self._taken(vectors, ids, attributes)
        with self._changing() as now:
            self._renew(changes.add(now, source, progress))

    def upsert(
        self,
        vectors: Vectors,
        ids: Any = None,
        *,
        attributes: tables.Table | None = None,
        progress: bool = False,
    ) -> None:
        """As `add`, in place of those that have these ids; a search sees the old or the new."""
        source = self._taken(vectors, ids, attributes)
        with self._changing() as now:
            self._renew(changes.upsert(now, source, progress))

    def delete(self, ids: Any) -> None:
        """These vectors are found no more.

        Their room is freed when most of a segment is deleted, unless that is large, or by
        `compact`.

        Raises:
          UsageError: another command changes the index.
          DataError: an id that is not there, or the disk is full.
          ValueError: ids of another type than those of the index.
        """
        gone = names.taken(ids, self._now.kind)
        with self._changing() as now:
            self._renew(changes.delete(now, gone))

    def compact(self, *, recluster: bool = False, progress: bool = False) -> None:
        """Merges all segments into one, without deleted rows.

        Args:
          recluster: whether the clusters, or what faiss was trained on, are made anew, of all rows
            that are there; see `slowdown`. Otherwise they stay as they are.
          progress: whether to show bars.

        Raises:
          UsageError: another command changes the index.
          DataError: nothing is left, or fewer rows than clusters; or the disk is full.
        """
        change = changes.recluster if recluster else changes.compact
        with self._changing() as now:
            self._renew(change(now, progress))

    def verify(self) -> None:
        """Reads every file; DataError names one that differs from its checksum."""
        now = self._now
        for about in (now.manifest["shared"], *now.manifest["segments"]):
            pages.Folder(now.folder / about["name"], about).check()
        for about in now.manifest["segments"]:
            if about["deleted"] is not None:
                files.read_deleted(now.folder / about["deleted"]["name"], about["deleted"])

    def _taken(self, vectors: Vectors, ids: Any, attributes: tables.Table | None) -> Rows:
        """Rows that are to be added."""
        now, source = self._now, source_of(vectors)
        if ids is None and source is not vectors:
            raise UsageError("vectors that are added need ids: give one for each")
        if source.width != now.width:
            raise DataError(f"vectors have {source.width} dims, the index has {now.width}")
        return Rows(source, ids, attributes, now.kind, now.schema)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Snapshot]:
        """What is on disk now, which no other command can change meanwhile."""
        with changes.begun(self._now, self.wait) as now:
            self._renew(now)
            yield now

    def _renew(self, now: Snapshot) -> None:
        with _renewing:
            self._now = now


# One for all indexes, and a new one in a fork, where a thread that held it would be gone.
_renewing = threading.Lock()


def _start_anew() -> None:
    global _renewing
    _renewing = threading.Lock()


os.register_at_fork(after_in_child=_start_anew)


def _remove(folder: pathlib.Path, process: int) -> None:
    """Removes a temporary index, but not when a fork of its process ends."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
