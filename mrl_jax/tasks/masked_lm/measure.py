"""Measuring a masked language model at every prefix; the same code in training and offline."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mrl_jax.data.loader import padded_batches
from mrl_jax.data.masked import Sequences
from mrl_jax.evaluators.attempt import attempt
from mrl_jax.evaluators.spaces import Space, fit_spaces, unlabelled
from mrl_jax.evaluators.text_common import FITTED_ON, itself
from mrl_jax.kernels import prefix_matmul
from mrl_jax.record.finding import NO_TRAIN, Finding, Unmeasurable
from mrl_jax.record.results import Series
from mrl_jax.runtime.mesh import batch_sharding, replicated
from mrl_jax.runtime.rows import in_batches
from mrl_jax.tasks.masked_lm.task import MaskedLM

# Rows that are judged at a time: so many logits of all prefixes, which stay in a CPU's cache (a
# third of the time of 2**24), and not fewer than keep other devices busy.
_LOGITS, _ROWS = 2**20, 128


class MaskedEvaluation:
    """Predicts hidden tokens of a split, the same ones in every run.

    Metric masked_accuracy is the share of hidden tokens that get the highest logit of all;
    masked_probability the geometric mean of the probability that they get, which is one over the
    perplexity and exp(-loss).

    Args:
      splits: "train" and those that are measured.
      dims: prefixes to measure; those beyond the trained width are left out.
      batch_size: sequences per step, a multiple of what the mesh splits the batch into.
      projections: keep m coordinates of other spaces as well, as rivals of m dims: PCA of what the
        output layer reads in the train split, its own singular vectors, random ones; see
        `spaces.fit_spaces`.
    """

    def __init__(
        self,
        task: MaskedLM,
        mesh: Mesh,
        splits: dict[str, Sequences],
        *,
        dims: tuple[int, ...],
        batch_size: int,
        seed: int = 0,
        projections: bool = False,
    ):
        self._width = task.nesting.width
        self._dims = tuple(m for m in dims if m <= self._width)
        self._splits, self._batch_size, self._seed = splits, batch_size, seed
        self._projections, self._rows = projections, batch_sharding(mesh)
        self._predicted = jax.jit(task.predicted, out_shardings=replicated(mesh))
        self._layer = jax.jit(task.kernel_and_bias, out_shardings=replicated(mesh))

    def check(self, splits: tuple[str, ...]) -> dict[str, str]:
        """What cannot be measured on these data, see `Finding.skipped`."""
        del splits  # whether there is something to predict shows only when tokens are hidden
        missing = self._projections and "train" not in self._splits
        return {"projections": NO_TRAIN} if missing else {}

    def run(self, params: Any, model_state: Any, splits: tuple[str, ...]) -> Finding:
        """All that was asked for, on these splits."""
        del model_state
        kernel_dv, bias_v = (np.asarray(part) for part in jax.device_get(self._layer(params)))
        spaces, found = itself(self._width), Finding(skipped=self.check(splits))
        if self._projections and not found.skipped:
            train = self._splits["train"]
            count = max(1, FITTED_ON // train.masking.predictions)
            row_n = np.arange(0, train.examples, max(1, train.examples // count))[:count]
            moments = unlabelled(self._read(params, train, row_n)[0])
            spaces = fit_spaces(moments, kernel_dv, self._seed)
        for name in splits:
            of_split = functools.partial(self._of_split, params, name, spaces, kernel_dv, bias_v)
            attempt(found, f"{name}/masked_accuracy", of_split)
        return found

    def _of_split(
        self,
        params: Any,
        name: str,
        spaces: dict[str, Space],
        kernel_dv: np.ndarray,
        bias_v: np.ndarray,
    ) -> Finding:
        split, found = self._splits[name], Finding()
        h_nd, label_n = self._read(params, split, np.arange(split.examples))
        if not len(label_n):
            raise Unmeasurable("all tokens of the split are unknown to the tokenizer")
        for space, basis in spaces.items():
            if dims := basis.dims(self._dims):
                at = Series(split=name, space=space)
                found.add(_measured(at, basis, h_nd, label_n, kernel_dv, bias_v, dims))
        return found

    def _read(
        self, params: Any, split: Sequences, row_n: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the output layer reads for each hidden token, [N, m_G] float32, and the tokens."""
        masked = split.held_out(row_n)
        inputs = {name: masked[name] for name in ("tokens", "places")}
        batches = padded_batches(inputs, self._batch_size, self._rows)
        predicted = functools.partial(self._predicted, params)
        h_npd = in_batches(predicted, batches, len(row_n)).astype(np.float32, copy=False)
        counts_np = masked["mask"] > 0
        return h_npd[counts_np][:, : self._width], masked["labels"][counts_np]


def _measured(
    at: Series,
    space: Space,
    h_nd: np.ndarray,
    label_n: np.ndarray,
    kernel_dv: np.ndarray,
    bias_v: np.ndarray,
    dims: tuple[int, ...],
) -> Finding:
    """What the output layer says where m coordinates are kept and the mean stands for the rest."""
    found = Finding()
    kernel_ev = (space.basis_de.T @ kernel_dv).astype(np.float32)
    bias_v = (bias_v + space.mean_d @ kernel_dv).astype(np.float32)
    right_gn, loss_gn = judged(space.project(h_nd), kernel_ev, bias_v, label_n, dims)
    found.add_right(at._replace(metric="masked_accuracy"), dims, right_gn)
    for dim, loss_n in zip(dims, loss_gn.astype(np.float64), strict=True):
        n, probability = len(loss_n), math.exp(-loss_n.mean())
        error = probability * loss_n.std(ddof=min(1, n - 1)) / math.sqrt(n)
        told = at._replace(metric="masked_probability")
        found.results.append(told.result(dim, probability, error, n))
    return found


def judged(
    x_ne: np.ndarray,
    kernel_ev: np.ndarray,
    bias_v: np.ndarray,
    label_n: np.ndarray,
    dims: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """At every prefix of x, whether the label alone has the highest logit, [G, N] bool, and its
    cross-entropy in nats, [G, N] float32."""
    n = len(x_ne)
    parts = -(-n // max(_ROWS, _LOGITS // (len(dims) * len(bias_v))))
    size = -(-n // parts)  # one shape for all parts
    padding = parts * size - n
    x_ne = np.concatenate([x_ne, np.zeros((padding, x_ne.shape[1]), x_ne.dtype)])
    label_n = np.concatenate([label_n, np.zeros(padding, label_n.dtype)])
    kernel_ev, bias_v = jnp.asarray(kernel_ev), jnp.asarray(bias_v)
    found = [
        jax.device_get(_judged(x_ne[i : i + size], kernel_ev, bias_v, label_n[i : i + size], dims))
        for i in range(0, len(x_ne), size)
    ]
    right_gn, loss_gn = (np.concatenate(part, axis=1) for part in zip(*found, strict=True))
    return right_gn[:, :n], loss_gn[:, :n]


@functools.partial(jax.jit, static_argnames="dims")
def _judged(
    x_be: jax.Array,
    kernel_ev: jax.Array,
    bias_v: jax.Array,
    label_b: jax.Array,
    dims: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
    with jax.default_matmul_precision("float32"):
        logits_gbv = prefix_matmul(x_be, kernel_ev, dims)
    logits_gbv = logits_gbv + bias_v[None, None]
    label_gb1 = jnp.take_along_axis(logits_gbv, label_b[None, :, None], -1)
    # Equal logits, and those that are no numbers, are no answer.
    right_gb = (~(logits_gbv < label_gb1)).sum(-1) == 1
    return right_gb, jax.nn.logsumexp(logits_gbv, -1) - label_gb1[..., 0]
