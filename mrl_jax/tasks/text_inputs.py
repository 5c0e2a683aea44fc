"""What a trained text encoder reads: texts, in batches of about the same length."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from mrl_jax import extras
from mrl_jax.data.loader import put
from mrl_jax.data.text_files import SUFFIXES, read_rows
from mrl_jax.errors import DataError, UsageError, shown
from mrl_jax.models.text import SentenceEncoder, Static, prompts
from mrl_jax.runtime.rows import Embed, Rows, embedded, gathered, one_ahead
from mrl_jax.tasks import inputs

with extras.needed("text", "embedding texts"):
    from mrl_jax.interop.text_folder import TextFolder
    from mrl_jax.models.text.tokenizer import Tokenizer, pad, padded_length, text_list

# What the column with the texts of a file may be called, the first that a row has.
TEXT_COLUMNS = ("text", "caption", "sentence", "query")
# So many texts are tokenised and sorted at a time.
WINDOW = 1 << 16
# Tokens of a batch. A transformer on a CPU is fastest where a batch stays in its caches.
TOKENS_CPU, TOKENS, TOKENS_TABLE = 1024, 16384, 65536


def embedding_length(tokens: int, longest: int) -> int:
    """What a batch of texts of so many tokens and fewer is padded to.

    In steps of an eighth to a quarter: finer than in training, because here every length is only
    compiled once and not in pairs.
    """
    step = max(4, 1 << max(0, (tokens - 1).bit_length() - 3))
    return min(-(-max(tokens, 1) // step) * step, longest)


def batches(
    lengths_n: np.ndarray, longest: int, budget: int, fixed: int | None = None
) -> Iterator[tuple[np.ndarray, int]]:
    """Which texts are embedded together, the longest first: full batches but for the last.

    Args:
      lengths_n: tokens of each text.
      longest: what the model can take.
      budget: tokens of a batch, padding included.
      fixed: length T that all batches have; None: what their texts need.

    Yields:
      (rows, T): numbers of max(1, budget // T) texts or fewer, and their padded length.
    """
    order_n = np.argsort(-lengths_n, kind="stable")
    first = 0
    while first < len(order_n):
        length = fixed or embedding_length(int(lengths_n[order_n[first]]), longest)
        last = first + max(1, budget // length)
        yield order_n[first:last], length
        first = last


@dataclasses.dataclass(frozen=True)
class Inputs(inputs.Inputs):
    """Texts, with a prompt before each; see `tasks.inputs.Inputs`.

    Attributes:
      tokenizer: of the model.
      max_length: tokens, marks included, that a text is cut to.
      prompts: name -> what is put before a text.
      default_prompt: name of the prompt for texts that come without one; "" for none.
      layers: those that there are, if fewer can be run; else 0.
      table: whether the model is a table of tokens, which reads a long text in pieces.
    """

    unit: ClassVar[str] = "text"
    legal: ClassVar[str] = "an iterable of strings, or the path of a file of texts"
    reads_splits: ClassVar[bool] = False  # of tasks of text, pairs and the like
    spread: ClassVar[bool] = False  # batches have as many texts as suits their length
    tokenizer: Any = None
    max_length: int = 0
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt: str = ""
    layers: int = 0
    table: bool = False

    @classmethod
    def of_folder(cls, folder: TextFolder) -> "Inputs":
        """Those of an encoder and what belongs to it."""
        integers = np.dtype(np.int32)
        return cls(
            {"tokens": (("b", "t"), integers), "lengths": (("b",), integers)},
            most={"t": folder.max_length},
            scaled=folder.normalize,
            tokenizer=folder.tokenizer,
            max_length=folder.max_length,
            prompts=folder.prompts,
            default_prompt=folder.default_prompt,
            layers=folder.encoder.layers,
            table=isinstance(folder.encoder.backbone, Static),
        )

    @classmethod
    def of_run(cls, setup: Any, params: Any) -> "Inputs":
        """Those of a run."""
        return cls.of_folder(setup.text_folder(params))

    @classmethod
    def of_export(cls, about: Mapping[str, Any], folder: pathlib.Path) -> "Inputs":
        """Those of an exported folder, whose about.json says this."""
        path, length = folder / "tokenizer.json", about["max_length"]
        return super().of_export(
            about,
            folder,
            most={"t": length},
            scaled=about["scaled"],
            tokenizer=Tokenizer.load(path, marks=about["marks"], settings=False),
            max_length=length,
            prompts=about["named_prompts"],
            default_prompt=about["default_prompt"],
        )

    def about(self, setup: Any, form: str) -> dict[str, Any]:
        """Prompts and what is done to a text, for about.json."""
        del setup, form
        return {
            "prompts": prompts.by_role(self.prompts, self.default_prompt),
            "named_prompts": dict(self.prompts),
            "default_prompt": self.default_prompt,
            "scaled": self.scaled,
            "max_length": self.max_length,
            "marks": self.tokenizer.marks,  # special tokens around a text
        }

    def save(self, folder: pathlib.Path) -> None:
        """Writes the tokenizer beside an exported model."""
        self.tokenizer.save(folder, self.max_length)

    def example(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Two made texts, the longest there can be and one half as long."""
        longest = self.max_length
        tokens_bt = rng.integers(0, self.tokenizer.vocab_size, (2, longest)).astype(np.int32)
        lengths_b = np.array([longest, max(1, longest // 2)], np.int32)
        return {"tokens": tokens_bt, "lengths": lengths_b}

    def fits(self, items: Any) -> bool:
        """Whether these look like texts."""
        if isinstance(items, os.PathLike):
            return os.fspath(items).endswith(SUFFIXES)
        try:
            return not isinstance(items, str) and all(isinstance(text, str) for text in items)
        except TypeError:
            return False

    def listed(self, items: Any) -> tuple[Sequence[str], tuple[str, ...] | None]:
        """The texts that items are, and the names of those that may become a folder of vectors."""
        if isinstance(items, os.PathLike):
            texts = read_texts(items)
            return texts, on_one_line(texts)
        return text_list(items), None

    def open(
        self,
        items: Iterable[str] | os.PathLike,
        *,
        prompt_name: str | None = None,
        depth: int | None = None,
        batch_tokens: int | None = None,
    ) -> "Texts":
        """Checks texts; arguments as of `model.Model.embed`, and see `read_texts`.

        Raises:
          UsageError: not texts, no such prompt, layers or batches.
          DataError: a file that cannot be read.
        """
        texts, names = self.listed(items)
        if depth is not None and not self.layers:
            raise UsageError("depth: this model cannot run fewer of its layers")
        if depth is not None and not (_whole(depth) and 1 <= depth <= self.layers):
            raise UsageError(f"depth must be 1 to {self.layers}, got {shown(depth)}")
        if batch_tokens is not None and not (_whole(batch_tokens) and batch_tokens >= 1):
            raise UsageError(f"batch_tokens must be >= 1, got {shown(batch_tokens)}")
        budget = TOKENS_CPU if jax.default_backend() == "cpu" else TOKENS
        budget = batch_tokens or (TOKENS_TABLE if self.table else budget)
        name = self.default_prompt if prompt_name is None else prompt_name
        if name and name not in self.prompts:
            legal = ", ".join(self.prompts) or "none, the model has no prompts"
            raise UsageError(f"no prompt {shown(name)}; legal: {legal}")
        prompt, size = self.prompts[name] if name else "", self.spec["tokens"][0][1]
        fixed = size if isinstance(size, int) else None

        def read(first, last, *_):
            for start in range(first, last, WINDOW):
                window = [prompt + text for text in texts[start : min(start + WINDOW, last)]]
                tokens = self.tokenizer.encode(window, self.max_length)
                lengths_n = np.array([len(ids_t) for ids_t in tokens])
                for row_b, length in batches(lengths_n, self.max_length, budget, fixed):
                    # A text that is longer than the budget is a batch by itself.
                    if self.table and length > budget:
                        batch = {"long": tokens[row_b[0]]}
                    else:
                        # The last batch is made a power of two, or each size would be compiled.
                        rows = min(max(1, budget // length), 1 << (len(row_b) - 1).bit_length())
                        batch = _batch([tokens[row] for row in row_b], length, rows)
                    yield start - first + row_b, batch

        return Texts(
            len(texts),
            read,
            names=names,
            source=lambda: f"texts {_digest(texts)}",
            depth=depth,
            budget=budget,
        )


def read_texts(path: os.PathLike) -> list[str]:
    """The texts of a file: the lines of a .txt, or a column of a .jsonl, .tsv or .parquet.

    Raises:
      DataError: the file cannot be read, or a row has no text; names it.
    """
    texts = []
    for row in read_rows(pathlib.Path(path)):
        column = next((name for name in TEXT_COLUMNS if name in row.values), None)
        if column is None:
            raise DataError(f"{row.where}: needs one of the columns {', '.join(TEXT_COLUMNS)}")
        if not isinstance(row.values[column], str):
            raise DataError(
                f"{row.where}: {column} must be a text, got {shown(row.values[column])}"
            )
        texts.append(row.values[column])
    return texts


def on_one_line(texts: Iterable[str]) -> tuple[str, ...]:
    """Texts as names: without line breaks."""
    return tuple(" ".join(text.split()) for text in texts)


def _digest(texts: Sequence[str]) -> str:
    found = hashlib.sha256()
    for text in texts:
        found.update(f"{len(text)} {text}".encode())
    return found.hexdigest()[:16]


def _whole(number: Any) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def _batch(tokens: Sequence[np.ndarray], length: int, rows: int) -> dict[str, np.ndarray]:
    return dict(zip(("tokens", "lengths"), pad(tokens, length, rows), strict=True))


@dataclasses.dataclass(frozen=True)
class Texts(Rows):
    """Texts that are to be embedded by `depth` layers (None: all), `budget` tokens at a time."""

    depth: int | None = None
    budget: int = TOKENS

    def results(self, embed: Embed, *span: Any) -> Iterator[tuple[np.ndarray, Any]]:
        """What `embed` makes of each batch that `read` gives."""
        if self.depth is not None:
            embed = functools.partial(embed, depth=self.depth)

        def result(batch):
            if "long" in batch:
                return _in_pieces(embed, batch["long"], self.budget)
            return embed(batch)

        return one_ahead((row_b, result(batch)) for row_b, batch in self.read(*span))


def _in_pieces(embed: Embed, ids_t: np.ndarray, size: int) -> np.ndarray:
    """The embedding [1, D] of one text in a table that has no limit, `size` tokens at a time.

    The mean of a text is the mean of its pieces', by their lengths.
    """
    z_bd = np.zeros((1, 1))
    for first in range(0, len(ids_t), size):
        piece_t = ids_t[first : first + size]
        batch = _batch([piece_t], embedding_length(len(piece_t), size), 1)
        z_bd = z_bd + len(piece_t) / len(ids_t) * np.float64(embed(batch))
    return z_bd.astype(np.float32)


@functools.partial(jax.jit, static_argnames=("encoder", "depth"))
def _embed(encoder: SentenceEncoder, params: Any, batch: Any, depth: int | None = None):
    return encoder.apply({"params": params}, batch["tokens"], batch["lengths"], depth=depth)


def embed_of(folder: TextFolder) -> Embed:
    """What embeds a batch of `tokens` [B, T] and `lengths` [B] by an encoder, compiled once."""
    return functools.partial(_embed, folder.encoder, jax.device_put(folder.params))


def teacher_of(folder: TextFolder) -> Callable[[Iterable[str]], np.ndarray]:
    """What gives the unit embeddings [N, D] of texts, which have their prompts already."""
    embed, read = embed_of(folder), Inputs.of_folder(folder)

    def teach(texts: Iterable[str]) -> np.ndarray:
        rows = read.open(texts, prompt_name="")
        return embedded(embed, rows, folder.encoder.out_dim, 0, rows.count, normalize=True)

    return teach


def embed_texts(
    embed: Callable[[dict[str, jax.Array]], jax.Array],
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    batch_size: int,
    sharding: jax.sharding.Sharding,
) -> np.ndarray:
    """Embeddings [N, D] float32 of any texts, in their order, the same on every process.

    `embed` takes a batch of `tokens` [B, T] and `lengths` [B] to embeddings [B, D] on every device.
    """
    tokens = tokenizer.encode(list(texts), max_length)
    # The longest go first: what does not fit in memory shows at once.
    order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i]))

    def results():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            length = padded_length(len(tokens[rows[0]]), max_length)
            tokens_bt, lengths_b = pad([tokens[i] for i in rows], length, batch_size)
            yield rows, embed(put({"tokens": tokens_bt, "lengths": lengths_b}, sharding))

    return gathered(results(), len(tokens)).astype(np.float32, copy=False)
