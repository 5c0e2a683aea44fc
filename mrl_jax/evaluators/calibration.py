"""Whether the head is as often right as it says: expected calibration error at every prefix."""

import numpy as np

from mrl_jax.errors import NonFiniteError
from mrl_jax.evaluators.subject import Predictions, Subject
from mrl_jax.record.finding import Finding
from mrl_jax.record.results import Series

BINS = 15  # as Guo et al. and most tables since
RESAMPLES = 200  # of the examples, for the standard error


def _sums(bin_gn: np.ndarray, weight_gn: np.ndarray) -> np.ndarray:
    """Sums of the weights in each bin, [G, BINS]."""
    granularities = len(bin_gn)
    flat_gn = bin_gn + BINS * np.arange(granularities)[:, None]
    sums = np.bincount(flat_gn.ravel(), weight_gn.ravel(), BINS * granularities)
    return sums.reshape(granularities, BINS)


def reliability(predictions: Predictions, seed: int) -> dict[str, list]:
    """How confident and how often right the head is, in 15 equal bins of its confidence.

    The expected calibration error is the mean over examples of |accuracy - confidence| of their
    bin (Guo et al., arXiv 1706.04599, eq. 3).

    Returns:
      "edges" of the bins [16], which are closed above; for each granularity "ece" and its standard
      error "stderr" by 200 bootstrap resamples of the examples [G]; "counts", mean "accuracy" and
      mean "confidence" of each bin [G, 15], None where it is empty.
    """
    confidence_gn = np.asarray(predictions.confidence_gn, np.float64)
    right_gn = predictions.rank_gn <= 1
    n = len(predictions.label_n)
    edges = np.linspace(0, 1, BINS + 1)
    # A softmax in float32 may come out a rounding above 1.
    bin_gn = np.clip(np.searchsorted(edges, confidence_gn) - 1, 0, BINS - 1)
    gap_gn = right_gn - confidence_gn
    ece_g = np.abs(_sums(bin_gn, gap_gn)).sum(1) / n

    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        times_n = np.bincount(rng.integers(0, n, n), minlength=n)
        drawn.append(np.abs(_sums(bin_gn, gap_gn * times_n)).sum(1) / n)

    counts_gb = _sums(bin_gn, np.ones_like(gap_gn)).astype(int)

    def means(weight_gn):
        sums_gb = _sums(bin_gn, weight_gn)
        return [
            [s / c if c else None for s, c in zip(sums, counts, strict=True)]
            for sums, counts in zip(sums_gb.tolist(), counts_gb.tolist(), strict=True)
        ]

    return {
        "edges": edges.tolist(),
        "ece": ece_g.tolist(),
        "stderr": np.std(drawn, axis=0, ddof=1).tolist(),
        "counts": counts_gb.tolist(),
        "accuracy": means(right_gn),
        "confidence": means(confidence_gn),
    }


def measure(subject: Subject, split: str) -> Finding:
    """Metric ece at every classifiable dim, and the table behind it in the file "calibration".

    Raises:
      NonFiniteError: a confidence is NaN.
    """
    predictions = subject.predictions(split)
    bad_g = np.isnan(predictions.confidence_gn).sum(1)
    if bad_g.any():
        g = int(bad_g.argmax())
        raise NonFiniteError(
            f"{split}: the head's confidence is NaN for {bad_g[g]} of {len(predictions.label_n)} "
            f"examples at {predictions.dims[g]} dims"
        )
    table = reliability(predictions, subject.seed)
    n = len(predictions.label_n)
    found = Finding()
    for dim, ece, stderr in zip(predictions.dims, table["ece"], table["stderr"], strict=True):
        found.results.append(Series(split=split, metric="ece").result(dim, ece, stderr, n))
    found.add_file("calibration", split, {"n": n, "dims": list(predictions.dims), **table})
    return found
