"""Folders of sentence-transformers with a tower for texts and one for images."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import text_models
import tower_models
from PIL import Image

from mrl_jax.errors import DataError, UsageError
from mrl_jax.interop.image_folder import ImageFolder
from mrl_jax.interop.router_folder import read_clip_folder
from mrl_jax.interop.sentence_folder import holds_images, write_sentence_folder
from mrl_jax.interop.two_towers import read_two_towers
from mrl_jax.model import Model, load
from mrl_jax.models.vit import ViT
from mrl_jax.runtime.rows import unit_length

TEXTS = [*text_models.SENTENCES[:3], "", "two dogs"]
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)


def image_folder(width=12, *, crop=1.0, **fields):
    """A ViT with random weights, whose embeddings have `width` dims."""
    vit, rng = ViT(8, 24, 2, 3, "cls", **fields), np.random.default_rng(1)
    image_bhwc = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    shapes = jax.eval_shape(vit.init, jax.random.key(0), image_bhwc)["params"]
    draw = lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32)  # noqa: E731
    kernel = rng.normal(size=(vit.out_dim, width)).astype(np.float32)
    mean, std = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)
    return ImageFolder(vit, jax.tree.map(draw, shapes), {"kernel": kernel}, 16, crop, mean, std)


def text_folder(**fields):
    folder = text_models.bert(projection=12, layers=1, **fields)
    return dataclasses.replace(folder, trained_dims=(4, 12))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder of both towers, and what is in it."""
    text, image = text_folder(), image_folder(embedding_dim=7, crop=0.9)
    place = tmp_path_factory.mktemp("router") / "m"
    write_sentence_folder(place, text, image=image)
    return place, text, image


def test_what_is_written_is_read_back(written, tmp_path):
    place, text, image = written
    model = load(place)
    assert (model.width, model.nesting.dims, list(model.towers)) == (12, (4, 12), ["image", "text"])
    exact_td = Model.of_text_folder(text).embed(TEXTS, dim=4)
    np.testing.assert_allclose(model.embed(TEXTS, dim=4), exact_td, atol=1e-6)
    # By the network itself, step by step.
    x_bhwc = ((PIXELS - np.array(image.mean)) / np.array(image.std)).astype(np.float32)
    z_bd = image.backbone.apply({"params": image.params}, x_bhwc) @ image.projection["kernel"]
    np.testing.assert_allclose(model.embed(PIXELS, normalize=False), z_bd, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.embed(PIXELS), unit_length(np.asarray(z_bd)), atol=1e-5)
    # Of a picture the same share is read.
    assert model.towers["image"].inputs.crop == 0.9
    picture = Image.fromarray(np.tile(PIXELS[0], (3, 2, 1)))
    exact_bd = Model.of_image_folder(image).embed([picture])
    np.testing.assert_allclose(model.embed([picture]), exact_bd, atol=1e-5)
    assert "model.encode([Image.open" in (place / "README.md").read_text()


@pytest.mark.parametrize("kind", ["clip", "clip_gelu", "siglip", "open_clip"])
def test_a_clip_of_others_embeds_both(tmp_path, kind):
    place = tower_models.KINDS[kind](tmp_path / "m")
    model, towers = load(place), read_two_towers(place)
    pixels = tower_models.images(towers.image_size)
    image_bd, text_bd, _ = tower_models.features(towers)
    np.testing.assert_allclose(model.embed(pixels, normalize=False), image_bd, atol=1e-5)
    found = model.embed(list(tower_models.TEXTS), normalize=False)
    np.testing.assert_allclose(found, text_bd, atol=1e-5)
    assert model.nesting is None
    with pytest.raises(UsageError, match=r"step is of a run, .* holds a CLIP or SigLIP"):
        load(place, step=3)


def nested_clip(base):
    """(text, image) of a CLIP whose first 4 and 6 dims were trained, and of pictures less is read.

    What has been a CLIP is still one.
    """
    text, image = read_clip_folder(tower_models.transformers_folder(base / "theirs"))
    dense = {"kernel": text.params["project"]["kernel"][:, :6]}
    text = dataclasses.replace(
        text,
        encoder=text.encoder.clone(projection=6),
        params={**text.params, "project": dense},
        trained_dims=(4, 6),
        max_length=9,
    )
    projection = {"kernel": image.projection["kernel"][:, :6]}
    return text, dataclasses.replace(image, projection=projection, crop=0.9)


def test_a_clip_is_written_as_one(tmp_path):
    text, image = nested_clip(tmp_path)
    write_sentence_folder(tmp_path / "m", text, image=image)
    model = load(tmp_path / "m")
    assert (model.width, model.nesting.dims) == (6, (4, 6))
    assert model.towers["text"].inputs.max_length == 9
    assert model.towers["image"].inputs.crop == 0.9
    pixels = tower_models.images(image.size)
    for items, exact in (
        (pixels, Model.of_image_folder(image).embed(pixels, dim=4)),
        (TEXTS, Model.of_text_folder(text).embed(TEXTS, dim=4)),
    ):
        np.testing.assert_allclose(model.embed(items, dim=4), exact, atol=1e-6)
    assert read_two_towers(tmp_path / "m").scale == pytest.approx(np.exp(image.log_scale))
    siglip = read_clip_folder(tower_models.transformers_folder(tmp_path / "s", siglip=True))
    assert not holds_images(*siglip)
    with pytest.raises(UsageError, match="no module for the text tower of a CLIP or SigLIP"):
        write_sentence_folder(tmp_path / "alone", siglip[0])


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("file", "values", "error", "message"),
    [
        ("router_config.json", {"structure": {"text": []}}, UsageError, "legal: text and image"),
        ("router_config.json", {"types": {}}, DataError, "not names of modules"),
        ("image_0_Transformer/config.json", {"hidden_act": "relu"}, UsageError, "legal: gelu"),
        ("image_0_Transformer/config.json", {"hidden_size": "24"}, DataError, "hidden_size"),
        ("image_0_Transformer/preprocessor_config.json", {"image_std": [1]}, DataError, "pixels"),
        ("image_2_Dense/config.json", {"out_features": 11}, UsageError, "does not fit the model"),
        ("matryoshka.json", {"crop_share": "all"}, DataError, "crop_share"),
    ],
)
def test_a_folder_of_another_kind_is_refused(written, tmp_path, file, values, error, message):
    write_sentence_folder(tmp_path / "m", written[1], image=written[2])
    change(tmp_path / "m" / file, **values)
    with pytest.raises(error, match=message) as caught:
        load(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_not_every_network_has_a_module():
    text = text_folder()
    assert holds_images(text, image_folder())
    gap = dataclasses.replace(image_folder(), backbone=ViT(8, 24, 2, 3, "gap"))
    assert not holds_images(text, gap)
