"""What we write, loaded by sentence-transformers itself, where it is installed."""

import dataclasses

import numpy as np
import pytest
import test_router_folder
import text_models
import tower_models
from PIL import Image

from mrl_jax.interop.sentence_folder import write_sentence_folder
from mrl_jax.interop.text_folder import read_text_folder
from mrl_jax.model import Model, load

sentence_transformers = pytest.importorskip("sentence_transformers")

DIMS = (4, 8, 24)
TEXTS = [*text_models.SENTENCES[:6], "", "a zebra!", "the old cat " * 20]
MODELS = {
    "bert": lambda: text_models.bert(projection=24),
    "bert cls": lambda: text_models.bert(projection=24, pooling="cls", projection_bias=False),
    "bert last": lambda: text_models.bert(projection=24, pooling="last"),
    "roberta": lambda: text_models.bert(width=24, types=1, position_offset=2),
    "mpnet": lambda: text_models.bert(width=24, types=0, position_offset=2, relative=True),
    "distilbert": lambda: text_models.bert(width=24, types=0),
    "table": lambda: text_models.static(width=24),
    "table with a limit": lambda: dataclasses.replace(text_models.static(width=24), max_length=5),
    "table with Dense": lambda: text_models.static(width=9, projection=24),
}


@pytest.mark.parametrize("name", MODELS)
def test_its_embeddings_are_ours_at_every_trained_dim(tmp_path, name):
    folder = dataclasses.replace(
        MODELS[name](),
        normalize=name != "bert cls",
        trained_dims=DIMS,
        truncate_dim=8,
        prompts={"query": "the woman "},
    )
    write_sentence_folder(tmp_path / "m", folder)
    ours = load(tmp_path / "m")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "m"), device="cpu")

    def check(found, **options):
        np.testing.assert_allclose(found, ours.embed(TEXTS, **options), atol=1e-5)

    # truncate_dim of the folder is used by both.
    check(theirs.encode(TEXTS, normalize_embeddings=True))
    assert theirs.encode(TEXTS).shape == (len(TEXTS), 8)
    with_prompt = theirs.encode(TEXTS, normalize_embeddings=True, prompt_name="query")
    check(with_prompt, prompt_name="query")
    for dim in DIMS:
        check(theirs.encode(TEXTS, truncate_dim=dim, normalize_embeddings=True), dim=dim)
    cut = sentence_transformers.SentenceTransformer(
        str(tmp_path / "m"), device="cpu", truncate_dim=4
    )
    check(cut.encode(TEXTS, normalize_embeddings=True), dim=4)


@pytest.mark.parametrize("name", ["bert", "table with Dense"])
def test_what_it_saves_we_read(tmp_path, name):
    folder = dataclasses.replace(
        MODELS[name](), normalize=True, truncate_dim=8, prompts={"query": "the woman "}
    )
    write_sentence_folder(tmp_path / "m", folder)
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "m"), device="cpu")
    theirs.save(str(tmp_path / "again"), create_model_card=False)
    again = read_text_folder(tmp_path / "again")
    assert again.encoder == folder.encoder
    for field in ("normalize", "truncate_dim", "max_length"):
        assert getattr(again, field) == getattr(folder, field), field
    # It writes the prompt that it would use for documents as well, which is empty.
    assert again.prompts == {"query": "the woman ", "document": ""}
    a, b = (Model.of_text_folder(f).embed(TEXTS, dim=24) for f in (folder, again))
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("embedding_dim", [0, 7])
def test_texts_and_images_are_embedded_by_one_object(tmp_path, embedding_dim):
    text = test_router_folder.text_folder()
    image = test_router_folder.image_folder(embedding_dim=embedding_dim)
    write_sentence_folder(tmp_path / "m", text, image=image)
    ours = load(tmp_path / "m")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "m"), device="cpu")
    pictures = [Image.fromarray(pixels) for pixels in test_router_folder.PIXELS]
    for items in (TEXTS, pictures):
        for dim in (4, 12):
            found = theirs.encode(items, truncate_dim=dim, normalize_embeddings=True)
            np.testing.assert_allclose(found, ours.embed(items, dim=dim), atol=1e-5)


def test_a_clip_of_ours_is_one_of_theirs(tmp_path):
    text, image = test_router_folder.nested_clip(tmp_path)
    image = dataclasses.replace(image, crop=1.0)
    write_sentence_folder(tmp_path / "m", text, image=image)
    ours = load(tmp_path / "m")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "m"), device="cpu")
    pixels = tower_models.images(image.size)
    for items, read in ((TEXTS, TEXTS), ([Image.fromarray(x) for x in pixels], pixels)):
        for dim in (4, 6):
            found = theirs.encode(items, truncate_dim=dim, normalize_embeddings=True)
            np.testing.assert_allclose(found, ours.embed(read, dim=dim), atol=1e-5)
