"""Measuring an image classifier at every prefix; the same code during training and offline."""

import functools
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from mrl_jax.data import Dataset, Split
from mrl_jax.data.hierarchy import Hierarchy
from mrl_jax.data.shifts import Shift
from mrl_jax.evaluators import cascade, chosen, few_shot, long_tail, superclass
from mrl_jax.evaluators.attempt import attempt
from mrl_jax.evaluators.subject import Classifier, Instruments, Subject
from mrl_jax.record.finding import Finding, refusals


class ClassificationEvaluation:
    """Runs evaluators on splits of a data set. Compiles once, however often it runs.

    Args:
      dataset: neighbours are searched for in its train split.
      dims: prefixes to measure; those beyond the trained width are left out.
      batch_size: examples per step, a multiple of what the mesh splits the batch into.
      measures: see `evaluators.chosen`.
      shifts: other test sets by name.
    """

    def __init__(
        self,
        task: Classifier,
        mesh: Mesh,
        dataset: Dataset,
        *,
        dims: tuple[int, ...],
        batch_size: int,
        seed: int,
        measures: tuple[str, ...] = ("accuracy", "neighbours"),
        hierarchy: Hierarchy | None = None,
        shifts: dict[str, Shift] | None = None,
    ):
        self._instruments = Instruments(task, mesh, batch_size, dims)
        self._dataset = dataset
        self._measures = chosen(measures)
        self._context = {"seed": seed, "hierarchy": hierarchy, "shifts": shifts}

    def check(self, splits: tuple[str, ...]) -> dict[str, str]:
        """What cannot be measured on these data, and why, see `Finding.skipped`.

        Of a stream only the size is checked: its labels are not known before it is read.
        """
        parts = self._dataset.splits
        label = {name: part.label for name, part in parts.items() if isinstance(part, Split)}
        checks: dict[tuple[str, str], Callable[[], None]] = {}
        for split in splits:
            sizes = {name: part.examples for name, part in parts.items()}
            if len(self._instruments.task.nesting) > 1:
                checks[split, "cascade"] = functools.partial(cascade.check, sizes, split)
            if split in label:
                checks[split, "few_shot"] = functools.partial(few_shot.check, label[split])
                if "train" in label:
                    checks[split, "long_tail"] = functools.partial(
                        long_tail.check, label["train"], label[split]
                    )
                checks[split, "superclass"] = functools.partial(
                    superclass.check, self._context["hierarchy"], label[split]
                )
        asked = {
            f"{split}/{name}": check
            for (split, name), check in checks.items()
            if name in self._measures
        }
        return refusals(asked)

    def run(self, params: Any, model_state: Any, splits: tuple[str, ...]) -> Finding:
        """All that was asked for, on these splits."""
        subject = Subject(self._instruments, self._dataset, params, model_state, **self._context)
        found = Finding()
        # In order, not as a set: processes must run the same collectives in the same order.
        for split in splits:
            for name, measure in self._measures.items():
                attempt(found, f"{split}/{name}", functools.partial(measure, subject, split))
        return found
