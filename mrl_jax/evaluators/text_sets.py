"""Sets of texts that are measured beside a run's own data: how each kind is read and measured.

A kind is a module, here or anywhere on PYTHONPATH, with

    read(path, name, config) -> data        raises a DataError that names the line of a damaged file
    measure(subject, at, data) -> Finding   of a `text_common.TextSubject`, at a `Series`; raises as
                                            `check`, and NonFiniteError for NaN in embeddings

and, where it needs them,

    check(data)                 raises `Unmeasurable` before anything is trained
    digest(data) -> str         tells data from others; all of it if there is no such function
    unread(path, data)          names the columns of a file that are not read
    MAIN                        the metric that is measured after fewer layers as well

`eval.sets` names the set, the kind and the path: "mine=my_lab.evaluator:texts.tsv". The kinds of
`KINDS` go by their names there. Where the config has a key of a kind's name, such as "eval.sts",
that key takes sets as well, each "NAME=PATH".
"""

import pathlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

from mrl_jax.data import named
from mrl_jax.errors import UsageError
from mrl_jax.evaluators import text_classification, text_clustering, text_retrieval, text_sts
from mrl_jax.evaluators.text_common import TextSubject
from mrl_jax.imported import by_path
from mrl_jax.record.finding import Finding, digest_of
from mrl_jax.record.results import Series

KINDS: dict[str, ModuleType] = {
    "sts": text_sts,
    "retrieval": text_retrieval,
    "classification": text_classification,
    "clustering": text_clustering,
}


class TextSet(NamedTuple):
    """A set of texts: its name, the config key below `eval` that names it, its kind and data."""

    name: str
    key: str
    kind: ModuleType
    path: pathlib.Path
    data: Any = None

    def check(self) -> None:
        """Raises `Unmeasurable` of data for which the measure is undefined."""
        if hasattr(self.kind, "check"):
            self.kind.check(self.data)

    def measure(self, subject: TextSubject, at: Series) -> Finding:
        """What its kind measures of it."""
        return self.kind.measure(subject, at, self.data)

    @property
    def digest(self) -> str:
        """What tells the data from others."""
        return getattr(self.kind, "digest", digest_of)(self.data)

    @property
    def unread(self) -> list[str]:
        """The columns that are not read."""
        return list(self.kind.unread(self.path, self.data)) if hasattr(self.kind, "unread") else []

    @property
    def main(self) -> str | None:
        """The metric that is measured after fewer layers as well."""
        return getattr(self.kind, "MAIN", None)


def listed(config: Any) -> list[TextSet]:
    """The sets of a config, without their data.

    Raises:
      UsageError: a name is taken, or there is no such kind.
    """
    e, taken, found = config.eval, set(named.SPLITS), []
    for key, kind in ((key, kind) for key, kind in KINDS.items() if key in e):
        places = named.paths(f"eval.{key}", e[key], taken)
        found += [TextSet(name, key, kind, path) for name, path in places.items()]
    for name, place in named.paths("eval.sets", e.sets, taken).items():
        kind, colon, path = str(place).partition(":")
        if not (kind and colon and path):
            raise UsageError(
                f"config.eval.sets must be NAME=KIND:PATH,... with one of {', '.join(KINDS)} or "
                f"the import path of a module as the kind; got {name}={place}"
            )
        found.append(TextSet(name, "sets", _kind(kind), pathlib.Path(path)))
    return found


def _kind(name: str) -> ModuleType:
    if name in KINDS:
        return KINDS[name]
    module = by_path(name, "config.eval.sets")
    for function in ("read", "measure"):
        if not callable(getattr(module, function, None)):
            raise UsageError(f"config.eval.sets {name}: the module has no function {function}")
    return module


def opened(config: Any) -> list[TextSet]:
    """The sets of a config with their data; raises as `listed` and `read`."""
    sets = listed(config)
    return [one._replace(data=one.kind.read(one.path, one.name, config)) for one in sets]


def check_layers(layers: Sequence[int], there: int) -> tuple[int, ...]:
    """The layers to measure beside the last of `there`.

    Raises:
      ValueError: not different numbers from 1 to below `there`.
    """
    if len({*layers}) != len(layers) or any(not 1 <= layer < there for layer in layers):
        legal = f"different numbers from 1 to {there - 1}" if there > 1 else "none"
        raise ValueError(
            f"legal is {legal}, the encoder has {there} {'layers' if there > 1 else 'layer'}; "
            f"got {tuple(layers)}"
        )
    return tuple(sorted(layers))


def of_metric(found: Finding, metric: str) -> Finding:
    """The results of one metric alone, with their examples."""
    results = [result for result in found.results if result.metric == metric]
    names = {result.name for result in results}
    return Finding(results, {name: of for name, of in found.examples.items() if name in names})
