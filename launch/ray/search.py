"""Exact search of vectors on disk, at every prefix in one pass, by the workers of a Ray cluster.

python launch/ray/search.py --workers 8 --address auto --vectors DIR --queries Q.npy \\
    --dims 8,16,64 --k 10 --out FOUND.npz

Vectors and queries are .npy files [N, D] or folders of mrl_jax.embed, under the same path on all
nodes. FOUND.npz gets dims [G], ids [G, Q, k] int64 and scores [G, Q, k] float32, the best first.
"""

from mrl_jax import cli

if __name__ == "__main__":
    cli.start()  # before the imports below, which take seconds

import io
import pathlib
from collections.abc import Sequence
from typing import get_args

import numpy as np

from mrl_jax.engines import ray
from mrl_jax.errors import UsageError
from mrl_jax.search.schedule import Metric
from mrl_jax.store import outputs
from mrl_jax.store.ids import without_objects
from mrl_jax.store.vectors import open_vectors


def _dims(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def main(argv: Sequence[str]) -> None:
    """Runs the command line; see the module's docstring."""
    parser = cli.ArgumentParser("launch/ray/search.py", description=__doc__)
    parser.add_argument("--vectors", type=pathlib.Path, required=True, help=".npy or folder")
    parser.add_argument("--ids", type=pathlib.Path, help="ids, such as I.npy, for X.npy")
    parser.add_argument("--queries", type=pathlib.Path, required=True, help=".npy or folder")
    parser.add_argument("--dims", type=_dims, required=True, help="prefixes, such as 8,16,64")
    parser.add_argument("--k", type=int, default=10, help="rows per query and prefix")
    parser.add_argument("--metric", choices=get_args(Metric), default="cosine")
    parser.add_argument("--shard_rows", type=int, default=65536, help="vectors searched at a time")
    parser.add_argument("--out", type=pathlib.Path, required=True, help=".npz of what is found")
    ray.add_arguments(parser)
    a = parser.parse_args(argv)
    own = outputs.holds_arrays("dims", "ids", "scores")
    outputs.check_file(a.out, own, (a.vectors, a.ids or "", a.queries))
    vectors, queries = open_vectors(a.vectors, a.ids), open_vectors(a.queries)
    query_bd = queries.read(0, queries.rows)
    workers = ray.workers(a)
    try:
        with ray.connected(a.address, workers):
            found = ray.top_k(
                a.vectors,
                query_bd,
                a.dims,
                a.k,
                workers,
                ids=a.ids,
                metric=a.metric,
                shard_rows=a.shard_rows,
            )
    except ValueError as error:
        raise UsageError(str(error)) from error
    ids_gbk = without_objects(vectors.ids[found.rows_gbk])
    content = io.BytesIO()
    np.savez(content, dims=np.array(a.dims), ids=ids_gbk, scores=found.scores_gbk)
    outputs.write_file(a.out, content.getvalue(), own)
    print(f"{a.k} of {vectors.rows} for {queries.rows} queries at {len(a.dims)} dims; {a.out}")


if __name__ == "__main__":
    cli.run(main)
