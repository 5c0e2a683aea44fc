"""Which superclass a class belongs to, read from a file."""

from typing import NamedTuple

import numpy as np


class Hierarchy(NamedTuple):
    """Superclass names, and for each of C classes the index of its own, -1 for none: [C] int32."""

    names: tuple[str, ...]
    group_c: np.ndarray
