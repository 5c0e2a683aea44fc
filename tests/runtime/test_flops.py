import jax
import jax.numpy as jnp
import numpy as np

from mrl_jax.models.convolution import convolve
from mrl_jax.runtime import flops
from mrl_jax.runtime.mesh import make_mesh


def count(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return flops.count(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_products_and_their_gradients():
    assert count(lambda x, w: x @ w, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    grad = jax.grad(lambda w, x: jnp.sum((x @ w) ** 2))
    assert count(grad, (5, 7), (3, 5)) == 2 * 2 * 3 * 5 * 7
    batched = "bij,bjk->bik"
    assert count(lambda x, y: jnp.einsum(batched, x, y), (4, 3, 5), (4, 5, 7)) == 4 * 2 * 3 * 5 * 7


def test_loops_count_as_often_as_they_run():
    def looped(x, w):
        return jax.lax.scan(lambda carry, _: (carry @ w, None), x, length=6)[0]

    assert count(looped, (3, 5), (5, 5)) == 6 * 2 * 3 * 5 * 5
    again = jax.grad(lambda x, w: jax.checkpoint(looped)(x, w).sum())
    # Forward again, and back to x; nobody reads the value itself.
    assert count(again, (3, 5), (5, 5)) == 6 * 2 * 3 * 5 * 5
    until = jax.lax.while_loop
    assert np.isnan(count(lambda x: until(lambda y: y[0, 0] < 9, lambda y: y @ y, x), (5, 5)))


def test_convolutions_and_their_gradients():
    for stride in (1, 2):
        forward = 2 * 8 * (16 // stride) ** 2 * 64 * 9 * 32

        def loss(x, kernel, stride=stride):
            return convolve(x, kernel, (stride, stride), ((1, 1), (1, 1))).sum()

        shapes = (8, 16, 16, 32), (3, 3, 32, 64)
        assert count(loss, *shapes) == forward
        assert count(jax.value_and_grad(loss, argnums=(0, 1)), *shapes) == 3 * forward


def test_what_every_device_computes_by_itself_counts_on_all():
    mesh = make_mesh(4, 1, 2)
    rows = jax.sharding.PartitionSpec("data")

    def function(x, w):
        return jax.shard_map(
            lambda x, w: x @ w,
            mesh=mesh,
            in_specs=(rows, jax.sharding.PartitionSpec()),
            out_specs=rows,
            axis_names={"data"},
        )(x, w)

    assert count(jax.jit(function), (8, 5), (5, 7)) == 2 * 8 * 5 * 7
