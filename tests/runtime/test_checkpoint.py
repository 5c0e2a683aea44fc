import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mrl_jax.errors import CheckpointError, NonFiniteError
from mrl_jax.runtime.checkpoint import Checkpoints, _checksum
from mrl_jax.runtime.checksum import describe
from mrl_jax.runtime.mesh import make_mesh

FACTS = {"data": "abc"}


def any_facts(facts):
    """Facts of this run, whatever they are."""


def state_on(mesh, step=0):
    rng = np.random.default_rng(step)
    kernel = rng.normal(size=(8, 16)).astype(np.float32)
    return {
        "params": {
            "kernel": jax.device_put(kernel, NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))),
            "half": jax.device_put(
                kernel[0].astype(jnp.bfloat16), NamedSharding(mesh, PartitionSpec("tensor"))
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


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    mesh = make_mesh(2, 2, 2)
    folder = tmp_path_factory.mktemp("written") / "ckpt"
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state_on(mesh, step), FACTS)
    checkpoints.close()
    return folder


@pytest.fixture
def saved(written, tmp_path):
    """A folder with checkpoints of steps 1, 2 and 3, of which two are kept."""
    return shutil.copytree(written, tmp_path / "ckpt")


@pytest.mark.parametrize("sizes", [(2, 2, 2), (8, 1, 1), (1, 8, 1), (1, 1, 8), (4, 1, 2)])
def test_restores_bit_for_bit_onto_any_mesh(saved, sizes):
    wanted = state_on(make_mesh(*sizes), 3)
    state, facts = Checkpoints(saved, keep=2).restore(abstract(wanted), any_facts)
    assert facts == FACTS
    assert_bit_equal(state, wanted)
    assert state["params"]["kernel"].sharding == wanted["params"]["kernel"].sharding


def test_keeps_the_newest(saved):
    assert Checkpoints(saved, keep=2).steps() == [2, 3]


def test_nothing_to_restore(tmp_path):
    state = abstract(state_on(make_mesh()))
    assert Checkpoints(tmp_path / "ckpt", keep=2).restore(state, any_facts) is None


def flip_bit(path: pathlib.Path, position: int):
    content = bytearray(path.read_bytes())
    content[position // 8] ^= 1 << position % 8
    path.write_bytes(content)


def files_of(folder: pathlib.Path):
    return sorted(path for path in folder.rglob("*") if path.is_file())


# Orbax closes its event loop under reads in flight when one of them fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_flipped_bit_in_any_file_is_never_restored(saved):
    """Arrays, Orbax's metadata, our description: what is read is whole, or the step before."""
    state = state_on(make_mesh(2, 2, 2), 2)
    rng = np.random.default_rng(0)
    for file in files_of(saved / "3"):
        content = file.read_bytes()
        flips = 8 if file.parent.name in ("d", "meta") and len(content) > 100 else 2
        for position in rng.integers(len(content) * 8, size=flips):
            flip_bit(file, int(position))
            restored, facts = Checkpoints(saved, keep=2).restore(abstract(state), any_facts)
            file_was_set_aside = not file.exists()
            # The step before, or step 3 where the flip hit bytes that carry nothing.
            step = int(restored["step"])
            assert step == (2 if file_was_set_aside else 3), file
            assert facts == FACTS
            assert_bit_equal(restored, state_on(make_mesh(2, 2, 2), step))
            if file_was_set_aside:
                (saved.parent / "ckpt.damaged" / "3").rename(saved / "3")
            file.write_bytes(content)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"checksum":', '"chacksum":'),  # of an array, where it comes first
        ("params/kernel", "params/kernem"),
        ("float32", "float22"),
        ('"non_finite"', '"non_fanite"'),
        ('"abc"', '"abb"'),
        ('"schema": 2', '"schema": 3'),
        ('"step": 3', '"step": 2'),
    ],
)
def test_a_changed_description_is_damage_and_not_another_model(saved, old, new, capsys):
    path = saved / "3" / "meta" / "metadata"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    wanted = state_on(make_mesh(), 2)
    state, _ = Checkpoints(saved, keep=2).restore(abstract(wanted), any_facts)
    assert_bit_equal(state, wanted)
    assert "3 is damaged (its description is unreadable); it is moved" in capsys.readouterr().out


def test_checkpoints_of_the_first_schema_and_of_newer_ones(saved):
    path = saved / "3" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    del meta["checksum"]
    path.write_text(json.dumps({**meta, "schema": 1}))
    wanted = state_on(make_mesh(), 3)
    state, _ = Checkpoints(saved, keep=2).restore(abstract(wanted), any_facts)
    assert_bit_equal(state, wanted)
    newer = {**meta, "schema": 3}
    path.write_text(json.dumps({**newer, "checksum": _checksum(newer)}))
    with pytest.raises(CheckpointError, match=r"3 was written by a newer release \(schema 3; this"):
        Checkpoints(saved, keep=2).restore(abstract(wanted), any_facts)
    assert Checkpoints(saved, keep=2).steps() == [2, 3]


def damage(folder: pathlib.Path):
    """Cuts all arrays of a step in half."""
    for file in files_of(folder / "state"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_step_is_set_aside_and_can_be_saved_again(saved):
    damage(saved / "3")
    wanted = state_on(make_mesh(), 2)
    checkpoints = Checkpoints(saved, keep=2)
    state, _ = checkpoints.restore(abstract(wanted), any_facts)
    assert_bit_equal(state, wanted)
    assert (saved.parent / "ckpt.damaged" / "3").is_dir()
    checkpoints.save(3, state_on(make_mesh(), 3), FACTS)
    checkpoints.close()
    assert Checkpoints(saved, keep=2).steps() == [2, 3]


def test_a_step_under_the_name_of_another_is_damage(saved, capsys):
    shutil.rmtree(saved / "3")
    shutil.copytree(saved / "2", saved / "3")
    wanted = state_on(make_mesh(), 2)
    state, _ = Checkpoints(saved, keep=2).restore(abstract(wanted), any_facts)
    assert_bit_equal(state, wanted)
    assert "3 is damaged (its description is unreadable)" in capsys.readouterr().out


def test_values_that_orbax_restores_but_that_were_not_saved(saved, capsys):
    path = saved / "3" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    meta["arrays"]["params/kernel"]["checksum"] = "0" * 16
    path.write_text(json.dumps({**meta, "checksum": _checksum(meta)}))
    wanted = state_on(make_mesh(), 2)
    state, _ = Checkpoints(saved, keep=2).restore(abstract(wanted), any_facts)
    assert_bit_equal(state, wanted)
    assert "3 is damaged (checksum of params/kernel differs)" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_where_all_are_damaged_no_run_starts_over_until_a_person_acts(saved):
    damage(saved / "3")
    (saved / "2" / "meta" / "metadata").unlink()
    wanted = abstract(state_on(make_mesh(), 2))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"every checkpoint .* is damaged \(steps 2, 3"):
            Checkpoints(saved, keep=2).restore(wanted, any_facts)
    assert Checkpoints(saved, keep=2).steps() == [2, 3]
    # As an older release left them.
    saved.rename(saved.parent / "ckpt.damaged")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"is empty, and the .* damaged \(steps 2, 3\)"):
            Checkpoints(saved, keep=2).restore(wanted, any_facts)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_readers_take_an_older_step_only_when_asked(saved):
    damage(saved / "3")
    wanted = state_on(make_mesh(), 2)
    checkpoints = Checkpoints(saved, keep=2, read_only=True)
    with pytest.raises(CheckpointError, match=r"3 is damaged .*; step 2 is intact .* --step 2"):
        checkpoints.read(abstract(wanted), any_facts)
    assert_bit_equal(checkpoints.read(abstract(wanted), any_facts, step=2)[0], wanted)
    with pytest.raises(CheckpointError, match=r"ckpt.3: "):
        checkpoints.read(abstract(wanted), any_facts, step=3)
    with pytest.raises(CheckpointError, match=r"holds no step 1 \(there: 2, 3\)"):
        checkpoints.read(abstract(wanted), any_facts, step=1)
    assert Checkpoints(saved, keep=2).steps() == [2, 3]


def test_a_reader_goes_on_with_what_a_trainer_has_written_meanwhile(saved):
    trainer = Checkpoints(saved, keep=1)
    reader = Checkpoints(saved, keep=1, read_only=True)

    def while_it_reads(facts):
        """With every look of the reader the step under its eyes is replaced, up to step 6."""
        assert facts == FACTS
        newest = trainer.steps()[-1]
        if newest < 6:
            trainer.save(newest + 1, state_on(make_mesh(), newest + 1), FACTS)
            trainer.wait()

    wanted = state_on(make_mesh(), 6)
    state, _ = reader.read(abstract(wanted), while_it_reads)
    assert_bit_equal(state, wanted)


def test_nothing_to_read(tmp_path):
    reader = Checkpoints(tmp_path / "ckpt", keep=1, read_only=True)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        reader.read(abstract(state_on(make_mesh())), any_facts)


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
        Checkpoints(saved, keep=2).restore(wanted, any_facts)
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
    half = state["params"]["half"]
    broken = np.where(np.arange(16) == 3, np.nan, half).astype(half.dtype)
    state["params"]["half"] = jax.device_put(broken, half.sharding)
    checkpoints = Checkpoints(saved, keep=2)
    with pytest.raises(NonFiniteError, match=r"step 4: .* params/half \(1 values\)"):
        checkpoints.save(4, state, FACTS)
    assert checkpoints.steps() == [2, 3]


def test_checksum_sees_every_bit_and_exchanged_values_and_no_mesh():
    values = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)

    def checksum(array, mesh=None, spec=None):
        array = array if mesh is None else jax.device_put(array, NamedSharding(mesh, spec))
        return describe({"x": jax.device_put(array)})["x"]["checksum"]

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
    zeros, one = np.zeros((2, 3, 5), jnp.dtype(dtype))
    one[2, 4] = 1
    found = [describe({"x": jax.device_put(x)})["x"]["checksum"] for x in (zeros, one, zeros)]
    assert found[0] == found[2] != found[1]
