"""From a config to sentence embeddings: encoder, texts, loss and measurements."""

import dataclasses
import functools
import hashlib
import itertools
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mrl_jax import workdir
from mrl_jax.data import beir
from mrl_jax.data import text as texts
from mrl_jax.data.labelled_text import LABELLED, LabelledTexts, read_labelled
from mrl_jax.data.text_batches import TrainTexts
from mrl_jax.data.text_columns import Columns, parse_columns
from mrl_jax.data.text_files import SPLITS, find_files, first_columns, read_rows
from mrl_jax.data.token_cache import tokens_of, vectors_of, vocabulary_of
from mrl_jax.encoder import Encoder
from mrl_jax.errors import DataError, UsageError, listed
from mrl_jax.evaluators.sentences import SentenceEvaluation
from mrl_jax.evaluators.text_layers import check_layers
from mrl_jax.experiment import common
from mrl_jax.experiment.common import Experiment, config_errors
from mrl_jax.interop.text_folder import UNLIMITED, TextFolder, read_text_folder
from mrl_jax.models.text import Bert, SentenceEncoder, Static
from mrl_jax.nesting import Nesting, parse_dims
from mrl_jax.program import Program
from mrl_jax.tasks.sentence_pairs import NEEDS, SentencePairs
from mrl_jax.tokenization import Tokenizer

# Fresh encoders: width, layers, heads, hidden units.
FRESH = {
    "bert_tiny": (128, 2, 2, 512),
    "minilm_l6": (384, 6, 12, 1536),
    "bert_base": (768, 12, 12, 3072),
}
STATIC = "static"
MAX_LENGTH, MAX_LENGTH_TABLE = 128, 256  # of a fresh encoder, of a table that has no limit


@dataclasses.dataclass(frozen=True)
class Texts:
    """The data of a run, and how its texts become numbers.

    Attributes:
      data: all splits as texts.
      splits: "train" as batches; the others as they are.
      reading: what token ids follow from, beside the texts.
      teacher: hex digits over the weights of the model that training learns from; "" for none.
    """

    data: texts.TextData
    splits: dict[str, Any]
    reading: str
    teacher: str = ""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self.data.name

    def fingerprint(self) -> str:
        """Sixteen hex digits over all texts, what joins them, and how they are read."""
        return hashlib.sha256(f"{self.data.digest} {self.reading}".encode()).hexdigest()[:16]

    def training_fingerprint(self) -> str:
        """Sixteen hex digits over the training texts, and how they are read."""
        read = f"{self.data.splits['train'].digest} {self.reading} {self.teacher}"
        return hashlib.sha256(read.encode()).hexdigest()[:16]


class _Encoder(NamedTuple):
    """What is to be trained: the module, and the folder it comes from unless it is fresh."""

    encoder: SentenceEncoder
    tokenizer: Tokenizer | None  # None: to be made of the texts
    max_length: int
    folder: TextFolder | None = None

    def trained(self, params: Any, dims: tuple[int, ...]) -> TextFolder:
        """The encoder with trained parameters and all that belongs to it."""
        # The losses compare directions: lengths say nothing unless the folder knows better.
        whole = TextFolder(self.encoder, params, self.tokenizer, self.max_length, {}, dims, True)
        if self.folder is None:
            return whole
        kept = {name: getattr(self.folder, name) for name in ("prompts", "default_prompt")}
        return dataclasses.replace(whole, normalize=self.folder.normalize, **kept)


def tokenizer_of(config: ConfigDict, run: pathlib.Path | None) -> Tokenizer | None:
    """The tokenizer that a run started with, before its start the one that `text.tokenizer` names.

    None where there is neither: it is the encoder's, or still to be made of the texts.
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
        tokenizer = tokenizer_of(config, run)
        if t.encoder not in (STATIC, *FRESH):
            return _from_folder(config, tokenizer)
        rows = tokenizer.vocab_size if tokenizer else t.vocab_size
        pooling, length = t.pooling or "mean", t.max_length or MAX_LENGTH
        if t.encoder == STATIC:
            if not t.width:
                raise ValueError("width: a static table needs so many dims")
            if t.dropout or pooling != "mean":
                raise ValueError("a static table has no dropout and no pooling but the mean")
            return _Encoder(SentenceEncoder(Static(rows, t.width)), tokenizer, length)
        width, layers, heads, hidden = FRESH[t.encoder]
        drop = {"dropout": t.dropout, "attention_dropout": t.dropout}
        backbone = Bert(rows, width, layers, heads, hidden, **drop)
        if length > backbone.max_tokens:
            raise ValueError(f"max_length {length}: {t.encoder} has {backbone.max_tokens}")
        return _Encoder(SentenceEncoder(backbone, pooling, t.width), tokenizer, length)


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
    return _Encoder(encoder.clone(**changes), folder.tokenizer, length, folder)


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


def _checked(config: ConfigDict, run: pathlib.Path | None) -> tuple[_Encoder, Nesting]:
    """Encoder and nesting, after all that can be refused before texts are read."""
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
        if p.loss not in NEEDS:
            raise ValueError(f"loss must be one of {', '.join(NEEDS)}; got {p.loss!r}")
        if not p.score_max > 0:
            raise ValueError(f"score_max must be > 0, got {p.score_max}")
        if p.micro_batch and config.batch_size % p.micro_batch:
            raise ValueError(
                f"micro_batch {p.micro_batch} does not divide the batch_size {config.batch_size}"
            )
    with config_errors("eval.layers"):
        check_layers(config.eval.layers, found.encoder.layers)
    taken = set(SPLITS)
    for kind in ("sts", "retrieval", "classification", "clustering"):
        common.named_paths(f"eval.{kind}", config.eval[kind], taken)
    common.make_optimizer(config)
    return found, nesting


def check(config: ConfigDict) -> None:
    """What `from_config` refuses before it reads texts; raises as that."""
    _checked(config, None)


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
        if split.score_n is not None and NEEDS.get(p.loss, "score") != "score":
            raise ValueError(
                f"loss {p.loss} has no use for a score, but there is one: data.drop=label=0 would "
                "leave out the pairs of label 0, data.columns=ignore=NAME the column"
            )
        if p.loss == "cosine_mse" and np.abs(split.score_n).max() > p.score_max:
            raise ValueError(
                f"cosine_mse takes scores of -1 to 1; with score_max {p.score_max} the largest is "
                f"{np.abs(split.score_n).max() / p.score_max:g}"
            )
        return SentencePairs(
            found.encoder,
            nesting,
            tuple(split.sides) or ("anchor", "positive"),
            found.max_length,
            scored=split.score_n is not None,
            teacher_width=teacher.encoder.out_dim if teacher else 0,
            loss_name=p.loss,
            temperature=p.temperature,
            symmetric=p.symmetric,
            margin=p.margin,
            micro_batch=p.micro_batch,
            layers=p.layers,
            mesh=mesh,
        )


def _open(config: ConfigDict) -> texts.TextData:
    d = config.data
    return texts.load(d.path, files=d.files, columns=d.columns, drop=d.drop, cache=d.cache)


def _digest(folder: TextFolder, about: str) -> str:
    """Hex digits over its weights and tokenizer, and what else is said about it."""
    digest = hashlib.sha256(f"{about} {folder.tokenizer.content}".encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(folder.params):
        digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _train_texts(
    config: ConfigDict, found: _Encoder, split: texts.TextSplit, teacher: TextFolder | None
) -> TrainTexts:
    cache = config.data.cache

    def tokens():
        kept = {"cache": cache, "source": split.source, "total": len(split.texts)}
        return tokens_of(split.texts, found.tokenizer, found.max_length, **kept)

    def vectors():
        about = dataclasses.replace(teacher, params=None, tokenizer=None)
        source = f"{split.source} {_digest(teacher, str(about))}" if cache else ""
        return vectors_of(split.texts, Encoder(teacher).encode, cache=cache, source=source)

    return TrainTexts(
        split, tokens, found.max_length, config.pairs.score_max, vectors if teacher else None
    )


def from_config(config: ConfigDict, mesh: Mesh, run: pathlib.Path | None = None) -> Experiment:
    """Builds and checks an experiment; nothing is compiled yet.

    Args:
      config: of the run.
      mesh: devices.
      run: the folder of the run, for the tokenizer that it started with.

    Raises:
      UsageError: names the config key and what would be legal.
      DataError: data missing or inconsistent.
    """
    # What is wrong with the model should show before minutes are spent on reading texts.
    found, nesting = _checked(config, run)
    teacher = read_text_folder(config.pairs.teacher) if config.pairs.teacher else None
    data = _open(config)
    found = _with_vocabulary(config, found, data)
    task = _task(config, found, nesting, data.splits["train"], teacher, mesh)
    program = common.make_program(config, task, mesh, model_group="text")
    train = _train_texts(config, found, data.splits["train"], teacher)
    reading = f"{found.tokenizer.content} {found.tokenizer.marks} {found.max_length}"
    # Not all that is said about the teacher: that has another form in another release.
    taught_by = _digest(teacher, "") if teacher else ""
    dataset = Texts(data, {**data.splits, "train": train}, reading, taught_by)
    evaluation, lines = _evaluation(config, task, mesh, found.tokenizer, data)
    note = "\n".join([data.summary(), *lines])
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
    found, nesting = _checked(config, None)
    data = _open(config)
    found = _with_vocabulary(config, found, data)
    teacher = read_text_folder(config.pairs.teacher) if config.pairs.teacher else None
    task = _task(config, found, nesting, data.splits["train"], teacher, mesh)
    return common.make_program(config, task, mesh, model_group="text")


def _evaluation(
    config: ConfigDict, task: SentencePairs, mesh: Mesh, tokenizer: Tokenizer, data: texts.TextData
) -> tuple[SentenceEvaluation, list[str]]:
    """The measurements, and lines on their data for the log."""
    e, taken = config.eval, set(SPLITS)
    with config_errors("eval.layers"):
        layers = check_layers(e.layers, task.encoder.layers)
    readers = {
        "sts": functools.partial(scored_pairs, columns=parse_columns(config.data.columns)),
        "retrieval": beir.load,
        "classification": labelled_folder,
        "clustering": read_labelled,
    }
    paths = {kind: common.named_paths(f"eval.{kind}", e[kind], taken) for kind in readers}
    sets = {
        kind: {name: read(path) for name, path in paths[kind].items()}
        for kind, read in readers.items()
    }
    alike = e.ignore_identical_ids
    for name in alike:
        if name not in sets["retrieval"]:
            raise UsageError(
                f"config.eval.ignore_identical_ids: {name} is none of the sets of eval.retrieval "
                f"({listed(sets['retrieval']) or 'there is none'})"
            )
    hidden = [f"{name}: documents with the id of a query are not shown to it" for name in alike]
    evaluation = SentenceEvaluation(
        task,
        mesh,
        tokenizer,
        data,
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
    """A line for each set that is only measured and has columns that nothing reads."""
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
    """The pairs of a file and their scores; `columns` says how they are called there.

    Raises:
      DataError: none in it, or pairs without a score; names file and line.
    """
    split = texts.read_split(read_rows(path), columns or Columns())
    if split is None or split.kind != "scored":
        raise DataError(f"{path}: needs pairs with a column score (sentence1, sentence2, score)")
    return split
