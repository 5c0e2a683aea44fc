"""Text in, embeddings out: a trained sentence encoder at any of its prefixes and depths."""

import functools
import operator
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from mrl_jax import extras
from mrl_jax.errors import NonFiniteError, UsageError, shown
from mrl_jax.models.text import SentenceEncoder, Static
from mrl_jax.runtime.forks import check_not_forked

with extras.needed("text", "encoding texts"):
    from mrl_jax.interop.text_folder import TextFolder, read_text_folder
    from mrl_jax.models.text.tokenizer import pad, text_list

# So many texts are tokenised and sorted at a time.
WINDOW = 1 << 16
# Tokens of a batch. A transformer on a CPU is fastest where a batch stays in its caches.
TOKENS_CPU, TOKENS, TOKENS_TABLE = 1024, 16384, 65536


def encoding_length(tokens: int, longest: int) -> int:
    """What a batch of texts of so many tokens and fewer is padded to.

    In steps of an eighth to a quarter: finer than in training, because here every length is only
    compiled once and not in pairs.
    """
    step = max(4, 1 << max(0, (tokens - 1).bit_length() - 3))
    return min(-(-max(tokens, 1) // step) * step, longest)


def batches(lengths_n: np.ndarray, longest: int, budget: int) -> Iterator[tuple[np.ndarray, int]]:
    """Which texts are embedded together, the longest first: full batches but for the last.

    Args:
      lengths_n: tokens of each text.
      longest: what the model can take.
      budget: tokens of a batch, padding included.

    Yields:
      (rows, T): numbers of texts, at most max(1, budget // T) of them, and the padded length.
    """
    order_n = np.argsort(-lengths_n, kind="stable")
    first = 0
    while first < len(order_n):
        length = encoding_length(int(lengths_n[order_n[first]]), longest)
        last = first + max(1, budget // length)
        yield order_n[first:last], length
        first = last


@functools.partial(jax.jit, static_argnames=("encoder", "depth"))
def _embed(encoder: SentenceEncoder, params: Any, tokens_bt, lengths_b, depth):
    return encoder.apply({"params": params}, tokens_bt, lengths_b, depth=depth)


class Encoder:
    """A text encoder with its weights on a device.

    Attributes:
      folder: what it was made from.
    """

    def __init__(self, folder: TextFolder):
        check_not_forked()
        self.folder = folder
        self._params = jax.device_put(folder.params)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Encoder":
        """Reads a folder of transformers or sentence-transformers; see `read_text_folder`."""
        return cls(read_text_folder(path))

    @property
    def out_dim(self) -> int:
        """Dims of a whole embedding."""
        return self.folder.encoder.out_dim

    @property
    def layers(self) -> int:
        """Layers that there are; `encode` can run fewer."""
        return self.folder.encoder.layers

    def encode(
        self,
        texts: Iterable[str],
        dim: int | None = None,
        normalize: bool = True,
        *,
        prompt_name: str | None = None,
        depth: int | None = None,
        batch_tokens: int | None = None,
    ) -> np.ndarray:
        """The embeddings [N, dim] float32 of N texts, in their order.

        Args:
          texts: any iterable, read once; texts are cut at the folder's `max_length`.
          dim: length of the prefix; None: the folder's `truncate_dim`, or all dims.
          normalize: scale to unit length, after cutting; zeros stay zeros. False: only cut; if the
            folder has a Normalize module, embeddings are scaled before they are cut.
          prompt_name: which of the folder's prompts is put before each text; None: its default,
            if it has one; "": none.
          depth: layers to run; None: all.
          batch_tokens: of a batch, padding included; None: what suits the device. A longer text
            is a batch by itself, and a table of tokens reads it in pieces.

        Raises:
          UsageError: not texts, no such prompt, dims, layers or batches; or this is a fork of a
            process that used JAX.
          DataError: text that is not Unicode.
          NonFiniteError: NaN or infinity; names the text.

        Warns:
          UserWarning: a prefix that was not trained, where the folder knows which were.
        """
        check_not_forked()
        texts = text_list(texts)
        folder = self.folder
        dim = self._dim(dim)
        if depth is not None and not 1 <= depth <= self.layers:
            raise UsageError(f"depth must be 1 to {self.layers}, got {depth}")
        if batch_tokens is not None and batch_tokens < 1:
            raise UsageError(f"batch_tokens must be >= 1, got {batch_tokens}")
        prompt = self._prompt(prompt_name)
        z_nd = np.empty((len(texts), dim), np.float32)
        # A bar for what takes long, on a terminal.
        with tqdm(desc="encoding", total=len(texts), unit="text", disable=None, delay=2) as bar:
            for first in range(0, len(texts), WINDOW):
                window = [prompt + text for text in texts[first : first + WINDOW]]
                tokens = folder.tokenizer.encode(window, folder.max_length)
                for rows, z_bd in self._run(tokens, depth, batch_tokens or self._budget()):
                    z_bd = z_bd[: len(rows)]
                    # A folder that scales its embeddings does so before they are cut.
                    if folder.normalize and not normalize:
                        z_bd = unit_length(z_bd)
                    z_nd[first + rows] = _finite(z_bd[:, :dim], first + rows)
                    bar.update(len(rows))
        return unit_length(z_nd) if normalize else z_nd

    def _run(
        self, tokens: list[np.ndarray], depth: int | None, budget: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows, embeddings) of each batch; one is computed while the one before is used."""
        lengths_n = np.array([len(ids_t) for ids_t in tokens])
        waiting = None
        is_table = isinstance(self.folder.encoder.backbone, Static)
        for rows, length in batches(lengths_n, self.folder.max_length, budget):
            if is_table and length > budget:
                yield rows, self._in_pieces(tokens[rows[0]], budget)
                continue
            full = max(1, budget // length)
            # The last batch is made a power of two, or each size would be compiled.
            size = min(full, 1 << (len(rows) - 1).bit_length())
            batch = pad([tokens[row] for row in rows], length, size)
            z_bd = _embed(self.folder.encoder, self._params, *batch, depth)
            if waiting is not None:
                yield waiting[0], np.asarray(waiting[1])
            waiting = rows, z_bd
        if waiting is not None:
            yield waiting[0], np.asarray(waiting[1])

    def _in_pieces(self, ids_t: np.ndarray, budget: int) -> np.ndarray:
        """The embedding [1, D] of one text in a table that has no limit, `budget` tokens at a time.

        The mean of a text is the mean of its pieces', by their lengths.
        """
        z_bd = np.zeros((1, self.out_dim))
        for first in range(0, len(ids_t), budget):
            piece_t = ids_t[first : first + budget]
            batch = pad([piece_t], encoding_length(len(piece_t), budget), 1)
            share = len(piece_t) / len(ids_t)
            z_bd += share * np.float64(_embed(self.folder.encoder, self._params, *batch, None))
        return z_bd.astype(np.float32)

    def _budget(self) -> int:
        if isinstance(self.folder.encoder.backbone, Static):
            return TOKENS_TABLE
        return TOKENS_CPU if jax.default_backend() == "cpu" else TOKENS

    def _dim(self, dim: int | None) -> int:
        width, trained = self.out_dim, self.folder.trained_dims
        if dim is None:
            return self.folder.truncate_dim or width
        try:
            legal = not isinstance(dim, bool) and 1 <= operator.index(dim) <= width
        except TypeError:
            legal = False
        if not legal:
            raise UsageError(f"dim must be 1 to {width}, got {shown(dim)}")
        if trained and dim not in trained:
            warnings.warn(
                f"a prefix of {dim} dims was not trained, {', '.join(map(str, trained))} were",
                stacklevel=3,
            )
        return int(dim)

    def _prompt(self, name: str | None) -> str:
        prompts = self.folder.prompts
        name = self.folder.default_prompt if name is None else name
        if name and name not in prompts:
            legal = ", ".join(prompts) or "none, the folder has no prompts"
            raise UsageError(f"no prompt {shown(name)}; legal: {legal}")
        return prompts[name] if name else ""


def unit_length(z_nd: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, float32; a row of zeros stays one."""
    # In float64 no square overflows, and none but that of 0 is 0.
    norm_n1 = np.linalg.norm(z_nd.astype(np.float64), axis=1, keepdims=True)
    return (z_nd / np.where(norm_n1 > 0, norm_n1, 1)).astype(np.float32)


def _finite(z_bd: np.ndarray, rows: np.ndarray) -> np.ndarray:
    bad = ~np.isfinite(z_bd).all(1)
    if bad.any():
        raise NonFiniteError(f"the embedding of text {rows[bad].min()} holds NaN or infinity")
    return z_bd
