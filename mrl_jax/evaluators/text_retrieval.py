"""Finding documents for queries by exact search, at every prefix in one pass."""

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mrl_jax.data import beir
from mrl_jax.data.beir import Collection, grades_at
from mrl_jax.evaluators.ranking import nearest
from mrl_jax.evaluators.text_common import RESAMPLES, TextSubject, interval, resamples
from mrl_jax.record import metrics
from mrl_jax.record.finding import Finding, digest_of
from mrl_jax.record.metrics import TRAINED
from mrl_jax.record.results import Series

CUTOFF = 10  # of nDCG and MRR, and of the first recall
DEPTH = 100  # documents looked at

MAIN = metrics.NDCG(CUTOFF)  # what is measured after fewer layers as well


class Searched(NamedTuple):
    """What is searched.

    With `ignore_identical_ids` no query is shown the document with its own id, for collections
    whose queries are documents; if that document is judged relevant, it counts as not found.
    """

    collection: Collection
    ignore_identical_ids: bool = False


def read(path: pathlib.Path, name: str, config: Any) -> Searched:
    """The collection in a folder, see `data.beir`."""
    return Searched(beir.load(path), name in config.eval.ignore_identical_ids)


def unread(path: pathlib.Path, searched: Searched) -> list[str]:
    """The columns that are not read."""
    del searched
    return beir.unread(path)


def digest(searched: Searched) -> str:
    """What tells the collection from others."""
    return digest_of(searched.collection)


def measure(subject: TextSubject, at: Series, searched: Searched) -> Finding:
    """Documents and queries are embedded once and compared by cosine at every prefix.

    ndcg10: gains are the grades, discounted by log2(1 + rank), over those of the best
    order. mrr10: 1 / rank of the first relevant document, 0 beyond 10. recall10, recall100:
    the share of relevant documents found. map100: precision at the ranks of relevant documents
    down to 100, summed and divided by how many there are. All are means over queries with their
    standard errors. ndcg10_retention: what is left of nDCG at full width, by bootstrap over
    queries, both numbers from the same resample; not given where nothing is found at full width.
    Documents that are equally near are ranked in the order of the collection.
    The file of kind "retrieval" has the 95 % intervals of the retention, how many documents there
    are, and for how many queries a document was ignored.
    """
    collection, ignore_identical_ids = searched
    z_nd = subject.embedded(collection.documents, f"documents of {at.place}", "document")
    z_bd = subject.embedded(collection.queries, f"queries of {at.place}", "query")
    width, found = z_nd.shape[1], Finding()
    own_b = _own(collection) if ignore_identical_ids else np.full(len(z_bd), -1)
    ndcg = {}
    for space, there, (x_nd, x_bd) in subject.in_spaces(z_nd, z_bd):
        # The full width, which retention compares with, from the same pass.
        compared = tuple(sorted({*there, width})) if space == TRAINED else there
        for dim, row_bk in zip(
            compared, _ranked(x_nd, x_bd, own_b, compared, subject.mesh), strict=True
        ):
            values = dict(_values(collection, row_bk))
            ndcg[space, dim] = values[metrics.NDCG(CUTOFF)]
            for metric, value_b in values.items() if dim in there else ():
                found.results.append(at.of(metric, space).mean(dim, value_b))
    whole_b = ndcg[TRAINED, width]
    n, intervals = len(whole_b), []
    weights = list(resamples(n, subject.seed))
    whole_r = _resampled(whole_b, weights)
    wanted = [key for key in ndcg if key[1] in subject.dims and whole_r.min() > 0]
    for space, dim in wanted:
        series = at.of(metrics.NDCG_KEPT(CUTOFF), space)
        kept_r = _resampled(ndcg[space, dim], weights) / whole_r
        value = ndcg[space, dim].mean() / whole_b.mean()
        found.results.append(series.result(dim, value, kept_r.std(ddof=1), n))
        intervals.append(interval(series, dim, kept_r))
    content = {
        "database": len(z_nd),
        "ignored": int((own_b >= 0).sum()),
        "resamples": RESAMPLES,
        "intervals": intervals,
    }
    found.add_file("retrieval", at.place, content)
    return found


def _own(collection: Collection) -> np.ndarray:
    """The row of the document with the id of each query, [B]; -1 if there is none."""
    number = {identity: i for i, identity in enumerate(collection.document_ids)}
    return np.array([number.get(identity, -1) for identity in collection.query_ids])


def _ranked(x_nd, x_bd, own_b: np.ndarray, dims: tuple[int, ...], mesh) -> np.ndarray:
    """The documents of every query, best first, [G, B, k], without its own."""
    spare = int((own_b >= 0).any())
    k = min(DEPTH + spare, len(x_nd))
    row_gbk = nearest(x_nd, x_bd, dims, k, mesh=mesh)
    if not spare:
        return row_gbk
    # The ignored document goes behind all others; where it was not found, the last is dropped.
    own_gbk = row_gbk == own_b[:, None]
    order_gbk = np.argsort(own_gbk, axis=-1, kind="stable")
    row_gbk = np.take_along_axis(np.where(own_gbk, -1, row_gbk), order_gbk, -1)
    return row_gbk[..., :DEPTH]


def _values(collection: Collection, row_bk: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Metrics and their values [B] of ranked documents [B, k]; -1 is no document."""
    grade_bk = np.stack(list(grades_at(collection, row_bk)))
    relevant_b = np.bincount(collection.query_r, minlength=len(row_bk))
    rank_k = np.arange(1, row_bk.shape[1] + 1)
    gain_bk = grade_bk / np.log2(1 + rank_k)
    # Judgements by query, the best grade first.
    order_r = np.lexsort((-collection.grade_r, collection.query_r))
    start_b = np.cumsum(relevant_b) - relevant_b
    place_r = np.arange(len(order_r)) - np.repeat(start_b, relevant_b)
    ideal_r = np.where(place_r < CUTOFF, collection.grade_r[order_r] / np.log2(2 + place_r), 0)
    ideal_b = np.bincount(collection.query_r, ideal_r, minlength=len(row_bk))
    hit_bk = grade_bk > 0
    hits_bk = hit_bk.cumsum(1)
    yield metrics.NDCG(CUTOFF), gain_bk[:, :CUTOFF].sum(1) / ideal_b
    yield metrics.MRR(CUTOFF), (hit_bk / rank_k)[:, :CUTOFF].max(1)
    for cutoff in (CUTOFF, DEPTH):
        yield metrics.FOUND(cutoff), hit_bk[:, :cutoff].sum(1) / relevant_b
    yield metrics.MAP(DEPTH), (hit_bk * hits_bk / rank_k).sum(1) / relevant_b


def _resampled(value_b: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """The mean in every resample, [R]."""
    return np.concatenate([weight_rb @ value_b for weight_rb in weights]) / len(value_b)
