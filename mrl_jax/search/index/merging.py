"""Which segments become one when an index changes, so that there are few and little is rewritten.

A segment is merged with all that came after it once that is half as large. So each is more than
twice as large as the next, their number grows with the logarithm of the rows, and so does how often
a row is written: whenever it is, its segment grows by half at least. Only neighbours are merged,
because rows keep their order.
"""

from collections.abc import Sequence

import numpy as np

from mrl_jax import extras
from mrl_jax.search.index.rows import Rows
from mrl_jax.search.index.segment import Alive, Segment
from mrl_jax.search.plan import Plan

with extras.needed("search", "an index"):
    import pyarrow as pa

LARGER = 2  # times what came after it: a larger segment stays as it is
# One change rewrites at most so many bytes of vectors, about a second of work, or so many times the
# rows that it changes. Larger segments are left to `Index.compact`.
_BYTES, _TIMES = 2**28, 4
_FAISS_BYTES = 2**14  # what a row costs beside its vector where faiss makes a graph of the rows


def most_rows(plan: Plan, width: int, changed: int) -> int:
    """How many rows of `width` dims a change of so many rows may write."""
    row_bytes = 4 * width + (_FAISS_BYTES if plan.factory else 0)
    return max(_BYTES // row_bytes, _TIMES * changed)


def first_merged(alive_s: Sequence[int], most: int) -> int:
    """From which segment on all become one.

    Args:
      alive_s: rows that may be found of each segment, the oldest first.
      most: rows that may be written.
    """
    first = len(alive_s) - 1
    total = alive_s[first]
    while first and alive_s[first - 1] <= min(LARGER * total, most - total):
        first -= 1
        total += alive_s[first]
    return first


def next_merge(segments: Sequence[Segment], most: int) -> slice | None:
    """The newest segments to be written as one, or the newest that is mostly of deleted rows."""
    alive_s, last = [part.alive_rows for part in segments], len(segments)
    while last:
        first = first_merged(alive_s[:last], most)
        mostly_deleted = segments[first].rows > 2 * alive_s[first] and 0 < alive_s[first] <= most
        if last - first > 1 or mostly_deleted:
            return slice(first, last)
        last = first
    return None


class Joined:
    """Rows of segments, then new ones, as a source of a segment; raises as both of them.

    Attributes:
      rows, width: how many, and their dims.
      ids: [N], see `mrl_jax.search.index.ids`.
      attributes: a table of N rows; None if there are none.
    """

    def __init__(self, old: Alive, new: Rows):
        self._old, self._new = old, new
        self.rows, self.width = old.rows + new.rows, new.width
        self.ids = pa.concat_arrays([old.ids, new.ids])
        self.attributes = None
        if new.attributes is not None:
            self.attributes = pa.concat_tables([old.attributes, new.attributes])

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows first to last - 1."""
        middle = min(max(first, self._old.rows), last)
        found = []
        if first < middle:
            found.append(self._old.read(first, middle))
        if middle < last:
            found.append(self._new.read(middle - self._old.rows, last - self._old.rows))
        return np.concatenate(found)
