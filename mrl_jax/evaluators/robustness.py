"""Accuracy on shifted test sets beside the clean one (the paper measures V2, A, R and Sketch)."""

import hashlib
import math

import numpy as np

from mrl_jax.evaluators.classification import RANKS
from mrl_jax.evaluators.subject import Predictions, Subject
from mrl_jax.record import metrics
from mrl_jax.record.finding import Finding
from mrl_jax.record.results import Series


def measure(subject: Subject, split: str) -> Finding:
    """Every shift beside the last split of the data set; empty for other splits.

    On a shift with some of the classes no other class may be said, as in the published numbers of
    ImageNet-A and -R. It is compared with the clean examples of these classes, treated alike.

    Metrics top1 and top5 (of more than five classes) at every classifiable dim, and top1_clean
    where the split has examples of the classes. The file of kind "robustness" adds the relative
    drop (clean - shift) / clean with a 95 % interval for two independent samples of examples (of
    the ratio, Katz et al., Biometrics 1978; it knows nothing of other seeds).
    """
    found = Finding()
    last = "test" if "test" in subject.dataset.splits else "val"
    if split != last or not subject.shifts:
        return found
    about = {name: _compare(subject, name, split, found) for name in subject.shifts}
    found.add_file("robustness", split, {"clean": split, "shifts": about})
    return found


def _compare(subject: Subject, name: str, split: str, found: Finding) -> dict:
    """Adds the results of one shift; returns what the file says of it."""
    shift, class_names = subject.shifts[name], subject.dataset.class_names
    # All classes: the same predictions as without a choice, which others need as well.
    classes = None if len(shift.classes) == len(class_names) else shift.classes
    shifted = subject.predictions(name, classes=classes)
    for k in RANKS:
        if k < len(shift.classes):
            found.add_right(Series(name, metric=metrics.TOP(k)), shifted.dims, shifted.rank_gn <= k)
    digest = hashlib.sha256()
    shift.split.update(digest)
    found.read[f"shifts.{name}"] = digest.hexdigest()[:16]
    about = {
        "data": found.read[f"shifts.{name}"],
        "classes": [class_names[k] for k in shift.classes],
        "n": len(shifted.label_n),
        "dims": list(shifted.dims),
        "top1": _right(shifted).mean(1).tolist(),
    }
    clean = subject.predictions(split, classes=classes)
    right_gn = _right(clean)[:, np.isin(clean.label_n, shift.classes)]
    clean_top1 = Series(name, metric="top1_clean")
    about["n_clean"] = n_clean = right_gn.shape[1]
    if not n_clean:
        found.skipped[clean_top1.name] = f"{split} has no examples of its classes"
        return about
    found.add_right(clean_top1, clean.dims, right_gn)
    about["top1_clean"] = right_gn.mean(1).tolist()
    drops = [
        relative_drop(int(hits), about["n"], int(clean_hits), n_clean)
        for hits, clean_hits in zip(_right(shifted).sum(1), right_gn.sum(1), strict=True)
    ]
    about["relative_drop"], about["relative_drop_95"] = map(list, zip(*drops, strict=True))
    return about


def _right(predictions: Predictions) -> np.ndarray:
    return predictions.rank_gn <= 1


def relative_drop(
    hits: int, n: int, clean_hits: int, n_clean: int
) -> tuple[float | None, tuple[float | None, float | None]]:
    """(clean - shift) / clean and its 95 % interval; None where hits of 0 leave it undefined."""
    from scipy.stats.contingency import relative_risk

    ratio = relative_risk(hits, n, clean_hits, n_clean)
    interval = ratio.confidence_interval(0.95)
    drop, low, high = (
        1 - float(r) if math.isfinite(r) else None
        for r in (ratio.relative_risk, interval.high, interval.low)
    )
    return drop, (low, high)
