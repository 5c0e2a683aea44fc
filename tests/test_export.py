import dataclasses
import json
import types

import commands
import jax
import numpy as np
import pytest
import test_train_text
from safetensors.numpy import load_file

from mrl_jax import Nesting, trained
from mrl_jax.encoder import Encoder
from mrl_jax.export import embedding_of
from mrl_jax.runtime.step import evaluated
from mrl_jax.tokenization import pad

TEXTS = ["a man sleeps today", "two dogs", "the old cat eats an apple near a tree in the rain"]


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    place = tmp_path_factory.mktemp("text")
    folder = place / "texts"
    folder.mkdir()
    rows = test_train_text.groups()
    for split, some in (("train", rows[:28]), ("val", rows[28:])):
        lines = "".join(json.dumps(row) + "\n" for row in some)
        (folder / f"{split}.jsonl").write_text(lines)
    (folder / "sts.tsv").write_text(
        "sentence1\tsentence2\tscore\na man\ttwo dogs\t1\na\ta\t5\na bird\ta man\t2\n"
    )
    where = ("--config", test_train_text.CONFIG, "--workdir", place / "run")
    data = (f"--config.data.path={folder}", f"--config.eval.sts=mine={folder / 'sts.tsv'}")
    commands.here(commands.command("mrl_jax.train", *where, *test_train_text.SMALL, *data))
    return place / "run"


@pytest.fixture
def image_run(digits_run):
    return digits_run[0]


def export(run, out, form):
    return commands.command("mrl_jax.export", "--workdir", run, "--out", out, "--format", form)


def embedded(run, batch):
    """What the run's own code makes of a batch."""
    _, setup, state = trained.restored(run)
    task = dataclasses.replace(setup.program.task, mesh=None)
    return np.asarray(task.embed(*jax.device_get(evaluated(state)), batch))


def text_batch(run):
    _, setup, _ = trained.restored(run)
    tokens = setup.text_folder(None).tokenizer.encode(TEXTS, 30)
    return dict(zip(("tokens", "lengths"), pad(tokens, 30, len(TEXTS)), strict=True))


def test_text_becomes_a_folder_of_sentence_transformers(text_run, tmp_path):
    out = tmp_path / "model"
    assert f"8 dims, as sentence_transformers in {out}" in commands.here(
        export(text_run, out, "sentence_transformers")
    )
    encoder = Encoder.load(out)
    z_bd = embedded(text_run, text_batch(text_run))
    for dim in (2, 4, 8):
        unit_bd = z_bd[:, :dim] / np.linalg.norm(z_bd[:, :dim], axis=1, keepdims=True)
        np.testing.assert_allclose(encoder.encode(TEXTS, dim=dim), unit_bd, atol=1e-6)
    with pytest.warns(UserWarning, match="a prefix of 3 dims was not trained, 2, 4, 8 were"):
        encoder.encode(TEXTS, dim=3)
    card = (out / "README.md").read_text()
    assert "mine/spearman" in card
    # Called again it replaces its own folder, and nothing else.
    commands.here(export(text_run, out, "sentence_transformers"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    line = commands.refused(export(text_run, other, "sentence_transformers"), 2)
    assert "holds something other" in line


@pytest.mark.slow
@pytest.mark.parametrize("form", ["stablehlo", "onnx"])
def test_graphs_give_the_embeddings_of_the_run(text_run, image_run, tmp_path, form):
    if form == "onnx":
        pytest.importorskip("jax2onnx")
        onnxruntime = pytest.importorskip("onnxruntime")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    longest = 64 if form == "onnx" else 30
    tokens = text_batch(text_run)
    tokens["tokens"] = np.pad(tokens["tokens"], ((0, 0), (0, longest - 30)))
    for run, batch in ((text_run, tokens), (image_run, {"image": images})):
        out = tmp_path / run.parent.name
        commands.succeed(export(run, out, form))
        about = json.loads((out / "about.json").read_text())
        assert (about["format"], about["dims"]) == (form, [2, 4, 8])
        nothing = dict.fromkeys(("query", "document", "default"), "")
        assert about.get("prompts") == (nothing if run is text_run else None)
        for b in (1, 3):
            arrays = {name: np.asarray(x)[:b] for name, x in batch.items()}
            if form == "onnx":
                session = onnxruntime.InferenceSession(out / "embed.onnx")
                (found_bd,) = session.run(["embedding"], arrays)
            else:
                exported = jax.export.deserialize(bytearray((out / "embed.stablehlo").read_bytes()))
                assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
                found_bd = exported.call(*arrays.values())
            np.testing.assert_allclose(found_bd, embedded(run, batch)[:b, :8], atol=1e-5)


def test_parameters_by_name(image_run, tmp_path):
    commands.succeed(export(image_run, tmp_path / "out", "safetensors"))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    _, _, state = trained.restored(image_run)
    kernel = state["params"]["head"]["kernel_0004"]
    np.testing.assert_array_equal(tensors["params/head/kernel_0004"], kernel)
    assert len(tensors) == len(jax.tree.leaves(evaluated(state)))


def test_what_graphs_are_made_of_ends_with_the_widest_trained_prefix(image_run):
    _, setup, state = trained.restored(image_run)
    task = setup.program.task  # which embeds in 8 dims
    narrow = dataclasses.replace(task, head=dataclasses.replace(task.head, nesting=Nesting((2, 4))))
    program = types.SimpleNamespace(task=narrow)
    embed, shapes = embedding_of(
        types.SimpleNamespace(program=program, text_folder=None, dataset=setup.dataset), state
    )
    assert shapes == {"image": ("b, 8, 8, 1", np.uint8)}
    image = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    z_bd = embedded(image_run, {"image": image})
    assert z_bd.shape == (3, 8)
    np.testing.assert_allclose(jax.jit(embed)(image), z_bd[:, :4], atol=1e-5)


def test_refusals(image_run, tmp_path):
    line = commands.refused(export(image_run, tmp_path / "a", "sentence_transformers"), 2)
    assert "is of text" in line
    older = [*export(image_run, tmp_path / "a", "safetensors"), "--step=7"]
    assert "holds no step 7" in commands.refused(older, 4)
    (tmp_path / "there").mkdir()
    line = commands.refused(export(image_run, tmp_path / "there", "safetensors"), 2)
    assert "exists already" in line
    line = commands.fail(export(tmp_path / "none", tmp_path / "b", "stablehlo"), 2)
    assert "holds no run" in line
    assert [p.name for p in tmp_path.iterdir()] == ["there"]
