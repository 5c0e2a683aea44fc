"""What is learned from what: a task joins a backbone, a head and a loss into pure functions."""

from mrl_jax.tasks.classification import Classification

__all__ = ["Classification"]
