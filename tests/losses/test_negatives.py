import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax import Nesting
from mrl_jax.kernels import nested_info_nce
from mrl_jax.losses.negatives import guided_mask, ids_mask

BATCH, DIM = 9, 6


def embeddings(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(BATCH, DIM)).astype(np.float32) for _ in range(count)]


def keep_by_hand(anchor, positive, negatives):
    batch = len(anchor)
    columns = [*positive, *np.concatenate([*negatives, np.empty(0, int)])]
    keep = np.ones((batch, len(columns)), bool)
    for i in range(batch):
        for j, text in enumerate(columns):
            if i == j:
                continue
            if text in (anchor[i], positive[i]) or (j < batch and anchor[j] == anchor[i]):
                keep[i, j] = False
            if j >= batch and text < 0:
                keep[i, j] = False
    return keep


@pytest.mark.parametrize("count", [0, 1, 3])
def test_equal_texts_are_no_negatives_whatever_side_they_come_from(count):
    rng = np.random.default_rng(count)
    anchor, positive, *negatives = rng.integers(-1, 6, (2 + count, BATCH)).astype(np.int32)
    anchor, positive = abs(anchor), abs(positive)
    found = jax.jit(ids_mask)(anchor, positive, negatives)
    expected = keep_by_hand(anchor, positive, negatives)
    np.testing.assert_array_equal(found, expected)
    assert 0.1 < expected.mean() < 0.9


def test_different_texts_are_all_negatives():
    ids = np.arange(3 * BATCH, dtype=np.int32).reshape(3, BATCH)
    assert np.all(jax.jit(ids_mask)(ids[0], ids[1], [ids[2]]))


def test_masked_duplicates_give_the_loss_of_the_batch_without_them():
    a, b, n = embeddings(3)
    b[4], n[7] = b[1], b[1]  # a positive of another row, and a hard negative, are row 1's positive
    a_id, b_id, n_id = np.arange(27, dtype=np.int32).reshape(3, 9)
    b_id[4], n_id[7] = b_id[1], b_id[1]

    @jax.jit
    def loss(a, b, n):
        mask = ids_mask(a_id, b_id, [n_id])
        nesting = Nesting((DIM,))
        return nested_info_nce(a, b, nesting, temperature=0.2, mask=mask, extra_negatives=n)

    found, _ = loss(a, b, n)

    def unit(x):
        return np.float64(x) / np.linalg.norm(np.float64(x), axis=-1, keepdims=True)

    logits = unit(a) @ unit(np.concatenate([b, n])).T / 0.2
    losses = []
    for i in range(BATCH):
        left_out = {1: [4, 16], 4: [1, 16]}.get(i, [])
        logit = np.delete(logits[i], left_out)
        losses.append(np.log(np.exp(logit).sum()) - logits[i, i])
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-5)


def test_columns_nearer_than_the_positive_are_no_negatives():
    anchor, positive, negative = embeddings(3, seed=1)

    @jax.jit
    def mask(anchor, positive, negative):
        return guided_mask(anchor, positive, [negative])

    found = np.asarray(mask(anchor, positive, negative))
    columns = np.concatenate([positive, negative])
    for i in range(BATCH):
        for j in range(2 * BATCH):
            cosine, own = (
                np.float64(anchor[i])
                @ np.float64(c)
                / (np.linalg.norm(anchor[i]) * np.linalg.norm(c))
                for c in (columns[j], positive[i])
            )
            assert bool(found[i, j]) == (i == j or cosine <= own)
    assert 0.1 < found.mean() < 0.9


def test_columns_as_near_as_the_positive_stay_negatives():
    assert np.all(guided_mask(*np.ones((2, 3, 4), np.float32), [np.ones((3, 4), np.float32)]))


def test_guided_loss_is_that_of_sentence_transformers(monkeypatch):
    torch = pytest.importorskip("torch")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses.gist_embed")
    student, guide = embeddings(3, seed=2), embeddings(3, seed=3)
    # The peer's arithmetic without its networks: it asks "model" for the columns' embeddings.
    monkeypatch.setattr(losses, "embed_columns", lambda model, features: list(model))
    peer = losses.GISTEmbedLoss.__new__(losses.GISTEmbedLoss)
    torch.nn.Module.__init__(peer)
    peer.__dict__.update(
        model=[*map(torch.tensor, student)],
        guide=[*map(torch.tensor, guide)],
        temperature=0.2,
        similarity_fct=torch.nn.CosineSimilarity(dim=-1),
        must_retokenize=False,
        margin_strategy="absolute",
        margin=0.0,
        contrast_anchors=True,
        contrast_positives=False,
        gather_across_devices=False,
        cross_entropy_loss=torch.nn.CrossEntropyLoss(),
    )
    expected = float(peer.forward([{}, {}, {}], None))
    anchor, positive, negative = map(jnp.asarray, guide)
    found, _ = nested_info_nce(
        student[0],
        student[1],
        Nesting((DIM,)),
        temperature=0.2,
        mask=guided_mask(anchor, positive, [anchor, negative]),
        extra_negatives=jnp.concatenate([student[0], student[2]]),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ids_mask(np.arange(3), np.arange(4)), r"positive_id_b must be \[3\] integers"),
        (
            lambda: ids_mask(np.arange(3), np.ones(3, np.float32)),
            r"positive_id_b must .* got \(3,\) float32",
        ),
        (
            lambda: ids_mask(np.arange(3), np.arange(3), [np.arange(2)]),
            r"negative_ids\[0\] must be \[3\]",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
