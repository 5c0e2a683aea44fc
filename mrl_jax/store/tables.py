"""Parquet files of vectors and their ids, which anyone may have written."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from mrl_jax import extras
from mrl_jax.errors import DataError, shown
from mrl_jax.store import ids, inputs

_BATCH = 2**22  # numbers that are decoded at a time


def parquet() -> Any:
    """The module pyarrow.parquet.

    Raises:
      UsageError: it is not installed.
    """
    with extras.needed("search", "Parquet"):
        import pyarrow.parquet
    return pyarrow.parquet


@contextlib.contextmanager
def opened(path: pathlib.Path, **options: Any) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`; errors of pyarrow become one line.

    Raises:
      UsageError: pyarrow is not installed.
      DataError: names the file.
    """
    module = parquet()
    import pyarrow as pa

    inputs.check_file(path)
    try:
        with module.ParquetFile(path, **options) as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except MemoryError:
        raise DataError(f"{path} unpacks to more than fits in memory") from None
    except (OSError, ValueError, EOFError, pa.ArrowException) as error:
        raise DataError(f"{path} is no whole Parquet file: {error}") from error


def read(path: pathlib.Path, with_ids: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
    """The vectors [N, D] of a file and, where it has a column id, their ids [N] int64.

    Vectors are the only column of lists of floating point numbers, or the one called vector.

    Raises:
      UsageError: pyarrow is not installed.
      DataError: a damaged file; no such column, or lists that are missing, empty or not of one
        length; ids that are missing or not whole numbers. Names the file and mostly the row.
    """
    with opened(path) as file:
        schema = file.schema_arrow
        name = _column_of_vectors(path, schema)
        rows, z_nd, first = file.metadata.num_rows, None, 0
        for batch in file.iter_batches(columns=[name], batch_size=_rows_at_a_time(file)):
            if not len(batch):
                continue
            part_nd = as_rows(batch.column(0), path, first)
            if z_nd is None:
                z_nd = np.empty((rows, part_nd.shape[1]), part_nd.dtype)
            if part_nd.shape[1] != z_nd.shape[1]:
                raise _uneven(path, first, part_nd.shape[1], z_nd.shape[1])
            z_nd[first : first + len(part_nd)] = part_nd
            first += len(part_nd)
        if z_nd is None or not z_nd.size:
            width = 0 if z_nd is None else z_nd.shape[1]
            raise DataError(f"{path} is empty: {rows} rows of {width} dims")
        ids_n = read_ids(path, file) if with_ids and "id" in schema.names else None
    return z_nd, ids_n


def read_ids(path: pathlib.Path, file: Any) -> np.ndarray:
    """The column id [N] of a file that is open, as int64.

    Raises:
      DataError: a row without an id, or ids that are not whole numbers.
    """
    import pyarrow as pa

    field = file.schema_arrow.field("id")
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if not pa.types.is_integer(kind):
        raise DataError(
            f"{path}: the column id must hold whole numbers (int64, or another type of integers), "
            f"it holds {field.type}; leave it out where row numbers will do"
        )
    # pyarrow would make floats of a column with nulls, and round the ids.
    column = file.read(["id"])["id"].cast(kind)
    if column.null_count:
        row = int(column.is_null().to_numpy().argmax())
        raise DataError(f"{path}: row {row} has no id")
    return ids.as_int64(column.to_numpy(), path)


def as_rows(column: Any, path: pathlib.Path, first: int) -> np.ndarray:
    """Vectors [N, D] of an Arrow array of lists of floats.

    Args:
      column: N >= 1 lists of any kind.
      path: of the file, for the message.
      first: number of the first row in the file.

    Raises:
      DataError: a list that is missing, holds a null, or has another length; names the row.
    """
    import pyarrow.compute as pc

    lengths = pc.list_value_length(column)
    if lengths.null_count:
        row = int(lengths.is_null().to_numpy(zero_copy_only=False).argmax())
        raise DataError(f"{path}: row {first + row} has no vector")
    lengths_n = lengths.to_numpy()
    width = int(lengths_n[0])
    if (uneven_n := lengths_n != width).any():
        row = int(uneven_n.argmax())
        raise _uneven(path, first + row, int(lengths_n[row]), width)
    values = pc.list_flatten(column)
    if values.null_count:
        row = int(values.is_null().to_numpy(zero_copy_only=False).argmax()) // width
        raise DataError(f"{path}: row {first + row} has a vector with a null in it")
    return values.to_numpy(zero_copy_only=False).reshape(len(column), width)


def _uneven(path: pathlib.Path, row: int, dims: int, width: int) -> DataError:
    return DataError(f"{path}: row {row} has {dims} dims, the rows before it have {width}")


def _column_of_vectors(path: pathlib.Path, schema: Any) -> str:
    if len(set(schema.names)) < len(schema.names):
        raise DataError(f"{path} has two columns of the same name: {shown(schema.names)}")
    lists = [field.name for field in schema if is_vector(field.type)]
    if len(lists) > 1 and "vector" in lists:
        lists = ["vector"]
    if len(lists) != 1:
        types = {field.name: str(field.type) for field in schema}
        raise DataError(
            f"{path} must have one column of lists of floating point numbers, or one of them "
            f"called vector; it has {shown(types)}"
        )
    return lists[0]


def is_vector(kind: Any) -> bool:
    """Whether an Arrow type is one of lists of floating point numbers."""
    import pyarrow as pa

    kinds = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    is_list = any(getattr(pa.types, f"is_{name}")(kind) for name in kinds)
    return is_list and pa.types.is_floating(kind.value_type)


def _rows_at_a_time(file: Any) -> int:
    """So few that their numbers take no more memory than the vectors themselves."""
    rows = max(file.metadata.num_rows, 1)
    numbers = sum(
        file.metadata.row_group(group).column(column).num_values
        for group in range(file.metadata.num_row_groups)
        for column in range(file.metadata.num_columns)
    )
    return int(min(max(_BATCH // max(numbers // rows, 1), 1), 2**16))
