"""Weights of other projects for our networks: `load_weights` reads those of PyTorch networks.

Needs the package safetensors, which nothing else of `mrl_jax` needs.
"""

from mrl_jax import extras

with extras.needed("weights", "reading PyTorch weights"):
    from mrl_jax.interop.torch_weights import load_weights

__all__ = ["load_weights"]
