"""Classes of texts from their embeddings: logistic regression and nearest neighbours."""

from collections.abc import Sequence

import numpy as np

from mrl_jax.data.labelled_text import LabelledTexts
from mrl_jax.data.remarks import same_letters
from mrl_jax.errors import shown
from mrl_jax.evaluators.ranking import nearest
from mrl_jax.evaluators.spaces import Space
from mrl_jax.evaluators.text_common import Embed, embedded, in_spaces, itself, unit_rows
from mrl_jax.record.finding import Finding, Unmeasurable

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
    name: str,
    train: LabelledTexts,
    test: LabelledTexts,
    dims: Sequence[int],
    *,
    spaces: dict[str, Space] | None = None,
) -> Finding:
    """How many test texts get their class, from one embedding of every text.

    "{name}/logreg": logistic regression of scikit-learn, as it comes, on prefixes at length 1.
    "{name}/knn10": the most frequent class of the 10 nearest training texts by cosine (all, if
    there are fewer); of equally frequent ones the one with the nearest text.

    Args:
      embed: N texts -> [N, D], of any length.
      name: of the data set.
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
    train_nd = embedded(embed, train.texts, f"training texts of {name}")
    test_nd = embedded(embed, test.texts, f"test texts of {name}")
    found = Finding()
    for suffix, there, (train_ne, test_ne) in in_spaces(
        spaces or itself(train_nd.shape[1]), dims, train_nd, test_nd
    ):
        right = []
        for dim in there:
            model = LogisticRegression(max_iter=_ITERATIONS)
            model.fit(unit_rows(train_ne[:, :dim], name), train_label_n)
            right.append(model.predict(unit_rows(test_ne[:, :dim], name)) == label_n)
        found.add_right(f"{name}/logreg{suffix}", there, np.stack(right))
        row_gnk = nearest(train_ne, test_ne, there, min(VOTERS, len(train_label_n)))
        voted_gn = np.stack([_majority(label_nk) for label_nk in train_label_n[row_gnk]])
        found.add_right(f"{name}/knn{VOTERS}{suffix}", there, voted_gn == label_n)
    return found


def _majority(label_nk: np.ndarray) -> np.ndarray:
    """The most frequent label of every row, [N]; of equally frequent ones the first to occur."""
    votes_nk = (label_nk[:, :, None] == label_nk[:, None, :]).sum(-1)
    return np.take_along_axis(label_nk, votes_nk.argmax(1)[:, None], 1)[:, 0]
