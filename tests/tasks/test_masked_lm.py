import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax.losses import nested_cross_entropy
from mrl_jax.models.text import Bert
from mrl_jax.nesting import Nesting
from mrl_jax.runtime.mesh import batch_sharding, make_mesh, replicated, shardings
from mrl_jax.tasks.masked_lm.task import MaskedLM

NESTING = Nesting((2, 8, 16), (1.0, 3.0, 0.5))
BERT = Bert(48, 16, 1, 2, 24, max_positions=16, dropout=0.0, attention_dropout=0.0)
ROWS, LENGTH, PLACES = 8, 10, 3


def task(backbone=BERT, nesting=NESTING, **options):
    return MaskedLM(backbone, nesting, LENGTH, PLACES, **options)


def batch_of(vocab=48, seed=0):
    """Random tokens; row 2 has one prediction and row 5 none."""
    rng = np.random.default_rng(seed)
    mask = np.ones((ROWS, PLACES), np.float32)
    mask[2, 1:], mask[5] = 0, 0
    return {
        "tokens": rng.integers(0, vocab, (ROWS, LENGTH)).astype(np.int32),
        "places": rng.integers(1, LENGTH, (ROWS, PLACES)).astype(np.int32),
        "labels": rng.integers(0, vocab, (ROWS, PLACES)).astype(np.int32),
        "mask": mask,
    }


def params_of(subject, seed=0):
    """As at the start, with an output bias that is not zero."""
    params, _ = jax.jit(subject.init)(jax.random.key(seed))
    bias = np.random.default_rng(seed).normal(size=subject.backbone.vocab_size)
    return {**params, "head": {"bias": bias.astype(np.float32)}}


def hidden(subject, params, batch):
    """What the output layer reads, [N, D] float64, without the task's own way there."""
    lengths = np.full(ROWS, LENGTH, np.int32)

    @jax.jit
    def run(params):
        states = BERT.apply({"params": params["backbone"]}, batch["tokens"], lengths)[-1]
        return subject.transform.apply({"params": params["transform"]}, states)

    h_btd = np.asarray(run(params), np.float64)
    return np.concatenate([h_btd[b, places] for b, places in enumerate(batch["places"])])


def oracle(h_nd, table_vd, bias_v, label_n, count_n, dims):
    """Mean cross-entropy per dim and its gradient by the bias, in float64."""
    losses, gradients = [], []
    for m in dims:
        logits = h_nd[:, :m] @ table_vd[:, :m].T + bias_v
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        right = np.eye(len(bias_v))[label_n]
        losses.append(-np.log((p * right).sum(1))[count_n].mean())
        gradients.append((p - right)[count_n].sum(0) / count_n.sum())
    return np.array(losses), np.array(gradients)


def gradients_of(subject):
    """A function of parameters and batch: (loss, loss of each granularity, gradients)."""
    grad = jax.jit(jax.value_and_grad(subject.loss, has_aux=True))

    def call(params, batch):
        (loss, (loss_g, _)), grads = grad(params, {}, batch, jax.random.key(1))
        return loss, loss_g, grads

    return call


def close(found, expected, tolerance=1e-5):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=tolerance), found, expected
    )


@pytest.fixture(scope="module")
def alone():
    """On one device the function of `gradients_of`, parameters, a batch, and what comes of them."""
    subject, batch = task(), batch_of()
    params, gradients = params_of(subject), gradients_of(subject)
    return gradients, params, batch, gradients(params, batch)


def test_loss_of_every_prefix_of_the_tied_table(alone):
    _, params, batch, (loss, loss_g, grads) = alone
    table = np.asarray(params["backbone"]["tokens"]["embedding"], np.float64)
    expected_g, bias_gv = oracle(
        hidden(task(), params, batch),
        table,
        params["head"]["bias"].astype(np.float64),
        batch["labels"].ravel(),
        batch["mask"].ravel() > 0,
        NESTING.dims,
    )
    weights_g = np.array(NESTING.weights)
    np.testing.assert_allclose(loss_g, expected_g, rtol=1e-5)
    assert float(loss) == pytest.approx(weights_g @ expected_g, rel=1e-5)
    np.testing.assert_allclose(grads["head"]["bias"], weights_g @ bias_gv, rtol=1e-4, atol=1e-6)


def test_gradients_are_those_of_all_logits(alone):
    _, params, batch, (_, _, grads) = alone

    def plain(params):
        h_nd = task().predicted(params, batch).reshape(-1, 16)
        table_vd, bias_v = params["backbone"]["tokens"]["embedding"], params["head"]["bias"]
        logits = [h_nd[:, :m] @ table_vd[:, :m].T + bias_v[None] for m in NESTING.dims]
        mask_n, labels_n = batch["mask"].ravel(), batch["labels"].ravel()
        return nested_cross_entropy(jnp.stack(logits), labels_n, NESTING, mask_b=mask_n)[0]

    close(grads, jax.jit(jax.grad(plain))(params))
    # The table learns as input and as output.
    assert min(abs(g).max() for g in jax.tree.leaves(grads["transform"])) > 1e-6


@pytest.mark.parametrize(
    "sizes",
    [pytest.param((4, 2, 1), marks=pytest.mark.slow), (2, 2, 2)],
    ids=["rows", "three_axes"],
)
def test_on_a_mesh_it_is_the_same(alone, sizes):
    _, params, batch, expected = alone
    mesh = make_mesh(*sizes)
    rules = (
        ("tokens/embedding", "first:tensor"),
        ("head/bias", "last:tensor"),
        ("kernel|embedding", "largest:fsdp"),
        (".*", "replicate"),
    )
    placed = jax.device_put(params, shardings({"params": params}, rules, mesh)["params"])
    rows = jax.device_put(batch, batch_sharding(mesh))
    close(gradients_of(task(mesh=mesh))(placed, rows), expected)


@pytest.mark.slow
def test_a_vocabulary_that_does_not_divide_is_not_split():
    backbone, mesh, batch = BERT.clone(vocab_size=47), make_mesh(4, 1, 2), batch_of(47)
    params = params_of(task(backbone))
    expected = jax.jit(task(backbone).loss)(params, {}, batch, jax.random.key(1))
    rows = jax.device_put(batch, batch_sharding(mesh))
    placed = jax.device_put(params, replicated(mesh))
    found = jax.jit(task(backbone, mesh=mesh).loss)(placed, {}, rows, jax.random.key(1))
    close(found, expected)


def test_one_granularity_is_the_nested_loss_of_its_weight_alone(alone):
    _, params, batch, (_, loss_g, _) = alone
    fixed = task(nesting=Nesting((8,), (2.0,)))
    loss, (found_g, _) = jax.jit(fixed.loss)(params, {}, batch, jax.random.key(1))
    np.testing.assert_allclose(found_g, loss_g[1:2], rtol=1e-5)
    assert float(loss) == pytest.approx(2 * float(loss_g[1]), rel=1e-5)
    assert fixed.kernel_and_bias(params)[0].shape == (8, 48)


def test_nothing_to_predict_is_no_loss_and_no_gradient(alone):
    gradients, params, batch, _ = alone
    loss, loss_g, grads = gradients(params, {**batch, "mask": 0 * batch["mask"]})
    assert float(loss) == 0
    np.testing.assert_array_equal(loss_g, 0)
    assert all((g == 0).all() for g in jax.tree.leaves(grads))


def test_dropout_is_of_the_step_and_not_of_measuring(alone):
    subject, (_, params, batch, _) = task(BERT.clone(dropout=0.5)), alone
    loss = jax.jit(subject.loss)
    one, again, other = (loss(params, {}, batch, jax.random.key(k))[0] for k in (1, 1, 2))
    assert one == again != other
    assert "random" in str(loss.trace(params, {}, batch, jax.random.key(1)).jaxpr)
    assert "random" not in str(jax.make_jaxpr(subject.predicted)(params, batch))


def test_an_embedding_is_the_mean_over_the_tokens_of_a_text(alone):
    subject, (_, params, batch, _) = task(), alone
    embed = jax.jit(subject.embed)
    lengths = np.array([0, 1, 2, 3, 5, 7, 9, 10], np.int32)
    z_bd = embed(params, {}, {"tokens": batch["tokens"], "lengths": lengths})
    assert z_bd.shape == (ROWS, 16)
    np.testing.assert_array_equal(z_bd[0], 0)
    every = {**batch, "places": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))}
    h_btd = jax.jit(subject.predicted)(params, every)
    np.testing.assert_allclose(z_bd[-1], h_btd[-1].mean(0), rtol=1e-4, atol=1e-5)
    changed = batch["tokens"].copy()
    changed[3, 3:] = 0
    again = embed(params, {}, {"tokens": changed, "lengths": lengths})
    np.testing.assert_allclose(z_bd[3], again[3], rtol=1e-5, atol=1e-6)


def test_batch_spec_is_what_batches_are():
    spec, batch = task().batch_spec(ROWS), batch_of()
    assert {name: (s.shape, s.dtype) for name, s in spec.items()} == {
        name: (x.shape, x.dtype) for name, x in batch.items()
    }
