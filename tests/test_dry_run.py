import dataclasses
import importlib.util

import commands
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mrl_jax import config as configs
from mrl_jax import dry_run
from mrl_jax.runtime import cost
from mrl_jax.runtime.mesh import make_mesh


def test_collectives_are_counted_by_kind_and_bytes():
    mesh = make_mesh(8, 1, 1)

    def function(x, y):
        # An all-reduce of one float per column, and an all-gather of y.
        return x.sum(0), jax.lax.with_sharding_constraint(y, NamedSharding(mesh, PartitionSpec()))

    rows = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct((16, 100), jnp.float32, sharding=rows)
    y = jax.ShapeDtypeStruct((64, 2), jnp.float32, sharding=rows)
    compiled = jax.jit(function, out_shardings=(whole, whole)).lower(x, y).compile()
    assert cost.collectives(compiled.as_text()) == {
        "all-gather": (1, 64 * 2 * 4),
        "all-reduce": (1, 100 * 4),
    }


def test_collectives_of_an_asynchronous_program():
    text = """
  %start = (f32[8,4]{1,0}, f32[64,4]{1,0}) all-gather-start(f32[8,4]{1,0} %p), dimensions={0}
  %sent = (f32[5]{0}, f32[5]{0}, u32[], u32[]) collective-permute-start(f32[5]{0} %p)
  %summed = f32[7]{0} all-reduce-start(f32[7]{0} %p), channel_id=1, to_apply=%add
  %part1 = f32[9]{0} reduce-scatter(f32[90]{0} %p), channel_id=2, to_apply=%add
  %part2 = f32[9]{0} reduce-scatter(f32[90]{0} %p), channel_id=2, to_apply=%add
  %done = f32[64,4]{1,0} all-gather-done((f32[8,4], f32[64,4]) %start)
  %sum = bf16[10]{0:T(128)(2,1)} all-reduce(bf16[10]{0} %q), to_apply=%add
  %both = (f32[3]{0}, s32[]) all-reduce(f32[3]{0} %a, s32[] %b), to_apply=%add
"""
    assert cost.collectives(text) == {
        "all-gather": (1, 64 * 4 * 4),
        "all-reduce": (3, 20 + 16 + 28),
        "collective-permute": (1, 20),
        "reduce-scatter": (1, 36),
    }


def dry(*arguments, arg="mrl"):
    config = commands.ROOT / "configs" / f"digits.py:{arg}"
    return commands.command("mrl_jax.train", "--config", config, "--dry_run", *arguments)


def rows_of(output):
    """What a dry run prints, by the name of the row."""
    rows = dict(line.split("  ", 1) for line in output.splitlines() if "  " in line.strip())
    return {name.strip(): value.strip() for name, value in rows.items()}


# Of `commands.SMALL`: 64 x 16 and 16 x 8 of the network, 10 x (2 + 4 + 8) of the heads, forward and
# to the kernels; to the activations of all but the first.
KFLOP = 2 * (3 * (64 * 16 + 16 * 8 + 10 * 14) - 64 * 16) / 1e3


def test_command_prints_costs_and_trains_nothing(tmp_path):
    sizes = ("--config.mesh.data=4", "--config.mesh.tensor=2")
    output = commands.here(dry(*commands.SMALL, *sizes))
    rows = rows_of(output)
    # 64 x 16 + 16 and 16 x 8 + 8 of the network, 10 x (2 + 4 + 8) + 3 x 10 of the heads.
    assert rows["parameters"] == "1.35 k"
    assert rows["mesh"] == "data=4, fsdp=1, tensor=2"
    assert rows["devices"] == "8 x cpu"
    assert rows["FLOP per example"] == f"{KFLOP:.2f} kFLOP"
    assert "memory per device: state on every device" in rows
    assert "largest arrays that every device holds whole:" in output
    assert "collective all-reduce" in rows
    assert "head/kernel_0008 (8, 10) P(None, 'tensor')" in output


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (23.50G) exceeds available HBM (15.75G).",
            (23.5 * 2**30, 15.75 * 2**30),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.5M of 256.00M hbm."
            " Exceeded hbm capacity by 256.5M.",
            (512.5 * 2**20, 2**28),
        ),
        ("INVALID_ARGUMENT: 3 of 4 operands", None),
    ],
)
def test_what_a_compiler_says_of_too_large_a_program(said, found):
    assert cost.out_of_memory(said) == found


def test_other_layouts_begin_with_the_nearest():
    overrides = ("--config.mesh.data=4", "--config.mesh.tensor=2", "--config.batch_size=16")
    config = configs.load(str(commands.ROOT / "configs/digits.py:mrl"), overrides)
    found = cost.other_layouts(dry_run.program_of(config))
    assert [tuple(keys.values()) for keys in found] == [
        (2, 2, 2, 1),
        (1, 4, 2, 1),
        *((4 // fsdp, fsdp, 2, parts) for parts in (2, 4) for fsdp in (1, 2, 4)),
    ]
    assert list(found[0]) == [
        "mesh.data",
        "mesh.fsdp",
        "mesh.tensor",
        "optimizer.accumulate",
    ]


def test_flops_are_those_of_the_network_also_where_a_cpu_program_loops():
    overrides = ("--config.batch_size=8", "--config.model.width=32", "--config.data.image_size=32")
    overrides += ("--config.eval.batch_size=8",)
    config = configs.load(str(commands.ROOT / "configs/cifar10.py:mrl"), overrides)
    program = dry_run.program_of(config)
    assert program.largest_batch["image"].shape == (8, 32, 32, 3)
    # ResNet-18 for 32 pixels has 0.556 G multiplications and additions at width 64; a quarter at
    # 32, two FLOPs each, thrice: forward, to the activations and to the kernels.
    by_hand = 8 * 0.556e9 / 4 * 2 * 3
    found = cost.flops(program)
    assert found == pytest.approx(by_hand, rel=1e-3)
    in_parts = dataclasses.replace(program, accumulate=2)
    assert cost.flops(in_parts) == found


@pytest.mark.slow
def test_data_is_not_needed_where_the_config_says_how_many_classes():
    arguments = ("--config.batch_size=2", "--config.model.remat=True", "--config.model.width=2")
    arguments += ("--config.nesting.dims=4,16",)
    config = commands.ROOT / "configs" / "tiny_imagenet.py:mrl"
    output = commands.succeed(
        commands.command("mrl_jax.train", "--config", config, "--dry_run", *arguments)
    )
    assert "collectives" in output
    assert "none" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--topology", "v5e:4x4"), "--topology needs --dry_run"),
        ((), "required: --workdir"),
    ],
)
def test_arguments_that_miss_another(arguments, message):
    config = commands.ROOT / "configs" / "digits.py"
    argv = commands.command("mrl_jax.train", "--config", config, *arguments)
    assert message in commands.refused(argv, 2)


def test_a_slice_that_is_not_known_is_refused():
    line = commands.fail(dry("--topology", "nothing"), 2)
    assert "--topology nothing: " in line
    assert "a slice such as v5e:4x4" in line


needs_libtpu = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="needs libtpu, a TPU compiler"
)


@pytest.mark.slow
@needs_libtpu
def test_a_pod_is_compiled_for_without_one():
    output = commands.succeed(dry(*commands.SMALL, "--topology", "v5e:4x4"))
    assert "16 x TPU v5" in output
    rows = rows_of(output)
    # As on every other platform.
    assert rows["FLOP per step"].startswith(f"{32 * KFLOP:.2f} kFLOP")
    assert rows["FLOP per example"] == f"{KFLOP:.2f} kFLOP"


@pytest.mark.slow
@needs_libtpu
def test_what_does_not_fit_a_chip_names_a_layout_that_does():
    # 40,000 x 40,000 parameters, three times with Adam, and their gradients.
    large = ("--config.model.name=mlp", "--config.model.depth=2", "--config.model.width=40000")
    line = commands.fail(dry(*large, "--topology", "v5e:2x2"), 2)
    assert "a training step needs 23.9 GiB on each TPU v5 lite, which has 15.8 GiB" in line
    assert "compiled with these, it fits: --config.mesh.data=2 --config.mesh.fsdp=2" in line
