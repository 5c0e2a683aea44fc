"""A trained model of images and texts: one object embeds both, in every form that it has."""

import dataclasses
import json
import pathlib

import commands
import jax.numpy as jnp
import numpy as np
import pytest
import test_export
from PIL import Image

import mrl_jax
from mrl_jax import experiment, export
from mrl_jax.errors import DataError, UsageError
from mrl_jax.models.text import Bert
from mrl_jax.models.vit import ViT
from mrl_jax.runtime.rows import unit_length
from mrl_jax.runtime.step import evaluated
from mrl_jax.store.vectors import open_vectors

TEXTS = ["a red picture", "this is number 16 and it is red", "", "a blue picture"]


@pytest.fixture(scope="module")
def model(towers_run):
    return mrl_jax.load(towers_run[0])


@pytest.fixture
def photos(towers_run):
    return sorted((towers_run[1] / "photos").iterdir())


def command(module, run, out, *arguments):
    return commands.command(f"mrl_jax.{module}", "--workdir", run, "--out", out, *arguments)


def test_both_towers_embed_as_they_are_measured(towers_run, model):
    setup, state = experiment.restored(towers_run[0])
    split, measured = setup.dataset.splits["test"], setup.evaluation
    params, model_state = evaluated(state)
    z_pd = measured.images(params, model_state, split.images)
    z_td = measured.texts(params, model_state, split.texts)
    files = [towers_run[1] / "photos" / pathlib.Path(name).name for name in split.names]
    texts = list(split.texts)
    for dim in (2, 4, 8):
        exact_pd, exact_td = unit_length(z_pd[:, :dim]), unit_length(z_td[:, :dim])
        np.testing.assert_allclose(model.embed(files, dim=dim), exact_pd, atol=1e-5)
        np.testing.assert_allclose(model.embed(texts, dim=dim), exact_td, atol=1e-5)
    np.testing.assert_allclose(model.embed(files, normalize=False), z_pd, atol=1e-5)
    np.testing.assert_allclose(model.embed(texts, normalize=False), z_td, atol=1e-5)
    assert model.width == 8
    assert model.nesting == setup.program.task.nesting
    assert model.config.to_dict() == setup.config.to_dict()
    assert model.classes is None


def test_what_items_look_like_says_which_tower_reads_them(towers_run, model, photos):
    z_pd = model.embed(photos)
    folder = photos[0].parent
    pictures = [Image.open(photo) for photo in photos]
    for items in (folder, str(folder), pictures, iter(photos), [str(photos[0]), *photos[1:]]):
        np.testing.assert_array_equal(model.embed(items), z_pd)
    names = [str(photo) for photo in photos]
    np.testing.assert_array_equal(model.embed(names, tower="image"), z_pd)
    as_texts = model.embed(["photo", *names])[1:]
    np.testing.assert_allclose(model.embed(names, tower="text"), as_texts, atol=1e-6)
    pixels = np.zeros((3, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(model.embed(pixels), model.towers["image"].embed(pixels))
    z_td = model.embed(TEXTS)
    for items in (tuple(TEXTS), iter(TEXTS), np.array(TEXTS)):
        np.testing.assert_allclose(model.embed(items), z_td, atol=1e-6)
    np.testing.assert_allclose(model.embed(TEXTS, batch_tokens=9), z_td, atol=1e-6)
    for size in (1, 3):
        np.testing.assert_allclose(model.embed(TEXTS[:size]), z_td[:size], atol=1e-6)
    assert model.embed([], dim=4).shape == (0, 4)


def test_what_fits_no_tower_or_several_is_refused_in_a_line(model, photos):
    for items, options, message in (
        (["a dog", photos[0]], {}, r"items must be images \(a folder.* or texts \(.*got \['a dog'"),
        ("a dog", {}, "items must be images .* got 'a dog'"),
        (None, {}, "items must be images .* got None"),
        ([3], {}, r"got \[3\]"),
        (np.zeros((1, 16, 16, 3)), {}, "got an array of float64"),
        ([str(photos[0])], {}, 'could be images or texts: say tower="image" or tower="text", and'),
        (["no/such/photo.JPG"], {}, "could be images or texts: .* files as pathlib.Path"),
        (["a dog"], {"tower": "dogs"}, "tower must be image or text, got 'dogs'"),
        (photos, {"prompt_name": "query"}, "prompt_name is of texts, and these are images"),
        (["a dog"], {"prompt_name": "query"}, "no prompt 'query'; legal: none"),
        (["a dog"], {"depth": 1}, "depth: this model cannot run fewer"),
        (["a dog"], {"dim": 9}, "dim must be 1 to 8"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            model.embed(items, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="image 0: there is no file a dog"):
        model.embed(["a dog"], tower="image")
    with pytest.raises(UsageError, match="this model embeds images and texts and has no classes"):
        model.logits(np.zeros((1, 8), np.float32))
    with pytest.raises(UsageError, match="tower: this model has none, it reads texts"):
        model.towers["text"].embed(["a dog"], tower="text")


@pytest.mark.parametrize(
    "form", ["safetensors", "stablehlo", pytest.param("onnx", marks=pytest.mark.slow)]
)
def test_an_export_of_both_towers_embeds_as_the_run(
    towers_run, model, photos, tmp_path, monkeypatch, form
):
    out = tmp_path / "out"
    printed = commands.here(command("export", towers_run[0], out, "--format", form))
    assert printed == f"step 3, 8 dims, as {form} in {out}\n"
    found = mrl_jax.load(out)
    assert (found.width, found.nesting) == (model.width, model.nesting)
    for items in (photos, TEXTS):
        for options in ({"dim": 4}, {"normalize": False}):
            exact = model.embed(items, **options)
            np.testing.assert_allclose(found.embed(items, **options), exact, atol=1e-5)
    about = json.loads((out / "about.json").read_text())
    assert list(about["towers"]["text"]["inputs"]) == ["tokens", "lengths"]
    if form == "safetensors":
        assert about["file"] == "model.safetensors"
        (out / "photos").symlink_to(photos[0].parent)
        used = test_export.use(out, monkeypatch)
        np.testing.assert_allclose(used["unit_of_images"], model.embed(photos, dim=2), atol=1e-5)
        exact = model.embed(["a text", "another one"], dim=2)
        np.testing.assert_allclose(used["unit_of_texts"], exact, atol=1e-5)
        return
    assert about["towers"]["image"]["file"] == f"embed_image.{form}"
    # The code of the card, of one tower and of the other.
    (out / "photo.jpg").write_bytes(photos[2].read_bytes())
    code = (out / "README.md").read_text().split("```")[1::2]
    monkeypatch.chdir(out)
    for text, items in zip(code, (photos[2:3], ["a text", "another one"]), strict=True):
        used = {}
        exec(compile(text.removeprefix("python"), "README.md", "exec"), used)
        np.testing.assert_allclose(used["unit"], model.embed(items, dim=2), atol=1e-5)


def test_the_command_embeds_photos_captions_and_files_of_texts(towers_run, model, tmp_path):
    run, data = towers_run
    (tmp_path / "some.txt").write_text("a red picture\n\na blue picture\n")
    rows = ({"caption": "a red\npicture"}, {"caption": "a blue picture"})
    (tmp_path / "some.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def embedded(name, *arguments):
        out = tmp_path / name
        commands.here(command("embed", run, out, *arguments))
        vectors = open_vectors(out)
        made_from = json.loads((out / "manifest.json").read_text())["made_from"]
        names = (out / "names.txt").read_text().splitlines()
        return vectors.read(0, vectors.rows), names, made_from["tower"]

    z_nd, names, tower = embedded("a", "--input", "test")
    files = [data / "photos" / pathlib.Path(name).name for name in names]
    assert ([file.name for file in files], tower) == (
        ["16.png", "17.png", "18.png", "19.png"],
        "image",
    )
    np.testing.assert_allclose(z_nd, model.embed(files, normalize=False), atol=1e-6)
    z_nd, names, tower = embedded("b", "--input", "test", "--tower", "text", "--normalize")
    assert (len(names), tower) == (8, "text")
    np.testing.assert_allclose(z_nd, model.embed(names), atol=1e-6)
    z_nd, names, _ = embedded("c", "--input", data / "photos", "--dim", 4)
    assert names[19] == "19.png"
    assert z_nd.shape == (20, 4)
    expected = model.embed(["a red picture", "a blue picture"], normalize=False)
    for name in ("some.txt", "some.jsonl"):
        z_nd, names, tower = embedded(f"{name}.out", "--input", tmp_path / name)
        assert (names, tower) == (["a red picture", "a blue picture"], "text")
        np.testing.assert_allclose(z_nd, expected, atol=1e-6)
    for arguments, code, message in (
        (["some.txt", "--tower", "image"], 2, "some.txt is not a folder of images"),
        (["nothing.txt"], 2, r"a split (train, val, test) or a folder of images, a file of texts"),
        (["test", "--tower", "words"], 2, "tower must be image or text, got 'words'"),
        (["test", "--prompt_name", "query"], 2, "prompt_name is of texts, and these are images"),
    ):
        if arguments[0].endswith(".txt"):
            arguments = [tmp_path / arguments[0], *arguments[1:]]
        line = commands.refused(command("embed", run, tmp_path / "x", "--input", *arguments), code)
        assert message in line


def test_prompts_that_were_not_trained_with_are_not_put_before_texts(towers_run, tmp_path):
    """A text encoder's folder may have some; captions were read without."""
    setup, state = experiment.restored(towers_run[0])
    asks = {"prompts": {"query": "this is "}, "default_prompt": "query", "normalize": True}
    setup.facts = {**setup.facts, "encoder": {**setup.facts["encoder"], **asks}}
    model = mrl_jax.model.Model.of_run(setup, *evaluated(state))
    exact = mrl_jax.load(towers_run[0]).embed(TEXTS, normalize=False)
    np.testing.assert_array_equal(model.embed(TEXTS, normalize=False), exact)


def test_other_layouts_of_devices_embed_the_same(towers_run, model, photos):
    layouts = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    split = '--config.sharding=(("params","largest:fsdp"),(".*","replicate"))'
    other = mrl_jax.load(towers_run[0], overrides=(*layouts, split))
    kernel_io = other.params["text_projection"]["kernel"]
    assert len({str(shard.index) for shard in kernel_io.addressable_shards}) == 2
    for items in (photos, TEXTS):
        np.testing.assert_allclose(other.embed(items), model.embed(items), atol=1e-6)


def test_graphs_that_are_exact_have_no_product_in_bfloat16(towers_run):
    """ONNX Runtime has none on CPUs; networks of both towers may train with them."""
    task = experiment.of_run(towers_run[0]).program.task
    bert = Bert(9, 8, 1, 2, 8, dtype=jnp.bfloat16)
    vit = ViT(8, 8, 1, 2, dtype=jnp.bfloat16)
    half = dataclasses.replace(task, backbone=vit, encoder=task.encoder.clone(backbone=bert))
    found = export.in_float32(half)
    assert (found.backbone, found.encoder.backbone) == (
        vit.clone(dtype=jnp.float32),
        bert.clone(dtype=jnp.float32),
    )
    assert found.nesting == task.nesting


@pytest.mark.slow
@pytest.mark.parametrize("source", ["test", "texts.txt"])
def test_two_processes_embed_what_one_embeds(towers_run, tmp_path, source):
    (tmp_path / "texts.txt").write_text("\n".join(filter(None, TEXTS)))
    source = tmp_path / source if "." in source else source
    split = '--config.sharding=(("params","largest:fsdp"),(".*","replicate"))'
    argv = ("--input", source, "--config.mesh.data=1", "--config.mesh.fsdp=2", split)
    launcher = (commands.sys.executable, "launch/local.py", "--processes", "2", "--")
    commands.succeed([*launcher, *command("embed", towers_run[0], tmp_path / "both", *argv)])
    commands.here(command("embed", towers_run[0], tmp_path / "one", "--input", source))
    both, one = (open_vectors(tmp_path / name) for name in ("both", "one"))
    np.testing.assert_allclose(both.read(0, both.rows), one.read(0, one.rows), atol=1e-6)
