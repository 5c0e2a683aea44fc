"""Heads and loss beside PyTorch, formulated as the reference (RAIVNLab/MRL, MRL.py) does.

Runs where torch is installed (`pip install torch`); the stack itself never needs it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mrl_jax import NestedHead, Nesting
from mrl_jax.losses import nested_cross_entropy

torch = pytest.importorskip("torch", reason="the cross-check needs torch")

NESTING = Nesting((8, 16, 64), (1.0, 0.5, 2.0))
CLASSES, BATCH, RATE = 11, 9, 0.1


class TorchHead(torch.nn.Module):
    """One nn.Linear per granularity, or (efficient) one whose weight is sliced by columns."""

    def __init__(self, efficient):
        super().__init__()
        self.efficient = efficient
        dims = (NESTING.width,) if efficient else NESTING.dims
        self.linears = torch.nn.ModuleList(torch.nn.Linear(m, CLASSES) for m in dims)

    def forward(self, z):
        if self.efficient:
            one = self.linears[0]
            return [z[:, :m] @ one.weight[:, :m].T + one.bias for m in NESTING.dims]
        return [linear(z[:, :m]) for linear, m in zip(self.linears, NESTING.dims, strict=True)]


def to_jax(head, efficient):
    """The same parameters in our layout."""
    names = [""] if efficient else [f"_{m:04d}" for m in NESTING.dims]
    params = {}
    for name, linear in zip(names, head.linears, strict=True):
        params[f"kernel{name}"] = jnp.asarray(linear.weight.detach().numpy().T.copy())
        params[f"bias{name}"] = jnp.asarray(linear.bias.detach().numpy().copy())
    return params


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("efficient", [False, True])
def test_logits_loss_and_one_sgd_step(efficient, smoothing):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(BATCH, NESTING.width)).astype(np.float32)
    labels = rng.integers(0, CLASSES, BATCH)
    theirs = TorchHead(efficient)
    ours = NestedHead(NESTING, CLASSES, "shared" if efficient else "separate")
    params = to_jax(theirs, efficient)

    z_torch = torch.tensor(z, requires_grad=True)
    logits_torch = theirs(z_torch)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    parts = [criterion(logits, torch.tensor(labels)) for logits in logits_torch]
    total = sum(c * part for c, part in zip(NESTING.weights, parts, strict=True))
    optimizer = torch.optim.SGD(theirs.parameters(), lr=RATE)
    total.backward()
    optimizer.step()

    def loss_fn(params, z):
        logits = ours.apply({"params": params}, z)
        loss, loss_g = nested_cross_entropy(
            logits, jnp.int32(labels), NESTING, label_smoothing=smoothing
        )
        return loss, (logits, loss_g)

    (loss, (logits, loss_g)), (grads, z_grad) = jax.value_and_grad(loss_fn, (0, 1), has_aux=True)(
        params, jnp.asarray(z)
    )
    sgd = optax.sgd(RATE)
    updates, _ = sgd.update(grads, sgd.init(params))
    stepped = optax.apply_updates(params, updates)

    stacked = torch.stack(logits_torch).detach().numpy()
    np.testing.assert_allclose(logits, stacked, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(loss_g, [part.item() for part in parts], rtol=1e-5)
    np.testing.assert_allclose(loss, total.item(), rtol=1e-5)
    np.testing.assert_allclose(z_grad, z_torch.grad.numpy(), rtol=1e-4, atol=1e-6)
    for name, expected in to_jax(theirs, efficient).items():
        np.testing.assert_allclose(stepped[name], expected, rtol=1e-5, atol=1e-6)
