"""Tables as text, the same on a terminal and in a log file."""

import io
import shutil
from collections.abc import Collection, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

# A line below the heads, blanks between columns, and only ASCII.
_LINES = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
_WIDE = 10_000  # characters: cells are never broken or cut


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = ()) -> str:
    """The rows below the heads, in columns that never touch.

    Args:
      heads: of the columns; may have several lines.
      rows: as many cells each.
      left: indices of the columns of words, which are aligned left; all others are aligned right.
    """
    made = Table(box=_LINES, show_edge=False, pad_edge=False, header_style="", padding=(0, 1))
    for number, head in enumerate(heads):
        side = "left" if number in left else "right"
        made.add_column(Text(head), justify=side, vertical="bottom", no_wrap=True)
    return _printed(made, rows)


def wrapped(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of words as wide as the terminal, whose longer cells go on in further lines."""
    made = Table(box=_LINES, show_edge=False, pad_edge=False, header_style="", padding=(0, 1))
    for number, head in enumerate(heads):
        made.add_column(Text(head), overflow="fold", ratio=[3, 2, 6][min(number, 2)])
    return _printed(made, rows, max(80, shutil.get_terminal_size((120, 0)).columns))


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns without heads: a name and its value on each line."""
    return _printed(Table.grid(padding=(0, 2)), rows)


def plain(text: str) -> str:
    """`text` in printable ASCII: terminals differ, and the names of runs are not to be trusted."""
    text = text.replace("±", "+-").replace("−", "-")
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def _printed(made: Table, rows: Sequence[Sequence[str]], width: int = _WIDE) -> str:
    for row in rows:
        made.add_row(*map(Text, row))
    written = io.StringIO()
    Console(file=written, width=width, color_system=None, force_terminal=False).print(made)
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())
