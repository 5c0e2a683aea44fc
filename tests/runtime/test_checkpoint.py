import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mrl_jax.errors import CheckpointError, NonFiniteError
from mrl_jax.runtime.checkpoint import Checkpoints
from mrl_jax.runtime.checksum import describe
from mrl_jax.runtime.mesh import make_mesh

FACTS = {"data": "abc"}


def state_on(mesh, step=0):
    rng = np.random.default_rng(step)
    kernel = rng.normal(size=(8, 16)).astype(np.float32)
    return {
        "params": {
            "kernel": jax.device_put(kernel, NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))),
            "half": jax.device_put(
                jnp.bfloat16(kernel[0]), NamedSharding(mesh, PartitionSpec("tensor"))
            ),
        },
        "step": jax.device_put(np.int32(step), NamedSharding(mesh, PartitionSpec())),
    }


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_bit_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture
def saved(tmp_path):
    """A folder with checkpoints of steps 1, 2 and 3, of which two are kept."""
    mesh = make_mesh(2, 2, 2)
    checkpoints = Checkpoints(tmp_path / "ckpt", keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state_on(mesh, step), FACTS)
    checkpoints.close()
    return tmp_path / "ckpt"


@pytest.mark.parametrize("sizes", [(2, 2, 2), (8, 1, 1), (1, 8, 1), (1, 1, 8), (4, 1, 2)])
def test_restores_bit_for_bit_onto_any_mesh(saved, sizes):
    wanted = state_on(make_mesh(*sizes), 3)
    state, facts = Checkpoints(saved, keep=2).restore(abstract(wanted))
    assert facts == FACTS
    assert_bit_equal(state, wanted)
    assert state["params"]["kernel"].sharding == wanted["params"]["kernel"].sharding


def test_keeps_the_newest(saved):
    assert Checkpoints(saved, keep=2).steps() == [2, 3]


def test_nothing_to_restore(tmp_path):
    state = abstract(state_on(make_mesh()))
    assert Checkpoints(tmp_path / "ckpt", keep=2).restore(state) is None


def flip_bit(path: pathlib.Path, position: int):
    content = bytearray(path.read_bytes())
    content[position // 8] ^= 1 << position % 8
    path.write_bytes(content)


# Orbax closes its event loop under reads in flight when one of them fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_flipped_bit_is_never_restored(saved, capsys):
    """Every flip in a data file either raises in Orbax or is caught by the checksum."""
    state = state_on(make_mesh(2, 2, 2), 2)
    newest = max(
        (saved / "3" / "state").rglob("d/*"), key=lambda p: p.stat().st_size
    )  # the array data
    rng = np.random.default_rng(0)
    for _ in range(20):
        position = int(rng.integers(newest.stat().st_size * 8))
        flip_bit(newest, position)
        restored, _ = Checkpoints(saved, keep=2, read_only=True).restore(abstract(state))
        # The step before, or step 3 where the flip hit bytes that carry nothing.
        expected = state_on(make_mesh(2, 2, 2), int(restored["step"]))
        assert_bit_equal(restored, expected)
        flip_bit(newest, position)
    assert "step" not in capsys.readouterr().err


def test_changed_values_fall_back_to_the_step_before(saved, capsys):
    """Values that Orbax restores without complaint but that are not those saved."""
    path = saved / "3" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    meta["arrays"]["params/kernel"]["checksum"] = "0" * 16
    path.write_text(json.dumps(meta))
    wanted = state_on(make_mesh(), 2)
    checkpoints = Checkpoints(saved, keep=2)
    state, _ = checkpoints.restore(abstract(wanted))
    assert_bit_equal(state, wanted)
    assert "3 is damaged (checksum of params/kernel differs)" in capsys.readouterr().out
    # The damaged step is out of the way and can be saved again.
    checkpoints.save(3, state_on(make_mesh(), 3), FACTS)
    checkpoints.close()
    assert Checkpoints(saved, keep=2).steps() == [2, 3]
    assert (saved.parent / "ckpt.damaged" / "3").is_dir()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_truncated_and_missing_files_fall_back(saved):
    for file in (saved / "3" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    wanted = state_on(make_mesh(), 2)
    state, _ = Checkpoints(saved, keep=2).restore(abstract(wanted))
    assert_bit_equal(state, wanted)
    (saved / "2" / "meta" / "metadata").unlink()
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged \(steps 2\)"):
        Checkpoints(saved, keep=2).restore(abstract(wanted))


def test_other_facts_are_named_before_another_model(saved):
    def refuse(facts):
        raise CheckpointError(f"other data than {facts['data']}")

    wanted = abstract(state_on(make_mesh(), 3))
    del wanted["step"]
    with pytest.raises(CheckpointError, match="other data than"):
        Checkpoints(saved, keep=2).restore(wanted, refuse)


def test_another_model_is_named_and_nothing_set_aside(saved):
    wanted = abstract(state_on(make_mesh(), 3))
    wanted["params"]["extra"] = jax.ShapeDtypeStruct((2,), jnp.float32)
    wanted["params"]["kernel"] = jax.ShapeDtypeStruct((8, 32), jnp.float32)
    wanted["params"]["half"] = jax.ShapeDtypeStruct((16,), jnp.float32)
    del wanted["step"]
    with pytest.raises(CheckpointError) as error:
        Checkpoints(saved, keep=2).restore(wanted)
    for part in (
        "params/extra is missing",
        "params/kernel is float32[8, 16], the model has float32[8, 32]",
        "params/half is bfloat16[16], the model has float32[16]",
        "step is not in the model",
    ):
        assert part in str(error.value)
    assert Checkpoints(saved, keep=2).steps() == [2, 3]


def test_non_finite_states_are_not_saved(saved):
    state = state_on(make_mesh(), 4)
    state["params"]["half"] = state["params"]["half"].at[3].set(jnp.nan)
    checkpoints = Checkpoints(saved, keep=2)
    with pytest.raises(NonFiniteError, match=r"step 4: .* params/half \(1 values\)"):
        checkpoints.save(4, state, FACTS)
    assert checkpoints.steps() == [2, 3]


def test_checksum_sees_every_bit_and_exchanged_values_and_no_mesh():
    values = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)

    def checksum(array, mesh=None, spec=None):
        array = array if mesh is None else jax.device_put(array, NamedSharding(mesh, spec))
        return describe({"x": jnp.asarray(array)})["x"]["checksum"]

    original = checksum(values)
    for mesh, spec in (
        (make_mesh(2, 2, 2), PartitionSpec("data", "fsdp")),
        (make_mesh(4, 1, 2), PartitionSpec("data", "tensor")),
    ):
        assert checksum(values, mesh, spec) == original
    seen = {original}
    for bit in range(32):
        changed = values.copy()
        changed.view(np.uint32)[1, 2] ^= np.uint32(1 << bit)
        seen.add(checksum(changed))
    assert len(seen) == 33
    exchanged = values.copy()
    exchanged[0, 0], exchanged[3, 5] = values[3, 5], values[0, 0]
    assert checksum(exchanged) != original
    assert checksum(values.T) != original


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int32", "int8", "uint8", "bool"])
def test_checksum_of_other_types(dtype):
    zeros = jnp.zeros((3, 5), dtype)
    one = zeros.at[2, 4].set(jnp.ones((), dtype))
    found = [describe({"x": x})["x"]["checksum"] for x in (zeros, one, zeros)]
    assert found[0] == found[2] != found[1]
