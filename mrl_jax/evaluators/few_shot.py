"""Few-shot classification by class means of k examples (paper, appendix G, Table 15)."""

import functools
import math
from typing import NamedTuple

import numpy as np

from mrl_jax.evaluators.class_means import by_dim, digest, nearest_is_own, rows_of_classes
from mrl_jax.evaluators.subject import Subject
from mrl_jax.record import metrics
from mrl_jax.record.finding import Finding, Unmeasurable
from mrl_jax.record.results import Series

WAYS = 10
SHOTS = (1, 3, 5, 7, 9)
QUERIES = 15  # per class
EPISODES = 200
EPISODES_OF_ALL = 10
RIVALS, RIVAL_SHOTS = ("pca", "random"), 5
# Not the run's seed: every run sees the same episodes, so that two can be compared in pairs.
SEED = 2007
# Queries of an episode over all its classes: for tens of thousands of classes it stays feasible.
_MAX_QUERIES = 2**14


class Setting(NamedTuple):
    """Episodes of one shape, and the metric that is their accuracy."""

    metric: str
    ways: int
    shots: int
    queries: int
    episodes: int


def settings(smallest: int, classes: int) -> list[Setting]:
    """What can be measured where the smallest class has `smallest` examples."""
    ways = min(WAYS, classes)
    shapes = [(functools.partial(metrics.NCM, ways), ways, EPISODES)]
    if classes > WAYS:
        shapes.append((metrics.NCM_ALL, classes, EPISODES_OF_ALL))
    return [
        Setting(
            metric(shots),
            ways,
            shots,
            min(QUERIES, smallest - shots, max(1, _MAX_QUERIES // ways)),
            episodes,
        )
        for metric, ways, episodes in shapes
        for shots in SHOTS
        if shots < smallest
    ]


def check(label_n: np.ndarray) -> None:
    """Raises Unmeasurable unless two classes have both a support and a query example."""
    classes = len(_shared(label_n))
    if classes < 2:
        raise Unmeasurable(f"needs at least 2 classes with 2 examples each, got {classes}")


def _shared(label_n: np.ndarray) -> list[np.ndarray]:
    """The examples of every class that has more than one."""
    return [row_n for row_n in rows_of_classes(label_n).values() if len(row_n) > 1]


def draw(rows: list[np.ndarray], setting: Setting) -> np.ndarray:
    """Examples of episodes, [E, ways, shots + queries]: support first, all of them different.

    Depends on the setting and on `rows`, the examples of each class, alone.
    """
    rng = np.random.default_rng((SEED, setting.ways, setting.shots))
    size = setting.shots + setting.queries
    return np.array(
        [
            [
                rng.choice(rows[c], size, replace=False)
                for c in rng.permutation(len(rows))[: setting.ways]
            ]
            for _ in range(setting.episodes)
        ]
    )


def accuracy(
    z_nd: np.ndarray, episodes: np.ndarray, shots: int, dims: tuple[int, ...]
) -> np.ndarray:
    """Share of the queries whose nearest class mean is their own, [G, E]."""
    _, ways, size = episodes.shape
    own_n = np.repeat(np.arange(ways), size - shots)
    found = []
    for row_ws in episodes:
        mean_wd = z_nd[row_ws[:, :shots]].mean(1, dtype=np.float32)
        query_nd = z_nd[row_ws[:, shots:].ravel()]
        found.append(nearest_is_own(query_nd, own_n, mean_wd, dims).mean(1))
    return np.stack(found, 1)


def measure(subject: Subject, split: str) -> Finding:
    """Mean accuracy over episodes, and its standard error over them, at every prefix.

    ncm_10way_5shot: of 10 classes drawn at random, 5 examples each make the class mean and up to 15
    others are classified; all are of `split`, as in the paper, which takes both from ImageNetV2.
    ncm_allway_5shot: all classes at once; left out where there are no more than 10, as it would be
    the same. With C < 10 classes it is ncm_{C}way_5shot. The spaces "pca" and "random" are
    untrained rivals. Classes with a single example take no part. k shots are left out if the
    smallest of the other classes has no more than k examples, so that all are about the same
    classes; `Finding.skipped` names what was left out.

    The file of kind "few_shot" holds the accuracy of every episode by metric and dim, and in
    "draws" a digest of the episodes: where two runs' are equal, they are compared in pairs. Raises
    as `check`.
    """
    found = Finding()
    z_nd, label_n = subject.embedded(split)
    check(label_n)
    rows = _shared(label_n)
    smallest = min(map(len, rows))
    chosen = settings(smallest, len(rows))
    if left_out := [str(shots) for shots in SHOTS if shots >= smallest]:
        found.skipped[f"{split}/few_shot of {', '.join(left_out)}"] = (
            f"the smallest of {len(rows)} classes has {smallest} examples"
        )
    drawn = {setting: draw(rows, setting) for setting in chosen}
    accuracies = {}
    for space in (metrics.TRAINED, *RIVALS):
        basis, is_rival = subject.spaces[space], space in RIVALS
        dims = basis.dims(subject.dims)
        some = [s for s in chosen if not is_rival or (s.ways <= WAYS and s.shots == RIVAL_SHOTS)]
        coordinates_nd = basis.project(z_nd) if is_rival and some else z_nd
        for setting in some:
            accuracy_ge = accuracy(coordinates_nd, drawn[setting], setting.shots, dims)
            series = Series("", split, setting.metric, space)
            accuracies[series.label] = by_dim(dims, accuracy_ge)
            error_g = accuracy_ge.std(1, ddof=1) / math.sqrt(setting.episodes)
            for dim, mean, error in zip(dims, accuracy_ge.mean(1), error_g, strict=True):
                found.results.append(series.result(dim, mean, error, setting.episodes))
    content = {
        "draws": digest([label_n, *drawn.values()]),
        "classes": len(rows),
        "settings": {setting.metric: setting._asdict() for setting in chosen},
        "accuracy": accuracies,
    }
    found.add_file("few_shot", split, content)
    return found
