"""From a config to sentence embeddings: encoder, texts, loss and measurements."""

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mrl_jax.data import beir, named
from mrl_jax.data import text as texts
from mrl_jax.data.labelled_text import LABELLED, LabelledTexts, read_labelled
from mrl_jax.data.strings import Strings
from mrl_jax.data.text_batches import TrainTexts
from mrl_jax.data.text_columns import Columns, parse_columns
from mrl_jax.data.text_files import find_files, first_columns, read_rows
from mrl_jax.data.token_cache import tokens_of, vectors_of, vocabulary_of
from mrl_jax.errors import DataError, UsageError, listed
from mrl_jax.evaluators.text_layers import check_layers
from mrl_jax.experiment import common
from mrl_jax.experiment.common import Experiment, config_errors
from mrl_jax.interop.text_folder import UNLIMITED, TextFolder, read_text_folder
from mrl_jax.losses import pairs
from mrl_jax.models.text import Bert, SentenceEncoder, Static, prompts
from mrl_jax.models.text.tokenizer import Tokenizer
from mrl_jax.nesting import Nesting, parse_dims
from mrl_jax.record import folder as workdir
from mrl_jax.runtime.program import Program
from mrl_jax.tasks.sentence_pairs.inputs import teacher_of
from mrl_jax.tasks.sentence_pairs.measure import SentenceEvaluation
from mrl_jax.tasks.sentence_pairs.task import SentencePairs

# Fresh encoders: width, layers, heads, hidden units.
FRESH = {
    "bert_tiny": (128, 2, 2, 512),
    "minilm_l6": (384, 6, 12, 1536),
    "bert_base": (768, 12, 12, 3072),
}
STATIC = "static"
MAX_LENGTH, MAX_LENGTH_TABLE = 128, 256  # of a fresh encoder, of a table that has no limit
GROUP = "text"  # of the config keys that say what the model is


@dataclasses.dataclass(frozen=True)
class Texts:
    """The data of a run, and how its texts become numbers.

    Attributes:
      data: all splits as texts.
      splits: "train" as batches; the others as they are.
      reading: what the token ids depend on besides the texts.
      teacher: hex digits over the teacher, see `_taught_by`; "" without one.
    """

    data: texts.TextData
    splits: dict[str, Any]
    reading: str
    teacher: str = ""

    @property
    def name(self) -> str:
        """The name for messages."""
        return self.data.name

    def fingerprint(self) -> str:
        """Sixteen hex digits over all texts, what joins them, and how they are read."""
        return hashlib.sha256(f"{self.data.digest} {self.reading}".encode()).hexdigest()[:16]

    def training_fingerprint(self) -> str:
        """Sixteen hex digits over the training texts, and how they are read."""
        read = f"{self.data.splits['train'].digest} {self.reading} {self.teacher}"
        return hashlib.sha256(read.encode()).hexdigest()[:16]


class _Encoder(NamedTuple):
    """What is to be trained: the module, its prompts, and its folder unless it is fresh."""

    encoder: SentenceEncoder
    tokenizer: Tokenizer | None  # None: to be made of the texts
    max_length: int
    prompts: dict[str, str]
    default_prompt: str = ""
    folder: TextFolder | None = None

    def trained(self, params: Any, dims: tuple[int, ...]) -> TextFolder:
        """The encoder with trained parameters and all that belongs to it."""
        # Readers of the folder look for prompts called "query" and "document".
        by_role = prompts.by_role(self.prompts, self.default_prompt)
        stated = {role: by_role[role] for role in ("query", "document") if by_role[role]}
        # The losses compare directions: lengths mean nothing unless the folder says otherwise.
        return TextFolder(
            self.encoder,
            params,
            self.tokenizer,
            self.max_length,
            {**stated, **self.prompts},
            dims,
            self.folder.normalize if self.folder else True,
            self.default_prompt,
        )


def tokenizer_of(config: ConfigDict, run: pathlib.Path | None) -> Tokenizer | None:
    """The tokenizer that the run started with; before its start, the one of `text.tokenizer`.

    None if there is neither: the encoder has its own, or one is still to be trained on the texts.
    """
    kept, marks = run and run / workdir.TOKENIZER, config.text.encoder != STATIC
    if kept and kept.exists():
        return Tokenizer.load(kept, marks=marks, settings=False)
    return Tokenizer.load(config.text.tokenizer, marks=marks) if config.text.tokenizer else None


def _encoder(config: ConfigDict, run: pathlib.Path | None = None) -> _Encoder:
    """The encoder of a config; of a vocabulary that is still to be made, its largest size."""
    t = config.text
    with config_errors("text"):
        if t.width < 0 or t.max_length < 0:
            raise ValueError(f"width and max_length must be >= 0, got {t.width}, {t.max_length}")
        tokenizer, said = tokenizer_of(config, run), _prompts(config)
        if t.encoder not in (STATIC, *FRESH):
            return _from_folder(config, tokenizer)
        rows = tokenizer.vocab_size if tokenizer else t.vocab_size
        pooling, length = t.pooling or "mean", t.max_length or MAX_LENGTH
        if t.encoder == STATIC:
            if not t.width:
                raise ValueError("width: a static table needs so many dims")
            if t.dropout or pooling != "mean":
                raise ValueError("a static table has no dropout and no pooling but the mean")
            return _Encoder(SentenceEncoder(Static(rows, t.width)), tokenizer, length, *said)
        width, layers, heads, hidden = FRESH[t.encoder]
        drop = {"dropout": t.dropout, "attention_dropout": t.dropout}
        backbone = Bert(rows, width, layers, heads, hidden, **drop)
        if length > backbone.max_tokens:
            raise ValueError(f"max_length {length}: {t.encoder} has {backbone.max_tokens}")
        return _Encoder(SentenceEncoder(backbone, pooling, t.width), tokenizer, length, *said)


def _prompts(config: ConfigDict, folder: TextFolder | None = None) -> tuple[dict[str, str], str]:
    """The prompts by name and the name of the default one: those of the config, or the folder's."""
    said = prompts.parse(config.text.prompts)
    if said or folder is None:
        return said, "default" if "default" in said else ""
    return folder.prompts, folder.default_prompt


def _from_folder(config: ConfigDict, tokenizer: Tokenizer | None) -> _Encoder:
    t = config.text
    if t.tokenizer:
        raise ValueError(f"tokenizer: {t.encoder} is a folder and has its own")
    folder = read_text_folder(t.encoder)
    if tokenizer:
        tokenizer.marks = folder.tokenizer.marks
        folder = dataclasses.replace(folder, tokenizer=tokenizer)
    encoder = folder.encoder
    changes: dict[str, Any] = {"pooling": t.pooling or encoder.pooling}
    if t.width not in (0, encoder.out_dim):
        if encoder.projection:
            raise ValueError(f"width {t.width}: {t.encoder} has a projection to {encoder.out_dim}")
        changes["projection"] = t.width
    if isinstance(encoder.backbone, Bert):
        drop = {"dropout": t.dropout, "attention_dropout": t.dropout}
        changes["backbone"] = encoder.backbone.clone(**drop)
    elif t.dropout or changes["pooling"] != "mean":
        raise ValueError("a static table has no dropout and no pooling but the mean")
    # Batches are padded to their longest text, and a table may come without a limit.
    own = folder.max_length if folder.max_length < UNLIMITED else MAX_LENGTH_TABLE
    length = t.max_length or own
    if length > folder.max_length:
        raise ValueError(f"max_length {length}: {t.encoder} takes at most {folder.max_length}")
    said = _prompts(config, folder)
    return _Encoder(encoder.clone(**changes), folder.tokenizer, length, *said, folder)


def _with_vocabulary(config: ConfigDict, found: _Encoder, data: texts.TextData) -> _Encoder:
    """The encoder with a tokenizer, made of the training texts where there is none yet."""
    if found.tokenizer:
        return found
    marks = not isinstance(found.encoder.backbone, Static)
    train = data.splits["train"]
    kept = {"cache": config.data.cache, "source": train.source}
    tokenizer = vocabulary_of(train.texts, config.text.vocab_size, marks=marks, **kept)
    backbone = found.encoder.backbone.clone(vocab_size=tokenizer.vocab_size)
    return found._replace(encoder=found.encoder.clone(backbone=backbone), tokenizer=tokenizer)


def _checked(
    config: ConfigDict, run: pathlib.Path | None
) -> tuple[_Encoder, Nesting, SentencePairs]:
    """Encoder, nesting and task, after all checks that are possible before texts are read.

    The task is one for texts that have exactly what the loss needs.
    """
    found, p = _encoder(config, run), config.pairs
    with config_errors("nesting"):
        nesting = parse_dims(config.nesting.dims, config.nesting.weights, found.encoder.out_dim)
    common.check_without_head(config, nesting)
    common.evaluated_dims(config, nesting)
    if config.optimizer.accumulate > 1:
        raise UsageError(
            "config.optimizer.accumulate: parts of a batch would not be told from each other; "
            "config.pairs.micro_batch saves the memory and keeps the loss"
        )
    with config_errors("pairs"):
        needs = pairs.find(p.loss).needs
        if not p.score_max > 0:
            raise ValueError(f"score_max must be > 0, got {p.score_max}")
        if p.micro_batch and config.batch_size % p.micro_batch:
            raise ValueError(
                f"micro_batch {p.micro_batch} does not divide the batch_size {config.batch_size}"
            )
    parse_columns(config.data.columns, config.data.drop)
    sides = ("anchor", "positive", *["negative_0"] * (needs == "negatives"))
    scored, taught = needs == "score", needs == "teacher"
    task = _pairs(
        config, found, nesting, sides=sides, scored=scored, teacher_width=int(taught), mesh=None
    )
    with config_errors("eval.layers"):
        check_layers(config.eval.layers, found.encoder.layers)
    taken = set(named.SPLITS)
    for kind in ("sts", "retrieval", "classification", "clustering"):
        named.paths(f"eval.{kind}", config.eval[kind], taken)
    common.make_optimizer(config)
    return found, nesting, task


def check(config: ConfigDict) -> SentencePairs:
    """Checks everything that `from_config` checks before it reads texts; raises the same.

    Returns:
      The task as it would be for texts that have exactly what the loss needs.
    """
    return _checked(config, None)[2]


def _pairs(
    config: ConfigDict,
    found: _Encoder,
    nesting: Nesting,
    *,
    sides: tuple[str, ...],
    scored: bool,
    teacher_width: int,
    mesh: Mesh | None,
) -> SentencePairs:
    p = config.pairs
    with config_errors("pairs"):
        return SentencePairs(
            found.encoder,
            nesting,
            sides,
            found.max_length,
            scored=scored,
            teacher_width=teacher_width,
            loss_name=p.loss,
            temperature=p.temperature,
            symmetric=p.symmetric,
            margin=p.margin,
            micro_batch=p.micro_batch,
            layers=p.layers,
            mesh=mesh,
        )


def _task(
    config: ConfigDict,
    found: _Encoder,
    nesting: Nesting,
    split: texts.TextSplit,
    teacher: TextFolder | None,
    mesh: Mesh | None,
) -> SentencePairs:
    p = config.pairs
    with config_errors("pairs"):
        if split.score_n is not None and pairs.find(p.loss).needs != "score":
            raise ValueError(
                f"loss {p.loss} would ignore the given score: data.drop=label=0 leaves out "
                "the pairs with label 0, data.columns=ignore=NAME leaves out the column"
            )
        if p.loss == "cosine_mse" and np.abs(split.score_n).max() > p.score_max:
            raise ValueError(
                f"cosine_mse takes scores of -1 to 1; with score_max {p.score_max} the largest is "
                f"{np.abs(split.score_n).max() / p.score_max:g}"
            )
    return _pairs(
        config,
        found,
        nesting,
        sides=tuple(split.sides) or ("anchor", "positive"),
        scored=split.score_n is not None,
        teacher_width=teacher.encoder.out_dim if teacher else 0,
        mesh=mesh,
    )


def _open(config: ConfigDict) -> texts.TextData:
    d = config.data
    return texts.load(d.path, files=d.files, columns=d.columns, drop=d.drop, cache=d.cache)


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


def _side_prompts(split: texts.TextSplit, folder: _Encoder | TextFolder) -> dict[str, str]:
    """The prompt of each side's texts."""
    by_role = prompts.by_role(folder.prompts, folder.default_prompt)
    return prompts.by_side(by_role, split.kind, tuple(split.sides) or ("anchor", "positive"))


def _train_texts(
    config: ConfigDict, found: _Encoder, split: texts.TextSplit, teacher: TextFolder | None
) -> TrainTexts:
    cache, prompt_of = config.data.cache, _side_prompts(split, found)

    @functools.cache  # sides with the same prompt share their tokens
    def tokens(prompt: str):
        asked, source = _with_prompt(split, prompt_of, prompt)
        kept = {"cache": cache, "source": source, "total": len(asked)}
        return tokens_of(asked, found.tokenizer, found.max_length, **kept)

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


def _read_as(found: _Encoder, split: texts.TextSplit) -> str:
    """What the token ids of training texts depend on besides the texts."""
    reading = f"{found.tokenizer.content} {found.tokenizer.marks} {found.max_length}"
    before = _side_prompts(split, found)
    # Left out if there are none, as in the checkpoints of older releases.
    return f"{reading} {json.dumps(before, sort_keys=True)}" if any(before.values()) else reading


def _taught_by(teacher: TextFolder, split: texts.TextSplit) -> str:
    """Hex digits over everything that a teacher's embeddings depend on."""
    # Not over all fields of its module, as a later release may have other fields.
    about = {
        "pooling": teacher.encoder.pooling,
        "max_length": teacher.max_length,
        "prompts": _side_prompts(split, teacher),
    }
    return _digest(teacher, json.dumps(about, sort_keys=True))


def _notes(found: _Encoder, teacher: TextFolder | None) -> list[str]:
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
    found, nesting, _ = _checked(config, run)
    teacher = read_text_folder(config.pairs.teacher) if config.pairs.teacher else None
    data = _open(config)
    found = _with_vocabulary(config, found, data)
    task = _task(config, found, nesting, data.splits["train"], teacher, mesh)
    program = common.make_program(config, task, mesh, model_group=GROUP)
    train = _train_texts(config, found, data.splits["train"], teacher)
    reading = _read_as(found, data.splits["train"])
    taught_by = _taught_by(teacher, data.splits["train"]) if teacher else ""
    dataset = Texts(data, {**data.splits, "train": train}, reading, taught_by)
    evaluation, lines = _evaluation(config, task, mesh, found, data)
    lines += common.unread(find_files(config.data.path, config.data.files), config)
    note = "\n".join([data.summary(), *_notes(found, teacher), *lines])
    weights = None
    if found.folder is not None:
        # A new projection stays fresh.
        put_in = common.starting_from(program, found.folder.params)
        weights = (f"encoder from {config.text.encoder}", put_in)
    as_folder = functools.partial(found.trained, dims=task.nesting.dims)
    return Experiment(program, dataset, evaluation, weights, as_folder, found.tokenizer, note)


def planned_program(config: ConfigDict, mesh: Mesh) -> Program:
    """The program of a config, for its longest texts; nothing is compiled.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: data missing or inconsistent.
    """
    found, nesting, _ = _checked(config, None)
    data = _open(config)
    found = _with_vocabulary(config, found, data)
    teacher = read_text_folder(config.pairs.teacher) if config.pairs.teacher else None
    task = _task(config, found, nesting, data.splits["train"], teacher, mesh)
    return common.make_program(config, task, mesh, model_group=GROUP)


def _evaluation(
    config: ConfigDict, task: SentencePairs, mesh: Mesh, found: _Encoder, data: texts.TextData
) -> tuple[SentenceEvaluation, list[str]]:
    """The measurements, and lines on their data for the log."""
    e, taken = config.eval, set(named.SPLITS)
    with config_errors("eval.layers"):
        layers = check_layers(e.layers, task.encoder.layers)
    readers = {
        "sts": functools.partial(scored_pairs, columns=parse_columns(config.data.columns)),
        "retrieval": beir.load,
        "classification": labelled_folder,
        "clustering": read_labelled,
    }
    paths = {kind: named.paths(f"eval.{kind}", e[kind], taken) for kind in readers}
    sets = {
        kind: {name: read(path) for name, path in paths[kind].items()}
        for kind, read in readers.items()
    }
    alike = e.ignore_identical_ids
    for name in alike:
        if name not in sets["retrieval"]:
            raise UsageError(
                f"config.eval.ignore_identical_ids: {name} is not a set of eval.retrieval "
                f"({listed(sets['retrieval']) or 'there are none'})"
            )
    hidden = [f"{name}: no query is shown the document with its own id" for name in alike]
    evaluation = SentenceEvaluation(
        task,
        mesh,
        found.tokenizer,
        data,
        prompts=prompts.by_role(found.prompts, found.default_prompt),
        dims=common.evaluated_dims(config, task.nesting),
        batch_size=e.batch_size,
        seed=config.seed,
        **sets,
        ignore_identical_ids=alike,
        projections=e.projections,
        layers=layers,
    )
    return evaluation, [*hidden, *_unread(paths, sets)]


def _unread(paths: dict[str, dict[str, pathlib.Path]], sets: dict[str, Any]) -> list[str]:
    """A line for each set of `eval` that has columns that are not read."""
    found = {name: split.unread for name, split in sets["sts"].items()}
    found |= {name: beir.unread(path) for name, path in paths["retrieval"].items()}
    labelled = {name: [path] for name, path in paths["clustering"].items()}
    for name, path in paths["classification"].items():
        labelled[name] = itertools.chain(*find_files(str(path), ()).values())
    for name, files in labelled.items():
        columns = dict.fromkeys(column for file in files for column in first_columns(file))
        found[name] = [column for column in columns if column not in LABELLED]
    return [f"{name}: columns that are not read: {listed(c)}" for name, c in found.items() if c]


def labelled_folder(path: pathlib.Path) -> tuple[LabelledTexts, LabelledTexts]:
    """The texts and labels of a folder's train and test files.

    Raises:
      DataError: no such folder or file, or a damaged one; names the line.
    """
    files = find_files(str(path), ())
    if "test" not in files:
        raise DataError(f"{path} has no test split")
    return tuple(read_labelled(files[split][0]) for split in ("train", "test"))


def scored_pairs(path: pathlib.Path, columns: Columns | None = None) -> texts.TextSplit:
    """The pairs of a file and their scores; `columns` gives the names of its columns.

    Raises:
      DataError: none in it, or pairs without a score; names file and line.
    """
    split = texts.read_split(read_rows(path), columns or Columns())
    if split is None or split.kind != "scored":
        raise DataError(f"{path}: needs pairs with a column score (sentence1, sentence2, score)")
    return split
