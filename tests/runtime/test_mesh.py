import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from mrl_jax.runtime.mesh import batch_divisor, make_mesh, shardings

TREE = {
    "params": {
        "head": {"kernel": jnp.zeros((6, 10)), "bias": jnp.zeros(10)},
        "backbone": {"kernel": jnp.zeros((3, 8)), "odd": {"kernel": jnp.zeros((3, 5))}},
    },
    "step": jnp.zeros((), jnp.int32),
}
RULES = (
    ("head/(kernel|bias)", "last:tensor"),
    ("kernel", "largest:fsdp"),
    (".*", "replicate"),
)


def test_free_axis_takes_the_devices_that_are_left():
    mesh = make_mesh(data=-1, fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert batch_divisor(mesh.shape) == 4


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "data=3, fsdp=1, tensor=1 does not fit 8 devices"),
        ({"data": -1, "tensor": 3}, "does not fit 8 devices"),
        ({"data": -1, "fsdp": -1}, "at most one of them -1"),
        ({"data": 0}, "must be positive"),
        ({"data": -2}, "must be positive"),
    ],
)
def test_meshes_that_do_not_fit(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(**sizes)


def test_first_matching_rule_places_each_leaf():
    placed = shardings(TREE, RULES, make_mesh(2, 2, 2))
    specs = jax.tree.map(lambda s: s.spec, placed)
    assert specs["params"]["head"]["kernel"] == PartitionSpec(None, "tensor")
    assert specs["params"]["head"]["bias"] == PartitionSpec("tensor")
    assert specs["params"]["backbone"]["kernel"] == PartitionSpec(None, "fsdp")
    assert specs["params"]["backbone"]["odd"]["kernel"] == PartitionSpec()
    assert specs["step"] == PartitionSpec()


@pytest.mark.parametrize(
    ("sizes", "head", "bias"),
    [
        ((8, 1, 1), (), ()),
        # The head's rule names an axis of one device, so that the next rule splits its kernel.
        ((4, 2, 1), (None, "fsdp"), ()),
        ((4, 1, 2), (None, "tensor"), ("tensor",)),
        ((2, 2, 2), (None, "tensor"), ("tensor",)),
    ],
)
def test_a_rule_with_nothing_to_split_leaves_the_array_to_the_next(sizes, head, bias):
    placed = shardings(TREE, RULES, make_mesh(*sizes))["params"]["head"]
    assert placed["kernel"].spec == PartitionSpec(*head)
    assert placed["bias"].spec == PartitionSpec(*bias)


def test_a_largest_that_finds_no_dimension_leaves_the_array_to_the_next():
    rules = (("odd", "largest:fsdp"), ("odd", "first:tensor"), (".*", "replicate"))
    placed = shardings(TREE, rules, make_mesh(1, 2, 3, devices=jax.devices()[:6]))
    assert placed["params"]["backbone"]["odd"]["kernel"].spec == PartitionSpec("tensor", None)


def test_a_rule_may_split_several_dimensions():
    rules = (("head", "last:tensor+largest:fsdp"), (".*", "replicate"))
    for sizes, kernel, bias in (
        ((2, 2, 2), ("fsdp", "tensor"), ("tensor",)),
        ((4, 1, 2), (None, "tensor"), ("tensor",)),
        ((4, 2, 1), (None, "fsdp"), ("fsdp",)),
        ((8, 1, 1), (), ()),
    ):
        placed = shardings(TREE, rules, make_mesh(*sizes))["params"]["head"]
        assert placed["kernel"].spec == PartitionSpec(*kernel), sizes
        assert placed["bias"].spec == PartitionSpec(*bias), sizes


def test_optimiser_state_lies_where_its_parameter_does_unless_its_shape_is_another():
    kernel = {"head": {"kernel": jnp.zeros((6, 10))}}
    tree = {
        "params": TREE["params"],
        "opt_state": ({"mu": kernel, "v_row": {"head": {"kernel": jnp.zeros(5)}}},),
    }
    opt_state = shardings(tree, RULES, make_mesh(2, 2, 2))["opt_state"][0]
    assert opt_state["mu"]["head"]["kernel"].spec == PartitionSpec(None, "tensor")
    assert opt_state["v_row"]["head"]["kernel"].spec == PartitionSpec()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((*RULES, ("nothing/like/this", "replicate")), "'nothing/like/this' matches nothing"),
        (RULES[:2], "no sharding rule matches step"),
        ((("(", "replicate"),), "not a regular expression"),
        (((".*", "middle:fsdp"),), "'middle:fsdp' must be"),
        (((".*", "last:model"),), "'last:model' must be"),
        (((".*", "last:tensor+first:tensor"),), "names an axis twice"),
        # Also where no array gets as far as this rule.
        (((".*", "replicate"), ("kernel", "middle:fsdp")), "'middle:fsdp' must be"),
        (((".*", "last:fsdp+last:tensor"),), r"last dimension of .* is split over fsdp already"),
        (((".*", "last:fsdp"),), r"odd/kernel \(3, 5\) does not divide by mesh fsdp=2"),
    ],
)
def test_bad_rules_are_refused(rules, message):
    tree = {"params": TREE["params"], "step": TREE["step"]}
    with pytest.raises(ValueError, match=message):
        shardings(tree, rules, make_mesh(2, 2, 2))
