"""Adaptive classification: a short prefix answers where it is sure, longer ones the rest.

One embedding, one classifier per prefix: an example stops at the first prefix whose confidence
is above a threshold (arXiv 2205.13147, section 4.2.1). `fit_greedy` finds the thresholds as the
reference does, `fit_frontier` finds them jointly, `infer` classifies with them and really stops.
"""

from mrl_jax.cascade.fitting import (
    Fitted,
    fit_frontier,
    fit_greedy,
    reaching,
    within,
)
from mrl_jax.cascade.inference import Inference, infer
from mrl_jax.cascade.policy import Outcome, Policy, apply, outcome

__all__ = [
    "Fitted",
    "Inference",
    "Outcome",
    "Policy",
    "apply",
    "fit_frontier",
    "fit_greedy",
    "infer",
    "outcome",
    "reaching",
    "within",
]
