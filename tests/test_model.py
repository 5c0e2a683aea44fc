"""One way to a model: what `mrl_jax.load` opens, what it embeds, and what it refuses."""

import dataclasses
import json
import shutil

import commands
import jax
import numpy as np
import pytest
import text_models
from PIL import Image

import mrl_jax
from mrl_jax import cascade, experiment, export
from mrl_jax import config as configs
from mrl_jax.cascade import Policy
from mrl_jax.data.images import centre_square
from mrl_jax.errors import CheckpointError, DataError, NonFiniteError, UsageError
from mrl_jax.interop.sentence_folder import write_sentence_folder
from mrl_jax.interop.text_folder import TextFolder
from mrl_jax.model import Model
from mrl_jax.models.text import Bert, SentenceEncoder
from mrl_jax.models.text.tokenizer import Tokenizer, pad
from mrl_jax.record import folder as workdir
from mrl_jax.runtime.rows import unit_length
from mrl_jax.runtime.step import evaluated
from mrl_jax.tasks import image_inputs
from mrl_jax.tasks.inputs import alone

TEXTS = ["a man sleeps today", "two dogs", "", "the old cat eats an apple near a tree in the rain"]
DIGITS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
VECTORS = np.random.default_rng(1).standard_normal((5, 12)).astype(np.float32)
ITEMS = {"classification": DIGITS, "adaptor": VECTORS, "sentence_pairs": TEXTS, "masked_lm": TEXTS}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Small data for every task, in folders by the name of the task."""
    base = tmp_path_factory.mktemp("data")
    for name in ("adaptor", "sentence_pairs", "masked_lm"):
        (base / name).mkdir()
    sentences = text_models.SENTENCES
    for split in ("train", "val"):
        np.save(base / "adaptor" / f"{split}.npy", np.random.default_rng(2).normal(size=(40, 12)))
        rows = ["anchor\tpositive", *(f"{text}\tit is so" for text in sentences)]
        (base / "sentence_pairs" / f"{split}.tsv").write_text("\n".join(rows))
        (base / "masked_lm" / f"{split}.txt").write_text("\n".join(sentences))
    tokenizer = Tokenizer.train(sentences, 80)
    encoder = SentenceEncoder(Bert(tokenizer.vocab_size, 12, 1, 2, 24, max_positions=16))
    params = text_models.random_params(encoder)
    folder = TextFolder(encoder, params, tokenizer, 16, normalize=True)
    write_sentence_folder(base / "encoder", folder)
    return base


@pytest.fixture(scope="module")
def states(data, tmp_path_factory):
    """(experiment, state) of a run of each task that has begun, and whose data are gone."""
    runs = tmp_path_factory.mktemp("runs")
    common = {
        "nesting.dims": "2,4,12",
        "eval.dims": "2,4,12",
        "batch_size": 8,
        "eval.batch_size": 8,
    }
    text = {"text.encoder": data / "encoder", "text.max_length": 12, "text.dropout": 0.0}
    prompts = {"text.prompts": "('query=find: ',)"}
    own = {
        "adaptor.py:linear": {},
        "static_sentence.py": {**text, **prompts, "text.width": 0, "text.dropout": 0.0},
        "bert_mlm.py:mrl_e": text,
    }
    found = {}
    for path, keys in own.items():
        overrides = [f"--config.{key}={value}" for key, value in (common | keys).items()]
        config = configs.load(str(commands.ROOT / "configs" / path), overrides)
        config = configs.override(config, [f"--config.data.path={data / config.task}"])
        begun, folder = experiment.from_config(config), runs / config.task
        folder.mkdir()
        workdir.record_config(folder, config)
        workdir.record_facts(folder, begun.facts, "", begun.kept)
        found[config.task] = experiment.of_run(folder)
    data.rename(data.with_name("elsewhere"))
    return {
        task: (setup, setup.program.init_state(setup.program.run_key(0)))
        for task, setup in found.items()
    }


@pytest.fixture
def state_of(states, digits_run):
    """Gives (experiment, state) by the name of a task; of classification, trained."""

    def get(task):
        return experiment.restored(digits_run[0]) if task == "classification" else states[task]

    return get


def exported(setup, state, out, form):
    about = export.about_of(setup, state, form)
    files = {workdir.CONFIG: configs.to_json(setup.config)}
    files[workdir.FACTS] = workdir.facts_text(setup.facts, None, {})
    export.write_plain(out, setup, state, about, files)
    return out


def by_hand(setup, state, items):
    """What the task makes of one batch, all dims that were trained."""
    task, (params, model_state) = alone(setup.program.task), jax.device_get(evaluated(state))
    batch = {"image": items} if setup.config.task == "classification" else {"vector": items}
    if setup.text_folder:
        tokens = setup.text_folder(params).tokenizer.encode(items, 12)
        batch = dict(zip(("tokens", "lengths"), pad(tokens, 12, len(items)), strict=True))
    return np.asarray(jax.jit(task.embed)(params, model_state, batch))[:, : task.nesting.width]


@pytest.mark.parametrize("task", sorted(ITEMS))
def test_every_form_of_a_model_gives_the_embeddings_of_its_run(state_of, tmp_path, task):
    setup, state = state_of(task)
    items, whole_nd = ITEMS[task], by_hand(setup, state, ITEMS[task])
    run = Model.of_run(setup, *evaluated(state))
    folders = {form: tmp_path / form for form in ("safetensors", "stablehlo")}
    models = [mrl_jax.load(exported(setup, state, out, form)) for form, out in folders.items()]
    for model in (run, *models):
        assert model.width == whole_nd.shape[1]
        assert model.nesting == run.nesting
        assert model.config.task == task
        assert model.classes == run.classes
        for dim in model.nesting.dims[1:]:
            found_nd = model.embed(items, dim=dim)
            assert (found_nd.dtype, found_nd.shape) == (np.float32, (len(items), dim))
            np.testing.assert_allclose(found_nd, unit_length(whole_nd[:, :dim]), atol=2e-5)
        raw_nd = unit_length(whole_nd) if run.inputs.scaled else whole_nd
        np.testing.assert_allclose(model.embed(items, normalize=False), raw_nd, atol=2e-5)
        assert model.embed(items[:0], dim=4).shape == (0, 4)
    assert mrl_jax.load(str(folders["stablehlo"])).task is None


@pytest.mark.slow  # jax2onnx takes seconds for a network
@pytest.mark.parametrize("task", sorted(ITEMS))
def test_onnx_is_loaded_as_well(state_of, tmp_path, task):
    for package in ("jax2onnx", "onnxruntime"):
        pytest.importorskip(package)
    setup, state = state_of(task)
    model = mrl_jax.load(exported(setup, state, tmp_path / "out", "onnx"))
    expected_nd = unit_length(by_hand(setup, state, ITEMS[task]))
    np.testing.assert_allclose(model.embed(ITEMS[task]), expected_nd, atol=1e-4)


def test_a_run_is_loaded_and_its_classifiers_judge_prefixes(digits_run, capsys):
    model = mrl_jax.load(digits_run[0])
    assert model.classes == tuple(map(str, range(10)))
    setup, state = experiment.restored(digits_run[0])
    task, params = setup.program.task, state["params"]
    z_nd = model.embed(DIGITS, normalize=False)
    logits_gnc = np.asarray(task.logits(params, z_nd, (2, 4, 8)))
    for dim, logits_nc in zip((2, 4, 8), logits_gnc, strict=True):
        found_nc = model.logits(z_nd[:, :dim])
        assert (found_nc.dtype, found_nc.shape) == (np.float32, (5, 10))
        np.testing.assert_allclose(found_nc, logits_nc, atol=1e-5)
    assert model.logits(z_nd[:0]).shape == (0, 10)
    found = cascade.infer(model.task, model.params, z_nd, Policy((2, 8), (1.0, 0.0)))
    np.testing.assert_array_equal(found.predicted_b, logits_gnc[2].argmax(1))
    # A bar is for what takes long, and for a terminal.
    assert capsys.readouterr() == ("", "")
    older = mrl_jax.load(digits_run[0], step=50, overrides=["--config.eval.batch_size=8"])
    assert abs(older.embed(DIGITS, normalize=False) - z_nd).max() > 1e-3


@pytest.mark.parametrize(
    ("z_nd", "message"),
    [
        (np.zeros((1, 3), np.float32), "there is no classifier of 3 dims; legal: 2, 4, 8"),
        (np.zeros((1, 9), np.float32), "there is no classifier of 9 dims; legal: 2, 4, 8"),
        (np.zeros(8, np.float32), r"z_nd must be \[N, dim\] of floats, got float32 \(8,\)"),
        (np.zeros((1, 8), int), "of floats, got int64"),
        ([[0.0], [0.0, 0.0]], r"z_nd must be \[N, dim\] of floats: setting an array"),
        (np.full((2, 8), np.nan), "row 0 of z_nd holds NaN or infinity"),
    ],
)
def test_what_a_classifier_cannot_judge_is_refused(digits_run, z_nd, message):
    with pytest.raises(UsageError, match=message):
        mrl_jax.load(digits_run[0]).logits(z_nd)


def test_models_without_classes_and_graphs_judge_nothing(state_of, tmp_path):
    setup, state = state_of("adaptor")
    with pytest.raises(UsageError, match="this model embeds vectors and has no classes"):
        Model.of_run(setup, *evaluated(state)).logits(VECTORS)
    graph = mrl_jax.load(exported(*state_of("classification"), tmp_path / "out", "stablehlo"))
    assert len(graph.classes) == 10
    with pytest.raises(UsageError, match="a graph gives the scores of images, not of embeddings"):
        graph.logits(np.zeros((1, 8), np.float32))


def test_a_text_encoder_of_a_run_is_loaded_as_the_run_embeds(state_of, tmp_path):
    setup, state = state_of("sentence_pairs")
    folder = setup.text_folder(jax.device_get(evaluated(state)[0]))
    files = {"mrl_jax.config.json": configs.to_json(setup.config)}
    write_sentence_folder(tmp_path / "out", folder, files=files)
    run, model = Model.of_run(setup, *evaluated(state)), mrl_jax.load(tmp_path / "out")
    assert model.config.to_dict() == setup.config.to_dict()
    for options in ({}, {"dim": 4}, {"prompt_name": "query"}, {"depth": 1, "normalize": False}):
        found_nd = model.embed(TEXTS, **options)
        np.testing.assert_allclose(found_nd, run.embed(TEXTS, **options), atol=1e-6)
    graph = mrl_jax.load(exported(setup, state, tmp_path / "graph", "stablehlo"))
    with pytest.raises(UsageError, match="depth: this model cannot run fewer of its layers"):
        graph.embed(TEXTS, depth=1)
    prompted_nd = graph.embed(TEXTS, prompt_name="query")
    np.testing.assert_allclose(prompted_nd, model.embed(TEXTS, prompt_name="query"), atol=1e-6)


def test_the_code_of_the_readme_uses_a_run(digits_run, tmp_path):
    text = (commands.ROOT / "README.md").read_text()
    code = text[text.index("**Use a trained model**") :].partition("```python\n")[2]
    folder = shutil.copytree(digits_run[0], tmp_path / "one")
    Policy((2, 8), (0.5, 0.0)).save(folder / "evaluation" / "test_cascade_policy.json")
    code = code.partition("```")[0].replace("runs/one", str(folder)).replace("dim=16", "dim=4")
    found = {"images": DIGITS}
    exec(compile(code, "README.md", "exec"), found)
    assert found["z_nd"].shape == (5, 4)
    assert found["scores_nc"].shape == (5, 10)
    assert set(found["found"].dim_b) <= {2, 8}


def test_prefixes_that_were_not_trained_are_warned_of(state_of):
    model = Model.of_run(*[state_of("adaptor")[0], *evaluated(state_of("adaptor")[1])])
    with pytest.warns(UserWarning, match="a prefix of 3 dims was not trained, 2, 4, 12 were") as w:
        model.embed(VECTORS, dim=3)
    assert w[0].filename == __file__
    shared, state = state_of("masked_lm")  # the output layer of all prefixes is one
    Model.of_run(shared, *evaluated(state)).embed(["cat"], dim=3)


@pytest.fixture
def pictures(tmp_path):
    """Files of an upright, a turned and a clear picture, in a folder of their own."""
    rng, folder = np.random.default_rng(3), tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    rgb_hwc = rng.integers(0, 256, (21, 30, 3)).astype(np.uint8)
    Image.fromarray(rgb_hwc).save(folder / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb_hwc).save(folder / "b.png", exif=exif)
    rgba_hwc = rng.integers(0, 256, (12, 9, 4)).astype(np.uint8)
    Image.fromarray(rgba_hwc).save(folder / "deep" / "c.png")
    return [folder / "a.png", folder / "b.png", folder / "deep" / "c.png"]


COLOUR = image_inputs.Inputs(
    {"image": (("b", 8, 8, 3), np.dtype(np.uint8))}, classes=("a", "b"), crop=0.75
)


def pixels(items, inputs=COLOUR):
    rows = inputs.open(items)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    found = np.zeros((rows.count, 8, 8, 3), np.uint8)
    for row_b, batch in rows.read(0, rows.count, 2, sharding):
        found[row_b] = np.asarray(batch["image"])[: len(row_b)]
    return found


def test_images_of_all_kinds_become_the_pixels_of_evaluation(pictures):
    exact = [centre_square(p.read_bytes(), "x", 8, 0.75) for p in pictures]
    opened = [Image.open(path) for path in pictures]
    for items in (pictures, list(map(str, pictures)), opened, iter(pictures), pictures[0].parent):
        np.testing.assert_array_equal(pixels(items), exact)
    np.testing.assert_array_equal(pixels(np.array(exact)), exact)
    for mode in ("L", "P", "CMYK", "LA", "I;16"):
        same = opened[0].convert("L").convert("I").convert(mode) if mode == "I;16" else None
        assert pixels([same or opened[0].convert(mode)]).shape == (1, 8, 8, 3)
    rows = COLOUR.open(pictures[0].parent)
    assert rows.names == ("a.png", "b.png", "deep/c.png")


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ("nowhere", UsageError, "nowhere is not a folder of images; legal: a folder of images,"),
        (["nowhere.png"], DataError, "image 0: there is no file nowhere.png"),
        ([__file__], DataError, "cannot read image .*test_model.py: its content is not JPEG"),
        ([Image.new("F", (8, 8))], DataError, "cannot read image 0: it holds floating point"),
        ([3], UsageError, r"image 0 must be a file or a PIL image, got 3 \(int\)"),
        (None, UsageError, r"images must be a folder .* got None \(NoneType\)"),
        (np.zeros((2, 8, 8, 3)), UsageError, "image must be an array of uint8, got .*float64"),
        (np.zeros((8, 8, 3), np.uint8), UsageError, r"the shape \[N, 8, 8, 3\], got \(8, 8, 3\)"),
        (np.zeros((1, 8, 8, 1), np.uint8), UsageError, r"shape \[N, 8, 8, 3\], got \(1, 8, 8, 1\)"),
    ],
)
def test_what_is_no_image_is_refused(items, error, message):
    with pytest.raises(error, match=message) as caught:
        pixels(items)
    assert len(str(caught.value).splitlines()) == 1


def test_pictures_for_grey_networks_are_refused(pictures):
    grey = dataclasses.replace(COLOUR, spec={"image": (("b", 8, 8, 1), np.dtype(np.uint8))})
    with pytest.raises(UsageError, match=r"of this network are grey: give an array of uint8 \[N"):
        grey.open(pictures)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (np.zeros((2, 11), np.float32), r"vector must have the shape \[N, 12\], got \(2, 11\)"),
        (np.zeros(12, np.float32), r"the shape \[N, 12\], got \(12,\)"),
        (
            np.zeros((2, 12), int),
            "must be an array of floating point numbers, got an array of int64",
        ),
        (np.full((2, 12), np.inf), "vector 0 holds NaN, infinity or a number beyond float32"),
        (np.full((2, 12), 1e300), "vector 0 holds NaN, infinity or a number beyond float32"),
        (["a", "b"], "must be an array of floating point numbers, got"),
        ([[1.0], [1.0, 2.0]], "must be an array of floating point numbers, got"),
        (None, "must be an array of floating point numbers, got None"),
    ],
)
def test_what_are_no_vectors_is_refused(state_of, items, message):
    setup, state = state_of("adaptor")
    with pytest.raises(UsageError, match=message) as caught:
        Model.of_run(setup, *evaluated(state)).embed(items)
    assert len(str(caught.value).splitlines()) == 1


def test_vectors_of_all_kinds(state_of, tmp_path):
    setup, state = state_of("adaptor")
    model = Model.of_run(setup, *evaluated(state))
    exact_nd = model.embed(VECTORS)
    np.save(tmp_path / "x.npy", VECTORS)
    for items in (VECTORS.astype(np.float64), VECTORS.tolist(), tmp_path / "x.npy"):
        np.testing.assert_allclose(model.embed(items), exact_nd, atol=1e-6)
    np.save(tmp_path / "wide.npy", np.zeros((2, 13), np.float32))
    with pytest.raises(UsageError, match=r"wide.npy has 13 dims, the run adapts 12"):
        model.embed(str(tmp_path / "wide.npy"))
    with pytest.raises(DataError, match=r"none.npy"):
        model.embed(tmp_path / "none.npy")
    for dim in (0, 13, 2.5, True):
        with pytest.raises(UsageError, match="dim must be 1 to 12, got"):
            model.embed(VECTORS, dim=dim)
    with pytest.raises(UsageError, match="prompt_name is of texts, and these are vectors"):
        model.embed(VECTORS, prompt_name="query")


def test_text_that_is_not_unicode_is_refused_by_number(state_of):
    setup, state = state_of("masked_lm")
    with pytest.raises(DataError, match="text 1 is not valid Unicode"):
        Model.of_run(setup, *evaluated(state)).embed(["cat", "\ud800"])


def test_numbers_that_are_none_name_the_item(state_of):
    setup, state = state_of("adaptor")
    params = jax.tree.map(lambda x: x * np.nan, state["params"])
    model = Model.of_run(setup, params, state["model_state"])
    with pytest.raises(NonFiniteError, match="the embedding of vector 0 holds NaN or infinity"):
        model.embed(VECTORS)


def test_what_is_no_model_is_refused(state_of, digits_run, tmp_path):
    with pytest.raises(UsageError, match="none is not a folder: give that of a run or of an exp"):
        mrl_jax.load(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty holds no run \(config.json is missing\)"):
        mrl_jax.load(tmp_path / "empty")
    bare = shutil.copytree(digits_run[0], tmp_path / "bare", ignore=lambda *_: ["ckpt"])
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        mrl_jax.load(bare)
    setup, state = state_of("adaptor")
    graph = exported(setup, state, tmp_path / "graph", "stablehlo")
    with pytest.raises(UsageError, match=r"step is of a run, .*graph holds an export"):
        mrl_jax.load(graph, step=3)
    content = (graph / "embed.stablehlo").read_bytes()
    (graph / "embed.stablehlo").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"embed.stablehlo is damaged"):
        mrl_jax.load(graph)
    (graph / "embed.stablehlo").unlink()
    with pytest.raises(DataError, match=r"cannot read .*embed.stablehlo: No such file"):
        mrl_jax.load(graph)
    about = json.loads((graph / "about.json").read_text())
    (graph / "about.json").write_text(json.dumps({**about, "inputs": 3}))
    with pytest.raises(DataError, match=r"about.json is damaged"):
        mrl_jax.load(graph)
    (graph / "config.json").unlink()
    with pytest.raises(UsageError, match="it was exported by an older release"):
        mrl_jax.load(graph)


def test_parameters_of_another_model_are_refused(state_of, tmp_path):
    from safetensors.numpy import load_file, save_file

    path = exported(*state_of("adaptor"), tmp_path / "out", "safetensors") / "model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    for changed, message in (
        ({}, f"has no tensor {name}"),
        ({**tensors, "more": VECTORS}, "has a foreign tensor more"),
        (
            {**tensors, name: VECTORS},
            rf"{name} must be float32 \(12, 12\), it is float32 \(5, 12\)",
        ),
    ):
        path.unlink()
        save_file(changed, path)
        with pytest.raises(DataError, match=message):
            mrl_jax.load(path.parent)
    path.write_bytes(b"{")
    with pytest.raises(DataError, match=r"cannot read .*model.safetensors: "):
        mrl_jax.load(path.parent)
