"""Candidates: the few rows of a database that are scored for a query one by one, and the best."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from mrl_jax.search.device.placement import Split


def products(
    database_nd: jax.Array, centre_d, query_bd, row_bc, dim: int, at_most: int
) -> jax.Array:
    """Products over the first `dim` dims, [B, C] float32: of each query its own rows.

    Each is a sum by itself: equal rows get equal numbers wherever they are, which a matrix product
    does not promise. Arguments are those of `sums`; rows count from `centre_d`, if it is not None.
    """

    def of_query(part_cd, query_d):
        if centre_d is not None:
            part_cd -= centre_d[None, :dim]
        return (part_cd * query_d).sum(1)

    return _of_each_query(of_query, database_nd, query_bd, row_bc, (0, dim), at_most)


def sums(
    split: Split, database_nd: jax.Array, query_bd, row_bc, dims: tuple[int, int], at_most: int
) -> tuple[jax.Array, jax.Array]:
    """Sums over dims lo to hi that scores follow from (see `scores`): of each query its own rows.

    As `products`, but in float64, where no product of float32 is too small or too large and rows
    are told apart that differ in their last digits.

    Args:
      split: of the database.
      database_nd: [N, D], this device's.
      query_bd: [B, D].
      row_bc: [B, C], all of them rows that this device has.
      dims: lo and hi.
      at_most: numbers of rows that are held at a time, but one query's C * (hi - lo) at least.

    Returns:
      Two [B, C] float64: products, or minus squared distances; squares of rows, or zeros if the
      metric is not the cosine.
    """

    of_query = functools.partial(_sums, split)
    return _of_each_query(of_query, database_nd, query_bd, row_bc, dims, at_most)


def sums_of_all(
    split: Split, database_nd: jax.Array, query_bd, start, count: int, dim: int
) -> tuple[jax.Array, jax.Array]:
    """`sums` over the first `dim` dims of `count` rows from `start` on: of all queries the same."""
    corner = start, jnp.zeros_like(start)
    part_cd = lax.dynamic_slice(database_nd, corner, (count, dim)).astype(jnp.float32)
    return jax.vmap(lambda query_d: _sums(split, part_cd, query_d[None, :dim]))(query_bd)


def _sums(split: Split, part_cd, query_1d) -> tuple[jax.Array, jax.Array]:
    part_cd, query_1d = part_cd.astype(jnp.float64), query_1d.astype(jnp.float64)
    if split.metric == "l2":
        sum_c = -jnp.square(part_cd - query_1d).sum(1)
    else:
        sum_c = (part_cd * query_1d).sum(1)
    if split.metric == "cosine":
        return sum_c, jnp.square(part_cd).sum(1)
    return sum_c, jnp.zeros_like(sum_c)


def _of_each_query(
    function, database_nd: jax.Array, query_bd, row_bc, dims: tuple[int, int], at_most: int
):
    """A function of float32 rows [C, hi - lo] and their query [1, hi - lo], for every query."""
    lo, hi = dims
    together = max(at_most // (row_bc.shape[1] * (hi - lo)), 1)
    # A power of two, as the number of queries is.
    together = min(2 ** int(math.log2(together)), len(query_bd))

    def of_query(arguments):
        query_d, row_c = arguments
        first = jnp.full((), lo, row_c.dtype)
        # Slices of some dims, not rows of one slice: that would be a copy of the database.
        part_cd = jax.vmap(
            lambda row: lax.dynamic_slice(database_nd, (row, first), (1, hi - lo))[0]
        )(row_c)
        return function(part_cd.astype(jnp.float32), query_d[None, lo:hi])

    # No batches of one: an axis of length 1 makes XLA's code for CPUs 5 times slower.
    return lax.map(of_query, (query_bd, row_bc), batch_size=together if together > 1 else None)


def scores(split: Split, query_bd, sum_bc, squares_bc, dim: int) -> jax.Array:
    """The metric's own scores [B, C] float64 by the first `dim` dims, given all their sums."""
    if split.metric == "cosine":
        length_b1 = jnp.linalg.norm(query_bd[:, :dim].astype(jnp.float64), axis=1)[:, None]
        sum_bc = jnp.where(sum_bc == 0, 0, sum_bc / (jnp.sqrt(squares_bc) * length_b1))
    # A sum of one product may be -0.0, which is less than 0.0 where numbers are sorted.
    return jnp.where(sum_bc == 0, 0, sum_bc)


def largest(x_bn: jax.Array, k: int) -> jax.Array:
    """Where the k largest numbers are, [..., k] in rising order; of equal ones the first.

    On a CPU `lax.top_k` is slow: it is shown the k groups of 8 with the largest maxima only.
    """
    count = x_bn.shape[-1]
    if k == count:
        return jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), x_bn.shape)
    if count % 8 or count < 16 * k:
        return jnp.sort(lax.top_k(x_bn, k)[1], -1)
    group_bk = largest(x_bn.reshape(*x_bn.shape[:-1], -1, 8).max(-1), k)
    index_bc = members(group_bk, 8)
    chosen_bk = lax.top_k(jnp.take_along_axis(x_bn, index_bc, -1), k)[1]
    return jnp.sort(jnp.take_along_axis(index_bc, chosen_bk, -1), -1)


def members(group_bk: jax.Array, size: int) -> jax.Array:
    """The members of groups of one size, in order: [..., k * size]."""
    member = jnp.arange(size, dtype=group_bk.dtype).reshape(*[1] * group_bk.ndim, size)
    return (size * group_bk[..., None] + member).reshape(*group_bk.shape[:-1], -1)


def pick(chosen_bk: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The elements of arrays at these places, each [..., k]."""
    return tuple(jnp.take_along_axis(x_bc, chosen_bk, -1) for x_bc in arrays)


def best(score_bc: jax.Array, row_bc: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k best scores and their rows, which must rise where scores are equal."""
    if score_bc.shape[-1] >= 16 * k:
        score_bc, row_bc = pick(largest(score_bc, k), score_bc, row_bc)
    score_bk, chosen_bk = lax.top_k(score_bc, k)
    return score_bk, *pick(chosen_bk, row_bc)
