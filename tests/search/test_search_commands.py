import contextlib
import json
import re
import signal
import subprocess
import time

import commands
import numpy as np
import pytest
from class_vectors import nearest, recall, vectors

from mrl_jax.errors import DataError, UsageError
from mrl_jax.search.__main__ import main
from mrl_jax.search.commands import size
from mrl_jax.search.index import Index
from mrl_jax.search.index import files as index_files
from mrl_jax.search.plan import read_plan

SEARCH, WIDTH, K = "mrl_jax.search", 32, 10


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Vectors with ids, queries to plan with, and fresh ones."""
    folder = tmp_path_factory.mktemp("files")
    np.save(folder / "x.npy", vectors(2000, WIDTH, 0))
    np.save(folder / "ids.npy", 7 * np.arange(2000) + 3)
    np.save(folder / "more.npy", vectors(100, WIDTH, 1))
    np.save(folder / "more_ids.npy", np.arange(100) + 100_000)
    np.save(folder / "queries.npy", vectors(160, WIDTH, 2))
    np.save(folder / "fresh.npy", vectors(80, WIDTH, 3))
    return folder


def _run(verb, *arguments):
    return commands.succeed(commands.command(SEARCH, verb, *arguments))


@pytest.mark.slow  # plans are measured in test_planner, the other verbs below
@pytest.mark.timeout(1200)
def test_from_vectors_to_neighbours(files, tmp_path):
    plan, index, out = tmp_path / "plan.json", tmp_path / "index", tmp_path / "n.npz"
    base = ("--vectors", files / "x.npy", "--queries", files / "queries.npy")
    printed = _run("plan", *base, "--target_recall", 0.9, "--dims", "8,16", "--out", plan)
    content = json.loads(plan.read_text())
    low, high = content["expected"]["interval"]
    assert 0.9 <= low <= content["expected"]["recall"] <= high
    assert {"exact", "paper"} <= {point["role"] for point in content["frontier"]}
    assert content["command"].startswith("python -m mrl_jax.search plan --vectors")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert "(baseline)" in printed
    assert "(paper's Ds, K)" in printed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.json", "plan.png"]

    source = ("--vectors", files / "x.npy", "--ids", files / "ids.npy")
    printed = _run("build", *source, "--plan", plan, "--out", index)
    assert "2,000 vectors of 32 dims" in printed
    assert Index.open(index).plan == read_plan(plan)

    printed = _run("query", "--index", index, "--queries", files / "fresh.npy", "--out", out)
    assert "80 queries, " in printed
    assert " a second: " in printed
    with np.load(out) as found:
        ids, scores = found["ids"], found["scores"]
    assert (ids.dtype, ids.shape) == (np.int64, (80, K))
    assert (scores.dtype, scores.shape) == (np.float32, (80, K))
    z_nd, fresh_bd = np.load(files / "x.npy"), np.load(files / "fresh.npy")
    true_bk = nearest(z_nd, fresh_bd, K)
    real = recall((ids - 3) // 7, true_bk)
    assert low <= real <= high
    np.testing.assert_allclose(
        scores[:, 0], np.einsum("bd,bd->b", z_nd[true_bk[:, 0]], fresh_bd), rtol=1e-5
    )

    printed = _run("evaluate", "--index", index, "--queries", files / "fresh.npy")
    lines = dict(line.split(maxsplit=1) for line in printed.splitlines())
    assert lines["recall@10"] == f"{real:.4f} of 80 queries"
    assert "p50" in lines["one"]
    assert "p99" in lines["one"]
    assert "queries a second" in lines["all"]
    assert "of whole vectors" in lines["bytes"]


def _main(verb, *arguments):
    main([verb, *map(str, arguments)])


def test_changes(files, tmp_path, capsys):
    index = tmp_path / "index"
    _main("build", "--vectors", files / "x.npy", "--out", index)
    assert "exact, 32 dims, cosine" in capsys.readouterr().out
    more = ("--vectors", files / "more.npy", "--ids", files / "more_ids.npy")
    _main("add", "--index", index, *more)
    np.save(tmp_path / "gone.npy", np.arange(500))
    _main("delete", "--index", index, "--ids", tmp_path / "gone.npy")
    _main("evaluate", "--index", index, "--queries", files / "fresh.npy", "--k", 5)
    _main("compact", "--index", index)
    _main("verify", "--index", index)
    printed = capsys.readouterr().out
    assert f"100 vectors added, 2,100 in all: {index}" in printed
    assert f"500 vectors deleted, 1,600 left: {index}" in printed
    assert re.search("recall@5 +1.0000 of 80 queries", printed)
    assert "1,600 vectors, 6" in printed  # 64,000 bytes of whole vectors and a few more
    assert "all files as they were written" in printed

    _main("query", "--index", index, "--queries", files / "fresh.npy", "--out", tmp_path / "n.npz")
    z_nd = np.concatenate([np.load(files / "x.npy")[500:], np.load(files / "more.npy")])
    row_bk = nearest(z_nd, np.load(files / "fresh.npy"), K)
    with np.load(tmp_path / "n.npz") as found:
        np.testing.assert_array_equal(
            found["ids"], np.where(row_bk < 1500, row_bk + 500, row_bk - 1500 + 100_000)
        )

    query = ("query", "--index", index, "--queries", files / "fresh.npy")
    np.save(tmp_path / "allow.npy", np.arange(0, 1000, 3))
    _main(*query, "--allow", tmp_path / "allow.npy", "--out", tmp_path / "some.npz")
    allowed = np.arange(501, 1000, 3)
    row_bk = nearest(np.load(files / "x.npy")[allowed], np.load(files / "fresh.npy"), K)
    with np.load(tmp_path / "some.npz") as found:
        np.testing.assert_array_equal(found["ids"], allowed[row_bk])

    everything = Index.open(index)
    everything.delete(everything.ids)
    with pytest.raises(DataError, match="holds no vectors: all were deleted"):
        _main("query", "--index", index, "--queries", files / "fresh.npy", "--out", tmp_path / "n")

    (segment,) = index.glob("segment-*/vectors.npy")
    content = bytearray(segment.read_bytes())
    content[5000] ^= 1
    segment.write_bytes(content)
    with pytest.raises(DataError, match=r"vectors\.npy is damaged: its checksum differs"):
        _main("verify", "--index", index)


def test_changes_wait_for_others(files, tmp_path, capsys):
    index = Index.build(tmp_path / "index", np.load(files / "x.npy")[:50])
    np.save(tmp_path / "gone.npy", np.arange(5))
    more = ("--vectors", files / "more.npy", "--ids", files / "more_ids.npy")
    for verb, *arguments in (
        ("add", *more),
        ("delete", "--ids", tmp_path / "gone.npy"),
        ("compact",),
    ):
        with index_files.writing(index.folder):
            with pytest.raises(UsageError, match=r"changed by another command, also 0.01 s later$"):
                _main(verb, "--index", index.folder, *arguments, "--wait", 0.01)
            with pytest.raises(UsageError, match="'soon' are no seconds such as 0 or 30"):
                _main(verb, "--index", index.folder, *arguments, "--wait", "soon")
        _main(verb, "--index", index.folder, *arguments, "--wait", 1)
    assert "145 vectors" in capsys.readouterr().out


def test_files_of_other_tools_are_taken(tmp_path, capsys):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    safetensors = pytest.importorskip("safetensors.numpy", reason="the queries are of its kind")
    x_nd, queries_bd = vectors(60, WIDTH, 0), vectors(9, WIDTH, 1)
    as_bytes = np.concatenate([np.full((30, 1), WIDTH, "<i4").view("<f4"), x_nd[:30]], 1)
    (tmp_path / "x.fvecs").write_bytes(as_bytes.astype("<f4").tobytes())
    (tmp_path / "parts").mkdir()
    for first, last in ((30, 50), (50, 60)):
        table = pa.table({"id": np.arange(first, last), "vector": list(x_nd[first:last])})
        pq.write_table(table, tmp_path / "parts" / f"part-{first}.parquet")
    safetensors.save_file({"a": queries_bd, "b": x_nd}, tmp_path / "q.safetensors")
    index, asked = tmp_path / "index", f"{tmp_path}/q.safetensors:a"
    _main("build", "--vectors", tmp_path / "x.fvecs", "--out", index)
    _main("add", "--index", index, "--vectors", tmp_path / "parts")
    _main("query", "--index", index, "--queries", asked, "--k", 3, "--out", tmp_path / "n.npz")
    with np.load(tmp_path / "n.npz") as found:
        np.testing.assert_array_equal(found["ids"], nearest(x_nd, queries_bd, 3))
    _main("evaluate", "--index", index, "--queries", asked, "--k", 3)
    assert "1.0000 of 9 queries" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"q\.safetensors: say which are the vectors, such as"):
        _main("evaluate", "--index", index, "--queries", tmp_path / "q.safetensors")
    ids_n = np.array([[1, 30], [1, 59], [1, 0]], "<i4")  # each after their number
    (tmp_path / "gone.ivecs").write_bytes(ids_n.tobytes())
    _main("delete", "--index", index, "--ids", tmp_path / "gone.ivecs")
    assert sorted(set(range(60)) - set(Index.open(index).ids.tolist())) == [0, 30, 59]


def test_planning_with_the_vectors_themselves_is_no_test(tmp_path, capsys):
    """They find themselves: nothing is known of what others find."""
    np.save(tmp_path / "x.npy", vectors(60, 8, 0))
    np.save(tmp_path / "q.npy", vectors(60, 8, 1))
    plan = ("plan", "--target_recall", 0.8, "--vectors", tmp_path / "x.npy", "--queries")
    _main(*plan, tmp_path / "x.npy", "--out", tmp_path / "a.json")
    warning = f"warning: 60 of these queries are vectors of {tmp_path / 'x.npy'}, which any plan"
    assert warning in capsys.readouterr().out
    _main(*plan, tmp_path / "q.npy", "--out", tmp_path / "b.json")
    assert "warning" not in capsys.readouterr().out


def test_a_plan_that_cannot_be_made_leaves_nothing(files, tmp_path):
    base = ("--vectors", files / "x.npy", "--queries", files / "queries.npy")
    wished = ("--target_recall", 1, "--memory", "60KB", "--dims", 16, "--out", tmp_path / "p.json")
    with pytest.raises(DataError, match=r"no plan within the limits .* recall@10 1: the best is "):
        _main("plan", *base, *wished)
    assert list(tmp_path.iterdir()) == []


def test_an_index_of_texts(files, tmp_path, capsys):
    z_nd, queries = np.load(files / "x.npy")[:200], files / "fresh.npy"
    names = [f"photo {n}" for n in range(200)]
    Index.build(tmp_path / "index", z_nd, names)
    index, out = ("--index", tmp_path / "index"), ("--out", tmp_path / "n.npz")
    _main("query", *index, "--queries", queries, *out)
    row_bk = nearest(z_nd, np.load(queries), K)
    with np.load(tmp_path / "n.npz") as found:
        np.testing.assert_array_equal(found["ids"], np.array(names)[row_bk])
    _main("query", *index, "--queries", queries, *out)  # which replaces what it wrote
    _main("evaluate", *index, "--queries", queries)
    assert re.search("recall@10 +1.0000 of 80 queries", capsys.readouterr().out)
    message = r"ids\.npy holds whole numbers, the ids of the index are texts"
    ask = ("query", "--queries", queries, *out)
    for command in (("delete", "--ids"), (*ask, "--allow")):
        with pytest.raises(DataError, match=message):
            _main(*command, files / "ids.npy", *index)

    allowed = np.arange(0, 200, 7)
    (tmp_path / "allowed.txt").write_text("".join(f"{names[row]}\n" for row in allowed))
    _main(*ask, *index, "--allow", tmp_path / "allowed.txt")
    with np.load(tmp_path / "n.npz") as found:
        row_bk = nearest(z_nd[allowed], np.load(queries), K)
        np.testing.assert_array_equal(found["ids"], np.array(names)[allowed[row_bk]])


def test_texts_are_ids_of_every_command(files, tmp_path, capsys):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    z_nd, queries = np.load(files / "x.npy")[:60], files / "fresh.npy"
    names = [f"{n}.jpg" for n in range(50)] + [str(n) for n in range(10)]
    np.save(tmp_path / "first.npy", z_nd[:30])
    np.save(tmp_path / "names.npy", np.array(names[:30]))
    table = {"id": names[30:50], "vector": list(z_nd[30:50])}
    pq.write_table(pa.table(table), tmp_path / "second.parquet")
    np.save(tmp_path / "third.npy", z_nd[50:])
    (tmp_path / "third.txt").write_text("\n".join(names[50:]))  # which look like numbers
    pq.write_table(pa.table({"a": names[5:9], "b": names[:4]}), tmp_path / "gone.parquet")
    index = ("--index", tmp_path / "index")
    first = ("--vectors", tmp_path / "first.npy", "--ids", tmp_path / "names.npy")
    plan = ("plan", *first, "--queries", queries, "--target_recall", 0.5)
    _main(*plan, "--out", tmp_path / "p.json")
    _main("build", *first, "--out", tmp_path / "index")
    _main("add", *index, "--vectors", tmp_path / "second.parquet")
    _main("add", *index, "--vectors", tmp_path / "third.npy", "--ids", tmp_path / "third.txt")
    assert Index.open(tmp_path / "index").ids.tolist() == names
    _main("delete", *index, "--ids", f"{tmp_path}/gone.parquet:b")
    assert Index.open(tmp_path / "index").ids.tolist() == names[4:]
    with pytest.raises(DataError, match=r"gone\.parquet must have a column id, .* it has a, b;"):
        _main("delete", *index, "--ids", tmp_path / "gone.parquet")
    with pytest.raises(DataError, match=r"id 0\.jpg is not in the index"):
        _main("delete", *index, "--ids", f"{tmp_path}/gone.parquet:b")
    # Whole numbers as text.
    _main("build", "--vectors", files / "x.npy", "--out", tmp_path / "numbers")
    (tmp_path / "gone.txt").write_text("3\n1999\n")
    _main("delete", "--index", tmp_path / "numbers", "--ids", tmp_path / "gone.txt")
    assert "2 vectors deleted, 1,998 left" in capsys.readouterr().out


def test_errors_are_one_line(tmp_path):
    line = commands.fail(commands.command(SEARCH, "verify", "--index", tmp_path), 3)
    assert "holds no index" in line


def test_bad_input_is_refused_before_any_work(files, tmp_path):
    index, out = tmp_path / "index", tmp_path / "out"
    x, queries = files / "x.npy", files / "fresh.npy"
    np.save(tmp_path / "narrow.npy", vectors(5, 16, 0))
    nan_bd = vectors(5, WIDTH, 0)
    nan_bd[3, 2] = np.nan
    np.save(tmp_path / "nan.npy", nan_bd)
    np.save(tmp_path / "float_ids.npy", np.arange(3.0))
    np.save(tmp_path / "no_id.npy", np.array([5000]))
    (tmp_path / "plan.json").write_text("{}")
    _main("build", "--vectors", x, "--out", index)
    before = sorted(tmp_path.rglob("*"))
    ask = ("query", "--index", index, "--out", out, "--queries")
    plan = ("plan", "--vectors", x, "--queries", queries, "--target_recall", 0.9)
    cases = [
        ((*ask, tmp_path / "narrow.npy"), DataError, "has 16 dims, the index .* 32"),
        ((*ask, tmp_path / "nan.npy"), DataError, "row 3 holds NaN"),
        ((*ask, tmp_path / "none.npy"), DataError, "is missing"),
        ((*ask, queries, "--k", 0), UsageError, "--k: k must be 1 to all rows; got 0"),
        ((*ask, queries, "--k", 10**8), UsageError, "--k must be 1 to 2000, the number of vec"),
        (
            ("query", "--index", index, "--queries", queries, "--out", index),
            UsageError,
            "is a folder",
        ),
        (("evaluate", "--index", tmp_path, "--queries", queries), DataError, "holds no index"),
        (
            ("evaluate", "--index", index, "--queries", queries, "--k", 9999),
            UsageError,
            "1 to 2000",
        ),
        (("build", "--vectors", x, "--out", index), UsageError, "exists already"),
        (
            ("build", "--vectors", x, "--out", out, "--plan", tmp_path / "plan.json"),
            DataError,
            "cannot read the plan",
        ),
        (("add", "--index", index, "--vectors", x), DataError, "id 0 is in the index already"),
        (
            ("delete", "--index", index, "--ids", tmp_path / "float_ids.npy"),
            DataError,
            "must hold ids, one for each row: whole numbers .* or texts; it holds float64",
        ),
        (
            ("delete", "--index", index, "--ids", tmp_path / "no_id.npy"),
            DataError,
            "id 5000 is not in the index",
        ),
        ((*plan, "--out", tmp_path / "p.png"), UsageError, "give it another ending"),
        ((*plan, "--out", x / "p.json"), UsageError, "cannot be written"),
        ((*plan, "--out", out, "--memory", "much"), UsageError, "'much' is no size such as 2GB"),
        ((*plan, "--out", out, "--dims", "8;16"), UsageError, "'8;16' are no dims such as 16,64"),
        ((*plan, "--out", out, "--target_recall", 2), UsageError, "at most 1; got 2"),
        (("search",), UsageError, "invalid choice: 'search'"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            _main(*arguments)
    after = {path for path in tmp_path.rglob("*") if path.name != ".lock"}
    assert after == set(before) - {index / ".lock"}


def test_sizes():
    assert [size(x) for x in ("2GB", "1.5m", "500", "3 kB")] == [2 * 10**9, 1_500_000, 500, 3000]


@pytest.mark.slow
def test_results_are_written_where_stderr_is_closed(tmp_path):
    """As by daemons, with so many rows and queries that a terminal would show bars."""
    np.save(tmp_path / "x.npy", vectors(6000, 8, 0))
    source, index, out = tmp_path / "x.npy", tmp_path / "index", tmp_path / "found.npz"
    for arguments in (
        ("build", "--vectors", source, "--out", index),
        ("query", "--index", index, "--queries", source, "--out", out),
    ):
        done = subprocess.run(
            ["bash", "-c", 'exec "$@" 2>&-', "bash", *commands.command(SEARCH, *arguments)],
            cwd=commands.ROOT,
            env=commands.environment(),
            stdout=subprocess.PIPE,
        )
        assert done.returncode == 0
    np.testing.assert_array_equal(np.load(out)["ids"][:, 0], np.arange(6000))


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(files, tmp_path):
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    base = ("--vectors", files / "x.npy", "--queries", files / "queries.npy")
    plan = (SEARCH, "plan", *base, "--target_recall", 0.9, "--out")
    # While numba's compiler runs, an interrupt may get lost: now all is compiled and kept.
    commands.succeed(commands.command(*plan, tmp_path / "whole.json"))
    argv = commands.command(*plan, out / "p.json")
    environment = {**commands.environment(), "TMPDIR": str(scratch)}
    process = subprocess.Popen(
        argv, cwd=commands.ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    seen = set()
    while len(seen) < 2:
        for path in scratch.glob("mrl_jax_plan_*/index/manifest.json"):
            with contextlib.suppress(FileNotFoundError):
                seen.add(path.stat().st_mtime_ns)
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    # Warnings are errors here, also that of a file numba was reading.
    assert (process.returncode, errors.splitlines()[-1]) == (130, "error: interrupted")
    assert list(scratch.glob("mrl_jax_plan_*")) == []
    assert list(out.iterdir()) == []
