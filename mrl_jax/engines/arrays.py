"""Checks of what goes into an engine, the same for all of them."""

import itertools
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
      DataError: no rows, ids or vectors of another form, NaN or infinity; the iterator raises it
        as well.
    """
    blocks = _blocks(chunks)
    first = next(blocks, None)
    if first is None:
        raise DataError("there are no vectors to load")
    width = first[1].shape[1]
    if schedule.final > width:
        raise UsageError(f"{schedule} needs {schedule.final} dims; the vectors have {width}")
    return width, itertools.chain([first], blocks)


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
            block_nd, finite_n = _as_float32(z_nd[start : start + rows])
            if not finite_n.all():
                bad = block_n[finite_n.argmin()]
                raise DataError(f"the vector with id {bad} holds NaN or infinity (as float32)")
            yield block_n, block_nd


def _as_float32(z_nd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same as float32, and which rows hold only numbers; beyond float32 there is infinity."""
    with np.errstate(over="ignore"):
        z_nd = np.asarray(z_nd, np.float32)
    return z_nd, np.isfinite(z_nd).all(1)


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
    is_matrix = len(shape) == 2 and shape[0] >= 1 and shape[1] == width
    if not is_matrix or not np.issubdtype(dtype, np.floating):
        raise UsageError(f"queries must be [>= 1, {width}] floating point, got {dtype} {shape}")
    queries_bd, finite_b = _as_float32(queries_bd)
    if not finite_b.all():
        raise DataError(f"query {finite_b.argmin()} holds NaN or infinity (as float32)")
    return queries_bd


def check_metric(where: str, has: str, wanted: str | None) -> None:
    """UsageError for a search by another metric than the vectors were loaded for; None is any."""
    if wanted not in (None, has):
        check_choice("metric", wanted)
        raise UsageError(
            f"{where} compares by {has}, not by {wanted}: load it anew with that metric"
        )


def check_choice(name: str, value: str, choices: tuple[str, ...] = get_args(Metric)) -> None:
    """UsageError if an argument is not one of its legal values, by default those of `metric`."""
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
