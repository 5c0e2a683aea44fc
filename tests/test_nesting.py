import pytest

from mrl_jax import Nesting
from mrl_jax.nesting import blocks_of, halvings, parse_dims, powers_of_two, uniform


def test_is_hashable_and_equal_by_value():
    assert {Nesting([2, 4]): 1}[Nesting((2, 4), weights=[1, 1])] == 1
    assert Nesting((2, 4), (1, 2)) != Nesting((2, 4))


def test_is_frozen():
    with pytest.raises(AttributeError):
        Nesting((2, 4)).dims = (1,)


def test_blocks_and_width():
    nesting = Nesting((2, 5, 6))
    assert blocks_of(nesting.dims) == ((0, 2), (2, 5), (5, 6))
    assert (len(nesting), nesting.width, nesting.weights) == (3, 6, (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("dims", "named"),
    [
        ((), "()"),
        ((0, 2), "0"),
        ((-3,), "-3"),
        ((2, 2), "2 after 2"),
        ((2, 8, 4), "4 after 8"),
        ((2.5, 4), "2.5"),
        (("2", 4), "'2'"),
        ((True, 4), "True"),
        ("24", "'24'"),
        (8, "8"),
    ],
)
def test_bad_dims_name_the_value(dims, named):
    with pytest.raises(ValueError, match="nesting dims") as error:
        Nesting(dims)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ((1,), "1 weights"),
        ((1, 2, 3), "3 weights"),
        ((1, -0.5), "-0.5 for dim 4"),
        ((1, float("nan")), "nan for dim 4"),
        ((float("inf"), 1), "inf for dim 2"),
        ((0, 0), "all be zero"),
        (("a", 1), "'a'"),
        (3, "3"),
    ],
)
def test_bad_weights_name_the_value(weights, named):
    with pytest.raises(ValueError, match="nesting weights") as error:
        Nesting((2, 4), weights)
    assert named in str(error.value)


def test_paper_nestings():
    assert powers_of_two(8, 2048).dims == (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
    assert halvings(768, 7).dims == (12, 24, 48, 96, 192, 384, 768)
    assert uniform(8, 2048, 11).dims == (
        *(8, 212, 416, 620, 824, 1028, 1232, 1436, 1640, 1844, 2048),
    )


def test_dims_between_are_the_papers_interpolated_ones():
    between = set(powers_of_two(8, 2048).with_dims_between().dims) - set(
        powers_of_two(8, 2048).dims
    )
    assert between == {12, 24, 48, 96, 192, 384, 768, 1536}
    assert Nesting((1, 2)).with_dims_between().dims == (1, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: powers_of_two(6, 64),
        lambda: powers_of_two(8, 100),
        lambda: powers_of_two(16, 8),
        lambda: halvings(768, 10),
        lambda: halvings(0, 1),
        lambda: uniform(8, 10, 5),
        lambda: uniform(8, 2048, 1),
    ],
)
def test_helpers_refuse_what_does_not_fit(make):
    with pytest.raises(ValueError, match=r"\d"):
        make()


def test_nesting_wider_than_the_embedding():
    with pytest.raises(ValueError, match=r"64 is wider than the embedding \(32 dims\)"):
        parse_dims((8, 64), (), 32)
    assert parse_dims((8, 32), (), 32) == Nesting((8, 32))
