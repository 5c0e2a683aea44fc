"""Embeddings that somebody else computed, on which adaptors are trained and measured.

    FOLDER/train.npy             vectors, floating point [N, D]; or any other file or folder that
                                 `store.vectors` opens, such as train.parquet or train.fvecs
    FOLDER/train_positives.npy   if there are any: row i answers row i of train

and the same for val and test. Files may also be named one by one. Which rows make up a batch is a
pure function of (seed, step); files that can be mapped stay on disk and are read row by row.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mrl_jax.data import named
from mrl_jax.data.loader import put, train_rows
from mrl_jax.data.named import SPLITS
from mrl_jax.errors import DataError, UsageError
from mrl_jax.store import inputs
from mrl_jax.store.vectors import SUFFIXES, Vectors, open_vectors, place

POSITIVES = "_positives"
PARTS = (*SPLITS, *(split + POSITIVES for split in SPLITS))
_CHUNK = 2**24  # numbers read at a time


@dataclasses.dataclass(frozen=True)
class VectorSplit:
    """Vectors and, where there are any, what answers them.

    Attributes:
      sides: "vector" and perhaps "positive", equally many rows of equally many dims.
      digest_n: for each side a number [N] uint64 per row, equal where rows are.
    """

    sides: dict[str, Vectors]
    digest_n: dict[str, np.ndarray]

    @property
    def rows(self) -> int:
        """N."""
        return self.sides["vector"].rows

    @property
    def width(self) -> int:
        """D."""
        return self.sides["vector"].width

    @functools.cached_property
    def ids(self) -> dict[str, np.ndarray]:
        """For each side [N] int32, equal for equal rows, on either side."""
        _, number = np.unique(np.concatenate(list(self.digest_n.values())), return_inverse=True)
        parts = np.split(number.astype(np.int32), len(self.sides))
        return dict(zip(self.sides, parts, strict=True))

    def batches(
        self, batch_size: int, seed: int, sharding: jax.sharding.Sharding
    ) -> Callable[[int], dict[str, jax.Array]]:
        """Training batches by step: every side, `{side}_id` where there are two, and `mask`."""

        def batch(step: int) -> dict[str, jax.Array]:
            row_b = train_rows(seed, step, batch_size, self.rows)
            arrays = {side: vectors.take(row_b) for side, vectors in self.sides.items()}
            if len(self.sides) > 1:
                arrays |= {f"{side}_id": id_n[row_b] for side, id_n in self.ids.items()}
            return put({**arrays, "mask": np.ones(batch_size, np.float32)}, sharding)

        return batch


@dataclasses.dataclass(frozen=True)
class VectorData:
    """All splits of a run, called `name` in messages."""

    name: str
    splits: dict[str, VectorSplit]

    @property
    def width(self) -> int:
        """Dims of all vectors."""
        return next(iter(self.splits.values())).width

    def fingerprint(self, *names: str) -> str:
        """Sixteen hex digits over the float32 vectors of these splits (by default all)."""
        places = [
            (f"{name} {side} {split.rows} {split.width} ".encode(), digest_n)
            for name, split in sorted(self.splits.items())
            if name in (names or self.splits)
            for side, digest_n in split.digest_n.items()
        ]
        return digest([part for place in places for part in place])

    def training_fingerprint(self) -> str | None:
        """Sixteen hex digits over the training vectors, for checkpoints; None without them."""
        return self.fingerprint("train") if "train" in self.splits else None

    def summary(self) -> str:
        """A line for the log."""
        parts = [
            f"{name} {split.rows:,}{' with positives' * (len(split.sides) > 1)}"
            for name, split in self.splits.items()
        ]
        return f"vectors of {self.width} dims: {', '.join(parts)}"


def find_vectors(path: str, files: Sequence[str], *, train: bool = True) -> dict[str, pathlib.Path]:
    """Where the vectors of each part lie: what is listed, or what is in a folder.

    Args:
      path: folder with a file or folder for each of `PARTS`; "" with `files`.
      files: "PART=PLACE" strings.
      train: whether training vectors are needed. If not, they may be missing.

    Raises:
      UsageError: neither or both, a string of another form, or a part twice.
      DataError: no train split although it is needed, no split at all, positives of a split that is
        not there, or two places of one part.
    """
    if bool(path) == bool(files):
        raise UsageError("task adaptor needs data.path=FOLDER or data.files=train=X.npy,...")
    pairs = named.pairs("data.files", files, PARTS, "PART=PLACE", once=True)
    found = {part: pathlib.Path(where) for part, where in pairs}
    if path:
        folder = pathlib.Path(path)
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
        for part in PARTS:
            here = [folder / f"{part}{suffix}" for suffix in (*SUFFIXES, "")]
            here = [where for where in here if where.exists()]
            if len(here) > 1:
                raise DataError(f"{here[0]} and {here[1]}: which is {part}?")
            if here:
                found[part] = here[0]
    where = path or "data.files"
    if not train and not all(
        place(found[p])[0].exists() for p in ("train", "train" + POSITIVES) if p in found
    ):
        found = {part: where for part, where in found.items() if not part.startswith("train")}
    for part in (*["train"] * train, *(part.removesuffix(POSITIVES) for part in found)):
        if part not in found:
            raise DataError(f"{where} has no {part} split ({part}.npy, {part}.parquet or a folder)")
    if not found:
        raise DataError(f"{where} has no {' or '.join(SPLITS)} split (test.npy or so)")
    return found


def load(path: str, files: Sequence[str], *, train: bool = True) -> VectorData:
    """Opens and checks all vectors; arguments as of `find_vectors`.

    Raises:
      UsageError: as `find_vectors`; or see `open_vectors`.
      DataError: anything missing, damaged or empty, NaN or infinity (names file and row), or files
        that do not fit each other.
    """
    places = find_vectors(path, files, train=train)
    first = "train" if "train" in places else next(iter(places))
    opened = {part: open_vectors(where).in_reach() for part, where in places.items()}
    splits = {}
    for part, vectors in opened.items():
        split = part.removesuffix(POSITIVES)
        for other, what in ((first, "width"), (split, "rows")):
            mine, theirs = getattr(vectors, what), getattr(opened[other], what)
            if mine != theirs:
                noun = {"width": "dims", "rows": "rows"}[what]
                raise DataError(
                    f"{places[part]} has {mine} {noun}, but {places[other]} has {theirs}"
                )
    for split in (name for name in SPLITS if name in opened):
        sides = {"vector": opened[split]}
        if split + POSITIVES in opened:
            sides["positive"] = opened[split + POSITIVES]
        digest_n = {side: row_digests(vectors) for side, vectors in sides.items()}
        splits[split] = VectorSplit(sides, digest_n)
    return VectorData(path or ", ".join(files), splits)


def row_digests(vectors: Vectors) -> np.ndarray:
    """A number [N] uint64 for every row; in practice only equal rows have equal numbers.

    Raises:
      DataError: NaN or infinity; names file and row.
    """
    found = []
    for _, z_nd in vectors.chunks(max(1, _CHUNK // vectors.width)):
        found += [hashlib.blake2b(row_d, digest_size=8).digest() for row_d in z_nd]
    return np.frombuffer(b"".join(found), "<u8")


def digest(parts: Iterable[bytes | np.ndarray]) -> str:
    """Sixteen hex digits over what is there, in this order."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]


class ScoredVectors(NamedTuple):
    """Pairs of vectors, [N, D] float32 each, and how similar people found them, [N] float64."""

    a_nd: np.ndarray
    b_nd: np.ndarray
    score_n: np.ndarray


def read_scored(path: pathlib.Path, width: int) -> ScoredVectors:
    """Scored pairs from an .npz file with arrays a [N, D], b [N, D] and score [N].

    Raises:
      DataError: the file or an array is missing, the width differs, or there are values that are
        not numbers, NaN or infinite; names the file.
    """
    try:
        with inputs.opened_npz(path) as arrays:
            a_nd, b_nd, score_n = (arrays[name] for name in ("a", "b", "score"))
    except DataError:
        raise
    except Exception as error:  # zipfile and numpy raise many kinds for damaged files
        reason = error or type(error).__name__
        raise DataError(f"{path} must be .npz with arrays a, b and score: {reason}") from error
    shapes, n = (a_nd.shape, b_nd.shape, score_n.shape), score_n.size
    if shapes != ((n, width), (n, width), (n,)):
        raise DataError(f"{path} must hold a and b [N, {width}] and score [N], it has {shapes}")
    if not all(np.issubdtype(x.dtype, np.floating) for x in (a_nd, b_nd)):
        raise DataError(f"{path} must hold floating point vectors, it has {a_nd.dtype}")
    if score_n.dtype.kind not in "iuf":
        raise DataError(f"{path} must hold numbers as scores, it has {score_n.dtype}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused
        found = ScoredVectors(np.float32(a_nd), np.float32(b_nd), np.float64(score_n))
    for name, x_nd in zip(("a", "b", "score"), found, strict=True):
        finite_n = np.isfinite(x_nd).all(axis=tuple(range(1, x_nd.ndim)))
        if not finite_n.all():
            raise DataError(f"{path}: row {finite_n.argmin()} of {name} holds NaN or infinity")
    return found
