"""Whether clusters of embeddings are the classes of their texts."""

import pathlib
import warnings
from typing import Any

import numpy as np

from mrl_jax.data.labelled_text import LABELLED, LabelledTexts, read_labelled
from mrl_jax.data.text_files import columns_besides
from mrl_jax.evaluators.text_common import TextSubject, unit_rows
from mrl_jax.record.finding import Finding, Unmeasurable
from mrl_jax.record.results import Series

STARTS = 5


def read(path: pathlib.Path, name: str, config: Any) -> LabelledTexts:
    """The texts and labels of a file."""
    del name, config
    return read_labelled(path)


def unread(path: pathlib.Path, data: LabelledTexts) -> list[str]:
    """The columns that are not read."""
    del data
    return columns_besides(LABELLED, [path])


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


def measure(subject: TextSubject, at: Series, data: LabelledTexts) -> Finding:
    """v_measure of k-means with as many clusters as there are classes.

    The mean over `STARTS` runs of k-means on prefixes at length 1, with the same seeds at every
    prefix; the standard error is over these runs, not over texts.
    """
    from sklearn.metrics import v_measure_score

    check(data)
    classes = len(set(data.labels))
    z_nd = subject.embedded(data.texts, f"texts of {at.place}")
    found = Finding()
    for space, there, (x_ne,) in subject.in_spaces(z_nd):
        for dim in there:
            unit_nd = unit_rows(x_ne[:, :dim], at.place)
            values = [
                v_measure_score(data.labels, _clusters(unit_nd, classes, subject.seed + start))
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
