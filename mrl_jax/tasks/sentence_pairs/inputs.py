"""What a trained encoder of sentences reads: texts."""

from mrl_jax.tasks.text_inputs import Inputs

__all__ = ["Inputs"]
