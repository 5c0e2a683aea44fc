"""Bulk embedding and exact search by the workers of a Ray cluster, shard by shard (Ray Data).

A worker keeps the restored model or the queries for all of its shards. Vectors go from files to
files, so all nodes need the same folders; through Ray go shard numbers, checksums and the k best
rows. What a dying worker was doing another one does again; results are those of one process, bit
for bit.
"""

import argparse
import contextlib
import functools
import logging
import pathlib
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from mrl_jax import embed as embedding
from mrl_jax import extras
from mrl_jax.embed import Job, Request
from mrl_jax.errors import USER_ERRORS, UsageError
from mrl_jax.record import folder
from mrl_jax.runtime import coordinator
from mrl_jax.search.device import on_disk
from mrl_jax.search.device.on_disk import Found
from mrl_jax.search.schedule import Metric
from mrl_jax.store.shards import Format, Manifest
from mrl_jax.store.vectors import open_vectors, place

_STORE_BYTES = 2**28  # of a cluster on this machine: no vectors go through it


class Workers(NamedTuple):
    """How many processes work at the same time, and what Ray reserves for each."""

    count: int
    cpus: float = 1.0
    gpus: float = 0.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say where to work, and with how many processes."""
    parser.add_argument("--workers", type=int, required=True, help="processes")
    parser.add_argument("--cpus", type=float, default=1.0, help="CPUs of each")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs of each")
    parser.add_argument("--address", help="of a running cluster, or auto; default: start one here")


def workers(arguments: argparse.Namespace) -> Workers:
    """What the arguments of `add_arguments` ask for."""
    return Workers(arguments.workers, arguments.cpus, arguments.gpus)


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """The module ray, whose own code calls deprecated functions of other libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with extras.needed("engines", "Ray"):
            import ray.data
        yield ray


@contextlib.contextmanager
def connected(address: str | None, workers: Workers) -> Iterator[None]:
    """Joins a running cluster, or starts one on this machine, and leaves or ends it afterwards.

    Args:
      address: of a cluster, "auto" for the one of this machine; None starts one with the CPUs and
        GPUs of this machine.
      workers: that must fit: Ray would wait for ever for what the cluster does not have.

    Raises:
      UsageError: Ray is not installed; there is no such cluster, or it is too small; or processes
        of this machine cannot reach each other.
    """
    if workers.count < 1 or workers.cpus <= 0 or workers.gpus < 0:
        raise UsageError(
            f"there must be at least 1 worker with some of a CPU, got {workers.count} with "
            f"{workers.cpus:g} CPUs and {workers.gpus:g} GPUs each"
        )
    if not coordinator.has_loopback():  # Ray would try for minutes
        raise UsageError(f"Ray cannot be used here: {coordinator.NO_LOOPBACK}")
    with _quiet() as ray:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # plans, and failures once more
        quiet = {"log_to_driver": False, "logging_level": "error"}
        here = {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
        try:
            ray.init(address or "local", **quiet, **({} if address else here))
        except Exception as error:  # of any kind, also where a busy machine is too slow for it
            where = f"join the Ray cluster {address}" if address else "start a Ray cluster"
            raise UsageError(f"cannot {where}: {error}") from error
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = sum(_room(node, workers) for node in nodes)
        if room < workers.count:
            there = "; ".join(f"{n.get('CPU', 0):g} and {n.get('GPU', 0):g}" for n in nodes)
            raise UsageError(
                f"the Ray cluster has room for {room} of {workers.count} workers with "
                f"{workers.cpus:g} CPUs and {workers.gpus:g} GPUs each (its nodes have {there})"
            )
        yield
    finally:
        ray.shutdown()


def _room(node: dict[str, float], workers: Workers) -> int:
    """How many workers a node can hold when nothing else runs there."""
    fits = node.get("CPU", 0) // workers.cpus
    return int(min(fits, node.get("GPU", 0) // workers.gpus) if workers.gpus else fits)


class _Worker:
    """Makes its function at the first item, and calls it for one item after another."""

    def __init__(self, make: Callable[[], Callable[[int], Any]]):
        self._make, self._function = make, None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            self._function = self._function or self._make()
            result = self._function(int(batch["item"][0]))
        except (ValueError, *USER_ERRORS) as error:  # Ray would drop its kind
            result = error
        return {"item": batch["item"], "result": np.array([pickle.dumps(result)], object)}


def _for_each(
    items: Sequence[int], make: Callable[[], Callable[[int], Any]], workers: Workers
) -> Iterator[tuple[int, Any]]:
    """(item, result) as they are done: in every worker `make()` gives the function of an item."""
    if not items:
        return
    with _quiet() as ray:
        ray.data.DataContext.get_current().enable_progress_bars = False
        # A block per item, in memory: tasks that read would need CPUs beside those of the workers.
        found = ray.data.from_items(
            [{"item": item} for item in items], override_num_blocks=len(items)
        ).map_batches(
            _Worker,
            fn_constructor_args=(make,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers.count, max_tasks_in_flight_per_actor=1),
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
        )
        for row in found.iter_rows():
            result = pickle.loads(row["result"])  # of a worker of ours
            if isinstance(result, Exception):
                raise result
            yield int(row["item"]), result


def _plan(request: Request, form: Format, shard_rows: int) -> tuple[Manifest, Any, str]:
    """Runs on a worker's machine, as this one may have no accelerator."""
    try:
        job = Job(request)
        return job.plan(form, shard_rows), job.rows.names, "\n".join(job.notes)
    except USER_ERRORS as error:  # Ray would wrap it
        return error, None, ""


def _shard_writer(request: Request, out: pathlib.Path, manifest: Manifest):
    job = Job(request)
    if job.made_from != manifest.made_from:
        raise UsageError(
            f"the run in {request.workdir} or its data changed meanwhile: "
            f"{manifest.made_from} -> {job.made_from}"
        )

    def write(index):
        return job.write(out, manifest, index, job.embed(*manifest.span(index)))

    return write


def embed(
    request: Request, out: pathlib.Path, form: Format, shard_rows: int, workers: Workers
) -> str:
    """What `mrl_jax.embed` does, with the shards spread over workers; gives its last line."""
    request = request._replace(workdir=request.workdir.absolute())
    if place(request.source)[0].exists():
        request = request._replace(source=str(pathlib.Path(request.source).absolute()))
    out = out.absolute()
    with _quiet() as ray:
        task = ray.remote(num_cpus=workers.cpus, num_gpus=workers.gpus)(_plan)
        manifest, names, warning = ray.get(task.remote(request, form, shard_rows))
    if isinstance(manifest, Exception):
        raise manifest
    if warning:
        print(warning)
    embedding.check_place(out)  # no lock is left in a foreign folder
    with folder.locked(out):
        manifest = embedding.begin(out, manifest, names)
        todo = [i for i, shard in enumerate(manifest.shards) if not shard.sha256]
        make = functools.partial(_shard_writer, request, out, manifest)
        rows = sum(manifest.shards[index].rows for index in todo)
        with tqdm(desc="embedding", total=rows, unit="row", disable=None) as bar:
            for index, sha256 in _for_each(todo, make, workers):
                manifest = manifest.with_shard(index, sha256)
                manifest.write(out)
                bar.update(manifest.shards[index].rows)
    return embedding.summary(out, manifest, len(todo))


def _shard_searcher(path, ids, spans, query_bd, dims, k, metric):
    vectors = open_vectors(path, ids)
    return lambda index: on_disk.top_k_of_rows(vectors, *spans[index], query_bd, dims, k, metric)


def top_k(
    path: pathlib.Path,
    query_bd: np.ndarray,
    dims: Sequence[int],
    k: int,
    workers: Workers,
    *,
    ids: pathlib.Path | None = None,
    metric: Metric = "cosine",
    shard_rows: int = 65536,
) -> Found:
    """`on_disk.top_k_on_disk` with the shards spread over workers, bit for bit the same."""
    path, ids = path.absolute(), ids.absolute() if ids else None
    rows = open_vectors(path, ids).rows
    on_disk.check_k(k, rows)
    spans = on_disk.spans(rows, shard_rows)
    make = functools.partial(_shard_searcher, path, ids, spans, query_bd, dims, k, metric)
    found = None
    with tqdm(desc="searching", total=rows, unit="row", disable=None) as bar:
        for index, part in _for_each(range(len(spans)), make, workers):
            found = on_disk.merge_top_k([found, part] if found else [part], k)
            bar.update(min(shard_rows, rows - index * shard_rows))
    return found.rounded()
