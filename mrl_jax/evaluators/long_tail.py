"""Class means of known and new classes, frequent and rare, after a long-tailed stream."""

import math
from typing import NamedTuple

import numpy as np

from mrl_jax.evaluators.class_means import by_dim, digest, nearest_is_own, rows_of_classes
from mrl_jax.evaluators.subject import Subject
from mrl_jax.record import metrics
from mrl_jax.record.finding import Finding, Unmeasurable
from mrl_jax.record.results import Series

# The metrics: known classes come first, and of both the frequent ones.
GROUPS = tuple(metrics.TAIL(of, part) for of in ("pretrain", "novel") for part in ("head", "tail"))
STREAMS = 10
# Not the run's seed: every run sees the same streams, so that two can be compared in pairs.
SEED = 2020


class Stream(NamedTuple):
    """What a stream shows of C classes: `group_c`, indices of GROUPS, and the examples of each."""

    group_c: np.ndarray
    shown: list[np.ndarray]


def check(train_label_n: np.ndarray, label_n: np.ndarray) -> list[np.ndarray]:
    """The training examples of each class that has an example in both splits.

    Raises:
      Unmeasurable: there are fewer than 4 such classes, or their median size is below 2.
    """
    rows_of = rows_of_classes(train_label_n)
    rows = [rows_of[c] for c in np.intersect1d(train_label_n, label_n).tolist()]
    if len(rows) < 4 or np.median([len(row_n) for row_n in rows]) < 2:
        raise Unmeasurable(
            "needs at least 4 classes that are in both splits, a median one with 2 training "
            f"examples; got {len(rows)} classes with {sum(map(len, rows))} training examples"
        )
    return rows


def draw(rows: list[np.ndarray], seed: int) -> Stream:
    """A stream over at least 4 classes, of which `rows` are the examples.

    A random quarter of the classes, and at least two, are "pretrain", the others "novel". Among
    the K of a group, the class of rank r is shown n * r ** -s examples, as far as it has them: n is
    the median size of a class, and s is such that the last one is shown once (Zipf's law; for 750
    classes of 732 examples s is 1.0). Head are the ranks below sqrt(K): those shown more than
    sqrt(n), which is halfway from n to 1 on a logarithmic scale.
    """
    rng = np.random.default_rng((SEED, seed))
    most = float(np.median([len(row_n) for row_n in rows]))
    order = rng.permutation(len(rows))
    pretrain = max(2, len(rows) // 4)
    group_c, shown = np.empty(len(rows), np.int64), [np.empty(0, np.int64)] * len(rows)
    for head, members in ((0, order[:pretrain]), (2, order[pretrain:])):
        exponent = math.log(most) / math.log(len(members))
        for rank, c in enumerate(members, 1):
            group_c[c] = head + (rank * rank >= len(members))
            count = min(len(rows[c]), max(1, round(most * rank**-exponent)))
            shown[c] = rng.choice(rows[c], count, replace=False)
    return Stream(group_c, shown)


def standard_error(accuracy_s: np.ndarray, part_n: np.ndarray) -> float:
    """Of a mean over streams that are judged on the same test examples.

    `part_n` is what each test example adds to the mean's deviation, over all streams: summed first,
    because what streams find of one example is not independent. To that variance the one between
    streams is added; a share of it is counted twice, so the result is rather too large.
    """
    return math.sqrt(np.square(part_n).sum() + accuracy_s.var(ddof=1) / len(accuracy_s))


def measure(subject: Subject, split: str) -> Finding:
    """Accuracy on `split` by group, such as tail_novel_tail; the mean of ten streams.

    Streams are drawn from the train split, see `draw`. Every class has a mean: a novel class of the
    examples the stream showed, a pretrain class of all its training examples. All of them compete
    for every test example. A running mean forgets the order of what it saw, so the state at the
    end of a stream is computed at once.

    The paper (appendix G, Table 16) takes FLUID (arXiv 2007.02519): about 90,000 images of 250
    classes that the backbone was trained on and 750 that it was not, 14 to 961 of each; each
    image is classified, then learned; head are classes of more than 50. Here the backbone has seen
    the novel classes as well, unless it was trained on others than these: only the classifier has
    not. So these numbers are higher than FLUID's and are to be compared among runs, not with the
    paper's. Test examples are those of `split`, not of the stream, because the backbone was
    trained on the latter. Pretrain means do not depend on the stream: their head and tail differ
    only in which classes they are.

    Classes without an example in both splits are left out. The file of kind "long_tail" holds the
    accuracy of every stream by metric and dim, and in "draws" a digest of the streams: where two
    runs' are equal, they are compared in pairs. Raises as `check`: nothing is rare then.
    """
    found = Finding()
    train, test = subject.embedded("train"), subject.embedded(split)
    rows = check(train.label_n, test.label_n)
    classes = np.intersect1d(train.label_n, test.label_n)
    tested_n = np.isin(test.label_n, classes)
    z_nd, own_n = test.z_nd[tested_n], np.searchsorted(classes, test.label_n[tested_n])
    whole_cd = np.stack([train.z_nd[row_n].mean(0, dtype=np.float64) for row_n in rows])
    streams = [draw(rows, seed) for seed in range(STREAMS)]
    dims = subject.dims
    accuracy_kgs = np.empty((len(GROUPS), len(dims), STREAMS))
    part_kgn = np.zeros((len(GROUPS), len(dims), len(own_n)))
    judged_kn = np.zeros((len(GROUPS), len(own_n)), bool)
    for s, (group_c, shown) in enumerate(streams):
        mean_cd = whole_cd.copy()
        for c in np.flatnonzero(group_c >= 2):
            mean_cd[c] = train.z_nd[shown[c]].mean(0, dtype=np.float64)
        right_gn = nearest_is_own(z_nd, own_n, mean_cd, dims)
        for k in range(len(GROUPS)):
            member_n = group_c[own_n] == k
            judged_kn[k] |= member_n
            accuracy_kgs[k, :, s] = right_gn[:, member_n].mean(1)
            deviation_gn = right_gn[:, member_n] - accuracy_kgs[k, :, s, None]
            part_kgn[k][:, member_n] += deviation_gn / (member_n.sum() * STREAMS)
    for k, name in enumerate(GROUPS):
        series, n = Series("", split, name), int(judged_kn[k].sum())
        for g, dim in enumerate(dims):
            accuracy_s = accuracy_kgs[k, g]
            error = standard_error(accuracy_s, part_kgn[k, g])
            found.results.append(series.result(dim, accuracy_s.mean(), error, n))
    counts_sc = np.array([[len(row_n) for row_n in stream.shown] for stream in streams])
    group_sc = np.stack([stream.group_c for stream in streams])
    content = {
        "draws": digest(
            [train.label_n, test.label_n, group_sc, *(r for s in streams for r in s.shown)]
        ),
        "classes": {name: int((group_sc[0] == k).sum()) for k, name in enumerate(GROUPS)},
        # Fewest and most examples of a class, over all streams.
        "shown": {
            name: [int(f(counts_sc[group_sc == k])) for f in (np.min, np.max)]
            for k, name in enumerate(GROUPS)
        },
        "accuracy": {name: by_dim(dims, accuracy_kgs[k]) for k, name in enumerate(GROUPS)},
    }
    found.add_file("long_tail", split, content)
    return found
