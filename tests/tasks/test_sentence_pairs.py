import functools
import re

import jax
import numpy as np
import pytest

from mrl_jax.models.text import Bert, SentenceEncoder, Static
from mrl_jax.nesting import Nesting
from mrl_jax.runtime.mesh import batch_sharding, make_mesh, replicated
from mrl_jax.tasks.sentence_pairs.task import SentencePairs

NESTING = Nesting((2, 8), (1.0, 3.0))
STATIC = SentenceEncoder(Static(50, 8))
BERT = SentenceEncoder(Bert(50, 8, 2, 2, 16, max_positions=32, dropout=0.0, attention_dropout=0.0))
SHALLOW = BERT.clone(backbone=BERT.backbone.clone(layers=1))
ROWS = 8


@functools.cache
def initial(encoder):
    """Fresh (parameters, model state), compiled once for all tasks of an encoder."""
    return jax.jit(task(encoder).init)(jax.random.key(0))


def raises(a_bd, b_bd, *, mask_b):
    return a_bd @ b_bd


def per_row(a_bd, b_bd, *, nesting, mask_b):
    return a_bd[:, 0], a_bd[0, :2]


def task(encoder=STATIC, sides=("anchor", "positive"), **options):
    return SentencePairs(encoder, NESTING, sides, 12, **options)


def batch_of(task, lengths=(6, 6), seed=0):
    """Random texts; rows 1 and 2 have the same anchor, rows 3 and 4 the same positive."""
    rng = np.random.default_rng(seed)
    batch = {"mask": np.ones(ROWS, np.float32)}
    for number, side in enumerate(task.sides):
        length = lengths[min(number, 1)]
        batch[f"{side}_tokens"] = rng.integers(1, 50, (ROWS, length)).astype(np.int32)
        batch[f"{side}_lengths"] = rng.integers(1, length + 1, ROWS).astype(np.int32)
        batch[f"{side}_id"] = np.arange(ROWS, dtype=np.int32) + ROWS * number
        if task.teacher_width:
            shape = (ROWS, task.teacher_width)
            batch[f"{side}_teacher"] = rng.normal(size=shape).astype(np.float32)
    batch["anchor_id"][2], batch["positive_id"][4] = batch["anchor_id"][1], batch["positive_id"][3]
    if "negative_0" in task.sides:
        batch["negative_0_id"][5] = batch["positive_id"][6]
    if task.scored:
        batch["score"] = rng.uniform(0, 1, ROWS).astype(np.float32)
    return batch


def loss_of(task, batch):
    return jax.jit(task.loss)(*initial(task.encoder), batch, jax.random.key(1))


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def embedded(task, batch):
    embed = jax.jit(task.embed)
    rows = [{k: batch[f"{side}_{k}"] for k in ("tokens", "lengths")} for side in task.sides]
    return [np.asarray(embed(*initial(task.encoder), of_side)) for of_side in rows]


def brute_force_info_nce(task, batch, symmetric):
    """By the definition, in float64: duplicates are nobody's negatives."""
    z, ids = embedded(task, batch), [batch[f"{side}_id"] for side in task.sides]
    columns = np.concatenate(ids[1:])

    def one_way(a, others, anchors, partners, candidates):
        losses = []
        for i in range(ROWS):
            keep = [
                j == i
                or (
                    candidates[j] not in (anchors[i], partners[i])
                    and (j >= ROWS or anchors[j] != anchors[i])
                    and (j >= ROWS or partners[j] != partners[i])
                )
                for j in range(len(candidates))
            ]
            logits = (others @ a[i])[keep] / task.temperature
            own = others[i] @ a[i] / task.temperature
            losses.append(np.log(np.exp(logits).sum()) - own)
        return np.mean(losses)

    found = []
    for dim in NESTING.dims:
        a, *others = (unit(x[:, :dim]) for x in z)
        there = one_way(a, np.concatenate(others), ids[0], ids[1], columns)
        back = one_way(others[0], a, ids[1], ids[0], ids[0])
        found.append((there + back) / 2 if symmetric else there)
    return np.array(found)


@pytest.mark.parametrize(("sides", "symmetric"), [(2, True), (3, False), (3, True)])
def test_info_nce_of_every_prefix_without_duplicates(sides, symmetric):
    names = ("anchor", "positive", "negative_0")[:sides]
    subject = task(sides=names, symmetric=symmetric, temperature=0.3)
    batch = batch_of(subject)
    loss, (loss_g, state) = loss_of(subject, batch)
    expected_g = brute_force_info_nce(subject, batch, symmetric)
    np.testing.assert_allclose(loss_g, expected_g, rtol=1e-5)
    assert float(loss) == pytest.approx(expected_g[0] + 3 * expected_g[1], rel=1e-5)
    assert state == {}
    without = {**batch, "positive_id": np.arange(ROWS, dtype=np.int32) + 100}
    assert abs(loss_of(subject, without)[1][0] - expected_g).max() > 1e-3


def test_texts_that_a_teacher_finds_nearer_are_no_negatives():
    subject = task(teacher_width=ROWS, symmetric=False)
    batch = batch_of(subject)
    batch["anchor_teacher"] = np.eye(ROWS, dtype=np.float32)
    # Each anchor's own positive is farther from it than all others: nothing is left to tell apart.
    batch["positive_teacher"] = -batch["anchor_teacher"]
    np.testing.assert_allclose(loss_of(subject, batch)[1][0], 0, atol=1e-5)
    # It is the nearest: the teacher has nothing to say.
    batch["positive_teacher"] = batch["anchor_teacher"]
    expected_g = brute_force_info_nce(subject, batch, symmetric=False)
    np.testing.assert_allclose(loss_of(subject, batch)[1][0], expected_g, rtol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "layers", "lengths"),
    [
        (STATIC, "last", (4, 9)),
        pytest.param(BERT, "sizes", (6, 6), marks=pytest.mark.slow),
        pytest.param(BERT, "sampled", (4, 9), marks=pytest.mark.slow),
    ],
    ids=["last", "sizes", "sampled"],
)
def test_small_parts_give_the_gradients_of_the_whole(encoder, layers, lengths):
    grads = []
    for micro_batch in (0, 2):
        subject = task(encoder, layers=layers, micro_batch=micro_batch)
        batch = batch_of(subject, lengths)
        grad = jax.jit(jax.grad(subject.loss, has_aux=True))
        grads.append(grad(*initial(encoder), batch, jax.random.key(1))[0])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *grads)
    assert max(abs(g).max() for g in jax.tree.leaves(grads[0])) > 1e-2


def test_sides_of_one_length_go_through_the_encoder_together():
    """And come out as if each went alone."""
    subject = task(SHALLOW)
    same, apart = batch_of(subject, (6, 6)), batch_of(subject, (6, 6))
    apart["positive_tokens"] = np.pad(apart["positive_tokens"], ((0, 0), (0, 3)))
    one, other = loss_of(subject, same)[0], loss_of(subject, apart)[0]
    assert float(one) == pytest.approx(float(other), rel=1e-5)


def test_depths_of_sizes_and_shallow_embeddings():
    subject = task(BERT, layers="sizes")
    assert subject.depths == (1, 2)
    batch = batch_of(subject)
    rows = {"tokens": batch["anchor_tokens"], "lengths": batch["anchor_lengths"]}
    embed = jax.jit(subject.embed, static_argnums=3)
    found = [np.asarray(embed(*initial(BERT), rows, depth)) for depth in (1, 2, None)]
    assert abs(found[0] - found[1]).max() > 1e-3
    np.testing.assert_array_equal(found[1], found[2])


@pytest.mark.parametrize(
    ("loss_name", "options"),
    [
        ("cosent", {"scored": True}),
        ("angle", {"scored": True}),
        ("cosine_mse", {"scored": True}),
        ("triplet", {"sides": ("anchor", "positive", "negative_0")}),
        ("distill_similarity", {"teacher_width": 5}),
        ("distill_kl", {"teacher_width": 5}),
        ("distill_vectors", {"teacher_width": 9}),
    ],
)
def test_every_loss_goes_down_when_followed(loss_name, options):
    subject = task(loss_name=loss_name, **options)
    batch = batch_of(subject)
    params, state = initial(STATIC)

    @jax.jit
    def step(params):
        grad = jax.value_and_grad(subject.loss, has_aux=True)
        (loss, (loss_g, _)), grads = grad(params, state, batch, jax.random.key(1))
        return loss, loss_g, jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)

    _, first, params = step(params)
    for _ in range(59):
        loss, loss_g, params = step(params)
    assert loss_g.shape == (2,)
    assert float(loss) == pytest.approx(float(loss_g[0] + 3 * loss_g[1]), rel=1e-5)
    assert (loss_g < 0.9 * first).all()


def test_cosine_mse_is_of_the_scores():
    subject = task(loss_name="cosine_mse", scored=True)
    batch = batch_of(subject)
    a, b = embedded(subject, batch)
    expected_g = [
        np.mean(((unit(a[:, :m]) * unit(b[:, :m])).sum(1) - batch["score"]) ** 2) for m in (2, 8)
    ]
    np.testing.assert_allclose(loss_of(subject, batch)[1][0], expected_g, rtol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "sizes", "micro_batch"),
    [(STATIC, (8, 1, 1), 0), pytest.param(BERT, (2, 2, 2), 4, marks=pytest.mark.slow)],
    ids=["rows", "three_axes"],
)
def test_gradients_on_a_mesh_are_those_of_one_device(encoder, sizes, micro_batch):
    mesh = make_mesh(*sizes)
    alone = task(encoder, sides=("anchor", "positive", "negative_0"))
    split = task(encoder, sides=alone.sides, mesh=mesh, micro_batch=micro_batch)
    batch = batch_of(alone)
    params, state = initial(encoder)
    grad = jax.jit(jax.grad(alone.loss, has_aux=True))
    expected, _ = grad(params, state, batch, jax.random.key(1))
    rows = jax.device_put(batch, batch_sharding(mesh))
    found, _ = jax.jit(jax.grad(split.loss, has_aux=True))(
        jax.device_put(params, replicated(mesh)), state, rows, jax.random.key(1)
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected
    )


def test_dropout_is_of_the_step():
    subject = task(SHALLOW.clone(backbone=SHALLOW.backbone.clone(dropout=0.5)))
    batch, fresh = batch_of(subject), initial(SHALLOW)
    loss = jax.jit(subject.loss)
    one, again, other = (loss(*fresh, batch, jax.random.key(k))[0] for k in (1, 1, 2))
    assert one == again != other


def test_batch_spec_is_what_batches_are():
    subject = task(sides=("anchor", "positive", "negative_0"), teacher_width=4)
    spec, batch = subject.batch_spec(ROWS), batch_of(subject, (12, 12))
    assert {name: (s.shape, s.dtype) for name, s in spec.items()} == {
        name: (x.shape, x.dtype) for name, x in batch.items()
    }
    assert "score" in task(scored=True, loss_name="cosent").batch_spec(4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_name": "mnrl"}, "loss must be one of info_nce, cosent"),
        ({"loss_name": "cosent"}, "loss cosent needs pairs with a score"),
        ({"loss_name": "triplet"}, "loss triplet needs pairs with hard negatives"),
        ({"loss_name": "distill_kl"}, "loss distill_kl needs a teacher"),
        ({"scored": True}, "loss info_nce would ignore the given score"),
        (
            {"loss_name": "cosent", "scored": True, "sides": ("anchor", "positive", "negative_0")},
            "loss cosent would ignore the given negatives",
        ),
        ({"loss_name": f"{__name__}:raises"}, ":raises fails with TypeError: dot_general"),
        (
            {"loss_name": f"{__name__}:per_row"},
            ":per_row must return a scalar and [2], got (8,) and (2,)",
        ),
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"micro_batch": -1}, "micro_batch must be >= 0, got -1"),
        ({"layers": "all"}, "layers must be one of last, sampled, sizes; got 'all'"),
        ({"layers": "sampled"}, "needs an encoder of several layers, this has one"),
    ],
)
def test_what_cannot_be_trained_is_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        task(**options)
