"""The README.md of an exported graph or of exported parameters: what it is, and code that uses it.

The code is complete and tests run it in the folder of the export. Code for a graph does not need
this package.
"""

from collections.abc import Mapping
from typing import Any

from mrl_jax.store.about import each_tower

# Does the same to an image file as `data.images.centre_square`.
PIXELS = """\
import json
import pathlib

import numpy as np
from PIL import Image, ImageOps

about = json.loads(pathlib.Path("about.json").read_text())
rules = about["preprocessing"]
picture = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGBA")
picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
side = min(picture.size) * rules["crop_share"]
left, top = (picture.width - side) / 2, (picture.height - side) / 2
box = (left, top, left + side, top + side)
picture = picture.convert(rules["color"]).resize(rules["size"], Image.Resampling.BILINEAR, box)
image = np.asarray(picture).reshape(1, *rules["size"], -1)
"""
_TEXT = """\
import json
import pathlib

import numpy as np
import tokenizers

about = json.loads(pathlib.Path("about.json").read_text())
tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")
texts = ["a text", "another one"]
texts = [about["prompts"]["document"] + text for text in texts]
found = [tokenizer.encode(text, add_special_tokens=about["marks"]).ids for text in texts]
tokens = np.zeros((len(texts), about["max_length"]), np.int32)
for row, ids in zip(tokens, found):
    row[: len(ids)] = ids
lengths = np.array([len(ids) for ids in found], np.int32)
"""
_ABOUT = 'about = json.loads(pathlib.Path("about.json").read_text())'
_INPUTS = {"image": PIXELS, "tokens": _TEXT}

_ONNX = """\
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
names = [output.name for output in session.get_outputs()]
outputs = dict(zip(names, session.run(names, {feed})))
"""
_STABLEHLO = """\
import pathlib

from jax import export

graph = export.deserialize(bytearray(pathlib.Path("{file}").read_bytes()))
outputs = graph.call({arguments})
"""
_SAFETENSORS = """\
from flax.traverse_util import unflatten_dict
from mrl_jax import NestedHead, Nesting, models
from safetensors.numpy import load_file

tree = unflatten_dict(load_file("model.safetensors"), sep="/")
norm = about["normalization"]
pixels = (image - np.float32(norm["mean"])) / np.float32(norm["std"])
variables = {"params": tree["params"]["backbone"], **tree.get("model_state", {})}
embedding = models.build(**about["model"]).apply(variables, pixels)
head = NestedHead(Nesting(about["dims"]), len(about["classes"]), **about["head"])
logits_gbc = head.apply({"params": tree["params"]["head"]}, embedding)
outputs = {f"logits_{dim}": logits for dim, logits in zip(about["dims"], logits_gbc)}
outputs["embedding"] = embedding[:, : about["dims"][-1]]
"""


_LOADED = """\
import mrl_jax

model = mrl_jax.load(".")
"""
_EXAMPLES = {
    "image": 'unit_of_images = model.embed("photos", dim={short})',
    "tokens": 'unit_of_texts = model.embed(["a text", "another one"], dim={short})',
}


def code(about: Mapping[str, Any], tower: str = "") -> str:
    """Python that reads the exported file and computes `outputs`; "" if there is no such code.

    Args:
      about: what about.json says of one tower, see `store.about.each_tower`.
      tower: its name, where there are several.
    """
    names = list(about["inputs"])
    before = _INPUTS.get(names[0]) or _arrays(about)
    if tower:
        before = before.replace(_ABOUT, f'{_ABOUT}["towers"]["{tower}"]')
    if about["format"] == "onnx":
        feed = "{" + ", ".join(f'"{name}": {name}' for name in names) + "}"
        read = _ONNX.replace("{feed}", feed)
    elif about["format"] == "stablehlo":
        read = _STABLEHLO.replace("{arguments}", ", ".join(names))
    elif "classes" in about:
        read = _SAFETENSORS
    else:
        return ""
    width, short = about["dims"][-1], about["dims"][0]
    lines = [before, read.replace("{file}", about["file"])]
    if "classes" in about:
        lines.append(f'print(about["classes"][outputs["logits_{width}"][0].argmax()])\n')
    lines.append(
        f'prefix = outputs["embedding"][:, :{short}]\n'
        "length = np.linalg.norm(prefix, axis=1, keepdims=True)\n"
        "unit = prefix / np.where(length > 0, length, 1)\n"
    )
    return "\n".join(lines)


def card(about: Mapping[str, Any]) -> str:
    """The text of README.md, from what about.json holds."""
    towers = each_tower(about)
    files = " and ".join(dict.fromkeys(f"`{part['file']}`" for part in towers.values()))
    dims = ", ".join(map(str, about["dims"]))
    many = "s" if len(towers) == 1 or _parameters(about) else ""
    does = f"hold{many} the parameters that compute" if _parameters(about) else f"compute{many}"
    same = f", of {' and '.join(towers)} in one space" if len(towers) > 1 else ""
    parts = [
        f"# {about['run']}\n",
        f"{files} {does} embeddings of {about['dims'][-1]} dims{same}. These prefixes were "
        f"trained to be used alone: {dims} dims. Embeddings come out whole and not scaled: cut a "
        "prefix, then scale it to unit length, before you compare by cosine.\n",
    ]
    for tower, part in towers.items():
        level = "##"
        if tower:
            level = "###"
            parts.append(f"## {tower}\n")
        if "preprocessing" in part:
            parts.append(_of_images(part, tower))
        if "prompts" in part:
            parts.append(_of_texts(part))
        if text := code(part, tower):
            parts.append(f"{level} Use\n\n{_packages(part)}\n\n```python\n{text}```\n")
        if "preprocessing" in part:
            parts.append(
                f"The {'predictions' if 'classes' in part else 'embeddings'} are those of the run, "
                "with one exception: the run decodes JPEGs that are at least four times larger "
                "than needed at a half, a quarter or an eighth of their size, so their pixels "
                "differ a little.\n"
            )
    examples = [_EXAMPLES.get(next(iter(part["inputs"]))) for part in towers.values()]
    if _parameters(about) and all(examples) and "classes" not in about:
        lines = "\n".join(examples).replace("{short}", str(about["dims"][0]))
        parts.append(f"## Use\n\n{_packages(about)}\n\n```python\n{_LOADED}{lines}\n```\n")
    return "\n".join(parts)


def _arrays(about: Mapping[str, Any]) -> str:
    """Code that reads an array from a file for each input."""
    lines = [
        f'{name} = np.load("{name}.npy").astype(np.{entry["dtype"]})'
        for name, entry in about["inputs"].items()
    ]
    return "\n".join(["import numpy as np\n", *lines, ""])


def _parameters(about: Mapping[str, Any]) -> bool:
    return about["format"] == "safetensors"


def _packages(about: Mapping[str, Any]) -> str:
    if _parameters(about):
        return "The code needs mrl_jax with its extra `weights`."
    runtime = {"onnx": ["onnxruntime"], "stablehlo": ["jax", "flatbuffers"]}[about["format"]]
    readers = {"image": ["pillow"], "tokens": ["tokenizers"]}
    first = next(iter(about["inputs"]))
    return f"    pip install {' '.join([*runtime, 'numpy', *readers.get(first, ())])}"


def _of_images(about: Mapping[str, Any], tower: str) -> str:
    normalised = (
        "The graph itself subtracts the mean and divides by the standard deviation under "
        "`normalization`: give it pixels as they are, uint8 from 0 to 255, and do not normalise "
        "them."
    )
    if _parameters(about):
        as_below = ", as the code below does," if "classes" in about else ""
        normalised = (
            f"Then{as_below} subtract the mean and divide by the standard deviation "
            "under `normalization`, which are those of pixels from 0 to 255."
        )
    width, classes, scores = about["dims"][-1], "", ""
    if "classes" in about:
        classes = (
            f"lists the {len(about['classes'])} classes, the first of which has index 0 in the "
            "logits, and "
        )
        scores = (
            f" `logits_{width}` holds the scores of the classes by the first {width} dims; every "
            "other trained prefix has its own."
        )
    place = f"`towers`, `{tower}`, `preprocessing`" if tower else "`preprocessing`"
    return (
        f"`about.json` {classes}says under {place} what is done to an image: it is turned "
        "upright by its EXIF tag and laid on white where it is transparent; a square in its "
        "middle, whose side is `crop_share` of the image's shorter side, is resized, bilinear with "
        f"antialiasing. {normalised}{scores}\n"
    )


def _of_texts(about: Mapping[str, Any]) -> str:
    most = about["max_length"]
    padded = f" Rows of `tokens` always have {most} places, zeros behind the ids."
    return (
        f"`tokenizer.json` cuts a text after {most} tokens."
        f"{padded if about['format'] == 'onnx' else ''} `about.json` "
        "holds the prompts that stand before a text: `query` where it asks, `document` where it "
        "may be found, `default` otherwise.\n"
    )
