"""Classifiers on every prefix of one embedding: MRL, MRL-E and the fixed-feature baseline."""

from collections.abc import Callable
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrl_jax.errors import check_choice
from mrl_jax.kernels import prefix_matmul, prefix_norms
from mrl_jax.nesting import Nesting

Kind = Literal["separate", "shared", "fixed"]
Normalize = Literal["none", "prefix"]
Arrays = jax.Array | list[jax.Array]

# Uniform on +-1/sqrt(fan_in), the fan-in being the prefix length: what torch.nn.Linear does and
# therefore what the reference's heads start from.
torch_linear_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class NestedHead(nn.Module):
    """Linear classifiers on the prefixes of an embedding: `z_bd -> logits_gbc`.

    Attributes:
      nesting: the granularities. Dims of the embedding beyond `nesting.width` are not read.
      num_classes: C.
      kind: "separate" is MRL, one kernel and bias per granularity (paper, section 3, eq. 1).
        "shared" is MRL-E, one kernel [m_G, C] and one bias, whose first m rows classify the
        first m dims; all granularities cost the FLOPs of the largest one. A shared head may be
        applied at any other dims by `head.clone(nesting=...)` with the same largest dim.
        "fixed" is FF-m, the fixed-feature baseline: one granularity m, parameters as "shared".
      normalize: "prefix" scales every prefix to unit length before its classifier, as the paper
        asks where the full representation is normalised (section 3); "none" does not.
      kernel_init: initialiser of each kernel; biases start at zero.

    Raises:
      ValueError: an unknown kind or normalize, a fixed head with several granularities, or an
        embedding narrower than the nesting.
    """

    nesting: Nesting
    num_classes: int
    kind: Kind = "separate"
    normalize: Normalize = "none"
    kernel_init: Callable = torch_linear_init

    def __post_init__(self):
        check_choice("head kind", self.kind, get_args(Kind))
        check_choice("head normalize", self.normalize, get_args(Normalize))
        if self.kind == "fixed" and len(self.nesting) != 1:
            raise ValueError(
                f"a fixed head (FF-m) has one granularity, got dims {self.nesting.dims}"
            )
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be >= 1, got {self.num_classes}")
        super().__post_init__()

    @nn.compact
    def __call__(self, z_bd: jax.Array) -> jax.Array:
        """Logits of every granularity, [G, B, C], float32 or wider."""
        dims = self.nesting.dims
        if z_bd.ndim != 2 or z_bd.shape[1] < self.nesting.width:
            raise ValueError(
                f"head expects embeddings [batch, >= {self.nesting.width}], got {z_bd.shape}"
            )
        if self.kind == "separate":
            products_gbc, bias = self._separate(z_bd)
        else:
            kernel_dc = self.param(
                "kernel", self.kernel_init, (self.nesting.width, self.num_classes)
            )
            bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
            products_gbc = prefix_matmul(z_bd, kernel_dc.astype(z_bd.dtype), dims)
        if self.normalize == "prefix":
            # The norm is one number per row and granularity: dividing the product by it equals
            # multiplying the unit-length prefix, and keeps the running sum over blocks.
            products_gbc = products_gbc / prefix_norms(z_bd, dims)[:, :, None]
        return products_gbc + jnp.broadcast_to(bias, products_gbc.shape)

    def kernels_and_biases(self, params: dict) -> tuple[Arrays, Arrays]:
        """The parameters as `kernels.nested_linear_cross_entropy` takes them.

        A kernel [m_G, C] and a bias [C] where one is shared, else lists of one per granularity.
        """
        if self.kind != "separate":
            return params["kernel"], params["bias"]
        names = [f"{m:04d}" for m in self.nesting.dims]
        return [params[f"kernel_{m}"] for m in names], [params[f"bias_{m}"] for m in names]

    def _separate(self, z_bd: jax.Array) -> tuple[jax.Array, jax.Array]:
        products, biases = [], []
        for m in self.nesting.dims:
            kernel_mc = self.param(f"kernel_{m:04d}", self.kernel_init, (m, self.num_classes))
            products.append(prefix_matmul(z_bd, kernel_mc.astype(z_bd.dtype), (m,))[0])
            biases.append(self.param(f"bias_{m:04d}", nn.initializers.zeros, (self.num_classes,)))
        return jnp.stack(products), jnp.stack(biases)[:, None, :]
