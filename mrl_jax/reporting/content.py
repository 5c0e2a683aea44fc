"""The parts of a report before they become Markdown or HTML."""

import dataclasses
from collections.abc import Callable

from mrl_jax.reporting.plots import Theme
from mrl_jax.reporting.sheet import Sheet


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure: the PNG file beside the report, a caption, and its drawing by theme."""

    file: str
    caption: str
    draw: Callable[[Theme], bytes]
    wide: bool = False  # takes the whole width of a page


@dataclasses.dataclass(frozen=True)
class Section:
    """What was found about one thing.

    Attributes:
      lead: what a reader in a hurry should know, for the top of the report.
      sentences: all of it, beside the figures.
      sheets: tables that are open; `folded`, those behind a title.
    """

    heading: str
    lead: str = ""
    sentences: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    folded: tuple[Sheet, ...] = ()


@dataclasses.dataclass(frozen=True)
class Document:
    """A report: what it says, what it shows, and the folded parts with their titles."""

    title: str
    facts: str
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]
    overview: Sheet | None
    legend: str  # how to read the figures
    folded: tuple[tuple[str, tuple[Sheet, ...]], ...]
    runs: Sheet
    listings: tuple[tuple[str, str], ...]  # title and preformatted text

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All figures in order."""
        return tuple(figure for section in self.sections for figure in section.figures)
