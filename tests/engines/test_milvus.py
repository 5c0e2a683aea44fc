"""Milvus Lite through the client that serves clusters, against brute force by the same schedule."""

import contextlib
import importlib
import json
import sys

import numpy as np
import plans
import pymilvus
import pytest

from mrl_jax import errors
from mrl_jax.engines import __main__ as command
from mrl_jax.engines import milvus
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule

N, WIDTH, K = 1200, 64, 10
IDS, Z = plans.vectors(N)
QUERIES = plans.vectors(12, seed=1)[1]
FUNNEL = Schedule.parse("16:100 > 32:40 > 64")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("milvus") / "lite.db")
    with contextlib.closing(pymilvus.MilvusClient(uri)) as client:
        yield client


@pytest.fixture
def name(client):
    """Collections of a test are gone after it."""
    yield "c"
    for collection in client.list_collections():
        client.drop_collection(collection)


def in_chunks(rows=700):
    return ((IDS[i : i + rows], Z[i : i + rows]) for i in range(0, N, rows))


@pytest.mark.parametrize("metric", ["cosine", "inner", "l2"])
def test_equals_brute_force_by_the_same_schedule(client, name, metric, monkeypatch):
    assert milvus.load(client, name, in_chunks(), FUNNEL, index="FLAT", metric=metric) == N
    for text in ("16:100 > 64", "16:100 > 32:40 > 64", "16:10 > 32", "64"):
        schedule = Schedule.parse(text)
        found = milvus.search(client, name, QUERIES, K, schedule)
        plans.check(found, plans.expected(IDS, Z, QUERIES, K, schedule, metric))
    # Many queries come in several messages.
    monkeypatch.setattr(milvus, "_HITS", 500)
    again = milvus.search(client, name, QUERIES, K, schedule)
    np.testing.assert_array_equal(again[0], found[0])


@pytest.mark.parametrize(
    ("index", "metric"),
    [
        ("HNSW", "cosine"),
        ("IVF_FLAT", "inner"),
        ("AUTOINDEX", "l2"),
    ],
)
def test_recall_of_the_index(client, name, index, metric):
    schedule = Schedule.parse("16:100 > 64")
    milvus.load(client, name, in_chunks(), schedule, index=index, metric=metric)
    assert client.describe_index(name, "prefix_16")["index_type"] == index
    assert client.describe_index(name, "vector")["index_type"] == "FLAT"
    found, _ = milvus.search(client, name, QUERIES, K, schedule)
    flat, _ = plans.expected(IDS, Z, QUERIES, K, schedule, metric)
    exact, _ = plans.expected(IDS, Z, QUERIES, K, Schedule.exact(WIDTH), metric)
    assert plans.recall(flat, exact) > 0.9
    assert plans.recall(found, exact) >= 0.97 * plans.recall(flat, exact)


def test_without_a_shortlist_the_search_is_exact(client, name):
    milvus.load(client, name, [(IDS[:50], Z[:50])], Schedule.exact(WIDTH))
    assert client.describe_index(name, "vector")["index_type"] == "FLAT"


def test_final_dims_may_be_fewer_than_all(client, name):
    schedule = Schedule.parse("16:100 > 48")
    milvus.load(client, name, in_chunks(), schedule, index="FLAT")
    found = milvus.search(client, name, QUERIES, K, schedule)
    plans.check(found, plans.expected(IDS, Z, QUERIES, K, schedule, "cosine"))


def test_ids_come_back_as_they_were(client, name):
    ids = np.array([2**53 + 1, 2**63 - 1, -(2**63)])
    chunks = [(ids.astype(">i8"), Z[:3].astype(">f4"))]
    milvus.load(client, name, chunks, FUNNEL, index="FLAT")
    found = milvus.search(client, name, Z[:3].astype(">f8"), 1, FUNNEL)
    assert found[0][:, 0].tolist() == ids.tolist()


def test_whatever_breaks_off_a_load_leaves_no_collection(client, name):
    def breaking_off():
        yield IDS[:900], Z[:900]
        raise OSError("the disk of the vectors went away")

    with pytest.raises(OSError, match="went away"):
        milvus.load(client, name, breaking_off(), FUNNEL)
    assert not client.has_collection(name)
    assert milvus.load(client, name, in_chunks(), FUNNEL) == N
    assert client.list_collections() == [name]
    with pytest.raises(errors.DataError, match="collection c exists already: drop it, or"):
        milvus.load(client, name, in_chunks(), FUNNEL)


SPOILED = Z.copy()
SPOILED[1034, 60] = np.nan


@pytest.mark.parametrize(
    ("chunks", "options", "message"),
    [
        ([(IDS, SPOILED)], {}, f"the vector with id {IDS[1034]} holds NaN or infinity"),
        ([(IDS[[1, 2, 1]], Z[:3])], {}, f"ids must be distinct: {IDS[1]} came more than once"),
        ([(IDS, Z), (IDS[:5], Z[:5, :60])], {}, r"5 ids need vectors \(5, 64\), got \(5, 60\)"),
        ([], {}, "there are no vectors to load"),
        ([(IDS, Z)], {"index": "DISKANN"}, "index must be one of HNSW, IVF_FLAT, AUTOINDEX, FLAT"),
        ([(IDS, Z)], {"metric": "dot"}, "metric must be one of cosine, inner, l2; got 'dot'"),
    ],
)
def test_vectors_that_cannot_be_loaded(client, name, chunks, options, message):
    with pytest.raises((errors.DataError, errors.UsageError), match=message):
        milvus.load(client, name, chunks, FUNNEL, **options)
    assert not client.has_collection(name)


def test_searches_that_cannot_be(client, name):
    milvus.load(client, name, [(IDS[:30], Z[:30])], FUNNEL, index="FLAT")
    plain = client.create_schema(auto_id=False)
    plain.add_field("id", pymilvus.DataType.INT64, is_primary=True)
    plain.add_field("other", pymilvus.DataType.FLOAT_VECTOR, dim=8)
    client.create_collection("foreign", schema=plain)
    spoiled = QUERIES.copy()
    spoiled[3, 5] = np.inf
    for changed, message in (
        ({"k": 41}, "k must be 1 to 40, which 16:100 > 32:40 > 64 keeps; got 41"),
        ({"queries_bd": QUERIES[:0]}, r"queries must be \[>= 1, 64\] .*, got float32 \(0, 64\)"),
        ({"queries_bd": QUERIES[:, :63]}, r"queries must be .*, got float32 \(12, 63\)"),
        ({"queries_bd": spoiled}, "query 3 holds NaN or infinity"),
        ({"schedule": Schedule.parse("8:20 > 64")}, r"has prefixes \[16, 32, 64\], not 8:20 > 64"),
        ({"schedule": Schedule.parse("16:16385 > 64")}, "at most 16384 rows, not 16385"),
        ({"collection": "nowhere"}, "there is no collection nowhere"),
        ({"collection": "foreign"}, "foreign was not made by load: it has no field vector"),
        ({"k": 31}, "collection c gave 30 rows where k = 31 were asked for"),
    ):
        arguments = {"collection": name, "queries_bd": QUERIES, "k": K, "schedule": FUNNEL}
        with pytest.raises((errors.DataError, errors.UsageError), match=message):
            milvus.search(client, **{**arguments, **changed})


def test_commands_and_a_file_that_is_opened_again(tmp_path, capsys):
    np.save(tmp_path / "z.npy", Z)
    np.save(tmp_path / "ids.npy", IDS)
    np.save(tmp_path / "q.npy", QUERIES)
    written = {"schema": 1, "plan": Plan(FUNNEL, "l2").to_json()}
    (tmp_path / "plan.json").write_text(json.dumps(written))
    place = ["--uri", f"{tmp_path}/lite.db", "--collection", "c", "--plan", f"{tmp_path}/plan.json"]
    vectors = ["--vectors", f"{tmp_path}/z.npy", "--ids", f"{tmp_path}/ids.npy"]
    command.main(["milvus", "load", *place, *vectors, "--index", "FLAT"])
    assert capsys.readouterr().out == f"{N} vectors, compared by l2: c\n"
    from milvus_lite import server_manager_instance

    server_manager_instance.release_server(f"{tmp_path}/lite.db")
    out = ["--queries", f"{tmp_path}/q.npy", "--k", "5", "--out", f"{tmp_path}/found.npz"]
    command.main(["milvus", "query", *place, *out])
    found = np.load(tmp_path / "found.npz")
    right = plans.expected(IDS, Z, QUERIES, 5, FUNNEL, "l2")
    plans.check((found["ids"], found["scores"]), right)
    (tmp_path / "plan.json").write_text(json.dumps({"schema": 1, "plan": Plan(FUNNEL).to_json()}))
    with pytest.raises(errors.UsageError, match="collection c compares by l2, not by cosine"):
        command.main(["milvus", "query", *place, *out])


@pytest.mark.parametrize(("engine", "library"), [("milvus", "pymilvus"), ("postgres", "psycopg")])
def test_a_library_that_is_missing(engine, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"mrl_jax.engines.{engine}", raising=False)
    with pytest.raises(errors.UsageError, match=rf'install "mrl_jax\[engines\]" .*{library}'):
        importlib.import_module(f"mrl_jax.engines.{engine}")
