"""Classes of texts from their embeddings: logistic regression and nearest neighbours."""

from collections.abc import Sequence

import numpy as np

from mrl_jax.data.labelled_text import LabelledTexts
from mrl_jax.data.remarks import same_letters
from mrl_jax.errors import shown
from mrl_jax.evaluators.ranking import majority, nearest
from mrl_jax.evaluators.spaces import Space
from mrl_jax.evaluators.text_common import Embed, embedded, in_spaces, itself, unit_rows
from mrl_jax.record import metrics
from mrl_jax.record.finding import Finding, Unmeasurable
from mrl_jax.record.results import Series

VOTERS = 10
_ITERATIONS = 1000


def check(train: LabelledTexts, test: LabelledTexts) -> None:
    """Refuses texts from which nothing can be learned or predicted.

    Raises:
      Unmeasurable: there are fewer than 2 classes or no test texts, or a test text has a class that
        no training text has.
    """
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


def measure(
    embed: Embed,
    at: Series,
    train: LabelledTexts,
    test: LabelledTexts,
    dims: Sequence[int],
    *,
    spaces: dict[str, Space] | None = None,
) -> Finding:
    """How many test texts get their class, from one embedding of every text.

    logreg: logistic regression of scikit-learn, as it comes, on prefixes at length 1.
    knn10: the most frequent class of the 10 nearest training texts by cosine (all, if
    there are fewer); of equally frequent ones the one with the nearest text.

    Args:
      embed: N texts -> [N, D], of any length.
      at: whose texts they are.
      train: what is learned from.
      test: what is classified.
      dims: prefixes; those wider than a space are left out.
      spaces: as in `text_sts.measure`.

    Raises:
      Unmeasurable: see `check`.
      NonFiniteError: the embeddings hold NaN or an infinity.
    """
    from sklearn.linear_model import LogisticRegression

    check(train, test)
    number = {label: i for i, label in enumerate(sorted(set(train.labels)))}
    train_label_n, label_n = (np.array([number[c] for c in s.labels]) for s in (train, test))
    train_nd = embedded(embed, train.texts, f"training texts of {at.place}")
    test_nd = embedded(embed, test.texts, f"test texts of {at.place}")
    found = Finding()
    for space, there, (train_ne, test_ne) in in_spaces(
        spaces or itself(train_nd.shape[1]), dims, train_nd, test_nd
    ):
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
