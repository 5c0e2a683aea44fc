"""From a config to sentence embeddings: encoder, texts, loss and measurements."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mrl_jax.data import text as texts
from mrl_jax.data.strings import Strings
from mrl_jax.data.text_batches import TrainTexts
from mrl_jax.data.text_columns import parse_columns
from mrl_jax.data.text_files import find_files
from mrl_jax.data.token_cache import tokens_of, vectors_of, vocabulary_of
from mrl_jax.errors import UsageError, listed
from mrl_jax.evaluators import text_sets
from mrl_jax.evaluators.text_sets import check_layers
from mrl_jax.interop.text_folder import UNLIMITED, TextFolder, read_text_folder
from mrl_jax.losses import pairs
from mrl_jax.models.text import prompts
from mrl_jax.models.text.tokenizer import Tokenizer
from mrl_jax.nesting import parse_dims
from mrl_jax.record.folder import TOKENIZER
from mrl_jax.runtime.program import Program
from mrl_jax.tasks import common, text_encoder
from mrl_jax.tasks.common import config_errors
from mrl_jax.tasks.sentence_pairs.documents import Documents
from mrl_jax.tasks.sentence_pairs.measure import SentenceEvaluation
from mrl_jax.tasks.sentence_pairs.task import SentencePairs
from mrl_jax.tasks.text_encoder import TextEncoder
from mrl_jax.tasks.text_inputs import teacher_of

MODEL_KEYS = "text"


@dataclasses.dataclass(frozen=True)
class Texts:
    """The data of a run, and how its texts become numbers.

    Attributes:
      data: all splits as texts.
      splits: "train" as batches; the others as they are.
      encoder: what reads them.
      tokenizer: of the encoder.
      reading: what the token ids depend on besides the texts.
      notes: lines for the log.
      teacher_width: dims of the teacher's vectors, 0 without one.
      teacher: hex digits over the teacher, see `_taught_by`; "" without one, None of one that is
        not there.
      start: the folder that training starts from; None of a fresh encoder.
    """

    data: texts.TextData
    splits: dict[str, Any]
    encoder: TextEncoder
    tokenizer: Tokenizer
    reading: str
    notes: list[str]
    teacher_width: int = 0
    teacher: str | None = ""
    start: TextFolder | None = None

    @property
    def name(self) -> str:
        """The name for messages."""
        return self.data.name

    def fingerprint(self) -> str:
        """Sixteen hex digits over all texts, what joins them, and how they are read."""
        return hashlib.sha256(f"{self.data.digest} {self.reading}".encode()).hexdigest()[:16]

    def training_fingerprint(self) -> str | None:
        """Sixteen hex digits over the training texts, and how they are read and taught; None where
        one of these is not there."""
        if "train" not in self.splits or self.teacher is None:
            return None
        read = f"{self.data.splits['train'].digest} {self.reading} {self.teacher}"
        return hashlib.sha256(read.encode()).hexdigest()[:16]


def _of_config(
    config: ConfigDict, run: pathlib.Path | None = None
) -> tuple[TextEncoder, Tokenizer | None, TextFolder | None]:
    t = config.text
    return text_encoder.of_config(config, run, pooling=t.pooling, width=t.width, said=t.prompts)


def check(config: ConfigDict) -> None:
    """Refuses keys that contradict each other."""
    p = config.pairs
    if config.optimizer.accumulate > 1:
        raise UsageError(
            "config.optimizer.accumulate: parts of a batch would not be told from each other; "
            "config.pairs.micro_batch saves the memory and keeps the loss"
        )
    with config_errors("pairs"):
        pairs.find(p.loss)
        if not p.score_max > 0:
            raise ValueError(f"score_max must be > 0, got {p.score_max}")
        if p.micro_batch and config.batch_size % p.micro_batch:
            raise ValueError(
                f"micro_batch {p.micro_batch} does not divide the batch_size {config.batch_size}"
            )
    parse_columns(config.data.columns, config.data.drop)
    text_sets.listed(config)


def assumed_facts(config: ConfigDict, folder: pathlib.Path | None) -> tuple[dict[str, Any], bool]:
    """Texts that have exactly what the loss needs, and a vocabulary as large as it may be."""
    needs = pairs.find(config.pairs.loss).needs
    return {
        "encoder": _of_config(config, folder)[0].facts(),
        "sides": ["anchor", "positive", *["negative_0"] * (needs == "negatives")],
        "scored": needs == "score",
        "teacher_width": int(needs == "teacher"),
    }, False


def facts(config: ConfigDict, data: Texts) -> dict[str, Any]:
    """The encoder, and what a batch of these texts holds."""
    train = data.data.splits["train"]
    return {
        "encoder": data.encoder.facts(),
        "sides": list(train.sides) or ["anchor", "positive"],
        "scored": train.score_n is not None,
        "teacher_width": data.teacher_width,
    }


def kept(data: Texts) -> dict[str, str]:
    """The tokenizer."""
    return {TOKENIZER: data.tokenizer.to_json()}


def text_folder(setup: Any, params: Any, model_state: Any = None) -> TextFolder:
    """The trained encoder with its tokenizer."""
    return text_encoder.trained_folder(setup, params, setup.program.task.nesting.dims)


def make_task(config: ConfigDict, facts: dict[str, Any], mesh: Mesh | None) -> SentencePairs:
    """Encoder and loss.

    Raises:
      UsageError: names the config key and what would be legal.
    """
    p, encoder = config.pairs, text_encoder.of_facts(facts["encoder"], config.text)
    with config_errors("nesting"):
        nesting = parse_dims(config.nesting.dims, config.nesting.weights, encoder.module.out_dim)
    common.check_without_head(config, nesting)
    common.evaluated_dims(config, nesting)
    with config_errors("eval.layers"):
        check_layers(config.eval.layers, encoder.module.layers)
    with config_errors("pairs"):
        return SentencePairs(
            encoder.module,
            nesting,
            tuple(facts["sides"]),
            encoder.max_length,
            scored=facts["scored"],
            teacher_width=facts["teacher_width"],
            loss_name=p.loss,
            temperature=p.temperature,
            symmetric=p.symmetric,
            margin=p.margin,
            micro_batch=p.micro_batch,
            layers=p.layers,
            mesh=mesh,
        )


def _check_scores(config: ConfigDict, split: texts.TextSplit) -> None:
    """Refuses scores that the loss would ignore or cannot take."""
    p = config.pairs
    if split.score_n is None:
        return
    with config_errors("pairs"):
        if pairs.find(p.loss).needs != "score":
            raise ValueError(
                f"loss {p.loss} would ignore the given score: data.drop=label=0 leaves out "
                "the pairs with label 0, data.columns=ignore=NAME leaves out the column"
            )
        if p.loss == "cosine_mse" and np.abs(split.score_n).max() > p.score_max:
            raise ValueError(
                f"cosine_mse takes scores of -1 to 1; with score_max {p.score_max} the largest is "
                f"{np.abs(split.score_n).max() / p.score_max:g}"
            )


def open_data(
    config: ConfigDict, facts: dict[str, Any] | None, folder: pathlib.Path | None, train: bool
) -> Texts:
    """All texts, and the tokenizer that reads them, made of the train texts if there is none yet.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: data missing or inconsistent.
    """
    d, start = config.data, None
    if facts is None:
        found, tokenizer, start = _of_config(config, folder)
    else:
        found = text_encoder.of_facts(facts["encoder"])
        tokenizer = text_encoder.kept_tokenizer(folder, found.marks)
    data = texts.load(
        d.path, files=d.files, columns=d.columns, drop=d.drop, cache=d.cache, train=train
    )
    lines = common.unread(find_files(d.path, d.files, train=train), config)
    split = data.splits.get("train")
    if split is None:
        return Texts(
            data, data.splits, found, tokenizer, "", [data.summary(), *_notes(found, None), *lines]
        )
    _check_scores(config, split)
    # What is only measured needs no teacher.
    gone = not train and not pathlib.Path(config.pairs.teacher).exists()
    teacher = read_text_folder(config.pairs.teacher) if config.pairs.teacher and not gone else None
    if tokenizer is None:
        tokenizer = vocabulary_of(
            split.texts,
            config.text.vocab_size,
            marks=found.marks,
            cache=d.cache,
            source=split.source,
        )
        found = found.with_vocabulary(tokenizer.vocab_size)
    return Texts(
        data,
        {**data.splits, "train": _train_texts(config, found, tokenizer, split, teacher)},
        found,
        tokenizer,
        _read_as(found, tokenizer, split),
        [data.summary(), *_notes(found, teacher), *lines],
        facts["teacher_width"] if gone else teacher.encoder.out_dim if teacher else 0,
        None if gone else _taught_by(teacher, split) if teacher else "",
        start,
    )


def start(
    config: ConfigDict, facts: dict[str, Any], program: Program, data: Texts
) -> tuple[str, Callable[[Any], Any]] | None:
    """What puts the weights of the encoder's folder in a fresh state; a new projection stays."""
    del facts
    if data.start is None:
        return None
    put_in = common.starting_from(program, data.start.params)
    return f"encoder from {config.text.encoder}", put_in


def _digest(folder: TextFolder, about: str) -> str:
    """Hex digits over the weights and tokenizer of a folder, and over a text about it."""
    digest = hashlib.sha256(f"{about} {folder.tokenizer.content}".encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(folder.params):
        digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class _Prompted:
    """The texts in `there_t` with a prompt before them; all others are read as empty texts."""

    texts: Strings
    prompt: str
    there_t: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: slice) -> list[str]:
        there_b = self.there_t[rows]
        return [
            self.prompt + text if there else ""
            for text, there in zip(self.texts[rows], there_b, strict=True)
        ]

    def __iter__(self) -> Iterator[str]:
        return (
            self.prompt + text if there else ""
            for text, there in zip(self.texts, self.there_t, strict=True)
        )


def _with_prompt(
    split: texts.TextSplit, prompt_of: dict[str, str], prompt: str
) -> tuple[Strings | _Prompted, str]:
    """The texts of the sides with this prompt, and a text that identifies them in a cache."""
    sides = [side for side, its in prompt_of.items() if its == prompt]
    everywhere = len(sides) == len(prompt_of)
    if everywhere and not prompt:
        return split.texts, split.source
    there_t = np.full(len(split.texts), everywhere)
    for side in sides if not everywhere else ():
        there_t[split.sides[side]] = True
    return _Prompted(split.texts, prompt, there_t), f"{split.source} {sides} {prompt!r}"


def _side_prompts(split: texts.TextSplit, folder: TextEncoder | TextFolder) -> dict[str, str]:
    """The prompt of each side's texts."""
    by_role = prompts.by_role(folder.prompts, folder.default_prompt)
    return prompts.by_side(by_role, split.kind, tuple(split.sides) or ("anchor", "positive"))


def _train_texts(
    config: ConfigDict,
    found: TextEncoder,
    tokenizer: Tokenizer,
    split: texts.TextSplit,
    teacher: TextFolder | None,
) -> TrainTexts:
    cache, prompt_of = config.data.cache, _side_prompts(split, found)

    @functools.cache  # sides with the same prompt share their tokens
    def tokens(prompt: str):
        asked, source = _with_prompt(split, prompt_of, prompt)
        kept = {"cache": cache, "source": source, "total": len(asked)}
        return tokens_of(asked, tokenizer, found.max_length, **kept)

    longest, score_max = found.max_length, config.pairs.score_max
    if teacher is None:
        return TrainTexts(split, lambda side: tokens(prompt_of[side]), longest, score_max)

    # All dims of the teacher are learned from, even if it is served with fewer.
    teacher = dataclasses.replace(teacher, truncate_dim=None, trained_dims=())
    taught_of = _side_prompts(split, teacher)

    @functools.cache
    def vectors(prompt: str):
        asked, source = _with_prompt(split, taught_of, prompt)
        about = dataclasses.replace(teacher, params=None, tokenizer=None)
        source = f"{source} {_digest(teacher, str(about))}" if cache else ""
        return vectors_of(asked, teacher_of(teacher), cache=cache, source=source)

    return TrainTexts(
        split,
        lambda side: tokens(prompt_of[side]),
        longest,
        score_max,
        lambda side: vectors(taught_of[side]),
    )


def _read_as(found: TextEncoder, tokenizer: Tokenizer, split: texts.TextSplit) -> str:
    """What the token ids of training texts depend on besides the texts."""
    reading = f"{tokenizer.content} {tokenizer.marks} {found.max_length}"
    before = _side_prompts(split, found)
    # Left out if there are none, as in the checkpoints of older releases.
    return f"{reading} {json.dumps(before, sort_keys=True)}" if any(before.values()) else reading


def _documents(
    config: ConfigDict, sets: Sequence[text_sets.TextSet], width: int
) -> Documents | None:
    """What embeds the documents of searches beside the encoder itself."""
    if not config.eval.documents:
        return None
    taken = {one.name for one in sets}
    for one in sets:
        for name in taken.intersection(Documents.names(one)):
            raise UsageError(
                f"config.eval.documents measures {one.name} as {name} too: give the set of that "
                "name another one"
            )
    folder = read_text_folder(config.eval.documents)
    # As in `_taught_by`.
    about = {
        "pooling": folder.encoder.pooling,
        "max_length": folder.max_length,
        "prompts": prompts.by_role(folder.prompts, folder.default_prompt),
    }
    with config_errors("eval"):
        return Documents(
            folder,
            _digest(folder, json.dumps(about, sort_keys=True)),
            width=width,
            cache=config.data.cache,
            projections=config.eval.projections,
        )


def _taught_by(teacher: TextFolder, split: texts.TextSplit) -> str:
    """Hex digits over everything that a teacher's embeddings depend on."""
    # Not over all fields of its module, as a later release may have other fields.
    about = {
        "pooling": teacher.encoder.pooling,
        "max_length": teacher.max_length,
        "prompts": _side_prompts(split, teacher),
    }
    return _digest(teacher, json.dumps(about, sort_keys=True))


def _notes(found: TextEncoder, teacher: TextFolder | None) -> list[str]:
    """Lines for the log on how texts are read."""
    lines = [f"texts are cut after {found.max_length} tokens"]
    for who, folder in (("", found), ("teacher: ", teacher)):
        if folder and any(folder.prompts.values()):
            by_role = prompts.by_role(folder.prompts, folder.default_prompt)
            said = ", ".join(f"{role} {prompt!r}" for role, prompt in by_role.items())
            lines.append(f"{who}prompts: {said}")
    if teacher:
        width, limit = teacher.encoder.out_dim, teacher.max_length
        cut = f"texts cut after {limit} tokens" if limit < UNLIMITED else "whole texts"
        lines.append(f"teacher: {width} dims of {cut}")
    return lines


def measures(
    config: ConfigDict, facts: dict[str, Any], program: Program, data: Texts
) -> SentenceEvaluation:
    """The measurements.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: a set is missing or damaged.
    """
    del facts
    e, found = config.eval, data.encoder
    with config_errors("eval.layers"):
        layers = check_layers(e.layers, program.task.encoder.layers)
    sets, alike = text_sets.opened(config), e.ignore_identical_ids
    searched = [one.name for one in sets if one.key == "retrieval"]
    for name in alike:
        if name not in searched:
            raise UsageError(
                f"config.eval.ignore_identical_ids: {name} is not a set of eval.retrieval "
                f"({listed(searched) or 'there are none'})"
            )
    hidden = [f"{name}: no query is shown the document with its own id" for name in alike]
    evaluation = SentenceEvaluation(
        program.task,
        program.mesh,
        data.tokenizer,
        data.data,
        prompts=prompts.by_role(found.prompts, found.default_prompt),
        dims=common.evaluated_dims(config, program.task.nesting),
        batch_size=e.batch_size,
        seed=config.seed,
        sets=sets,
        projections=e.projections,
        layers=layers,
        documents=_documents(config, sets, program.task.nesting.width),
    )
    unread = [
        f"{one.name}: columns that are not read: {listed(one.unread)}" for one in sets if one.unread
    ]
    evaluation.notes = [*hidden, *unread]
    return evaluation
