import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import text_models

from mrl_jax.errors import NonFiniteError, UsageError
from mrl_jax.interop.text_folder import UNLIMITED
from mrl_jax.model import Model, load
from mrl_jax.runtime.rows import unit_length
from mrl_jax.tasks import text_inputs
from mrl_jax.tasks.text_inputs import batches, embedding_length

TESTS = pathlib.Path(__file__).parent
TEXTS = [*text_models.SENTENCES[:2], "", "cat", "the old cat " * 20, "cat"]


def alone(folder, texts):
    """One text at a time, without padding: what every batch must give, [N, L, D]."""
    rows = []
    call = jax.jit(functools.partial(folder.encoder.apply, method="every_layer"))
    for ids_t in folder.tokenizer.encode(texts, folder.max_length):
        tokens = ids_t[None] if len(ids_t) else np.zeros((1, 1), np.int32)
        lengths = np.array([len(ids_t)], np.int32)
        rows.append(call({"params": folder.params}, tokens, lengths)[:, 0])
    return np.array(rows)


@pytest.mark.parametrize("make", [text_models.bert, text_models.static])
def test_batches_by_length_give_what_each_text_alone_gives(make):
    folder = make(projection=12) if make is text_models.static else make(layers=1)
    exact = alone(folder, TEXTS)[:, -1]
    model = Model.of_text_folder(folder)
    z_nd = model.embed(TEXTS, normalize=False)
    assert z_nd.dtype == np.float32
    np.testing.assert_allclose(z_nd, exact, atol=1e-5)
    tiny = model.embed(TEXTS, normalize=False, batch_tokens=40)
    np.testing.assert_allclose(tiny, exact, atol=1e-5)
    assert model.embed([], dim=5).shape == (0, 5)
    assert model.embed(["cat"]).shape == (1, model.width)


def test_a_prefix_is_cut_first_and_then_scaled():
    model = Model.of_text_folder(text_models.static())
    raw = np.float64(model.embed(TEXTS[:2], normalize=False))
    for dim in (1, 7, 32):
        exact = raw[:, :dim] / np.linalg.norm(raw[:, :dim], axis=1, keepdims=True)
        np.testing.assert_allclose(model.embed(TEXTS[:2], dim=dim), exact, atol=1e-6)
        cut = model.embed(TEXTS[:2], dim=np.int64(dim), normalize=False)
        np.testing.assert_allclose(cut, raw[:, :dim], atol=1e-6)


def test_a_folder_that_scales_does_so_before_it_is_cut():
    """As the Normalize of sentence-transformers, whose `truncate_dim` does not scale again."""
    folder = text_models.static()
    raw = np.float64(Model.of_text_folder(folder).embed(TEXTS[:2], normalize=False))
    model = Model.of_text_folder(dataclasses.replace(folder, normalize=True))
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    for dim in (7, 32):
        cut = model.embed(TEXTS[:2], dim=dim, normalize=False)
        np.testing.assert_allclose(cut, unit[:, :dim], atol=1e-6)
        exact = raw[:, :dim] / np.linalg.norm(raw[:, :dim], axis=1, keepdims=True)
        np.testing.assert_allclose(model.embed(TEXTS[:2], dim=dim), exact, atol=1e-6)


def test_zeros_stay_zeros_and_nothing_overflows():
    z_nd = np.array([[0, 0], [3e30, 4e30], [3e-40, 4e-40]], np.float32)
    np.testing.assert_allclose(unit_length(z_nd), [[0, 0], [0.6, 0.8], [0.6, 0.8]], rtol=1e-4)
    assert (Model.of_text_folder(text_models.static()).embed(["", "cat"])[0] == 0).all()


def test_fewer_layers_are_the_embeddings_of_those_layers():
    folder = text_models.bert(layers=2)
    model = Model.of_text_folder(folder)
    assert model.inputs.layers == 2
    exact = alone(folder, TEXTS[2:4])
    for depth in (1, 2):
        found = model.embed(TEXTS[2:4], depth=depth)
        np.testing.assert_allclose(found, unit_length(exact[:, depth - 1]), atol=1e-5)


def test_prompts_go_before_the_text():
    folder = dataclasses.replace(
        text_models.bert(layers=1), prompts={"query": "the woman ", "passage": "two "}
    )
    model = Model.of_text_folder(folder)
    bare, prompted = model.embed(["cat"]), model.embed(["the woman cat"])
    assert abs(bare - prompted).max() > 1e-3
    np.testing.assert_allclose(model.embed(["cat"], prompt_name="query"), prompted, atol=1e-6)
    usual = Model.of_text_folder(dataclasses.replace(folder, default_prompt="query"))
    np.testing.assert_allclose(usual.embed(["cat"]), prompted, atol=1e-6)
    np.testing.assert_allclose(usual.embed(["cat"], prompt_name=""), bare, atol=1e-6)
    prompts = {"query": "two ", "document": ""}
    empty = Model.of_text_folder(
        dataclasses.replace(folder, default_prompt="query", prompts=prompts)
    )
    np.testing.assert_allclose(empty.embed(["cat"], prompt_name="document"), bare, atol=1e-6)
    with pytest.raises(UsageError, match="no prompt 'q'; legal: query, passage"):
        model.embed(["cat"], prompt_name="q")
    with pytest.raises(UsageError, match="legal: none, the model has no prompts"):
        Model.of_text_folder(text_models.static()).embed(["cat"], prompt_name="q")


def test_the_folders_dim_is_used_and_untrained_ones_are_warned_of(tmp_path):
    folder = dataclasses.replace(text_models.static(), trained_dims=(8, 32))
    text_models.write_sentence_folder(tmp_path / "m", folder)
    model = load(tmp_path / "m")
    for dim in (None, 8, 32):
        model.embed(["cat"], dim=dim)
    with pytest.warns(UserWarning, match="a prefix of 9 dims was not trained, 8, 32 were") as seen:
        model.embed(["cat"], dim=9)
    assert seen[0].filename == __file__
    Model.of_text_folder(text_models.static()).embed(["cat"], dim=9)  # nobody knows
    cut = Model.of_text_folder(dataclasses.replace(folder, truncate_dim=8))
    assert cut.embed(["cat"]).shape == (1, 8)
    assert cut.embed(["cat"], dim=32).shape == (1, 32)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["a"], {"dim": 0}, "dim must be 1 to 32, got 0"),
        (["a"], {"dim": -3}, "dim must be 1 to 32, got -3"),
        (["a"], {"dim": 33}, "dim must be 1 to 32, got 33"),
        (["a"], {"dim": 2.5}, "dim must be 1 to 32, got 2.5"),
        (["a"], {"dim": True}, "dim must be 1 to 32, got True"),
        ([], {"dim": 99}, "dim must be 1 to 32, got 99"),
        (["a"], {"depth": 4}, "depth must be 1 to 3, got 4"),
        (["a"], {"depth": "1"}, "depth must be 1 to 3, got '1'"),
        (["a"], {"batch_tokens": 2.5}, "batch_tokens must be >= 1, got 2.5"),
        (["a"], {"batch_tokens": 0}, "batch_tokens must be >= 1, got 0"),
        ("a", {}, "a list of strings, got one string"),
        (["a", b"b"], {}, r"text 1 is b'b' \(bytes\)"),
        (None, {}, "a list of strings, got None"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(texts, options, message):
    with pytest.raises(UsageError, match=message):
        Model.of_text_folder(text_models.bert()).embed(texts, **options)


def test_a_column_of_a_table_is_embedded_and_a_whole_table_is_refused():
    pandas = pytest.importorskip("pandas")
    model, texts = Model.of_text_folder(text_models.static()), ["two dogs", "old cat", "cat"] * 10
    exact = model.embed(texts)
    frame = pandas.DataFrame({"text": texts, "other": 1})
    np.testing.assert_array_equal(model.embed(frame["text"]), exact)
    np.testing.assert_array_equal(model.embed(text for text in texts), exact)
    np.testing.assert_array_equal(model.embed(dict(enumerate(texts)).values()), exact)
    with pytest.raises(UsageError, match="got a DataFrame: pass one column of a table"):
        model.embed(frame)
    frame.loc[4, "text"] = None
    with pytest.raises(UsageError, match=r"text 4 is (None|nan)"):
        model.embed(frame["text"])


FORKED = """
import functools, multiprocessing, warnings
import text_models
import mrl_jax
from mrl_jax.errors import UsageError
from mrl_jax.model import Model

warnings.simplefilter("ignore")  # JAX warns of forks
folder = text_models.static()


def compute(pipe, model):
    new = functools.partial(Model.of_text_folder, folder)
    for work in (lambda: model.embed(["cat"]), new, lambda: mrl_jax.load(".")):
        try:
            work()
        except UsageError as error:
            pipe.send(str(error))


def child(model):
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=compute, args=(theirs, model))
    process.start()
    said = [ours.recv() if ours.poll(60) else "it hangs" for _ in range(3)]
    process.kill()
    return said


print(*child(Model.of_text_folder(folder)), sep="\\n")
"""


def test_a_fork_is_refused_where_it_would_hang():
    done = subprocess.run(
        [sys.executable, "-c", FORKED],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path[1:], str(TESTS)])},
    )
    assert done.stdout.count("this process is a fork of one in which JAX was in use") == 3


def test_a_number_that_is_none_names_the_text():
    folder = text_models.static()
    table = folder.params["backbone"]["tokens"]["embedding"].copy()
    table[folder.tokenizer.encode(["guitar"], 9)[0][0]] = np.nan
    model = Model.of_text_folder(
        dataclasses.replace(folder, params={"backbone": {"tokens": {"embedding": table}}})
    )
    with pytest.raises(NonFiniteError, match="of text 2 holds NaN"):
        model.embed(["cat", "dog", "guitar", "a man", "guitar"])


def test_every_text_is_in_one_batch_and_little_is_padding():
    rng = np.random.default_rng(0)
    lengths_n = np.minimum(3 + rng.gamma(4, 5, 2000).astype(int), 128)
    seen, cost, shapes = [], 0, set()
    for rows, length in batches(lengths_n, 128, 1024):
        assert lengths_n[rows].max() <= length
        assert len(rows) * length <= 1024
        seen += rows.tolist()
        cost += len(rows) * length
        shapes.add(length)
    assert sorted(seen) == list(range(2000))
    assert cost < 1.15 * lengths_n.sum()
    assert len(shapes) <= 16
    assert [len(rows) for rows, _ in batches(np.full(5, 300), 512, 100)] == [1] * 5


def test_lengths_are_few_and_hold_the_text():
    lengths = [embedding_length(n, UNLIMITED) for n in range(600)]
    assert all(length >= n for n, length in enumerate(lengths))
    assert all(length <= max(4, n * 1.25 + 3) for n, length in enumerate(lengths))
    assert len(set(lengths[:513])) <= 32
    assert embedding_length(27, 28) == 28
    assert embedding_length(29, 30) == 30


def test_a_window_holds_no_more_than_it_may_and_order_is_kept(monkeypatch):
    model = Model.of_text_folder(text_models.static())
    whole = model.embed(TEXTS)
    monkeypatch.setattr("mrl_jax.tasks.text_inputs.WINDOW", 5)
    np.testing.assert_allclose(model.embed(TEXTS), whole, atol=1e-6)


def test_calls_of_the_same_lengths_are_compiled_once():
    model = Model.of_text_folder(text_models.bert(seed=5, layers=1))
    model.embed(TEXTS)
    before = text_inputs._embed._cache_size()
    model.embed(TEXTS[::-1])
    Model.of_text_folder(text_models.bert(seed=6, layers=1)).embed(TEXTS)
    assert text_inputs._embed._cache_size() == before


def test_a_text_longer_than_a_batch_is_read_from_a_table_in_pieces(monkeypatch):
    folder, sizes = text_models.static(projection=8, projection_bias=True), []
    embed = text_inputs._embed

    def counted(encoder, params, batch):
        sizes.append(batch["tokens"].size)
        return embed(encoder, params, batch)

    monkeypatch.setattr(text_inputs, "_embed", counted)
    texts = ["the old cat " * 50, "a man", "two dogs sleep. " * 33, ""]
    whole_nd = alone(folder, texts)[:, -1]
    found_nd = Model.of_text_folder(folder).embed(texts, normalize=False, batch_tokens=32)
    np.testing.assert_allclose(found_nd, whole_nd, atol=1e-6)
    assert max(sizes) == 32
