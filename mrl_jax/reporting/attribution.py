"""Where in a few images each prefix finds its class: the picture of one run, and its numbers."""

import statistics
from collections.abc import Sequence
from typing import Any

from mrl_jax.errors import DataError
from mrl_jax.record.runs import Run
from mrl_jax.reporting.content import Figure, Section
from mrl_jax.reporting.headline import count
from mrl_jax.reporting.methods import ONE_DIM, Method
from mrl_jax.reporting.plots import Theme
from mrl_jax.store.json_files import field


def _means(images: Sequence[Any], key: str, where: str) -> list[float | None]:
    """The mean over images of each entry of a list, without those that are null."""
    columns = zip(*(field(image, key, list, where) for image in images), strict=True)
    try:
        kept = [[v for v in column if v is not None] for column in columns]
        return [statistics.fmean(values) if values else None for values in kept]
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {key} is damaged ({error})") from error


def _sentences(run: Run, split: str) -> tuple[str, ...]:
    named = "attribution", split
    values, where = run.artefacts.table(*named), run.artefacts.where(*named)
    if values is None:
        return ()
    dims, images = (field(values, key, list, where) for key in ("dims", "images"))
    share = _means(images, "top_share", where)
    alike = [v for v in _means(images, "neighbour_correlation", where) if v is not None]
    if len(share) != len(dims) or not dims:
        raise DataError(f"{where}: top_share must have a number for each of {len(dims)} dims")
    said = []
    if share[0] is not None and share[-1] is not None:
        said.append(
            f"The brightest fifth of the pixels holds {share[0]:.0%} of a map at {dims[0]} dims "
            f"and {share[-1]:.0%} at {dims[-1]} (mean of {count(len(images), 'image')}, which "
            "illustrate and prove nothing)."
        )
    if alike:
        said.append(
            "Maps of neighbouring prefixes correlate by "
            f"{statistics.fmean(alike):.2f} over the pixels, on average."
        )
    return tuple(said)


def section(methods: Sequence[Method], split: str) -> Section | None:
    """The picture of the first nested run that has one, else of any; None where there is none."""
    ordered = sorted(methods, key=lambda method: method.kind in ONE_DIM)
    for method in ordered:
        for seed, run in sorted(method.runs.items()):
            picture = run.artefacts.image("attribution", split)
            if picture:
                return _section(method, seed, run, split, picture)
    return None


def _section(method: Method, seed: int, run: Run, split: str, picture: bytes) -> Section:
    def draw(theme: Theme) -> bytes:
        del theme  # photographs are the same by day and night
        return picture

    caption = (
        f"What the predicted class rests on at each prefix of {method.label}, seed {seed} "
        f"({split} images drawn at random within each kind)."
    )
    figure = Figure("attribution.png", caption, draw, wide=True)
    return Section("Where each prefix looks", "", _sentences(run, split), (figure,))
