"""What is known of rows beside their vectors: columns of a table, by which a search can choose."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mrl_jax import extras
from mrl_jax.errors import DataError, UsageError, cut, listed
from mrl_jax.search.index import pages

with extras.needed("search", "attributes"):
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset
    import pyarrow.parquet

FILE = "attributes.parquet"
Table = pa.Table | Mapping[str, Any]
_LONGEST = 200  # characters of what Arrow says


def taken(columns: Table, rows: int, schema: pa.Schema | None = None) -> pa.Table:
    """The attributes of so many rows, as they are given.

    Args:
      columns: a table, or arrays or lists by name.
      rows: N.
      schema: of those that rows of the index have already, in this order; None: there are none yet.

    Raises:
      DataError: names or types that cannot be, or that differ; or another number of rows.
    """
    try:
        table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"attributes must be a table, or columns by name: {_said(error)}") from None
    if not table.num_columns:
        raise DataError("attributes must have a column at least")
    if table.num_rows != rows:
        raise DataError(f"attributes have {table.num_rows} rows, there are {rows} vectors")
    if len(set(table.column_names)) < table.num_columns:
        raise DataError(f"attributes have two columns of a name: {listed(table.column_names)}")
    if schema is None:
        return table.replace_schema_metadata(None)
    if set(table.column_names) != set(schema.names):
        raise DataError(
            f"attributes have the columns {listed(table.column_names)}; "
            f"those of the index are {listed(schema.names)}"
        )
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise DataError(
            f"attributes are of other types than the index has: {_said(error)}"
        ) from None


def write(folder: pathlib.Path, table: pa.Table) -> None:
    """Writes the attributes of a segment's rows."""
    with (folder / FILE).open("wb") as file:
        pa.parquet.write_table(table, file)


class Stored:
    """The attributes of a segment, which are read when they are asked for."""

    def __init__(self, folder: pages.Folder, rows: int):
        self._file, self._rows = folder.file(FILE), rows

    def _opened(self) -> pa.BufferReader:
        return pa.BufferReader(pa.py_buffer(self._file.content()))

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"{self._file.path} is damaged: {_said(error)}")

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns; DataError if they are damaged."""
        try:
            return pa.parquet.read_schema(self._opened())
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from None

    def table(self) -> pa.Table:
        """All of them, [N]; DataError as `schema`."""
        try:
            return pa.parquet.read_table(self._opened())
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from None

    def fulfilling(self, predicate: pc.Expression) -> np.ndarray:
        """Of which rows a predicate is true, [N] bool; it is not true of missing values.

        Raises:
          UsageError: the predicate is not one of these columns.
          DataError: as `schema`.
        """
        part = pa.dataset.ParquetFileFormat().make_fragment(self._opened())
        schema = self.schema
        try:
            # Only the columns that it names are read, in the order of rows.
            found = part.to_table(schema, columns={"true": predicate}, use_threads=False)["true"]
        except (pa.ArrowException, ValueError) as error:
            raise UsageError(
                f"allow cannot be told of the columns {listed(schema.names)}: {_said(error)}"
            ) from None
        if not pa.types.is_boolean(found.type):
            raise UsageError(f"allow must be true or false of a row, {predicate} is {found.type}")
        if len(found) != self._rows:
            raise self._damaged(ValueError(f"{len(found)} rows instead of {self._rows}"))
        return found.fill_null(False).to_numpy()


def _said(error: Exception) -> str:
    return cut(str(error), _LONGEST)
