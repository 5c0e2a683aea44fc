import contextlib
import dataclasses
import io
import json
import os
import re

import commands
import jax
import numpy as np
import pytest
import test_train_text
from PIL import Image
from safetensors.numpy import load_file

from mrl_jax import Nesting, experiment
from mrl_jax.data.images import centre_square
from mrl_jax.errors import DataError
from mrl_jax.export import about_of, graph_of, scores_of
from mrl_jax.interop import plain_card
from mrl_jax.model import load
from mrl_jax.models.text.tokenizer import pad
from mrl_jax.runtime.step import evaluated
from mrl_jax.tasks.image_inputs import preprocessing

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
    setup, state = experiment.restored(run)
    task = dataclasses.replace(setup.program.task, mesh=None)
    return np.asarray(task.embed(*jax.device_get(evaluated(state)), batch))


def text_batch(run):
    setup, _ = experiment.restored(run)
    tokens = setup.text_folder(None).tokenizer.encode(TEXTS, 30)
    return dict(zip(("tokens", "lengths"), pad(tokens, 30, len(TEXTS)), strict=True))


def test_text_becomes_a_folder_of_sentence_transformers(text_run, tmp_path):
    out = tmp_path / "model"
    assert f"8 dims, as sentence_transformers in {out}" in commands.here(
        export(text_run, out, "sentence_transformers")
    )
    model = load(out)
    z_bd = embedded(text_run, text_batch(text_run))
    for dim in (2, 4, 8):
        unit_bd = z_bd[:, :dim] / np.linalg.norm(z_bd[:, :dim], axis=1, keepdims=True)
        np.testing.assert_allclose(model.embed(TEXTS, dim=dim), unit_bd, atol=1e-6)
    with pytest.warns(UserWarning, match="a prefix of 3 dims was not trained, 2, 4, 8 were"):
        model.embed(TEXTS, dim=3)
    card = (out / "README.md").read_text()
    assert "mine/spearman" in card
    # Called again it replaces its own folder, and nothing else.
    commands.here(export(text_run, out, "sentence_transformers"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    line = commands.refused(export(text_run, other, "sentence_transformers"), 2)
    assert "holds something other" in line


def unit(z_bd):
    return z_bd / np.linalg.norm(z_bd, axis=1, keepdims=True)


def use(folder, monkeypatch):
    """What the code in a README.md computes beside its files: all of its variables."""
    text = (folder / "README.md").read_text()
    code = text[text.index("```python\n") + len("```python\n") :].partition("```")[0]
    monkeypatch.chdir(folder)
    found = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "README.md", "exec"), found)
    return found | {"printed": printed.getvalue()}


def photo(folder):
    """Writes a picture that is turned, transparent at two edges, not square and too large."""
    rgba_hwc = np.random.default_rng(3).integers(0, 256, (21, 30, 4)).astype(np.uint8)
    rgba_hwc[5:, 5:, 3] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # upright once it is turned to the right
    Image.fromarray(rgba_hwc).save(folder / "photo.jpg", "PNG", exif=exif)


def check_image_outputs(run, outputs, batch):
    """The outputs of an exported image network are those of the run."""
    setup, state = experiment.restored(run)
    task = dataclasses.replace(setup.program.task, mesh=None)
    params = jax.device_get(evaluated(state)[0])
    z_bd = embedded(run, batch)
    logits_gbc = task.logits(params, z_bd, task.nesting.dims)
    assert set(outputs) == {"embedding", "logits_2", "logits_4", "logits_8"}
    np.testing.assert_allclose(outputs["embedding"], z_bd[:, :8], atol=1e-5)
    for dim, logits_bc in zip((2, 4, 8), logits_gbc, strict=True):
        np.testing.assert_allclose(outputs[f"logits_{dim}"], logits_bc, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["stablehlo", "onnx"])
def test_graphs_give_the_embeddings_of_the_run(text_run, image_run, tmp_path, monkeypatch, form):
    if form == "onnx":
        pytest.importorskip("jax2onnx")
        onnx = pytest.importorskip("onnx")
        onnxruntime = pytest.importorskip("onnxruntime")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    longest = 64 if form == "onnx" else 30
    tokens = text_batch(text_run)
    tokens["tokens"] = np.pad(tokens["tokens"], ((0, 0), (0, longest - 30)))
    for run, batch in ((text_run, tokens), (image_run, {"image": images})):
        out = tmp_path / run.parent.name
        printed = commands.succeed(export(run, out, form))
        assert re.fullmatch(rf"step \d+, 8 dims, as {form} in {out}\n", printed)
        about = json.loads((out / "about.json").read_text())
        assert (about["format"], about["dims"]) == (form, [2, 4, 8])
        nothing = dict.fromkeys(("query", "document", "default"), "")
        assert about.get("prompts") == (nothing if run is text_run else None)
        if form == "onnx":
            model = onnx.load(out / "embed.onnx")
            onnx.checker.check_model(model, full_check=True)
            kept = {prop.key: prop.value for prop in model.metadata_props}
            assert json.loads(kept["dims"]) == [2, 4, 8]
            assert ("classes" in kept) == (run is image_run)
        for b in (1, 3):
            arrays = {name: np.asarray(x)[:b] for name, x in batch.items()}
            if form == "onnx":
                session = onnxruntime.InferenceSession(out / "embed.onnx")
                found = dict(zip(about["outputs"], session.run(None, arrays), strict=True))
            else:
                exported = jax.export.deserialize(bytearray((out / "embed.stablehlo").read_bytes()))
                assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
                found = exported.call(*arrays.values())
            np.testing.assert_allclose(found["embedding"], embedded(run, arrays)[:, :8], atol=1e-5)
            if run is image_run:
                check_image_outputs(run, found, arrays)
    used = use(tmp_path / text_run.parent.name, monkeypatch)
    setup, _ = experiment.restored(text_run)
    rows = setup.text_folder(None).tokenizer.encode(["a text", "another one"], 64)
    batch = dict(zip(("tokens", "lengths"), pad(rows, 64, 2), strict=True))
    np.testing.assert_allclose(used["unit"], unit(embedded(text_run, batch)[:, :2]), atol=1e-5)
    if form == "onnx":
        out = tmp_path / image_run.parent.name
        photo(out)
        used = use(out, monkeypatch)
        check_image_outputs(image_run, used["outputs"], {"image": used["image"]})


@pytest.mark.parametrize("form", ["stablehlo", "safetensors"])
def test_the_code_of_an_image_export_gives_the_predictions_of_the_run(
    image_run, tmp_path, monkeypatch, form
):
    out = tmp_path / "out"
    commands.here(export(image_run, out, form))
    photo(out)
    used = use(out, monkeypatch)
    check_image_outputs(image_run, used["outputs"], {"image": used["image"]})
    assert used["printed"] == f"{used['outputs']['logits_8'][0].argmax()}\n"
    about = json.loads((out / "about.json").read_text())
    assert about["classes"] == [str(digit) for digit in range(10)]
    assert about["preprocessing"]["size"] == [8, 8]
    # A reader of about.json alone cannot normalise twice, or never.
    by = {"stablehlo": "graph", "safetensors": "caller"}[form]
    assert about["normalization"] == {"applied_by": by, "mean": [127.5], "std": [127.5]}
    assert not {"mean", "std"} & about["preprocessing"].keys()
    text = (out / "README.md").read_text()
    assert ("do not normalise them" in text) == (by == "graph")
    assert ("subtract the mean and divide by the standard deviation" in text) == (by == "caller")


@pytest.mark.parametrize("kind", ["image", "tokens", "vector"])
@pytest.mark.parametrize("form", ["onnx", "stablehlo"])
def test_the_packages_to_install_are_those_that_the_code_imports(form, kind):
    about = {
        "run": "r",
        "file": "f",
        "format": form,
        "dims": [2],
        "inputs": {kind: {"dtype": "float32"}},
    }
    text = plain_card.card(about)
    names = re.search("    pip install (.+)", text)[1]
    imported = set(re.findall(r"^(?:import|from) (\w+)", plain_card.code(about), re.MULTILINE))
    # What `jax.export` needs to read a graph it imports itself.
    packages = {name.replace("pillow", "PIL") for name in names.split()} - {"flatbuffers"}
    assert packages == imported - {"json", "pathlib"}
    assert ("flatbuffers" in names) == (form == "stablehlo")


def test_what_is_said_of_texts_fits_the_graph(text_run):
    setup, state = experiment.restored(text_run)
    for form, places in (("onnx", 64), ("stablehlo", "t")):
        about = about_of(setup, state, form)
        assert about["inputs"]["tokens"]["shape"] == ["b", places]
        assert ("always have 64 places" in plain_card.card(about)) == (form == "onnx")


def test_colour_images_are_prepared_as_the_run_prepares_them(tmp_path, monkeypatch):
    about = {"dims": [2], "format": "", "inputs": {"image": {}}, "run": "r", "file": "f"}
    about["preprocessing"] = preprocessing((8, 8, 3), crop_share=0.75)
    (tmp_path / "about.json").write_text(json.dumps(about))
    photo(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(plain_card.PIXELS, found)
    data = (tmp_path / "photo.jpg").read_bytes()
    np.testing.assert_array_equal(found["image"][0], centre_square(data, "photo", 8, 0.75))


@pytest.mark.slow
def test_onnx_of_every_kind_of_image_network_is_checked_whole(tmp_path):
    for package in ("jax2onnx", "onnxruntime"):
        pytest.importorskip(package)
    # In a process of its own: jax2onnx puts functions of its own into JAX.
    assert not commands.succeed(commands.command("tests.onnx_networks", tmp_path))


def test_exported_files_may_be_read_by_whom_the_umask_says(text_run, image_run, tmp_path):
    before = os.umask(0o027)
    try:
        commands.here(export(image_run, tmp_path / "a", "safetensors"))
        commands.here(export(text_run, tmp_path / "b", "sentence_transformers"))
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 6
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o640"}


def test_parameters_by_name(image_run, tmp_path):
    commands.succeed(export(image_run, tmp_path / "out", "safetensors"))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    _, state = experiment.restored(image_run)
    kernel = state["params"]["head"]["kernel_0004"]
    np.testing.assert_array_equal(tensors["params/head/kernel_0004"], kernel)
    assert len(tensors) == len(jax.tree.leaves(evaluated(state)))


def test_what_graphs_are_made_of_ends_with_the_widest_trained_prefix(image_run):
    setup, state = experiment.restored(image_run)
    task = setup.program.task  # which embeds in 8 dims
    head = dataclasses.replace(task.head, nesting=Nesting((2, 4)))
    narrow = dataclasses.replace(task, head=head)
    params = {name: x for name, x in state["params"]["head"].items() if "8" not in name}
    state = {**state, "params": {**state["params"], "head": params}}
    setup.program = dataclasses.replace(setup.program, task=narrow)
    graph = graph_of(setup, state)
    assert graph.inputs.spec == {"image": (("b", 8, 8, 1), np.uint8)}
    assert graph.outputs == ("embedding", "logits_2", "logits_4")
    image = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    z_bd = embedded(image_run, {"image": image})
    assert z_bd.shape == (3, 8)
    found = jax.jit(graph.compute)(image)
    np.testing.assert_allclose(found["embedding"], z_bd[:, :4], atol=1e-5)


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"schema": 1, "resul', "results.json: not valid JSON"),
        (b"", "results.json is empty"),
        (b"[" * 100_000, "brackets are nested"),
        (b'{"schema": 1}', "results.json: field 'results' is missing"),
    ],
)
def test_scores_that_are_damaged_are_refused(tmp_path, content, message):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        scores_of(tmp_path)
