"""Queries unlike those that a plan was made with are noticed; those like them never are."""

import dataclasses
import pathlib
import threading

import numpy as np
import pytest
from class_vectors import vectors
from scipy import stats

from mrl_jax.search import Index
from mrl_jax.search.index import likeness
from mrl_jax.search.index.rows import InMemory
from mrl_jax.search.plan import Asked, Plan, places
from mrl_jax.search.planner import ranks
from mrl_jax.search.schedule import Schedule

WIDTH, K, ASKED = 32, 10, 600
RECALL = 0.95
FIRST = likeness.FIRST_LOOK


@pytest.fixture(scope="module", params=["cosine", "inner", "l2"])
def index(request, tmp_path_factory):
    """Of photos, by a plan that knows how 300 other photos score as queries."""
    metric, z_nd = request.param, photos(1500, 0)
    truth, _ = ranks.look(InMemory(z_nd), photos(300, 1), K, metric, 1500, 0, False)
    asked = Asked.of(ranks.best_scores(truth, metric), K, RECALL)
    plan = Plan(Schedule.parse(f"16:200 > {WIDTH}"), metric, asked=asked)
    return Index.build(tmp_path_factory.mktemp("likeness") / "index", z_nd, plan=plan)


@pytest.fixture
def opened(index):
    """Nothing has been asked of it."""
    return Index.open(index.folder)


def photos(rows, seed):
    return vectors(rows, WIDTH, seed) * np.random.default_rng(seed).uniform(0.7, 1.4, (rows, 1))


def words(rows, seed):
    """Of another tower: around another mean, and in directions that photos hardly have."""
    fixed, rng = np.random.default_rng(3), np.random.default_rng((2, seed))
    mean_d = fixed.standard_normal(WIDTH)
    z_nd = vectors(rows, WIDTH, seed) + 0.3 * rng.standard_normal((rows, WIDTH))
    return z_nd + 0.7 * mean_d / np.linalg.norm(mean_d)


OTHERS = {
    "words": words(ASKED, 7),
    "moved": photos(ASKED, 7) + 0.25,
    "isotropic": np.random.default_rng(0).standard_normal((ASKED, WIDTH)) / WIDTH**0.5,
    "a third are words": np.where(np.arange(ASKED)[:, None] % 3, photos(ASKED, 7), words(ASKED, 7)),
}


def test_queries_of_the_kind_that_was_planned_with(opened, caplog):
    for seed in range(8):
        opened.search(photos(ASKED, 10 + seed), K)
    for query_d in photos(300, 20):
        opened.search(query_d, K)
    assert opened.unlike is None
    assert caplog.text == ""


@pytest.mark.parametrize("kind", OTHERS)
def test_queries_of_another_kind(opened, caplog, kind):
    for i in range(0, ASKED, 60):
        opened.search(OTHERS[kind][i : i + 60], K)
    assert FIRST <= opened.unlike.queries <= ASKED
    asked = opened.plan.asked
    assert opened.unlike.planned == asked.scores[5]
    assert caplog.text.count("queries score unlike those that its plan was made with") == 1
    assert f"recall@{K} of {RECALL} is promised only to queries like those" in caplog.text
    assert str(opened.folder) in caplog.text


def test_one_by_one_in_many_threads(opened, caplog):
    def ask(first):
        for query_d in OTHERS["words"][first::4]:
            opened.search(query_d, K)

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened.unlike
    assert caplog.text.count("queries score unlike") == 1


def test_rows_that_are_asked_find_themselves(opened):
    opened.search(opened.vectors.read(0, ASKED), K)
    if opened.plan.metric == "inner":  # by product a longer vector may be nearer than itself
        return
    assert opened.unlike.median == pytest.approx(float(opened.plan.metric == "cosine"), abs=1e-6)


def test_what_is_not_counted(opened):
    """The same queries again and again, searches of some rows, and those told how to search."""
    few, many = OTHERS["words"][:200], OTHERS["words"]
    for _ in range(5):
        opened.search(few, K)
    opened.search(many, K, allow=np.arange(1000))
    opened.search(many, K, keeps=(100,))
    assert opened.unlike is None
    opened.search(many, K)
    assert opened.unlike


def test_it_goes_on_after_changes_and_is_found_anew(opened, tmp_path):
    opened.save(tmp_path / "copy")
    index = Index.open(tmp_path / "copy")
    index.search(OTHERS["words"][:200], K)
    index.add(photos(10, 5), np.arange(10) + 5000)
    index.search(OTHERS["words"][200:400], K)
    assert index.unlike.queries == 400
    for seed in range(15):
        index.search(photos(ASKED, 30 + seed), K)
    assert index.unlike is None


def test_a_plan_that_was_not_measured_says_nothing(index):
    plan = dataclasses.replace(index.plan, asked=None)
    other = Index.build(None, photos(1500, 0), plan=plan)
    other.search(OTHERS["words"], K)
    assert other.unlike is None


def test_how_rarely_chance_alone_is_taken_for_another_kind():
    """Over all cuts, whatever the distribution, by the beta-binomial of scipy."""
    for queries, planned in ((256, 40), (300, 267), (4096, 4000)):
        many_s, few_s = likeness.limits(queries, planned)
        chance = 0
        for r, many, few in zip(places(planned), many_s, few_s, strict=True):
            below = stats.betabinom(queries, r, planned + 1 - r)
            chance += below.sf(np.ceil(many) - 1) + below.cdf(np.floor(few))
        assert chance < 2 * 11 * 1.01e-9
        # And no more rarely than that, unless so few deviate that it would not matter.
        r = places(planned)[5]
        exactly = stats.betabinom(queries, r, planned + 1 - r).isf(1e-9) + 1
        assert many_s[5] == max(exactly, 0.65 * queries)


def test_scores_that_are_equal_or_rounded_otherwise():
    """Half of all queries are copies of rows: a cut lies where many scores are the same."""
    rng = np.random.default_rng(0)

    def scores(n):
        return np.where(rng.random(n) < 0.5, 1, rng.uniform(0.5, 0.9, n))

    watch = likeness.Watch(pathlib.Path(), Asked.of(scores(400), K, 1.0), "cosine")
    for rounded in (1 - 1e-7, 1, 1 + 1e-7) * 3:
        score_b1 = (rounded * scores(1024))[:, None].astype(np.float32)
        watch.take(rng.standard_normal((1024, 4)), score_b1)
        assert watch.unlike is None
    for _ in range(4):
        watch.take(rng.standard_normal((1024, 4)), np.ones((1024, 1), np.float32))
    assert watch.unlike


def test_the_best_that_a_plan_misses_is_no_other_kind():
    rng = np.random.default_rng(0)
    best_bk = -np.sort(-rng.standard_normal((1000, 2)), 1)
    watch = likeness.Watch(pathlib.Path(), Asked.of(best_bk[:, 0], 1, 0.6), "cosine")
    missed_b = np.arange(1000) % 5 < 2
    found_b = np.where(missed_b, best_bk[:, 1], best_bk[:, 0]).astype(np.float32)
    watch.take(rng.standard_normal((1000, 4)), found_b[:, None])
    assert watch.unlike is None
