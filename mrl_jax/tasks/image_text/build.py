"""From a config to two towers: image network, text encoder, captioned photos and measurements."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mrl_jax.config import default_config
from mrl_jax.data import Augmentation, Options, named
from mrl_jax.data.class_folders import open_classes
from mrl_jax.data.remarks import Remarks
from mrl_jax.data.tfds import parse_parts
from mrl_jax.data.token_cache import tokens_of, vocabulary_of
from mrl_jax.errors import DataError, UsageError, shown
from mrl_jax.evaluators import zero_shot
from mrl_jax.interop.image_folder import ImageFolder, after
from mrl_jax.interop.text_folder import TextFolder
from mrl_jax.models.text.tokenizer import Tokenizer
from mrl_jax.nesting import parse_dims
from mrl_jax.record.folder import TOKENIZER
from mrl_jax.runtime.program import Program
from mrl_jax.tasks import common, image_encoder, text_encoder
from mrl_jax.tasks.common import config_errors
from mrl_jax.tasks.image_encoder import check_pixels
from mrl_jax.tasks.image_text import captions, sources, towers
from mrl_jax.tasks.image_text.captions import Captioned, TrainPairs
from mrl_jax.tasks.image_text.measure import ImageTextEvaluation
from mrl_jax.tasks.image_text.task import TOWERS, ImageText
from mrl_jax.tasks.image_text.towers import Start
from mrl_jax.tasks.text_encoder import TextEncoder

MODEL_KEYS = "towers"


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The data of a run, and how its texts become numbers.

    Attributes:
      name: for messages.
      captioned: all splits.
      splits: "train" as batches; the others as they are.
      encoder: reads the texts.
      tokenizer: of the encoder.
      reading: what a training batch depends on besides photos and captions.
      notes: lines for the log.
      facts: see `facts`.
      start: what the towers start from; None where they are not trained.
    """

    name: str
    captioned: dict[str, Captioned]
    splits: dict[str, Any]
    encoder: TextEncoder
    tokenizer: Tokenizer
    reading: str
    notes: list[str]
    facts: dict[str, Any]
    start: Start | None = None

    def fingerprint(self, *names: str) -> str:
        """Sixteen hex digits over these splits (by default all), and how they are read."""
        chosen = {name: self.captioned[name] for name in names or self.captioned}
        return captions.fingerprint(chosen, self.reading)

    @functools.cached_property
    def _training_digest(self) -> str | None:
        if "train" not in self.captioned:
            return None
        digest = hashlib.sha256(self.reading.encode())
        self.captioned["train"].pin(digest)
        return digest.hexdigest()[:16]

    def training_fingerprint(self) -> str | None:
        """Sixteen hex digits over the training pairs, and how they are read; None without them."""
        return self._training_digest


def locked(config: ConfigDict) -> tuple[str, ...]:
    """The towers that stay as they start."""
    lock = config.towers.locked
    return tuple(tower for tower in TOWERS if lock in (tower, "both"))


def _options(config: ConfigDict) -> Options:
    own = {field.name for field in dataclasses.fields(Options)} & set(config.data)
    values = {name: config.data[name] for name in own - {*sources.Where._fields}}
    return Options(source="image_folder", **values, path="captions")


def check(config: ConfigDict) -> None:
    """Refuses keys that contradict each other."""
    t, p = config.towers, config.pairs
    if config.optimizer.accumulate > 1:
        raise UsageError(
            "config.optimizer.accumulate: parts of a batch would not be told from each other; "
            "config.pairs.micro_batch saves the memory and keeps the loss"
        )
    if config.batch_size < 2:
        raise UsageError(
            "config.batch_size must be >= 2: a pair is told from the others of its batch"
        )
    with config_errors("pairs"):
        if p.micro_batch and config.batch_size % p.micro_batch:
            raise ValueError(
                f"micro_batch {p.micro_batch} does not divide the batch_size {config.batch_size}"
            )
        if p.micro_batch % (groups := config.model.batch_norm_groups):
            raise ValueError(
                f"model.batch_norm_groups {groups} does not divide the micro_batch {p.micro_batch}"
            )
    with config_errors("data"):
        _options(config)
    parse_parts(config.data.splits)
    named.paths("eval.zero_shot", config.eval.zero_shot, set(named.SPLITS))
    zero_shot.check_templates(config.eval.templates)
    if t.weights:
        _check_own(config)
        return
    image_encoder.of_config(config)
    for tower, key in (("image", "weights"), ("text", "text.encoder")):
        fresh = not config.weights if tower == "image" else _fresh_text(config)
        if tower in locked(config) and fresh:
            raise UsageError(
                f"config.towers.locked: the {tower} tower would stay as random as it starts; give "
                f"config.{key} a trained one"
            )


def _fresh_text(config: ConfigDict) -> bool:
    return config.text.encoder in (text_encoder.STATIC, *text_encoder.FRESH)


def _check_own(config: ConfigDict) -> None:
    """Refuses keys that would say another thing than the folder of both towers."""
    usual = default_config("image_text")
    keys = [("weights", config.weights, usual.weights)]
    for group, names in (
        ("model", set(usual.model) - {"dtype", "remat"}),
        ("text", set(usual.text) - {"max_length", "dtype", "remat"}),
        ("data", {"image_size", "mean", "std"}),
    ):
        keys += [(f"{group}.{n}", config[group][n], usual[group][n]) for n in sorted(names)]
    for name, value, default in keys:
        if value != default:
            raise UsageError(
                f"config.{name} is {shown(value)}, but both towers and what they read come from "
                f"config.towers.weights; leave it at {shown(default)}"
            )


def _start_of(config: ConfigDict, folder: pathlib.Path | None) -> Start:
    """Both towers as a run of this config starts."""
    if config.towers.weights:
        return towers.from_folder(config)
    with config_errors("text"):
        if config.text.width and config.text.encoder != text_encoder.STATIC:
            raise ValueError("width is of a static table; config.towers.width is that of the space")
    encoder, tokenizer, own = text_encoder.of_config(
        config, folder, pooling=config.text.pooling, width=config.text.width
    )
    return Start(
        image_encoder.of_config(config),
        encoder,
        tokenizer,
        image_shape=(config.data.image_size, config.data.image_size, 3),
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        text=own.params if own else None,
    )


def _facts_of(config: ConfigDict, start: Start) -> dict[str, Any]:
    usual = {"info_nce": 0.07, "sigmoid": 0.1}[config.pairs.loss]
    return {
        "image_shape": list(start.image_shape),
        "mean": list(start.mean),
        "std": list(start.std),
        "vision": start.vision,
        "encoder": start.encoder.facts(),
        "projection_bias": [tower for tower in TOWERS if tower in start.projection_bias],
        "width": config.towers.width or start.width or max(config.nesting.dims),
        "temperature": config.pairs.temperature or start.temperature or usual,
        "bias": config.pairs.bias if start.bias is None else start.bias,
        "locked": towers.digest(start, locked(config)),
    }


def assumed_facts(config: ConfigDict, folder: pathlib.Path | None) -> tuple[dict[str, Any], bool]:
    """A vocabulary as large as it may be, which is what a step costs at most."""
    return _facts_of(config, _start_of(config, folder)), True


def facts(config: ConfigDict, data: Pairs) -> dict[str, Any]:
    """Both towers, what they read and where they end."""
    del config
    return data.facts


def kept(data: Pairs) -> dict[str, str]:
    """The tokenizer."""
    return {TOKENIZER: data.tokenizer.to_json()}


def make_task(config: ConfigDict, facts: Mapping[str, Any], mesh: Mesh | None) -> ImageText:
    """Towers and loss.

    Raises:
      UsageError: names the config key and what would be legal.
    """
    d, p = config.data, config.pairs
    encoder = text_encoder.of_facts(facts["encoder"], config.text)
    with config_errors("nesting"):
        nesting = parse_dims(config.nesting.dims, config.nesting.weights, facts["width"])
    common.check_without_head(config, nesting)
    common.evaluated_dims(config, nesting)
    with config_errors("data"):
        augmentation = Augmentation(
            # A stream crops while it decodes.
            crop=0.0 if d.stream else d.random_crop,
            flip=d.flip,
            shift=d.random_shift,
        )
        check_pixels(facts["mean"], facts["std"], facts["image_shape"])
    with config_errors("pairs"):
        return ImageText(
            backbone=_backbone(config, facts),
            encoder=encoder.module,
            nesting=nesting,
            width=facts["width"],
            image_shape=tuple(facts["image_shape"]),
            max_length=encoder.max_length,
            locked=locked(config),
            projection_bias=tuple(facts["projection_bias"]),
            loss_name=p.loss,
            temperature=facts["temperature"],
            bias=facts["bias"],
            learned=p.learned,
            scales=p.scales,
            micro_batch=p.micro_batch,
            augmentation=augmentation,
            mean=tuple(facts["mean"]),
            std=tuple(facts["std"]),
            mesh=mesh,
        )


def _backbone(config: ConfigDict, facts: Mapping[str, Any]) -> nn.Module:
    if facts["vision"] is None:
        return image_encoder.of_config(config)
    return towers.vision_of(facts["vision"], config.model)


def open_data(
    config: ConfigDict, facts: Mapping[str, Any] | None, folder: pathlib.Path | None, train: bool
) -> Pairs:
    """All photos and captions, and the tokenizer, made of the train captions if there is none yet.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: data missing or inconsistent.
    """
    d, start, still = config.data, None, locked(config)
    if facts is None or train:
        start = towers.with_weights(config, _start_of(config, folder), still)
        found, tokenizer, size = start.encoder, start.tokenizer, start.image_shape[0]
    else:
        found = text_encoder.of_facts(facts["encoder"])
        tokenizer = text_encoder.kept_tokenizer(folder, found.marks)
        size = facts["image_shape"][0]
    options = dataclasses.replace(_options(config), image_size=size)
    where = sources.Where(**{key: d[key] for key in sources.Where._fields})
    splits, notes = captions.load(options, where, train=train)
    said = start.notes if start else ()
    lines = [*notes, *said, f"texts are cut after {found.max_length} tokens"]
    pairs = splits.get("train")
    if train and min(len(pairs.names), len(pairs.texts)) < 2:
        raise DataError(
            f"{where.name}: all pairs of train have the same "
            f"{'photo' if len(pairs.names) < 2 else 'caption'}, so none is told from another"
        )
    source = hashlib.sha256(pairs.texts.flat).hexdigest() if pairs else ""
    if tokenizer is None:
        tokenizer = vocabulary_of(
            pairs.texts, config.text.vocab_size, marks=found.marks, cache=d.cache, source=source
        )
        found = found.with_vocabulary(tokenizer.vocab_size)
        start = start._replace(encoder=found, tokenizer=tokenizer)
    known = dict(facts) if start is None else _facts_of(config, start)
    if facts is not None and known["locked"] != facts["locked"]:
        raise DataError(
            f"the weights of what stays locked ({' and '.join(still)}) are others than the run "
            "began with; put those back, or start in a new folder"
        )
    reading = f"{tokenizer.content} {tokenizer.marks} {found.max_length} {size} {known['locked']}"
    if pairs is None or start is None:
        return Pairs(where.name, splits, dict(splits), found, tokenizer, reading, lines, known)
    tokens = functools.partial(
        tokens_of,
        pairs.texts,
        tokenizer,
        found.max_length,
        cache=d.cache,
        source=source,
        total=len(pairs.texts),
    )
    vectors = towers.vectors_of(start, pairs, still, config)
    parts = {**splits, "train": TrainPairs(pairs, found.max_length, tokens, vectors)}
    return Pairs(where.name, splits, parts, found, tokenizer, reading, lines, known, start)


def start(
    config: ConfigDict, facts: dict[str, Any], program: Program, data: Pairs
) -> tuple[str, Callable[[Any], Any]] | None:
    """What puts trained towers into a fresh state."""
    del facts
    return towers.put_in(config, program, towers.with_weights(config, data.start))


def measures(
    config: ConfigDict, facts: dict[str, Any], program: Program, data: Pairs
) -> ImageTextEvaluation:
    """The measurements.

    Raises:
      DataError: a folder of classes is missing or damaged.
    """
    size, remarks, e = facts["image_shape"][0], Remarks(), config.eval
    options = dataclasses.replace(_options(config), image_size=size)
    folders = named.paths("eval.zero_shot", e.zero_shot, set(named.SPLITS))
    evaluation = ImageTextEvaluation(
        program.task,
        program.mesh,
        data.tokenizer,
        data.captioned,
        dims=common.evaluated_dims(config, program.task.nesting),
        batch_size=e.batch_size,
        seed=config.seed,
        classes={n: open_classes(n, path, options, remarks) for n, path in folders.items()},
        templates=tuple(e.templates),
        projections=e.projections,
    )
    evaluation.notes = remarks.lines()
    return evaluation


def text_folder(setup: Any, params: Any, model_state: Any) -> TextFolder:
    """The text tower of a trained run, with its projection to the dims that were trained."""
    task = setup.program.task
    folder = text_encoder.trained_folder(setup, None, task.nesting.dims)
    own, encoder = _tower(task, "text", params, model_state), folder.encoder
    dense = _projection(task, "text", params)
    if encoder.projection:
        dense = after(own["project"], dense)
    # Captions have no prompts, and embeddings are as long as they come out.
    return dataclasses.replace(
        folder,
        encoder=encoder.clone(projection=task.nesting.width, projection_bias="bias" in dense),
        params={"backbone": own["backbone"], "project": dense},
        prompts={},
        default_prompt="",
        normalize=False,
    )


def image_folder(setup: Any, params: Any, model_state: Any) -> ImageFolder:
    """The image tower of a trained run, likewise."""
    task = setup.program.task
    return ImageFolder(
        task.backbone,
        _tower(task, "image", params, model_state),
        _projection(task, "image", params),
        task.image_shape[0],
        setup.config.data.eval_crop,
        task.mean,
        task.std,
        # Of the widest prefix, where each has its own.
        float(np.ravel(task.log_scale(params))[-1]),
    )


def _tower(task: ImageText, tower: str, params: Any, model_state: Any) -> Any:
    return model_state["locked"][tower] if tower in task.locked else params[tower]


def _projection(task: ImageText, tower: str, params: Any) -> dict[str, np.ndarray]:
    dense, width = params[f"{tower}_projection"], task.nesting.width
    return {name: np.asarray(array)[..., :width] for name, array in dense.items()}
