"""Columns of vectors and ids in Arrow, which Parquet files unpack to and Arrow files hold."""

import pathlib
from typing import Any

import numpy as np

from mrl_jax.errors import DataError, listed, shown
from mrl_jax.store import ids


def of_vectors(path: pathlib.Path, schema: Any, name: str | None) -> str:
    """Which column holds vectors.

    Args:
      path: of the file, for the message.
      schema: of the file.
      name: what the user calls for; None: the only column of lists of floating point numbers, or
        the one of them called vector.

    Raises:
      DataError: there is none, or several, or two columns have the same name.
    """
    if len(set(schema.names)) < len(schema.names):
        raise DataError(f"{path} has two columns of the same name: {shown(schema.names)}")
    lists = [field.name for field in schema if _is_vector(field.type)]
    if name is not None:
        if name not in schema.names:
            raise DataError(f"{path} has no column {shown(name)}; it has {listed(schema.names)}")
        if name not in lists:
            kind = schema.field(name).type
            raise DataError(
                f"{path}: column {name} must hold lists of floating point numbers, it holds {kind}"
            )
        return name
    if len(lists) > 1 and "vector" in lists:
        lists = ["vector"]
    if len(lists) != 1:
        types = {field.name: str(field.type) for field in schema}
        hint = f"; say which, such as {path}:{lists[0]}" if lists else ""
        raise DataError(
            f"{path} must have one column of lists of floating point numbers, or one of them "
            f"called vector; it has {shown(types)}{hint}"
        )
    return lists[0]


def _is_vector(kind: Any) -> bool:
    """Whether an Arrow type is one of lists of floating point numbers."""
    import pyarrow as pa

    kinds = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    is_list = any(getattr(pa.types, f"is_{name}")(kind) for name in kinds)
    return is_list and pa.types.is_floating(kind.value_type)


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
        raise uneven(path, first + row, int(lengths_n[row]), width)
    values = pc.list_flatten(column)
    if values.null_count:
        row = int(values.is_null().to_numpy(zero_copy_only=False).argmax()) // width
        raise DataError(f"{path}: row {first + row} has a vector with a null in it")
    return values.to_numpy(zero_copy_only=False).reshape(len(column), width)


def uneven(path: pathlib.Path, row: int, dims: int, width: int) -> DataError:
    """For a row whose vector has another length than those before it."""
    return DataError(f"{path}: row {row} has {dims} dims, the rows before it have {width}")


def of_ids(path: pathlib.Path, schema: Any, name: str | None) -> str:
    """Which column holds ids; arguments are those of `of_vectors`.

    Raises:
      DataError: there is none, or several of which none is called id.
    """
    has = f"it has {listed(schema.names)}"
    if name is None and "id" not in schema.names and len(schema.names) != 1:
        hint = f"; say which, such as {path}:{schema.names[0]}" if schema.names else ""
        raise DataError(f"{path} must have a column id, or one column only; {has}{hint}")
    if name is None:
        name = "id" if "id" in schema.names else schema.names[0]
    if schema.names.count(name) != 1:
        count = "two columns" if name in schema.names else "no column"
        raise DataError(f"{path} has {count} {shown(name)}; {has}")
    return name


def as_ids(column: Any, path: pathlib.Path, name: str = "id") -> np.ndarray:
    """The ids [N] of a column of Arrow, see `ids.checked`.

    Args:
      column: of several chunks, of whole numbers or texts, or a dictionary of them.
      path: of the file, for the message.
      name: of the column, for the message.

    Raises:
      DataError: a row without an id, or ids that are neither whole numbers nor texts.
    """
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    texts = (pa.string(), pa.large_string(), pa.string_view())
    if not pa.types.is_integer(kind) and kind not in texts:
        raise DataError(
            f"{path}: the column {name} must hold whole numbers (int64, or another type of "
            f"integers) or texts, it holds {column.type}; leave it out where row numbers will do"
        )
    # pyarrow would make floats of a column with nulls, and round the ids.
    column = column.cast(kind)
    if column.null_count:
        row = int(column.is_null().to_numpy().argmax())
        raise DataError(f"{path}: row {row} has no id")
    return ids.checked(column.to_numpy(), path)
