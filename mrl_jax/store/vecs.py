"""Files of the benchmarks of Corpus-Texmex (SIFT, GIST, ...): .fvecs, .bvecs and .ivecs.

Each row is the number of its numbers, little-endian int32, and then the numbers: little-endian
float32 (.fvecs), uint8 (.bvecs) or little-endian int32 (.ivecs), http://corpus-texmex.irisa.fr.
"""

import pathlib

import numpy as np

from mrl_jax.errors import DataError
from mrl_jax.store import inputs
from mrl_jax.store.parts import Mapped

_NUMBERS = {".fvecs": np.dtype("<f4"), ".bvecs": np.dtype("u1"), ".ivecs": np.dtype("<i4")}
VECTORS, IDS = (".fvecs", ".bvecs"), ".ivecs"


class Rows(Mapped):
    """The rows of such a file; that all have the same length is checked where they are read."""

    def __init__(self, path: pathlib.Path):
        content = inputs.mapped_file(path)
        number = _NUMBERS[path.suffix]
        if not len(content):
            raise DataError(f"{path} is empty: 0 rows")
        if len(content) < 4:
            raise DataError(f"{path} is cut short: it has {len(content)} bytes")
        width = int(content[:4].view("<i4")[0])
        if not 0 < width <= (len(content) - 4) // number.itemsize:
            raise DataError(
                f"{path} begins with {width} as the dims of row 0 (little-endian int32), which "
                f"does not fit its {len(content):,} bytes: cut short, or no {path.suffix} file"
            )
        kind = np.dtype([("dims", "<i4"), ("numbers", number, (width,))])
        whole, more = divmod(len(content), kind.itemsize)
        self._row_n = content[: whole * kind.itemsize].view(kind)
        super().__init__(path, self._row_n["numbers"])
        if more:
            self._check_dims(np.arange(whole))
            raise DataError(
                f"{path} is cut short: {more:,} bytes follow its {whole:,} rows of {width} dims, "
                f"a row has {kind.itemsize:,}"
            )

    def read(self, rows: slice | np.ndarray) -> np.ndarray:
        """These rows, in rising order.

        Raises:
          DataError: one of another length; names it.
        """
        self._check_dims(rows)
        return super().read(rows)

    def _check_dims(self, rows: slice | np.ndarray) -> None:
        other_n = self._row_n["dims"][rows] != self.width
        if other_n.any():
            row = np.arange(self.rows)[rows][other_n.argmax()]
            dims = self._row_n["dims"][row]
            raise DataError(f"{self.path}: row {row} has {dims} dims, row 0 has {self.width}")


def read_ids(path: pathlib.Path) -> np.ndarray:
    """The ids [N] of an .ivecs file with one number in each row, or with one row of them.

    Raises:
      DataError: it is missing, damaged or of another shape.
    """
    rows = Rows(path)
    if 1 not in (rows.rows, rows.width):
        raise DataError(
            f"{path} must hold one id in each row, or all in one row; it holds {rows.rows} rows of "
            f"{rows.width}"
        )
    return rows.read(slice(None)).ravel()
