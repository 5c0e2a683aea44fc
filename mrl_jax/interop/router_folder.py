"""Reads folders that hold towers of texts and of images."""

import dataclasses
import math
import pathlib
from typing import Any

from mrl_jax.errors import DataError, UsageError, shown
from mrl_jax.interop.image_folder import ImageFolder, read_transformer
from mrl_jax.interop.text_folder import (
    LEGAL,
    LENGTH,
    MATRYOSHKA,
    ROUTER,
    TextFolder,
    check_modules,
    of_modules,
    read_dense,
    read_json,
)
from mrl_jax.interop.two_towers import read_two_towers
from mrl_jax.store.json_files import field

_LEGAL = {"text": LEGAL, "image": (("Transformer", "Pooling", "Dense"),)}


def read_router_folder(root: pathlib.Path) -> tuple[TextFolder, ImageFolder]:
    """What `sentence_folder.write_sentence_folder` writes of a text and an image tower.

    Raises:
      UsageError: modules that are not supported, or a file is missing.
      DataError: a file is damaged.
    """
    where = root / ROUTER
    content = read_json(where)
    routes = field(content, "structure", dict, str(where))
    if routes.keys() != _LEGAL.keys():
        raise UsageError(f"{where}: routes {', '.join(routes)}; legal: text and image")
    types, modules = field(content, "types", dict, str(where)), {}
    for route, places in routes.items():
        try:
            found = [(types[place].rpartition(".")[2], place) for place in places]
        except (AttributeError, KeyError, TypeError):
            raise DataError(f"{where}: {route} is {shown(places)}, not names of modules") from None
        modules[route] = check_modules(root, found, _LEGAL[route], where)
    own: dict[str, Any] = read_json(root / MATRYOSHKA)
    (_, transformer), _, (_, dense) = modules["image"]
    crop = field(own, "crop_share", float, str(root / MATRYOSHKA))
    width = field(read_json(transformer / "config.json"), "hidden_size", int, str(transformer))
    image = read_transformer(transformer, read_dense(dense, width), crop)
    text = of_modules(root, modules["text"])
    dims = {image.projection["kernel"].shape[1], text.encoder.out_dim}
    if len(dims) > 1:
        raise DataError(f"{root}: texts and images have different dims, {sorted(dims)}")
    return text, image


def read_clip_folder(root: pathlib.Path) -> tuple[TextFolder, ImageFolder]:
    """A CLIP or SigLIP, see `two_towers.read_two_towers`, with what we write beside it."""
    found, path = read_two_towers(root), root / MATRYOSHKA
    own = read_json(path) if path.exists() else {}
    settings = read_json(root / LENGTH) if (root / LENGTH).exists() else {}
    text, dense = found.text, found.projections["text"]
    width, bias = dense["kernel"].shape[1], "bias" in dense
    text = dataclasses.replace(
        text,
        encoder=text.encoder.clone(projection=width, projection_bias=bias),
        params={**text.params, "project": dense},
        max_length=min(text.max_length, settings.get("max_seq_length", text.max_length)),
        trained_dims=tuple(own.get("dims", ())),
    )
    image = ImageFolder(
        found.vision,
        found.vision_params,
        found.projections["image"],
        found.image_size,
        own.get("crop_share", 1.0),
        found.mean,
        found.std,
        math.log(found.scale),
    )
    return text, image
