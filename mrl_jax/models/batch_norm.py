"""Batch normalisation over the batch or over groups of it, with PyTorch's running statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """Normalises every channel by the mean and variance of the batch, in float32.

    In training the batch is cut, in order, into `groups` equal parts, each normalised by its own
    statistics, as data-parallel PyTorch does per GPU and as the reference was trained. With one
    group these are the statistics of the global batch, on any mesh. The running statistics are the
    mean over groups and, as in PyTorch, hold the unbiased variance.

    Attributes:
      groups: parts of the batch in training.
      momentum: the share of the old value in the running statistics.
      epsilon: added to the variance.

    Raises:
      ValueError: a training batch that does not divide into the groups.
    """

    groups: int = 1
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, ..., C] -> the same shape and dtype; `train` uses the batch's own statistics."""
        channels = x.shape[-1]
        scale_c = self.param("scale", nn.initializers.ones, (channels,))
        bias_c = self.param("bias", nn.initializers.zeros, (channels,))
        mean_c = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        var_c = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if not train:
            return self._normalise(x, mean_c.value, var_c.value, scale_c, bias_c)
        if x.shape[0] % self.groups:
            raise ValueError(
                f"batch-norm cannot cut a batch of {x.shape[0]} into {self.groups} groups"
            )
        grouped = x.reshape(self.groups, -1, *x.shape[1:])
        inner = tuple(range(1, grouped.ndim - 1))
        wide = grouped.astype(jnp.float32)
        mean = wide.mean(inner, keepdims=True)
        # Around the mean, not the mean of squares minus its square, which cancels.
        var = jnp.square(wide - mean).mean(inner, keepdims=True)
        if not self.is_initializing():
            count = wide.size // (self.groups * channels)
            unbiased = var.mean(0).reshape(-1) * (count / max(count - 1, 1))
            keep = self.momentum
            mean_c.value = keep * mean_c.value + (1 - keep) * mean.mean(0).reshape(-1)
            var_c.value = keep * var_c.value + (1 - keep) * unbiased
        return self._normalise(grouped, mean, var, scale_c, bias_c).reshape(x.shape)

    def _normalise(self, x, mean, var, scale_c, bias_c):
        def wide(value):
            return value if value.ndim == x.ndim else value.reshape((1,) * (x.ndim - 1) + (-1,))

        gain = jax.lax.rsqrt(wide(var) + self.epsilon) * wide(scale_c)
        return ((x.astype(jnp.float32) - wide(mean)) * gain + wide(bias_c)).astype(x.dtype)
