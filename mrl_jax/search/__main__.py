"""Plans, builds and asks indexes: `python -m mrl_jax.search COMMAND ...`, see COMMAND --help.

Vectors are a file of .npy, .fvecs, .bvecs, .safetensors, .hdf5 (.h5), .parquet, .arrow or .feather,
a folder of .parquet or .arrow files, or one that `mrl_jax.embed` wrote. Where a file holds several
arrays or columns, FILE:NAME says which. Ids are whole numbers or texts. `plan` measures which dims,
codes, clusters and graphs reach a recall; `build` writes an index by that plan, or for exact
search; `query` asks it, `evaluate` measures it, `add`, `delete` and `compact` change it, `verify`
reads all of it and compares checksums, `serve` answers requests by HTTP.
"""

from mrl_jax import cli

if __name__ == "__main__":
    cli.start()  # before the imports below, which take seconds

import pathlib
from collections.abc import Sequence
from typing import get_args

from mrl_jax.search import commands
from mrl_jax.search.schedule import Metric
from mrl_jax.store import id_files

_IDS = f"numbers or texts of {id_files.LEGAL}"


def _parser() -> cli.ArgumentParser:
    index = cli.ArgumentParser(add_help=False)
    index.add_argument("--index", required=True, type=pathlib.Path, help="folder of the index")
    changed = cli.ArgumentParser(add_help=False, parents=[index])
    changed.add_argument(
        "--wait",
        type=commands.seconds,
        default=0.0,
        metavar="SECONDS",
        help="for another command that is changing the index (default: 0)",
    )
    vectors = cli.ArgumentParser(add_help=False)
    vectors.add_argument(
        "--vectors",
        required=True,
        help="file or folder, such as X.npy, X.parquet, X.hdf5:train or what mrl_jax.embed wrote",
    )
    vectors.add_argument("--ids", help=f"{_IDS} (default: the column id, or row numbers)")
    queries = cli.ArgumentParser(add_help=False)
    queries.add_argument("--queries", required=True, help="as --vectors, such as X.hdf5:test")
    queries.add_argument("--k", type=int, default=10, help="neighbours (default: 10)")

    parser = cli.ArgumentParser("python -m mrl_jax.search", description=__doc__)
    verbs = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    verb = verbs.add_parser(
        "plan",
        parents=[vectors, queries],
        help="what reaches a recall fastest",
        description="Recall is of the k exact nearest neighbours; deciding a class by the nearest "
        "one needs less. It holds for queries like those given, which should be of the kind that "
        "will be asked: of words, if photos are searched by words. Writes the plan and, beside it, "
        "a plot of the frontier.",
    )
    verb.add_argument("--target_recall", required=True, type=float, help="such as 0.99")
    verb.add_argument("--out", required=True, type=pathlib.Path, help=".json; a .png beside it")
    verb.add_argument("--metric", choices=get_args(Metric), default="cosine")
    verb.add_argument("--memory", type=commands.size, help="at most, such as 2GB, for searching")
    verb.add_argument("--latency_ms", type=float, help="at most, of 99 %% of single queries")
    verb.add_argument("--dims", type=commands.dims, default=(), help="of stages, such as 16,64")
    verb.add_argument("--seed", type=int, default=0)
    verb = verbs.add_parser("build", parents=[vectors], help="an index of vectors")
    verb.add_argument("--plan", type=pathlib.Path, help="(default: exact search by cosine)")
    verb.add_argument("--out", required=True, type=pathlib.Path, help="folder that is not there")
    verb = verbs.add_parser("query", parents=[index, queries], help="the nearest of an index")
    verb.add_argument("--out", required=True, type=pathlib.Path, help=".npz: ids, scores [Q, k]")
    verb.add_argument("--allow", help=f"ids that may be found: {_IDS} (default: all)")
    verbs.add_parser("evaluate", parents=[index, queries], help="recall, times and bytes")
    verbs.add_parser("add", parents=[changed, vectors], help="more vectors")
    verb = verbs.add_parser("delete", parents=[changed], help="some vectors")
    verb.add_argument("--ids", required=True, help=_IDS)
    verb = verbs.add_parser(
        "compact", parents=[changed], help="one segment of all, free the room of deleted vectors"
    )
    verb.add_argument(
        "--recluster", action="store_true", help="make clusters anew, of all vectors that it holds"
    )
    verb = verbs.add_parser(
        "serve",
        help="answer requests by HTTP",
        description="Answers POST /search and /get and, with --writable, /add, /upsert and /delete "
        "with bodies of JSON, .npy or .npz; GET /health and /metrics. There is no authentication: "
        "whoever reaches it may use it. What others change on disk is seen within a second. "
        "SIGTERM ends it when what was asked is answered.",
    )
    verb.add_argument("index", metavar="INDEX", type=pathlib.Path, help="folder of the index")
    verb.add_argument("--host", default="127.0.0.1", help="(default: 127.0.0.1, this machine only)")
    verb.add_argument("--port", type=int, default=8000, help="(default: 8000; 0: any)")
    verb.add_argument("--writable", action="store_true", help="requests may change the index")
    verb.add_argument("--max_k", type=int, default=1000, help="neighbours (default: 1000)")
    verb.add_argument("--max_batch", type=int, default=1024, help="queries (default: 1024)")
    verb.add_argument("--max_body", type=commands.size, default="16MB", help="(default: 16MB)")
    verb.add_argument("--timeout", type=float, default=30, help="seconds (default: 30)")
    verbs.add_parser("verify", parents=[index], help="read all and compare checksums")
    return parser


def main(argv: Sequence[str]) -> None:
    """Runs the command line; see the module's docstring.

    Raises:
      UsageError: a bad command line, or a library that is missing.
      DataError: vectors or an index that cannot be used, or a target that no plan reaches.
    """
    arguments = _parser().parse_args(argv)
    getattr(commands, arguments.command)(arguments)


if __name__ == "__main__":
    cli.run(main)
