"""Batches too large for memory: embedded part by part, twice, without holding activations."""

from collections.abc import Callable
from typing import Any

import jax

Tree = Any


def embed_in_parts(
    embed: Callable[[Tree, Tree, jax.Array | None], Tree],
    params: Tree,
    inputs: Tree,
    parts: int,
    key: jax.Array | None = None,
) -> Tree:
    """`embed(params, inputs, key)` of a whole batch in the memory that one part of it takes.

    The parts go through the network one after the other and only their embeddings are kept, so
    that a loss may compare all rows with all. For a gradient, each part goes through once more,
    with the same key, and its own backward pass follows at once. The gradient is that of the whole
    batch; the price is the second forward pass.

        z_bd = embed_in_parts(embed, params, (tokens_bt, lengths_b), 16, key)
        loss, loss_g = nested_info_nce(z_bd, ...)

    Args:
      embed: `(params, part of inputs, key) -> embeddings`, arrays [rows, ...] in any pytree. The
        embedding of a row must not depend on other rows of its part, as it does in batch-norm.
      params: gradients with respect to these are accumulated, in their own dtype.
      inputs: arrays [B, ...] in any pytree, for example sides of different lengths. If rows are
        split over a mesh, every device goes through parts of its own rows.
      parts: how many, a divisor of B. A part is every parts-th row.
      key: a PRNG key; part i gets `fold_in(key, i)`. None is passed on as None.

    Returns:
      What `embed` returns, [B, ...], rows in the order of `inputs`.

    Raises:
      ValueError: no inputs, unequal numbers of rows, or parts that do not divide them.

    Source: gradient caching, arXiv 2101.06983.
    """
    rows = sorted({x.shape[0] for x in jax.tree.leaves(inputs)})
    if len(rows) != 1:
        raise ValueError(f"inputs must all have the same number of rows, got {rows}")
    if parts < 1 or rows[0] % parts:
        raise ValueError(f"parts must be >= 1 and divide the {rows[0]} rows, got {parts}")
    if parts == 1:
        return embed(params, inputs, key if key is None else jax.random.fold_in(key, 0))

    def cut(x: jax.Array) -> jax.Array:
        # Every parts-th row, so that each device keeps the rows it has.
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def join(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    # A checkpointed step of a scan keeps only its inputs for the backward pass, and the backward
    # scan sums the gradients of params as it goes. A scan keeps the two passes apart by itself;
    # prevent_cse would only forbid optimisations.
    def part(_, index_and_rows):
        index, rows = index_and_rows
        return None, embed(params, rows, key if key is None else jax.random.fold_in(key, index))

    step = jax.checkpoint(part, prevent_cse=False)
    _, found = jax.lax.scan(step, None, (jax.numpy.arange(parts), jax.tree.map(cut, inputs)))
    return jax.tree.map(join, found)
