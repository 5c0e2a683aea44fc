import dataclasses

import jax
import numpy as np
import pytest

from mrl_jax import NestedHead, Nesting
from mrl_jax.errors import UsageError
from mrl_jax.models import build
from mrl_jax.models.mlp import Mlp
from mrl_jax.runtime.mesh import make_mesh
from mrl_jax.tasks.classification.task import Classification


def make_task(kind="shared", classes=6, **options):
    return Classification(
        backbone=build("mlp", embedding_dim=8, width=8, depth=1),
        head=NestedHead(Nesting((2, 5, 8), (1.0, 3.0, 0.5)), classes, kind, "prefix"),
        image_shape=(4, 4, 1),
        label_smoothing=0.1,
        **options,
    )


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_every_form_of_the_loss_is_the_same_loss(kind):
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (16, 4, 4, 1)).astype(np.uint8),
        "label": rng.integers(0, 6, 16).astype(np.int32),
        "mask": (np.arange(16) % 5 > 0).astype(np.float32),
    }
    plain = make_task(kind, loss_form="plain")
    params, state = jax.jit(plain.init)(jax.random.key(0))

    def run(task):
        grad = jax.value_and_grad(task.loss, has_aux=True)
        return jax.tree.map(np.asarray, jax.jit(grad)(params, state, batch, jax.random.key(0)))

    expected = run(plain)
    for form in ("blockwise", "streamed"):
        found = run(dataclasses.replace(plain, loss_form=form))
        jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-6), found, expected)


def test_auto_fuses_where_all_logits_of_a_device_are_many():
    task = make_task(classes=1000)
    assert task.form_of(699) == "plain"  # 3 granularities x 699 x 1000 is just below 2**21
    assert task.form_of(700) == "blockwise"
    on_mesh = dataclasses.replace(task, mesh=make_mesh(data=2, tensor=4))
    assert on_mesh.form_of(8 * 699) == "plain"
    assert on_mesh.form_of(8 * 700) == "blockwise"
    assert make_task(classes=999, mesh=on_mesh.mesh).form_of(8 * 800) == "plain"
    assert make_task(loss_form="streamed").form_of(1) == "streamed"


def test_a_loss_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="loss must be one of auto, plain, blockwise, streamed"):
        make_task(loss_form="fused")
    mesh = make_mesh(data=2, tensor=4)
    with pytest.raises(ValueError, match=r"'blockwise' needs classes that divide over .*=4, got 6"):
        make_task(loss_form="blockwise", mesh=mesh)


class Mistaken(Mlp):
    """A backbone that is wider than it says."""

    out_dim = 8


def test_a_backbone_whose_embeddings_are_not_as_wide_as_it_says_is_refused():
    backbone = build(f"{__name__}:Mistaken", embedding_dim=9)
    task = dataclasses.replace(make_task(), backbone=backbone)
    with pytest.raises(UsageError, match=r"must be \[1, 8\] .* out_dim says, got \(1, 9\)"):
        jax.eval_shape(task.init, jax.random.key(0))
