"""From a config to a masked language model: encoder, packed texts and measurements."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from mrl_jax.data.masked import (
    MaskedText,
    open_documents,
    predictions_of,
    tokenise,
    unread_columns,
    vocabulary,
)
from mrl_jax.errors import UsageError, listed
from mrl_jax.interop.masked_head import read_masked_head
from mrl_jax.interop.text_folder import TextFolder
from mrl_jax.models.text import Bert, SentenceEncoder
from mrl_jax.models.text.tokenizer import Tokenizer
from mrl_jax.nesting import parse_dims
from mrl_jax.record.folder import TOKENIZER
from mrl_jax.runtime.program import Program
from mrl_jax.tasks import common, text_encoder
from mrl_jax.tasks.common import config_errors
from mrl_jax.tasks.masked_lm.measure import MaskedEvaluation
from mrl_jax.tasks.masked_lm.task import MaskedLM
from mrl_jax.tasks.text_encoder import FRESH, STATIC, TextEncoder

MODEL_KEYS = "text"


@dataclasses.dataclass(frozen=True)
class Documents:
    """The data of a run, and what reads them.

    Attributes:
      tokens: all splits as tokens.
      encoder: what is trained. Its embedding is the mean of what it says of every token.
      tokenizer: of the encoder.
      notes: lines for the log.
      start: the folder that training starts from; None of a fresh encoder.
    """

    tokens: MaskedText
    encoder: TextEncoder
    tokenizer: Tokenizer
    notes: list[str]
    start: TextFolder | None = None

    @property
    def name(self) -> str:
        """The name for messages."""
        return self.tokens.name

    @property
    def splits(self) -> dict[str, Any]:
        """The splits that there are."""
        return self.tokens.splits

    def fingerprint(self) -> str:
        """Sixteen hex digits over all tokens and their use."""
        return self.tokens.fingerprint()

    def training_fingerprint(self) -> str:
        """Sixteen hex digits over the training tokens and their use."""
        return self.tokens.training_fingerprint()


def _of_config(
    config: ConfigDict, run: pathlib.Path | None = None
) -> tuple[TextEncoder, Tokenizer | None, TextFolder | None]:
    with config_errors("text"):
        if config.text.encoder == STATIC:
            raise ValueError(
                "encoder: a static table sees one token at a time; legal for masked_lm is the "
                f"folder of a transformer, or {', '.join(FRESH)}"
            )
        found, tokenizer, folder = text_encoder.of_config(config, run)
        if not isinstance(found.module.backbone, Bert):
            raise ValueError(f"encoder: {config.text.encoder} is a table, legal is a transformer")
    module = SentenceEncoder(found.module.backbone)
    return TextEncoder(module, found.marks, found.max_length, {}, "", False), tokenizer, folder


def assumed_facts(config: ConfigDict, folder: pathlib.Path | None) -> tuple[dict[str, Any], bool]:
    """A vocabulary as large as it may be, which is what a step costs at most."""
    return {"encoder": _of_config(config, folder)[0].facts()}, True


def facts(config: ConfigDict, data: Documents) -> dict[str, Any]:
    """The encoder."""
    return {"encoder": data.encoder.facts()}


def kept(data: Documents) -> dict[str, str]:
    """The tokenizer."""
    return {TOKENIZER: data.tokenizer.to_json()}


def text_folder(setup: Any, params: Any, model_state: Any = None) -> TextFolder:
    """The trained encoder with its tokenizer: the mean of its hidden states is the embedding.

    Their prefixes were not trained, those of what the output layer reads were.
    """
    return text_encoder.trained_folder(setup, {"backbone": params["backbone"]}, ())


def make_task(config: ConfigDict, facts: dict[str, Any], mesh: Mesh | None) -> MaskedLM:
    """Encoder and output layer.

    Raises:
      UsageError: names the config key and what would be legal.
    """
    found = text_encoder.of_facts(facts["encoder"], config.text)
    backbone = found.module.backbone
    with config_errors("nesting"):
        nesting = parse_dims(config.nesting.dims, config.nesting.weights, backbone.width)
    common.evaluated_dims(config, nesting)
    kind = config.head.kind
    if kind not in ("shared", "fixed") or (kind == "fixed" and len(nesting) > 1):
        raise UsageError(
            "config.head.kind of masked_lm is shared (MRL-E: the output layer is the table of "
            f"tokens), for a nesting, or fixed, for one dim; got {kind} for {len(nesting)} dims"
        )
    predictions = predictions_of(found.max_length, config.text.mask_rate)
    return MaskedLM(backbone, nesting, found.max_length, predictions, mesh)


def open_data(
    config: ConfigDict, facts: dict[str, Any] | None, folder: pathlib.Path | None, train: bool
) -> Documents:
    """All texts as tokens; the tokenizer is made of the train texts if there is none yet.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: data missing or inconsistent.
    """
    start, cache = None, config.data.cache
    if facts is None:
        found, tokenizer, start = _of_config(config, folder)
    else:
        found = text_encoder.of_facts(facts["encoder"])
        tokenizer = text_encoder.kept_tokenizer(folder, found.marks)
    name, documents = open_documents(config.data.path, config.data.files, train=train)
    if tokenizer is None:
        tokenizer = vocabulary(documents["train"], config.text.vocab_size, cache)
        found = found.with_vocabulary(tokenizer.vocab_size)
    tokens = tokenise(
        name,
        documents,
        tokenizer,
        length=found.max_length,
        rate=config.text.mask_rate,
        cache=cache,
    )
    note = tokens.summary()
    if unread := unread_columns(documents):
        note += f"; columns that are not read: {listed(unread)}"
    files = {split: texts.files for split, texts in documents.items()}
    return Documents(tokens, found, tokenizer, [note, *common.unread(files, config)], start)


def start(
    config: ConfigDict, facts: dict[str, Any], program: Program, data: Documents
) -> tuple[str, Callable[[Any], Any]] | None:
    """What puts the weights of the encoder's folder in a fresh state."""
    del facts
    if data.start is None:
        return None
    path, backbone = config.text.encoder, program.task.backbone
    head = read_masked_head(path, backbone.width, backbone.vocab_size)
    put_in = common.starting_from(program, {**data.start.params, **head})
    return f"encoder{' and output layer' if head else ''} from {path}", put_in


def measures(
    config: ConfigDict, facts: dict[str, Any], program: Program, data: Documents
) -> MaskedEvaluation:
    """The measurements."""
    del facts
    return MaskedEvaluation(
        program.task,
        program.mesh,
        data.splits,
        dims=common.evaluated_dims(config, program.task.nesting),
        batch_size=config.eval.batch_size,
        seed=config.seed,
        projections=config.eval.projections,
    )
