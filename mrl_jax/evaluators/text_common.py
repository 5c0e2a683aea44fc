"""What all measurements of texts share: encode once, cut, then normalise; rivals; resampling."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from mrl_jax.errors import NonFiniteError
from mrl_jax.evaluators.spaces import Space, fit_spaces, unlabelled
from mrl_jax.record.metrics import TRAINED
from mrl_jax.record.results import Series

# Texts, or whatever stands for them, and their role (see `models.text.prompts`) -> [N, D].
Embed = Callable[[Sequence, str], np.ndarray]

FITTED_ON = 20_000  # rows of the train split that PCA is fitted on
RESAMPLES = 1000
_AT_A_TIME = 2**20  # numbers of resampled examples


def fitted_on(count: int) -> slice:
    """Which of so many training rows rivals are fitted on: at most `FITTED_ON`, evenly spread."""
    return slice(None, None, max(1, -(-count // FITTED_ON)))


def rivals(train_nd: np.ndarray, seed: int) -> dict[str, Space]:
    """The embedding itself, and what needs no training: a rotation and PCA, see `fit_spaces`.

    PCA is fitted on training embeddings [N, D] at length 1, and is applied to such: what cosines
    compare. Raises as `unit_rows`.
    """
    moments = unlabelled(unit_rows(train_nd, "training texts"))
    spaces = fit_spaces(moments, moments.sum_cd.T, seed)
    return {name: spaces[name] for name in (TRAINED, "rotation", "pca")}


def itself(width: int) -> dict[str, Space]:
    """The embedding of `width` dims alone, without rivals."""
    return {TRAINED: Space(np.zeros(width), np.eye(width))}


class TextSubject(NamedTuple):
    """A model that embeds texts, and how it is to be measured.

    Attributes:
      embed: its vectors may be of any length.
      dims: prefixes; those wider than a space are left out.
      spaces: as from `rivals`; None: the embedding alone.
      mesh: what is searched is split over all its devices.
    """

    embed: Embed
    dims: tuple[int, ...]
    seed: int = 0
    spaces: Mapping[str, Space] | None = None
    mesh: Mesh | None = None

    def embedded(self, texts: Sequence, what: str, role: str = "default") -> np.ndarray:
        """Embeddings [N, D] float32 at length 1; each different text is embedded once.

        Raises as `unit_rows`.
        """
        distinct = list(dict.fromkeys(texts))
        number = {text: i for i, text in enumerate(distinct)}
        z_nd = np.asarray(self.embed(distinct, role), np.float32)
        return unit_rows(z_nd, what)[[number[text] for text in texts]]

    def in_spaces(self, *z: np.ndarray) -> Iterator[tuple[str, tuple[int, ...], list[np.ndarray]]]:
        """Each space's name, the prefixes it has, and the coordinates of embeddings in it."""
        spaces = self.spaces or itself(z[0].shape[1])
        for name, space in spaces.items():
            if there := space.dims(tuple(sorted(self.dims))):
                yield name, there, [space.project(z_nd) for z_nd in z]


def unit_rows(z_nd: np.ndarray, what: str) -> np.ndarray:
    """Rows [N, D] at length 1; a row of length 0 stays.

    Raises:
      NonFiniteError: `what` holds NaN or an infinity.
    """
    length_n1 = np.linalg.norm(z_nd, axis=1, keepdims=True)
    if not np.isfinite(length_n1).all():
        bad = int((~np.isfinite(length_n1)).sum())
        raise NonFiniteError(f"{bad} of {len(z_nd)} embeddings of {what} hold NaN or an infinity")
    return z_nd / np.where(length_n1 > 0, length_n1, 1)


def resamples(n: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n examples is drawn with replacement, `RESAMPLES` rows in parts [R, n].

    The same for the same n and seed: statistics of the same resamples can be compared in pairs.
    """
    rng = np.random.default_rng(seed)
    rows = max(1, min(RESAMPLES, _AT_A_TIME // n))
    for start in range(0, RESAMPLES, rows):
        drawn_rn = rng.multinomial(n, np.full(n, 1 / n), min(rows, RESAMPLES - start))
        yield drawn_rn.astype(np.float64)


def interval(series: Series, dim: int, value_r: np.ndarray) -> dict[str, Any]:
    """The middle 95 % of resampled values, for JSON."""
    low, high = np.quantile(value_r, [0.025, 0.975]).tolist()
    return {**series._asdict(), "dim": dim, "low": low, "high": high}
