"""From a config to a masked language model: encoder, packed texts and measurements."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from mrl_jax.data.masked import (
    open_documents,
    predictions_of,
    tokenise,
    unread_columns,
    vocabulary,
)
from mrl_jax.errors import UsageError, listed
from mrl_jax.experiment import common
from mrl_jax.experiment.common import Experiment, config_errors
from mrl_jax.interop.masked_head import read_masked_head
from mrl_jax.interop.text_folder import TextFolder, read_text_folder
from mrl_jax.models.text import Bert, SentenceEncoder
from mrl_jax.models.text.tokenizer import Tokenizer
from mrl_jax.nesting import parse_dims
from mrl_jax.runtime.program import Program
from mrl_jax.tasks.masked_lm.measure import MaskedEvaluation
from mrl_jax.tasks.masked_lm.task import MaskedLM
from mrl_jax.tasks.sentence_pairs.build import FRESH, MAX_LENGTH, STATIC, tokenizer_of

GROUP = "text"  # of the config keys that say what the model is


class _Encoder(NamedTuple):
    """What is to be trained: the module, and the folder it comes from unless it is fresh."""

    backbone: Bert
    tokenizer: Tokenizer | None  # None: to be made of the texts
    max_length: int
    folder: TextFolder | None = None


def _encoder(config: ConfigDict, run: pathlib.Path | None = None) -> _Encoder:
    """The encoder of a config; of a vocabulary that is still to be made, its largest size."""
    t = config.text
    drop = {"dropout": t.dropout, "attention_dropout": t.dropout}
    with config_errors("text"):
        if t.max_length < 0:
            raise ValueError(f"max_length must be >= 0, got {t.max_length}")
        if t.encoder == STATIC:
            raise ValueError(
                "encoder: a static table sees one token at a time; legal for masked_lm is the "
                f"folder of a transformer, or {', '.join(FRESH)}"
            )
        tokenizer, folder = tokenizer_of(config, run), None
        if t.encoder in FRESH:
            width, layers, heads, hidden = FRESH[t.encoder]
            rows = tokenizer.vocab_size if tokenizer else t.vocab_size
            backbone = Bert(rows, width, layers, heads, hidden, **drop)
            longest, own = backbone.max_tokens, MAX_LENGTH
        else:
            if t.tokenizer:
                raise ValueError(f"tokenizer: {t.encoder} is a folder and has its own")
            folder = read_text_folder(t.encoder)
            if not isinstance(folder.encoder.backbone, Bert):
                raise ValueError(f"encoder: {t.encoder} is a table, legal is a transformer")
            backbone = folder.encoder.backbone.clone(**drop)
            tokenizer, longest = tokenizer or folder.tokenizer, folder.max_length
            own = longest
        length = t.max_length or own
        if length > longest:
            raise ValueError(f"max_length {length}: {t.encoder} takes at most {longest}")
    return _Encoder(backbone, tokenizer, length, folder)


def _task(config: ConfigDict, found: _Encoder, mesh: Mesh | None) -> MaskedLM:
    with config_errors("nesting"):
        nesting = parse_dims(config.nesting.dims, config.nesting.weights, found.backbone.width)
    kind = config.head.kind
    if kind not in ("shared", "fixed") or (kind == "fixed" and len(nesting) > 1):
        raise UsageError(
            "config.head.kind of masked_lm is shared (MRL-E: the output layer is the table of "
            f"tokens), for a nesting, or fixed, for one dim; got {kind} for {len(nesting)} dims"
        )
    predictions = predictions_of(found.max_length, config.text.mask_rate)
    return MaskedLM(found.backbone, nesting, found.max_length, predictions, mesh)


def _checked(config: ConfigDict, run: pathlib.Path | None) -> tuple[_Encoder, MaskedLM]:
    """Encoder and task, after all checks that are possible before texts are read."""
    found = _encoder(config, run)
    task = _task(config, found, None)
    common.evaluated_dims(config, task.nesting)
    common.make_optimizer(config)
    return found, task


def check(config: ConfigDict) -> MaskedLM:
    """Checks everything that `from_config` checks before it reads texts; raises the same.

    Returns:
      The task; of a vocabulary that is still to be made, for its largest size.
    """
    return _checked(config, None)[1]


def from_config(config: ConfigDict, mesh: Mesh, run: pathlib.Path | None = None) -> Experiment:
    """Builds and checks an experiment; nothing is compiled yet.

    Args:
      config: of the run.
      mesh: devices.
      run: the folder of the run, which keeps the tokenizer that it started with.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: data missing or inconsistent.
    """
    # What is wrong with the model should show before minutes are spent on reading texts.
    found, _ = _checked(config, run)
    name, documents = open_documents(config.data.path, config.data.files)
    cache = config.data.cache
    if found.tokenizer is None:
        tokenizer = vocabulary(documents["train"], config.text.vocab_size, cache)
        backbone = found.backbone.clone(vocab_size=tokenizer.vocab_size)
        found = found._replace(backbone=backbone, tokenizer=tokenizer)
    task = _task(config, found, mesh)
    program = common.make_program(config, task, mesh, model_group=GROUP)
    dataset = tokenise(
        name,
        documents,
        found.tokenizer,
        length=found.max_length,
        rate=config.text.mask_rate,
        cache=cache,
    )
    evaluation = MaskedEvaluation(
        task,
        mesh,
        dataset.splits,
        dims=common.evaluated_dims(config, task.nesting),
        batch_size=config.eval.batch_size,
        seed=config.seed,
        projections=config.eval.projections,
    )
    weights = None
    if found.folder is not None:
        weights = _weights(config.text.encoder, found, program)
    note = dataset.summary()
    if unread := unread_columns(documents):
        note += f"; columns that are not read: {listed(unread)}"
    files = {split: texts.files for split, texts in documents.items()}
    note = "\n".join([note, *common.unread(files, config)])
    as_folder = functools.partial(_as_folder, found)
    return Experiment(program, dataset, evaluation, weights, as_folder, found.tokenizer, note)


def planned_program(config: ConfigDict, mesh: Mesh) -> Program:
    """The program of a config; nothing is compiled, and no texts are read.

    A vocabulary that is still to be made has the largest size it may have.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: a damaged folder.
    """
    task = _task(config, _encoder(config), mesh)
    return common.make_program(config, task, mesh, model_group=GROUP)


def _weights(path: str, found: _Encoder, program: Program) -> tuple[str, Callable[[Any], Any]]:
    """Where weights come from, and what puts them into a fresh state."""
    head = read_masked_head(path, found.backbone.width, found.backbone.vocab_size)
    params = {**found.folder.params, **head}
    source = f"encoder{' and output layer' if head else ''} from {path}"
    return source, common.starting_from(program, params)


def _as_folder(found: _Encoder, params: Any) -> TextFolder:
    """The trained encoder as a text folder: the mean of its hidden states is the embedding.

    Their prefixes were not trained, those of what the output layer reads were.
    """
    encoder, params = SentenceEncoder(found.backbone), {"backbone": params["backbone"]}
    return TextFolder(encoder, params, found.tokenizer, found.max_length)
