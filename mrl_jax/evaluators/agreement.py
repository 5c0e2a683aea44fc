"""Where the granularities of one head differ on the same example, and what that could gain.

See arXiv 2205.13147, section 5 and appendix J.
"""

import numpy as np

from mrl_jax.evaluators.subject import Subject
from mrl_jax.record.finding import Finding
from mrl_jax.record.results import Series

# A class's accuracy rises or falls where it moves by more than this share of its examples: 1 of
# the 50 per class of ImageNet's validation split is not enough.
TOLERANCE = 0.02


def oracle(dims: tuple[int, ...], right_gn: np.ndarray) -> dict:
    """What the best choice of a granularity for each example would give.

    "accuracy" is the share that some granularity gets right, "never_right" the others;
    "first_right" [G] how many are right at each dim and at none before it. "expected_dim" is the
    mean of that dim, where examples that are never right cost the "smallest" dim, as with a perfect
    router, or the "largest", as in a cascade that goes on until it is right.
    """
    n = right_gn.shape[1]
    ever_n = right_gn.any(0)
    first_g = np.bincount(right_gn.argmax(0)[ever_n], minlength=len(dims))
    never = n - int(ever_n.sum())
    total = int(first_g @ np.array(dims))
    return {
        "accuracy": (n - never) / n,
        "never_right": never / n,
        "first_right": first_g.tolist(),
        "expected_dim": {
            "smallest": (total + never * dims[0]) / n,
            "largest": (total + never * dims[-1]) / n,
        },
    }


def pairs(predicted_gn: np.ndarray, right_gn: np.ndarray) -> dict[str, list]:
    """How pairs of granularities agree: shares of the examples, each [G, G].

    "both_right"; "only_first" where that of the row is right and that of the column is not;
    "only_second", its transpose; "both_wrong_same" and "both_wrong_different" where neither is.
    "agree" is the share that gets the same class from both.
    """
    n = right_gn.shape[1]
    same_gg = np.array([(predicted_gn == row_n).sum(1) for row_n in predicted_gn])
    right, wrong = right_gn.astype(int), (~right_gn).astype(int)
    both_gg, only_gg, neither_gg = right @ right.T, right @ wrong.T, wrong @ wrong.T
    counts = {
        "agree": same_gg,
        "both_right": both_gg,
        "only_first": only_gg,
        "only_second": only_gg.T,
        "both_wrong_same": same_gg - both_gg,
        "both_wrong_different": neither_gg - same_gg + both_gg,
    }
    return {name: (count_gg / n).tolist() for name, count_gg in counts.items()}


def vote(predicted_gn: np.ndarray) -> np.ndarray:
    """The class that most granularities say, [N]; of equals, that of the largest granularity."""
    votes_gn = np.stack([(predicted_gn == row_n).sum(0) for row_n in predicted_gn])
    chosen_n = len(predicted_gn) - 1 - votes_gn[::-1].argmax(0)
    return predicted_gn[chosen_n, np.arange(predicted_gn.shape[1])]


def trends(hits_cg: np.ndarray, count_c: np.ndarray) -> dict[str, int]:
    """How many classes get better with more dims, by the turns that their accuracy takes.

    A turn is a move by more than `TOLERANCE` away from the highest or lowest point since the last
    turn. "rises": up only; "rises_then_dips": up, then down; "dips_then_rises": down, then up;
    "no_trend": all others, also those that stay or only fall; "no_examples": classes without any.
    `hits_cg` are the right examples of each class at each granularity, `count_c` all its examples.
    """
    allowed_c = TOLERANCE * count_c
    low_c = high_c = hits_cg[:, 0]
    first_c, last_c, turns_c = (np.zeros(len(count_c), int) for _ in range(3))
    for hits_c in hits_cg.T[1:]:
        up_c = (last_c <= 0) & (hits_c - low_c > allowed_c)
        down_c = (last_c >= 0) & (high_c - hits_c > allowed_c)
        last_c = np.where(up_c, 1, np.where(down_c, -1, last_c))
        first_c = np.where(turns_c == 0, last_c, first_c)
        turns_c = turns_c + (up_c | down_c)
        # A turn starts the search for the next extreme anew.
        low_c = np.where(up_c | down_c, hits_c, np.minimum(low_c, hits_c))
        high_c = np.where(up_c | down_c, hits_c, np.maximum(high_c, hits_c))
    seen_c = count_c > 0
    counts = {
        "rises": (turns_c == 1) & (first_c > 0),
        "rises_then_dips": (turns_c == 2) & (first_c > 0),
        "dips_then_rises": (turns_c == 2) & (first_c < 0),
    }
    counts["no_trend"] = seen_c & ~np.any(list(counts.values()), axis=0)
    counts["no_examples"] = ~seen_c
    return {name: int(is_c.sum()) for name, is_c in counts.items()}


def _classes(label_n: np.ndarray, right_gn: np.ndarray, classes: int) -> dict:
    count_c = np.bincount(label_n, minlength=classes)
    hits_gc = np.array([np.bincount(label_n[right_n], minlength=classes) for right_n in right_gn])
    accuracy_cg = [
        [hits / count for hits in hits_g] if count else None
        for hits_g, count in zip(hits_gc.T.tolist(), count_c.tolist(), strict=True)
    ]
    return {
        "tolerance": TOLERANCE,
        "trends": trends(hits_gc.T, count_c),
        "counts": count_c.tolist(),
        "accuracy": accuracy_cg,
    }


def measure(subject: Subject, split: str) -> Finding:
    """Metrics oracle and vote of the trained granularities, at the full width.

    The file of kind "agreement" holds the rest: `oracle`, `pairs`, and for each class its accuracy
    at every granularity and the `trends`. Dims that were measured but not trained have no say; of a
    fixed head, with its one granularity, oracle and vote are its accuracy.
    """
    found, predictions = Finding(), subject.predictions(split)
    trained = [g for g, m in enumerate(predictions.dims) if m in subject.task.nesting.dims]
    if not trained:
        return found
    dims = tuple(predictions.dims[g] for g in trained)
    label_n, predicted_gn = predictions.label_n, predictions.predicted_gn[trained]
    right_gn = predictions.rank_gn[trained] <= 1
    # A tie that falls on the true class is not right, so it must not count as a vote for it.
    predicted_gn = np.where(~right_gn & (predicted_gn == label_n), -1, predicted_gn)

    width = (subject.task.nesting.width,)
    at = Series(split=split)
    found.add_right(at.of("oracle"), width, right_gn.any(0)[None])
    found.add_right(at.of("vote"), width, (vote(predicted_gn) == label_n)[None])
    content = {
        "n": len(label_n),
        "dims": list(dims),
        "oracle": oracle(dims, right_gn),
        "pairs": pairs(predicted_gn, right_gn),
        "classes": _classes(label_n, right_gn, subject.task.head.num_classes),
    }
    found.add_file("agreement", split, content)
    return found
