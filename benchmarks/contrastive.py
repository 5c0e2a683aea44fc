"""Cases of contrastive learning: InfoNCE with in-batch negatives, gradients of both embeddings."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Case, Step, dims_text, jax_step, threads
from mrl_jax import Nesting
from mrl_jax.losses.lift import unit_length

TEMPERATURE = 0.05


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """One size: B pairs of embeddings of the last of `dims` many numbers."""

    batch: int
    dims: tuple[int, ...]
    floor = "jax/one-dim"

    @property
    def name(self) -> str:
        """How --cases names it."""
        return f"nce-b{self.batch}-g{len(self.dims)}"

    @property
    def title(self) -> str:
        """For people."""
        return f"Contrastive: B = {self.batch}, {dims_text(self.dims)}"


def data(setting: Contrastive) -> tuple[np.ndarray, np.ndarray]:
    """Both sides of the pairs, [B, D] float32: alike, but for noise."""
    rng = np.random.default_rng(0)
    a_bd, noise_bd = rng.standard_normal((2, setting.batch, setting.dims[-1]), np.float32)
    return a_bd, 0.5 * a_bd + noise_bd


def _info_nce(a_bd, b_bd):
    logits_bb = a_bd @ b_bd.T / TEMPERATURE
    return -jnp.diagonal(jax.nn.log_softmax(logits_bb)).mean()


def _one_dim(setting: Contrastive) -> Step:
    return jax_step(lambda a, b: _info_nce(unit_length(a), unit_length(b)), data(setting))


def _naive(setting: Contrastive) -> Step:
    def loss(a_bd, b_bd):
        return sum(
            _info_nce(unit_length(a_bd[:, :m]), unit_length(b_bd[:, :m])) for m in setting.dims
        )

    return jax_step(loss, data(setting))


def ours(setting: Contrastive) -> Step:
    """The package's loss on all dims."""
    from mrl_jax.kernels import nested_info_nce

    nesting = Nesting(setting.dims)

    def loss(a_bd, b_bd):
        return nested_info_nce(a_bd, b_bd, nesting, temperature=TEMPERATURE)[0]

    return jax_step(loss, data(setting))


def _torch_inputs(setting: Contrastive):
    import torch

    torch.set_num_threads(threads())
    return [torch.from_numpy(x).requires_grad_() for x in data(setting)]


def _backward(embeddings, loss_fn) -> Step:
    def run():
        for x in embeddings:
            x.grad = None
        loss = loss_fn()
        loss.backward()
        return loss.item()

    return Step(run)


def _torch(setting: Contrastive, dims: tuple[int, ...]) -> Step:
    a_bd, b_bd = embeddings = _torch_inputs(setting)
    import torch
    from torch.nn.functional import cross_entropy, normalize

    targets_b = torch.arange(setting.batch)

    def one(m):
        logits_bb = normalize(a_bd[:, :m]) @ normalize(b_bd[:, :m]).T / TEMPERATURE
        return cross_entropy(logits_bb, targets_b)

    return _backward(embeddings, lambda: sum(one(m) for m in dims))


def _sentence_transformers(setting: Contrastive) -> Step:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a model hub
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses

    class Given(torch.nn.Module):
        """The embeddings are given: what is timed is the loss alone."""

        def forward(self, features, **_):
            return {**features, "sentence_embedding": features["embedding"]}

        def get_embedding_dimension(self):
            return setting.dims[-1]

    embeddings = _torch_inputs(setting)
    model = SentenceTransformer(modules=[Given()], device="cpu")
    plain = losses.MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)
    loss = losses.MatryoshkaLoss(model, plain, list(setting.dims))
    return _backward(embeddings, lambda: loss([{"embedding": x} for x in embeddings], None))


def cases(setting: Contrastive) -> list[Case]:
    """All implementations, the floor first."""
    dims, width = setting.dims, setting.dims[-1]

    def case(name, computes, columns, build, *arguments):
        # One product of the forward pass has two of its size in the backward pass.
        gflop = 3 * 2e-9 * setting.batch**2 * columns
        return Case(name, computes, gflop, functools.partial(build, setting, *arguments))

    return [
        case("jax/one-dim", "one-dim", width, _one_dim),
        case("jax/naive", "nested", sum(dims), _naive),
        case("mrl_jax/nested_info_nce", "nested", width, ours),
        case("torch/one-dim", "one-dim", width, _torch, dims[-1:]),
        case("torch/naive", "nested", sum(dims), _torch, dims),
        case("sentence-transformers/matryoshka", "nested", sum(dims), _sentence_transformers),
    ]
