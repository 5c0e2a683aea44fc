"""Adaptive classification: accuracy against expected dims, thresholds fitted on other examples.

Paper, section 4.2.1 and Figure 6. Every image is seen once; the reference averages logits with the
mirrored image in all of that figure, so its accuracies are some tenths of a percent higher.
"""

from collections.abc import Collection, Mapping

import numpy as np

from mrl_jax.cascade.study import FITTED, Judged, study
from mrl_jax.evaluators.subject import Subject
from mrl_jax.record.finding import Finding, Unmeasurable


def _judged(subject: Subject, split: str, dims: tuple[int, ...]) -> Judged:
    predictions = subject.predictions(split)
    rows = [predictions.dims.index(m) for m in dims]
    return Judged(dims, predictions.confidence_gn[rows], predictions.rank_gn[rows] <= 1)


def _beside(splits: Collection[str], split: str) -> bool:
    """Whether policies measured on a split are fitted on another one."""
    return split == "test" and "val" in splits


def check(sizes: Mapping[str, int], split: str) -> None:
    """Refuses a split of a single example that would have to be divided to fit and to test.

    `sizes` are the numbers of examples by split.

    Raises:
      Unmeasurable: the split cannot be divided.
    """
    if sizes[split] < 2 and not _beside(sizes, split) and not (split == "val" and "test" in sizes):
        raise Unmeasurable(f"needs at least 2 examples to fit and test on, got {sizes[split]}")


def measure(subject: Subject, split: str) -> Finding:
    """Policies of the trained dims, and what they give on examples they were not fitted on.

    For "test" they are fitted on the images of "val" that are not in "test" as well. If only one of
    the two splits exists, or both hold the same images, the measured split is divided. Nothing is
    measured on "val" if there is a "test", or if only one measured dim was trained.

    The file of kind "cascade" has the content of `cascade.study.study`, and what was fitted on;
    that of kind "cascade_policy" is the recommended policy, as `Policy.load` reads it. Raises as
    `check`.
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
    found = Finding()
    about = {"n": n, "fitted_on": fitted_on, "mirrored": False}
    found.add_file("cascade", split, about | content)
    found.add_file("cascade_policy", split, policy.to_dict())
    return found
