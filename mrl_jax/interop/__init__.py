"""Weights of other projects into ours: `load_weights` reads what PyTorch networks were trained to.

Needs the package safetensors, which nothing else of `mrl_jax` needs.
"""

try:
    import safetensors  # noqa: F401
except ImportError as error:
    from mrl_jax.errors import UsageError

    raise UsageError(
        'reading PyTorch weights needs the package safetensors: pip install "mrl_jax[weights]"'
    ) from error

from mrl_jax.interop.torch_weights import load_weights

__all__ = ["load_weights"]
