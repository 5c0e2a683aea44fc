"""The parts of a report before the templates turn them into Markdown or HTML."""

from collections.abc import Callable
from typing import NamedTuple


class Cell(NamedTuple):
    """The text of one cell, a second small line under it, and whether it is the best of its row."""

    text: str = ""
    below: str = ""
    best: bool = False

    @property
    def parts(self) -> tuple[str, str]:
        """The number, and the spread or interval after it, which a narrow page puts below it."""
        number, space, rest = self.text.partition(" ")
        return (number, rest) if space and rest[0] in "±[" else (self.text, "")


class Row(NamedTuple):
    """One row; `faint` sets the dims apart that were never trained."""

    head: str
    cells: tuple[Cell, ...]
    faint: bool = False


class Sheet(NamedTuple):
    """A table ready to be written down. `numbers` aligns the cells to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    numbers: bool = True


class Figure(NamedTuple):
    """The name of the PNG file beside the report, a caption, and the drawing; `dark` for pages."""

    file: str
    caption: str
    draw: Callable[[bool], bytes]  # of whether it is for a dark page
    wide: bool = False  # takes the whole width of a page


class Section(NamedTuple):
    """What was found about one thing: one sentence, figures, open tables and folded ones."""

    heading: str
    lead: str = ""
    figures: tuple[Figure, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    folded: tuple[Sheet, ...] = ()


class Document(NamedTuple):
    """A report. `overview` compares all measures at a glance, `listings` are preformatted."""

    title: str
    facts: tuple[str, ...]
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]
    overview: Sheet | None
    folded: tuple[tuple[str, tuple[Sheet, ...]], ...]
    listings: tuple[tuple[str, str], ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All figures in order."""
        return tuple(figure for section in self.sections for figure in section.figures)
