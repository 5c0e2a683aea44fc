"""Vectors on disk, read a part at a time: one file, or a folder of shards (see `shards`)."""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from mrl_jax.errors import DataError, UsageError, shown
from mrl_jax.store import ids, inputs, shards, tables

_SAMPLED = 8192  # rows of a sample in memory at a time beside what is kept of them


class _Array:
    """The vectors [rows, width] of a file, in memory or mapped."""

    def __init__(self, path: pathlib.Path, z_nd: np.ndarray):
        self.path, self._z_nd = path, z_nd
        (self.rows, self.width), self.dtype = z_nd.shape, z_nd.dtype

    def read(self, rows: slice | np.ndarray) -> np.ndarray:
        """These rows, in rising order."""
        return self._z_nd[rows]


def _npy(path: pathlib.Path) -> _Array:
    z_nd = inputs.open_npy(path)
    if z_nd.ndim != 2:
        raise DataError(f"{path} must hold [rows, dims], its shape is {z_nd.shape}")
    if not np.issubdtype(z_nd.dtype, np.floating):
        raise DataError(f"{path} must hold floating point numbers, it holds {z_nd.dtype}")
    if not z_nd.size:
        raise DataError(f"{path} is empty: {len(z_nd)} rows of {z_nd.shape[1]} dims")
    return _Array(path, z_nd)


class _Parquet:
    """The vectors of a Parquet shard, read by row groups."""

    def __init__(self, path: pathlib.Path, cache: dict[Any, np.ndarray]):
        self.path, self._cache = path, cache
        with tables.opened(path) as file:
            self._metadata, schema = file.metadata, file.schema_arrow
            types = {field.name: str(field.type) for field in schema}
            fixed = types.get("vector", "").startswith("fixed_size_list")
            if "id" not in types or not fixed or not tables.is_vector(schema.field("vector").type):
                raise DataError(
                    f"{path} must have columns id (int64) and vector, it has {shown(types)}"
                )
            self.width = schema.field("vector").type.list_size
            self.ids_n = tables.read_ids(path, file)
        self.rows, self.dtype = self._metadata.num_rows, np.dtype(np.float32)
        groups = range(self._metadata.num_row_groups)
        sizes = [self._metadata.row_group(i).num_rows for i in groups]
        self._start_g = np.cumsum([0, *sizes])

    def read(self, rows: slice | np.ndarray) -> np.ndarray:
        """These rows, in rising order."""
        row_n = np.arange(self.rows)[rows]
        edges = np.searchsorted(row_n, self._start_g)
        found = [
            self._group(g)[row_n[edges[g] : edges[g + 1]] - self._start_g[g]]
            for g in range(len(edges) - 1)
            if edges[g] < edges[g + 1]
        ]
        return np.concatenate(found)

    def _group(self, g: int) -> np.ndarray:
        """One row group; of all files together, the last one read is kept."""
        if (self.path, g) not in self._cache:
            self._cache.clear()
            options = {"metadata": self._metadata, "page_checksum_verification": True}
            with tables.opened(self.path, **options) as file:
                column = file.read_row_group(g, ["vector"])["vector"].combine_chunks()
                rows_nd = tables.as_rows(column, self.path, int(self._start_g[g]))
            self._cache[self.path, g] = rows_nd
        return self._cache[self.path, g]


_Part = _Array | _Parquet


def _read_ids(path: pathlib.Path, rows: int) -> np.ndarray:
    ids_n = ids.read(path)
    if len(ids_n) != rows:
        raise DataError(f"{path} must hold an id for each of {rows} rows, it holds {len(ids_n)}")
    return ids_n


class Vectors:
    """N vectors on disk; made by `open_vectors`.

    Attributes:
      rows: N.
      width: dims of each.
      dtype: as stored; what is read is float32.
      ids: [N] int64, unique.
    """

    def __init__(self, parts: list[_Part], ids_n: np.ndarray):
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

        Cheap where rows are in memory or in .npy files; raises as `read`.
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

        Parquet is unpacked into memory; .npy files are mapped as they are.
        """
        if not any(isinstance(part, _Parquet) for part in self._parts):
            return self
        return Vectors([_Array(self._parts[0].path.parent, self.read(0, self.rows))], self.ids)


def _checked(part: _Part, rows: slice | np.ndarray) -> np.ndarray:
    """Rows of one file as float32 in memory of their own, all of them numbers."""
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused
        z_nd = np.array(part.read(rows), np.float32, order="C")
    finite_n = np.isfinite(z_nd).all(1)
    if not finite_n.all():
        row = np.arange(part.rows)[rows][finite_n.argmin()]
        raise DataError(f"{part.path}: row {row} holds NaN or infinity (as float32)")
    return z_nd


def _open_folder(folder: pathlib.Path) -> Vectors:
    manifest = shards.read_manifest(folder)
    parts, all_ids, cache = [], [], {}
    for index, shard in enumerate(manifest.shards):
        files = [folder / name for name in manifest.files(index)]
        if not shard.sha256:
            raise DataError(
                f"{files[0]} is unfinished: call mrl_jax.embed again as before to go on"
            )
        part = _Parquet(*files, cache) if manifest.format == "parquet" else _npy(files[0])
        if (part.rows, part.width, part.dtype) != (shard.rows, manifest.width, np.float32):
            raise DataError(
                f"{files[0]} holds {part.rows} x {part.width} {part.dtype}, "
                f"{shards.MANIFEST} says {shard.rows} x {manifest.width} float32"
            )
        parts.append(part)
        all_ids.append(part.ids_n if len(files) == 1 else _read_ids(files[1], part.rows))
    ids_n = np.concatenate(all_ids)
    ids.check_unique(ids_n, folder)
    return Vectors(parts, ids_n)


def open_vectors(path: pathlib.Path | str, ids_path: pathlib.Path | str | None = None) -> Vectors:
    """Opens vectors on disk; they are read when they are asked for, not before.

    Args:
      path: a .npy file, floating point [N, D]; a .parquet file with a column of lists of one
        length, which is read into memory; or a folder that `mrl_jax.embed` wrote.
      ids_path: for a file, a .npy file with unique ids [N], whole numbers that int64 can hold;
        None: the column id of Parquet, or the row numbers from 0.

    Raises:
      UsageError: ids for a folder, which holds its own; or Parquet without pyarrow.
      DataError: anything missing, unfinished, cut short, empty or not as described; names the file.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        if ids_path is not None:
            raise UsageError(f"{path} holds ids itself, {ids_path} cannot be given besides")
        return _open_folder(path)
    if path.suffix == ".parquet":
        z_nd, ids_n = tables.read(path, with_ids=ids_path is None)
        part = _Array(path, z_nd)
    else:
        part, ids_n = _npy(path), None
    if ids_path is not None:
        ids_n = _read_ids(pathlib.Path(ids_path), part.rows)
    if ids_n is None:
        return Vectors([part], np.arange(part.rows))
    ids.check_unique(ids_n, path if ids_path is None else ids_path)
    return Vectors([part], ids_n)
