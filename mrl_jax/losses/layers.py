"""Losses on layers x prefixes: a network that may be cut in depth and in width.

Both forms read `z_lbd` [L, B, D] of every side, the embedding after each layer (`z_lbd[-1]` is the
network's own), and take a nested loss, `nested_loss(*embeddings_bd, nesting=..., **context) ->
(loss, per_granularity_g)`: `functools.partial(kernels.nested_info_nce, temperature=0.05)`, or
`lambda *z, nesting, **context: nested(pairs.cosent, nesting)(*z, **context)`.

Shallow layers also learn from the deepest one: `distill_kl` of every prefix of every side, with the
whole last embedding as the teacher, which gets no gradient from it. It compares similarities within
the batch; the sources compare softmaxed coordinates, which two layers need not share.
"""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from mrl_jax.losses.lift import nested
from mrl_jax.losses.pairs import distill_kl
from mrl_jax.nesting import Nesting

NestedLoss = Callable[..., tuple[jax.Array, jax.Array]]


def every_layer(
    nested_loss: NestedLoss,
    nesting: Nesting,
    *,
    layers_per_step: int | None = 1,
    shallow_weight: float = 1.0,
    teacher_weight: float = 1.0,
    temperature: float = 0.3,
) -> NestedLoss:
    """2-D Matryoshka: the nested loss of the last layer, plus that of shallower ones.

    `lifted(*sides_lbd, key=None, rows_b=None, **context) -> (loss, per_granularity_g)`. Context
    goes to `nested_loss` as it is; `rows_b` [B] says which rows count in the KL (1, or 0 for
    padding). The loss is

        nested(last) + mean over drawn layers of
            shallow_weight * nested(layer) + teacher_weight * sum_m c_m KL(last || layer at m)

    and `per_granularity_g` [G] the last layer's.

    Args:
      nested_loss: see above.
      nesting: granularities and weights c_m.
      layers_per_step: how many of the L - 1 shallower layers are drawn per call, without
        replacement, which needs `key`; None takes all. The average over calls is the same.
      shallow_weight: of the shallower layers' own losses.
      teacher_weight: of their KL to the last one.
      temperature: of the similarities in the KL.

    Raises:
      ValueError: here or from the lifted function, numbers out of range, sides that do not fit
        together, or a key that is needed and missing.

    Source: 2DMSE, arXiv 2402.14776v1, which also draws one prefix, where all are taken here.
    """
    _check_weights(shallow_weight=shallow_weight, teacher_weight=teacher_weight)
    if layers_per_step is not None and layers_per_step < 1:
        raise ValueError(f"layers_per_step must be >= 1 or None, got {layers_per_step}")

    def lifted(*sides_lbd: jax.Array, key: jax.Array | None = None, rows_b=None, **context):
        layers = _check_sides(sides_lbd, nesting)
        last = [z_lbd[-1] for z_lbd in sides_lbd]
        loss, loss_g = nested_loss(*last, nesting=nesting, **context)
        count = layers - 1 if layers_per_step is None else min(layers_per_step, layers - 1)
        if not count:
            return loss, loss_g
        if count == layers - 1:
            drawn_k = jnp.arange(count)
        elif key is None:
            raise ValueError(f"key (a PRNG key) is needed to draw {count} of {layers - 1} layers")
        else:
            drawn_k = jax.random.permutation(key, layers - 1)[:count]

        # One layer after the other, recomputed in the backward pass: one [B, B] at a time.
        @jax.checkpoint
        def of_layer(layer):
            shallow = [jnp.take(z_lbd, layer, 0) for z_lbd in sides_lbd]
            lost, _ = nested_loss(*shallow, nesting=nesting, **context)
            differs = _taught(shallow, last, nesting, temperature, rows_b)
            return shallow_weight * lost + teacher_weight * differs

        return loss + jax.lax.map(of_layer, drawn_k).mean(), loss_g

    return lifted


def small_to_large(
    nested_loss: NestedLoss,
    nesting: Nesting,
    depths: Sequence[int],
    *,
    teacher_weight: float = 1.0,
    temperature: float = 0.3,
) -> NestedLoss:
    """Starbucks: a fixed list of sizes (depth, dim), from small to large, all in every step.

    `lifted(*sides_lbd, rows_b=None, **context) -> (loss, per_size_g)`, arguments as in
    `every_layer`: the mean over sizes, weighted by c_m, of the loss at that prefix of that layer
    plus `teacher_weight` times its KL to the largest size. `per_size_g` [G] are the losses,
    without the KL.

    Args:
      nested_loss: see above.
      nesting: the sizes' dims, and their weights, all above 0.
      depths: the number of layers to run for every dim: 1 to L, never falling. The last is the
        teacher's, usually the whole network.
      teacher_weight: of the smaller sizes' KL to the largest.
      temperature: of the similarities in the KL.

    Raises:
      ValueError: as `every_layer`; a weight of 0; depths that do not fit the dims and layers.

    Source: Starbucks, arXiv 2410.13230, section 3.1.
    """
    _check_weights(teacher_weight=teacher_weight)
    depths = tuple(depths)
    if len(depths) != len(nesting) or min(depths) < 1 or list(depths) != sorted(depths):
        raise ValueError(
            f"depths must be one per dim of {nesting.dims}, >= 1 and never falling, got {depths}"
        )
    if not all(nesting.weights):
        raise ValueError(f"every size needs a weight > 0, got {nesting.weights}")
    total = sum(nesting.weights)
    # Sizes of one depth share a nested loss.
    groups = [
        (depth, Nesting(*zip(*((m, c) for _, m, c in sizes), strict=True)))
        for depth, sizes in itertools.groupby(
            zip(depths, nesting.dims, nesting.weights, strict=True), key=lambda size: size[0]
        )
    ]

    def lifted(*sides_lbd: jax.Array, rows_b=None, **context):
        layers = _check_sides(sides_lbd, nesting)
        if depths[-1] > layers:
            raise ValueError(f"depths must be at most {layers}, the layers there are; got {depths}")
        teacher = [z_lbd[depths[-1] - 1, :, : nesting.width] for z_lbd in sides_lbd]
        loss, per_size = 0.0, []
        for depth, sizes in groups:
            z = [z_lbd[depth - 1] for z_lbd in sides_lbd]
            lost, lost_g = nested_loss(*z, nesting=sizes, **context)
            loss += lost
            per_size.append(lost_g)
            if smaller := _without(sizes, nesting.width):
                loss += teacher_weight * _taught(z, teacher, smaller, temperature, rows_b)
        return loss / total, jnp.concatenate(per_size)

    return lifted


def _without(nesting: Nesting, dim: int) -> Nesting | None:
    """The nesting without one of its dims; None if nothing is left."""
    kept = [(m, c) for m, c in zip(nesting.dims, nesting.weights, strict=True) if m != dim]
    return Nesting(*zip(*kept, strict=True)) if kept else None


def _taught(students, teachers, nesting: Nesting, temperature: float, rows_b) -> jax.Array:
    """The KL of students' prefixes to whole teachers: weighted sum over dims, mean over sides."""
    found = [
        nested(distill_kl, nesting)(
            student_bd, teacher_bd=teacher_bd, temperature=temperature, mask_b=rows_b
        )[0]
        for student_bd, teacher_bd in zip(students, teachers, strict=True)
    ]
    return sum(found) / len(found)


def _check_weights(**weights: float) -> None:
    for name, value in weights.items():
        if not value >= 0:
            raise ValueError(f"{name} must be >= 0, got {value}")


def _check_sides(sides_lbd: tuple[jax.Array, ...], nesting: Nesting) -> int:
    """L, once all sides are known to fit together."""
    shapes = [x.shape for x in sides_lbd]
    if not shapes or any(len(s) != 3 or s[:2] != shapes[0][:2] for s in shapes):
        raise ValueError(f"sides must all be [L, B, D] with the same L and B, got {shapes}")
    if min(s[2] for s in shapes) < nesting.width:
        raise ValueError(f"sides must be [L, B, >= {nesting.width}], got {shapes}")
    return shapes[0][0]
