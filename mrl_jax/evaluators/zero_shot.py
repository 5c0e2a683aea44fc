"""Classes of images told by their names alone, and by the nearest labelled image, at every prefix.

A class is the mean of texts that name it, "a photo of a dog." and so on (CLIP, arXiv 2103.00020,
section 3.1.4).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from mrl_jax.errors import UsageError
from mrl_jax.evaluators.class_means import nearest_is_own
from mrl_jax.evaluators.cross_modal import Sides, alone
from mrl_jax.evaluators.ranking import nearest
from mrl_jax.evaluators.text_common import unit_rows
from mrl_jax.record.finding import Finding, Unmeasurable
from mrl_jax.record.results import Series


def check_templates(templates: Sequence[str]) -> None:
    """Raises UsageError unless there are templates, each with one place for a name, "{}"."""
    if not templates:
        raise UsageError('config.eval.templates is empty; an example: "a photo of a {}."')
    for template in templates:
        if template.count("{}") != 1:
            raise UsageError(
                'config.eval.templates: every template has one "{}", where the name of a class '
                f"goes; got {template!r}"
            )


def check(names: Sequence[str]) -> None:
    """Raises Unmeasurable if there is but one class."""
    if len(names) < 2:
        raise Unmeasurable(f"needs at least 2 classes, got {len(names)}")


def texts(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every template for the first class, then for the second, and so on: C x K texts."""
    return [template.replace("{}", name) for name in names for template in templates]


def class_vectors(text_ckd: np.ndarray, dim: int) -> np.ndarray:
    """The first `dim` dims of K texts for each of C classes as one vector each, [C, dim].

    Texts are cut, scaled to unit length, and averaged: so the vector of a shorter prefix is no
    prefix of that of a longer one.
    """
    cut_ckm = text_ckd[..., :dim].astype(np.float64)
    length_ck1 = np.linalg.norm(cut_ckm, axis=-1, keepdims=True)
    return (cut_ckm / np.where(length_ck1 > 0, length_ck1, 1)).mean(1)


def measure(
    image_nd: np.ndarray,
    label_n: np.ndarray,
    text_cd: np.ndarray,
    classes: int,
    at: Series,
    dims: Sequence[int],
    *,
    spaces: Mapping[str, Sides] | None = None,
) -> Finding:
    """Metric zero_shot: how often the nearest class vector, by cosine, is that of the true class.

    Another class that is equally near within rounding makes the answer wrong.

    Args:
      image_nd: embeddings of images [N, D], of any length.
      label_n: their classes.
      text_cd: embeddings of the texts that `texts` gives, [C x K, D].
      classes: C.
      at: the set.
      dims: prefixes.
      spaces: as from `cross_modal.rivals`; None: the embedding alone.

    Raises:
      NonFiniteError: an embedding holds NaN or an infinity.
    """
    image_nd = unit_rows(image_nd, f"images of {at.place}")
    text_cd = unit_rows(text_cd, f"class names of {at.place}")
    found = Finding()
    for name, sides in (spaces or alone(image_nd.shape[1])).items():
        there = sides.dims(dims)
        x_ne, x_te = sides.image.project(image_nd), sides.text.project(text_cd)
        x_cke = x_te.reshape(classes, -1, x_te.shape[1])
        right_gn = [
            nearest_is_own(x_ne[:, :dim], label_n, class_vectors(x_cke, dim), (dim,))[0]
            for dim in there
        ]
        found.add_right(at.of("zero_shot", name), there, np.stack(right_gn))
    return found


def neighbours(
    train_nd: np.ndarray,
    train_label_n: np.ndarray,
    image_nd: np.ndarray,
    label_n: np.ndarray,
    at: Series,
    dims: Sequence[int],
    *,
    spaces: Mapping[str, Sides] | None = None,
    mesh: Mesh | None = None,
) -> Finding:
    """Metric 1nn: how often the nearest image of the set's train split is of the same class.

    Of images that are equally near, the first of the train split is taken. Arguments and errors are
    as of `measure`; `mesh` splits what is searched.
    """
    train_nd = unit_rows(train_nd, f"training images of {at.place}")
    image_nd, found = unit_rows(image_nd, f"images of {at.place}"), Finding()
    for name, sides in (spaces or alone(image_nd.shape[1])).items():
        there, (train_ne, x_ne) = sides.dims(dims), map(sides.image.project, (train_nd, image_nd))
        row_gn = nearest(train_ne, x_ne, there, 1, mesh=mesh)[..., 0]
        found.add_right(at.of("1nn", name), there, train_label_n[row_gn] == label_n)
    return found
