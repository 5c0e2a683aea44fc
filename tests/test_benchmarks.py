"""The benchmark command on sizes of nothing: that it runs and what it writes, not how fast."""

import json
import math
import pathlib
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from mrl_jax import Nesting

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

# Not installed with the package:
from benchmarks import harness, losses, search, search_case, search_data, search_report  # noqa: E402


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
    prefix, whole = (search_case.Case("", dim, 8, 1) for dim in (3, 8))
    prefix.metric = whole.metric = metric
    lengths_n1 = np.linalg.norm(z_nd[:, :3], axis=1, keepdims=True) if metric == "cosine" else 1
    np.testing.assert_allclose(prefix.prefixes(z_nd), z_nd[:, :3] / lengths_n1, rtol=1e-6)
    np.testing.assert_array_equal(whole.prefixes(z_nd), z_nd)


def _data(prefixes: bool, plan_queries: pathlib.Path | None = None) -> search_data.Data:
    none = pathlib.Path()
    return search_data.Data(
        "captions", 10_000, 384, none, none, none, plan_queries, "cosine", prefixes
    )


def _select(data: search_data.Data, *patterns: str) -> list[search_case.Case]:
    return search.select(data, patterns, 2, (0.9, 0.95))


def test_search_compares_first_dims_only_where_they_tell_most():
    ordinary, all_kinds = ({case.name for case in _select(_data(kind))} for kind in (False, True))
    assert ordinary < all_kinds
    both = {"faiss/exact", "hnswlib/HNSW", "rabitqlib/SymphonyQG", "mrl_jax/graph"}
    assert both | {"mrl_jax/graph rotated 192", "mrl_jax/planned 0.95"} < ordinary
    assert {"hnswlib/HNSW 56", "faiss/flat 56", "mrl_jax/graph 112"} <= all_kinds - ordinary
    assert _data(False).title == "captions, 10,000 x 384"
    with pytest.raises(ValueError, match=r"no case is called nothing; there are faiss/exact, "):
        _select(_data(True), "mrl_jax/*", "nothing")


@pytest.mark.parametrize("target", [0.5, 0.8, 0.97, 0.99, 1])
def test_search_tries_the_fewest_candidates_of_every_effort_that_is_enough(target):
    case = search_case.Case("", 8, 16, 1)
    case.efforts, case.keeps = tuple(range(1, 40)), tuple(range(10, 60, 5))
    tried = []

    def recall(setting: search_case.Setting) -> float:
        tried.append(setting)
        return (1 - 0.9**setting.effort) * (1 - 0.92**setting.keep)

    found = list(search.border(case, recall, target))
    enough = [
        (effort, min(keeps))
        for effort in case.efforts
        if (keeps := [k for k in case.keeps if recall(search_case.Setting(effort, k)) >= target])
    ]
    assert found == [at for i, at in enumerate(enough) if not i or enough[i - 1][1] > 10]
    tried.clear()
    next(search.border(case, recall, target), None)
    assert len(tried) <= 16


def test_search_says_why_a_case_has_no_numbers(monkeypatch, tmp_path):
    """One is missing, one ends its process, one fails when it is measured again."""
    names = ("faiss/exact", "usearch/float32", "svs/Vamana-LVQ", "hnswlib/HNSW")
    chosen = _select(_data(False), *names)
    for case in chosen:
        monkeypatch.setattr(case, "missing", lambda: None)
    by_name = {case.name: case for case in chosen}
    monkeypatch.setattr(by_name[names[1]], "missing", lambda: "usearch is not installed")
    ask = {mode: [search_case.Setting()] for mode in search.MODES}
    sizes = {"index_bytes": 1, "vector_bytes": 0, "best_recall": 1.0}
    one = {"recall": 1.0, "interval": (1.0, 1.0), "asked": "", "qps": 2.0, "p50_ms": 3.0}
    one |= {"p99_ms": 3.0, "reads_bytes": None}

    def here(function, case, *rest):
        if function is search.build:
            if case.name == names[2]:
                raise BrokenProcessPool("a process was\nterminated.")
            return {"build_seconds": 1.0}
        if function is search.sweep:
            return {**sizes, "chosen": {0.9: ask}}
        if case.name == names[3]:
            raise MemoryError("none left")
        return dict.fromkeys(rest[2], one)

    monkeypatch.setattr(search, "in_fresh_process", here)
    np.save(tmp_path / "q.npy", np.zeros((5, 384), np.float32))
    data = _data(False)._replace(queries=tmp_path / "q.npy")
    lines = search.measure(data, chosen, [0.9], search.QUICK, tmp_path / "indexes")
    about = {line["case"]: (line["skipped"], line["batch"]) for line in lines}
    assert about.pop("faiss/exact")[1]["qps"] == 2
    assert about == {
        "usearch/float32": ("usearch is not installed", None),
        "svs/Vamana-LVQ": ("BrokenProcessPool: a process was terminated", None),
        "hnswlib/HNSW": ("MemoryError: none left", None),
    }
    about = {"command": "", "openblas": "", "bandwidth": 1.0, "threads": 1}
    text = search_report.markdown([{**x, **about, **harness.environment()} for x in lines])
    assert "Skipped svs/Vamana-LVQ: BrokenProcessPool: a process was terminated." in text


def _line(case: str, data: str, qps: float, recall: float = 0.95, **more) -> dict:
    found = {"recall": recall, "interval": (recall, recall), "asked": ""}
    return {
        "case": case,
        "data": data,
        "target": 0.9,
        "skipped": None,
        "batch": {**found, "qps": qps},
        "single": {**found, "p50_ms": 100 / qps, "p99_ms": 1.0, "reads_bytes": 1e6},
        "floor": {"batch": 10.0, "single": 10.0},
        "index_bytes": 1e6 * qps,
        "vector_bytes": 0,
        "build_seconds": qps / 4,
        "bandwidth": 1e9,
        "command": "",
        "openblas": "",
        "repeats": 1,
        "threads": 2,
        **harness.environment(),
        **more,
    }


def test_search_reports_models_first_and_plans_beside_the_fastest():
    promised = {"recall": 0.91, "interval": [0.9, 0.92], "qps": 50.0, "p50_ms": 2.0}
    lines = [_line("faiss/exact", "generated, 9 x 9", 10.0)]
    lines += [
        _line("faiss/exact", "captions, 9 x 9", 10.0),
        _line("svs/x", "captions, 9 x 9", 80.0),
    ]
    lines += [_line("mrl_jax/graph", "captions, 9 x 9", 100.0)]
    planned = {"promised": promised, "planning_seconds": 7.0}
    lines += [_line("mrl_jax/planned 0.9", "captions, 9 x 9", 40.0, 0.89, **planned)]
    text = search_report.markdown(lines)
    assert text.index("## captions") < text.index("## generated")
    assert "mrl_jax/planned 0.9 (misses the target)" in text
    assert (
        "Ours beside the fastest of others: 1.25x its queries a second (mrl_jax/graph; svs/x), "
        "with 1.25x its bytes in memory, 1.25x its time to build; alone 1.25x as fast"
    ) in text
    assert (
        "mrl_jax/planned 0.9 promised a recall of 0.9100 [0.9000, 0.9200] and found 0.8900; beside "
        "our fastest that reaches the target it has 0.40x the queries a second, and is 0.40x as "
        "fast alone."
    ) in text


def test_search_measures_no_query_that_plans_are_made_with(monkeypatch, tmp_path):
    monkeypatch.setattr(search_data, "in_fresh_process", lambda run, *about: run(*about))
    z_nd, q_bd = (np.random.default_rng(n).normal(size=(n, 32)) for n in (40, 9))
    paths = tmp_path / "z.npy", tmp_path / "q.npy"
    for path, rows in zip(paths, (z_nd, q_bd), strict=True):
        np.save(path, rows)
    prepared = search_data.prepare(tmp_path / "made", None, 6, *paths, "cosine", False, "photos")
    assert prepared.title == "photos, 40 x 32"
    unit_bd = (q_bd / np.linalg.norm(q_bd, axis=1, keepdims=True)).astype(np.float32)
    np.testing.assert_allclose(np.load(prepared.queries), unit_bd[:6], rtol=1e-6)
    np.testing.assert_allclose(np.load(prepared.plan_queries), unit_bd[6:], rtol=1e-6)
    all_asked = search_data.prepare(tmp_path / "made", 20, 9, *paths, "cosine", True, None)
    assert (all_asked.rows, all_asked.plan_queries) == (20, None)
    (planned, _) = (case for case in _select(all_asked, "mrl_jax/planned*") if case.only_target)
    assert planned.missing().startswith("no queries are left to plan with")


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
