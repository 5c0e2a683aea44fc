"""Adaptive classification: accuracy against expected dims, thresholds fitted on other examples.

Paper, section 4.2.1 and Figure 6. Every image is seen once; the reference averages logits with the
mirrored image in all of that figure, so its accuracies are some tenths of a percent higher.
"""

import json
from collections.abc import Collection, Mapping

import numpy as np

from mrl_jax.cascade.study import FITTED, Judged, study
from mrl_jax.evaluators.finding import Finding, Unmeasurable
from mrl_jax.evaluators.subject import Subject


def _judged(subject: Subject, split: str, dims: tuple[int, ...]) -> Judged:
    predictions = subject.predictions(split)
    rows = [predictions.dims.index(m) for m in dims]
    return Judged(dims, predictions.confidence_gn[rows], predictions.rank_gn[rows] <= 1)


def _beside(splits: Collection[str], split: str) -> bool:
    """Whether policies of a split are fitted on another one."""
    return split == "test" and "val" in splits


def check(sizes: Mapping[str, int], split: str) -> None:
    """Refuses a single example, which cannot be divided into some to fit and some to test on.

    Raises:
      Unmeasurable: as said; `sizes` are the examples of every split.
    """
    if sizes[split] < 2 and not _beside(sizes, split) and not (split == "val" and "test" in sizes):
        raise Unmeasurable(f"needs 2 examples or more to fit and test on, got {sizes[split]}")


def measure(subject: Subject, split: str) -> Finding:
    """Policies of the trained dims, and what they give on examples they were not fitted on.

    On "test" they are fitted on "val", without images that test holds as well. A data set with one
    of the two, or with the same images in both, is divided. "val" beside a "test", and heads with
    one trained dim among the measured ones, give nothing.

    "{split}_cascade.json" has the content of `cascade.study.study`, and what was fitted on;
    "{split}_cascade_policy.json" is the recommended policy, as `Policy.load` reads it.

    Raises:
      Unmeasurable: a single example cannot be divided.
    """
    splits = subject.dataset.splits
    dims = tuple(m for m in subject.classifiable if m in subject.task.nesting.dims)
    if len(dims) < 2 or (split == "val" and "test" in splits):
        return Finding()
    measured = _judged(subject, split, dims)
    n = measured.right_gn.shape[1]
    fit, fitted_on = None, f"{FITTED:.0%} of {split}"
    if _beside(splits, split):
        shared_n = np.isin(splits["val"].contents(), splits["test"].contents())
        if not shared_n.all():
            fit, fitted_on = _judged(subject, "val", dims), "val"
            if shared_n.any():
                fit = fit.of(np.flatnonzero(~shared_n))
                fitted_on = f"val without {shared_n.sum():,} images of test"
    if fit is None:
        check({split: n}, split)
    content, policy = study(
        measured if fit is None else fit,
        None if fit is None else measured,
        shared=subject.task.head.kind != "separate",
        seed=subject.seed,
    )
    content = {
        "schema": 1,
        "n": n,
        "fitted_on": fitted_on,
        "mirrored": False,
        **content,
    }
    return Finding(
        files={
            f"{split}_cascade.json": json.dumps(content, indent=1).encode(),
            f"{split}_cascade_policy.json": json.dumps(policy.to_dict(), indent=1).encode(),
        }
    )
