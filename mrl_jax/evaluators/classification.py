"""Top-1 and top-5 accuracy of the head at every prefix that it can classify."""

from mrl_jax.evaluators.subject import Subject
from mrl_jax.record import metrics
from mrl_jax.record.finding import Finding
from mrl_jax.record.results import Series

RANKS = (1, 5)


def measure(subject: Subject, split: str) -> Finding:
    """Metrics top1 and top5 at every classifiable dim."""
    return _measured(subject, split, metrics.TOP, flip=False)


def mirrored(subject: Subject, split: str) -> Finding:
    """top1_flip and top5_flip: the mean of the logits of an image and of its mirror image.

    This is the paper's test-time augmentation (Figure 6), for images whose mirror images still
    show their class; those of most digits do not.
    """
    return _measured(subject, split, metrics.TOP_FLIP, flip=True)


def _measured(subject: Subject, split: str, names: metrics.Family, *, flip: bool) -> Finding:
    found, predictions = Finding(), subject.predictions(split, flip=flip)
    for k in RANKS:
        found.add_right(Series("", split, names(k)), predictions.dims, predictions.rank_gn <= k)
    return found
