"""How an index is built and searched; a plan file holds this and what was measured."""

import dataclasses
import itertools
import pathlib
from typing import Any, Literal, get_args

import numpy as np

from mrl_jax.errors import DataError, shown
from mrl_jax.search.schedule import Metric, Schedule
from mrl_jax.store import json_files

Code = Literal["float32", "bfloat16", "float16", "int8", "binary"]
SCHEMA = 1
# Of the queries that a plan was made with: where their scores are cut.
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def places(queries: int) -> np.ndarray:
    """Which of so many rising scores are those at `SHARES`; 1 is the first."""
    return np.maximum(1, np.ceil(np.multiply(SHARES, queries))).astype(int)


@dataclasses.dataclass(frozen=True)
class Asked:
    """How the queries score that a plan was made with, to whose like alone it promises a recall.

    Attributes:
      queries: how many there were.
      k: neighbours that were asked for.
      recall: of these, as promised.
      scores: of the nearest vectors, at `SHARES` of the queries: cosine, product with the query's
        direction, or minus the squared distance.

    Raises:
      ValueError: numbers that cannot be.
    """

    queries: int
    k: int
    recall: float
    scores: tuple[float, ...]

    def __post_init__(self):
        object.__setattr__(self, "scores", tuple(map(float, self.scores)))
        whole = all(type(value) is int and value > 0 for value in (self.queries, self.k))
        rising = all(a <= b for a, b in itertools.pairwise(self.scores))  # of NaN none is
        legal = whole and rising and len(self.scores) == len(SHARES) and 0 <= self.recall <= 1
        if not legal:
            raise ValueError(f"no queries score like {shown(dataclasses.asdict(self))}")

    @classmethod
    def of(cls, score_b: np.ndarray, k: int, recall: float) -> "Asked":
        """Of the scores of all queries."""
        score_s = np.sort(score_b)[places(len(score_b)) - 1]
        return cls(len(score_b), k, recall, tuple(score_s.tolist()))


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to find with few dims and decide with many.

    All stages but the final comparison, which reads whole float32 vectors, read codes of their
    dims. The first stage reads those of all rows; or those in the lists of the `probes` nearest
    of `lists` clusters of the first `list_dim` dims (AdANNS-IVF, arXiv 2305.19435: clusters and
    scan have a dim each); or it is left to a graph of rabitqlib or an index of faiss over its dims.

    Dims of stages and clusters are the first ones of vectors, or, of vectors that were not trained
    to be cut, those along their principal directions.

    Attributes:
      schedule: dims and numbers of candidates.
      metric: "cosine", "inner" or "l2", of every prefix.
      code: of a dim, in 4, 2, 2 or 1 bytes, or in 1 bit. int8 and binary have a scale for
        every row and stage.
      lists: 1 = no clusters.
      list_dim: dims that are clustered.
      probes: lists read for a query.
      factory: an index over the dims of the only stage: "SymphonyQG32,8" for a graph of 32 links
        a row and 8 bits a dim (or 4, or 0 for numbers as they are), or what
        `faiss.index_factory` makes, e.g. "HNSW32" or "OPQ32,IVF1024,PQ32x4fs"; empty = our own
        scan.
      parameters: of searches of that index, e.g. "ef=64" rows in view, "nprobe=32" or
        "efSearch=200".
      rotated: whether stages compare principal directions in place of first dims.
      asked: how the queries score that it was made with; None if it was not measured, or is exact.

    Raises:
      ValueError: values that do not go together.
    """

    schedule: Schedule
    metric: Metric = "cosine"
    code: Code = "float32"
    lists: int = 1
    list_dim: int = 0
    probes: int = 1
    factory: str = ""
    parameters: str = ""
    rotated: bool = False
    asked: Asked | None = None

    def __post_init__(self):
        for name, legal in (("metric", get_args(Metric)), ("code", get_args(Code))):
            if (value := getattr(self, name)) not in legal:
                raise ValueError(f"{name} must be one of {', '.join(legal)}; got {value!r}")
        if not 1 <= self.probes <= self.lists:
            raise ValueError(f"probes must be 1 to lists = {self.lists}, got {self.probes}")
        if self.lists > 1 and not 1 <= self.list_dim <= self.schedule.final:
            raise ValueError(f"list_dim must be 1 to {self.schedule.final}, got {self.list_dim}")
        if self.lists > 1 and not self.schedule.stages:
            raise ValueError(f"lists need a schedule with a shortlist, got {self.schedule}")
        if self.factory and (self.lists > 1 or len(self.schedule.stages) != 1):
            raise ValueError("factory needs a schedule with one shortlist, and no lists beside it")
        if self.parameters and not self.factory:
            raise ValueError(f"parameters are of a factory, there is none; got {self.parameters!r}")
        if self.rotated and not self.schedule.stages:
            raise ValueError(f"rotated dims need a schedule with a shortlist, got {self.schedule}")
        if self.code == "binary" and any(stage.dim % 8 for stage in self.schedule.stages):
            raise ValueError(f"binary codes need multiples of 8 dims, got {self.schedule}")

    def to_json(self) -> dict[str, Any]:
        """As `from_json` takes it."""
        return {**dataclasses.asdict(self), "schedule": str(self.schedule)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Plan":
        """The plan of a file's content.

        Raises:
          ValueError: an unknown key or an illegal value.
        """
        if not isinstance(content, dict):
            raise ValueError(f"a plan is a JSON object, got {shown(content)}")
        known = {field.name for field in dataclasses.fields(cls)}
        if strange := sorted(content.keys() - known):
            raise ValueError(f"a plan has no {', '.join(strange)}")
        if not isinstance(content.get("schedule"), str):
            raise ValueError("a plan needs a schedule")
        for field in dataclasses.fields(cls):
            kind = {int: "a whole number", str: "text", bool: "true or false"}.get(field.type)
            value = content.get(field.name, field.default)
            if kind and type(value) is not field.type:
                raise ValueError(f"{field.name} must be {kind}, got {value!r}")
        asked = content.get("asked")
        if asked is not None:
            try:
                asked = Asked(**asked)
            except (TypeError, ValueError):
                raise ValueError(f"asked holds no scores of queries: {shown(asked)}") from None
        return cls(**{**content, "schedule": Schedule.parse(content["schedule"]), "asked": asked})


def read_plan(path: pathlib.Path) -> Plan:
    """The plan in a file that `mrl_jax.search plan` wrote.

    Raises:
      DataError: it cannot be read, or is not a plan.
    """
    content = json_files.read(path)
    try:
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise ValueError(f"not a plan of schema {SCHEMA}")
        return Plan.from_json(content.get("plan"))
    except ValueError as error:
        raise DataError(f"cannot read the plan {path}: {error}") from None
