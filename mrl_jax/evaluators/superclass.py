"""How often the superclass is right, even where the class is not."""

import numpy as np

from mrl_jax.data.hierarchy import Hierarchy
from mrl_jax.evaluators.subject import Subject
from mrl_jax.record.finding import Finding, Unmeasurable, digest_of, refusals
from mrl_jax.record.results import Series


def check(hierarchy: Hierarchy | None, label_n: np.ndarray) -> None:
    """Raises Unmeasurable for a split where a hierarchy, if any, gives no example a superclass."""
    if hierarchy is not None and (hierarchy.group_c[label_n] < 0).all():
        raise Unmeasurable(f"none of the {len(label_n)} examples has a class with a superclass")


def measure(subject: Subject, split: str) -> Finding:
    """Accuracy of the superclass of the predicted class at every classifiable dim.

    superclass: over the examples whose class has a superclass. A prediction of a class that has
    none is wrong. superclass_reject, where some classes have none: over all examples, with "none"
    as one more superclass; 30 superclasses and this one are the paper's 31 ways. As many classes
    may have none, it is easier to be right.

    NaN logits are wrong. The file of kind "superclass" lists each superclass. Without a hierarchy
    the finding is empty.
    """
    found = Finding()
    if subject.hierarchy is None:
        return found
    names, group_c = subject.hierarchy
    found.read["hierarchy"] = digest_of((names, group_c))
    predictions = subject.predictions(split)
    dims, true_n = predictions.dims, group_c[predictions.label_n]
    right_gn = group_c[predictions.predicted_gn] == true_n
    right_gn &= ~np.isnan(predictions.confidence_gn)
    has_n = true_n >= 0
    found.skipped.update(
        refusals({f"{split}/superclass": lambda: check(subject.hierarchy, predictions.label_n)})
    )
    if has_n.any():
        found.add_right(Series("", split, "superclass"), dims, right_gn[:, has_n])
    if (group_c < 0).any():
        found.add_right(Series("", split, "superclass_reject"), dims, right_gn)

    # Superclass -1, "none", comes first.
    ways = len(names) + 1
    hits_sg = np.zeros((ways, len(dims)), np.int64)
    np.add.at(hits_sg, true_n + 1, right_gn.T)
    n_s, classes_s = np.bincount(true_n + 1, minlength=ways), np.bincount(group_c + 1)
    about = [
        {
            "name": name,
            "classes": int(classes),
            "n": int(n),
            "accuracy": (hits_g / n).tolist() if n else None,
        }
        for name, classes, n, hits_g in zip((None, *names), classes_s, n_s, hits_sg, strict=True)
        if classes
    ]
    found.add_file("superclass", split, {"dims": list(dims), "superclasses": about})
    return found
