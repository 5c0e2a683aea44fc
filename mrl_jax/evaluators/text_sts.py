"""How well cosines of two texts agree with people's scores of their similarity, at every prefix."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mrl_jax.data.text import TextSplit, read_split
from mrl_jax.data.text_columns import parse_columns
from mrl_jax.data.text_files import read_rows
from mrl_jax.errors import DataError
from mrl_jax.evaluators.ranking import tied
from mrl_jax.evaluators.text_common import RESAMPLES, TextSubject, interval, resamples, unit_rows
from mrl_jax.record.finding import Finding, Unmeasurable, digest_of
from mrl_jax.record.metrics import TRAINED
from mrl_jax.record.results import Series

MAIN = "spearman"  # what is measured after fewer layers as well


class Scored(NamedTuple):
    """N texts, the N that they are compared with, scores [N] in any unit, and columns not read."""

    first: Sequence
    second: Sequence
    score_n: np.ndarray
    unread: tuple[str, ...] = ()


def of_split(split: TextSplit) -> Scored:
    """The pairs of a split and their scores."""
    first, second = ([split.texts[i] for i in text_n] for text_n in split.pairs())
    return Scored(first, second, split.score_n, split.unread)


def read(path: pathlib.Path, name: str, config: Any) -> Scored:
    """The pairs of a file and their scores."""
    del name
    split = read_split(read_rows(path), parse_columns(config.data.columns))
    if split is None or split.kind != "scored":
        raise DataError(f"{path}: needs pairs with a column score (sentence1, sentence2, score)")
    return of_split(split)


def unread(path: pathlib.Path, scored: Scored) -> Sequence[str]:
    """The columns that are not read."""
    del path
    return scored.unread


def digest(scored: Scored) -> str:
    """What tells the pairs from others."""
    return digest_of(scored[:3])


def check(scored: Scored) -> None:
    """Refuses pairs and scores for which no correlation can be computed.

    Raises:
      Unmeasurable: there are fewer than 3 pairs, or all scores are equal.
      DataError: the sides differ in length, or scores are not finite.
    """
    *pairs, score_n = scored[:3]
    n = len(score_n)
    if {len(side) for side in pairs} != {n}:
        sides = " and ".join(str(len(side)) for side in pairs)
        raise DataError(
            f"there must be as many scores as texts on each side, got {n} scores for {sides} texts"
        )
    if not np.isfinite(score_n).all():
        raise DataError("scores must be finite")
    if n < 3:
        raise Unmeasurable(f"needs at least 3 pairs, got {n}")
    if (score_n == score_n[0]).all():
        raise Unmeasurable(f"all {n} scores are equal ({score_n[0]:g})")


def measure(subject: TextSubject, at: Series, scored: Scored) -> Finding:
    """Semantic textual similarity, from one embedding of every text.

    spearman and pearson correlate cosines of prefixes with scores; they are 0 if all cosines are
    equal. Cosines that differ only by rounding are equal, see `ranking.tied`. retention is the
    share of the Spearman correlation at full width that is left; it is not given if that
    correlation is not clearly above 0. Standard errors come from `RESAMPLES`
    bootstrap resamples of the pairs; retention takes both correlations from the same resample.
    The file of kind "sts" has the 95 % intervals.
    """
    first, second, score_n, _ = scored
    score_n = np.asarray(score_n, np.float64)
    check(scored)
    n = len(score_n)
    z_nd = subject.embedded([*first, *second], at.place)
    width = z_nd.shape[1]
    cosines: dict[tuple[str, int], np.ndarray] = {(TRAINED, width): _cosines(z_nd, n)}
    wanted = []
    for space, there, (x_ne,) in subject.in_spaces(z_nd):
        for dim in there:
            wanted.append((space, dim))
            cosines[space, dim] = _cosines(x_ne[:, :dim], n)
    values = _correlations(cosines, score_n, np.ones((1, n)))
    parts = [_correlations(cosines, score_n, weight_rn) for weight_rn in resamples(n, subject.seed)]
    sampled = {key: np.concatenate([part[key] for part in parts], 1) for key in cosines}

    found, intervals = Finding(), []

    def add(metric: str, space: str, dim: int, value: float, value_r: np.ndarray) -> None:
        series = at.of(metric, space)
        found.results.append(series.result(dim, value, value_r.std(ddof=1), n))
        intervals.append(interval(series, dim, value_r))

    whole, whole_r = values[TRAINED, width][0, 0], sampled[TRAINED, width][0]
    for space, dim in wanted:
        (spearman, *_), (pearson, *_) = values[space, dim]
        spearman_r, pearson_r = sampled[space, dim]
        add("spearman", space, dim, spearman, spearman_r)
        add("pearson", space, dim, pearson, pearson_r)
        if whole_r.min() > 0:
            add("retention", space, dim, spearman / whole, spearman_r / whole_r)
    content = {"pairs": n, "resamples": RESAMPLES, "intervals": intervals}
    found.add_file("sts", at.place, content)
    return found


def _cosines(z_nd: np.ndarray, n: int) -> np.ndarray:
    """Of rows i and n + i, [n]; equal if they differ only by rounding."""
    unit_nd = unit_rows(z_nd.astype(np.float64), "pairs")
    return tied((unit_nd[:n] * unit_nd[n:]).sum(1))


def _correlations(cosines: dict, score_n: np.ndarray, weight_rn: np.ndarray) -> dict:
    """Spearman's and Pearson's with the scores, [2, R] each, where pair i is there w_i times."""
    score_rank_rn = _ranks(score_n, weight_rn)
    return {
        key: np.stack(
            [
                _pearson(_ranks(cosine_n, weight_rn), score_rank_rn, weight_rn),
                _pearson(cosine_n[None], score_n[None], weight_rn),
            ]
        )
        for key, cosine_n in cosines.items()
    }


def _ranks(x_n: np.ndarray, weight_rn: np.ndarray) -> np.ndarray:
    """Mean ranks among w_i copies of each value, [R, n]: one sort serves all resamples."""
    order_n = np.argsort(x_n, kind="stable")
    start_v = np.flatnonzero(np.diff(x_n[order_n], prepend=-np.inf))  # of equal values
    weight_rv = np.add.reduceat(weight_rn[:, order_n], start_v, axis=1)
    rank_rv = weight_rv.cumsum(1) - (weight_rv - 1) / 2
    rank_rn = np.empty(weight_rn.shape)
    rank_rn[:, order_n] = np.repeat(rank_rv, np.diff(start_v, append=len(x_n)), axis=1)
    return rank_rn


def _pearson(x_rn: np.ndarray, y_rn: np.ndarray, weight_rn: np.ndarray) -> np.ndarray:
    n = weight_rn.shape[1]
    x_rn, y_rn = (v - (weight_rn * v).sum(1, keepdims=True) / n for v in (x_rn, y_rn))
    spread_r = np.sqrt((weight_rn * x_rn**2).sum(1) * (weight_rn * y_rn**2).sum(1))
    # Equal up to rounding is equal: what orders nothing agrees with nothing.
    some_r = spread_r > 1e-12 * n
    return np.where(some_r, (weight_rn * x_rn * y_rn).sum(1) / np.where(some_r, spread_r, 1), 0.0)
