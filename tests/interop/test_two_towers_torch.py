"""Both towers against transformers and OpenCLIP themselves, where they and torch are installed."""

import functools
import json

import numpy as np
import pytest
import tower_models
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")

from mrl_jax.interop import towers_of_open_clip  # noqa: E402
from mrl_jax.interop.two_towers import read_two_towers  # noqa: E402


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
