"""A picture for people: the photos that a few captions find, at few, some and all dims."""

import io
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mrl_jax.evaluators.cross_modal import Captions
from mrl_jax.evaluators.ranking import ROUNDING
from mrl_jax.evaluators.text_common import unit_rows
from mrl_jax.record.finding import Finding
from mrl_jax.record.results import Series

KIND = "found_photos"
CAPTIONS, BEST = 6, 5  # captions that are shown, and photos for each

DPI = 130
CELL, GAP, LEFT, BLOCK_GAP = 0.95, 0.06, 0.75, 0.45  # inches
TITLE = 0.5  # over each block
NOTE = 0.4
FONT = 8  # points
PAPER, INK, FAINT, RIGHT = "#ffffff", "#24292f", "#b8bfc6", "#00805b"


class Found(NamedTuple):
    """What one caption finds.

    Attributes:
      caption: the text.
      photo_gk: the nearest photos at each of G dims, the best first.
      own_gk: which of them are right.
      rank_g: of the nearest right photo.
    """

    caption: str
    photo_gk: np.ndarray
    own_gk: np.ndarray
    rank_g: np.ndarray


def shown_dims(dims: Sequence[int]) -> tuple[int, ...]:
    """The smallest dim, the middle one and the largest."""
    return tuple(sorted({dims[0], dims[(len(dims) - 1) // 2], dims[-1]}))


def measure(
    image_pd: np.ndarray,
    text_nd: np.ndarray,
    captions: Captions,
    text_of: Callable[[int], str],
    at: Series,
    dims: Sequence[int],
    photos: Callable[[Sequence[int]], np.ndarray],
    seed: int = 0,
) -> Finding:
    """The picture of kind "found_photos", and a JSON file of that kind which says the same.

    Args:
      image_pd, text_nd, captions, at: as of `cross_modal.measure`.
      text_of: number of a caption to its text.
      dims: three of them are shown, see `shown_dims`.
      photos: numbers of photos to images [B, H, W, 3] uint8.
      seed: what the captions are drawn by, one of each of six photos.
    """
    shown = shown_dims(tuple(dims))
    rng = np.random.default_rng(seed)
    _, first_u = np.unique(captions.photo_t, return_index=True)
    drawn = np.sort(rng.permutation(first_u)[:CAPTIONS])
    # Of each of these photos any of its captions.
    rows = [int(rng.choice(np.flatnonzero(captions.photo_t == p))) for p in captions.photo_t[drawn]]
    found = [_search(image_pd, text_nd, captions, row, text_of(row), shown) for row in rows]
    wanted = sorted({int(p) for one in found for p in one.photo_gk.ravel()})
    image_of = dict(zip(wanted, photos(wanted), strict=True))
    result = Finding()
    result.add_file(
        KIND,
        at.place,
        {
            "dims": shown,
            "captions": [
                {
                    "caption": one.caption,
                    "photos": one.photo_gk.tolist(),
                    "right": one.own_gk.tolist(),
                    "rank": one.rank_g.tolist(),
                }
                for one in found
            ],
        },
    )
    result.add_picture(KIND, at.place, draw(found, shown, image_of, len(image_pd)))
    return result


def _search(
    image_pd: np.ndarray,
    text_nd: np.ndarray,
    captions: Captions,
    row: int,
    text: str,
    dims: Sequence[int],
) -> Found:
    # Any photo that has a caption of the same text is right.
    right_p = np.isin(
        np.arange(len(image_pd)), captions.photo_t[captions.same_t == captions.same_t[row]]
    )
    photos, rights, rank_g = [], [], []
    for dim in dims:
        unit_pd = unit_rows(image_pd[:, :dim].astype(np.float64), "images")
        cosine_p = unit_pd @ unit_rows(text_nd[row : row + 1, :dim].astype(np.float64), "texts")[0]
        best_k = np.argsort(-cosine_p, kind="stable")[:BEST]
        photos.append(best_k)
        rights.append(right_p[best_k])
        # As in `cross_modal.ranks`: what is as near within rounding is ahead.
        ahead_p = ~(cosine_p < cosine_p[right_p].max() - ROUNDING) & ~right_p
        rank_g.append(1 + int(ahead_p.sum()))
    return Found(text, np.stack(photos), np.stack(rights), np.array(rank_g))


def draw(
    found: Sequence[Found], dims: Sequence[int], image_of: dict[int, np.ndarray], photos: int
) -> bytes:
    """The PNG: a block for each caption, in two columns; a row of photos for each dim.

    Right photos have a green frame. Same input, same bytes.
    """
    # Here, because matplotlib takes a second to import, which other measures need not wait for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    block_width = LEFT + BEST * (CELL + GAP)
    block_height = TITLE + len(dims) * (CELL + GAP)
    rows = -(-len(found) // 2)
    columns = min(2, len(found))
    total_width = columns * block_width + (columns - 1) * BLOCK_GAP + 2 * GAP
    total_height = rows * (block_height + GAP) + NOTE
    figure = Figure(figsize=(total_width, total_height), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    text = {"fontsize": FONT, "parse_math": False, "color": INK}

    def inches(x: float, y: float) -> tuple[float, float]:
        return x / total_width, 1 - y / total_height

    for number, one in enumerate(found):
        left = GAP + (number % 2) * (block_width + BLOCK_GAP)
        top = (number // 2) * (block_height + GAP)
        # Fonts lack the letters of many scripts.
        caption = "".join(c if c.isprintable() and ord(c) < 0x2E80 else "?" for c in one.caption)
        title = "\n".join(textwrap.wrap(caption, int(block_width / 0.075))[:2])
        figure.text(*inches(left, top + TITLE - 0.06), title, va="bottom", weight="bold", **text)
        for g, dim in enumerate(dims):
            y = top + TITLE + g * (CELL + GAP)
            said = f"{dim} dims\nrank {one.rank_g[g]:,}"
            figure.text(*inches(left, y + CELL / 2), said, va="center", **text)
            for k, photo in enumerate(one.photo_gk[g].tolist()):
                x = left + LEFT + k * (CELL + GAP)
                place = (*inches(x, y + CELL), CELL / total_width, CELL / total_height)
                axes = figure.add_axes(place)
                axes.imshow(image_of[photo], aspect="auto")
                axes.set_xticks([])
                axes.set_yticks([])
                right = bool(one.own_gk[g, k])
                for spine in axes.spines.values():
                    spine.set_color(RIGHT if right else FAINT)
                    spine.set_linewidth(3 if right else 0.6)
    note = (
        f"The {BEST} nearest of {photos:,} photos; a green frame marks the photo that the caption "
        "belongs to; its rank is at the left"
    )
    figure.text(*inches(GAP, total_height - NOTE / 2), note, va="center", **text)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor=PAPER, metadata={"Software": None})
    return buffer.getvalue()
