"""Parquet files of vectors and their ids, which anyone may have written."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mrl_jax import extras
from mrl_jax.errors import DataError
from mrl_jax.store import columns, inputs
from mrl_jax.store.parts import BLOCK, Blocks, Last

_MOST_ROWS = 2**16  # of a block
# Pages are read and decoded as they are needed: a row group may hold all of a large file.
_STREAMED = {"pre_buffer": False, "buffer_size": 2**20, "page_checksum_verification": True}


def parquet() -> Any:
    """The module pyarrow.parquet.

    Raises:
      UsageError: it is not installed.
    """
    with extras.needed("search", "Parquet"):
        import pyarrow.parquet
    return pyarrow.parquet


def open_tables(
    paths: Sequence[pathlib.Path],
    name: str | None = None,
    *,
    with_ids: bool = True,
    trusted: bool = False,
) -> list[Blocks]:
    """The vectors of Parquet files, of which one block is in memory at a time.

    Files are read once here, to see that no vector is missing or of another length.

    Args:
      paths: of the files.
      name: of the column of vectors; None: as the first file has it, see `columns.of_vectors`.
      with_ids: whether ids are read, from the column id where there is one.
      trusted: whether lists of a fixed size are believed to be whole until they are read, so that
        files are not read here.

    Raises:
      UsageError: pyarrow is not installed.
      DataError: a damaged file; no such column, or lists that are missing or not of one length; ids
        that are missing, or neither whole numbers nor texts. Names the file and mostly the row.
    """
    last, stream, parts = Last(), _Stream(), []
    for path in paths:
        part, name = _open(path, name, with_ids, trusted, last, stream)
        parts.append(part)
    return parts


def read_column(path: pathlib.Path, name: str | None) -> np.ndarray:
    """The ids [N] of a file, in the column called `name`, or see `columns.of_ids`.

    Raises:
      UsageError: pyarrow is not installed.
      DataError: a damaged file, or no such column of ids.
    """
    with _opened(path) as file:
        name = columns.of_ids(path, file.schema_arrow, name)
        return columns.as_ids(file.read([name])[name], path, name)


def _open(
    path: pathlib.Path,
    name: str | None,
    with_ids: bool,
    trusted: bool,
    last: Last,
    stream: "_Stream",
) -> tuple[Blocks, str]:
    """The vectors of a file, and the column that they are in."""
    with _opened(path) as file:
        metadata, schema, ids_n = file.metadata, file.schema_arrow, None
        name = columns.of_vectors(path, schema, name)
        kind = schema.field(name).type
        told = trusted and str(kind).startswith("fixed_size_list")
        width = kind.list_size if told else _seen_width(file, name, path)
        if with_ids and "id" in schema.names:
            ids_n = columns.as_ids(file.read(["id"])["id"], path)
    groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    starts, at_a_time = np.cumsum([0, *groups]), _rows_in_a_block(width)
    # The group of every block, and which of its blocks it is.
    places = [(g, i) for g, rows in enumerate(groups) for i in range(-(-rows // at_a_time))]
    sizes = [min(at_a_time, groups[g] - i * at_a_time) for g, i in places]
    dtype = np.dtype(kind.value_type.to_pandas_dtype())

    def blocks_of(group: int) -> Iterator[np.ndarray]:
        row, last_row = int(starts[group]), int(starts[group + 1])
        with _opened(path, metadata=metadata) as file:
            batches = file.iter_batches(at_a_time, row_groups=[group], columns=[name])
            # Batches may be smaller than asked for.
            part_nd = np.empty((0, width), dtype)
            while row < last_row:
                rows = min(at_a_time, last_row - row)
                block_nd, filled = np.empty((rows, width), dtype), 0
                while filled < rows:
                    if not len(part_nd):
                        if (batch := next(batches, None)) is None:
                            raise DataError(f"{path} is no whole Parquet file: rows are missing")
                        part_nd = _rows(batch, name, path, row, width)
                    some_nd = part_nd[: rows - filled]
                    block_nd[filled : filled + len(some_nd)] = some_nd
                    part_nd = part_nd[len(some_nd) :]
                    filled += len(some_nd)
                    row += len(some_nd)
                yield block_nd

    def load(block: int) -> np.ndarray:
        group, i = places[block]
        return stream.block((path, group), i, functools.partial(blocks_of, group))

    return Blocks(path, sizes, width, dtype, load, last, ids_n), name


class _Stream:
    """The blocks of one row group in order: of it, no later one is decoded without the earlier.

    All files of a set share it, because each that is open holds a descriptor.
    """

    def __init__(self):
        self._group, self._next, self._blocks = None, 0, None

    def block(
        self, group: Any, index: int, open_group: Callable[[], Iterator[np.ndarray]]
    ) -> np.ndarray:
        """A block of a row group, whose blocks `open_group` gives from its beginning."""
        if self._group != group or self._next > index:
            if self._blocks is not None:
                self._blocks.close()
            self._group, self._next, self._blocks = group, 0, open_group()
        try:
            while True:
                block_nd = next(self._blocks)
                self._next += 1
                if self._next > index:
                    return block_nd
        except BaseException:
            self._group = None
            raise


def _rows(batch: Any, name: str, path: pathlib.Path, row: int, width: int | None) -> np.ndarray:
    """The vectors of a batch that begins at a row of the file and must have this width."""
    if not len(batch):
        return np.empty((0, width or 0), np.float32)
    rows_nd = columns.as_rows(batch.column(name), path, row)
    if width is not None and rows_nd.shape[1] != width:
        raise columns.uneven(path, row, rows_nd.shape[1], width)
    return rows_nd


def _seen_width(file: Any, name: str, path: pathlib.Path) -> int:
    """Dims of the vectors, of which every one is looked at; 0 if there are no rows."""
    # Not from the metadata of columns: pyarrow aborts the process where these are damaged.
    first = next((batch for batch in file.iter_batches(1, columns=[name]) if len(batch)), None)
    if first is None:
        return 0
    width, row = _rows(first, name, path, 0, None).shape[1], 0
    for batch in file.iter_batches(_rows_in_a_block(width), columns=[name]):
        _rows(batch, name, path, row, width)
        row += len(batch)
    return width


def _rows_in_a_block(width: int) -> int:
    return min(max(BLOCK // max(width, 1), 1), _MOST_ROWS)


@contextlib.contextmanager
def _opened(path: pathlib.Path, **options: Any) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`; errors of pyarrow become one line.

    Raises:
      UsageError: pyarrow is not installed.
      DataError: names the file.
    """
    module = parquet()
    import pyarrow as pa

    inputs.check_file(path)
    try:
        with module.ParquetFile(path, **_STREAMED, **options) as file:
            yield file
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} is missing") from None
    except MemoryError:
        raise DataError(f"{path} unpacks to more than fits in memory") from None
    except (OSError, ValueError, EOFError, pa.ArrowException) as error:
        raise DataError(f"{path} is no whole Parquet file: {error}") from error
