"""Measurements that may fail without losing the numbers of the others."""

from collections.abc import Callable

import jax

from mrl_jax.errors import DataError, UsageError
from mrl_jax.record.finding import Finding, Unmeasurable


def attempt(found: Finding, name: str, measure: Callable[[], Finding]) -> None:
    """Adds what a measurement finds, or the reason why nothing can be added."""
    try:
        found.add(measure())
    except Unmeasurable as error:
        found.skipped[name] = str(error)
    except (DataError, UsageError) as error:
        # Perhaps only one of several processes meets it, and the others would wait for ever.
        if jax.process_count() > 1:
            raise
        found.skipped[name] = str(error)
        found.unread.append(error)
