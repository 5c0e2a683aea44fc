"""What the commands of `python -m mrl_jax.search` do."""

import argparse
import json
import math
import re
import shlex
import sys
import time

import numpy as np
from tqdm import tqdm

from mrl_jax import printing
from mrl_jax.errors import DataError, UsageError
from mrl_jax.search.index import Index, threads
from mrl_jax.search.index.segment import DENSE_QUERIES
from mrl_jax.search.plan import Plan, read_plan
from mrl_jax.search.planner import frontier, promises, propose, ranks, trial
from mrl_jax.search.schedule import Schedule
from mrl_jax.store import id_files, ids, outputs
from mrl_jax.store.vectors import Vectors, open_vectors

_CHUNK = 4096  # queries read and asked at a time
_EVALUATED = 2000  # queries at most
_SERVED_WAIT = 1.0  # seconds in which another command may end its change, before a request fails
_SHOWN = 5000  # rows from which progress is shown
_NEIGHBOURS = outputs.holds_arrays("ids", "scores")
_PLAN = outputs.holds_keys("schema", "plan", "frontier", "wanted")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def size(text: str) -> int:
    """Bytes of a text such as 2GB, 500MB or 1.5G; for argparse."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 2GB or 500MB")
    return round(float(found[1]) * _UNITS[found[2].upper()])


def seconds(text: str) -> float:
    """A number of seconds, 0 or more; for argparse."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not found >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} are no seconds such as 0 or 30")
    return found


def dims(text: str) -> tuple[int, ...]:
    """Numbers with commas between them; for argparse."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} are no dims such as 16,64")
    return tuple(map(int, text.split(",")))


def plan(arguments: argparse.Namespace) -> None:
    """Writes the plan file and its plot, prints the frontier."""
    out, plot = arguments.out, arguments.out.with_suffix(".png")
    if out == plot:
        raise UsageError(f"--out is the plan, {plot} its plot: give it another ending")
    wanted = promises.Wanted(
        target_recall=arguments.target_recall,
        k=arguments.k,
        metric=arguments.metric,
        memory=arguments.memory,
        latency_ms=arguments.latency_ms,
        dims=arguments.dims,
        seed=arguments.seed,
    )
    vectors = open_vectors(arguments.vectors, arguments.ids)
    queries = open_vectors(arguments.queries)
    read = (arguments.vectors, arguments.queries, arguments.ids or "")
    outputs.check_file(out, _PLAN, read)
    # A plot may be replaced if the plan beside it may be.
    had_plan = out.exists()
    outputs.check_file(plot, lambda _: had_plan, read)
    proposal = propose.propose(vectors, queries, wanted, progress=_progress(vectors.rows))
    command = shlex.join(["python", "-m", "mrl_jax.search", *sys.argv[1:]])
    content = frontier.content(proposal, wanted, command)
    drawn = frontier.chart(proposal, wanted.k)
    outputs.write_file(out, (json.dumps(content, indent=1) + "\n").encode(), _PLAN)
    outputs.write_file(plot, drawn, lambda _: had_plan)
    print(frontier.table(proposal, wanted.k))
    sampled = ""
    if proposal.sample_rows != proposal.rows:
        sampled = f"ranks and times from {proposal.sample_rows:,} rows, for {proposal.rows:,}; "
    print(
        f"recall of the {wanted.k} exact nearest by {wanted.metric} (deciding a class by the "
        f"nearest one needs less); {sampled}{proposal.tuned_on} queries to tune on, "
        f"{proposal.held_out} others to measure with"
    )
    if proposal.themselves:
        print(
            f"warning: {proposal.themselves:,} of these queries are vectors of "
            f"{arguments.vectors}, which any plan finds first; plan with what will be asked"
        )
    given, needed = proposal.tuned_on + proposal.held_out, promises.queries_needed(wanted)
    if needed is None or needed > given:
        more = f"give {needed}" if needed else f"even {promises.MOST_QUERIES:,} would be"
        print(
            f"{given:,} queries are too few to promise {wanted.target_recall:g} of any plan but "
            f"exact search, even if it misses nothing: {more}"
        )
    print(f"plan: {out}, plot: {plot}")


def build(arguments: argparse.Namespace) -> None:
    """Writes an index."""
    vectors = open_vectors(arguments.vectors, arguments.ids)
    how = read_plan(arguments.plan) if arguments.plan else Plan(Schedule.exact(vectors.width))
    outputs.check_new(arguments.out)
    start = time.perf_counter()
    index = Index.build(arguments.out, vectors, plan=how, progress=_progress(vectors.rows))
    seconds = time.perf_counter() - start
    print(f"{index.rows:,} vectors of {index.width} dims in {seconds:.1f} s: {arguments.out}")
    print(f"{frontier.described(index.plan)}, {index.plan.metric}; {_bytes(index)}")


def query(arguments: argparse.Namespace) -> None:
    """Writes the neighbours of all queries."""
    index, queries = _open(arguments)
    allow = None if arguments.allow is None else id_files.read(arguments.allow, index.kind)
    read = (arguments.queries, arguments.allow or "")
    outputs.check_file(arguments.out, _NEIGHBOURS, read)
    found_ids, scores, seconds = [], [], 0.0
    # Few and many queries take different paths. Each is compiled at first use, which is not timed.
    for some in (1, DENSE_QUERIES):
        query_bd = queries.read(0, min(queries.rows, some))
        _search(index, query_bd, arguments, allow=allow, threads=1)
    with tqdm(total=queries.rows, desc="queries", disable=not _progress(queries.rows)) as bar:
        for _, query_bd in queries.chunks(_CHUNK):
            start = time.perf_counter()
            found = _search(index, query_bd, arguments, allow=allow)
            seconds += time.perf_counter() - start
            found_ids.append(found[0])
            scores.append(found[1])
            bar.update(len(query_bd))
    all_ids = ids.without_objects(np.concatenate(found_ids))
    outputs.write_arrays(arguments.out, _NEIGHBOURS, ids=all_ids, scores=np.concatenate(scores))
    print(f"{queries.rows:,} queries, {queries.rows / seconds:,.1f} a second: {arguments.out}")


def evaluate(arguments: argparse.Namespace) -> None:
    """Prints recall against exact search, times and bytes."""
    index, queries = _open(arguments)
    k, source = arguments.k, index.vectors
    query_bd = queries.sample(min(queries.rows, _EVALUATED), 0)
    final = index.plan.schedule.final
    found_bk = _search(index, query_bd, arguments)[0]
    row_bk = ranks.neighbours(
        source, query_bd, k, index.plan.metric, dim=final, progress=_progress(source.rows)
    )
    recall_b = (index.ids[row_bk][:, :, None] == found_bk[:, None, :]).any(2).mean(1)
    low, high = promises.prediction_interval(recall_b, k, 0)
    times = trial.times(index, query_bd, k)
    latency = ", ".join(f"{name} {value:.3f}" for name, value in times.latency_ms.items())
    rows = (
        ("plan", f"{frontier.described(index.plan)}, {index.plan.metric}"),
        (f"recall@{k}", f"{recall_b.mean():.4f} of {len(recall_b)} queries"),
        (f"{promises.LEVEL:.0%} interval", f"{low:.4f} to {high:.4f}, of as many other queries"),
        ("all at once", f"{times.qps:,.1f} queries a second"),
        ("one by one", f"{latency} ms"),
        ("bytes", _bytes(index)),
    )
    if index.plan.lists > 1:
        read = f"a query like the vectors reads {index.slowdown:.1f} times as many as at first"
        rows = (*rows, ("clusters", read))
    print(printing.pairs(rows))


def add(arguments: argparse.Namespace) -> None:
    """Adds vectors to an index."""
    index = Index.open(arguments.index, wait=arguments.wait)
    vectors = open_vectors(arguments.vectors, arguments.ids, index.kind)
    index.add(vectors, progress=_progress(vectors.rows))
    print(f"{vectors.rows:,} vectors added, {index.rows:,} in all: {arguments.index}")


def delete(arguments: argparse.Namespace) -> None:
    """Deletes vectors from an index."""
    index = Index.open(arguments.index, wait=arguments.wait)
    before = index.rows
    index.delete(id_files.read(arguments.ids, index.kind))
    print(f"{before - index.rows:,} vectors deleted, {index.rows:,} left: {arguments.index}")


def compact(arguments: argparse.Namespace) -> None:
    """Merges the segments of an index and drops deleted vectors."""
    index = Index.open(arguments.index, wait=arguments.wait)
    before = sum(index.bytes().values())
    index.compact(recluster=arguments.recluster, progress=_progress(index.rows))
    freed = before - sum(index.bytes().values())
    print(f"{index.rows:,} vectors, {freed:,} bytes freed: {arguments.index}")


def verify(arguments: argparse.Namespace) -> None:
    """Compares all checksums."""
    index = Index.open(arguments.index)
    index.verify()
    print(f"{index.rows:,} vectors, all files as they were written: {arguments.index}")


def serve(arguments: argparse.Namespace) -> None:
    """Answers requests until a signal comes."""
    from mrl_jax.search.service import server  # which needs an extra of its own

    for name in ("max_k", "max_batch", "max_body", "timeout"):
        if not getattr(arguments, name) > 0:
            raise UsageError(f"--{name} must be above 0, got {getattr(arguments, name)}")
    limits = server.Limits(
        arguments.max_k, arguments.max_batch, arguments.max_body, arguments.timeout
    )
    # An absolute path, which tells errors of these files from others.
    index = Index.open(arguments.index.resolve(), wait=_SERVED_WAIT)
    service = server.Service(index, limits, arguments.writable)
    listens = server.listen(arguments.host, arguments.port)
    with listens as listening, threads.without_blas_threads():
        host, port = listening.getsockname()[:2]
        service.warm_up()
        if server.is_public(listening):
            can = "read and change" if arguments.writable else "read"
            print(f"warning: all who reach {host} can {can} this index: there is no authentication")
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"{index.rows:,} vectors of {index.width} dims: {where}", flush=True)
        server.run(service, listening)


def _open(arguments: argparse.Namespace) -> tuple[Index, Vectors]:
    """The index, and queries that it can answer."""
    index, queries = Index.open(arguments.index), open_vectors(arguments.queries)
    final = index.plan.schedule.final
    if not final <= queries.width <= index.width:
        raise DataError(
            f"{arguments.queries} has {queries.width} dims, the index {arguments.index} "
            f"{index.width}" + (f" and compares {final}" if final < index.width else "")
        )
    if not index.rows:
        raise DataError(f"{arguments.index} holds no vectors: all were deleted")
    try:
        index.plan.schedule.check(arguments.k, index.width)
    except ValueError as error:
        raise UsageError(f"--k: {error}") from None
    if arguments.k > index.rows:
        raise UsageError(f"--k must be 1 to {index.rows}, the number of vectors; got {arguments.k}")
    return index, queries


def _search(index: Index, query_bd: np.ndarray, arguments: argparse.Namespace, **how):
    try:
        return index.search(query_bd, arguments.k, **how)
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise DataError(f"{arguments.queries}: {error}") from error


def _bytes(index: Index) -> str:
    found = index.bytes()
    per_row = found["resident"] / max(index.rows, 1)
    return (
        f"{found['resident']:,} to search ({per_row:,.1f} a vector), "
        f"{found['vectors']:,} of whole vectors"
    )


def _progress(rows: int) -> bool:
    """Whether to show a bar: on a terminal, for work that takes a while."""
    return rows >= _SHOWN and sys.stderr.isatty()
