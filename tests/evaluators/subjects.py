"""Subjects whose embeddings a test chooses: everything but the backbone is the real thing."""

import functools

import jax
import numpy as np

from mrl_jax import NestedHead, Nesting
from mrl_jax.data import Dataset, Split
from mrl_jax.evaluators.subject import Embedded, Instruments, Subject
from mrl_jax.evaluators.text_common import TextSubject
from mrl_jax.models import build
from mrl_jax.runtime.mesh import make_mesh
from mrl_jax.tasks.classification.task import Classification

DIMS = (1, 3, 8)
CLASSES = 7
BATCH = 8


def task_of(kind, dims=DIMS, classes=CLASSES, normalize="none"):
    """An mlp of dims[-1] dims with a head; "fixed" is trained at its full width."""
    nesting = Nesting(dims[-1:]) if kind == "fixed" else Nesting(dims)
    return Classification(
        backbone=build("mlp", embedding_dim=dims[-1], width=8, depth=1),
        head=NestedHead(nesting, classes, kind, normalize),
        image_shape=(4, 4, 1),
    )


@functools.cache
def initial_values(task):
    """Compiled as one program, and once for all subjects of a task."""
    return jax.tree.map(np.asarray, jax.jit(task.init)(jax.random.key(0)))


def random_params(task, seed=3):
    """Fresh parameters with a head (bias as well) that is far from zero."""
    rng = np.random.default_rng(seed)
    params, model_state = initial_values(task)
    head = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params["head"])
    return {**params, "head": head}, model_state


def random_dataset(splits, classes=CLASSES, seed=0):
    """Random 4x4 images, so many per split."""
    rng = np.random.default_rng(seed)

    def split(n):
        image = rng.integers(0, 256, (n, 4, 4, 1)).astype(np.uint8)
        return Split(image, rng.integers(0, classes, n).astype(np.int32))

    names = tuple(f"class{i}" for i in range(classes))
    return Dataset("x", {name: split(n) for name, n in splits.items()}, names)


def clusters(n, width, classes=CLASSES, *, spread=1.0, seed=0):
    """Labelled points around random centres that do not depend on the seed: (z [N, D], label)."""
    centres_cd = np.random.default_rng(99).normal(size=(classes, width))
    rng = np.random.default_rng(seed)
    label_n = rng.integers(0, classes, n).astype(np.int32)
    z_nd = centres_cd[label_n] + spread * rng.normal(size=(n, width))
    return z_nd.astype(np.float32), label_n


def subject_of(
    embedded,
    kind="shared",
    *,
    dims=DIMS,
    measured=None,
    classes=CLASSES,
    params=None,
    seed=0,
    mesh=None,
    mirrored=None,
    **context,
):
    """A subject of which these are the embeddings: {split: (z [N, D], label [N])}."""
    task = task_of(kind, dims, classes)
    if params is None:
        params, model_state = random_params(task)
    else:
        model_state = {}
    known = {(name, False): Embedded(*of) for name, of in embedded.items()}
    known |= {(name, True): Embedded(*of) for name, of in (mirrored or {}).items()}
    instruments = Instruments(task, mesh or make_mesh(), BATCH, measured or dims)
    sizes = {"train": 1, **{name: len(label) for name, (_, label) in embedded.items()}}
    dataset = random_dataset(sizes, classes)
    context |= {"seed": seed, "embedded": known}
    return Subject(instruments, dataset, params, model_state, **context)


def texts_by(embed, dims, **options):
    """A subject that embeds texts, whatever they are there for, by a function of these alone."""
    return TextSubject(lambda texts, role: embed(texts), dims, **options)
