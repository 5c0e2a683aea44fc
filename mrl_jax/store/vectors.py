"""Vectors on disk, read a part at a time: one file, or a folder of them (see `open_vectors`)."""

import pathlib
from collections.abc import Iterator

import numpy as np

from mrl_jax.errors import DataError, UsageError, shown
from mrl_jax.store import arrow_files, hdf5, id_files, ids, inputs, shards, tables, tensors, vecs
from mrl_jax.store.parts import Mapped, Part, check_matrix

_TABLES = {
    ".parquet": tables.open_tables,
    ".arrow": arrow_files.open_arrow,
    ".feather": arrow_files.open_arrow,
}
_ARRAYS = {
    ".safetensors": tensors.open_tensor,
    ".hdf5": hdf5.open_dataset,
    ".h5": hdf5.open_dataset,
}
_NAMED = (*_TABLES, *_ARRAYS)
SUFFIXES = (".npy", *vecs.VECTORS, *_NAMED)  # of files of vectors
_SAMPLED = 8192  # rows of a sample in memory at a time beside what is kept of them


def _read_ids(path: pathlib.Path | str, rows: int, kind: ids.Kind | None = None) -> np.ndarray:
    ids_n = id_files.read(path, kind)
    if len(ids_n) != rows:
        raise DataError(f"{path} must hold an id for each of {rows} rows, it holds {len(ids_n)}")
    return ids_n


class Vectors:
    """N vectors on disk; made by `open_vectors`.

    Attributes:
      rows: N.
      width: dims of each.
      dtype: as stored; what is read is float32.
      ids: [N] int64, or an array of `str`; unique.
    """

    def __init__(self, parts: list[Part], ids_n: np.ndarray):
        self._parts = parts
        self._start_p = np.cumsum([0, *(part.rows for part in parts)])
        self.rows, self.width = int(self._start_p[-1]), parts[0].width
        self.dtype, self.ids = parts[0].dtype, ids_n

    def read(self, first: int, last: int) -> np.ndarray:
        """The vectors of rows first to last - 1, [last - first, width] float32.

        Raises:
          ValueError: no rows, or rows that do not exist.
          DataError: NaN or infinity, or a file that was damaged meanwhile; names file and row.
        """
        if not 0 <= first < last <= self.rows:
            raise ValueError(f"rows {first} to {last} are not among the {self.rows}")
        found = []
        for part, start in zip(self._parts, self._start_p, strict=False):
            a, b = max(first - start, 0), min(last - start, part.rows)
            if a < b:
                found.append(_checked(part, slice(a, b)))
        return np.concatenate(found) if len(found) > 1 else found[0]

    def chunks(self, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All vectors in order as (ids [rows], vectors [rows, width] float32), one chunk in memory.

        The last chunk may have fewer rows; raises as `read`.
        """
        if rows < 1:
            raise ValueError(f"a chunk must have at least 1 row, got {rows}")
        for first in range(0, self.rows, rows):
            last = min(first + rows, self.rows)
            yield self.ids[first:last], self.read(first, last)

    def sample(self, n: int, seed: int, width: int | None = None) -> np.ndarray:
        """Vectors of n rows drawn without replacement, in their order, [n, width] float32.

        The same N, n and seed give the same rows, and only what holds them is read. `width` is
        how many dims of each are kept (None: all).

        Raises:
          ValueError: n is not 1 to N.
          DataError: as `read`.
        """
        if not 1 <= n <= self.rows:
            raise ValueError(f"a sample must have 1 to {self.rows} rows, got {n}")
        generator = np.random.Generator(np.random.Philox(seed))
        row_n = np.sort(generator.choice(self.rows, n, replace=False, shuffle=False))
        return self.take(row_n, width)

    def take(self, row_n: np.ndarray, width: int | None = None) -> np.ndarray:
        """The vectors of these rows, in any order, each any number of times, [n, width] float32.

        Cheap where rows are mapped, see `in_reach`; raises as `read`.
        """
        if len(row_n) and not 0 <= row_n.min() <= row_n.max() < self.rows:
            raise ValueError(f"rows {row_n.min()} to {row_n.max()} are not among the {self.rows}")
        order_n = np.argsort(row_n, kind="stable")
        sorted_n = row_n[order_n]
        edges = np.searchsorted(sorted_n, self._start_p)
        z_nd = np.empty((len(row_n), self.width if width is None else width), np.float32)
        for part, start, a, b in zip(self._parts, self._start_p, edges, edges[1:], strict=False):
            for i in range(a, b, _SAMPLED):
                rows = slice(i, min(i + _SAMPLED, b))
                z_nd[order_n[rows]] = _checked(part, sorted_n[rows] - start)[:, : z_nd.shape[1]]
        return z_nd

    def in_reach(self) -> "Vectors":
        """The same vectors, of which any rows are read quickly in any order.

        What is mapped stays as it is; Parquet and what is compressed is unpacked into memory.
        """
        if all(part.at_hand for part in self._parts):
            return self
        return Vectors([Mapped(self._parts[0].path, self.read(0, self.rows))], self.ids)


def _checked(part: Part, rows: slice | np.ndarray) -> np.ndarray:
    """Rows of one file as float32 in memory of their own, all of them numbers."""
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused
        z_nd = np.array(part.read(rows), np.float32, order="C")
    finite_n = np.isfinite(z_nd).all(1)
    if not finite_n.all():
        row = np.arange(part.rows)[rows][finite_n.argmin()]
        raise DataError(f"{part.path}: row {row} holds NaN or infinity (as float32)")
    return z_nd


def place(path: pathlib.Path | str) -> tuple[pathlib.Path, str | None]:
    """PATH, or PATH:NAME, as the path of a file or folder and the name of what is meant in it."""
    return inputs.place(path, _NAMED)


def _npy(path: pathlib.Path) -> Mapped:
    z_nd = inputs.open_npy(path)
    check_matrix(path, z_nd.shape, z_nd.dtype)
    return Mapped(path, z_nd)


def _open_file(path: pathlib.Path, name: str | None, with_ids: bool) -> list[Part]:
    if name is not None and path.suffix not in _NAMED:
        raise UsageError(f"{path} holds one array only, there is no {shown(name)} to name in it")
    if path.suffix in _TABLES:
        return _TABLES[path.suffix]([path], name, with_ids=with_ids)
    if path.suffix in _ARRAYS:
        return [_ARRAYS[path.suffix](path, name)]
    if path.suffix in vecs.VECTORS:
        return [vecs.Rows(path)]
    if path.suffix == vecs.IDS:
        raise DataError(f"{path} holds whole numbers, such as ids; vectors are in .fvecs or .bvecs")
    return [_npy(path)]


def _open_shards(folder: pathlib.Path) -> list[Part]:
    """What `mrl_jax.embed` wrote."""
    manifest = shards.read_manifest(folder)
    files = [[folder / name for name in manifest.files(i)] for i in range(len(manifest.shards))]
    for (first, *_), shard in zip(files, manifest.shards, strict=True):
        if not shard.sha256:
            raise DataError(f"{first} is unfinished: call mrl_jax.embed again as before to go on")
    if manifest.format == "parquet":
        parts = tables.open_tables([first for (first,) in files], "vector", trusted=True)
    else:
        parts = [_npy(first) for first, _ in files]
    for part, shard, (first, *more) in zip(parts, manifest.shards, files, strict=True):
        if (part.rows, part.width, part.dtype) != (shard.rows, manifest.width, np.float32):
            raise DataError(
                f"{first} holds {part.rows} x {part.width} {part.dtype}, "
                f"{shards.MANIFEST} says {shard.rows} x {manifest.width} float32"
            )
        if more:
            part.ids_n = _read_ids(more[0], part.rows)
        if part.ids_n is None:
            raise DataError(f"{first} must have a column id (int64), it has none")
    return parts


def _open_tables(folder: pathlib.Path, name: str | None, with_ids: bool) -> list[Part]:
    """A folder of Parquet or Arrow files at any depth, in the order in which pyarrow reads them."""
    found = (path for path in folder.rglob("*") if path.suffix in _TABLES and not path.is_dir())
    inside = (path.relative_to(folder) for path in found)
    # What begins so is of those who write such folders: _SUCCESS, _metadata, .part-0.crc.
    inside = sorted(path for path in inside if not any(x[0] in "._" for x in path.parts))
    if not inside:
        raise DataError(
            f"{folder} has no {shards.MANIFEST}, as mrl_jax.embed writes it, and no file of "
            f"{' or '.join(_TABLES)}"
        )
    openers = {_TABLES[path.suffix]: path for path in inside}
    if len(openers) > 1:
        both = " and ".join(map(str, openers.values()))
        raise DataError(f"{folder} holds {both}: move one kind away, or name a file")
    (open_all,) = openers
    parts = open_all([folder / path for path in inside], name, with_ids=with_ids)
    # Who writes in parallel leaves files without rows.
    return [part for part in parts if part.rows] or parts[:1]


def open_vectors(
    path: pathlib.Path | str,
    ids_path: pathlib.Path | str | None = None,
    id_kind: ids.Kind | None = None,
) -> Vectors:
    """Opens vectors on disk; they are read when they are asked for, never all at once.

    Args:
      path: one of
        - .npy, floating point [N, D];
        - .fvecs or .bvecs;
        - .safetensors or .hdf5 (.h5): the tensor or data set [N, D] called NAME in PATH:NAME, or
          the only one;
        - .parquet, .arrow or .feather: a column of lists of one length, called NAME in PATH:NAME or
          `vector`, or the only one;
        - a folder of .parquet or of .arrow files, as one;
        - a folder that `mrl_jax.embed` wrote.
      ids_path: a file with unique ids [N], see `id_files.read`; None: the column id of Parquet or
        Arrow, or the row numbers from 0.
      id_kind: that those of `ids_path` must have; None: either.

    Raises:
      UsageError: ids for a folder of `mrl_jax.embed`, which holds its own; a NAME where there are
        none; or a package is missing: pyarrow for Parquet and Arrow, h5py for HDF5.
      DataError: anything missing, unfinished, cut short, empty or not as described; names the file.
        Where rows of .fvecs have unequal lengths is seen when they are read.
    """
    path, name = place(path)
    with_ids = ids_path is None
    if path.is_dir() and (path / shards.MANIFEST).exists():
        if not with_ids:
            raise UsageError(f"{path} holds ids itself, {ids_path} cannot be given besides")
        if name is not None:
            raise UsageError(f"{path} holds one array only, there is no {shown(name)} in it")
        parts = _open_shards(path)
    elif path.is_dir():
        parts = _open_tables(path, name, with_ids)
    else:
        parts = _open_file(path, name, with_ids)
    rows, width = sum(part.rows for part in parts), parts[0].width
    if not rows or not width:
        raise DataError(f"{path} is empty: {rows} rows of {width} dims")
    for part in parts:
        if part.width != width:
            raise DataError(f"{part.path} has {part.width} dims, {parts[0].path} has {width}")
        if (part.ids_n is None) != (parts[0].ids_n is None):
            with_id, without = sorted((part, parts[0]), key=lambda x: x.ids_n is None)
            raise DataError(f"{without.path} has no column id, {with_id.path} has one")
        if part.ids_n is not None and ids.kind_of(part.ids_n) != ids.kind_of(parts[0].ids_n):
            texts, numbers = sorted((part, parts[0]), key=lambda x: ids.kind_of(x.ids_n) == "int64")
            raise DataError(f"{texts.path} has texts for ids, {numbers.path} has whole numbers")
    if not with_ids:
        ids_n = _read_ids(ids_path, rows, id_kind)
    elif parts[0].ids_n is not None:
        ids_n = np.concatenate([part.ids_n for part in parts])
    else:
        return Vectors(parts, np.arange(rows))
    ids.check_unique(ids_n, path if with_ids else ids_path)
    return Vectors(parts, ids_n)
