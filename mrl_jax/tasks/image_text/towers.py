"""What two towers start from: weights of each, or a CLIP; and what locked ones make of data."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict
from tqdm import tqdm

from mrl_jax.data import Stream
from mrl_jax.data.array_cache import Parts, stored
from mrl_jax.data.token_cache import PART_VECTORS
from mrl_jax.errors import UsageError
from mrl_jax.interop.two_towers import read_two_towers
from mrl_jax.models.clip_vision import ClipVision
from mrl_jax.models.text.tokenizer import Tokenizer
from mrl_jax.runtime.program import Program
from mrl_jax.runtime.rows import embedded, in_order
from mrl_jax.tasks import image_encoder
from mrl_jax.tasks.image_text.captions import Captioned
from mrl_jax.tasks.image_text.task import TOWERS
from mrl_jax.tasks.text_encoder import TextEncoder
from mrl_jax.tasks.text_inputs import Inputs, embed_of

# Of a backbone, how it is computed and what Flax adds.
_HOW = {"dtype", "remat", "parent", "name"}
EXPORTED = "params/backbone/"  # before the names of a network in an export of ours


class Start(NamedTuple):
    """Both towers before they are trained.

    Attributes:
      backbone: of images.
      encoder: of texts, without a projection.
      tokenizer: of the encoder; None if one is still to be made of the texts.
      image_shape, mean, std: of the images, see `task.ImageText`.
      image: parameters and batch statistics of the backbone, {"params": ...}; None: fresh.
      text: parameters of the encoder; None: fresh.
      projections: {"image_projection": {"kernel", "bias"}, ...}; {}: fresh.
      projection_bias: the towers whose projection has a bias.
      width: dims of the space; 0: not known.
      temperature, bias: of the loss that they were trained with; None: not known.
      vision: sizes of the backbone, where the config does not say them, see `vision_of`.
      notes: lines for the log.
    """

    backbone: nn.Module
    encoder: TextEncoder
    tokenizer: Tokenizer | None
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image: Any = None
    text: Any = None
    projections: Mapping[str, Any] = MappingProxyType({})
    projection_bias: tuple[str, ...] = ()
    width: int = 0
    temperature: float | None = None
    bias: float | None = None
    vision: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def from_folder(config: ConfigDict) -> Start:
    """Those of the CLIP or SigLIP in `towers.weights`.

    Raises:
      UsageError: no such folder, a model that is not supported, or keys that do not fit it.
      DataError: it is damaged.
    """
    two = read_two_towers(config.towers.weights)
    width = two.projections["image"]["kernel"].shape[1]
    if config.towers.width not in (0, width):
        raise UsageError(
            f"config.towers.width is {config.towers.width}, {config.towers.weights} has a space of "
            f"{width} dims"
        )
    length = config.text.max_length or two.text.max_length
    if length > two.text.max_length:
        raise UsageError(
            f"config.text.max_length {length}: {config.towers.weights} takes at most "
            f"{two.text.max_length}"
        )
    sizes = {
        field.name: getattr(two.vision, field.name)
        for field in dataclasses.fields(two.vision)
        if field.name not in _HOW
    }
    return Start(
        two.vision,
        TextEncoder(two.text.encoder, two.text.tokenizer.marks, length, {}),
        two.text.tokenizer,
        image_shape=(two.image_size, two.image_size, 3),
        mean=two.mean,
        std=two.std,
        image={"params": two.vision_params},
        text=two.text.params,
        projections={f"{tower}_projection": two.projections[tower] for tower in TOWERS},
        projection_bias=tuple(tower for tower in TOWERS if "bias" in two.projections[tower]),
        width=width,
        temperature=1 / two.scale,
        bias=two.bias if two.loss == "sigmoid" else None,
        vision=sizes,
        notes=two.notes,
    )


def vision_of(sizes: Mapping[str, Any], model: ConfigDict) -> nn.Module:
    """The backbone that `Start.vision` describes, trained as this group of keys says."""
    return ClipVision(**sizes, dtype=jnp.dtype(model.dtype), remat=model.remat)


def with_weights(config: ConfigDict, start: Start, needed: Sequence[str] = ("image",)) -> Start:
    """The same with the weights of the image tower, where a file has them and they are needed.

    Raises:
      UsageError: no such file, one of another network, or one that lacks a part of a locked tower.
      DataError: it is damaged.
    """
    if not config.weights or start.image is not None or "image" not in needed:
        return start
    variables = _abstract(start)
    named = {"backbone": variables.pop("params")}
    params, state = _read(pathlib.Path(config.weights), start.backbone, named, variables)
    image = traverse_util.flatten_dict({"params": params["backbone"], **state}, sep="/")
    # A linear layer on top, which a network of PyTorch lacks, is still a shape.
    found = {name: leaf for name, leaf in image.items() if isinstance(leaf, np.ndarray)}
    if (lacking := image.keys() - found.keys()) and config.towers.locked in ("image", "both"):
        raise UsageError(
            f"config.towers.locked: {min(lacking)} of the image tower would stay as random as it "
            f"starts, {config.weights} has none; legal: config.model.embedding_dim=0"
        )
    return start._replace(image=traverse_util.unflatten_dict(found, sep="/"))


def _abstract(start: Start) -> dict[str, Any]:
    image_bhwc = jnp.zeros((1, *start.image_shape))
    return dict(jax.eval_shape(start.backbone.init, jax.random.key(0), image_bhwc))


def _read(path: pathlib.Path, backbone: nn.Module, params: Any, state: Any) -> tuple[Any, Any]:
    from mrl_jax.interop import load_weights  # needs a package that nothing else does
    from mrl_jax.interop.torch_weights import array, read_tensors

    tensors = read_tensors(path)
    if not any(name.startswith(EXPORTED) for name in tensors):
        say = print if jax.process_index() == 0 else lambda line: None
        return load_weights(path, backbone, params, state, head="skip", say=say)
    places = traverse_util.flatten_dict({"params": params, "model_state": state}, sep="/")
    for name, shape in places.items():
        found = array(path, name, tensors[name]) if name in tensors else None
        if found is None or (found.shape, found.dtype) != (shape.shape, shape.dtype):
            is_there = "has none" if found is None else f"is {found.dtype} {found.shape}"
            raise UsageError(
                f"config.weights: {name} must be {shape.dtype} {shape.shape} for this network, "
                f"{path} {is_there}"
            )
    read = {name: array(path, name, tensors[name]) for name in places}
    tree = traverse_util.unflatten_dict(read, sep="/")
    return tree["params"], tree.get("model_state", {})


def put_in(
    config: ConfigDict, program: Program, start: Start
) -> tuple[str, Callable[[Any], Any]] | None:
    """What puts trained towers into a fresh state, and where they come from; None without any."""
    task = program.task
    params, state = dict(start.projections), {}
    if start.image is not None:
        statistics = {name: tree for name, tree in start.image.items() if name != "params"}
        state |= {"image": statistics} if statistics else {}
    for tower, tree in (("image", (start.image or {}).get("params")), ("text", start.text)):
        if tree is None:
            continue
        if tower in task.locked:
            state.setdefault("locked", {})[tower] = tree
        else:
            params[tower] = tree
    if not params and not state:
        return None
    sources = {
        "both towers": config.towers.weights,
        "image tower": config.weights,
        "text tower": config.text.encoder if start.text is not None else "",
    }
    if config.towers.weights:
        sources = {"both towers": config.towers.weights}
    where = ", ".join(f"{what} from {source}" for what, source in sources.items() if source)

    def put(fresh):
        filled = [
            _filled(program.state[name], given)
            for name, given in (("params", params), ("model_state", state))
        ]
        return program.with_values(fresh, *filled)

    return where, put


def _filled(shapes: Any, given: Any) -> Any:
    """The tree of shapes, with arrays where they are given."""
    given = traverse_util.flatten_dict(given, sep="/")
    filled = {
        name: np.asarray(given[name], shape.dtype) if name in given else shape
        for name, shape in traverse_util.flatten_dict(shapes, sep="/").items()
    }
    if foreign := sorted(given.keys() - filled.keys()):
        raise UsageError(f"config.towers: the model has no parameter {foreign[0]}")
    return traverse_util.unflatten_dict(filled, sep="/")


def digest(start: Start, locked: Sequence[str]) -> str:
    """Hex digits over the weights of locked towers; "" without any."""
    found = hashlib.sha256()
    for tower in locked:
        tree = start.image if tower == "image" else start.text
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found.update(f"{tower} {path} {leaf.dtype} {leaf.shape}".encode())
            found.update(np.ascontiguousarray(leaf))
    return found.hexdigest() if locked else ""


def vectors_of(
    start: Start, pairs: Captioned, locked: Sequence[str], config: ConfigDict
) -> dict[str, Callable[[], np.ndarray]]:
    """What locked towers make of all photos or texts, [P, any] or [T, any], made when first asked.

    From the cache, or into it part by part, if there is one.
    """
    made = {"image": _of_images, "text": _of_texts}
    seen = {"image": _seen_images, "text": _seen_texts}

    def of(tower: str) -> np.ndarray:
        about = {"tower": tower, "made_by": digest(start, [tower])}
        about |= seen[tower](start, pairs, config)
        rows = len(pairs.names) if tower == "image" else len(pairs.texts)

        def write(parts: Parts):
            name = "photo" if tower == "image" else "text"
            with tqdm(desc="locked tower", total=rows, unit=name, disable=None, delay=2) as bar:
                for z_bd in made[tower](start, pairs, config):
                    parts.append("vectors", z_bd.ravel())
                    bar.update(len(z_bd))
            return about, {}

        found = stored(config.data.cache, "vectors", lambda: about, write)
        return found.arrays["vectors"].reshape(rows, -1)

    return {tower: lambda tower=tower: of(tower) for tower in locked}


def _seen_images(start: Start, pairs: Captioned, config: ConfigDict) -> dict[str, Any]:
    """What the vectors of photos depend on besides weights."""
    photos = hashlib.sha256()
    pairs.images.update(photos)
    if isinstance(pairs.images, Stream):
        pairs.images.pin(photos)  # names and sizes alone may be those of other photos
    network = [start.vision, {key: v for key, v in config.model.items() if key != "remat"}]
    return {
        "photos": photos.hexdigest(),
        "network": network,
        "read": [start.image_shape, config.data.eval_crop, start.mean, start.std],
    }


def _seen_texts(start: Start, pairs: Captioned, config: ConfigDict) -> dict[str, Any]:
    """What the vectors of texts depend on besides weights."""
    del config
    tokenizer = start.tokenizer
    return {
        "texts": hashlib.sha256(pairs.texts.flat).hexdigest(),
        "network": start.encoder.facts(),
        "read": [hashlib.sha256(tokenizer.content.encode()).hexdigest(), tokenizer.marks],
    }


def _of_images(start: Start, pairs: Captioned, config: ConfigDict) -> Iterator[np.ndarray]:
    device = jax.local_devices()[0]
    variables = jax.device_put(start.image, device)

    @jax.jit
    def embed(variables, image_bhwc):
        return start.backbone.apply(
            variables, image_encoder.scaled(image_bhwc, start.mean, start.std)
        ).astype(jnp.float32)

    batches = pairs.images.padded(config.eval.batch_size, SingleDeviceSharding(device))
    for row_b, batch in in_order(batches, pairs.images.examples):
        yield np.asarray(embed(variables, batch["image"]))[: len(row_b)]


def _of_texts(start: Start, pairs: Captioned, config: ConfigDict) -> Iterator[np.ndarray]:
    del config
    folder = start.encoder.folder(start.text, start.tokenizer, ())
    embed, inputs = embed_of(folder), Inputs.of_folder(folder)
    for first in range(0, len(pairs.texts), PART_VECTORS):
        rows = inputs.open(pairs.texts[first : first + PART_VECTORS], prompt_name="")
        yield embedded(embed, rows, folder.encoder.out_dim, 0, rows.count, unit="text")
