"""An index behind HTTP: `python -m mrl_jax.search serve`."""
