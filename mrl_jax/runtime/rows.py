"""Rows in, embeddings out: the one way over batches, whatever they hold and wherever they run."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from mrl_jax.errors import NonFiniteError

Batch = Mapping[str, Any]
Embed = Callable[..., Any]  # a batch to embeddings [B, D], on a device or on the host


def gathered(
    results: Iterable[tuple[np.ndarray, Any]],
    count: int,
    each: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda row_b, x_b: x_b,
    progress: Callable[[int], Any] = lambda rows: None,
) -> Any:
    """What was computed of batches, on the host and in the order of the rows: [count, ...].

    Args:
      results: of each batch the numbers [B] of its rows, and arrays (or a tree of arrays) of at
        least B rows; what comes after them is padding.
      count: of rows.
      each: from the numbers and the result [B, ...] of a batch to what is kept of it.
      progress: is told how many more rows are done.

    Returns:
      Arrays, or a tree of arrays, as `results` has.
    """
    whole = None
    for row_b, found in results:
        parts, tree = jax.tree.flatten(jax.device_get(found))
        parts = [each(row_b, np.asarray(x)[: len(row_b)]) for x in parts]
        if whole is None:
            whole = [np.empty((count, *x_b.shape[1:]), x_b.dtype) for x_b in parts]
        for x_n, x_b in zip(whole, parts, strict=True):
            x_n[row_b] = x_b
        progress(len(row_b))
    if whole is None:
        raise ValueError("there are no batches")
    return jax.tree.unflatten(tree, whole)


def one_ahead(results: Iterable[Any]) -> Iterator[Any]:
    """The same results, each when the next one has begun: it is computed while this one is used."""
    waiting: list[Any] = []
    for result in results:
        yield from waiting
        waiting = [result]
    yield from waiting


def in_order(batches: Iterable[Batch], count: int) -> Iterator[tuple[np.ndarray, Batch]]:
    """Batches of all rows in their order, each with the numbers of its rows; the last is padded."""
    first = 0
    for batch in batches:
        last = min(count, first + len(next(iter(batch.values()))))
        yield np.arange(first, last), batch
        first = last


def in_batches(compute: Callable[[Batch], Any], batches: Iterable[Batch], count: int) -> Any:
    """What `compute` makes of all rows, [count, ...]: see `gathered`; batches as of `in_order`."""
    results = ((row_b, compute(batch)) for row_b, batch in in_order(batches, count))
    return gathered(results, count)


def unit_length(z_nd: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, float32; a row of zeros stays one."""
    # In float64 no square overflows, and none but that of 0 is 0.
    norm_n1 = np.linalg.norm(z_nd.astype(np.float64), axis=1, keepdims=True)
    return (z_nd / np.where(norm_n1 > 0, norm_n1, 1)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Rows:
    """What is to be embedded.

    Attributes:
      count: N.
      read: (first, last, batch size, sharding) to batches of rows first to last - 1, each with the
        numbers of its rows, counted from `first`.
      names: of the rows, where they have any.
      ids: [N] int64; None: 0 to N - 1.
      source: gives a text that tells them from all others.
      notes: lines on what is not read.
    """

    count: int
    read: Callable[..., Iterator[tuple[np.ndarray, Batch]]]
    names: tuple[str, ...] | None = None
    ids: np.ndarray | None = None
    source: Callable[[], str] = str
    notes: tuple[str, ...] = ()

    def results(self, embed: Embed, *span: Any) -> Iterator[tuple[np.ndarray, Any]]:
        """What `embed` makes of each batch that `read` gives."""
        return ((row_b, embed(batch)) for row_b, batch in self.read(*span))


def embedded(
    embed: Embed,
    rows: Rows,
    dim: int,
    *span: Any,
    unit: str = "row",
    normalize: bool = False,
    scaled: bool = False,
    progress: Callable[[int], Any] = lambda rows: None,
) -> np.ndarray:
    """The embeddings of rows, [last - first, dim] float32, the same on every process.

    Args:
      embed: a batch to embeddings [B, >= dim].
      rows: what is embedded.
      dim: length of the prefix that is kept.
      *span: first row, the row after the last, and the other arguments of `Rows.read`.
      unit: what one of the rows is called in messages.
      normalize: scale to unit length, after cutting; zeros stay zeros.
      scaled: where that is not done, scale the whole embedding, before cutting.
      progress: is told how many more rows are done.

    Raises:
      NonFiniteError: NaN or infinity; names the row.
    """
    first, last, *_ = span

    def each(row_b, z_bd):
        z_bd = z_bd.astype(np.float32)
        if scaled and not normalize:
            z_bd = unit_length(z_bd)
        z_bd = z_bd[:, :dim]
        bad_b = ~np.isfinite(z_bd).all(1)
        if bad_b.any():
            row = first + int(row_b[bad_b].min())
            name = f" ({rows.names[row]})" if rows.names else ""
            raise NonFiniteError(f"the embedding of {unit} {row}{name} holds NaN or infinity")
        return unit_length(z_bd) if normalize else z_bd

    if first == last:
        return np.empty((0, dim), np.float32)
    return gathered(rows.results(embed, *span), last - first, each, progress)
