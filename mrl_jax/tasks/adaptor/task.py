"""An adaptor on frozen embeddings, after which prefixes compare as whole vectors did before."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mrl_jax.losses import preserve
from mrl_jax.losses.lift import nested
from mrl_jax.losses.negatives import ids_mask
from mrl_jax.nesting import Nesting
from mrl_jax.runtime.mesh import rows_split
from mrl_jax.runtime.task import Tree


@dataclasses.dataclass(frozen=True)
class AdaptorTask:
    """An adaptor with the losses of arXiv 2407.20243, on every prefix.

    A batch is a dict of `vector` [B, width] float32 and `mask` [B] (1 = counts, 0 = padding). If
    `ranked`, it also holds `positive` [B, width], the vectors of what answers `vector`, and
    `vector_id` and `positive_id` [B] int32, equal where two are not to be told apart.

    The loss is, all terms but the last summed over granularities with their weights c_m,

        pairs * preserve_pairs + neighbours * preserve_neighbours + ranking * rank
            + reconstruction * reconstruct

    Attributes:
      adaptor: Flax module, [B, width] -> [B, >= m_G].
      nesting: the granularities that are trained.
      width: dims of the vectors.
      ranked: whether there are positives.
      pairs: weight of the change in all pairs' cosines.
      neighbours: weight of the change in the cosines of near rows.
      nearest: how many rows are near.
      reconstruction: weight of the change in vectors; 0 for an adaptor of another width.
      ranking: weight of the ranking loss, if `ranked`.
      turned: vectors are first rotated by the orthogonal `basis` [width, width] of the model state,
        which is the identity until another start replaces it. Losses see the rotated vectors.
      mesh: devices. The embedding axis stays whole on every device.

    Raises:
      ValueError: weights or numbers out of range.
    """

    adaptor: nn.Module
    nesting: Nesting
    width: int
    ranked: bool = False
    pairs: float = 1.0
    neighbours: float = 1.0
    nearest: int = 10
    reconstruction: float = 1.0
    ranking: float = 1.0
    turned: bool = False
    mesh: Mesh | None = None

    def __post_init__(self):
        names = ("pairs", "neighbours", "reconstruction", "ranking")
        for name in names:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not (self.pairs or self.neighbours or (self.ranked and self.ranking)):
            raise ValueError("one of pairs, neighbours and, if ranked, ranking must be > 0")
        if self.nearest < 1:
            raise ValueError(f"nearest must be >= 1, got {self.nearest}")
        key, z_bd = jax.random.key(0), jax.ShapeDtypeStruct((1, self.width), jnp.float32)
        adapted_bd, _ = jax.eval_shape(self.adaptor.init_with_output, key, z_bd)
        if adapted_bd.shape[1] < self.nesting.width:
            raise ValueError(
                f"nesting dim {self.nesting.width} is wider than the adaptor's output "
                f"({adapted_bd.shape[1]} dims)"
            )
        if self.reconstruction and adapted_bd.shape[1] != self.width:
            raise ValueError(
                f"reconstruction must be 0 where vectors of {self.width} dims become "
                f"{adapted_bd.shape[1]}, got {self.reconstruction}"
            )

    @property
    def _sides(self) -> tuple[str, ...]:
        return ("vector", "positive") if self.ranked else ("vector",)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch of so many vectors."""
        vector = jax.ShapeDtypeStruct((batch_size, self.width), jnp.float32)
        spec = dict.fromkeys(self._sides, vector)
        if self.ranked:
            numbers = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
            spec |= {f"{side}_id": numbers for side in self._sides}
        return {**spec, "mask": jax.ShapeDtypeStruct((batch_size,), jnp.float32)}

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Fresh (parameters, model state); the latter is empty unless `turned`."""
        params = self.adaptor.init(key, jnp.zeros((1, self.width)))["params"]
        return params, {"basis": jnp.eye(self.width)} if self.turned else {}

    def loss(
        self, params: Tree, model_state: Tree, batch: Tree, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, Tree]]:
        """Training loss: (total, (per-granularity loss [G], model state)).

        The losses per granularity lack the reconstruction.
        """
        del key
        mask_b = batch["mask"]
        sources = [self._sources(model_state, batch[side]) for side in self._sides]
        adapted = [self._adapt(params, x_bd) for x_bd in sources]
        sides = list(zip(adapted, sources, strict=True))
        nearest = functools.partial(preserve.preserve_neighbours, neighbours=self.nearest)
        terms = []
        for weight, function in (
            (self.pairs, preserve.preserve_pairs),
            (self.neighbours, nearest),
        ):
            if weight:
                lifted = nested(function, self.nesting)
                terms += [
                    (weight / len(sides), lifted(z_bd, source_bd=x_bd, mask_b=mask_b))
                    for z_bd, x_bd in sides
                ]
        if self.ranked and self.ranking:
            keep_bb = ids_mask(batch["vector_id"], batch["positive_id"])
            lifted = nested(preserve.rank, self.nesting)
            terms.append((self.ranking, lifted(*adapted, keep_bb=keep_bb, mask_b=mask_b)))
        loss, loss_g = (sum(weight * found[i] for weight, found in terms) for i in range(2))
        if self.reconstruction:
            moved = [preserve.reconstruct(z_bd, x_bd, mask_b=mask_b) for z_bd, x_bd in sides]
            loss += self.reconstruction * sum(moved) / len(moved)
        return loss, (loss_g, model_state)

    def embed(self, params: Tree, model_state: Tree, batch: Tree) -> jax.Array:
        """Adapted vectors [B, D] of `vector`, not normalised."""
        x_bd = self._sources(model_state, batch["vector"])
        return rows_split(self._adapt(params, x_bd), self.mesh)

    def _sources(self, model_state: Tree, x_bd: jax.Array) -> jax.Array:
        """What the adaptor reads, and its losses compare with."""
        if self.turned:
            basis_de = jax.lax.stop_gradient(model_state["basis"])
            # A lower precision would change what the losses should keep.
            x_bd = jnp.matmul(x_bd, basis_de, precision="highest")
        return rows_split(x_bd, self.mesh)

    def _adapt(self, params: Tree, x_bd: jax.Array) -> jax.Array:
        return self.adaptor.apply({"params": params}, x_bd)
