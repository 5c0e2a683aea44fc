"""The list of granularities: which prefixes of an embedding are trained, and with what weight."""

import dataclasses
import itertools
import math
import operator
from collections.abc import Sequence

from mrl_jax.errors import shown


def _as_dim(value: object) -> int:
    # bool is an int to Python; nobody means True as a dimension.
    if isinstance(value, bool):
        raise ValueError(f"nesting dims must be integers, got {shown(value)}")
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"nesting dims must be integers, got {shown(value)}") from None


@dataclasses.dataclass(frozen=True)
class Nesting:
    """The prefix lengths m_1 < ... < m_G of one embedding and their loss weights c_m.

    Frozen and hashable, so it may be a static argument of a jitted function and a field of a
    Flax module. Notation of the paper (arXiv 2205.13147, eq. 1): `dims` is M, `weights` is c_m.

    Attributes:
      dims: strictly increasing positive integers; the last is the full nested width.
      weights: one finite number >= 0 per dim, not all zero; 1 each where not given.

    Raises:
      ValueError: names the value that breaks one of these rules.
    """

    dims: tuple[int, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self):
        if isinstance(self.dims, (str, int)) or not hasattr(self.dims, "__iter__"):
            raise ValueError(f"nesting dims must be a list of integers, got {shown(self.dims)}")
        dims = tuple(_as_dim(m) for m in self.dims)
        if not dims:
            raise ValueError("nesting dims must name at least one granularity, got ()")
        if dims[0] < 1:
            raise ValueError(f"nesting dims must be >= 1, got {dims[0]} in {shown(dims)}")
        for smaller, larger in itertools.pairwise(dims):
            if larger <= smaller:
                raise ValueError(
                    f"nesting dims must be strictly increasing, got {larger} after {smaller} "
                    f"in {shown(dims)}"
                )
        given = (1.0,) * len(dims) if self.weights is None else self.weights
        try:
            weights = tuple(float(c) for c in given)
        except (TypeError, ValueError):
            raise ValueError(f"nesting weights must be numbers, got {shown(given)}") from None
        if len(weights) != len(dims):
            raise ValueError(
                f"nesting weights must be one per dim: {len(dims)} dims {shown(dims)}, "
                f"{len(weights)} weights {shown(weights)}"
            )
        for m, c in zip(dims, weights, strict=True):
            if not math.isfinite(c) or c < 0:
                raise ValueError(f"nesting weights must be finite and >= 0, got {c} for dim {m}")
        if not any(weights):
            raise ValueError(f"nesting weights must not all be zero, got {weights}")
        object.__setattr__(self, "dims", dims)
        object.__setattr__(self, "weights", weights)

    def __len__(self) -> int:
        """The number of granularities, G."""
        return len(self.dims)

    @property
    def width(self) -> int:
        """The largest granularity: how many embedding dims the nesting covers."""
        return self.dims[-1]

    def with_dims_between(self) -> "Nesting":
        """This nesting plus one never-trained dim halfway between each pair of neighbours.

        For powers of two these are the paper's interpolated granularities 12, 24, ..., 1536
        (section 4.1). For evaluation: all weights are 1.
        """
        middles = ((a + b) // 2 for a, b in itertools.pairwise(self.dims))
        return Nesting(tuple(sorted({*self.dims, *middles})))


def blocks_of(dims: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The half-open dim ranges (m_{g-1}, m_g) that each granularity adds to the one before."""
    return tuple(zip((0, *dims[:-1]), dims, strict=True))


def powers_of_two(start: int, width: int) -> Nesting:
    """The dims start, 2 start, 4 start, ... that end exactly at `width` (paper: 8 ... 2048).

    Raises:
      ValueError: `start` is not a power of two, or `width` not one that is >= `start`.
    """
    start, width = _as_dim(start), _as_dim(width)
    for name, value in (("start", start), ("width", width)):
        if value < 1 or value & (value - 1):
            raise ValueError(f"{name} must be a power of two, got {value}")
    if width < start:
        raise ValueError(f"width must be >= start, got start={start}, width={width}")
    return Nesting(tuple(2**k for k in range(start.bit_length() - 1, width.bit_length())))


def halvings(width: int, count: int) -> Nesting:
    """`count` dims by halving from `width` down (768, 7 -> 12, 24, ..., 768, as for ViT and BERT).

    Raises:
      ValueError: `width` cannot be halved evenly `count - 1` times.
    """
    width, count = _as_dim(width), _as_dim(count)
    if width < 1 or count < 1:
        raise ValueError(f"width and count must be >= 1, got width={width}, count={count}")
    if width % 2 ** (count - 1):
        raise ValueError(f"width {width} cannot be halved evenly {count - 1} times")
    return Nesting(tuple(width >> k for k in reversed(range(count))))


def uniform(start: int, width: int, count: int) -> Nesting:
    """`count` evenly spaced dims from `start` to `width`, rounded down (paper, appendix K.1).

    Raises:
      ValueError: fewer than two dims, or so many that two would round to the same value.
    """
    start, width, count = _as_dim(start), _as_dim(width), _as_dim(count)
    if count < 2:
        raise ValueError(f"uniform nesting needs count >= 2, got {count}")
    if width - start < count - 1:
        raise ValueError(f"{count} different dims do not fit between {start} and {width}")
    return Nesting(tuple(start + k * (width - start) // (count - 1) for k in range(count)))


def parse_dims(dims: Sequence[int], weights: Sequence[float], embedding_dim: int) -> Nesting:
    """A nesting as a config has it (no weights: all 1), checked against the embedding.

    Raises:
      ValueError: as `Nesting`, or the largest dim is wider than the embedding.
    """
    nesting = Nesting(dims, weights or None)
    if nesting.width > embedding_dim:
        raise ValueError(
            f"nesting dim {nesting.width} is wider than the embedding ({embedding_dim} dims)"
        )
    return nesting
