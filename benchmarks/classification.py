"""Cases of classification: heads and cross-entropy, gradients of embeddings and parameters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Case, Step, dims_text, jax_step, threads
from mrl_jax import NestedHead, Nesting
from mrl_jax.kernels import nested_linear_cross_entropy
from mrl_jax.losses import nested_cross_entropy


@dataclasses.dataclass(frozen=True)
class Classification:
    """One size: B rows of the last of `dims` many numbers, C classes."""

    batch: int
    classes: int
    dims: tuple[int, ...] = tuple(2**k for k in range(3, 12))
    floor = "jax/dense"

    @property
    def name(self) -> str:
        """How --cases names it."""
        return f"ce-b{self.batch}-c{self.classes}-g{len(self.dims)}"

    @property
    def title(self) -> str:
        """For people."""
        return f"Classification: B = {self.batch}, C = {self.classes}, {dims_text(self.dims)}"


def _data(setting: Classification):
    rng = np.random.default_rng(0)

    def uniform(m):
        shape = (m, setting.classes)
        return rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(m))

    z_bd = rng.standard_normal((setting.batch, setting.dims[-1]), np.float32)
    labels_b = rng.integers(0, setting.classes, setting.batch).astype(np.int32)
    return z_bd, [uniform(m) for m in setting.dims], np.zeros(setting.classes, np.float32), labels_b


def _cross_entropy(logits_bc, labels_b):
    log_probabilities_bc = jax.nn.log_softmax(logits_bc)
    return -jnp.take_along_axis(log_probabilities_bc, labels_b[:, None], axis=-1).mean()


def _dense(setting: Classification) -> Step:
    z_bd, kernels, bias_c, labels_b = _data(setting)

    def loss(z_bd, kernel_dc, bias_c, labels_b):
        return _cross_entropy(z_bd @ kernel_dc + bias_c[None], labels_b)

    return jax_step(loss, (z_bd, kernels[-1], bias_c), (labels_b,))


def _naive(setting: Classification, kind: str) -> Step:
    z_bd, kernels, bias_c, labels_b = _data(setting)

    def separate(z_bd, kernels, biases, labels_b):
        return sum(
            _cross_entropy(z_bd[:, :m] @ kernel_mc + bias_c[None], labels_b)
            for m, kernel_mc, bias_c in zip(setting.dims, kernels, biases, strict=True)
        )

    def shared(z_bd, kernel_dc, bias_c, labels_b):
        return sum(
            _cross_entropy(z_bd[:, :m] @ kernel_dc[:m] + bias_c[None], labels_b)
            for m in setting.dims
        )

    if kind == "shared":
        return jax_step(shared, (z_bd, kernels[-1], bias_c), (labels_b,))
    return jax_step(separate, (z_bd, kernels, [bias_c] * len(kernels)), (labels_b,))


def _head(setting: Classification, kind: str) -> Step:
    z_bd, kernels, bias_c, labels_b = _data(setting)
    nesting = Nesting(setting.dims)
    head = NestedHead(nesting, setting.classes, kind)
    if kind == "shared":
        params = {"kernel": kernels[-1], "bias": bias_c}
    else:
        params = {f"kernel_{m:04d}": k for m, k in zip(setting.dims, kernels, strict=True)}
        params |= {f"bias_{m:04d}": bias_c for m in setting.dims}

    def loss(z_bd, params, labels_b):
        return nested_cross_entropy(head.apply({"params": params}, z_bd), labels_b, nesting)[0]

    return jax_step(loss, (z_bd, params), (labels_b,))


def _fused(setting: Classification, kind: str, form: str) -> Step:
    z_bd, kernels, bias_c, labels_b = _data(setting)
    nesting = Nesting(setting.dims)

    def loss(z_bd, kernel, bias, labels_b):
        return nested_linear_cross_entropy(z_bd, kernel, bias, labels_b, nesting, form=form)[0]

    if kind == "shared":
        return jax_step(loss, (z_bd, kernels[-1], bias_c), (labels_b,))
    return jax_step(loss, (z_bd, kernels, [bias_c] * len(kernels)), (labels_b,))


def _torch(setting: Classification, kind: str) -> Step:
    import torch

    torch.set_num_threads(threads())
    z_bd, kernels, _, labels_b = _data(setting)
    z_bd = torch.from_numpy(z_bd).requires_grad_()
    labels_b = torch.from_numpy(labels_b).long()
    dims = setting.dims if kind == "separate" else setting.dims[-1:]
    linears = torch.nn.ModuleList(torch.nn.Linear(m, setting.classes) for m in dims)
    with torch.no_grad():
        for linear, kernel_mc in zip(linears, kernels[-len(dims) :], strict=True):
            linear.weight.copy_(torch.from_numpy(kernel_mc.T))
            linear.bias.zero_()

    def logits():
        if kind == "shared":
            (one,) = linears
            for m in setting.dims:
                yield torch.nn.functional.linear(z_bd[:, :m], one.weight[:, :m], one.bias)
        else:
            for m, linear in zip(dims, linears, strict=True):
                yield linear(z_bd[:, :m])

    def run():
        z_bd.grad = None
        linears.zero_grad(set_to_none=True)
        loss = sum(torch.nn.functional.cross_entropy(x_bc, labels_b) for x_bc in logits())
        loss.backward()
        return loss.item()

    return Step(run)


def cases(setting: Classification) -> list[Case]:
    """All implementations, the floor first."""
    once, each = setting.dims[-1], sum(setting.dims)

    def case(name, computes, width, build, *arguments):
        # One product of the forward pass has two of its size in the backward pass.
        gflop = 3 * 2e-9 * setting.batch * setting.classes * width
        return Case(name, computes, gflop, functools.partial(build, setting, *arguments))

    fused = [
        case(f"mrl_jax/fused-{kind}-{form}", kind, width, _fused, kind, form)
        for kind, width in (("separate", each), ("shared", once))
        for form in ("blockwise", "streamed")
    ]
    return [
        case("jax/dense", "dense", once, _dense),
        case("jax/naive-separate", "separate", each, _naive, "separate"),
        case("jax/naive-shared", "shared", each, _naive, "shared"),
        case("mrl_jax/head-separate", "separate", each, _head, "separate"),
        case("mrl_jax/head-shared", "shared", once, _head, "shared"),
        *fused,
        case("torch/dense", "dense", once, _torch, "dense"),
        case("torch/separate", "separate", each, _torch, "separate"),
        case("torch/shared", "shared", each, _torch, "shared"),
    ]
