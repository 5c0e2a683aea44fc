"""A document as Markdown, and as one HTML file that needs nothing else."""

import base64
import functools
import html
import re
import urllib.parse

import jinja2
from markupsafe import Markup

from mrl_jax.reporting import text
from mrl_jax.reporting.content import Document, Figure

MARKS = {
    "bold": "the best mean of its row among columns measured on the same data, which need not be "
    "a real difference",
    text.UNTRAINED: "dims at which nothing was trained",
    f"{text.BETTER} {text.WORSE}": "better or worse: the 95% interval leaves out zero",
    text.HOLM: "still significant at 5% after Holm's correction, made for the dims of FF-m and for "
    "all other baselines together",
    f"{text.BETTER_HERE} {text.WORSE_HERE}": "better or worse for these trained networks alone, "
    "after Holm's correction; training again might change it",
    "n = 2": "the number of seeds, where it differs from the rest of the table",
    "intervals": "over seeds, they say what training again may give; over examples, photos, "
    "episodes or streams, what others of these may; where there is none, one pair of means or "
    "differences that are all equal allow no verdict",
    "a / b / c": "at how many trained dims the method is better, not clearly different and worse, "
    "after Holm's correction; below, the same for these trained networks alone",
    "figures": "filled markers are trained dims, hollow ones prefixes or projections that were not "
    "trained; bars are one sample standard deviation over seeds, in the lower panel 95% intervals, "
    "filled where the difference remains after Holm's correction; thick bars there speak of "
    "these networks alone",
}


def escape(value: object) -> str:
    """Text as Markdown with inline HTML shows it literally, on one line."""
    escaped = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"([\\`*_\[\]#|~])", r"\\\1", escaped)


def fenced(listing: str) -> Markup:
    """A block of text in a fence that is longer than any within it."""
    longest = max((len(ticks) for ticks in re.findall("`+", listing)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}text\n{listing}\n{fence}")


def _link(file: str) -> Markup:
    return Markup(urllib.parse.quote(file, errors="surrogateescape"))


def _embedded(figure: Figure, dark: bool) -> str:
    return "data:image/png;base64," + base64.b64encode(figure.draw(dark)).decode("ascii")


def _escaped(value: object) -> Markup:
    return value if isinstance(value, Markup) else Markup(escape(value))


@functools.cache
def _environment(markdown: bool) -> jinja2.Environment:
    """Templates in which every value is escaped that no filter has made safe."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mrl_jax.reporting"),
        autoescape=True,
        finalize=_escaped if markdown else None,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"fenced": fenced, "link": _link, "embedded": _embedded}
    return environment


def written(document: Document, template: str) -> str:
    """The report as "report.md", with plots in files beside it, or "report.html", with them inside.

    The page has no scripts and loads nothing.
    """
    environment = _environment(markdown=template.endswith(".md"))
    return environment.get_template(template).render(document=document, marks=MARKS)
