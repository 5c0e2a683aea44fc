"""A batch of rows of an index: written once, scanned by stages."""

import copy
import functools
import itertools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mrl_jax import extras
from mrl_jax.errors import DataError
from mrl_jax.search.index import (
    approximate,
    attributes,
    backends,
    clusters,
    codes,
    files,
    ids,
    loops,
    pages,
)
from mrl_jax.search.index.exhaustive import Exhaustive, Within
from mrl_jax.search.index.loops import Block, Candidates, Codes, Product
from mrl_jax.search.index.rows import Rows, legal
from mrl_jax.search.plan import Plan

with extras.needed("search", "an index"):
    import pyarrow as pa

CHUNK = 8192  # rows read and written at a time
TILE = 1024  # rows of a list where there are no clusters, and of one product of int8 codes
# What a row costs beside the reading of its bytes, as so many bytes more; and how many rows are
# compared in the time in which another library's index finds one. Both measured, and rough.
_ROW_BYTES, _FEW = 64, 32
_HARDLY_MORE = 2  # times the bytes of a graph, or of another library's index
DENSE_QUERIES = 64  # so many compare int8 codes of all rows faster by a matrix product


class Shared:
    """What all segments are made with: a rotation, centroids, what another library has learned.

    Attributes:
      trained: what writes the first stage of segments; None if that is codes of our own.
    """

    def __init__(self, folder: pages.Folder, plan: Plan):
        self._dims, self._final = widest(plan), plan.schedule.final
        self._centroids = self._rotation = self.trained = None
        if plan.rotated:
            shape = (self._final, self._dims)
            self._rotation = folder.array("rotation.npy", np.float32, shape)
        if plan.lists > 1:
            shape = (plan.lists, plan.list_dim)
            self._centroids = folder.array("centroids.npy", np.float32, shape)
        if plan.factory:
            self.trained = backends.of(plan).Trained(folder, plan)

    @property
    def nbytes(self) -> int:
        """Of the centroids and the rotation."""
        return sum(x.nbytes for x in (self._centroids, self._rotation) if x)

    @functools.cached_property
    def _rotation_dm(self) -> np.ndarray:
        rotation_dm = self._rotation.whole()
        if not np.isfinite(rotation_dm).all():
            raise DataError(f"{self._rotation.path} is damaged: it holds NaN or infinity")
        return rotation_dm

    def short(self, z_nd: np.ndarray) -> np.ndarray:
        """What stages compare of vectors: their first dims, or those after the rotation."""
        if self._rotation is None:
            return z_nd[:, : self._dims]
        return z_nd[:, : self._final] @ self._rotation_dm

    @functools.cached_property
    def centroid_ld(self) -> np.ndarray | None:
        """[lists, list_dim] float32, checked at first use: DataError if it is damaged."""
        if self._centroids is None:
            return None
        centroid_ld = self._centroids.whole()
        # The distance to such a centroid is no number, so its list would never be looked into.
        if not legal(centroid_ld).all():
            raise DataError(
                f"{self._centroids.path} is damaged: it holds NaN, infinity or too large numbers"
            )
        return centroid_ld


class StoredBlock(NamedTuple):
    """A block's files."""

    codes: pages.Array
    gains: pages.Array
    prefix_norms: pages.Array

    @property
    def all_read(self) -> bool:
        """Whether all of them were compared with their checksums."""
        return all(array.all_read for array in self)

    def whole(self) -> Block:
        """The block, all of it checked; DataError if it is damaged."""
        return Block(*(array.whole() for array in self))

    def rows(self, first_n: np.ndarray, last_n: np.ndarray) -> Block:
        """The block, with rows first to last - 1 of every span checked; DataError likewise."""
        return Block(*(array.rows(first_n, last_n) for array in self))


def widest(plan: Plan) -> int:
    """How many dims the stages compare, or clusters are made of, at most."""
    return max([plan.list_dim, *(stage.dim for stage in plan.schedule.stages)])


def _spans(plan: Plan) -> list[tuple[int, int]]:
    dims = [stage.dim for stage in plan.schedule.stages]
    return list(zip([0, *dims], dims, strict=False))


def write(
    folder: pathlib.Path, source: "Rows | Alive", plan: Plan, shared: Shared, *, progress: bool
) -> None:
    """Writes a segment's files from two readings of the source, a chunk in memory at a time."""
    n, spans = source.rows, _spans(plan)
    starts = range(0, n, CHUNK)
    if not plan.factory and plan.schedule.stages:
        place_n = _write_order(folder, source, plan, shared, progress)
    ids.write(folder, source.ids)
    if source.attributes is not None:
        attributes.write(folder, source.attributes)
    vector_nd = files.array(folder / "vectors.npy", np.float32, (n, source.width))
    norm_n = files.array(folder / "norms.npy", np.float32, (n,))
    blocks = []
    if plan.factory:
        shortlist = shared.trained.writer(n)
    else:
        for g in range(len(spans)):
            new = (files.array(folder / name, *of) for name, of in _files(plan, g, n))
            blocks.append(Block(*new))
    for i in tqdm(starts, desc="codes", unit="chunk", disable=not progress):
        z_nd = source.read(i, min(i + CHUNK, n))
        vector_nd[i : i + CHUNK] = z_nd
        norm_n[i : i + CHUNK] = codes.norms(z_nd[:, : plan.schedule.final])
        z_nm = shared.short(z_nd) if plan.schedule.stages else z_nd
        for (lo, hi), block in zip(spans, blocks, strict=False):
            at = place_n[i : i + CHUNK]
            block.code_nw[at], block.gain_n[at] = codes.encode(z_nm[:, lo:hi], plan.code)
            block.norm_n[at] = codes.norms(z_nm[:, :hi])
        if plan.factory:
            shortlist.add(z_nm)
    if plan.factory:
        shortlist.write(folder)


def _write_order(
    folder: pathlib.Path,
    source: "Rows | Alive",
    plan: Plan,
    shared: Shared,
    progress: bool,
) -> np.ndarray:
    """Writes in which order codes lie, list for list; gives the places of rows, [N] int32."""
    n = source.rows
    list_n = np.zeros(n, np.int32)
    if shared.centroid_ld is not None:
        for i in tqdm(range(0, n, CHUNK), desc="lists", unit="chunk", disable=not progress):
            z_nm = shared.short(source.read(i, min(i + CHUNK, n)))[:, : plan.list_dim]
            found_n1 = clusters.nearest(z_nm, shared.centroid_ld, 1, plan.metric)
            list_n[i : i + CHUNK] = found_n1[:, 0]
    row_n = np.argsort(list_n, kind="stable").astype(np.int32)
    place_n = np.empty(n, np.int32)
    place_n[row_n] = np.arange(n, dtype=np.int32)
    files.save(folder / "rows.npy", row_n)
    if shared.centroid_ld is None:
        bounds_l = np.append(np.arange(0, n, TILE), n)
    else:
        counts_l = np.bincount(list_n, minlength=len(shared.centroid_ld))
        bounds_l = np.append(0, counts_l.cumsum())
    files.save(folder / "bounds.npy", bounds_l.astype(np.int64))
    return place_n


def _files(plan: Plan, g: int, rows: int) -> list[tuple[str, tuple]]:
    """The files of stage g's block: their names, and the types and shapes of their arrays."""
    lo, hi = _spans(plan)[g]
    code = np.uint8, (rows, codes.code_bytes(hi - lo, plan.code))
    number = np.float32, (rows,)
    return [(f"codes-{g}.npy", code), (f"gains-{g}.npy", number), (f"prefix_norms-{g}.npy", number)]


class Queries(NamedTuple):
    """Some queries as every stage needs them.

    Attributes:
      query_bd: as the final comparison takes them.
      short_bm: what stages compare of them, see `Shared.short`.
      codes: for each stage.
      list_bp: the lists they look into.
    """

    query_bd: np.ndarray
    short_bm: np.ndarray
    codes: list[Codes]
    list_bp: np.ndarray | None


def prepare(
    query_bd: np.ndarray,
    plan: Plan,
    shared: Shared,
    probes: int,
    rows_l: np.ndarray | None,
    all_l: np.ndarray | None,
    k: int,
    keep: int,
) -> Queries:
    """Encodes queries as the rows are, and finds the lists they look into.

    These are `probes`, or as many as hold enough rows, see `clusters.looked_into`.
    `rows_l`, [lists], counts such rows, `all_l` all rows; None where lists are not needed.
    """
    encoded, short_bm = [], shared.short(query_bd) if plan.schedule.stages else query_bd[:, :0]
    if not plan.factory:
        compared_bm = codes.compared(short_bm, plan.metric)
        spans = _spans(plan)
        encoded = [Codes(*codes.encode(compared_bm[:, lo:hi], plan.code)) for lo, hi in spans]
    list_bp = None
    if rows_l is not None:
        prefix_bd, centroid_ld = short_bm[:, : plan.list_dim], shared.centroid_ld
        if rows_l.any():
            list_bp = clusters.looked_into(
                prefix_bd, centroid_ld, probes, plan.metric, rows_l, k, keep, all_l
            )
        else:
            list_bp = np.empty((len(query_bd), 0), np.int64)
    final_bd = np.ascontiguousarray(query_bd[:, : plan.schedule.final])
    return Queries(final_bd, short_bm, encoded, list_bp)


def _unchecked(
    arrays: Sequence[pages.Array], place_bc: np.ndarray, count_b: np.ndarray
) -> np.ndarray:
    """The places of all candidates; none where the arrays are known to be what was written."""
    if all(array.all_read for array in arrays):
        return place_bc[0, :0]
    return place_bc[np.arange(place_bc.shape[1]) < count_b[:, None]]


class Segment:
    """An opened segment; DataError if a file is missing or not of the size or shape it had.

    Attributes:
      rows: of it, deleted ones included.
      path: of its folder.
      vectors: [N, D] float32, on disk.
      ids: [N], on disk.
      attributes: of N rows, on disk; None if there are none.
      alive: [N] bool, which rows may be found: those that are not deleted, or some of them.
      alive_rows: how many.
    """

    def __init__(self, folder: pages.Folder, plan: Plan, rows: int, width: int):
        self._plan, self.rows, self.path = plan, rows, folder.path
        self.vectors = folder.array("vectors.npy", np.float32, (rows, width))
        self._norms = folder.array("norms.npy", np.float32, (rows,))
        self.ids = ids.Stored(folder, rows)
        self.attributes = None
        if folder.has(attributes.FILE):
            self.attributes = attributes.Stored(folder, rows)
        self._blocks, self._rows = [], None
        self._approximate = None
        if plan.factory:
            self._approximate = backends.of(plan).stored(folder, rows, plan)
        elif plan.schedule.stages:
            self._rows = folder.array("rows.npy", np.int32, (rows,))
            lists = plan.lists if plan.lists > 1 else -(-rows // TILE)
            self._bounds = folder.array("bounds.npy", np.int64, (lists + 1,))
            for g in range(len(plan.schedule.stages)):
                arrays = (folder.array(name, *of) for name, of in _files(plan, g, rows))
                self._blocks.append(StoredBlock(*arrays))
        self.alive, self.alive_rows = np.ones(rows, bool), rows

    # Compiled code follows these numbers wherever they lead, even out of an array. They are checked
    # at first use: opening an index reads no large array.
    @functools.cached_property
    def _row_n(self) -> np.ndarray:
        row_n = self._rows.whole()
        if not 0 <= row_n.min() <= row_n.max() < self.rows:
            raise DataError(
                f"{self._rows.path} is damaged: numbers of rows are 0 to {self.rows - 1},"
                f" it has {row_n.min()} to {row_n.max()}"
            )
        there_n = np.zeros(self.rows, bool)
        there_n[row_n] = True
        if not there_n.all():
            raise DataError(f"{self._rows.path} is damaged: it lacks row {there_n.argmin()}")
        return row_n

    @functools.cached_property
    def _bounds_l(self) -> np.ndarray:
        bounds_l = self._bounds.whole()
        if bounds_l[0] != 0 or bounds_l[-1] != self.rows or (bounds_l[1:] < bounds_l[:-1]).any():
            raise DataError(
                f"{self._bounds.path} is damaged: lists do not go from 0 to {self.rows}"
            )
        return bounds_l

    @property
    def resident_bytes(self) -> int:
        """Of what a search reads beside whole vectors."""
        found = sum(x.nbytes for block in self._blocks for x in block)
        if self._approximate:
            found += self._approximate.bytes
        order = self._rows.nbytes if self._rows else 0
        return found + order + self._norms.nbytes + self.rows

    def without(self, row_n: np.ndarray, where: pathlib.Path) -> "Segment":
        """The same segment, in which these rows, read from the file `where`, are not found."""
        if len(row_n) and not 0 <= row_n.min() <= row_n.max() < self.rows:
            raise DataError(f"{where} is damaged: {self.path} has rows 0 to {self.rows - 1}")
        alive_n = np.ones(self.rows, bool)
        alive_n[row_n] = False
        return self._finding(alive_n)

    def only(self, allowed_n: np.ndarray) -> "Segment":
        """The same segment, in which no other rows than these, [N] bool, are found."""
        return self._finding(self.alive & allowed_n)

    def _finding(self, alive_n: np.ndarray) -> "Segment":
        other = copy.copy(self)
        other.__dict__.pop("_alive_n", None)
        other.alive, other.alive_rows = alive_n, int(np.count_nonzero(alive_n))
        return other

    @functools.cached_property
    def _alive_n(self) -> np.ndarray:
        """Which rows may be found, [N] bool in the order of lists."""
        return self.alive[self._row_n]

    def rows_of_lists(self) -> np.ndarray:
        """How many rows each list has, [lists]."""
        return np.diff(self._bounds_l)

    def alive_of_lists(self) -> np.ndarray:
        """How many rows of each list may be found, [lists]."""
        if self.alive_rows == self.rows:
            return self.rows_of_lists()
        return np.diff(np.append(0, np.cumsum(self._alive_n))[self._bounds_l])

    def compares_all(self, keeps: tuple[int, ...], probes: int) -> bool:
        """Whether a search compares all rows that may be found, by whole vectors.

        There are no stages; or what finds a shortlist of all finds all; or so many rows are hidden
        that this is quicker: stages read the codes of hidden rows as well, in the more lists the
        more are hidden, then whole vectors of candidates.
        """
        if not keeps or not (self._approximate or self._blocks):
            return True
        keep = min(keeps[0], self.alive_rows)
        if self._approximate and keep == self.alive_rows:
            return True
        if self.alive_rows == self.rows:
            return False
        if self._approximate:
            # With fewer hidden rows it takes hardly longer than with none.
            return self.alive_rows <= min(_FEW * keep, self.rows // 2)
        code_bytes = _ROW_BYTES + self._blocks[0].codes.row_bytes
        whole_bytes = _ROW_BYTES + self.vectors.row_bytes
        hidden_times = self.rows / max(self.alive_rows, 1)
        scanned = self.rows * min(probes / self._plan.lists * hidden_times, 1)
        return self.alive_rows * whole_bytes <= scanned * code_bytes + keep * whole_bytes

    def search(
        self, queries: Queries, keeps: tuple[int, ...], probes: int, k: int, parameters: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows [B, k] int64 and scores [B, k] float64: the best of the rows that may be found.

        The stages keep `keeps`. There is `NO_ROW` only where fewer rows are left, or, where there
        are clusters, where the lists of `queries` hold fewer.
        """
        query_bd = queries.query_bd
        if self.compares_all(keeps, probes):
            return self._compare_all(query_bd, k)
        keeps = tuple(min(keep, self.alive_rows) for keep in keeps)
        row_bk = np.empty((len(query_bd), k), np.int64)
        score_bk = np.empty(row_bk.shape)
        if self._approximate:
            self._compare_found(queries, keeps[0], parameters, row_bk, score_bk)
        else:
            row_bk[:], score_bk[:] = loops.NO_ROW, -np.inf
            self._compare_stages(queries, keeps, row_bk, score_bk)
        return row_bk, score_bk

    def _compare_stages(self, queries: Queries, keeps: tuple[int, ...], row_bk, score_bk) -> None:
        """By codes, stage for stage, then by whole vectors."""
        found = Candidates.none(len(queries.query_bd), 2 * keeps[0] + 64)
        block = self._first_block(queries.list_bp)
        self._scan(block, queries, keeps[0], found)
        loops.keep_best(found, keeps[0])
        for g, stored in enumerate(self._blocks[1:], start=1):
            norm_before_n = block.norm_n
            place_n = _unchecked(stored, found.place_bc, found.count_b)
            block = stored.rows(place_n, place_n + 1)
            product, asked = self._product(g), queries.codes[g]
            loops.add_block(product, block, norm_before_n, asked, keeps[g], found)
        self._compare_vectors(queries.query_bd, found.place_bc, found.count_b, row_bk, score_bk)

    def _compare_vectors(self, query_bd, place_bc, count_b, row_bk, score_bk) -> None:
        """The first `count_b` of these places by whole vectors."""
        row_n = self._row_n[_unchecked((self.vectors,), place_bc, count_b)]
        loops.compare_vectors(
            loops.METRICS[self._plan.metric], self.vectors.at(row_n), self._row_n, query_bd,
            loops.lengths(query_bd), place_bc, count_b, row_bk, score_bk,
        )  # fmt: skip

    def _checked_vectors(self, row_bc: np.ndarray) -> np.ndarray:
        """All vectors, with those of these rows checked; rows of -1 are none.

        All of them are checked where they are hardly more than what has been read already: checks
        of a few at a time would cost single queries as much again until all have been read.
        """
        if self.vectors.all_read or self.vectors.size <= _HARDLY_MORE * self._approximate.bytes:
            return self.vectors.whole()
        return self.vectors.at(row_bc[row_bc >= 0])

    def _first_block(self, list_bp: np.ndarray | None) -> Block:
        """The first block, checked where these lists are; None: everywhere."""
        stored = self._blocks[0]
        if list_bp is None or stored.all_read:
            return stored.whole()
        asked_n = np.unique(list_bp[list_bp < len(self._bounds_l) - 1])
        return stored.rows(self._bounds_l[asked_n], self._bounds_l[asked_n + 1])

    def _product(self, g: int) -> Product:
        """Of codes of stage g."""
        (lo, hi), code = _spans(self._plan)[g], self._plan.code
        metric = loops.METRICS[self._plan.metric]
        return Product(codes.product_function(code), codes.PRODUCTS[code], metric, hi - lo)

    def _scan(self, block: Block, queries: Queries, keep: int, found: Candidates) -> None:
        """The first stage."""
        product, (code_bw, gain_b), list_bp = self._product(0), queries.codes[0], queries.list_bp
        if list_bp is None and len(code_bw) >= DENSE_QUERIES and self._plan.code == "int8":
            for i in range(0, self.rows, TILE):
                product_bn = codes.int8_products(code_bw, block.code_nw[i : i + TILE])
                loops.take_products(
                    product.metric, product_bn, i, block.gain_n, block.norm_n, self._alive_n,
                    gain_b, keep, found,
                )  # fmt: skip
            return
        if list_bp is None:
            list_bp = np.tile(np.arange(len(self._bounds_l) - 1), (len(code_bw), 1))
        bounds_l, asked = self._bounds_l, queries.codes[0]
        loops.scan_lists(product, block, self._alive_n, bounds_l, list_bp, asked, keep, found)

    def _compare_all(self, query_bd: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """All rows that may be found, by whole vectors."""
        found = Exhaustive(query_bd, k, self._plan.metric)
        row_n = self._show(found)
        return np.append(row_n, loops.NO_ROW)[found.row_bk], found.score_bk

    def within(
        self, query_bd: np.ndarray, least: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Queries, rows and scores [F] of all rows that may be found with scores of `least`."""
        found = Within(query_bd, least, self._plan.metric)
        row_n = self._show(found)
        query_f, place_f, score_f = found.found()
        return query_f, row_n[place_f], score_f

    def _show(self, found: Exhaustive | Within) -> np.ndarray:
        """Shows it the vectors of all rows that may be found, in order; gives their numbers."""
        norm_n, row_n = self._norms.whole(), np.flatnonzero(self.alive)
        for i in range(0, len(row_n), TILE):
            row_t = row_n[i : i + TILE]
            vector_nd, some = self.vectors.at(row_t), row_t
            if row_t[-1] - row_t[0] == len(row_t) - 1:
                some = slice(row_t[0], row_t[-1] + 1)  # which copies nothing
            found.take(i, vector_nd[some], norm_n[some])
        return row_n

    def _compare_found(
        self, queries: Queries, keep: int, parameters: str, row_bk, score_bk
    ) -> None:
        """What another library finds, by whole vectors; all rows where it finds too few."""
        k = row_bk.shape[1]
        asked_bd = approximate.compared(queries.short_bm, self._plan.metric)
        row_bc, lacking_m = self._approximate.search(
            asked_bd, keep, min(k, keep), parameters, self.alive, self.alive_rows
        )
        metric, vector_nd = loops.METRICS[self._plan.metric], self._checked_vectors(row_bc)
        loops.rank_found(metric, vector_nd, queries.query_bd, row_bc, row_bk, score_bk)
        if len(lacking_m):
            found = self._compare_all(queries.query_bd[lacking_m], k)
            row_bk[lacking_m], score_bk[lacking_m] = found


class Alive:
    """The rows of some segments that may be found, as a source of an index.

    Attributes:
      rows, width: how many, and their dims.
      ids: [N], see `mrl_jax.search.index.ids`.
      attributes: a table of N rows; None if there are none.
    """

    def __init__(self, segments: Sequence[Segment], width: int):
        self.width = width
        self._rows = [(part, np.flatnonzero(part.alive)) for part in segments]
        self._starts = list(itertools.accumulate((len(r) for _, r in self._rows), initial=0))
        self.rows = self._starts[-1]

    @property
    def ids(self) -> pa.Array:
        """DataError if they are damaged."""
        return pa.concat_arrays([part.ids.all().filter(part.alive) for part, _ in self._rows])

    @property
    def attributes(self) -> pa.Table | None:
        """DataError if they are damaged."""
        if any(part.attributes is None for part, _ in self._rows):
            return None
        parts = [part.attributes.table().filter(part.alive) for part, _ in self._rows]
        return pa.concat_tables(parts)

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows first to last - 1."""
        found = []
        for (part, row_n), start in zip(self._rows, self._starts, strict=False):
            wanted = row_n[max(first - start, 0) : max(last - start, 0)]
            found.append(part.vectors.at(wanted)[wanted])
        return np.concatenate(found)

    def sample(self, n: int, seed: int, width: int | None = None) -> np.ndarray:
        """The first `width` dims of n rows, in their order."""
        drawn_n = np.random.default_rng(seed).choice(self.rows, n, replace=False, shuffle=False)
        drawn_n, found = np.sort(drawn_n), []
        for (part, row_n), start in zip(self._rows, self._starts, strict=False):
            first, last = np.searchsorted(drawn_n, (start, start + len(row_n)))
            wanted = row_n[drawn_n[first:last] - start]
            found.append(part.vectors.at(wanted)[wanted, :width])
        return np.concatenate(found)
