"""Which library makes the first stage where a plan leaves it to one."""

from types import ModuleType

from mrl_jax.search.index import faiss_index, rabitq
from mrl_jax.search.plan import Plan


def of(plan: Plan) -> ModuleType:
    """The module that trains, writes and opens what the plan's factory describes."""
    return rabitq if rabitq.is_one(plan.factory) else faiss_index
