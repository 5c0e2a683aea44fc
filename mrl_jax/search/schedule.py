"""What an adaptive search does: how many dims, for how many candidates (arXiv 2205.13147, 4.3)."""

import dataclasses
import itertools
import operator
import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

Metric = Literal["cosine", "inner", "l2"]


class Stage(NamedTuple):
    """Candidates are compared by their first `dim` dims, and the best `keep` of them go on."""

    dim: int
    keep: int


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Find with few dims, decide with many.

    The first stage compares all rows, each later one what the one before has kept, and the last
    comparison, by `final` dims, gives the result. Without stages the search is exact. As text:
    "16:200 > 2048", or "8:800 > 16:400 > 32:200 > 2048".

    Attributes:
      stages: dims strictly rising, numbers kept never rising.
      final: dims of the last comparison. The last stage may have as many: it finds by codes or a
        graph of them what the last comparison decides by numbers.

    Raises:
      ValueError: stages that break these rules.
    """

    stages: tuple[Stage, ...]
    final: int

    def __post_init__(self):
        stages = tuple(Stage(*map(operator.index, stage)) for stage in self.stages)
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "final", operator.index(self.final))
        dims = self.dims
        rising = all(a < b for a, b in itertools.pairwise(dims[:-1])) and dims[-1] == max(dims)
        if dims[0] < 1 or not rising:
            raise ValueError(f"dims of a schedule must rise strictly from at least 1, got {dims}")
        keeps = tuple(stage.keep for stage in stages)
        if any(keep < 1 for keep in keeps) or any(a < b for a, b in itertools.pairwise(keeps)):
            raise ValueError(f"a schedule must keep at least 1 and never more again, got {keeps}")

    @property
    def dims(self) -> tuple[int, ...]:
        """The prefixes compared, the final one included."""
        return (*(stage.dim for stage in self.stages), self.final)

    def check(self, k: int, width: int) -> None:
        """Checks that a search of vectors of this width can give k results.

        Raises:
          ValueError: it cannot.
        """
        if k < 1 or (self.stages and k > self.stages[-1].keep):
            most = f"{self.stages[-1].keep}, which {self} keeps" if self.stages else "all rows"
            raise ValueError(f"k must be 1 to {most}; got {k}")
        if self.final > width:
            raise ValueError(f"{self} needs {self.final} dims; the vectors have {width}")

    def multiply_adds(self, rows: int) -> int:
        """Of one query: a candidate costs only the dims that it was not compared by before."""
        counts = (rows, *(stage.keep for stage in self.stages))
        blocks = (b - a for a, b in itertools.pairwise((0, *self.dims)))
        return sum(min(count, rows) * block for count, block in zip(counts, blocks, strict=True))

    def __str__(self) -> str:
        return " > ".join((*(f"{s.dim}:{s.keep}" for s in self.stages), str(self.final)))

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """The schedule that this text describes.

        Raises:
          ValueError: it does not describe one.
        """
        *stages, final = (part.strip() for part in text.split(">"))
        if not re.fullmatch(r"\d+", final) or not all(re.fullmatch(r"\d+:\d+", s) for s in stages):
            raise ValueError(f"a schedule reads like '16:200 > 2048', got {text!r}")
        return cls(tuple(Stage(*map(int, s.split(":"))) for s in stages), int(final))

    @classmethod
    def exact(cls, dim: int) -> "Schedule":
        """Compares all rows by their first `dim` dims."""
        return cls((), dim)

    @classmethod
    def adaptive(cls, shortlist_dim: int, keep: int, rerank_dim: int) -> "Schedule":
        """A shortlist of K = `keep` rows by Ds dims, ranked again by Dr (paper, section 4.3.2)."""
        return cls((Stage(shortlist_dim, keep),), rerank_dim)

    @classmethod
    def funnel(cls, dims: Iterable[int], keep: int, k: int = 10) -> "Schedule":
        """A stage at every dim but the last; the number kept falls from `keep` by equal factors.

        It reaches 2 k in the last stage. The paper's own funnel halves: `parse("8:200 > 16:100 >
        32:50 > 64:25 > 128:10 > 2048")`.

        Raises:
          ValueError: no dims, dims that do not rise, or nothing kept.
        """
        *short, final = dims
        if keep < 1 or k < 1:
            raise ValueError(f"a funnel keeps at least 1, for k of at least 1; got {keep}, {k}")
        last = min(keep, 2 * k)
        ratio = (last / keep) ** (1 / max(len(short) - 1, 1))
        keeps = [max(last, round(keep * ratio**i)) for i in range(len(short))]
        return cls(tuple(map(Stage, short, keeps)), final)
