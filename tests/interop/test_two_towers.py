import dataclasses
import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tower_models
from safetensors.numpy import load_file, save_file

from mrl_jax.errors import DataError, UsageError
from mrl_jax.interop import towers_of_open_clip
from mrl_jax.interop.sentence_folder import write_sentence_folder
from mrl_jax.interop.text_folder import read_text_folder
from mrl_jax.interop.two_towers import read_two_towers
from mrl_jax.models.text.tokenizer import Tokenizer
from mrl_jax.tasks import text_encoder

# Numbers that transformers 5.24 and OpenCLIP 3.3 with timm 1.0.31 gave (torch 2.14) for the weights
# of `tower_models`: three dims of both images, the last two of the four texts, and all logits.
# test_two_towers_torch.py compares all where these are installed.
EXPECTED = {
    "clip": (
        ((0.63506, -0.64416, -2.15287), (0.28198, -0.38239, -1.87031)),
        ((1.57129, -0.61843), (2.24664, -0.68568), (1.87272, -0.28814), (2.00189, -0.60872)),
        ((-3.58778, -2.62736, -2.38171, -2.6557), (-4.02653, -3.0958, -2.77928, -3.21576)),
    ),
    "clip_gelu": (
        ((0.63393, -0.63949, -2.16547), (0.27897, -0.38184, -1.87319)),
        ((1.56234, -0.61187), (2.23471, -0.67513), (1.86758, -0.27934), (1.99312, -0.60045)),
        ((-3.59632, -2.62588, -2.37813, -2.65708), (-4.03202, -3.09835, -2.78244, -3.22393)),
    ),
    "siglip": (
        ((-1.10745, -1.15569, 0.89825), (-0.35903, -0.58347, 1.53856)),
        ((-0.21776, 0.35119), (-0.70046, 0.09466), (-0.5256, 0.08657), (-0.21334, 0.31077)),
        ((0.94924, 0.47727, 0.6805, 0.78862), (0.85959, 1.03765, 1.02062, 0.48583)),
    ),
    "open_clip": (
        ((-2.04319, 0.04186, -0.28138), (-1.96618, 0.00294, -0.50901)),
        ((-0.17421, 0.73613), (-0.53725, -0.81738), (-1.76552, 0.59185), (-0.74677, -0.37811)),
        ((1.21979, 1.47282, -0.30426, -0.37216), (1.08994, 1.34856, -0.44077, -0.48501)),
    ),
    "open_clip_any": (
        ((0.54397, 1.90952, -0.88561), (-0.08942, 1.7328, -0.84236)),
        ((-0.064, -0.78492), (1.37721, -1.48285), (0.86171, -0.38421), (0.39786, -1.05156)),
        ((-2.12168, -1.61531, -0.4409, -1.56135), (-3.34083, -2.30188, -1.14111, -2.81177)),
    ),
    "open_clip_siglip": (
        ((-0.62201, 0.05836, -0.27976), (-0.21104, -0.21644, -0.8691)),
        ((0.22772, 0.00289), (0.28842, -0.04965), (0.32284, -0.21502), (-0.23076, 0.08785)),
        ((-1.95094, -1.59979, -2.73829, -1.25903), (2.57182, 2.13694, 1.99986, 1.75071)),
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind, which tests copy before they change it."""
    root = tmp_path_factory.mktemp("towers")
    return {kind: make(root / kind) for kind, make in tower_models.KINDS.items()}


@pytest.fixture(scope="module", autouse=True)
def small_siglip():
    """timm's base is as small as that of `tower_models`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(towers_of_open_clip.SIGLIPS, "base", tower_models.TIMM)
        yield


@pytest.mark.parametrize("kind", EXPECTED)
def test_features_and_logits_are_the_measured_ones(folders, kind):
    towers = read_two_towers(folders[kind])
    image_bd, text_bd, logits = tower_models.features(towers)
    for found, exact in zip(
        (image_bd[:, :3], text_bd[:, -2:], logits), EXPECTED[kind], strict=True
    ):
        np.testing.assert_allclose(found, exact, atol=5e-5)
    assert towers.loss == ("sigmoid" if "siglip" in kind else "info_nce")
    assert set(towers.projections["text"]) - {"kernel"} == (
        {"bias"} if kind in ("siglip", "open_clip_siglip", "open_clip_any") else set()
    )


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_text_is_the_same_in_any_batch(folders, kind):
    text = read_two_towers(folders[kind]).text
    rng = np.random.default_rng(0)
    tokens_bt = rng.integers(3, 90, (3, 14)).astype(np.int32)
    length_b = np.array([14, 5, 0], np.int32)

    def run(params, tokens_bt, length_b, **options):
        return text.encoder.apply({"params": params}, tokens_bt, length_b, **options)

    @jax.jit
    def all_of(params):
        longer_bt = jnp.pad(tokens_bt, ((0, 0), (0, 6)), constant_values=7)
        return (
            run(params, tokens_bt, length_b),
            run(params, longer_bt, length_b),
            run(params, tokens_bt[1:2, :5], length_b[1:2]),
            run(params, tokens_bt, length_b, method="every_layer"),
            run(params, tokens_bt, length_b, depth=1),
        )

    together, longer, alone, every_lbd, first = all_of(text.params)
    assert (together[2] == 0).all()
    assert np.abs(together[:2]).max(1).min() > 0.1
    np.testing.assert_allclose(longer, together, atol=1e-5)
    np.testing.assert_allclose(alone, together[1:2], atol=1e-5)
    np.testing.assert_allclose(every_lbd, [first, together], atol=1e-5)
    assert np.abs(first - together).max() > 0.1


def test_computing_again_and_half_precision_change_nothing_or_little(folders):
    image, text = read_two_towers(folders["siglip"]), read_two_towers(folders["clip"]).text
    pixels_bhwc = np.random.default_rng(0).normal(size=(2, 14, 14, 3)).astype(np.float32)
    batch = np.full((2, 4), 5, np.int32), np.array([4, 2], np.int32)
    for module, params, inputs in (
        (image.vision, image.vision_params, (pixels_bhwc,)),
        (text.encoder.backbone, text.params["backbone"], batch),
    ):
        kinds = module, module.clone(remat=True), module.clone(dtype=jnp.bfloat16)

        @jax.jit
        def all_of(params, inputs, kinds=kinds):
            found = [kind.apply({"params": params}, *inputs) for kind in kinds]
            return [jnp.float32(x[-1] if isinstance(x, tuple) else x) for x in found]

        exact, again, half = all_of(params, inputs)
        np.testing.assert_allclose(again, exact, atol=1e-6)
        assert 0 < np.abs(half - exact).max() < 0.1


def test_pixels_are_normalised_as_the_folder_says(folders, tmp_path):
    towers = read_two_towers(folders["clip"])
    assert towers.image_size == 14
    np.testing.assert_allclose(towers.mean, 255 * np.array(tower_models.MEAN))
    np.testing.assert_allclose(towers.std, 255 * np.array(tower_models.STD))
    assert [note[:24] for note in towers.notes] == ["images were resized with"]
    assert [note[:24] for note in read_two_towers(folders["siglip"]).notes] == [
        "images were squeezed to ",
        "images were resized with",
    ]
    # Without a word, as transformers has it for each.
    for kind, mean, squeezed in (("clip", 0.48145466, False), ("siglip", 0.5, True)):
        folder = copied(folders[kind], tmp_path / kind)
        place = folder / "preprocessor_config.json"
        settings = json.loads(place.read_text())
        place.write_text(json.dumps({key: settings[key] for key in ("size", "crop_size")}))
        found = read_two_towers(folder)
        assert found.mean[0] == pytest.approx(255 * mean)
        assert any("squeezed" in note for note in found.notes) == squeezed
    # As newer releases of transformers write it; and resized to more than is cut out.
    folder = copied(folders["clip"], tmp_path)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    settings |= {"size": {"shortest_edge": 16}, "resample": 2, "rescale_factor": 1.0}
    settings |= {"crop_size": {"height": 14, "width": 14}}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    towers = read_two_towers(folder)
    np.testing.assert_allclose(towers.mean, tower_models.MEAN)
    assert len(towers.notes) == 1
    assert "data.eval_crop 0.875 does the same" in towers.notes[0]


def test_what_is_not_in_the_config_is_as_transformers_has_it(folders, tmp_path):
    folder = copied(folders["siglip"], tmp_path)
    change(folder / "config.json", {"text_config": {"hidden_size": 12}})
    with pytest.raises(DataError, match="texts end in 12 dims, images in 20"):
        read_two_towers(change_text(folder, projection_size=None))
    (folder / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(DataError, match=r"size is .* the image tower reads 224x224"):
        read_two_towers(folder)


def test_the_older_name_of_a_config_goes_first(folders, tmp_path):
    """As in the first CLIPs, whose config.json has both and only one is right."""
    folder = copied(folders["clip"], tmp_path)
    whole = json.loads((folder / "config.json").read_text())
    whole["text_config_dict"] = whole["text_config"]
    whole["text_config"] = {"hidden_size": 999}
    (folder / "config.json").write_text(json.dumps(whole))
    assert read_two_towers(folder).text.encoder.out_dim == 16


def test_the_tokenizer_cuts_the_text_and_keeps_its_end(folders, tmp_path):
    for kind, last in (("clip", 526), ("siglip", 1)):
        towers = read_two_towers(folders[kind])
        ids = towers.text.tokenizer.encode(tower_models.TEXTS, 6)
        assert [ids_t[-1] for ids_t in ids] == [last] * 4
        assert max(map(len, ids)) == 6
        towers.text.tokenizer.save(tmp_path, 6)
        again = Tokenizer.load(tmp_path / "tokenizer.json", settings=False)
        for a, b in zip(again.encode(tower_models.TEXTS, 6), ids, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["siglip", "open_clip_siglip"])
def test_siglip_reads_no_capitals_and_no_punctuation(folders, kind):
    tokenizer = read_two_towers(folders[kind]).text.tokenizer
    plain, loud = tokenizer.encode(["the dog", "  The  \n(dog)! "], 20)
    np.testing.assert_array_equal(plain, loud)
    joined, apart = tokenizer.encode(["the_dog", "thedog"], 20)
    # OpenCLIP takes the underscore for a space.
    assert np.array_equal(joined, plain if kind == "open_clip_siglip" else apart)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_facts_of_a_text_tower_make_it_again(folders, kind):
    text = read_two_towers(folders[kind]).text
    encoder = text_encoder.TextEncoder(text.encoder, True, text.max_length, {})
    facts = json.loads(json.dumps(encoder.facts()))
    assert facts["kind"] == "clip"
    assert text_encoder.of_facts(facts).module == text.encoder


def copied(folder, tmp_path):
    return pathlib.Path(shutil.copytree(folder, tmp_path / "copy"))


def change(path, values):
    """Sets keys, in objects within objects too; None removes one."""

    def merged(old, new):
        both = {**old}
        for key, value in new.items():
            both[key] = merged(old.get(key, {}), value) if isinstance(value, dict) else value
        return {key: value for key, value in both.items() if value is not None}

    path.write_text(json.dumps(merged(json.loads(path.read_text()), values)))


def change_text(folder, **values):
    change(folder / "config.json", {"text_config": values})
    return folder


WRONG = {
    "another_model": (
        ("config.json", {"model_type": "siglip2"}),
        UsageError,
        "model_type 'siglip2' is not supported; legal: 'clip' or 'siglip'",
    ),
    "activation": (
        ("config.json", {"text_config": {"hidden_act": "mish"}}),
        UsageError,
        "text_config: hidden_act 'mish' is not supported; legal: .*quick_gelu",
    ),
    "heads": (
        ("config.json", {"vision_config": {"num_attention_heads": 3}}),
        DataError,
        "vision_config: 3 heads do not divide the width 20",
    ),
    "layers": (
        ("config.json", {"text_config": {"num_hidden_layers": 3}}),
        UsageError,
        "does not fit the model: no tensor for text/layer_02/.* and 13 more",
    ),
    "fewer_layers": (
        ("config.json", {"vision_config": {"num_hidden_layers": 1}}),
        UsageError,
        r"no parameter for vision_model\.encoder\.layers\.1\.",
    ),
    "shape": (
        ("config.json", {"projection_dim": 9}),
        UsageError,
        r"wrong shape: text_projection.weight \[8, 16\] for text_projection/kernel \[16, 9\]",
    ),
    "number": (
        ("config.json", {"text_config": {"vocab_size": "many"}}),
        DataError,
        "text_config: field 'vocab_size' must be int",
    ),
    "positions": (
        ("config.json", {"text_config": {"max_position_embeddings": 1}}),
        DataError,
        "text_config: max_position_embeddings must be 8 to",
    ),
    "vocabulary": (
        ("config.json", {"text_config": {"vocab_size": 500}}),
        DataError,
        "the tokenizer has ids up to 526, the table 500 rows",
    ),
    "end": (
        ("config.json", {"text_config": {"eos_token_id": 7}}),
        DataError,
        "texts are embedded at token 7, but the tokenizer ends them with 526",
    ),
    "patch": (
        ("config.json", {"vision_config": {"patch_size": 15}}),
        DataError,
        "a patch of 15 pixels is larger than an image of 14",
    ),
    "oblong": (
        ("config.json", {"vision_config": {"image_size": [14, 28]}}),
        DataError,
        "field 'image_size' must be int",
    ),
    "grey": (
        ("config.json", {"vision_config": {"num_channels": 1}}),
        UsageError,
        "num_channels 1 is not supported; legal: 3",
    ),
    "image_size": (
        ("preprocessor_config.json", {"crop_size": 28}),
        DataError,
        "crop_size is 28, the image tower reads 14x14 pixels",
    ),
    "resized": (
        ("preprocessor_config.json", {"size": "large"}),
        DataError,
        "field 'size' must be int, got 'large'",
    ),
    "deviation": (
        ("preprocessor_config.json", {"image_std": [0.2, 0, 0.2]}),
        DataError,
        "deviations must be more than 0",
    ),
    "mean": (
        ("preprocessor_config.json", {"image_mean": [0.5]}),
        DataError,
        "image_mean must be three numbers",
    ),
    "tokenizer_class": (
        ("tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer"}),
        UsageError,
        "tokenizer_class 'GemmaTokenizer' is not supported; legal: .*CLIPTokenizer",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named(folders, tmp_path, case):
    (file, values), error, message = WRONG[case]
    folder = copied(folders["clip"], tmp_path)
    change(folder / file, values)
    refused(folder, error, message)


def refused(folder, error, message):
    with pytest.raises(error) as caught:
        read_two_towers(folder)
    line = str(caught.value)
    assert re.search(message, line), line
    assert "\n" not in line
    assert str(folder) in line


OPEN_WRONG = {
    "resnet": ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, r"a ResNet \(layers \[3, 4, 6, 3\]\)"),
    "timm": ({"vision_cfg": {"timm_model_name": "convnext_base"}}, "legal: a SigLIP, such as vit_"),
    "text_model": ({"text_cfg": {"hf_model_name": "roberta-base"}}, "hf_model_name 'roberta-base'"),
    "coca": ({"text_cfg": {"embed_cls": True}}, "embed_cls True is not supported"),
    "pooling": ({"vision_cfg": {"pool_type": "avg"}}, "pool_type 'avg' .* legal: 'tok'"),
    "first": ({"text_cfg": {"pool_type": "first"}}, "pool_type 'first'"),
    "both_ways": ({"text_cfg": {"no_causal_mask": True}}, "no_causal_mask with pool_type 'argmax'"),
    "layer_scale": ({"vision_cfg": {"ls_init_value": 0.1}}, "ls_init_value 0.1"),
    "norm": ({"text_cfg": {"norm_kwargs": {"bias": False}}}, "norm_kwargs: bias is not supported"),
}


@pytest.mark.parametrize("case", OPEN_WRONG)
def test_other_towers_of_open_clip_are_named(folders, tmp_path, case):
    values, message = OPEN_WRONG[case]
    folder = copied(folders["open_clip"], tmp_path)
    change(folder / "open_clip_config.json", {"model_cfg": values})
    refused(folder, UsageError, message)


def test_files_that_are_missing_are_named(folders, tmp_path):
    with pytest.raises(UsageError, match=r"folder of two towers .* not found"):
        read_two_towers(tmp_path / "none")
    folder = copied(folders["clip"], tmp_path)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "visual_projection.bias": np.zeros(8, np.float32)}, weights)
    refused(folder, UsageError, "no parameter for visual_projection.bias")
    save_file({**tensors, "logit_scale": np.array(100, np.float32)}, weights)
    refused(folder, DataError, "logit_scale is 100, which is no logarithm")
    save_file({name: x for name, x in tensors.items() if name != "logit_scale"}, weights)
    refused(folder, UsageError, "has no tensor logit_scale")
    (folder / "model.safetensors.index.json").touch()
    refused(folder, UsageError, "weights in several files; legal: one model.safetensors")
    (folder / "model.safetensors.index.json").unlink()
    weights.rename(folder / "pytorch_model.bin")
    refused(folder, UsageError, "is a pickle, which can run any code")
    (folder / "preprocessor_config.json").unlink()
    refused(folder, UsageError, "has no preprocessor_config.json, which says how pixels are")
    (folder / "merges.txt").unlink()
    refused(
        folder, UsageError, "has no tokenizer: legal is tokenizer.json or vocab.txt, of a CLIP al"
    )
    (folder / "spiece.model").touch()
    refused(folder, UsageError, "has no tokenizer: legal is tokenizer.json, .* python -c")
    (folder / "config.json").unlink()
    refused(folder, UsageError, "has neither config.json nor open_clip_config.json")


def test_both_forms_in_one_folder_are_one_model(folders, tmp_path):
    """As many folders on the hub have them; whichever weights are there are read."""
    folder = copied(folders["clip"], tmp_path)
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        shutil.copy(folders["open_clip"] / name, folder)
    assert read_two_towers(folder).vision.activation == "quick_gelu"
    (folder / "model.safetensors").unlink()
    assert read_two_towers(folder).vision.activation == "gelu"
    (folder / "open_clip_model.safetensors").rename(folder / "model.safetensors")
    (folder / "config.json").unlink()
    assert read_two_towers(folder).vision.activation == "gelu"


def test_a_vocabulary_of_another_model_needs_a_tokenizer_file(folders, tmp_path):
    folder = copied(folders["open_clip"], tmp_path)
    (folder / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    (folder / "merges.txt").write_text("a b\n")
    refused(folder, DataError, r"lacks <\|startoftext\|>, <\|endoftext\|>; of CLIP alone are")


@pytest.mark.parametrize("kind", ["clip", "siglip", "open_clip"])
def test_a_folder_of_two_towers_is_no_text_encoder(folders, kind):
    with pytest.raises((UsageError, DataError)) as caught:
        read_text_folder(folders[kind])
    assert "\n" not in str(caught.value)
    assert str(folders[kind]) in str(caught.value)
    assert ("legal: config.towers.weights of a run of image_text" in str(caught.value)) == (
        kind != "open_clip"
    )


def test_the_text_tower_alone_is_no_sentence_encoder(folders, tmp_path):
    text = read_two_towers(folders["clip"]).text
    with pytest.raises(UsageError, match="sentence-transformers has no module for the text tower"):
        write_sentence_folder(tmp_path / "out", dataclasses.replace(text))
    assert not (tmp_path / "out").exists()
