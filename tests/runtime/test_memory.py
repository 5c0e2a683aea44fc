import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mrl_jax.errors import UsageError
from mrl_jax.runtime import memory
from mrl_jax.runtime.mesh import make_mesh


def abstract(mesh, shape, *spec, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))


def test_bytes_are_those_of_one_device():
    mesh = make_mesh(2, 2, 2)
    tree = {
        "a": abstract(mesh, (8, 10), "fsdp", "tensor"),
        "b": abstract(mesh, (8, 10), ("data", "fsdp"), dtype=jnp.bfloat16),
        "c": abstract(mesh, (3,)),
    }
    assert [memory.bytes_on_device(leaf) for leaf in tree.values()] == [80, 40, 12]
    assert memory.bytes_by_kind({"x": tree, "y": tree["c"]}) == {"x": 132, "y": 12}
    assert memory.replicated({"params": tree}) == {"params/c": 12}
    alone = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    assert memory.replicated({"params": {"c": abstract(alone, (3,))}}) == {}


def test_what_no_device_can_hold_is_refused_with_the_keys_to_change():
    mesh = make_mesh(8, 1, 1)
    limit = memory.of_device(jax.devices()[0])
    assert 2**24 < limit < 2**50
    fits = abstract(mesh, (limit // 32, 2))
    memory.check({"params": fits, "batch": abstract(mesh, (8, limit // 32), "data")}, mesh)
    large, split = abstract(mesh, (limit, 2)), abstract(mesh, (8 * limit,), "data")
    for trees, keys, others in (
        ({"params": large, "batch": fits}, ["config.model", "mesh.fsdp"], ["batch_size"]),
        ({"params": fits, "batch": split}, ["change config.batch_size"], ["config.model"]),
        ({"params": large, "batch": split}, ["config.model", "config.batch_size"], []),
    ):
        with pytest.raises(UsageError, match=r"the run does not fit: it needs .* GiB on") as error:
            memory.check(trees, mesh)
        assert all(key in str(error.value) for key in keys)
        assert not any(key in str(error.value) for key in others)


@pytest.mark.parametrize(
    ("size", "text"), [(7, "7 B"), (2**20 - 1, "1024.0 KiB"), (9017753, "8.6 MiB")]
)
def test_bytes_for_people(size, text):
    assert memory.written(size) == text


def test_a_device_that_runs_out_becomes_one_line():
    said = "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"
    line = pytest.raises(UsageError, match=r"out of memory .* 9 bytes\); change config\.batch_size")
    with line, memory.exhausted():
        raise jax.errors.JaxRuntimeError(said)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.exhausted():
        raise jax.errors.JaxRuntimeError("INTERNAL: another error")
