import itertools

import pytest

from mrl_jax.search.schedule import Schedule, Stage

PAPER = "8:200 > 16:100 > 32:50 > 64:25 > 128:10 > 2048"


@pytest.mark.parametrize("text", ["2048", "1", "16:200 > 2048", "8:5 > 9:5 > 10", PAPER])
def test_text_and_back(text):
    schedule = Schedule.parse(text)
    assert str(schedule) == text
    assert Schedule.parse(f"  {text.replace(' ', '')} ") == schedule
    assert eval(repr(schedule)) == schedule
    assert len({schedule, Schedule.parse(text)}) == 1


def test_parts():
    schedule = Schedule.parse("8:400 > 16:40 > 32")
    assert schedule.stages == (Stage(8, 400), Stage(16, 40))
    assert (schedule.final, schedule.dims) == (32, (8, 16, 32))
    assert Schedule(((8, 400), (16, 40)), 32) == schedule
    assert Schedule.exact(32) == Schedule.parse("32")
    assert Schedule.adaptive(16, 200, 2048) == Schedule.parse("16:200 > 2048")


@pytest.mark.parametrize(
    "text",
    [
        *("", ">", "16:200", "16 > 32", "16:200 > 32:10", "-8:200 > 32", "8:2.5 > 16", "8:x > 16"),
        *("16:200 > 2048 dims", "8:200 >> 16", "8:200, 16", "8::2 > 16", "8:200 > 16 > 32"),
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match=r"a schedule reads like '16:200 > 2048', got '"):
        Schedule.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", r"rise strictly from at least 1, got \(0,\)"),
        ("0:20 > 16", r"rise strictly from at least 1, got \(0, 16\)"),
        ("17:20 > 16", r"rise strictly"),
        ("32:20 > 16", r"rise strictly"),
        ("8:20 > 8:10 > 16", r"rise strictly"),
        ("8:0 > 16", r"keep at least 1 and never more again, got \(0,\)"),
        ("8:10 > 16:20 > 32", r"never more again, got \(10, 20\)"),
    ],
)
def test_rules(text, message):
    with pytest.raises(ValueError, match=message):
        Schedule.parse(text)


def test_only_whole_numbers():
    for stages, final in ((((8, 2.5),), 16), (((8.0, 2),), 16), ((), 16.0), ((), "16")):
        with pytest.raises(TypeError):
            Schedule(stages, final)


def test_how_many_results():
    schedule = Schedule.parse("8:200 > 16:20 > 32")
    schedule.check(1, 32)
    schedule.check(20, 64)
    for k in (0, -1, 21):
        with pytest.raises(ValueError, match=rf"k must be 1 to 20, .* got {k}$"):
            schedule.check(k, 32)
    with pytest.raises(ValueError, match="needs 32 dims; the vectors have 31"):
        schedule.check(1, 31)
    Schedule.exact(32).check(10**6, 32)
    with pytest.raises(ValueError, match="k must be 1 to all rows; got 0"):
        Schedule.exact(32).check(0, 32)


def pay(schedule, rows):
    """Multiply-adds counted one by one: which rows are compared by which dim."""
    alive, paid = list(range(rows)), 0
    for dim_before, dim, keep in zip(
        (0, *schedule.dims),
        schedule.dims,
        (*(stage.keep for stage in schedule.stages), rows),
        strict=False,
    ):
        paid += sum(1 for _ in itertools.product(alive, range(dim_before, dim)))
        alive = alive[:keep]
    return paid


@pytest.mark.parametrize("text", ["32", "8:20 > 32", "8:40 > 16:10 > 20:10 > 32", "1:1 > 2"])
@pytest.mark.parametrize("rows", [1, 15, 100])
def test_every_dim_is_paid_for_once(text, rows):
    schedule = Schedule.parse(text)
    assert schedule.multiply_adds(rows) == pay(schedule, rows)


def test_the_papers_costs():
    # Of ImageNet-1K, 1,281,167 rows: 128 times fewer than comparing by all 2048 dims.
    exact = Schedule.exact(2048).multiply_adds(1281167)
    assert 125 < exact / Schedule.parse("16:200 > 2048").multiply_adds(1281167) < 128


def test_funnels():
    dims = (8, 16, 32, 64, 128, 2048)
    funnel = Schedule.funnel(dims, 800, k=10)
    assert funnel.dims == dims
    keeps = [stage.keep for stage in funnel.stages]
    assert (keeps[0], keeps[-1]) == (800, 20)
    ratios = [b / a for a, b in itertools.pairwise(keeps)]
    assert max(ratios) - min(ratios) < 0.02
    assert Schedule.funnel(iter(dims), 800) == funnel
    assert Schedule.funnel((8, 32), 100) == Schedule.adaptive(8, 100, 32)
    assert Schedule.funnel((32,), 100) == Schedule.exact(32)
    # Fewer than 2 k are never more than were asked for.
    assert {stage.keep for stage in Schedule.funnel(dims, 15, k=10).stages} == {15}
    Schedule.funnel(dims, 11, k=10).check(10, 2048)
    for arguments in (((), 20), ((16, 8, 32), 20), ((8, 16), 0), ((8, 16), 20, 0)):
        with pytest.raises(ValueError, match=r"at least|enough values|rise strictly"):
            Schedule.funnel(*arguments)
