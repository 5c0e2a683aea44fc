"""Adaptors: small networks on frozen embeddings, trained so that prefixes can stand for the whole.

The vectors may come from anywhere, for example from an API whose network cannot be trained. The
losses are `losses.preserve`; the alternatives without training are in `evaluators.spaces`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


def _identity(_, shape, dtype):
    return jnp.eye(*shape, dtype=dtype)


class Linear(nn.Module):
    """z @ W + b, [B, D] -> [B, features]; before training the identity if both are as wide."""

    features: int

    @nn.compact
    def __call__(self, z_bd: jax.Array) -> jax.Array:
        """[B, D] -> [B, features]."""
        as_wide = z_bd.shape[-1] == self.features
        initial = _identity if as_wide else nn.initializers.orthogonal()
        return nn.Dense(self.features, kernel_init=initial, name="dense")(z_bd)


class Residual(nn.Module):
    """z + MLP(z) with one hidden layer; the identity before training.

    Source: Matryoshka-Adaptor, arXiv 2407.20243, section 3.
    """

    hidden: int

    @nn.compact
    def __call__(self, z_bd: jax.Array) -> jax.Array:
        """[B, D] -> [B, D]."""
        x_bh = nn.gelu(nn.Dense(self.hidden, name="hidden")(z_bd))
        zeros = nn.initializers.zeros_init()
        return z_bd + nn.Dense(z_bd.shape[-1], kernel_init=zeros, name="out")(x_bh)


class Rotation(nn.Module):
    """z @ Q with Q orthogonal, so that the full width compares as before; Q = I before training.

    Cayley's map of a skew-symmetric S: Q = (I - S)^-1 (I + S), which reaches every Q without an
    eigenvalue of -1; the others are limits. Costs a factorisation of [D, D] per call.
    """

    @nn.compact
    def __call__(self, z_bd: jax.Array) -> jax.Array:
        """[B, D] -> [B, D]."""
        width = z_bd.shape[-1]
        lower = jnp.tril(self.param("skew", nn.initializers.zeros_init(), (width, width)), -1)
        skew_dd = lower - lower.T
        # Solved for the rows, not for Q: the transpose of I - S is I + S.
        x_bd = jnp.linalg.solve(jnp.eye(width) + skew_dd, z_bd.T).T
        return x_bd + x_bd @ skew_dd
