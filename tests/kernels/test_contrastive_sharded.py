import functools
import re
import sys

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax import Nesting
from mrl_jax.kernels import nested_info_nce, nested_sigmoid_loss
from mrl_jax.runtime.mesh import batch_sharding, make_mesh

NESTING = Nesting((3, 8, 20), (1.0, 0.5, 3.0))
BATCH, EXTRA = 40, 5
MESHES = {"8x1": {"data": 8}, "4x2": {"data": 4, "fsdp": 2}}


def info_nce(arrays, **options):
    return nested_info_nce(nesting=NESTING, symmetric=True, **arrays, **options)


def sigmoid(arrays, **options):
    return nested_sigmoid_loss(nesting=NESTING, bias=-2.0, **arrays, **options)


def problem():
    rng = np.random.default_rng(0)
    a_bd = rng.normal(size=(BATCH, 20)).astype(np.float32)
    b_bd = 0.5 * a_bd + rng.normal(size=a_bd.shape).astype(np.float32)
    extra = rng.normal(size=(EXTRA, 20)).astype(np.float32)
    return {"a_bd": a_bd, "b_bd": b_bd, "extra_negatives": extra, "temperature": np.float32(0.1)}


def placed(arrays, mesh):
    split = {name: jax.device_put(arrays[name], batch_sharding(mesh)) for name in ("a_bd", "b_bd")}
    return arrays | split


def value_and_grad(function, **options):
    return jax.jit(jax.value_and_grad(lambda arrays: function(arrays, **options), has_aux=True))


@functools.cache
def on_one_device(function, mask):
    return value_and_grad(function, mask=masks(mask))(problem())


def masks(kind):
    rng = np.random.default_rng(3)
    if kind == "rows":
        return rng.random(BATCH) < 0.8
    return rng.random((BATCH, BATCH + EXTRA)) < 0.8


def close(found, expected):
    for f, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        e = np.asarray(e)
        np.testing.assert_allclose(f, e, rtol=0, atol=1e-6 * max(np.abs(e).max(), 1))


# Both masks by default, one per loss: which logits exist does not depend on what is summed.
@pytest.mark.parametrize(
    ("shape", "function", "mask"),
    [
        ("4x2", info_nce, "pairs"),
        ("4x2", sigmoid, "rows"),
        pytest.param("4x2", info_nce, "rows", marks=pytest.mark.slow),
        pytest.param("4x2", sigmoid, "pairs", marks=pytest.mark.slow),
        *(
            pytest.param("8x1", function, mask, marks=pytest.mark.slow)
            for function in (info_nce, sigmoid)
            for mask in ("rows", "pairs")
        ),
    ],
)
def test_every_row_of_every_device_is_a_negative(shape, function, mask):
    mesh = make_mesh(**MESHES[shape])
    found = value_and_grad(function, mask=masks(mask), mesh=mesh)(placed(problem(), mesh))
    close(found, on_one_device(function, mask))
    assert found[1]["b_bd"].sharding.spec == batch_sharding(mesh).spec


@pytest.mark.parametrize(("function", "mask"), [(info_nce, "pairs"), (sigmoid, "rows")])
def test_sharded_arrays_without_a_mesh_are_right_too(function, mask):
    arrays = placed(problem(), make_mesh(**MESHES["4x2"]))
    found = value_and_grad(function, mask=masks(mask))(arrays)
    close(found, on_one_device(function, mask))


@pytest.mark.slow
def test_gradients_of_single_values_on_a_mesh():
    mesh = make_mesh(**MESHES["4x2"])
    arrays, weights_g = problem(), jnp.array([2.0, 0.0, 1.0])

    def gradient(arrays, **options):
        return jax.jit(jax.grad(lambda x: (weights_g * info_nce(x, **options)[1]).sum()))(arrays)

    close(gradient(placed(arrays, mesh), mesh=mesh), gradient(arrays))


def test_no_device_holds_more_than_its_rows_of_the_similarities():
    mesh, batch, dims = make_mesh(**MESHES["4x2"]), 512, (4, 8)
    x_bd = jax.device_put(np.ones((batch, 8), np.float32), batch_sharding(mesh))

    def loss(a_bd, b_bd):
        return nested_info_nce(a_bd, b_bd, Nesting(dims), temperature=0.1, mesh=mesh)[0]

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x_bd, x_bd).compile()
    shapes = [
        tuple(map(int, found.split(",")))
        for found in re.findall(r"\b[a-z]+[0-9]+\[([0-9,]+)\]", compiled.as_text())
    ]
    of_pairs = [shape for shape in shapes if batch in shape]
    assert (batch // 8, batch) in of_pairs
    assert max(map(np.prod, of_pairs)) <= len(dims) * batch * batch // 8
    assert not any(shape.count(batch) > 1 for shape in shapes)
    assert "reduce-scatter" in compiled.as_text()


def test_bad_meshes_are_refused():
    mesh, arrays = make_mesh(data=8), problem()
    with pytest.raises(ValueError, match="mesh axis must be one of data, fsdp, tensor; got 'rows'"):
        info_nce(arrays, mesh=mesh, batch_axes=("rows",))
    arrays = arrays | {name: arrays[name][:39] for name in ("a_bd", "b_bd")}
    with pytest.raises(ValueError, match="a batch of 39 does not divide over 8 devices"):
        info_nce(arrays, mesh=mesh)
    with pytest.raises(ValueError, match="'pallas' works on one device"):
        jax.eval_shape(functools.partial(info_nce, mesh=mesh, implementation="pallas"), problem())


@pytest.mark.slow
def test_losses_of_two_processes(tmp_path):
    """Two real processes with half of the batch each, two devices each; and cross-entropy."""
    program = [sys.executable, commands.ROOT / "tests/kernels/two_processes.py"]
    launcher = [sys.executable, "launch/local.py", "--processes", "2", "--devices_per_process", "2"]
    paths = [tmp_path / "one.npz", tmp_path / "two.npz"]
    commands.succeed([*program, paths[0]])
    commands.succeed([*launcher, "--", *program, paths[1]])
    one, two = (list(np.load(path).values()) for path in paths)
    assert len(one) == 3 * 7  # values, and gradients of six arrays
    for f, e in zip(two, one, strict=True):
        np.testing.assert_allclose(f, e, rtol=0, atol=1e-6 * max(np.abs(e).max(), 1))
