"""Hands vectors over: `python -m mrl_jax.engines postgres|milvus load|query ...`, or `parquet`.

Vectors are any file or folder that `mrl_jax.search` reads. A schedule reads like "64:400 > 2048",
or comes from a plan (`mrl_jax.search plan`) with the metric and code that it was measured for; a
load says what of the plan the engine does not have. Secrets belong in PGPASSWORD or ~/.pgpass, and
in MILVUS_TOKEN.
"""

from mrl_jax import cli

if __name__ == "__main__":
    cli.start()  # before the imports below, which take seconds

import argparse
import contextlib
import os
import pathlib
import time
from collections.abc import Collection, Sequence
from typing import get_args

from mrl_jax.engines import parquet
from mrl_jax.errors import DataError, UsageError
from mrl_jax.search.plan import Plan, read_plan
from mrl_jax.search.schedule import Metric, Schedule
from mrl_jax.store import outputs
from mrl_jax.store.vectors import open_vectors

_CHUNK_ROWS = 4096
_NEIGHBOURS = outputs.holds_arrays("ids", "scores")
# PostgreSQL's names for a plan's codes. Its bits are not our binary codes: it compares the signs of
# rows with those of queries.
_POSTGRES_CODES = {"float32": "vector", "float16": "halfvec"}


def _parser() -> argparse.ArgumentParser:
    plan = cli.ArgumentParser(add_help=False)
    either = plan.add_mutually_exclusive_group(required=True)
    either.add_argument("--schedule", help='such as "64:400 > 2048"')
    either.add_argument("--plan", type=pathlib.Path, help="of mrl_jax.search plan")
    plan.add_argument(
        "--metric", choices=get_args(Metric), help="default: the plan's, or cosine without a plan"
    )
    source = cli.ArgumentParser(add_help=False)
    source.add_argument(
        "--vectors",
        required=True,
        help="file or folder, such as X.npy, X.parquet, X.hdf5:train or what mrl_jax.embed wrote",
    )
    source.add_argument("--ids", help="N whole numbers, such as I.npy; default: row numbers")
    asked = cli.ArgumentParser(add_help=False)
    asked.add_argument("--queries", required=True, help="as --vectors, such as X.hdf5:test")
    asked.add_argument("--k", type=int, default=10)
    asked.add_argument("--out", required=True, type=pathlib.Path, help=".npz: ids, scores [B, k]")
    places = {"postgres": cli.ArgumentParser(add_help=False)}
    places["postgres"].add_argument("--dsn", default="", help="default: PGHOST, PGDATABASE, ...")
    places["postgres"].add_argument("--table", required=True, dest="name")
    places["milvus"] = cli.ArgumentParser(add_help=False)
    places["milvus"].add_argument("--uri", required=True, help="http://HOST:19530 or FILE.db")
    places["milvus"].add_argument("--collection", required=True, dest="name")

    parser = cli.ArgumentParser("python -m mrl_jax.engines", description=__doc__)
    engines = parser.add_subparsers(dest="engine", required=True)
    for engine, place in places.items():
        verbs = engines.add_parser(engine).add_subparsers(dest="verb", required=True)
        load = verbs.add_parser("load", parents=[place, source, plan])
        if engine == "postgres":
            load.add_argument(
                "--code", help="vector, halfvec or bit; default: the plan's, without one vector"
            )
        else:
            load.add_argument(
                "--index",
                help="HNSW, IVF_FLAT, AUTOINDEX or FLAT; default: HNSW, FLAT for an exact search",
            )
        verbs.add_parser("query", parents=[place, asked, plan])
    files = engines.add_parser("parquet", parents=[source, plan])
    files.add_argument("--out", required=True, type=pathlib.Path, help="folder that is not there")
    return parser


def _wanted(args) -> Plan:
    """What is asked for: a plan, or the schedule and metric of the command line."""
    if args.plan is None:
        try:
            return Plan(Schedule.parse(args.schedule), args.metric or "cosine")
        except ValueError as error:
            raise UsageError(str(error)) from error
    plan = read_plan(args.plan)
    if args.metric not in (None, plan.metric):
        raise UsageError(
            f"{args.plan} was measured by {plan.metric}, --metric is {args.metric}: leave it out, "
            f'or give --schedule "{plan.schedule}" in place of the plan'
        )
    return plan


def _note(plan: Plan, codes: Collection[str]) -> str:
    """Says what of a plan an engine with these codes leaves out; "" if that is nothing."""
    stays = []
    if plan.schedule.stages and plan.code not in codes:
        stays.append(f"{plan.code} codes")
    if plan.factory:
        stays.append(f"its index {plan.factory}")
    if plan.lists > 1:
        stays.append(f"{plan.lists:,} clusters")
    if plan.rotated:
        stays.append("rotated dims")
    if not stays:
        return ""
    return (
        f"note: of the plan, {' and '.join(stays)} stay with mrl_jax.search; what this engine has "
        "in their place may have another recall and need more memory than the plan promises"
    )


@contextlib.contextmanager
def _postgres(args):
    """The module and a connection; what the server says becomes one line."""
    from mrl_jax.engines import postgres

    try:
        postgres.psycopg.conninfo.conninfo_to_dict(args.dsn)
    except postgres.psycopg.Error:
        # Its text quotes what it cannot read, which may hold a password.
        raise UsageError(
            "--dsn is no connection string of PostgreSQL; legal is "
            "postgresql://USER:PASSWORD@HOST/DATABASE or host=HOST dbname=DATABASE"
        ) from None
    try:
        with postgres.psycopg.connect(args.dsn) as connection:
            yield postgres, connection
    except postgres.psycopg.Error as error:
        raise DataError(f"PostgreSQL: {error}") from error


@contextlib.contextmanager
def _milvus(args):
    """The module and a client; what the server says becomes one line."""
    from mrl_jax.engines import milvus

    try:
        try:
            token = os.environ.get("MILVUS_TOKEN", "")
            client = milvus.pymilvus.MilvusClient(args.uri, token=token)
        except (ValueError, milvus.pymilvus.exceptions.ConnectionConfigException):
            # Here, too, the text may hold a password.
            raise UsageError(
                "--uri is no address of Milvus; legal is http://USER:PASSWORD@HOST:PORT or FILE.db"
            ) from None
        with contextlib.closing(client):
            yield milvus, client
    except milvus.pymilvus.MilvusException as error:
        raise DataError(f"Milvus: {error.message}") from error


def _query(engine, at, args, plan: Plan) -> None:
    queries = open_vectors(args.queries)
    outputs.check_file(args.out, _NEIGHBOURS, (args.queries, args.plan or ""))
    queries_bd = queries.read(0, queries.rows)
    metric = args.metric if args.plan is None else plan.metric
    start = time.perf_counter()
    ids_bk, scores_bk = engine.search(
        at, args.name, queries_bd, args.k, plan.schedule, metric=metric
    )
    seconds = time.perf_counter() - start
    outputs.write_arrays(args.out, _NEIGHBOURS, ids=ids_bk, scores=scores_bk)
    print(f"{len(ids_bk)} queries, {len(ids_bk) / seconds:.1f} a second: {args.out}")


def main(argv: Sequence[str]) -> None:
    """Runs the command line; see the module's docstring.

    Raises:
      UsageError: a bad command line, or a library that is missing.
      DataError: vectors that cannot be used, or whatever the engine refuses.
    """
    args = _parser().parse_args(argv)
    plan = _wanted(args)
    if args.engine == "parquet":
        chunks = open_vectors(args.vectors, args.ids).chunks(_CHUNK_ROWS)
        rows = parquet.export(args.out, chunks, plan.schedule, metric=plan.metric)
        print(f"{rows} vectors, to be compared by {plan.metric}: {args.out}")
        return
    with {"postgres": _postgres, "milvus": _milvus}[args.engine](args) as (engine, at):
        if args.verb == "query":
            _query(engine, at, args, plan)
            return
        how, codes = {}, ("float32",)
        if args.engine == "postgres":
            how["code"] = args.code or _POSTGRES_CODES.get(plan.code, "vector")
            codes = [ours for ours, theirs in _POSTGRES_CODES.items() if theirs == how["code"]]
        else:
            how["index"] = args.index
        if note := _note(plan, codes):
            print(note)
        chunks = open_vectors(args.vectors, args.ids).chunks(_CHUNK_ROWS)
        rows = engine.load(at, args.name, chunks, plan.schedule, metric=plan.metric, **how)
        print(f"{rows} vectors, compared by {plan.metric}: {args.name}")


if __name__ == "__main__":
    cli.run(main)
