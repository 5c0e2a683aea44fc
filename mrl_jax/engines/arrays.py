"""Checks of what goes into an engine, the same for all of them."""

from collections.abc import Iterable, Iterator
from typing import get_args

import numpy as np

from mrl_jax.errors import DataError, UsageError
from mrl_jax.search.schedule import Metric, Schedule
from mrl_jax.store import ids

Chunk = tuple[np.ndarray, np.ndarray]
_BLOCK_BYTES = 2**22  # of vectors sent at a time: far below what servers take in one message


def checked_blocks(chunks: Iterable[Chunk], schedule: Schedule) -> tuple[int, Iterator[Chunk]]:
    """The same rows in blocks of at most 4 MB, checked as they come.

    Args:
      chunks: (ids_n integers, z_nd floating point), all of one width; z_nd may be memory-mapped.
      schedule: what they will be searched by.

    Returns:
      The width D, and an iterator of (ids_n int64, z_nd float32 [n, D]).

    Raises:
      UsageError: the schedule needs more dims.
      DataError: no rows, ids or vectors of another form, NaN or infinity. The iterator raises it,
        too.
    """
    blocks = _blocks(chunks)
    first = next(blocks, None)
    if first is None:
        raise DataError("there are no vectors to load")
    width = first[1].shape[1]
    if schedule.final > width:
        raise UsageError(f"{schedule} needs {schedule.final} dims; the vectors have {width}")

    def all_blocks():
        yield first
        yield from blocks

    return width, all_blocks()


def _blocks(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    width = None
    for ids_n, z_nd in chunks:
        ids_n = ids.as_int64(np.asarray(ids_n), "a chunk")
        if z_nd.ndim != 2 or not np.issubdtype(z_nd.dtype, np.floating) or not z_nd.shape[1]:
            raise DataError(f"vectors must be [N, D] floating point, got {z_nd.dtype} {z_nd.shape}")
        width = width or z_nd.shape[1]
        if z_nd.shape != (len(ids_n), width):
            raise DataError(
                f"{len(ids_n)} ids need vectors {(len(ids_n), width)}, got {z_nd.shape}"
            )
        rows = max(_BLOCK_BYTES // (4 * width), 1)
        for start in range(0, len(ids_n), rows):
            block_n = ids_n[start : start + rows]
            with np.errstate(over="ignore"):  # beyond float32 is infinity, which is refused
                block_nd = np.asarray(z_nd[start : start + rows], np.float32)
            finite_n = np.isfinite(block_nd).all(1)
            if not finite_n.all():
                bad = block_n[finite_n.argmin()]
                raise DataError(f"the vector with id {bad} holds NaN or infinity (as float32)")
            yield block_n, block_nd


def checked_queries(queries_bd: np.ndarray, k: int, schedule: Schedule, width: int) -> np.ndarray:
    """The queries as float32.

    Raises:
      UsageError: not [>= 1, width] floating point, or a schedule or k that cannot be.
      DataError: NaN or infinity.
    """
    try:
        schedule.check(k, width)
    except ValueError as error:
        raise UsageError(str(error)) from error
    shape, dtype = queries_bd.shape, queries_bd.dtype
    if (
        len(shape) != 2
        or shape[0] < 1
        or shape[1] != width
        or not np.issubdtype(dtype, np.floating)
    ):
        raise UsageError(f"queries must be [>= 1, {width}] floating point, got {dtype} {shape}")
    with np.errstate(over="ignore"):
        queries_bd = np.asarray(queries_bd, np.float32)
    finite_b = np.isfinite(queries_bd).all(1)
    if not finite_b.all():
        raise DataError(f"query {finite_b.argmin()} holds NaN or infinity (as float32)")
    return queries_bd


def check_metric(where: str, has: str, wanted: str | None) -> None:
    """Refuses a search by another metric than the vectors were loaded for.

    Raises:
      UsageError: `wanted` is not `has`, nor None, which stands for any.
    """
    if wanted not in (None, has):
        check_choice("metric", wanted)
        raise UsageError(
            f"{where} compares by {has}, not by {wanted}: load it anew with that metric"
        )


def check_choice(name: str, value: str, choices: tuple[str, ...] = get_args(Metric)) -> None:
    """Whether an argument is one of its legal values; those of `metric` if not said.

    Raises:
      UsageError: it is not.
    """
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
