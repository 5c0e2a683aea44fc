"""Folders of tiny CLIPs and SigLIPs with random weights, for tests: nothing is downloaded.

The names and shapes of tensors are spelt out here as transformers and OpenCLIP have them.
"""

import json
import string

import jax
import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import models, pre_tokenizers, processors

from mrl_jax.models.text.tokenizer import pad

TEXTS = (
    "A dog runs!",
    "",
    "the cat, the dog and the cat are here.",
    "many words that are more than any tower of these tests has places for: the the the the",
)
WORDS = ("the", "dog", "cat", "are", "here", "and")
START, END = "<|startoftext|>", "<|endoftext|>"

TEXT = {"width": 16, "heads": 2, "layers": 2, "hidden": 24, "positions": 20}
VISION = {"width": 20, "heads": 2, "layers": 2, "hidden": 28, "size": 14, "patch": 4}
SPACE = 8
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


def clip_vocabulary():
    """Letters, letters that end a word, merges to `WORDS`, and the marks: (vocabulary, merges)."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for word in WORDS:
        whole, *rest = [*word[:-1], f"{word[-1]}</w>"]
        for part in rest:
            if (whole, part) not in merges:
                merges.append((whole, part))
                tokens.append(whole + part)
            whole += part
    tokens += [START, END]
    return {token: i for i, token in enumerate(tokens)}, merges


def clip_files(path):
    """Writes vocab.json, merges.txt and tokenizer_config.json of a CLIP."""
    vocabulary, merges = clip_vocabulary()
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (path / "merges.txt").write_text("\n".join(lines) + "\n")
    marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, **marks}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return len(vocabulary)


def siglip_files(path, kind="SiglipTokenizer"):
    """Writes tokenizer.json and tokenizer_config.json of a SigLIP."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS]
    pieces += [(letter, -6.0) for letter in string.ascii_letters + string.punctuation]
    raw = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    raw.add_special_tokens(["<pad>", "</s>", "<unk>"])
    raw.save(str(path / "tokenizer.json"))
    marks = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    config = {"tokenizer_class": kind, "extra_ids": 0, **marks}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return len(pieces)


def _layer(names, width, hidden, packed):
    """(name, shape) of a layer's tensors: of its attention, its norms and its perceptron."""
    attention, norm1, norm2, up, down = names
    if packed:
        yield f"{attention}.in_proj_weight", (3 * width, width)
        yield f"{attention}.in_proj_bias", (3 * width,)
    products = ("out_proj",) if packed else ("q_proj", "k_proj", "v_proj", "out_proj")
    linear = {f"{attention}.{name}": (width, width) for name in products}
    linear |= {up: (hidden, width), down: (width, hidden)}
    for name, shape in linear.items():
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]
    for name in (norm1, norm2):
        yield f"{name}.weight", (width,)
        yield f"{name}.bias", (width,)


def _layers(prefix, sizes, packed):
    kinds = ("attn", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")
    if not packed:
        kinds = ("self_attn", "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")
    for layer in range(sizes["layers"]):
        names = [f"{prefix}.{layer}.{kind}" for kind in kinds]
        yield from _layer(names, sizes["width"], sizes["hidden"], packed)


def _norm(name, width):
    return (f"{name}.weight", (width,)), (f"{name}.bias", (width,))


def transformers_tensors(siglip, vocabulary):
    """(name, shape) of the tensors of CLIPModel or SiglipModel."""
    t, v = TEXT, VISION
    patches = (v["size"] // v["patch"]) ** 2
    yield "text_model.embeddings.token_embedding.weight", (vocabulary, t["width"])
    yield "text_model.embeddings.position_embedding.weight", (t["positions"], t["width"])
    yield from _layers("text_model.encoder.layers", t, False)
    yield from _norm("text_model.final_layer_norm", t["width"])
    tokens, patch = "vision_model.embeddings", (v["width"], 3, v["patch"], v["patch"])
    yield f"{tokens}.patch_embedding.weight", patch
    yield f"{tokens}.position_embedding.weight", (patches + (not siglip), v["width"])
    yield from _layers("vision_model.encoder.layers", v, False)
    yield from _norm("vision_model.post_layernorm", v["width"])
    if siglip:
        yield f"{tokens}.patch_embedding.bias", (v["width"],)
        yield "text_model.head.weight", (v["width"], t["width"])
        yield "text_model.head.bias", (v["width"],)
        yield "vision_model.head.probe", (1, 1, v["width"])
        head = ("attention", "layernorm", "mlp.fc1", "mlp.fc2")
        names = [f"vision_model.head.{name}" for name in head]
        names.insert(1, "unused")
        for name, shape in _layer(names, v["width"], v["hidden"], True):
            if not name.startswith("unused"):
                yield name, shape
        yield "logit_scale", (1,)
        yield "logit_bias", (1,)
        return
    yield f"{tokens}.class_embedding", (v["width"],)
    yield from _norm("vision_model.pre_layrnorm", v["width"])
    yield "visual_projection.weight", (SPACE, v["width"])
    yield "text_projection.weight", (SPACE, t["width"])
    yield "logit_scale", ()


def open_clip_tensors(vocabulary, text="", *, text_bias=False, bias=False, space=SPACE):
    """(name, shape) of OpenCLIP's tensors but those of the image tower; `text`: a prefix."""
    t = TEXT
    yield f"{text}token_embedding.weight", (vocabulary, t["width"])
    yield f"{text}positional_embedding", (t["positions"], t["width"])
    yield from _layers(f"{text}transformer.resblocks", t, True)
    yield from _norm(f"{text}ln_final", t["width"])
    if text_bias:
        yield f"{text}text_projection.weight", (space, t["width"])
        yield f"{text}text_projection.bias", (space,)
    else:
        yield f"{text}text_projection", (t["width"], space)
    yield "logit_scale", ()
    if bias:
        yield "logit_bias", ()


def open_clip_vision(first_norm=True):
    """(name, shape) of OpenCLIP's own vision transformer."""
    v = VISION
    yield "visual.class_embedding", (v["width"],)
    yield "visual.positional_embedding", ((v["size"] // v["patch"]) ** 2 + 1, v["width"])
    yield "visual.proj", (v["width"], SPACE)
    yield "visual.conv1.weight", (v["width"], 3, v["patch"], v["patch"])
    if first_norm:
        yield from _norm("visual.ln_pre", v["width"])
    yield from _layers("visual.transformer.resblocks", v, True)
    yield from _norm("visual.ln_post", v["width"])


# What the tests put in the place of timm's base: width, layers, heads, hidden.
TIMM = (20, 2, 2, 80)


def timm_vision():
    """(name, shape) of timm's vit_base_patch16_siglip_224 with these sizes, for 32x32 pixels."""
    width, layers, _, hidden = TIMM
    trunk = "visual.trunk"
    yield f"{trunk}.pos_embed", (1, 4, width)
    yield f"{trunk}.patch_embed.proj.weight", (width, 3, 16, 16)
    yield f"{trunk}.patch_embed.proj.bias", (width,)
    linear = {f"{trunk}.attn_pool.q": width, f"{trunk}.attn_pool.kv": 2 * width}
    linear |= {f"{trunk}.attn_pool.proj": width, f"{trunk}.attn_pool.mlp.fc1": hidden}
    norms = [f"{trunk}.norm", f"{trunk}.attn_pool.norm"]
    for block in (f"{trunk}.blocks.{layer}" for layer in range(layers)):
        linear |= {f"{block}.attn.qkv": 3 * width, f"{block}.attn.proj": width}
        linear |= {f"{block}.mlp.fc1": hidden}
        norms += [f"{block}.norm1", f"{block}.norm2"]
    for name, out in linear.items():
        yield f"{name}.weight", (out, width)
        yield f"{name}.bias", (out,)
        if name.endswith("fc1"):
            yield f"{name[:-1]}2.weight", (width, hidden)
            yield f"{name[:-1]}2.bias", (width,)
    for name in norms:
        yield from _norm(name, width)
    yield f"{trunk}.attn_pool.latent", (1, 1, width)


def random_tensors(shapes, seed=0):
    """Name -> float32: numbers about 1 for the factors of norms, all others about 0."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes:
        value = np.asarray(0.2 * rng.normal(size=shape))
        if name == "logit_scale":
            value = value + 2.0
        factor = len(shape) == 1 and name.endswith("weight")
        tensors[name] = np.asarray(value + factor, np.float32)
    return tensors


def _dump(path, content):
    path.write_text(json.dumps(content))


def transformers_folder(path, *, siglip=False, seed=0, **text):
    """Writes a CLIP or SigLIP as transformers does; `text`: further settings of its text tower."""
    path.mkdir(parents=True, exist_ok=True)
    vocabulary = siglip_files(path) if siglip else clip_files(path)

    def sizes(tower):
        return {
            "hidden_size": tower["width"],
            "intermediate_size": tower["hidden"],
            "num_hidden_layers": tower["layers"],
            "num_attention_heads": tower["heads"],
        }

    end = 1 if siglip else vocabulary - 1
    of_text = {**sizes(TEXT), "vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": end}
    of_text["max_position_embeddings"] = TEXT["positions"]
    of_image = {**sizes(VISION), "image_size": VISION["size"], "patch_size": VISION["patch"]}
    if siglip:
        of_text["projection_size"] = VISION["width"]
    kept = {key: value for key, value in text.items() if key == "hidden_act"}
    config = {"model_type": "siglip" if siglip else "clip", "projection_dim": SPACE}
    config |= {"text_config": {**of_text, **text}, "vision_config": {**of_image, **kept}}
    _dump(path / "config.json", config)
    side = VISION["size"]
    images = {"image_mean": MEAN, "image_std": STD, "resample": 3, "do_center_crop": not siglip}
    images |= {"size": {"height": side, "width": side} if siglip else {"shortest_edge": side}}
    _dump(path / "preprocessor_config.json", {**images, "crop_size": side})
    tensors = random_tensors(transformers_tensors(siglip, vocabulary), seed)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def open_clip_folder(path, kind="plain", seed=0):
    """Writes a CLIP as OpenCLIP does.

    `kind`: "plain", its first form; "any": put together of any two towers, with a bias in the text
    projection and without a first norm; "siglip": with timm's image tower.
    """
    path.mkdir(parents=True, exist_ok=True)
    siglip = kind == "siglip"
    vocabulary = siglip_files(path, "T5Tokenizer") if siglip else clip_files(path)
    t, v = TEXT, VISION
    text = {key: t[key] for key in ("width", "heads", "layers")}
    text |= {"vocab_size": vocabulary, "context_length": t["positions"]}
    text["mlp_ratio"] = t["hidden"] / t["width"]
    vision = {"width": v["width"], "layers": v["layers"], "head_width": v["width"] // v["heads"]}
    vision |= {"image_size": v["size"], "patch_size": v["patch"]}
    vision["mlp_ratio"] = v["hidden"] / v["width"]
    config = {"embed_dim": SPACE, "vision_cfg": vision, "text_cfg": text}
    if kind == "plain":
        shapes = [*open_clip_tensors(vocabulary), *open_clip_vision()]
    elif kind == "any":
        config |= {"custom_text": True, "quick_gelu": True}
        text["proj_bias"], vision["no_ln_pre"] = True, True
        of_text = open_clip_tensors(vocabulary, "text.", text_bias=True)
        shapes = [*of_text, *open_clip_vision(first_norm=False)]
    else:
        text |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
        text |= {"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}}
        text["tokenizer_kwargs"] = {"clean": "canonicalize"}
        vision = {"image_size": 32, "timm_model_name": "vit_base_patch16_siglip_224"}
        vision |= {"timm_pool": "map", "timm_proj": "none"}
        config |= {"custom_text": True, "init_logit_bias": -10, "vision_cfg": vision}
        config["embed_dim"] = TIMM[0]
        of_text = open_clip_tensors(vocabulary, "text.", text_bias=True, bias=True, space=TIMM[0])
        shapes = [*of_text, *timm_vision()]
    images = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    _dump(path / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": images})
    tensors = random_tensors(shapes, seed)
    save_file(tensors, path / "open_clip_model.safetensors", {"format": "pt"})
    return path


KINDS = {
    "clip": lambda path: transformers_folder(path),
    "clip_gelu": lambda path: transformers_folder(path, hidden_act="gelu", eos_token_id=2),
    "siglip": lambda path: transformers_folder(path, siglip=True),
    "open_clip": lambda path: open_clip_folder(path),
    "open_clip_any": lambda path: open_clip_folder(path, "any"),
    "open_clip_siglip": lambda path: open_clip_folder(path, "siglip"),
}


def images(size):
    """Two images [2, size, size, 3] of uint8."""
    return np.random.default_rng(1).integers(0, 256, (2, size, size, 3)).astype(np.uint8)


def features(towers):
    """What both towers make of `images` and `TEXTS`: [2, space], [4, space] and cosines [2, 4].

    The cosines are multiplied and moved as the losses do it.
    """
    pixels_bhwc = (images(towers.image_size) - np.array(towers.mean)) / np.array(towers.std)
    variables = {"params": towers.vision_params}
    image_bd = jax.jit(towers.vision.apply)(variables, pixels_bhwc.astype(np.float32))
    text = towers.text
    ids = text.tokenizer.encode(TEXTS, text.max_length)
    batch = pad(ids, max(map(len, ids)), len(ids))
    text_bd = jax.jit(text.encoder.apply)({"params": text.params}, *batch)
    found = []
    for tower, x_bd in (("image", image_bd), ("text", text_bd)):
        projection = towers.projections[tower]
        found.append(np.float64(x_bd) @ projection["kernel"] + projection.get("bias", 0.0))
    unit = [z_bd / np.linalg.norm(z_bd, axis=-1, keepdims=True) for z_bd in found]
    return *found, unit[0] @ unit[1].T * towers.scale + towers.bias
