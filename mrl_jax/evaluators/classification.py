"""Top-1 and top-5 accuracy of the head at every prefix it can classify."""

from mrl_jax.evaluators.subject import Subject
from mrl_jax.record.finding import Finding

TOP = (1, 5)


def measure(subject: Subject, split: str) -> Finding:
    """ "{split}/top1" and "{split}/top5" at every classifiable dim."""
    found = Finding()
    predictions = subject.predictions(split)
    for k in TOP:
        found.add_right(f"{split}/top{k}", predictions.dims, predictions.rank_gn <= k)
    return found
