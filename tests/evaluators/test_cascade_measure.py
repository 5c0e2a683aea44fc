import json

import numpy as np
import pytest
from evaluators.subjects import CLASSES, clusters, subject_of

from mrl_jax import cascade
from mrl_jax.cascade import Policy, outcome, study
from mrl_jax.evaluators.cascade import measure
from mrl_jax.record.finding import Unmeasurable

DIMS = (1, 3, 8)


def centre_params(kind, width=8):
    """A head whose kernels are the centres of `clusters`: better the more dims it sees."""
    centres_cd = np.random.default_rng(99).normal(size=(CLASSES, width)).astype(np.float32)
    zero_c = np.zeros(CLASSES, np.float32)
    if kind == "separate":
        params = {f"kernel_{m:04d}": centres_cd[:, :m].T for m in DIMS}
        return {"head": {**params, **{f"bias_{m:04d}": zero_c for m in DIMS}}}
    return {"head": {"kernel": centres_cd.T, "bias": zero_c}}


def subject_with(sizes, kind="shared", shuffled=(), **options):
    embedded = {}
    for seed, (split, n) in enumerate(sizes.items()):
        z_nd, label_n = clusters(n, 8, spread=1.0, seed=seed)
        if split in shuffled:
            label_n = np.random.default_rng(7).permutation(label_n)
        embedded[split] = z_nd, label_n
    return subject_of(embedded, kind, params=centre_params(kind), **options)


@pytest.fixture
def _few_resamplings(monkeypatch):
    monkeypatch.setattr(study, "RESAMPLINGS", 6)


few_resamplings = pytest.mark.usefixtures("_few_resamplings")


def read(finding, split):
    assert set(finding.files) == {f"{split}_cascade.json", f"{split}_cascade_policy.json"}
    assert finding.results == []
    return json.loads(finding.files[f"{split}_cascade.json"])


def judged(subject, split):
    found = subject.predictions(split)
    return found.dims, found.confidence_gn, found.rank_gn <= 1


@few_resamplings
@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_policies_of_val_are_measured_on_test(kind, tmp_path):
    subject = subject_with({"val": 120, "test": 150}, kind)
    finding = measure(subject, "test")
    content = read(finding, "test")
    assert content["schema"] == 1
    assert content["fitted_on"] == "val"
    assert content["n"] == 150
    assert content["dims"] == list(DIMS)
    assert content["resamplings"] == 6
    assert content["mirrored"] is False
    val, test = judged(subject, "val"), judged(subject, "test")
    assert test[2].mean(1)[2] > test[2].mean(1)[0] + 0.2  # so that dims matter

    # The reference's policies, as fitted on val and measured on test.
    greedy = cascade.fit_greedy(*val)
    for point, m in zip(content["curves"]["greedy"], (3, 8), strict=True):
        policy = greedy.capped(m)
        assert point["cap"] == m
        assert point["policy"] == policy.to_dict()
        accuracy, expected_dim, cumulative_dim = outcome(policy, *test)
        assert point["accuracy"]["value"] == accuracy
        assert point["expected_dim"]["value"] == expected_dim
        # A shared head's logits grow: its work is the final dim.
        work = expected_dim if kind == "shared" else cumulative_dim
        assert point["cumulative_dim"]["value"] == work
        full = test[2][2].mean()
        assert point["gain_on_full_width"]["value"] == pytest.approx(accuracy - full)
        assert point["full_width_by_expected_dim"]["value"] == 8 / expected_dim

    # The joint ones, at budgets from the first dim to the last.
    frontier = cascade.fit_frontier(*val)
    for curve, accounting in (("joint", "final"), ("joint_cumulative", "cumulative")):
        points = content["curves"].get(curve)
        if kind == "shared" and curve == "joint_cumulative":
            assert points is None
            continue
        assert [points[0]["budget"], points[-1]["budget"]] == [1, 8]
        frontier = cascade.fit_frontier(*val, accounting)
        for point in points:
            fitted = cascade.within(frontier, point["budget"])
            assert point["policy"] == fitted.policy.to_dict()
            assert point["promised_accuracy"]["value"] == fitted.promised
            assert point["accuracy"]["value"] == outcome(fitted.policy, *test).accuracy

    # The recommended policy promises what the full width has, with the fewest dims.
    path = tmp_path / "cascade.json"
    path.write_bytes(finding.files["test_cascade_policy.json"])
    recommended = Policy.load(path)
    headline = content["headline"][0]
    assert [point["loss"] for point in content["headline"]] == [0, 0.005, 0.01]
    assert headline["policy"] == recommended.to_dict()
    assert headline["accuracy"]["value"] == outcome(recommended, *test).accuracy
    full = val[2][-1].mean()
    joint = cascade.fit_frontier(*val)
    assert recommended == next(f.policy for f in joint if f.promised >= full - 1e-6)

    for number in (headline["accuracy"], headline["full_width_by_expected_dim"]):
        assert number["low"] < number["mean"] < number["high"]
    right_gn = test[2]
    assert content["oracle"]["accuracy"]["value"] == right_gn.any(0).mean()
    first = np.where(right_gn.any(0), np.array(DIMS)[right_gn.argmax(0)], 1)
    assert content["oracle"]["expected_dim"]["value"] == first.mean()
    singles = [single["accuracy"]["value"] for single in content["single"]]
    np.testing.assert_allclose(singles, right_gn.mean(1))


@few_resamplings
def test_labels_of_the_test_examples_do_not_reach_the_policies():
    sizes = {"val": 60, "test": 80}
    findings = [measure(subject_with(sizes, shuffled=s), "test") for s in ((), ("test",))]
    assert len({finding.files["test_cascade_policy.json"] for finding in findings}) == 1
    first, second = (read(finding, "test") for finding in findings)
    for name in first["curves"]:
        for a, b in zip(first["curves"][name], second["curves"][name], strict=True):
            assert a["policy"] == b["policy"]
    # Nor to those of a resampling: how many dims they take on test is the same.
    for a, b in zip(first["curves"]["joint"], second["curves"]["joint"], strict=True):
        assert a["expected_dim"] == b["expected_dim"]
    assert first["single"] != second["single"]
    other = measure(subject_with(sizes, shuffled=("val",)), "test")
    assert other.files["test_cascade_policy.json"] != findings[0].files["test_cascade_policy.json"]


def test_one_split_is_divided_into_fifths():
    subject = subject_with({"val": 100})
    content = read(measure(subject, "val"), "val")
    assert content["fitted_on"] == "20% of val"
    assert content["resamplings"] == 30
    # What is saved is fitted on all of it, what is said of it is not.
    val = judged(subject, "val")
    greedy = cascade.fit_greedy(*val)
    point = content["curves"]["greedy"][-1]
    assert point["policy"] == greedy.to_dict()
    assert point["accuracy"]["value"] == point["accuracy"]["mean"]
    accuracies = []
    rng = np.random.default_rng(0)
    for _ in range(30):
        order = rng.permutation(100)
        fit, test = ((val[0], *(x[:, rows] for x in val[1:])) for rows in (order[:20], order[20:]))
        accuracies.append(outcome(cascade.fit_greedy(*fit), *test).accuracy)
    assert point["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert [point["accuracy"][key] for key in ("low", "high")] == pytest.approx(
        np.quantile(accuracies, (0.025, 0.975))
    )


@few_resamplings
def test_images_of_test_are_never_fitted_on():
    """Whoever copies files has some of them, or all, in both splits."""
    subject = subject_with({"val": 60, "test": 80})
    val, test = (subject.dataset.splits[name] for name in ("val", "test"))
    val.image[10:25] = test.image[:15]
    content = read(measure(subject, "test"), "test")
    assert content["fitted_on"] == "val without 15 images of test"
    dims, *judged_gn = judged(subject, "val")
    apart = np.r_[:10, 25:60]
    greedy = cascade.fit_greedy(dims, *(gn[:, apart] for gn in judged_gn))
    assert content["curves"]["greedy"][-1]["policy"] == greedy.to_dict()

    val.image[:] = test.image[:60]
    content = read(measure(subject, "test"), "test")
    assert content["fitted_on"] == "20% of test"
    alone = read(measure(subject_with({"other": 60, "test": 80}), "test"), "test")
    assert content["curves"] == alone["curves"]


def test_resamplings_never_test_on_what_they_fit():
    number_gn = np.arange(100)[None]
    judged = study.Judged((8,), number_gn / 100, number_gn < 50)
    for fit, test in study._resampled(judged, None, seed=3):
        assert fit.right_gn.shape == (1, 20)
        assert len(np.union1d(fit.confidence_gn, test.confidence_gn)) == 100
    other = study.Judged((8,), 2 + number_gn[:, :30] / 100, number_gn[:, :30] < 50)
    for fit, test in study._resampled(judged, other, seed=3):
        assert fit.confidence_gn.shape == (1, 100)
        assert test.confidence_gn.shape == (1, 30)
        assert fit.confidence_gn.max() < 2 <= test.confidence_gn.min()


@few_resamplings
def test_the_same_seed_gives_the_same_bytes():
    first, second, other = (
        measure(subject_with({"val": 40}, seed=seed), "val").files for seed in (1, 1, 2)
    )
    assert first == second
    assert first["val_cascade.json"] != other["val_cascade.json"]


@few_resamplings
def test_only_trained_dims_take_part():
    content = read(measure(subject_with({"val": 40}, measured=(1, 2, 3, 5, 8)), "val"), "val")
    assert content["dims"] == [1, 3, 8]


@few_resamplings
def test_nothing_to_decide_gives_nothing():
    empty = ({}, [], {})
    for finding in (
        measure(subject_with({"val": 30, "test": 30}), "val"),  # for test to fit on
        measure(subject_with({"val": 30}, "fixed"), "val"),  # one granularity
    ):
        assert (finding.files, finding.results, finding.examples) == empty


@few_resamplings
def test_nan_logits_are_never_sure():
    z_nd, label_n = clusters(60, 8, seed=1)
    z_nd[:9, 0] = np.nan
    content = read(
        measure(subject_of({"val": (z_nd, label_n)}, params=centre_params("shared")), "val"), "val"
    )
    assert all(single["accuracy"]["value"] <= 51 / 60 + 0.05 for single in content["single"])


def test_a_single_example_is_refused():
    with pytest.raises(Unmeasurable, match="needs at least 2 examples to fit and test on, got 1"):
        measure(subject_with({"val": 1}), "val")
