"""Folders of sentence-transformers with a tower for texts and one for images."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import text_models
from PIL import Image

from mrl_jax.errors import DataError, UsageError
from mrl_jax.interop.image_folder import ImageFolder
from mrl_jax.interop.sentence_folder import write_sentence_folder
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


def test_networks_without_a_module_are_not_writable():
    assert image_folder().writable
    pooled = dataclasses.replace(image_folder(), backbone=ViT(8, 24, 2, 3, "gap"))
    assert not pooled.writable
