import numpy as np
import pytest
from by_work import seconds
from class_vectors import nearest, recall, vectors

from mrl_jax.errors import DataError, UsageError
from mrl_jax.search.index import Index
from mrl_jax.search.index.rows import InMemory
from mrl_jax.search.plan import Plan
from mrl_jax.search.planner import frontier, options, promises, ranks, trial
from mrl_jax.search.planner import propose as planner
from mrl_jax.search.planner.promises import Wanted, prediction_interval
from mrl_jax.search.planner.propose import propose
from mrl_jax.search.schedule import Schedule

WIDTH, K = 64, 10
DESIGN = options.Design("int8", (8, 32), 1, 0)


@pytest.fixture(autouse=True)
def _short_measurements(monkeypatch):
    """What is chosen among equals may differ; what is said of it has to be right all the same."""
    monkeypatch.setattr(trial, "SECONDS", 0.01)
    monkeypatch.setattr(trial, "_FEWEST", 5)


@pytest.fixture
def by_work(monkeypatch):
    """Plans are chosen by the bytes that they read."""
    monkeypatch.setattr(trial, "_seconds", seconds)


@pytest.fixture(scope="module")
def looked():
    """True neighbours of 200 queries among 3,000 vectors, and ranks counted among all of them."""
    z_nd, query_bd = vectors(3000, WIDTH, 0), vectors(200, WIDTH, 1)
    truth, sample = ranks.look(InMemory(z_nd), query_bd, K, "cosine", 3000, 0, False)
    np.testing.assert_array_equal(truth.row_bk, nearest(z_nd, query_bd, K))
    np.testing.assert_array_equal(truth.vector_bkd, z_nd[truth.row_bk])
    counted = ranks.count(
        truth,
        sample,
        (8, 32),
        (*options.CODES, "float16"),
        64,
        (8,),
        "cosine",
        seed=0,
        progress=False,
    )
    return z_nd, query_bd, truth, counted


@pytest.mark.parametrize("metric", ["cosine", "inner", "l2"])
@pytest.mark.parametrize("code", ["float32", "float16", "int8", "binary"])
def test_ranks_are_those_of_brute_force(code, metric):
    rng = np.random.default_rng(0)
    z_nd = vectors(1500, WIDTH, 0) * rng.uniform(0.7, 1.4, (1500, 1)).astype(np.float32)
    query_bd = vectors(40, WIDTH, 1)
    truth, sample = ranks.look(InMemory(z_nd), query_bd, K, metric, 1500, 0, False)
    rank_bk = ranks.prefix_ranks(truth, sample, (16,), code, metric)
    product_bn = ranks.decoded(query_bd[:, :16], code).astype(np.float64) @ (
        ranks.decoded(z_nd[:, :16], code).astype(np.float64).T
    )
    # Lengths are those of the vectors, not of what codes stand for.
    norm_n = np.linalg.norm(z_nd[:, :16].astype(np.float64), axis=1)
    scores = {
        "inner": product_bn,
        "cosine": product_bn / norm_n,
        "l2": product_bn - norm_n**2 / 2,
    }
    bar_bk = np.take_along_axis(scores[metric], truth.row_bk, 1)
    expected_bk = 1 + (scores[metric][:, None, :] > bar_bk[:, :, None] + 1e-7).sum(2)
    near_bk = np.isfinite(rank_bk)
    assert near_bk.mean() > 0.8
    assert expected_bk[~near_bk].min(initial=1500) > 0.6 * sample.far * 1500
    near_bk &= np.abs(bar_bk) > 1e-6  # many binary codes have a product of 0 with the query's
    # Scores that differ in rounding only may change places.
    assert np.abs(rank_bk - expected_bk)[near_bk].max() <= 2
    assert (rank_bk == expected_bk)[near_bk].mean() > 0.95


def test_a_sample_says_the_same_on_average(looked):
    z_nd, query_bd, truth, counted = looked
    again, sample = ranks.look(InMemory(z_nd), query_bd, K, "cosine", 1500, 3, False)
    assert len(np.unique(sample.row_n)) == 1500
    np.testing.assert_array_equal(sample.vector_nd, z_nd[sample.row_n])
    np.testing.assert_array_equal(again.row_bk, truth.row_bk)
    rank_bk = ranks.prefix_ranks(truth, sample, (8,), "int8", "cosine")
    whole_bk = counted.of("int8", (8,))
    near_bk = np.isfinite(rank_bk) & np.isfinite(whole_bk)
    assert near_bk.mean() > 0.95
    ratio = rank_bk[near_bk].mean() / whole_bk[near_bk].mean()
    assert ratio == pytest.approx(1, abs=0.05)
    for keep in (20, 100, 400):
        assert (rank_bk <= keep).mean() == pytest.approx((whole_bk <= keep).mean(), abs=0.02)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(Schedule.parse("8:60 > 64"), code="int8"),
        Plan(Schedule.parse("8:150 > 32:15 > 64"), code="float16"),
        Plan(Schedule.parse("32:100 > 64"), code="binary"),
        Plan(Schedule.parse("8:60 > 64"), code="int8", lists=64, list_dim=8, probes=6),
    ],
)
def test_ranks_say_what_an_index_recalls(looked, tmp_path, plan):
    z_nd, query_bd, truth, counted = looked
    index = Index.build(tmp_path / "index", InMemory(z_nd), plan=plan)
    real = recall(index.search(query_bd, K)[0], truth.row_bk)
    assert 0.5 < real < 0.999
    # Rows of lists that are not looked into are not in the way.
    slack = 0.02 if plan.lists > 1 else 0.003
    assert -slack <= counted.recall(plan).mean() - real <= 0.005


def test_the_cheapest_effort_reaches_the_aim(looked):
    *_, counted = looked
    lists = DESIGN._replace(lists=64, list_dim=8)
    for design in (DESIGN, DESIGN._replace(dims=(8,)), lists):
        found = options.cheapest(counted, design, K, 1000, WIDTH, "cosine", (0.8, 0.9, 0.97))
        assert len(found) == 3
        assert [o.cost for o in found] == sorted(o.cost for o in found)
        for option, aim in zip(found, (0.8, 0.9, 0.97), strict=True):
            assert option.recall >= aim
            assert counted.recall(option.plan).mean() == pytest.approx(option.recall)
            # Less of anything would not do.
            fewer = [
                Plan.from_json({**option.plan.to_json(), "schedule": str(schedule)})
                for schedule in _fewer(option.plan.schedule)
            ]
            assert fewer
            assert all(counted.recall(plan).mean() < aim for plan in fewer)
    cheaper = options.cheapest(counted, lists, K, 1000, WIDTH, "cosine", (0.9,))
    assert cheaper[0].plan.probes < 64


def _fewer(schedule):
    """One stage keeps two steps less."""
    for i, (dim, keep) in enumerate(schedule.stages):
        stages = list(schedule.stages)
        stages[i] = (dim, max(K, round(keep / 1.6)))
        if stages[i][1] < keep and stages[i][1] >= dict(stages[i + 1 :]).get(32, K):
            yield Schedule(tuple(stages), schedule.final)


def test_intervals_hold_the_mean_of_other_queries():
    rng = np.random.default_rng(0)

    def queries(n):
        return rng.binomial(K, rng.beta(30, 0.5, n)) / K

    hits = 0
    for seed in range(100):
        low, high = prediction_interval(queries(150), K, seed)
        assert high - low < 0.07
        hits += low <= queries(150).mean() <= high
    assert hits >= 95
    low, high = prediction_interval(np.ones(100), K, 0)
    assert 0.98 < low < 1 == high


def test_few_queries_that_miss_much_are_reckoned_with():
    """Nine of ten miss nothing, few miss nearly all: those that were measured may hold none."""
    rng, below = np.random.default_rng(0), []

    def queries(n):
        missed_n = np.ceil(2 * rng.pareto(1.2, n)) / K
        return 1 - np.where(rng.random(n) < 0.914, 0, np.minimum(0.9, missed_n))

    for seed in range(60):
        low, _ = prediction_interval(queries(267), K, seed)
        below.append((queries(50 * 267).reshape(50, 267).mean(1) < low).mean())
    assert np.mean(below) < 1 - promises.LEVEL


def _plannings(queries, count):
    """How often fresh queries fall below what was promised, and how often a plan was found.

    Of many plans about as good as the target asks for, each with misses of its own: those that were
    lucky look best.
    """
    rng = np.random.default_rng(queries)
    wanted, half = Wanted(0.95, k=K), queries // 2
    hit_p = np.repeat([0.955, 0.965, 0.975, 0.985, 0.993], 2)
    qps_p = np.linspace(2, 1, len(hit_p)) * rng.uniform(0.8, 1.2, len(hit_p))

    def recalls(n, hit_p):
        share_pb = rng.beta(20 * hit_p[:, None], 20 * (1 - hit_p[:, None]), (len(hit_p), n))
        return rng.binomial(K, share_pb) / K

    below, reached = [], 0
    for _ in range(count):
        p, (low, _), reaches = promises.pick(
            recalls(half, hit_p),
            recalls(half, hit_p),
            qps_p,
            np.ones(len(hit_p)),
            np.zeros(len(hit_p), bool),
            wanted,
        )
        assert not reaches or low >= 0.95
        reached += reaches
        fresh_tb = np.concatenate([recalls(half, hit_p[[p]]) for _ in range(40)])
        below.append((fresh_tb.mean(1) < low).mean())
    return np.mean(below), reached / count


def test_few_queries_promise_no_more_than_many_keep():
    below, _ = _plannings(40, 20)
    assert below < 0.01
    below, reached = _plannings(400, 5)
    assert below < 0.01
    assert reached > 0.9


def test_however_many_plans_are_tested_promises_are_wrong_no_more_often():
    assert sum(1 - promises._levels(tested) for tested in range(20)) <= 1 - promises.LEVEL


@pytest.mark.slow  # the same, of real plans
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("by_work")
def test_promises_of_many_plannings_are_kept():
    z_nd, below = vectors(1500, WIDTH, 5), []
    for seed in range(25):
        queries = InMemory(vectors(100, WIDTH, 100 + seed))
        chosen = propose(InMemory(z_nd), queries, Wanted(0.9, dims=(8, 16), seed=seed)).chosen
        if chosen.plan.schedule.stages:
            groups, of_each = 20, promises.held_out(100)
            fresh_bd = vectors(groups * of_each, WIDTH, 200 + seed)
            found_tk = Index.build(None, z_nd, plan=chosen.plan).search(fresh_bd, K)[0]
            recall_t = trial.recall(found_tk, nearest(z_nd, fresh_bd, K))
            below.extend(recall_t.reshape(groups, of_each).mean(1) < chosen.low)
    assert len(below) > 100
    assert np.mean(below) < 0.01


def test_queries_that_are_too_few_for_a_promise():
    assert promises.queries_needed(Wanted(0.9)) == 40
    assert promises.queries_needed(Wanted(0.99)) > 100
    assert promises.queries_needed(Wanted(1)) is None


@pytest.mark.parametrize("code", ["int8", "binary", "float16"])
def test_a_sample_says_what_codes_lose(code, tmp_path):
    """One dim outweighs the others: few bits of a code are left to the numbers of its block."""
    rng = np.random.default_rng(3)
    z_nd, query_bd = (
        (rng.standard_normal((n, 32)) * 0.97 ** np.arange(32)).astype("f4") for n in (3000, 60)
    )
    z_nd[:, 20] += 150
    query_bd[:, 20] += 150
    stages = "16:2900 > 24:60 > 32" if code != "float16" else "24:60 > 32"
    plan = Plan(Schedule.parse(stages), code=code)
    truth, sample = ranks.look(InMemory(z_nd), query_bd, K, "cosine", 1500, 0, False)
    counted = ranks.count(truth, sample, (16, 24), [code], 1, (), "cosine", seed=0, progress=False)
    dims = tuple(stage.dim for stage in plan.schedule.stages)
    counted = ranks.with_blocks(counted, truth, sample, {(code, dims)}, "cosine", progress=False)
    index = Index.build(tmp_path / "index", InMemory(z_nd), plan=plan)
    real = recall(index.search(query_bd, K)[0], truth.row_bk)
    assert 0.02 < real < 0.95
    assert counted.recall(plan).mean() == pytest.approx(real, abs=0.03)


@pytest.mark.parametrize(
    ("rows", "sample_rows", "dims", "seed"),
    [
        (2000, 10_000, (16,), 0),
        pytest.param(12_000, 20_000, (16, 32), 1, marks=pytest.mark.slow),  # lists
        pytest.param(12_000, 4000, (16, 32), 2, marks=pytest.mark.slow),  # lists, and a sample
    ],
)
@pytest.mark.usefixtures("by_work")
def test_fresh_queries_are_answered_as_promised(tmp_path, rows, sample_rows, dims, seed):
    z_nd = vectors(rows, WIDTH, 10 + seed)
    wanted = Wanted(0.95, dims=dims, sample_rows=sample_rows, seed=seed)
    found = propose(InMemory(z_nd), InMemory(vectors(400, WIDTH, 20 + seed)), wanted)
    chosen = found.chosen
    assert chosen.low >= 0.95
    assert (found.rows, found.tuned_on, found.held_out) == (rows, 133, 267)
    index = Index.build(tmp_path / "index", InMemory(z_nd), plan=chosen.plan)
    fresh_bd = vectors(found.held_out, WIDTH, 30 + seed)
    real = recall(index.search(fresh_bd, K)[0], nearest(z_nd, fresh_bd, K))
    assert chosen.low <= real <= chosen.high
    assert index.bytes() == {"resident": chosen.resident, "vectors": chosen.vectors}
    assert {p.role for p in found.points} == {"", "exact", "paper"}
    (exact,) = (p for p in found.points if p.role == "exact")
    assert (exact.recall, exact.low, exact.memory) == (1, 1, exact.resident + exact.vectors)
    merits = [p.merits for p in found.points if not p.role and p is not chosen]
    assert not any(planner.beats(a, b) for a in merits for b in merits)
    if rows >= 10_000:
        assert any(p.plan.lists > 1 for p in found.points)


def words(rows, seed):
    """Queries of another tower: around another mean, and of directions that photos hardly have."""
    fixed, rng = np.random.default_rng(3), np.random.default_rng((2, seed))
    mean_d = fixed.standard_normal(32)
    z_nd = vectors(rows, 32, seed) + 0.37 * rng.standard_normal((rows, 32))
    z_nd += 0.7 * mean_d / np.linalg.norm(mean_d)
    return (z_nd / np.linalg.norm(z_nd, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.usefixtures("by_work")
def test_promises_hold_for_the_kind_of_queries_that_plans_were_made_with(tmp_path):
    """Photos find their like by fewer candidates than words find photos."""
    photos_nd = vectors(1000, 32, 0)
    asked = {"photos": vectors(400, 32, 9), "words": words(400, 9)}
    planned_with = {"photos": vectors(160, 32, 5), "words": words(160, 6)}
    wanted = Wanted(0.9, dims=(16,), memory=60_000)  # of whole vectors: 128,000
    promised, found = {}, {}
    for kind, query_bd in planned_with.items():
        chosen = propose(InMemory(photos_nd), InMemory(query_bd), wanted).chosen
        index = Index.build(tmp_path / kind, InMemory(photos_nd), plan=chosen.plan)
        promised[kind] = chosen
        for other, fresh_bd in asked.items():
            true_bk = nearest(photos_nd, fresh_bd, K)
            found[kind, other] = recall(index.search(fresh_bd, K)[0], true_bk)
        # And that others are asked is noticed.
        unlike = {}
        for other, fresh_bd in asked.items():
            opened = Index.open(index.folder)
            opened.search(fresh_bd, K)
            unlike[other] = opened.unlike is not None
        assert unlike == {other: other != kind for other in asked}
        about = index.plan.asked
        assert (about.queries, about.k, about.recall) == (160, K, chosen.low)
    for kind, chosen in promised.items():
        assert 0.9 <= chosen.low <= found[kind, kind] <= chosen.high
    assert found["photos", "words"] < 0.87


def test_queries_that_are_rows_are_counted():
    z_nd = vectors(300, 8, 0)
    queries = InMemory(np.concatenate([z_nd[:7], vectors(40, 8, 1)]))
    assert propose(InMemory(z_nd), queries, Wanted(0.9)).themselves == 7


def test_limits_are_kept_or_said_to_be_too_tight():
    source, queries = InMemory(vectors(600, 32, 0)), InMemory(vectors(80, 32, 1))
    # Whole vectors have 128 bytes, codes of 16 dims by int8 33.
    limited = Wanted(0.8, dims=(16,), memory=40 * 600)
    found = propose(source, queries, limited)
    assert found.chosen.plan.schedule.stages
    assert found.chosen.memory <= 40 * 600
    with pytest.raises(DataError, match=r"reaches recall@10 1: the best is 0\.\d+, 0\.\d+ or more"):
        propose(source, queries, Wanted(1, dims=(16,), memory=40 * 600))
    with pytest.raises(DataError, match="no plan keeps to the limits: the fastest one tried has"):
        propose(source, queries, Wanted(0.8, dims=(16,), latency_ms=1e-6))


def test_few_dims_are_searched_exactly():
    wanted = Wanted(0.99)
    found = propose(InMemory(vectors(300, 8, 0)), InMemory(vectors(40, 8, 1)), wanted)
    assert found.chosen.plan == Plan(Schedule.exact(8))
    assert [p.role for p in found.points] == ["exact"]
    assert "exact, 8 dims (baseline)" in frontier.table(found, K)
    assert frontier.chart(found, K).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_recall": 1.5}, "target recall must be above 0, at most 1; got 1.5"),
        ({"memory": 0}, "memory must be above 0, got 0"),
        ({"latency_ms": float("nan")}, "latency_ms must be above 0, got nan"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"k": 101}, "k must be 1 to 100, the number of vectors; got 101"),
        ({"dims": (8, 32)}, "dims must be 1 to 31, fewer than the vectors have; got 32"),
    ],
)
def test_wishes_that_cannot_be_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        propose(
            InMemory(vectors(100, 32, 0)),
            InMemory(vectors(40, 32, 1)),
            Wanted(**{"target_recall": 0.9, **change}),
        )


@pytest.mark.parametrize(
    ("rows", "width", "message"),
    [
        (39, 32, "a plan needs at least 40 queries, there are 39"),
        (40, 31, "queries have 31 dims, the vectors 32"),
    ],
)
def test_queries_that_say_too_little(rows, width, message):
    with pytest.raises(DataError, match=message):
        propose(InMemory(vectors(100, 32, 0)), InMemory(vectors(rows, width, 1)), Wanted(0.9))


@pytest.mark.parametrize("sample_rows", [pytest.param(10_000, marks=pytest.mark.slow), 1500])
def test_graphs_and_lists_of_rabitqlib_are_tried(monkeypatch, sample_rows):
    """What is said of them holds of those that are built again, among all rows."""
    monkeypatch.setattr(planner, "_CLUSTERED_ROWS", 1000)
    z_nd, query_bd = vectors(2500, 96, 0), vectors(300, 96, 1)
    wanted = Wanted(0.9, dims=(16, 64), sample_rows=sample_rows)
    found = propose(InMemory(z_nd), InMemory(query_bd), wanted)
    fresh_bd = vectors(300, 96, 2)
    true_bk = nearest(z_nd, fresh_bd, K)
    tried = {}
    for point in found.points:
        if point.plan.factory and 0.85 < point.recall < 0.999:
            tried.setdefault(point.plan.factory[:3], point)
    assert tried
    for point in tried.values():
        index = Index.build(None, z_nd, plan=point.plan)
        assert recall(index.search(fresh_bd, K)[0], true_bk) == pytest.approx(
            point.recall, abs=0.03
        )
        # Lists are filled up to multiples of 32 rows, which counts for more among few rows.
        assert index.bytes()["resident"] == pytest.approx(point.resident, rel=0.2)
    lines = frontier.table(found, K)
    assert "SymphonyQG32,8 64:" in lines or "IVFRaBitQ" in lines
