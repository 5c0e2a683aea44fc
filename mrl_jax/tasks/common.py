"""What the tasks have in common when they are built: checks of keys, and pretrained weights."""

import contextlib
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mrl_jax.data.remarks import left_in
from mrl_jax.errors import UsageError, shown
from mrl_jax.nesting import Nesting
from mrl_jax.runtime.program import Program


@contextlib.contextmanager
def config_errors(group: str) -> Iterator[None]:
    """A ValueError of the library becomes a usage error that names the config key."""
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"config.{group}: {error}") from error


def check_without_head(config: ConfigDict, nesting: Nesting) -> None:
    """Of a task without classifiers, the kind of head only says whether there is one dim.

    Raises:
      UsageError: a kind that means nothing here.
    """
    kind = config.head.kind
    if kind not in ("separate", "fixed") or (kind == "fixed" and len(nesting) > 1):
        raise UsageError(
            f"config.head.kind of {config.task} is separate, for a nesting, or fixed, for one dim; "
            f"got {kind} for {len(nesting)} dims"
        )


def evaluated_dims(config: ConfigDict, nesting: Nesting) -> tuple[int, ...]:
    """The prefixes that are measured.

    Raises:
      UsageError: none of them lies inside the nesting, or they do not increase.
    """
    if not config.eval.dims:
        return nesting.with_dims_between().dims
    with config_errors("eval.dims"):
        dims = Nesting(config.eval.dims).dims
    if dims[0] > nesting.width:
        raise UsageError(
            f"config.eval.dims {shown(dims)} are all wider than the nesting ({nesting.width} dims)"
        )
    return dims


def unread(files: Mapping[str, Sequence[pathlib.Path]], config: ConfigDict) -> list[str]:
    """Lines on what lies in the data folder besides these files, which are read.

    Raises:
      DataError: a link in the folder is broken.
    """
    return left_in(config.data.path, itertools.chain.from_iterable(files.values()))


def starting_from(program: Program, params: Any) -> Callable[[Any], Any]:
    """What puts these weights, by the names at the top of the tree, into a fresh state."""

    def as_trained(new, shape):
        return new if isinstance(new, jax.ShapeDtypeStruct) else np.asarray(new, shape.dtype)

    def put_in(state):
        fresh = program.state["params"]
        return program.with_values(state, jax.tree.map(as_trained, {**fresh, **params}, fresh), {})

    return put_in
