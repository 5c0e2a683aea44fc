"""HDF5 files of which a data set holds vectors, as those of ann-benchmarks do (train, test).

What lies in one piece is mapped; of data sets in chunks, one block is in memory at a time. Files
are open only while they are looked at.
"""

import contextlib
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from mrl_jax import extras
from mrl_jax.errors import DataError, cut
from mrl_jax.store import inputs
from mrl_jax.store.parts import BLOCK, Blocks, Last, Mapped, Part, check_matrix, chosen


def open_dataset(path: pathlib.Path, name: str | None) -> Part:
    """The vectors of a data set.

    Args:
      path: of the file.
      name: of the data set, such as "train"; None: the only one that may hold vectors.

    Raises:
      UsageError: h5py is not installed.
      DataError: a file that is missing, damaged or cut short, no such data set, or several; one
        that does not hold [rows, dims] of floating point numbers, or not in this file, or that was
        not written to its end. Names the file.
    """
    with _opened(path) as file:
        dataset, name = _found(path, file, name)
        where, shape = f"{path}:{name}", dataset.shape or ()
        check_matrix(where, shape, dataset.dtype)
        if dataset.is_virtual or dataset.external:
            # HDF5 reads zeros where the other files are missing.
            raise DataError(f"{where} lies in other files; name these, or copy it into one")
        if dataset.chunks:
            expected = math.prod(-(-n // c) for n, c in zip(shape, dataset.chunks, strict=True))
            unwritten = dataset.id.get_num_chunks() < expected
        else:
            unwritten = not dataset.id.get_storage_size()
        if unwritten:
            raise DataError(f"{where} was not written to its end: it would be read as zeros")
        if (place := _place(dataset)) is not None:
            content = inputs.mapped_file(path)[place : place + dataset.nbytes]
            return Mapped(path, content.view(dataset.dtype).reshape(shape))
        at_least = dataset.chunks[0] if dataset.chunks else 1
        at_a_time = max(BLOCK // (shape[1] * at_least), 1) * at_least
        dtype = dataset.dtype
    firsts = range(0, shape[0], at_a_time)

    def load(block: int) -> np.ndarray:
        with _opened(path) as file:
            return file[name][firsts[block] : firsts[block] + at_a_time]

    sizes = [min(at_a_time, shape[0] - first) for first in firsts]
    return Blocks(path, sizes, shape[1], dtype, load, Last())


def _found(path: pathlib.Path, file: Any, name: str | None) -> tuple[Any, str]:
    import h5py

    if name is not None and isinstance(found := file.get(name), h5py.Dataset):
        return found, name
    datasets = {}

    def see(key: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            datasets[key] = item

    file.visititems(see)
    kinds = {key: f"{item.dtype} {list(item.shape or ())}" for key, item in datasets.items()}
    matrices = [
        key
        for key, item in datasets.items()
        if len(item.shape or ()) == 2 and item.dtype.kind == "f"
    ]
    name = chosen(path, name, matrices, kinds)
    return datasets[name], name


def _place(dataset: Any) -> int | None:
    """Where the numbers begin in the file, if they lie there in one piece as numpy has them."""
    import h5py

    same = dataset.id.get_type() == h5py.h5t.py_create(dataset.dtype)
    return dataset.id.get_offset() if same else None


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
    """An `h5py.File`; errors of h5py become one line.

    Raises:
      UsageError: h5py is not installed.
      DataError: names the file.
    """
    with extras.needed("hdf5", "HDF5"):
        import h5py

    inputs.check_file(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} is missing") from None
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no whole HDF5 file: {cut(str(error), 200)}") from error
