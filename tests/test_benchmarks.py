"""The benchmark command on sizes of nothing: that it runs and what it writes, not how fast."""

import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from mrl_jax import Nesting

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import harness, losses, search_peers  # noqa: E402  (not installed with the package)


@pytest.mark.slow
def test_command_writes_a_line_per_case_a_table_and_a_plot(tmp_path):
    command = [sys.executable, "-m", "benchmarks.losses", "--cases", "smoke:jax/naive"]
    result = subprocess.run(
        [*command, "--rounds", "3", "--out", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = [json.loads(x) for x in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert lines == [json.loads(x) for x in result.stdout.splitlines() if x.startswith("{")]
    floor, naive = lines
    assert (floor["case"], naive["case"]) == ("jax/one-dim", "jax/naive")
    assert floor["ratio_quartiles"] == [1, 1]
    for line in lines:
        assert line["setting"] == "nce-b8-g3"
        assert line["dims"] == [2, 4, 8]
        assert line["rounds"] == 3
        assert line["versions"]["jax"]
        assert {"device", "threads", "date", "load", "skipped"} <= set(line)
        for name in ("seconds", "ratio"):
            low, high = line[f"{name}_quartiles"]
            assert 0 < low <= line[f"{name}_median"] <= high
        for name in ("loss", "gflop_by_hand", "xla_gflop_loops_once"):
            assert math.isfinite(line[name])
        assert line["xla_output_mb"] >= 0
        assert line["peak_mb"] is None or line["peak_mb"] >= 0
    table = (tmp_path / "losses.md").read_text()
    assert table in result.stdout
    assert table.count("\n| jax/") == 2
    assert "left]" in result.stderr
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("setting", losses.SMOKE, ids=lambda setting: setting.name)
def test_every_implementation_finds_the_loss_of_its_kind(setting):
    cases = losses.cases_of(setting)
    steps = {case.name: losses.build(case) for case in cases}
    found = {name: step.run() for name, step in steps.items() if not isinstance(step, str)}
    assert setting.floor == cases[0].name
    losses.check_losses([case for case in cases if case.name in found], found)


def test_different_losses_of_equal_kind_stop_the_benchmark():
    cases = [harness.Case(name, name[0], 1.0, harness.Step) for name in ("a1", "a2", "b1")]
    losses.check_losses(cases, {"a1": 2.0, "a2": 2.0001, "b1": 3.0})
    for wrong in (2.1, math.nan):
        with pytest.raises(ValueError, match=r"a2 finds a loss of .*, a1 one of 2\.0"):
            losses.check_losses(cases, {"a1": 2.0, "a2": wrong, "b1": 3.0})


def test_hand_counted_products_are_those_xla_counts_without_loops():
    setting = losses.Classification(64, 96, (32, 64, 128))
    for case in losses.cases_of(setting):
        if case.name in ("jax/dense", "jax/naive-separate", "mrl_jax/head-separate"):
            counted = harness.xla_numbers(case.build().compiled)["xla_gflop_loops_once"]
            # The softmax and the sums come on top.
            assert 0.98 * case.gflop < counted < 1.25 * case.gflop


def test_cases_are_selected_by_pattern_and_always_with_their_floor():
    (setting,) = chosen = losses.select(["nce-b256-g48:*/naive"])
    assert Nesting(setting.dims).dims[:2] == (16, 32)
    assert [case.name for case in chosen[setting]] == ["jax/one-dim", "jax/naive", "torch/naive"]
    assert len(losses.select(losses.DEFAULT)) < len(losses.FULL) == len(losses.select("*"))
    with pytest.raises(ValueError, match=r"no case is called nothing; settings: ce-b256-c1000-g9"):
        losses.select(["nce-*", "nothing"])


def test_spread_is_the_median_and_the_quartiles():
    assert harness.spread([5.0, 1.0, 2.0, 4.0, 3.0]) == (3.0, [2.0, 4.0])
    assert harness.spread([2.0]) == (2.0, [2.0, 2.0])


@pytest.mark.parametrize("metric", ["cosine", "inner"])
def test_search_compares_prefixes_as_it_says(metric):
    z_nd = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    prefix, whole = (search_peers.Case("", dim, 8, 1) for dim in (3, 8))
    prefix.metric = whole.metric = metric
    lengths_n1 = np.linalg.norm(z_nd[:, :3], axis=1, keepdims=True) if metric == "cosine" else 1
    np.testing.assert_allclose(prefix.prefixes(z_nd), z_nd[:, :3] / lengths_n1, rtol=1e-6)
    np.testing.assert_array_equal(whole.prefixes(z_nd), z_nd)


@pytest.mark.slow  # ten processes that import JAX or faiss
def test_search_measures_what_reaches_the_target_and_keeps_other_lines(tmp_path):
    rng = np.random.default_rng(0)
    z_nd, q_bd = (rng.normal(size=(n, 64)) * 0.95 ** np.arange(64) for n in (600, 12))
    np.save(tmp_path / "z.npy", z_nd)
    np.save(tmp_path / "q.npy", q_bd)
    old = {"case": "faiss/exact", "data": "other", "target": 0.9, "skipped": "not here"}
    old |= {
        "batch": None,
        "single": None,
        "command": "old",
        "openblas": "",
        "repeats": 1,
        **harness.environment(),
    }
    (tmp_path / "search.jsonl").write_text(json.dumps(old) + "\n")
    command = [sys.executable, "-m", "benchmarks.search", "--vectors", tmp_path / "z.npy"]
    command += ["--query_vectors", tmp_path / "q.npy", "--targets", "0.9", "--rounds", "1"]
    command += ["--folder", tmp_path / "made", "--out", tmp_path, "--cases", "mrl_jax/clusters 24"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    kept, exact, ours = (
        json.loads(line) for line in (tmp_path / "search.jsonl").read_text().splitlines()
    )
    assert kept == old
    assert (exact["case"], ours["case"]) == ("faiss/exact", "mrl_jax/clusters 24")
    assert exact["batch"]["recall"] == exact["single"]["recall"] == 1
    for line in (exact, ours):
        assert line["skipped"] is None
        assert line["data"] == "z, 600 x 64, prefixes by cosine"
        assert line["floor"] == {
            "batch": exact["batch"]["qps"],
            "single": exact["single"]["p50_ms"],
        }
        assert line["single"]["p99_ms"] >= line["single"]["p50_ms"] > 0
        for found in (line["batch"], line["single"]):
            low, high = found["interval"]
            assert low <= found["recall"] <= high
            assert found["recall"] >= line["target"] == 0.9
    assert ours["single"]["reads_bytes"] < 600 * 64 * 4
    (exact_ids,) = (tmp_path / "made").glob("exact-*.npy")
    unit_nd = z_nd / np.linalg.norm(z_nd, axis=1, keepdims=True)
    np.testing.assert_array_equal(np.load(exact_ids), np.argsort(-(q_bd @ unit_nd.T), 1)[:, :10])
    assert len(list((tmp_path / "made").iterdir())) == 3  # no index is left
    assert "| mrl_jax/clusters 24 |" in (tmp_path / "search.md").read_text()
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow  # compiles four training steps
def test_text_measures_every_setting(tmp_path):
    command = [sys.executable, "-m", "benchmarks.text", "--smoke", "--rounds", "1"]
    result = subprocess.run(
        [*command, "--out", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    lines = [json.loads(x) for x in (tmp_path / "text.jsonl").read_text().splitlines()]
    assert [x["setting"] for x in lines] == ["step"] * 4 + ["lengths"] * 4 + ["encode"] * 2
    ours = [x for x in lines if x["case"].startswith("mrl_jax/")]
    assert len(ours) == 5
    for line in ours:
        assert line["skipped"] is None
        assert line["seconds_median"] > 0 < line["gflop_by_hand"]
        assert math.isfinite(line["loss"])
    plain, nested = ours[:2]
    # The same batch: of three dims each term is about the logarithm of the four pairs.
    assert 2 * plain["loss"] < nested["loss"] < 4 * plain["loss"]
    for line in set(map(json.dumps, lines)) - set(map(json.dumps, ours)):
        line = json.loads(line)
        assert line["skipped"] or line["loss"]  # sentence-transformers may not be there
    assert (tmp_path / "text.md").read_text() in result.stdout
