"""The README.md of an exported graph or of exported parameters: what it is, and code that uses it.

The code is whole, and tests run it: next to the files, without this package where a graph was
exported.
"""

from collections.abc import Mapping
from typing import Any

# What becomes of an image file, as `data.images.centre_square` has it.
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
_VECTOR = """\
import numpy as np

vector = np.load("vectors.npy").astype(np.float32)
"""
_INPUTS = {"image": PIXELS, "tokens": _TEXT, "vector": _VECTOR}

_ONNX = """\
import onnxruntime

session = onnxruntime.InferenceSession("embed.onnx")
names = [output.name for output in session.get_outputs()]
outputs = dict(zip(names, session.run(names, {feed})))
"""
_STABLEHLO = """\
import pathlib

from jax import export

graph = export.deserialize(bytearray(pathlib.Path("embed.stablehlo").read_bytes()))
outputs = graph.call({arguments})
"""
_SAFETENSORS = """\
from flax.traverse_util import unflatten_dict
from mrl_jax import NestedHead, Nesting, models
from safetensors.numpy import load_file

tree = unflatten_dict(load_file("model.safetensors"), sep="/")
pixels = (image - np.float32(rules["mean"])) / np.float32(rules["std"])
variables = {"params": tree["params"]["backbone"], **tree.get("model_state", {})}
embedding = models.build(**about["model"]).apply(variables, pixels)
head = NestedHead(Nesting(about["dims"]), len(about["classes"]), **about["head"])
logits_gbc = head.apply({"params": tree["params"]["head"]}, embedding)
outputs = {f"logits_{dim}": logits for dim, logits in zip(about["dims"], logits_gbc)}
outputs["embedding"] = embedding[:, : about["dims"][-1]]
"""


def code(about: Mapping[str, Any]) -> str:
    """Python that reads the export next to it and computes `outputs`; "" where there is none."""
    names = list(about["inputs"])
    before = _INPUTS[names[0]]
    if about["format"] == "onnx":
        feed = "{" + ", ".join(f'"{name}": {name}' for name in names) + "}"
        read = _ONNX.replace("{feed}", feed)
    elif about["format"] == "stablehlo":
        read = _STABLEHLO.replace("{arguments}", ", ".join(names))
    elif names == ["image"]:
        read = _SAFETENSORS
    else:
        return ""
    width, short = about["dims"][-1], about["dims"][0]
    lines = [before, read]
    if names == ["image"]:
        lines.append(f'print(about["classes"][outputs["logits_{width}"][0].argmax()])\n')
    lines.append(
        f'prefix = outputs["embedding"][:, :{short}]\n'
        "unit = prefix / np.linalg.norm(prefix, axis=1, keepdims=True)\n"
    )
    return "\n".join(lines)


def card(about: Mapping[str, Any]) -> str:
    """The text of README.md.

    Args:
      about: what about.json holds.
    """
    dims = ", ".join(map(str, about["dims"]))
    parts = [
        f"# {about['run']}\n",
        f"`{about['file']}` makes embeddings of {about['dims'][-1]} dims. Prefixes that were "
        f"trained to stand alone: {dims}. Embeddings come out whole and as they are: cut a "
        "prefix, then scale it to unit length, before you compare by cosine.\n",
    ]
    if "classes" in about:
        inside = "Mean and std are applied inside: pixels go in as uint8, 0 to 255."
        if about["format"] == "safetensors":
            inside = "Mean and std are for you to apply."
        short = about["dims"][0]
        parts.append(
            f"`about.json` holds the names of the {len(about['classes'])} classes in the order of "
            "the logits, and what is done to an image before it is read: it is turned upright by "
            "its EXIF tag and laid on white where it is transparent; the square in its middle is "
            f"resized, bilinear with antialiasing. {inside} `logits_{short}` holds the scores of "
            f"the classes by the first {short} dims, and so on for every dim that was trained.\n"
        )
    if text := code(about):
        parts.append(f"## Use\n\n```python\n{text}```\n")
    if "classes" in about:
        parts.append(
            "These are the predictions of the run. Where a JPEG is four times larger than wanted, "
            "or more, the run decodes it at a half, a quarter or an eighth of its size, and pixels "
            "differ by a little.\n"
        )
    return "\n".join(parts)
