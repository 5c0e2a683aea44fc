"""Classes of texts from their embeddings: logistic regression and nearest neighbours."""

import itertools
import pathlib
from typing import Any

import numpy as np

from mrl_jax.data.labelled_text import LABELLED, LabelledTexts, read_labelled
from mrl_jax.data.remarks import same_letters
from mrl_jax.data.text_files import columns_besides, find_files
from mrl_jax.errors import DataError, shown
from mrl_jax.evaluators.ranking import majority, nearest
from mrl_jax.evaluators.text_common import TextSubject, unit_rows
from mrl_jax.record import metrics
from mrl_jax.record.finding import Finding, Unmeasurable
from mrl_jax.record.results import Series

VOTERS = 10
_ITERATIONS = 1000

Data = tuple[LabelledTexts, LabelledTexts]  # to learn from, and to classify


def read(path: pathlib.Path, name: str, config: Any) -> Data:
    """The texts and labels of a folder's train and test files."""
    del name, config
    files = find_files(str(path), ())
    if "test" not in files:
        raise DataError(f"{path} has no test split")
    train, test = (read_labelled(files[split][0]) for split in ("train", "test"))
    return train, test


def unread(path: pathlib.Path, data: Data) -> list[str]:
    """The columns that are not read."""
    del data
    return columns_besides(LABELLED, itertools.chain(*find_files(str(path), ()).values()))


def check(data: Data) -> None:
    """Refuses texts from which nothing can be learned or predicted.

    Raises:
      Unmeasurable: there are fewer than 2 classes or no test texts, or a test text has a class that
        no training text has.
    """
    train, test = data
    classes = set(train.labels)
    if len(classes) < 2 or not test.texts:
        raise Unmeasurable(
            "needs at least 2 classes to learn and 1 text to classify, got "
            f"{len(classes)} and {len(test.texts)}"
        )
    if unknown := sorted(set(test.labels) - classes):
        raise Unmeasurable(
            f"no training text has the test label {shown(unknown[0])}"
            f"{same_letters(unknown[0], classes)}"
        )


def measure(subject: TextSubject, at: Series, data: Data) -> Finding:
    """The share of test texts that get their class, from one embedding of every text.

    logreg: scikit-learn's logistic regression with its defaults, on prefixes at length 1.
    knn10: the most frequent class of the 10 nearest training texts by cosine (all, if there are
    fewer); of equally frequent ones the one with the nearest text.
    """
    from sklearn.linear_model import LogisticRegression

    check(data)
    train, test = data
    number = {label: i for i, label in enumerate(sorted(set(train.labels)))}
    train_label_n, label_n = (np.array([number[c] for c in s.labels]) for s in (train, test))
    train_nd = subject.embedded(train.texts, f"training texts of {at.place}")
    test_nd = subject.embedded(test.texts, f"test texts of {at.place}")
    found = Finding()
    for space, there, (train_ne, test_ne) in subject.in_spaces(train_nd, test_nd):
        right = []
        for dim in there:
            model = LogisticRegression(max_iter=_ITERATIONS)
            model.fit(unit_rows(train_ne[:, :dim], at.place), train_label_n)
            right.append(model.predict(unit_rows(test_ne[:, :dim], at.place)) == label_n)
        found.add_right(at.of("logreg", space), there, np.stack(right))
        row_gnk = nearest(train_ne, test_ne, there, min(VOTERS, len(train_label_n)))
        voted_gn = np.stack([majority(label_nk) for label_nk in train_label_n[row_gnk]])
        found.add_right(at.of(metrics.KNN(VOTERS), space), there, voted_gn == label_n)
    return found
