"""The vectors of the search benchmark, their exact neighbours, and how many of these are found."""

import concurrent.futures
import functools
import multiprocessing
import pathlib
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import faiss
import numpy as np

from benchmarks import search_vectors
from benchmarks.search_case import CHUNK, K, best

# Of vectors that are given: below it there is nothing to make a prefix of.
LEAST_WIDTH = 32
GENERATED = "generated"
# Queries of generated vectors that plans are made with, and of those given that are used at most.
PLAN_QUERIES = 4000


class Data(NamedTuple):
    """One set of vectors of unit length, on disk, and how their prefixes are compared.

    Attributes:
      name: what they are.
      exact: ids of the nearest of `queries`.
      plan_queries: others of the same kind, none of which is measured; None if there are none.
      prefixes: whether their first dims tell most, as Matryoshka networks are trained to do.
    """

    name: str
    rows: int
    width: int
    vectors: pathlib.Path
    queries: pathlib.Path
    exact: pathlib.Path
    plan_queries: pathlib.Path | None
    metric: str
    prefixes: bool

    @property
    def title(self) -> str:
        """For tables."""
        title = f"{self.name}, {self.rows:,} x {self.width:,}"
        return f"{title}, prefixes by {self.metric}" if self.prefixes else title


def in_fresh_process(function: Callable, *arguments: Any) -> Any:
    """What it returns in a process that has nothing else in its memory."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()


def _write_once(path: pathlib.Path, write: Callable[[pathlib.Path], None]) -> pathlib.Path:
    if not path.exists():
        temporary = path.with_name(f"unfinished-{path.name}")
        write(temporary)
        temporary.replace(path)
    return path


def _write_unit(path: pathlib.Path, source: pathlib.Path, first: int, last: int) -> None:
    z_nd = np.load(source, mmap_mode="r")[first:last]
    unit_nd = np.lib.format.open_memmap(path, "w+", np.float32, z_nd.shape)
    for i in range(0, len(z_nd), CHUNK):
        chunk_nd = np.asarray(z_nd[i : i + CHUNK], np.float32)
        lengths_n1 = np.linalg.norm(chunk_nd, axis=1, keepdims=True)
        unit_nd[i : i + len(chunk_nd)] = chunk_nd / np.maximum(lengths_n1, 1e-12)


def _write_exact(path: pathlib.Path, vectors: pathlib.Path, queries: pathlib.Path) -> None:
    """Ids of the ten nearest; the order of a few more is decided in float64."""
    z_nd, q_bd = np.load(vectors, mmap_mode="r"), np.load(queries)
    more = min(2 * K, len(z_nd))
    _, ids_bk = faiss.knn(q_bd, z_nd, more, metric=faiss.METRIC_INNER_PRODUCT)
    rows_bkd = (z_nd[ids_k].astype(np.float64) for ids_k in ids_bk)
    scores_bk = np.stack([rows_kd @ q_d for rows_kd, q_d in zip(rows_bkd, q_bd, strict=True)])
    np.save(path, best(ids_bk, scores_bk, K))


def prepare(
    folder: pathlib.Path,
    rows: int | None,
    queries: int,
    vectors: pathlib.Path | None,
    query_vectors: pathlib.Path | None,
    metric: str,
    prefixes: bool,
    title: str | None,
) -> Data:
    """Vectors of unit length, made or taken from files, and the exact result, each once.

    The first queries are measured, of those that follow plans are made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if vectors is None:
        rows, name = rows or 100_000, GENERATED
        version = f"{zlib.crc32(pathlib.Path(search_vectors.__file__).read_bytes()):08x}"
        path, asked, plan_queries = (
            _write_once(
                folder / f"generated-{count}-{seed}-{version}.npy",
                lambda to, n=count, s=seed: search_vectors.write(to, n, s),
            )
            for seed, count in enumerate((rows, queries, PLAN_QUERIES))
        )
    else:
        name, paths = vectors.stem, []
        for source, first, most in (
            (vectors, 0, rows),
            (query_vectors, 0, queries),
            (query_vectors, queries, PLAN_QUERIES),
        ):
            stored = source.stat()
            key = zlib.crc32(f"{source.resolve()} {stored.st_size} {stored.st_mtime_ns}".encode())
            all_rows = len(np.load(source, mmap_mode="r"))
            last = min(first + (most or all_rows), all_rows)
            if first >= last:
                paths.append(None)
                continue
            path = folder / f"{source.stem}-{first}-{last}-{key:08x}.npy"
            write = functools.partial(_write_unit, source=source, first=first, last=last)
            paths.append(_write_once(path, write))
        path, asked, plan_queries = paths
    rows, width = np.load(path, mmap_mode="r").shape
    asked_width = np.load(asked, mmap_mode="r").shape[1]
    if width < LEAST_WIDTH or asked_width != width:
        raise ValueError(
            f"vectors and queries must have the same width, at least {LEAST_WIDTH}; "
            f"they have {width} and {asked_width}"
        )
    exact = folder / f"exact-{path.stem}-{asked.stem}.npy"
    _write_once(exact, lambda to: in_fresh_process(_write_exact, to, path, asked))
    name = title or name
    return Data(name, rows, width, path, asked, exact, plan_queries, metric, prefixes)


def recalls(ids_bc: np.ndarray, exact_bk: np.ndarray) -> np.ndarray:
    """Per query the share of the exact ids that are among those found."""
    hits = [np.isin(e, ids_c).mean() for e, ids_c in zip(exact_bk, ids_bc, strict=True)]
    return np.array(hits)


def interval(recall_b: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95 % of means over queries drawn anew."""
    picked = np.random.default_rng(0).integers(0, len(recall_b), (draws, len(recall_b)))
    low, high = np.quantile(recall_b[picked].mean(1), (0.025, 0.975))
    return float(low), float(high)
