"""Measurements of a trained embedding at every prefix."""

from collections.abc import Callable

from mrl_jax.errors import shown
from mrl_jax.evaluators import (
    agreement,
    attribution,
    calibration,
    cascade,
    classification,
    few_shot,
    linear_probe,
    long_tail,
    projections,
    retrieval,
    robustness,
    superclass,
)
from mrl_jax.evaluators.subject import Subject
from mrl_jax.imported import by_path
from mrl_jax.record.finding import Examples, Finding

__all__ = ["MEASURES", "Examples", "Finding", "Subject", "chosen"]

# A metric that `record.metrics` has no row for brings one in `Finding.rows`.
Measure = Callable[[Subject, str], Finding]

# What a run may be asked for in eval.measures.
MEASURES: dict[str, Measure] = {
    "accuracy": classification.measure,
    "neighbours": retrieval.neighbours,
    "retrieval": retrieval.retrieval,
    "flip": classification.mirrored,
    "projections": projections.measure,
    "probes": linear_probe.measure,
    "calibration": calibration.measure,
    "agreement": agreement.measure,
    "cascade": cascade.measure,
    "few_shot": few_shot.measure,
    "long_tail": long_tail.measure,
    "superclass": superclass.measure,
    "robustness": robustness.measure,
    "attribution": attribution.measure,
}


def chosen(names: tuple[str, ...]) -> dict[str, Measure]:
    """The measures of these names, in the order of `MEASURES`; "all" is that whole table.

    An import path, "my_lab.measures:name", names a function from elsewhere, which comes after them.

    Raises:
      ValueError: an unknown name, no function at an import path, or no name at all.
    """
    if not names:
        raise ValueError(f"at least one of {', '.join(MEASURES)} or all must be measured")
    others = {}
    for name in names:
        if ":" in name:
            others[name] = by_path(name, "the measure")
            if not callable(others[name]):
                raise ValueError(f"{name} must be a function (subject, split) -> Finding")
        elif name not in MEASURES and name != "all":
            raise ValueError(
                f"measures are {', '.join(MEASURES)}, all, or an import path such as "
                f"my_lab.measures:name; got {shown(name)}"
            )
    return {n: of for n, of in MEASURES.items() if n in names or "all" in names} | others
