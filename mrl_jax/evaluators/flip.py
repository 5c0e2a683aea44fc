"""Accuracy when every image is seen from both sides: the logits of it and its mirror image."""

from mrl_jax.evaluators.classification import TOP
from mrl_jax.evaluators.subject import Subject
from mrl_jax.record.finding import Finding


def measure(subject: Subject, split: str) -> Finding:
    """ "{split}/top1_flip" and "{split}/top5_flip": the paper's test-time augmentation (Fig. 6).

    For images whose mirror images still show their class; of digits, say, most do not.
    """
    found = Finding()
    predictions = subject.predictions(split, flip=True)
    for k in TOP:
        found.add_right(f"{split}/top{k}_flip", predictions.dims, predictions.rank_gn <= k)
    return found
