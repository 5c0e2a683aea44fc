"""Safetensors files of which one tensor holds vectors, https://github.com/huggingface/safetensors.

Their own library copies what it reads, so the header is read here and the tensor mapped. A file is
eight bytes, the length of a JSON text as a little-endian number; the text; and the tensors, also
little-endian.
"""

import math
import pathlib
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mrl_jax.errors import DataError, shown
from mrl_jax.store import inputs, json_files
from mrl_jax.store.parts import Mapped, check_matrix, chosen

_FLOATS = {
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}


def open_tensor(path: pathlib.Path, name: str | None) -> Mapped:
    """The vectors of a file, mapped.

    Args:
      path: of the file.
      name: of the tensor; None: the only one that may hold vectors.

    Raises:
      DataError: a file that is missing, damaged or cut short, no such tensor, or several; one that
        does not hold [rows, dims] of floating point numbers. Names the file.
    """
    content = inputs.mapped_file(path)
    size = int(content[:8].view("<u8")[0]) if len(content) >= 8 else 0
    if not 2 <= size <= len(content) - 8:
        raise DataError(f"{path} is no whole safetensors file: no header fits its bytes")
    begin = 8 + size
    header = json_files.parse(content[8:begin].tobytes(), f"{path}: the header of safetensors")
    if not isinstance(header, dict):
        raise DataError(f"{path} is no safetensors file: its header is no object")
    header.pop("__metadata__", None)
    about = {key: _about(value, f"{path}: tensor {shown(key)}") for key, value in header.items()}
    kinds = {key: f"{tensor.kind} {list(tensor.shape)}" for key, tensor in about.items()}
    matrices = [
        key for key, tensor in about.items() if len(tensor.shape) == 2 and tensor.kind in _FLOATS
    ]
    name = chosen(path, name, matrices, kinds)
    more = len(content) - begin - max(tensor.last for tensor in about.values())
    if more:
        wrong = f"{-more:,} bytes are missing" if more < 0 else f"{more:,} bytes are too many"
        raise DataError(f"{path} is no whole safetensors file: {wrong} at its end")
    kind, shape, first, last = about[name]
    check_matrix(f"{path}:{name}", shape, _FLOATS.get(kind, kind))
    if last - first != math.prod(shape) * _FLOATS[kind].itemsize:
        raise DataError(f"{path}: {name} has {last - first:,} bytes, which are not {kinds[name]}")
    return Mapped(path, content[begin + first : begin + last].view(_FLOATS[kind]).reshape(shape))


class _Tensor(NamedTuple):
    """What the header says of a tensor: dtype, shape, its first byte and the one after its last."""

    kind: str
    shape: tuple[int, ...]
    first: int
    last: int


def _about(value: Any, where: str) -> _Tensor:
    shape = json_files.field(value, "shape", list, where)
    span = json_files.field(value, "data_offsets", list, where)
    whole = all(type(number) is int and number >= 0 for number in [*shape, *span])
    if not whole or len(span) != 2 or span[0] > span[1]:
        raise DataError(f"{where} cannot have shape {shown(shape)} at bytes {shown(span)}")
    return _Tensor(json_files.field(value, "dtype", str, where), tuple(shape), *span)
