"""What the names of results mean: titles, directions, and the suffixes of untrained rivals."""

import math
import re
from typing import NamedTuple


class Metric(NamedTuple):
    """How a result name is read.

    Attributes:
      title: as a heading, "Linear top-1".
      noun: what the number is, "accuracy".
      lower_is_better: as of an error.
    """

    title: str
    noun: str = "accuracy"
    lower_is_better: bool = False


class Rival(NamedTuple):
    """A way to get m dims out of an embedding that was not trained for it.

    Attributes:
      role: of its curves.
      label: after the name of the embedding, "FF-64, PCA to m".
      full: pattern of the metrics for which it is something else at full width than the
        embedding as it is.
    """

    role: str
    label: str
    full: str = "never"


# By the suffix that metrics measured there carry. The last is a classifier of its own.
RIVALS = {
    "_cut": Rival("ff_cut", "first m dims"),
    "_random": Rival("ff_random", "random m dims"),
    "_rotation": Rival("ff_rotation", "random rotation to m"),
    # It centres, which cosines notice and linear classifiers do not.
    "_pca": Rival("ff_pca", "PCA to m", r"\d*k?nn\d*|(map|p|r)\d+|(ncm|tail)_.*"),
    "_svd": Rival("ff_svd", "SVD of head to m"),
}
# Metrics that stand in the table of another: the paper's "Rand. LP" beside the trained heads.
GUESTS = {"top1": {"probe_random": Rival("ff_probe", "probe on random dims", ".*")}}

# The number every split of a measure is about, in the order of importance.
_TITLES = {
    "top1": Metric("Linear top-1"),
    "1nn": Metric("1-NN"),
    "map10": Metric("Retrieval, mAP@10", "mAP@10"),
    "knn20": Metric("20-NN"),
    "probe": Metric("Linear probe"),
    "top1_flip": Metric("Linear top-1, mirrored as well"),
    "top5": Metric("Linear top-5"),
    "top5_flip": Metric("Linear top-5, mirrored as well"),
    "superclass": Metric("Superclass"),
    "superclass_reject": Metric("Superclass or none"),
    "ece": Metric("Expected calibration error", "expected calibration error", True),
    "vote": Metric("Vote of all granularities"),
    "oracle": Metric("Best granularity per example"),
    "match": Metric("Partner found among all of the split"),
    "masked_accuracy": Metric("Hidden tokens"),
    "masked_probability": Metric("Hidden tokens, 1 / perplexity", "1 / perplexity"),
    "spearman": Metric("Similarity, Spearman", "Spearman correlation with people's scores"),
    "pearson": Metric("Similarity, Pearson", "Pearson correlation with people's scores"),
    "ndcg10": Metric("Retrieval, nDCG@10", "nDCG@10"),
    "overlap10": Metric("Nearest neighbours kept", "share of the 10 nearest by whole vectors"),
    "cosine_spearman": Metric("Cosines kept, Spearman", "Spearman correlation of cosines"),
    "top1_clean": Metric("Linear top-1, clean examples of these classes"),
}
_PATTERNS = (
    (r"map(\d+)", "Retrieval, mAP@{}", "mAP@{}"),
    (r"p(\d+)", "Retrieval, precision@{}", "precision@{}"),
    (r"r(\d+)", "Retrieval, recall@{}", "recall@{}"),
    (r"knn(\d+)", "{}-NN", "accuracy"),
    (r"ncm_allway_(\d+)shot", "Few-shot class means, all classes, {}-shot", "accuracy"),
    (r"ncm_(\d+)way_(\d+)shot", "Few-shot class means, {}-way {}-shot", "accuracy"),
    (r"tail_(\w+?)_(head|tail)", "Long tail, {} {}", "accuracy"),
)


def legal_range(name: str) -> tuple[float, float]:
    """Between which numbers a metric lies; most are fractions."""
    base, _ = split_rival(layer_of(name)[0])
    if base.endswith("retention"):
        return -math.inf, math.inf  # a prefix may be better than the whole
    return (-1, 1) if base.endswith(("spearman", "pearson")) else (0, 1)


def layer_of(name: str) -> tuple[str, int | None]:
    """ "spearman_layer3" -> ("spearman", 3); "spearman" -> ("spearman", None), after all layers."""
    base, layer, number = name.partition("_layer")
    return (base, int(number)) if layer and number.isdecimal() else (name, None)


def split_rival(name: str) -> tuple[str, str]:
    """ "1nn_pca" -> ("1nn", "_pca"); "1nn" -> ("1nn", "")."""
    for suffix in RIVALS:
        if name.endswith(suffix) and name != suffix:
            return name.removesuffix(suffix), suffix
    return name, ""


def is_known(name: str) -> bool:
    """Whether `describe` has words of its own for it."""
    base, _ = split_rival(name)
    return base in _TITLES or any(re.fullmatch(pattern, base) for pattern, _, _ in _PATTERNS)


def describe(name: str) -> Metric:
    """The reading of a metric; of one that is not known here, its name."""
    if name in _TITLES:
        return _TITLES[name]
    for pattern, title, noun in _PATTERNS:
        if found := re.fullmatch(pattern, name):
            return Metric(title.format(*found.groups()), noun.format(*found.groups()))
    return Metric(name, name)


def order(name: str) -> tuple:
    """Sorts metrics: the most telling first, numbers inside names as numbers."""
    known = list(_TITLES)
    parts = tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    )
    return (known.index(name) if name in known else len(known), parts)
