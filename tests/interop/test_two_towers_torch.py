"""Both towers against transformers and OpenCLIP themselves, where they and torch are installed."""

import functools
import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
import tower_models
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")

from mrl_jax.errors import UsageError  # noqa: E402
from mrl_jax.interop import towers_of_open_clip  # noqa: E402
from mrl_jax.interop.two_towers import read_two_towers  # noqa: E402
from mrl_jax.models.text.tokenizer import Tokenizer  # noqa: E402


def inputs(towers):
    """(pixels [B, C, H, W], ids of all texts [B, longest possible], beyond a text 0) as tensors."""
    pixels_bhwc = (tower_models.images(towers.image_size) - np.array(towers.mean)) / towers.std
    ids = towers.text.tokenizer.encode(tower_models.TEXTS, towers.text.max_length)
    filler = towers.text.encoder.backbone.pad_id or 0
    ids_bt = np.full((len(ids), towers.text.max_length), filler)
    for row, ids_t in enumerate(ids):
        ids_bt[row, : len(ids_t)] = ids_t
    pixels = torch.tensor(pixels_bhwc.transpose(0, 3, 1, 2), dtype=torch.float32)
    return pixels, torch.tensor(ids_bt)


def check(towers, image_bd, text_bd, logits):
    found = tower_models.features(towers)
    for ours, theirs in zip(found, (image_bd, text_bd, logits), strict=True):
        assert np.std(ours) > 0.05
        np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", ["clip", "clip_gelu", "siglip"])
def test_towers_of_transformers(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    folder = tower_models.KINDS[kind](tmp_path / kind)
    model, report = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    towers = read_two_towers(folder)
    pixels, ids = inputs(towers)
    with torch.no_grad():
        out = model.eval()(input_ids=ids, pixel_values=pixels)
        image_bd = model.get_image_features(pixels).pooler_output
        text_bd = model.get_text_features(ids).pooler_output
    check(towers, image_bd, text_bd, out.logits_per_image)


def test_the_tokenizer_of_clip_is_that_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = tower_models.KINDS["clip"](tmp_path / "clip")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [*tower_models.TEXTS, "  The\tDOG's 12 bones — caf\u00e9, ... ", "\u0130 don't ?!"]
    exact = theirs(texts, truncation=True, max_length=20)["input_ids"]
    theirs.save_pretrained(tmp_path / "saved")
    (folder / "tokenizer.json").write_text((tmp_path / "saved" / "tokenizer.json").read_text())
    for _ in "of tokenizer.json", "of vocab.json and merges.txt":
        found = read_two_towers(folder).text.tokenizer.encode(texts, 20)
        assert [list(ids_t) for ids_t in found] == exact
        (folder / "tokenizer.json").unlink(missing_ok=True)


LIKELY = ("a dog runs over the grass", "two children play in the snow", "the man rides a bike")


def test_the_tokenizer_of_siglip_is_that_of_transformers(tmp_path):
    """Also the command that the message gives."""
    transformers = pytest.importorskip("transformers")
    sentencepiece = pytest.importorskip("sentencepiece")
    with (tmp_path / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LIKELY * 9), model_writer=file, vocab_size=28, minloglevel=2,
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>",
        )  # fmt: skip
    theirs = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(UsageError) as caught:
        Tokenizer.load(tmp_path)
    command = shlex.split(str(caught.value).partition("installed: python ")[2])
    subprocess.run([sys.executable, *command], check=True, timeout=300)
    texts = [
        *LIKELY,
        *tower_models.TEXTS,
        " The\tDOG's (grass)_runs... ",
        "na\u00efve \ufb01ne \u00bd",
    ]
    found = Tokenizer.load(tmp_path).encode(texts, 500)
    assert [list(ids_t) for ids_t in found] == theirs(texts)["input_ids"]


def test_the_vocabulary_of_the_first_clip_gives_the_ids_of_open_clip(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    theirs = open_clip.tokenizer.SimpleTokenizer()
    # Its names of the marks are other than those in the files of the first CLIP.
    names = {"<start_of_text>": tower_models.START, "<end_of_text>": tower_models.END}
    vocabulary = {names.get(token, token): i for token, i in theirs.encoder.items()}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    merges = "\n".join(map(" ".join, theirs.bpe_ranks))
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    texts = [
        *tower_models.TEXTS,
        "Two  dogs' bones, don't_they?",
        "caf\u00e9 \u72ac 12:30 #1",
        "a " * 99,
    ]
    found = Tokenizer.load(tmp_path).encode(texts, 77)
    for ids_t, exact_t in zip(found, theirs(texts).numpy(), strict=True):
        np.testing.assert_array_equal(np.pad(ids_t, (0, 77 - len(ids_t))), exact_t)


@pytest.mark.parametrize("kind", ["open_clip", "open_clip_any", "open_clip_siglip"])
def test_towers_of_open_clip(tmp_path, monkeypatch, kind):
    open_clip = pytest.importorskip("open_clip")
    timm = pytest.importorskip("timm")
    monkeypatch.setitem(towers_of_open_clip.SIGLIPS, "base", tower_models.TIMM)
    width, depth, heads, _ = tower_models.TIMM

    entries, name = timm.models._registry._model_entrypoints, "vit_base_patch16_siglip_224"
    sizes = {"embed_dim": width, "depth": depth, "num_heads": heads, "img_size": 32}
    small = functools.partial(entries[name], **sizes)
    monkeypatch.setitem(entries, name, small)
    folder = tower_models.KINDS[kind](tmp_path / kind)
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    made = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    model = made(**config).eval()
    state = load_file(folder / "open_clip_model.safetensors")
    model.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    towers = read_two_towers(folder)
    pixels, ids = inputs(towers)
    with torch.no_grad():
        image_bd, text_bd = model.encode_image(pixels), model.encode_text(ids)
        logits = model.get_logits(pixels, ids)[0]
    check(towers, image_bd, text_bd, logits)
