"""Which prefixes answer in turn, and how sure each of them has to be."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mrl_jax.errors import DataError, shown
from mrl_jax.nesting import Nesting
from mrl_jax.store import json_files, outputs

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Policy:
    """An example stops at the first of `dims` whose confidence is above its threshold.

    Confidence is the largest softmax probability. NaN is above nothing, so it goes on to the last
    dim, where everything stops.

    Attributes:
      dims: prefix lengths, increasing. Dims of the embedding that are not listed are not used.
      thresholds: one in [0, 1] per dim; the last is 0.

    Raises:
      ValueError: names the value that breaks one of these rules.
    """

    dims: tuple[int, ...]
    thresholds: tuple[float, ...]

    def __post_init__(self):
        dims = Nesting(self.dims).dims
        try:
            thresholds = tuple(float(t) for t in self.thresholds)
        except (TypeError, ValueError):
            raise ValueError(f"thresholds must be numbers, got {shown(self.thresholds)}") from None
        if len(thresholds) != len(dims):
            raise ValueError(
                f"thresholds must be one per dim: {len(dims)} dims {dims}, "
                f"{len(thresholds)} thresholds {thresholds}"
            )
        for m, t in zip(dims, thresholds, strict=True):
            if not 0 <= t <= 1:  # NaN as well
                raise ValueError(f"thresholds must be in [0, 1], got {t} at dim {m}")
        if thresholds[-1] != 0:
            raise ValueError(
                f"the last threshold must be 0 (all stop at dim {dims[-1]}), got {thresholds[-1]}"
            )
        object.__setattr__(self, "dims", dims)
        object.__setattr__(self, "thresholds", thresholds)

    def capped(self, dim: int) -> "Policy":
        """The policy that goes no further than `dim`, one of `dims`: early stopping."""
        count = self.dims.index(dim) + 1
        return Policy(self.dims[:count], (*self.thresholds[: count - 1], 0.0))

    def to_dict(self) -> dict:
        """What a file of it holds."""
        return {
            "schema": SCHEMA,
            "dims": list(self.dims),
            "thresholds": list(self.thresholds),
        }

    def save(self, path: pathlib.Path | str) -> None:
        """Writes it as JSON: schema, dims, thresholds.

        Raises:
          UsageError: it cannot be written, or the path holds something other than a policy.
        """
        content = json.dumps(self.to_dict(), indent=1) + "\n"
        own = outputs.holds_keys("schema", "dims", "thresholds")
        outputs.write_file(pathlib.Path(path), content.encode(), own)

    @classmethod
    def load(cls, path: pathlib.Path | str) -> "Policy":
        """Reads what `save` wrote.

        Raises:
          DataError: the file cannot be read, is of another schema, or holds no legal policy.
        """
        content = json_files.read(path)
        try:
            if content["schema"] != SCHEMA:
                raise ValueError(f"schema must be {SCHEMA}, got {shown(content['schema'])}")
            return cls(tuple(content["dims"]), tuple(content["thresholds"]))
        except KeyError as error:
            raise DataError(f"{path} holds no cascade policy: {error} is missing") from error
        except (TypeError, ValueError) as error:
            raise DataError(f"{path} holds no cascade policy: {error}") from error


class Outcome(NamedTuple):
    """What a policy gives on a set of examples.

    Attributes:
      accuracy: share of right answers.
      expected_dim: mean of the dim where an example stops.
      cumulative_dim: mean of the sum of all dims on the way there: the work of separate heads.
        A shared head's logits grow from dim to dim, so its work is `expected_dim`.
    """

    accuracy: float
    expected_dim: float
    cumulative_dim: float


def _stages(policy: Policy, dims: Sequence[int], confidence_gn: np.ndarray) -> tuple:
    """(the rows of the arrays that are the policy's dims, at which of them each example stops)."""
    missing = [m for m in policy.dims if m not in dims]
    if missing:
        raise ValueError(f"the policy stops at dim {missing[0]}, which is not among {tuple(dims)}")
    rows = np.array([list(dims).index(m) for m in policy.dims])
    # In float64: a threshold must not be rounded onto the confidences it separates.
    threshold_k1 = np.array(policy.thresholds)[:, None]
    stop_kn = np.asarray(confidence_gn)[rows].astype(np.float64) > threshold_k1
    stop_kn[-1] = True
    return rows, stop_kn.argmax(0)


def apply(
    policy: Policy, dims: Sequence[int], confidence_gn: np.ndarray, predicted_gn: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What each example is answered, and at which dim it stopped.

    Args:
      policy: its dims must be among `dims`.
      dims: the prefixes that the G rows of the arrays are of.
      confidence_gn: [G, N] largest softmax probabilities.
      predicted_gn: [G, N] answers, e.g. classes; or whether they are right.

    Returns:
      predicted_n: [N] of the dtype of `predicted_gn`.
      dim_n: [N] integers.

    Raises:
      ValueError: the policy needs a dim that is not there.
    """
    rows, stage_n = _stages(policy, dims, confidence_gn)
    predicted_n = np.asarray(predicted_gn)[rows[stage_n], np.arange(len(stage_n))]
    return predicted_n, np.array(policy.dims)[stage_n]


def outcome(
    policy: Policy, dims: Sequence[int], confidence_gn: np.ndarray, right_gn: np.ndarray
) -> Outcome:
    """Accuracy and cost on N examples of which `right_gn` [G, N] says where they are right."""
    rows, stage_n = _stages(policy, dims, confidence_gn)
    right_n = np.asarray(right_gn, bool)[rows[stage_n], np.arange(len(stage_n))]
    count_k = np.bincount(stage_n, minlength=len(rows))
    n = len(stage_n)
    return Outcome(
        float(right_n.sum() / n),
        float(count_k @ np.array(policy.dims) / n),
        float(count_k @ np.cumsum(policy.dims) / n),
    )
