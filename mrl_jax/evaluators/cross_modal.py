"""Finding captions for photos and photos for captions by cosine, at every prefix in one pass.

The protocol of Flickr30k and COCO (Karpathy and Fei-Fei, CVPR 2015): every photo has some captions,
and a query searches all photos, or all captions, of the split.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mrl_jax.evaluators.ranking import ROUNDING
from mrl_jax.evaluators.spaces import Moments, Space, fit_spaces, unlabelled
from mrl_jax.evaluators.text_common import RESAMPLES, interval, itself, resamples, unit_rows
from mrl_jax.record import metrics
from mrl_jax.record.finding import Finding, Unmeasurable
from mrl_jax.record.metrics import TRAINED, Family
from mrl_jax.record.results import Series

CUTOFFS = (1, 5, 10)
RIVALS = (TRAINED, "rotation", "pca", "random")
_MAX_SCORES = 2**22  # numbers of an array that are held at a time


class Sides(NamedTuple):
    """The coordinates of both towers: the same axes, each with an origin of its own."""

    image: Space
    text: Space

    def dims(self, dims: Sequence[int]) -> tuple[int, ...]:
        """Those of the prefixes that exist here, rising."""
        return self.image.dims(tuple(sorted(dims)))


class Captions(NamedTuple):
    """Which photo each of T captions is of, [T], and a number that equal texts share, [T]."""

    photo_t: np.ndarray
    same_t: np.ndarray


def rivals(image_nd: np.ndarray, text_nd: np.ndarray, seed: int) -> dict[str, Sides]:
    """The embedding itself and what needs no training: a rotation, PCA and random dims.

    PCA is fitted on training embeddings of both towers, [N, D] and [M, D], at unit length, and is
    applied to such. Images and texts lie around means far apart. About one mean for both, or about
    the origin, the first axes would be these means: in them all images stand to all texts alike,
    and a rival that wastes its first dims would flatter the trained ones. So each tower has its own
    mean taken off; the axes are those of the covariances of both, added up: a tower does not
    count for more because there are more captions than photos. Raises as `unit_rows`.
    """
    image, text = (
        unlabelled(unit_rows(z_nd, f"training {what}"))
        for z_nd, what in ((image_nd, "images"), (text_nd, "captions"))
    )
    added_dd = image.scatter_dd / image.examples + text.scatter_dd / text.examples
    examples = image.examples + text.examples
    both = Moments(examples, np.zeros(len(added_dd)), added_dd, image.sum_cd, image.share_c)
    found = {}
    for name, space in fit_spaces(both, both.sum_cd.T, seed).items():
        if name in RIVALS:
            means = (image.mean_d, text.mean_d) if name == "pca" else (space.mean_d,) * 2
            found[name] = Sides(*(space._replace(mean_d=mean_d) for mean_d in means))
    return {name: found[name] for name in RIVALS}


def alone(width: int) -> dict[str, Sides]:
    """The embedding of `width` dims alone, without rivals."""
    return {name: Sides(space, space) for name, space in itself(width).items()}


def check(captions: Captions) -> None:
    """Raises Unmeasurable where no search can go wrong."""
    photos, texts = (len(np.unique(number_t)) for number_t in captions)
    if np.unique(np.stack(captions), axis=1).shape[1] == photos * texts:
        raise Unmeasurable(
            f"needs 2 photos whose captions are not the same, got photos: {photos}, different "
            f"captions of each: {texts}"
        )


def check_texts(captions: Captions) -> None:
    """Raises Unmeasurable where no caption has another one of its photo, or all are of one."""
    check(captions)
    if not len(_with_others(captions)):
        raise Unmeasurable("needs a photo with 2 different captions")


def measure(
    image_pd: np.ndarray,
    text_td: np.ndarray,
    captions: Captions,
    at: Series,
    dims: Sequence[int],
    *,
    spaces: Mapping[str, Sides] | None = None,
    seed: int = 0,
) -> Finding:
    """Searches both ways at every prefix, P photos [P, D] and T captions [T, D] of any length.

    image_to_text_recall1, 5, 10: the share of photos that have one of their captions among the k
    nearest; image_to_text_median_rank: the median of the rank of the nearest own caption.
    text_to_image_recall1, 5, 10 and text_to_image_median_rank: the same of captions and the rank of
    their photo. See `ranks`. `spaces` are as from `rivals`; None: the embedding alone.

    Captions of one photo are not independent, so `n` counts photos that have captions, standard
    errors are over photos, and photos are what is resampled, each with all its captions: the file
    of kind "cross_modal" has 95 % intervals of `RESAMPLES` bootstrap resamples.

    Raises:
      Unmeasurable: as `check`.
      NonFiniteError: an embedding holds NaN or an infinity.
    """
    check(captions)
    image_pd = unit_rows(image_pd, f"images of {at.place}")
    text_td = unit_rows(text_td, f"captions of {at.place}")
    asked_p, unit_t = np.unique(captions.photo_t, return_inverse=True)
    n, found, intervals = len(asked_p), Finding(), []
    weights = list(resamples(n, seed))
    for name, sides in (spaces or alone(image_pd.shape[1])).items():
        there = sides.dims(dims)
        x_pe, x_te = sides.image.project(image_pd), sides.text.project(text_td)
        rank_gp, rank_gt = ranks(x_pe, x_te, captions, there)
        for recall, median, rank_gq, unit_q in (
            (metrics.CAPTION_FOUND, metrics.CAPTION_RANK, rank_gp[:, asked_p], np.arange(n)),
            (metrics.PHOTO_FOUND, metrics.PHOTO_RANK, rank_gt, unit_t),
        ):
            for cutoff in CUTOFFS:
                right_gn = np.stack([_by_photo(rank_q <= cutoff, unit_q) for rank_q in rank_gq])
                found.add_right(at.of(recall(cutoff), name), there, right_gn)
            for dim, rank_q in zip(there, rank_gq, strict=True):
                values = dict(_resampled(recall, median, rank_q, unit_q, weights))
                for metric, value_r in values.items():
                    intervals.append(interval(at.of(metric, name), dim, value_r))
                value, stderr = np.median(rank_q), values[median].std(ddof=1)
                found.results.append(at.of(median, name).result(dim, value, stderr, n))
    content = {
        "photos": len(image_pd),
        "captions": len(text_td),
        "resampled": "photos",
        "resamples": RESAMPLES,
        "intervals": intervals,
    }
    found.add_file("cross_modal", at.place, content)
    return found


def nearest_captions(
    text_td: np.ndarray,
    captions: Captions,
    at: Series,
    dims: Sequence[int],
    *,
    spaces: Mapping[str, Sides] | None = None,
) -> Finding:
    """Metric caption_1nn: the share of captions whose nearest other one is of the same photo.

    Captions with the text that asks do not compete, nor do those with a text that its photo has as
    well. Captions whose photo has no second text are not asked: `n` counts the photos of the
    others. Arguments and errors are as of `measure`.

    Raises:
      Unmeasurable: as `check_texts`.
    """
    check_texts(captions)
    text_td = unit_rows(text_td, f"captions of {at.place}")
    asked_n = _with_others(captions)
    _, unit_n = np.unique(captions.photo_t[asked_n], return_inverse=True)
    of_photo, found = _OfPhoto(captions), Finding()
    for name, sides in (spaces or alone(text_td.shape[1])).items():
        there, x_te = sides.dims(dims), sides.text.project(text_td)
        right_gn = np.empty((len(there), len(asked_n)), bool)
        step = max(1, _MAX_SCORES // len(text_td))
        for start in range(0, len(asked_n), step):
            row_b = asked_n[start : start + step]
            own_bt = of_photo.has(captions.photo_t[row_b])
            others_bt = own_bt & (captions.same_t != captions.same_t[row_b, None])
            for g, cosine_bt in enumerate(_cosines(x_te[row_b], x_te, there)):
                best_b1 = _best(cosine_bt, others_bt)
                ahead_bt = _ahead(cosine_bt, best_b1) & ~own_bt
                right_gn[g, start : start + step] = ~ahead_bt.any(1)
        by_photo_gn = np.stack([_by_photo(right_n, unit_n) for right_n in right_gn])
        found.add_right(at.of("caption_1nn", name), there, by_photo_gn)
    return found


def ranks(
    image_pd: np.ndarray, text_td: np.ndarray, captions: Captions, dims: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Of photos, the rank [G, P] of the nearest own caption; of captions, [G, T] of their photo.

    1 is the nearest. What is not farther by more than rounding counts as ahead: ties, and NaN, make
    a rank worse, and constant embeddings have the worst there is. Not ahead, however near, are
    other captions of the photo, captions with the same text as one of those, and other photos that
    have a caption with this text: nobody could tell them apart. A photo without captions has 1.

    Embeddings may be of any length; prefixes are cut before they are scaled.
    """
    dims, of_photo = tuple(dims), _OfPhoto(captions)
    rank_gp = np.ones((len(dims), len(image_pd)), np.int64)
    rank_gt = np.ones((len(dims), len(text_td)), np.int64)
    own_gt = _own(image_pd, text_td, captions.photo_t, dims)
    step = max(1, _MAX_SCORES // len(text_td))
    for start in range(0, len(image_pd), step):
        rows = slice(start, min(start + step, len(image_pd)))
        own_bt = of_photo.has(np.arange(rows.start, rows.stop))
        for g, cosine_bt in enumerate(_cosines(image_pd[rows], text_td, dims)):
            ahead_bt = _ahead(cosine_bt, _best(cosine_bt, own_bt)) & ~own_bt
            rank_gp[g, rows] += ahead_bt.sum(1)
            rank_gt[g] += (_ahead(cosine_bt, own_gt[g]) & ~own_bt).sum(0)
    rank_gp[:, np.bincount(captions.photo_t, minlength=len(image_pd)) == 0] = 1
    return rank_gp, rank_gt


def _with_others(captions: Captions) -> np.ndarray:
    """The captions [N] of photos that have another one with another text."""
    photo_texts = np.unique(np.stack(captions, 1), axis=0)
    photo_u, texts_u = np.unique(photo_texts[:, 0], return_counts=True)
    return np.flatnonzero(np.isin(captions.photo_t, photo_u[texts_u > 1]))


class _OfPhoto:
    """Which captions say what a caption of a photo says."""

    def __init__(self, captions: Captions):
        _, self._text_t = np.unique(captions.same_t, return_inverse=True)
        order_t = np.argsort(captions.photo_t, kind="stable")
        self._photo_n, self._text_n = captions.photo_t[order_t], self._text_t[order_t]

    def has(self, photo_b: np.ndarray) -> np.ndarray:
        """Whether each of some photos has a caption with the text of each caption, [B, T]."""
        first_b, last_b = (np.searchsorted(self._photo_n, photo_b, s) for s in ("left", "right"))
        has_bu = np.zeros((len(photo_b), self._text_t.max() + 1), bool)
        for has_u, first, last in zip(has_bu, first_b, last_b, strict=True):
            has_u[self._text_n[first:last]] = True
        return has_bu[:, self._text_t]


def _cosines(a_bd: np.ndarray, b_nd: np.ndarray, dims: Sequence[int]) -> Iterator[np.ndarray]:
    """Cosines [B, N] at every prefix, one after another, by running sums of products."""
    a_bd, b_nd = a_bd.astype(np.float64), b_nd.astype(np.float64)
    dots_bn, square_b, square_n = (
        np.zeros(s) for s in ((len(a_bd), len(b_nd)), len(a_bd), len(b_nd))
    )
    last = 0
    for dim in dims:
        a_bw, b_nw = a_bd[:, last:dim], b_nd[:, last:dim]
        dots_bn += a_bw @ b_nw.T
        square_b += np.square(a_bw).sum(1)
        square_n += np.square(b_nw).sum(1)
        last = dim
        yield dots_bn * _inverse(square_b)[:, None] * _inverse(square_n)


def _own(
    image_pd: np.ndarray, text_td: np.ndarray, photo_t: np.ndarray, dims: Sequence[int]
) -> np.ndarray:
    """The cosine of every caption and its photo at every prefix, [G, T]."""
    own_gt = np.empty((len(dims), len(text_td)))
    ends = np.asarray(dims) - 1
    step = max(1, _MAX_SCORES // text_td.shape[1])
    for start in range(0, len(text_td), step):
        rows = slice(start, start + step)
        a_bd, b_bd = text_td[rows].astype(np.float64), image_pd[photo_t[rows]].astype(np.float64)
        dot, square_a, square_b = (
            np.cumsum(x_bd * y_bd, 1)[:, ends]
            for x_bd, y_bd in ((a_bd, b_bd), (a_bd,) * 2, (b_bd,) * 2)
        )
        own_gt[:, rows] = (dot * _inverse(square_a) * _inverse(square_b)).T
    return own_gt


def _inverse(square_n: np.ndarray) -> np.ndarray:
    """One over the length; of length 0, 1: such a cosine is 0."""
    return 1 / np.sqrt(np.where(square_n > 0, square_n, 1))


def _best(cosine_bn: np.ndarray, own_bn: np.ndarray) -> np.ndarray:
    """The largest of the own ones, [B, 1]."""
    return np.where(own_bn, cosine_bn, -np.inf).max(1, keepdims=True)


def _ahead(cosine_bn: np.ndarray, own: np.ndarray) -> np.ndarray:
    """What is not surely farther than the own one, [B, N]."""
    return ~(cosine_bn < own - ROUNDING)


def _by_photo(right_q: np.ndarray, photo_q: np.ndarray) -> np.ndarray:
    """What N photos have their shares in the mean of Q answers by, [N], whose mean is the same."""
    if len(photo_q) == photo_q.max() + 1:
        return right_q[np.argsort(photo_q)]
    right_n = np.bincount(photo_q, right_q)
    return right_n * (len(right_n) / len(photo_q))


def _resampled(
    recall: Family,
    median: str,
    rank_q: np.ndarray,
    photo_q: np.ndarray,
    weights: Sequence[np.ndarray],
) -> Iterator[tuple[str, np.ndarray]]:
    """Metrics and their values [R] in resamples of photos, each of which has all its answers."""
    answers_n = np.bincount(photo_q)
    for cutoff in CUTOFFS:
        right_n = np.bincount(photo_q, rank_q <= cutoff)
        parts = [(weight_rn @ right_n) / (weight_rn @ answers_n) for weight_rn in weights]
        yield recall(cutoff), np.concatenate(parts)
    order_q = np.argsort(rank_q)
    rank_q, photo_q = rank_q[order_q], photo_q[order_q]
    yield median, np.concatenate([_medians(rank_q, weight_rn[:, photo_q]) for weight_rn in weights])


def _medians(rising_q: np.ndarray, weight_rq: np.ndarray) -> np.ndarray:
    """The median of numbers of which the i-th is there w_i times, [R]."""
    up_to_rq = weight_rq.cumsum(1)
    last_r1 = up_to_rq[:, -1:] - 1
    middle = np.floor(last_r1 / 2), np.ceil(last_r1 / 2)
    return sum(rising_q[(up_to_rq > place_r1).argmax(1)] for place_r1 in middle) / 2
