"""Counts the floating-point operations of a traced program, alike for every platform and mesh.

Only matrix products and convolutions are counted, which are nearly all the work of a network. XLA's
own count needs a client of the platform, which a machine that is only described does not have, and
counts the body of a loop once.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr


def count(jaxpr: Jaxpr) -> float:
    """FLOPs on all devices together; a multiplication and its addition count as two.

    NaN if a loop that holds products runs a number of times that depends on data.
    """
    # Unused results are not computed, such as the value of a function that is only differentiated.
    alive, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return sum(_of_equation(equation) for equation in alive.eqns)


def _of_equation(equation: JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(left[d] for d in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        _, features, *window = params["dimension_numbers"].rhs_spec
        products = kernel[features] * math.prod(kernel[d] for d in window)
        # The zeros that dilate an input are not multiplied.
        return 2 * equation.outvars[0].aval.size * products / math.prod(params["lhs_dilation"])
    inside = [count(jaxpr) for jaxpr in _jaxprs(params.values())]
    if name == "cond":
        return max(inside)
    if name == "while":
        return math.nan if any(inside) else 0
    return sum(inside) * _times(name, params)


def _times(name: str, params: dict[str, Any]) -> int:
    """How many times the programs inside an equation are computed."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # once on every device
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def _jaxprs(values: Any) -> Iterator[Jaxpr]:
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _jaxprs(value)
