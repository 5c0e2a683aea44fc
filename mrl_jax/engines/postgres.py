"""PostgreSQL with pgvector >= 0.7: shortlist by an index on a prefix and re-rank in one statement.

The table has two columns, `id` and `vector`. A prefix needs no column of its own: an HNSW index
holds the first stage's prefix of every vector, computed when it is built. All functions take a
connection of psycopg 3, in any state, and join a transaction that the caller has begun.
"""

import json
import re
from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np

from mrl_jax import extras
from mrl_jax.engines import arrays
from mrl_jax.errors import DataError, UsageError, shown
from mrl_jax.search.schedule import Metric, Schedule
from mrl_jax.store import json_files

with extras.needed("engines", "PostgreSQL"):
    import psycopg
    from psycopg import sql
    from psycopg.rows import tuple_row

Code = Literal["vector", "halfvec", "bit"]

_SCHEMA = 1  # of the table's comment
_OPERATORS = {"cosine": "<=>", "inner": "<#>", "l2": "<->"}
_OPERATOR_CLASSES = {"cosine": "cosine_ops", "inner": "ip_ops", "l2": "l2_ops"}
# What pgvector can hold, and index.
_MOST_DIMS = 16_000
_MOST_INDEXED = {"vector": 2_000, "halfvec": 4_000, "bit": 64_000}
_MOST_EF = 1_000
_QUERIES = 1024  # sent at a time, without waiting for the answers in between
# A tuple of COPY's binary format, as `CREATE TABLE` below orders the columns: all big-endian.
_COPY_START, _COPY_END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"


def load(
    connection: "psycopg.Connection",
    table: str,
    chunks: Iterable[arrays.Chunk],
    schedule: Schedule,
    *,
    code: Code = "vector",
    metric: Metric = "cosine",
) -> int:
    """Makes a table of vectors and an index of their first dims, and gives the number of rows.

    Everything happens in one transaction, so a load that breaks off leaves no trace and can be
    called again. A large graph is built much sooner if it fits into the server's
    `maintenance_work_mem`.

    Args:
      connection: to a database where `CREATE EXTENSION vector` was run.
      table: its name, "table" or "schema.table"; anything else is quoted.
      chunks: (ids_n, z_nd) in any number, say `open_vectors(path).chunks(4096)` or
        [(ids_n, z_nd)]. Ids are distinct.
      schedule: its first stage's prefix is indexed, the others need no index. Without stages there
        is no index. A search may have another schedule with the same first prefix.
      code: of the prefixes in the index: float32, float16, or signs, which are compared by Hamming
        distance whatever the metric is.
      metric: of both comparisons. A vector whose prefix is zero is found by "cosine" only if there
        is no index.

    Raises:
      UsageError: arguments that do not fit; pgvector is absent or too old.
      DataError: the table exists, or the ids or vectors cannot be loaded.
    """
    arrays.check_choice("metric", metric)
    arrays.check_choice("code", code, get_args(Code))
    width, blocks = arrays.checked_blocks(chunks, schedule)
    _check_dims(width, schedule, code)
    name, rows = _identifier(table), 0
    try:
        with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
            _check_version(cursor.execute(_EXTENSION).fetchone()[0])
            columns = "id bigint PRIMARY KEY, vector vector({}) NOT NULL"
            create = sql.SQL(f"CREATE TABLE {{}} ({columns})")
            cursor.execute(create.format(name, sql.Literal(width)))
            into = sql.SQL("COPY {} (id, vector) FROM STDIN (FORMAT binary)").format(name)
            with cursor.copy(into) as copy:
                copy.write(_COPY_START)
                for ids_n, z_nd in blocks:
                    copy.write(_copy_rows(ids_n, z_nd))
                    rows += len(ids_n)
                copy.write(_COPY_END)
            if schedule.stages:
                cursor.execute(_create_index(name, schedule, code, metric))
            about = {"mrl_jax": _SCHEMA, "width": width, "metric": metric, "code": code}
            about["indexed"] = schedule.dims[0] if schedule.stages else None
            comment = sql.Literal(json.dumps(about))
            cursor.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(name, comment))
            cursor.execute(sql.SQL("ANALYZE {}").format(name))
    except psycopg.errors.DuplicateTable as error:
        raise DataError(
            f"table {table} exists already: drop it, or load under another name"
        ) from error
    except psycopg.errors.UniqueViolation as error:
        raise DataError(f"ids must be distinct: {error.diag.message_detail}") from error
    except psycopg.DataError as error:
        raise DataError(f"PostgreSQL refuses the vectors: {error.diag.message_primary}") from error
    return rows


def search(
    connection: "psycopg.Connection",
    table: str,
    queries_bd: np.ndarray,
    k: int,
    schedule: Schedule,
    *,
    metric: Metric | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows for every query, by one statement each; metric and code are the table's.

    A shortlist of K rows comes from the index, whose search keeps K candidates (`hnsw.ef_search`;
    beyond 1,000 it goes on, which needs pgvector 0.8); the later stages rank all that they are
    given. Statements are sent without waiting for the answers to those before.

    Args:
      connection: to the database.
      table: as `load` made it.
      queries_bd: [B, D] floating point, as wide as the table's vectors.
      k: at most what the last stage keeps.
      schedule: its first stage's dim is the one that is indexed. Without stages it reads all rows.
      metric: that the table must have; None: any.

    Returns:
      ids_bk: [B, k] int64, the best first; equal scores in the order of their ids.
      scores_bk: [B, k] float32, the larger the better: cosine, inner product or minus the squared
        Euclidean distance, by the schedule's final dims.

    Raises:
      UsageError: queries, k, schedule or metric do not fit the table.
      DataError: no such table, or fewer than k rows in it; NaN or infinity.
    """
    with (
        connection.transaction(force_rollback=True),  # which also takes the settings back
        connection.cursor(binary=True, row_factory=tuple_row) as cursor,
    ):
        width, its_metric, code, indexed, version = _describe(cursor, table)
        arrays.check_metric(f"table {table}", its_metric, metric)
        queries_bd = arrays.checked_queries(queries_bd, k, schedule, width)
        if schedule.stages:
            if schedule.dims[0] != indexed:
                which = f"an index of {indexed} dims" if indexed else "no index"
                raise UsageError(f"table {table} has {which}; {schedule} cannot begin there")
            cursor.execute(*_settings(schedule.stages[0].keep, version))
        name = _identifier(table.replace("%", "%%"))  # a statement with parameters reads it as %
        statement = _select(name, schedule, width, code, its_metric, k)
        found = []
        for start in range(0, len(queries_bd), _QUERIES):
            part_bd = queries_bd[start : start + _QUERIES]
            cursor.executemany(
                statement, ({"query": _text(q_d)} for q_d in part_bd), returning=True
            )
            found.append(cursor.fetchall())
            while cursor.nextset():
                found.append(cursor.fetchall())
    fewest = min(map(len, found))
    if fewest < k:
        raise DataError(f"table {table} gave {fewest} rows where k = {k} were asked for")
    ids_bk = np.array([[row[0] for row in rows] for rows in found], np.int64)
    distance_bk = np.array([[row[1] for row in rows] for rows in found])
    if its_metric == "l2":
        scores_bk = -np.square(distance_bk)
    else:
        scores_bk = 1 - distance_bk if its_metric == "cosine" else -distance_bk
    return ids_bk, scores_bk.astype(np.float32)


_EXTENSION = "SELECT max(extversion) FROM pg_extension WHERE extname = 'vector'"


def _check_version(text: str | None) -> tuple[int, ...]:
    if text is None:
        raise UsageError(
            "this database has no pgvector: install it on the server, then CREATE EXTENSION vector"
        )
    version = tuple(map(int, re.findall(r"\d+", text)[:2]))
    if version < (0, 7):
        raise UsageError(
            f"pgvector {text} cannot index prefixes: update the server's to 0.7 or newer and run "
            "ALTER EXTENSION vector UPDATE"
        )
    return version


def _check_dims(width: int, schedule: Schedule, code: str) -> None:
    if width > _MOST_DIMS:
        raise UsageError(f"pgvector holds vectors of at most {_MOST_DIMS} dims, these have {width}")
    if schedule.stages and schedule.dims[0] > _MOST_INDEXED[code]:
        most = ", ".join(f"{most} as {name}" for name, most in _MOST_INDEXED.items())
        raise UsageError(
            f"pgvector indexes at most so many dims: {most}; {schedule} begins with "
            f"{schedule.dims[0]} and the code is {code}"
        )


def _describe(cursor, table: str) -> tuple[int, str, str, int | None, tuple[int, ...]]:
    """Width, metric, code and indexed dims of a table, and the version of pgvector."""
    name = _identifier(table).as_string(cursor)
    version, exists, comment = cursor.execute(
        f"SELECT ({_EXTENSION}), t IS NOT NULL, obj_description(t, 'pg_class') "
        "FROM to_regclass(%s) AS t",
        (name,),
    ).fetchone()
    if not exists:
        raise DataError(f"there is no table {table}")
    try:
        about = json_files.parse(comment or "", f"the comment of table {table}")
        keys = ("mrl_jax", "width", "metric", "code", "indexed")
        schema, width, metric, code, indexed = (about[key] for key in keys)
    except (DataError, TypeError, KeyError) as error:
        raise DataError(f"table {table} was not made by load: its comment says nothing") from error
    if schema != _SCHEMA:
        raise DataError(f"table {table} is of version {schema}, {_SCHEMA} is read")
    if metric not in get_args(Metric) or code not in get_args(Code):
        raise DataError(f"table {table} compares {shown(code)} by {shown(metric)}, unknown here")
    return width, metric, code, indexed, _check_version(version)


def _settings(keep: int, version: tuple[int, ...]) -> tuple[str, list[str]]:
    """A statement that makes the index give so many rows, and be used even for a small table."""
    settings = {"enable_seqscan": "off", "hnsw.ef_search": str(min(keep, _MOST_EF))}
    if version >= (0, 8):
        settings["hnsw.iterative_scan"] = "relaxed_order"
        settings["hnsw.max_scan_tuples"] = str(max(4 * keep, 20_000))
    elif keep > _MOST_EF:
        raise UsageError(f"pgvector 0.7 keeps at most {_MOST_EF} rows, the schedule wants {keep}")
    calls = ", ".join("set_config(%s, %s, true)" for _ in settings)
    return f"SELECT {calls}", [text for pair in settings.items() for text in pair]


def _identifier(table: str) -> sql.Identifier:
    return sql.Identifier(*table.split(".", 1))


def _copy_rows(ids_n: np.ndarray, z_nd: np.ndarray) -> bytes:
    width = z_nd.shape[1]
    vector = [("dims", ">i2"), ("unused", ">i2"), ("z", ">f4", (width,))]
    row = [("fields", ">i2"), ("id_bytes", ">i4"), ("id", ">i8"), ("vector_bytes", ">i4"), *vector]
    rows_n = np.zeros(len(ids_n), row)
    rows_n["fields"], rows_n["id_bytes"], rows_n["id"] = 2, 8, ids_n
    rows_n["vector_bytes"], rows_n["dims"], rows_n["z"] = 4 + 4 * width, width, z_nd
    return rows_n.tobytes()


def _text(query_d: np.ndarray) -> str:
    return str(query_d.tolist())  # as many digits as tell all float32 numbers apart


def _prefix(vector: sql.Composable, dim: int, code: str) -> sql.Composable:
    """The first dims of a vector in a code; index and search must write it in the same way."""
    form = {
        "vector": "subvector({0}, 1, {1})::vector({1})",
        "halfvec": "subvector({0}, 1, {1})::halfvec({1})",
        "bit": "binary_quantize(subvector({0}, 1, {1}))::bit({1})",
    }[code]
    return sql.SQL(form).format(vector, sql.Literal(dim))


def _create_index(name: sql.Identifier, schedule: Schedule, code: str, metric: str) -> sql.Composed:
    operator_class = "hamming_ops" if code == "bit" else _OPERATOR_CLASSES[metric]
    return sql.SQL("CREATE INDEX ON {} USING hnsw (({}) {})").format(
        name,
        _prefix(sql.Identifier("vector"), schedule.dims[0], code),
        sql.SQL(f"{code}_{operator_class}"),
    )


def _select(
    name: sql.Identifier, schedule: Schedule, width: int, code: str, metric: str, k: int
) -> sql.Composable:
    """The statement of a whole schedule: every stage selects from the one before."""
    column = sql.Identifier("vector")
    query = sql.SQL("{}::vector({})").format(sql.Placeholder("query"), sql.Literal(width))

    def distance(dim: int, code: str) -> sql.Composable:
        a, b = column, query
        if dim < width:
            a, b = _prefix(a, dim, code), _prefix(b, dim, code)
        operator = "<~>" if code == "bit" else _OPERATORS[metric]
        return sql.SQL("{} {} {}").format(a, sql.SQL(operator), b)

    def ranked(dim: int) -> sql.Composable:
        # The cosine with a zero vector is 0, by agreement.
        form = "coalesce(nullif({}, 'NaN'), 1)" if metric == "cosine" else "{}"
        return sql.SQL(form).format(distance(dim, "vector"))

    rows = name
    for i, (dim, keep) in enumerate(schedule.stages):
        # Ids decide between equals, but not in an index, which cannot sort by both.
        order = distance(dim, code) if i == 0 else sql.SQL("{}, id").format(ranked(dim))
        rows = sql.SQL("(SELECT id, vector FROM {} ORDER BY {} LIMIT {}) AS {}").format(
            rows, order, sql.Literal(keep), sql.Identifier(f"stage_{i}")
        )
    return sql.SQL("SELECT id, {} AS distance FROM {} ORDER BY distance, id LIMIT {}").format(
        ranked(schedule.final), rows, sql.Literal(k)
    )
