"""Arrow files and streams of vectors (IPC, also called Feather): mapped unless they are compressed.

Files (.arrow, .feather) list their batches at the end. Streams, which Hugging Face's `datasets`
writes as .arrow, do not: their batches are found by going through them.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mrl_jax import extras
from mrl_jax.errors import DataError
from mrl_jax.store import columns, inputs
from mrl_jax.store.parts import Blocks, Last

_END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream


def open_arrow(
    paths: Sequence[pathlib.Path], name: str | None = None, *, with_ids: bool = True
) -> list[Blocks]:
    """The vectors of Arrow files or streams.

    Of a compressed file, one batch is in memory at a time. Arguments are those of
    `tables.open_tables`.

    Raises:
      UsageError: pyarrow is not installed.
      DataError: as `tables.open_tables`; or a compressed stream, of which no part can be read by
        itself.
    """
    last, parts = Last(), []
    for path in paths:
        part, name = _open(path, name, with_ids, last)
        parts.append(part)
    return parts


def read_column(path: pathlib.Path, name: str | None) -> np.ndarray:
    """The ids [N] of a file or stream; arguments and errors are those of `tables.read_column`."""
    content = inputs.mapped_file(path)
    with _said(path):
        schema = _reader(path, content, []).schema
        name = columns.of_ids(path, schema, name)
        reader = _reader(path, content, [schema.get_field_index(name)])
        parts = [_sound(batch.column(name)) for batch in _batches(reader)]
        return columns.as_ids(_joined(parts, schema.field(name).type), path, name)


def _open(path: pathlib.Path, name: str | None, with_ids: bool, last: Last) -> tuple[Blocks, str]:
    """The vectors of a file, and the column that they are in."""
    content = inputs.mapped_file(path)
    with _said(path):
        reader = _reader(path, content, [])
        schema, in_file = reader.schema, hasattr(reader, "get_batch")
        name = columns.of_vectors(path, schema, name)
        with_ids = with_ids and "id" in schema.names
        if not (in_file and _is_mapped(reader, name, content)):
            # Nothing else is unpacked. Of a file that is not compressed, pyarrow would copy these.
            wanted = [name] + ["id"] * with_ids
            reader = _reader(path, content, [schema.get_field_index(field) for field in wanted])
        sizes, mapped_g, id_columns, width, row = [], [], [], None, 0
        for batch in _batches(reader):
            if with_ids:
                id_columns.append(_sound(batch.column("id")))
            rows_nd = None
            if len(batch):
                rows_nd = columns.as_rows(_sound(batch.column(name)), path, row)
                width = rows_nd.shape[1] if width is None else width
                if rows_nd.shape[1] != width:
                    raise columns.uneven(path, row, rows_nd.shape[1], width)
                if rows_nd.size and not _within(content, rows_nd.ctypes.data):
                    rows_nd, mapped_g = None, None
                    if not in_file:
                        raise DataError(
                            f"{path} is a compressed Arrow stream, of which no part can be read by "
                            "itself; write it uncompressed, or as an Arrow file (Feather)"
                        )
            if mapped_g is not None:
                mapped_g.append(rows_nd)
            sizes.append(len(batch))
            row += len(batch)
        ids_n = None
        if with_ids:
            ids_n = columns.as_ids(_joined(id_columns, schema.field("id").type), path)
    starts = np.cumsum([0, *sizes])

    def load(g: int) -> np.ndarray:
        if mapped_g is not None:
            return mapped_g[g]
        with _said(path):
            return columns.as_rows(_sound(reader.get_batch(g).column(name)), path, int(starts[g]))

    dtype = schema.field(name).type.value_type.to_pandas_dtype()
    last = None if mapped_g is not None else last
    return Blocks(path, sizes, width or 0, dtype, load, last, ids_n), name


def _reader(path: pathlib.Path, content: np.ndarray, fields: Sequence[int]) -> Any:
    """Of a file or a stream; it unpacks these fields only, or all if none is given."""
    import pyarrow as pa

    options = pa.ipc.IpcReadOptions(included_fields=list(fields))
    buffer = pa.py_buffer(content)
    begin = content[:8].tobytes()
    if begin.startswith(b"ARROW1"):
        return pa.ipc.open_file(buffer, options=options)
    if begin.startswith(b"FEA1"):
        raise DataError(
            f"{path} is Feather of version 1; version 2 is read, which pandas and pyarrow write"
        )
    if content[-8:].tobytes() != _END:
        raise DataError(f"{path} is no Arrow file, or cut short: no end of a file or stream")
    return pa.ipc.open_stream(buffer, options=options)


def _batches(reader: Any) -> Iterator[Any]:
    """All batches in order."""
    if hasattr(reader, "get_batch"):
        return map(reader.get_batch, range(reader.num_record_batches))
    return iter(reader)


def _sound(column: Any) -> Any:
    """The same column; ArrowInvalid if its lengths lead outside of it."""
    column.validate(full=True)
    return column


def _is_mapped(reader: Any, name: str, content: np.ndarray) -> bool:
    """Whether a column of a file is in its bytes as it is; seen where its rows begin."""
    for g in range(reader.num_record_batches):
        if len(column := reader.get_batch(g).column(name)):
            numbers = column.buffers()[-1]
            return numbers is not None and _within(content, numbers.address)
    return False


def _within(content: np.ndarray, address: int) -> bool:
    """Whether a place in memory is one of the bytes of the file."""
    return 0 <= address - content.ctypes.data < len(content)


def _joined(id_columns: Sequence[Any], kind: Any) -> Any:
    import pyarrow as pa

    return pa.chunked_array(id_columns, kind)


@contextlib.contextmanager
def _said(path: pathlib.Path) -> Iterator[None]:
    """Errors of pyarrow become one line."""
    with extras.needed("search", "Arrow"):
        import pyarrow as pa
    try:
        yield
    except MemoryError:
        raise DataError(f"{path} unpacks to more than fits in memory") from None
    except (OSError, ValueError, EOFError, pa.ArrowException) as error:
        raise DataError(f"{path} is no whole Arrow file: {error}") from error
