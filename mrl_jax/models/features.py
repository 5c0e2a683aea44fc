"""The last feature map of a backbone: the last place where features still have a position."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


class Features(nn.Module):
    """Marks a backbone's last feature map and changes nothing; see `with_features`.

    Attributes:
      grid: (H, W) of the map. Of tokens, the last H * W are the map, row by row.
    """

    grid: tuple[int, int]

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, K] or [B, T, K], unchanged."""
        return x


def with_features(
    embed: Callable[[], jax.Array], features_bhwk: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
    """Runs `embed()`; gives its result and the last feature map [B, H, W, K] on the way there.

    The map is None if `embed` applied no backbone that has one. `features_bhwk` replaces the
    backbone's own: gradients with respect to it cost only what comes after the map, and under `jit`
    what comes before it is not computed.
    """
    found = []

    def interceptor(call, arguments, keywords, context):
        x = call(*arguments, **keywords)
        if not isinstance(context.module, Features):
            return x
        # As tokens [B, T, K]; those before the map (a class token) are set apart.
        rows, columns = context.module.grid
        batch, channels = x.shape[0], x.shape[-1]
        x_btk = x.reshape(batch, -1, channels)
        others = x_btk.shape[1] - rows * columns
        found.append(x_btk[:, others:].reshape(batch, rows, columns, channels))
        if features_bhwk is None:
            return x
        own_btk = features_bhwk.reshape(batch, -1, channels)
        return jnp.concatenate([x_btk[:, :others], own_btk], 1).reshape(x.shape)

    with nn.intercept_methods(interceptor):
        z_bd = embed()
    return z_bd, found[0] if found else None
