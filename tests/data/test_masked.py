import gzip
import json

import jax
import numpy as np
import pytest

from mrl_jax.data.masked import Masking, open_documents, predictions_of, tokenise
from mrl_jax.errors import DataError, UsageError
from mrl_jax.models.text.tokenizer import Tokenizer
from mrl_jax.runtime.mesh import batch_sharding, make_mesh

WORDS = ("apple", "bread", "cherry", "date", "egg", "fig", "grape", "honey")
LENGTH, RATE = 12, 0.25


def read(folder, tokenizer, *, length=LENGTH, rate=RATE, files=(), **options):
    opened = open_documents("" if files else str(folder), files)
    return tokenise(*opened, tokenizer, length=length, rate=rate, **options)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(WORDS, 80)


def lines(count, seed=0):
    """Documents of different lengths."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents")
    (path / "train.txt").write_text("\n\n".join(lines(60)))
    rows = [json.dumps({"text": line}) for line in lines(20, 1)]
    (path / "val.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    return path


@pytest.fixture(scope="module")
def data(folder, tokenizer):
    return read(folder, tokenizer)


def test_documents_are_packed_with_a_separator_behind_each(data, tokenizer):
    begin, end = tokenizer.encode([""], 9)[0]
    ids = tokenizer.raw.encode_batch(lines(60), add_special_tokens=False)
    stream = np.concatenate([[*one.ids, end] for one in ids])
    split = data.splits["train"]
    assert split.examples == len(stream) // (LENGTH - 2)
    tokens = split.rows(np.arange(split.examples))
    assert tokens.dtype == np.int32
    assert set(tokens[:, 0]) == {begin}
    assert set(tokens[:, -1]) == {end}
    np.testing.assert_array_equal(tokens[:, 1:-1].ravel(), stream[: split.examples * (LENGTH - 2)])
    np.testing.assert_array_equal(split.rows(np.array([3, 1])), tokens[[3, 1]])


def test_what_is_hidden_and_by_what(tokenizer):
    masking = Masking(30, tokenizer.mask_id, tokenizer.special_ids, tokenizer.vocab_size)
    rng = np.random.default_rng(0)
    tokens = rng.choice(masking.words, (400, 202))
    tokens[:, [0, -1]], tokens[:, 50] = tokenizer.special_ids[2:4], tokenizer.special_ids[1]
    found = masking(tokens, np.random.default_rng(1))
    places, labels, mask = found["places"], found["labels"], found["mask"]
    assert places.shape == (400, 30)
    assert (np.diff(places, axis=1) > 0).all()
    assert not np.isin(places, [0, 50, 201]).any()
    assert (mask == 1).all()
    np.testing.assert_array_equal(labels, np.take_along_axis(tokens, places, 1))
    # Nothing changes anywhere else.
    hidden = np.zeros(tokens.shape, bool)
    np.put_along_axis(hidden, places, True, 1)
    np.testing.assert_array_equal(found["tokens"][~hidden], tokens[~hidden])
    shown = np.take_along_axis(found["tokens"], places, 1)
    n = shown.size
    same = 0.1 + 0.1 / len(masking.words)  # a random token may be the same
    for share, part in ((0.8, shown == tokenizer.mask_id), (same, shown == labels)):
        assert part.mean() == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / n))
    others = shown[(shown != tokenizer.mask_id) & (shown != labels)]
    assert set(others) == set(masking.words)
    # Every place is as likely as any other.
    counts = np.bincount(places.ravel(), minlength=202)[masking.hideable(tokens[0])]
    expected = n / len(counts)
    assert abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_where_little_may_be_hidden_little_counts(tokenizer):
    masking = Masking(3, tokenizer.mask_id, tokenizer.special_ids, tokenizer.vocab_size)
    tokens = np.full((2, 6), tokenizer.special_ids[1], np.int32)
    tokens[0, 4] = masking.words[0]
    found = masking(tokens, np.random.default_rng(0))
    assert found["mask"].sum(1).tolist() == [1, 0]
    assert found["places"][0][found["mask"][0] > 0] == [4]
    np.testing.assert_array_equal(found["tokens"][1], tokens[1])


def test_a_batch_is_a_function_of_seed_and_step(data):
    split = data.splits["train"]
    one, again = split.host_batch(3, 7, 8), split.host_batch(3, 7, 8)
    for name in one:
        np.testing.assert_array_equal(one[name], again[name])
    for other in (split.host_batch(4, 7, 8), split.host_batch(3, 8, 8)):
        assert (other["tokens"] != one["tokens"]).any()
    # Every epoch shows every sequence once, hidden otherwise.
    epochs = [split.host_batch(3, step, split.examples) for step in (0, 1)]
    whole = []
    for batch in epochs:
        tokens = batch["tokens"].copy()
        np.put_along_axis(tokens, batch["places"], batch["labels"], 1)
        whole.append(tokens)
    np.testing.assert_array_equal(*[np.unique(tokens, axis=0) for tokens in whole])
    assert (epochs[0]["places"] != epochs[1]["places"]).any()


def test_batches_on_a_mesh_are_those_of_the_host(data):
    split, mesh = data.splits["train"], make_mesh(4, 2, 1)
    batch = split.batches(16, 5, batch_sharding(mesh))(2)
    for name, array in split.host_batch(5, 2, 16).items():
        assert batch[name].sharding.is_equivalent_to(batch_sharding(mesh), array.ndim)
        np.testing.assert_array_equal(jax.device_get(batch[name]), array)
        assert batch[name].dtype == array.dtype


def test_what_is_measured_is_the_same_in_every_run(data):
    split = data.splits["val"]
    found, again = (split.held_out(np.arange(split.examples)) for _ in range(2))
    for name in found:
        assert len(found[name]) == split.examples
        np.testing.assert_array_equal(found[name], again[name])


def test_tokens_kept_in_a_cache_are_those_in_memory(folder, tokenizer, data, tmp_path):
    again = None
    for _ in range(2):
        again = read(folder, tokenizer, cache=str(tmp_path))
        assert again.fingerprint() == data.fingerprint()
    assert list(tmp_path.glob("tokens-*"))
    np.testing.assert_array_equal(
        again.splits["val"].rows(np.arange(2)), data.splits["val"].rows(np.arange(2))
    )


def test_the_fingerprint_is_of_all_that_matters(folder, tokenizer, data):
    changes = (
        read(folder, tokenizer, rate=0.4),
        read(folder, tokenizer, length=LENGTH + 1),
        read(folder, Tokenizer.train(WORDS, 45)),
    )
    found = {one.fingerprint() for one in (data, *changes)}
    assert len(found) == 4
    files = [f"train={folder / 'train.txt'}", f"val={folder / 'val.jsonl.gz'}"]
    moved = read(folder, tokenizer, files=files)
    assert moved.fingerprint() == data.fingerprint()
    assert "train 33 sequences of 12 tokens, val 10 " in data.summary()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", '{"title": "x"}', "line 1: column text must hold a text, got None"),
        ("train.jsonl", '{"text": 3}', "line 1: column text must hold a text, got 3"),
        ("train.jsonl", '{"text": "\\ud800"}', "line 1: not valid Unicode"),
        ("train.txt", "apple egg", "2 tokens do not fill one sequence of 12; text.max_length"),
        ("train.txt", "☃ " * 30, "all tokens are unknown to the tokenizer"),
        ("train.csv", "", "has no train split"),
    ],
)
def test_documents_that_cannot_be_learned_from(tmp_path, tokenizer, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        read(tmp_path, tokenizer)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("length", "rate", "message"),
    [
        (12, 0.0, "config.text.mask_rate must be in (0, 1), got 0.0"),
        (12, 0.9, "holds 10 tokens beside the two special ones, of which text.mask_rate 0.9 would"),
        (2, 0.15, "config.text.max_length 2 holds 0 tokens beside the two special ones"),
    ],
)
def test_rates_and_lengths_that_leave_nothing(length, rate, message):
    with pytest.raises(UsageError) as error:
        predictions_of(length, rate)
    assert message in str(error.value)


def test_as_many_are_hidden_as_in_bert():
    assert [predictions_of(length, 0.15) for length in (4, 64, 128, 512)] == [1, 10, 19, 77]


def test_the_cache_is_of_content_and_kind(tmp_path, tokenizer):
    cache, rows = str(tmp_path / "cache"), [json.dumps({"text": line}) for line in lines(30)]
    path = tmp_path / "train.txt"
    path.write_text("\n".join(rows))
    as_lines = read(tmp_path, tokenizer, cache=cache)
    # The same bytes, read as rows of JSON.
    path = path.rename(tmp_path / "train.jsonl")
    as_rows = read(tmp_path, tokenizer, cache=cache)
    assert as_rows.fingerprint() == read(tmp_path, tokenizer).fingerprint()
    assert as_rows.fingerprint() != as_lines.fingerprint()
    _, opened = open_documents(str(tmp_path))
    assert opened["train"].source
    path.write_text("\n".join(rows[1:]))
    with pytest.raises(DataError, match="changed while it was read"):
        list(opened["train"])
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*train\.jsonl"):
        read(tmp_path, tokenizer, files=(f"train={path}",), cache=cache)
