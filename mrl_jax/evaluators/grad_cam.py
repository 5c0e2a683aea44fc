"""Grad-CAM (Selvaraju et al., arXiv 1610.02391) of every prefix, and numbers about its maps."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mrl_jax.evaluators.subject import Classifier
from mrl_jax.models.features import with_features
from mrl_jax.runtime.mesh import replicated

TOP_SHARE = 0.2


@functools.lru_cache(maxsize=4)
def grad_cam(task: Classifier, mesh: Mesh, dims: tuple[int, ...]) -> Callable:
    """The compiled function (params, model_state, batch) -> maps [G, B, H, W] in [0, 1].

    The gradient of a class's logit at each of the G `dims`, averaged over the last feature map,
    weights its channels (equation 1); the positive part of their weighted sum (equation 2) is
    brought to the size of the image and divided by its largest value. A map without a positive
    part is all zeros.

    A batch holds `image` [B, H, W, C] and `class_bg` [B, G], the class of each map. The function
    gives None where the backbone has no feature map or one of a single pixel.
    """

    def maps(params, model_state, batch):
        embed = functools.partial(task.embed, params, model_state, batch)
        _, features_bhwk = with_features(embed)
        if features_bhwk is None or features_bhwk.shape[1:3] == (1, 1):
            return None

        def judged_g(features_bhwk):
            z_bd, _ = with_features(embed, features_bhwk)
            logits_gbc = task.logits(params, z_bd, dims)
            class_gb1 = batch["class_bg"].T[..., None]
            # Images do not affect one another: the gradient of the sum is that of each.
            return jnp.take_along_axis(logits_gbc, class_gb1, 2).sum((1, 2))

        weight_gbk = jax.jacrev(judged_g)(features_bhwk).mean((2, 3), dtype=jnp.float32)
        map_gbhw = jnp.einsum(
            "gbk,bhwk->gbhw",
            weight_gbk,
            features_bhwk.astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        shape = map_gbhw.shape[:2] + batch["image"].shape[1:3]
        map_gbhw = jax.image.resize(jax.nn.relu(map_gbhw), shape, "bilinear")
        largest_gb11 = map_gbhw.max((2, 3), keepdims=True)
        return map_gbhw / jnp.where(largest_gb11 > 0, largest_gb11, 1)

    return jax.jit(maps, out_shardings=replicated(mesh))


def top_share(map_ghw: np.ndarray) -> np.ndarray:
    """The share of each map's sum in its highest fifth of the pixels, [G]; NaN if all are zero."""
    value_gp = map_ghw.reshape(len(map_ghw), -1).astype(np.float64)
    value_gp = np.sort(value_gp)[:, ::-1]
    total_g = value_gp.sum(1)
    top_g = value_gp[:, : math.ceil(TOP_SHARE * value_gp.shape[1])].sum(1)
    return np.divide(top_g, total_g, out=np.full(len(top_g), np.nan), where=total_g > 0)


def neighbour_correlation(map_ghw: np.ndarray) -> np.ndarray:
    """Pearson's correlation over pixels of each map with the next, [G - 1]; NaN if one is flat."""
    value_gp = map_ghw.reshape(len(map_ghw), -1).astype(np.float64)
    value_gp -= value_gp.mean(1, keepdims=True)
    norm_g = np.linalg.norm(value_gp, axis=1)
    product_g, norm_g = (value_gp[:-1] * value_gp[1:]).sum(1), norm_g[:-1] * norm_g[1:]
    # The norm of a flat map is nothing but rounding.
    return np.where(norm_g > 1e-9, product_g / np.maximum(norm_g, 1e-9), np.nan)
