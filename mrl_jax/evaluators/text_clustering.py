"""Whether clusters of embeddings are the classes of their texts."""

import warnings
from collections.abc import Sequence

import numpy as np

from mrl_jax.data.labelled_text import LabelledTexts
from mrl_jax.evaluators.spaces import Space
from mrl_jax.evaluators.text_common import Embed, embedded, in_spaces, itself, unit_rows
from mrl_jax.record.finding import Finding, Unmeasurable
from mrl_jax.record.results import Series

STARTS = 5


def check(data: LabelledTexts) -> None:
    """Refuses texts that cannot be divided into as many clusters as there are classes.

    Raises:
      Unmeasurable: there are fewer than 2 classes, or fewer different texts than classes.
    """
    classes, different = len(set(data.labels)), len(set(data.texts))
    if classes < 2 or different < classes:
        raise Unmeasurable(
            f"needs at least 2 classes, and as many different texts as classes; got {classes} "
            f"classes and {different} different texts"
        )


def measure(
    embed: Embed,
    at: Series,
    data: LabelledTexts,
    dims: Sequence[int],
    *,
    seed: int,
    spaces: dict[str, Space] | None = None,
) -> Finding:
    """v_measure of k-means with as many clusters as there are classes.

    The mean over `STARTS` starts of k-means on prefixes at length 1, the same starts' numbers at
    every prefix; the standard error says how far starts differ, not texts.

    Args:
      embed: N texts -> [N, D], of any length.
      at: whose texts they are.
      data: texts and their classes.
      dims: prefixes; those wider than a space are left out.
      seed: of the starts.
      spaces: as in `text_sts.measure`.

    Raises:
      Unmeasurable: see `check`.
      NonFiniteError: the embeddings hold NaN or an infinity.
    """
    from sklearn.metrics import v_measure_score

    check(data)
    classes = len(set(data.labels))
    z_nd = embedded(embed, data.texts, f"texts of {at.place}")
    found = Finding()
    for space, there, (x_ne,) in in_spaces(spaces or itself(z_nd.shape[1]), dims, z_nd):
        for dim in there:
            unit_nd = unit_rows(x_ne[:, :dim], at.place)
            values = [
                v_measure_score(data.labels, _clusters(unit_nd, classes, seed + start))
                for start in range(STARTS)
            ]
            stderr = np.std(values, ddof=1) / np.sqrt(STARTS)
            told = at.of("v_measure", space)
            found.results.append(told.result(dim, np.mean(values), stderr, len(data.texts)))
    return found


def _clusters(unit_nd: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """The cluster of every row, [N]."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Fewer different vectors than classes (one dim is 1 or -1): the measure says it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(classes, n_init=1, random_state=seed).fit_predict(unit_nd)
