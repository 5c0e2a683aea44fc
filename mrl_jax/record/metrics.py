"""The table of metrics: what each is called, its unit, direction and range; and embedding spaces.

The names of families of metrics, such as "map10", are made and read here alone.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mrl_jax.errors import DataError, shown


class Metric(NamedTuple):
    """A row of the table.

    Attributes:
      title: as a heading, "Linear top-1".
      noun: what the number is, "accuracy".
      lower_is_better: as of an error.
      low, high: between which numbers it lies; None = no bound. Most are fractions.
      percent: people read it in percent, and differences in points; else as it is.
      family: metrics of one family are reported together.
      unit: what a value is the mean of: "examples", "photos", "episodes" or "streams".
      headline: it is printed after training.
      by_cosine: it compares vectors by cosine, which changes when the mean is taken off.
    """

    title: str
    noun: str = "accuracy"
    lower_is_better: bool = False
    low: float | None = 0.0
    high: float | None = 1.0
    percent: bool = True
    family: str = ""
    unit: str = "examples"
    headline: bool = False
    by_cosine: bool = False

    def allows(self, value: float) -> bool:
        """Whether a value lies in the range."""
        return (self.low is None or self.low <= value) and (self.high is None or value <= self.high)

    @property
    def scale(self) -> int:
        """What a value is multiplied by where people read it."""
        return 100 if self.percent else 1

    @property
    def legal(self) -> str:
        """The range in words."""
        if (self.low, self.high) == (0, 1):
            return "a fraction in [0, 1]"
        low, high = ("any" if end is None else f"{end:g}" for end in (self.low, self.high))
        return f"in [{low}, {high}]"


@dataclasses.dataclass(frozen=True)
class Family:
    """Metrics that differ in numbers or words: `Family("map{:d}", ...)(10)` is "map10".

    `row` has a "{}" in title and noun for each of them.
    """

    template: str
    row: Metric

    def __call__(self, *values: int | str) -> str:
        """The name of a metric."""
        return self.template.format(*values)

    def read(self, name: str) -> Metric | None:
        """The row of a name; None of a name that is not of this family."""
        pattern = self.template.replace("{:d}", r"(\d+)").replace("{:s}", "([a-z]+)")
        found = re.fullmatch(pattern, name)
        if not found:
            return None
        title, noun = (text.format(*found.groups()) for text in (self.row.title, self.row.noun))
        return self.row._replace(title=title, noun=noun)


_NEAREST = {"family": "neighbours", "by_cosine": True}
_RETRIEVAL = {"family": "retrieval", "by_cosine": True}
_SIMILARITY = {"low": -1.0, "family": "similarity"}
_FEW_SHOT = {"family": "few_shot", "unit": "episodes", "by_cosine": True}
_KEPT = {"low": None, "high": None}  # a prefix may be better than the whole
_CROSS_MODAL = {"unit": "photos", "by_cosine": True}
_RANK = {"lower_is_better": True, "low": 1.0, "high": None, "percent": False, **_CROSS_MODAL}

TOP = Family("top{:d}", Metric("Linear top-{}", family="top"))
TOP_FLIP = Family("top{:d}_flip", Metric("Linear top-{}, mirrored as well", family="top"))
KNN = Family("knn{:d}", Metric("{}-NN", **_NEAREST))
MAP = Family("map{:d}", Metric("Retrieval, mAP@{}", "mAP@{}", **_RETRIEVAL))
PRECISION = Family("p{:d}", Metric("Retrieval, precision@{}", "precision@{}", **_RETRIEVAL))
RECALL = Family("r{:d}", Metric("Retrieval, recall@{}", "recall@{}", **_RETRIEVAL))
NCM = Family("ncm_{:d}way_{:d}shot", Metric("Few-shot class means, {}-way {}-shot", **_FEW_SHOT))
NCM_ALL = Family(
    "ncm_allway_{:d}shot", Metric("Few-shot class means, all classes, {}-shot", **_FEW_SHOT)
)
TAIL = Family(
    "tail_{:s}_{:s}",
    Metric("Long tail, {} {}", family="long_tail", unit="streams", by_cosine=True),
)
NDCG = Family("ndcg{:d}", Metric("Retrieval, nDCG@{}", "nDCG@{}", family="search", headline=True))
NDCG_KEPT = Family(
    "ndcg{:d}_retention",
    Metric("Retrieval, nDCG@{} kept", "share of the nDCG@{} of all dims", family="search", **_KEPT),
)
MRR = Family("mrr{:d}", Metric("Retrieval, MRR@{}", "MRR@{}", family="search"))
FOUND = Family("recall{:d}", Metric("Retrieval, recall@{}", "recall@{}", family="search"))
OVERLAP = Family(
    "overlap{:d}",
    Metric(
        "Nearest neighbours kept",
        "share of the {} nearest by whole vectors",
        family="preservation",
        headline=True,
    ),
)
PHOTO_FOUND = Family(
    "text_to_image_recall{:d}",
    Metric("Text to image, recall@{}", "recall@{}", family="photo_search", **_CROSS_MODAL),
)
CAPTION_FOUND = Family(
    "image_to_text_recall{:d}",
    Metric("Image to text, recall@{}", "recall@{}", family="caption_search", **_CROSS_MODAL),
)
FAMILIES = (
    *(TOP, TOP_FLIP, KNN, MAP, PRECISION, RECALL, NCM, NCM_ALL, TAIL),
    *(NDCG, NDCG_KEPT, MRR, FOUND, OVERLAP, PHOTO_FOUND, CAPTION_FOUND),
)
PHOTO_RANK, CAPTION_RANK = "text_to_image_median_rank", "image_to_text_median_rank"


def _of(family: Family, number: int, **changes: Any) -> dict[str, Metric]:
    name = family(number)
    return {name: family.read(name)._replace(**changes)}


# In the order of importance.
ROWS: Mapping[str, Metric] = {
    **_of(TOP, 1, headline=True),
    "1nn": Metric("1-NN", headline=True, **_NEAREST),
    **_of(MAP, 10),
    **_of(KNN, 20),
    "probe": Metric("Linear probe", family="probe"),
    **_of(TOP_FLIP, 1),
    **_of(TOP, 5),
    **_of(TOP_FLIP, 5),
    "superclass": Metric("Superclass", family="superclass"),
    "superclass_reject": Metric("Superclass or none", family="superclass"),
    "ece": Metric(
        "Expected calibration error", "expected calibration error", True, family="calibration"
    ),
    "vote": Metric("Vote of all granularities", family="agreement"),
    "oracle": Metric("Best granularity per example", family="agreement"),
    "match": Metric("Partner found among all of the split", family="match", headline=True),
    **_of(PHOTO_FOUND, 1, headline=True),
    **_of(CAPTION_FOUND, 1, headline=True),
    "zero_shot": Metric("Zero-shot", family="zero_shot", headline=True, by_cosine=True),
    PHOTO_RANK: Metric("Text to image, median rank", "median rank", family="photo_search", **_RANK),
    CAPTION_RANK: Metric(
        "Image to text, median rank", "median rank", family="caption_search", **_RANK
    ),
    "caption_1nn": Metric(
        "Nearest other caption is of the same photo", family="caption_neighbours", **_CROSS_MODAL
    ),
    "masked_accuracy": Metric("Hidden tokens", family="masked", headline=True),
    "masked_probability": Metric(
        "Hidden tokens, 1 / perplexity", "1 / perplexity", family="masked"
    ),
    "spearman": Metric(
        "Similarity, Spearman",
        "Spearman correlation with people's scores",
        headline=True,
        **_SIMILARITY,
    ),
    "pearson": Metric(
        "Similarity, Pearson", "Pearson correlation with people's scores", **_SIMILARITY
    ),
    "retention": Metric(
        "Similarity kept",
        "share of the Spearman correlation of all dims",
        family="similarity",
        **_KEPT,
    ),
    **_of(NDCG, 10),
    **_of(OVERLAP, 10),
    "cosine_spearman": Metric(
        "Cosines kept, Spearman", "Spearman correlation of cosines", low=-1.0, family="preservation"
    ),
    "logreg": Metric("Logistic regression", family="text_classes"),
    "v_measure": Metric("Clusters, V-measure", "V-measure", family="text_clusters"),
    "top1_clean": Metric("Linear top-1, clean examples of these classes", family="clean"),
}


def row(name: str) -> Metric | None:
    """The row of a metric; None of one that is not in the table."""
    rows = (family.read(name) for family in FAMILIES)
    return ROWS.get(name) or next((found for found in rows if found), None)


def describe(name: str, others: Mapping[str, Metric] | None = None) -> Metric:
    """The row of a metric, or what `others` say of it; of an unknown one just its name."""
    unknown = Metric(name, name, low=None, high=None)
    return row(name) or (others or {}).get(name, unknown)


def read_rows(values: Any, where: str) -> dict[str, Metric]:
    """Rows from a JSON file, by the name of the metric.

    Raises:
      DataError: they are damaged; names `where`.
    """
    legal = {field: type(value) for field, value in Metric("", "")._asdict().items()}
    found = {}
    for name, content in values.items():
        try:
            metric = Metric(**content)
        except TypeError:
            raise DataError(f"{where}: the row of {shown(name)} is damaged") from None
        for field, value in metric._asdict().items():
            number = legal[field] is float
            if not isinstance(value, (int, float, type(None)) if number else legal[field]):
                raise DataError(f"{where}: {field} of {shown(name)} is damaged: {shown(value)}")
        found[name] = metric
    return found


def order(name: str) -> tuple:
    """Sorts metrics: the most telling first, numbers inside names as numbers."""
    known = list(ROWS)
    parts = tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    )
    return (known.index(name) if name in known else len(known), parts)


TRAINED = "trained"


class Rival(NamedTuple):
    """A way to get m dims out of an embedding that was not trained for it.

    Attributes:
      role: of its curves.
      label: after the name of the embedding, "FF-64, PCA to m".
      centres: it takes the mean off, so that cosines differ even at the full width.
    """

    role: str
    label: str
    centres: bool = False


# The spaces beside `TRAINED`.
RIVALS = {
    "cut": Rival("ff_cut", "first m dims"),
    "random": Rival("ff_random", "random m dims"),
    "rotation": Rival("ff_rotation", "random rotation to m"),
    "pca": Rival("ff_pca", "PCA to m", centres=True),
    "svd": Rival("ff_svd", "SVD of head to m"),
}
SPACES = (TRAINED, *RIVALS)
# What stands in the table of another metric: the paper's "Rand. LP" beside the trained heads.
GUESTS = {"top1": {("probe", "random"): Rival("ff_probe", "probe on random dims")}}
