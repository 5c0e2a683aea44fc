"""Where in an image each prefix finds its class: heat maps of a few images, as a picture."""

import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np

from mrl_jax.data import Split, padded_batches
from mrl_jax.data.images import centre_square
from mrl_jax.data.stream import Stream
from mrl_jax.evaluators.grad_cam import TOP_SHARE, grad_cam, neighbour_correlation, top_share
from mrl_jax.evaluators.subject import Subject
from mrl_jax.record.finding import Finding, Unmeasurable
from mrl_jax.runtime.mesh import batch_divisor, batch_sharding

MOST_IMAGES = 6
MOST_DIMS = 6
# By (right at the smallest dim, right at the largest).
KINDS = {
    (False, True): "wrong, then right",
    (True, False): "right, then wrong",
    (True, True): "right",
    (False, False): "wrong",
}


def shown_dims(classifiable: Sequence[int], trained: Sequence[int]) -> tuple[int, ...]:
    """The trained dims, or all where only one was trained; at most `MOST_DIMS`, spread evenly."""
    dims = [m for m in classifiable if m in trained]
    if len(dims) < 2:
        dims = list(classifiable)
    kept = np.linspace(0, len(dims) - 1, min(len(dims), MOST_DIMS)).round().astype(int)
    return tuple(dims[i] for i in kept)


def chosen_examples(right_gn: np.ndarray, seed: int) -> list[tuple[str, int]]:
    """Up to `MOST_IMAGES` (kind, row), drawn in turn from the examples of each of `KINDS`."""
    order = np.random.default_rng(seed).permutation(right_gn.shape[1])
    columns = []
    for (first, last), kind in KINDS.items():
        rows = order[(right_gn[0, order] == first) & (right_gn[-1, order] == last)]
        columns.append([(kind, int(row)) for row in rows[:MOST_IMAGES]])
    drawn = [found for turn in itertools.zip_longest(*columns) for found in turn if found]
    place = list(KINDS.values()).index
    return sorted(drawn[:MOST_IMAGES], key=lambda found: place(found[0]))


def images_of(split: Split | Stream, rows: Sequence[int]) -> np.ndarray:
    """These images of a split, [B, H, W, C] uint8, as they are in evaluation."""
    if isinstance(split, Split):
        return split.image[list(rows)]
    # Opened one by one: batches would decode the whole split on the way there.
    records = [split.records[row] for row in rows]
    return np.stack([centre_square(r.data, r.where, split.size, split.eval_crop) for r in records])


def _numbers(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 4) for value in values]


def _picture(class_names, dims, image_bhwc, map_gbhw, images) -> bytes:
    # Here, because matplotlib takes a second to import, which other measures need not wait for.
    from mrl_jax.evaluators import contact_sheet

    def panels(image, map_ghw):
        said = [class_names[label] for label in image["predicted"]]
        given = zip(map_ghw, said, image["confidence"], image["right"], strict=True)
        return [contact_sheet.Panel(*panel) for panel in given]

    rows = []
    for i, image in enumerate(images):
        label, shown = class_names[image["class"]], panels(image, map_gbhw[:, i])
        rows.append(contact_sheet.Row(image["kind"], image_bhwc[i], label, shown))
    note = "Grad-CAM of the class that is said (with its probability): bright is what speaks for it"
    return contact_sheet.draw(["image", *(f"{m} dims" for m in dims)], rows, note)


def measure(subject: Subject, split: str) -> Finding:
    """What the predicted class of a few images rests on, prefix by prefix; no results, two files.

    The picture of kind "attribution" shows it. The file of that kind says of each image whether its
    maps are focused (`top_share`, per dim) and whether they stay in place (`neighbour_correlation`,
    per pair of neighbouring dims); null where that is not defined.

    Raises:
      Unmeasurable: the backbone has no feature map.
    """
    dims = shown_dims(subject.classifiable, subject.task.nesting.dims)
    predictions = subject.predictions(split)
    at = [predictions.dims.index(m) for m in dims]
    predicted_gn, confidence_gn = predictions.predicted_gn[at], predictions.confidence_gn[at]
    right_gn = predictions.rank_gn[at] == 1
    examples = chosen_examples(right_gn, subject.seed)
    rows = [row for _, row in examples]
    arrays = {
        "image": images_of(subject.split(split), rows),
        "class_bg": predicted_gn[:, rows].T.astype(np.int32),
    }
    divisor = batch_divisor(subject.mesh.shape)
    size = math.ceil(MOST_IMAGES / divisor) * divisor
    (batch,) = padded_batches(arrays, size, batch_sharding(subject.mesh))
    maps = grad_cam(subject.task, subject.mesh, dims)
    map_gbhw = jax.device_get(maps(subject.params, subject.model_state, batch))
    if map_gbhw is None:
        raise Unmeasurable("the backbone has no feature map")
    images = [
        {
            "example": row,
            "kind": kind,
            "class": int(predictions.label_n[row]),
            "predicted": predicted_gn[:, row].tolist(),
            "right": right_gn[:, row].tolist(),
            "confidence": _numbers(confidence_gn[:, row]),
            "top_share": _numbers(top_share(map_gbhw[:, i])),
            "neighbour_correlation": _numbers(neighbour_correlation(map_gbhw[:, i])),
        }
        for i, (kind, row) in enumerate(examples)
    ]
    content = {"dims": dims, "top": TOP_SHARE, "images": images}
    found, names = Finding(), subject.dataset.class_names
    found.add_file("attribution", split, content)
    picture = _picture(names, dims, arrays["image"], map_gbhw, images)
    found.add_picture("attribution", split, picture)
    return found
