"""An index behind HTTP beside the same index in one process: queries a second, and times of each.

    python -m benchmarks.serve        # some three minutes on two cores

Clients are processes of their own on the same machine, each with one connection. In the last case
another process changes the index all the time, and every answer is compared with what the index
finds in the version that the answer names. Writes serve.md to --out.
"""

import argparse
import contextlib
import datetime
import http.client
import io
import json
import multiprocessing
import pathlib
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np

# What else is needed is imported where it is: a client is a process, which imports this file.
ROOT = pathlib.Path(__file__).resolve().parent.parent
K, QUERIES = 10, 1000
JSON, NPY, NPZ = (f"application/{name}" for name in ("json", "x-npy", "x-npz"))


def vectors(rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Generated rows around centres, whose first dims say most, and queries."""
    rng = np.random.default_rng(0)
    scale_d = (1 + np.arange(width, dtype=np.float32)) ** -0.4
    centre_cd = rng.standard_normal((400, width), np.float32)

    def draw(n: int) -> np.ndarray:
        noise_nd = rng.standard_normal((n, width), np.float32)
        return (centre_cd[rng.integers(0, len(centre_cd), n)] + noise_nd) * scale_d

    return draw(rows), draw(QUERIES)


class Client:
    """One connection that asks in one form."""

    def __init__(self, port: int, form: str):
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._form = form

    def ask(self, query: np.ndarray) -> tuple[np.ndarray, int]:
        """The ids that are found, and in which version of the index."""
        if self._form == "JSON":
            body, headers = json.dumps({"vectors": query.tolist(), "k": K}), {"Content-Type": JSON}
        else:
            content = io.BytesIO()
            np.save(content, query)
            body, headers = content.getvalue(), {"Content-Type": NPY}
        if self._form == ".npy, answer .npz":
            headers["Accept"] = NPZ
        self._connection.request("POST", f"/search?k={K}", body, headers)
        reply = self._connection.getresponse()
        content = reply.read()
        if reply.status != 200:
            raise RuntimeError(f"status {reply.status}: {content[:200]!r}")
        if self._form == ".npy, answer .npz":
            with np.load(io.BytesIO(content)) as found:
                return found["ids"], int(found["version"])
        found = json.loads(content)
        return np.array(found["ids"]), found["version"]


def _client(port, form, batch, seconds, number, queries_bd, keep, ready, out) -> None:
    client, rng = Client(port, form), np.random.default_rng(number)
    times, answers = [], []
    ready.wait()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        row_b = rng.integers(0, len(queries_bd), batch)
        query = queries_bd[row_b[0]] if batch == 1 else queries_bd[row_b]
        start = time.perf_counter()
        ids, version = client.ask(query)
        times.append(time.perf_counter() - start)
        if keep:
            answers.append((int(row_b[0]), version, ids))
    out.put((times, answers))


def _asked(port, form, clients, batch, seconds, queries_bd, keep=False):
    """Times of all requests of some clients, and their answers."""
    context = multiprocessing.get_context("spawn")
    out, ready = context.Queue(), context.Barrier(clients)
    how = (port, form, batch, seconds)
    processes = [
        context.Process(target=_client, args=(*how, number, queries_bd, keep, ready, out))
        for number in range(clients)
    ]
    for process in processes:
        process.start()
    found = [out.get(timeout=60 + 10 * seconds) for _ in processes]
    for process in processes:
        process.join()
    return [t for times, _ in found for t in times], [a for _, some in found for a in some]


def _line(case: str, clients: int, batch: int, times: Sequence[float]) -> str:
    qps = clients * batch / np.mean(times)
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    return f"| {case} | {clients} | {batch} | {qps:,.0f} | {p50:.2f} | {p99:.2f} |"


def _in_process(folder: pathlib.Path, batch: int, seconds: float, queries_bd: np.ndarray):
    from mrl_jax.search import Index

    index, rng, times = Index.open(folder), np.random.default_rng(0), []
    index.search(queries_bd[:batch] if batch > 1 else queries_bd[0], K)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        row_b = rng.integers(0, len(queries_bd), batch)
        query = queries_bd[row_b[0]] if batch == 1 else queries_bd[row_b]
        start = time.perf_counter()
        index.search(query, K)
        times.append(time.perf_counter() - start)
    return times


def _change(folder: str, queries_bd: np.ndarray, over, out) -> None:
    """Adds copies of queries and deletes them, and finds what is right in every version."""
    from mrl_jax.search import Index

    index, wanted, n = Index.open(pathlib.Path(folder)), {}, 0
    while not over.is_set():
        wanted[index.version] = index.search(queries_bd, K, threads=1)[0]
        if n % 2:
            index.delete(10**6 + np.arange(n - 1, n + 99))
        else:
            index.add(queries_bd[n : n + 100] * 1.01, 10**6 + np.arange(n, n + 100))
        n += 1
    wanted[index.version] = index.search(queries_bd, K, threads=1)[0]
    out.put(wanted)


def _while_changed(port, folder, clients, seconds, queries_bd) -> tuple[list[float], str]:
    """Times of requests while the index changes, and what was found wrong, as a sentence."""
    context = multiprocessing.get_context("spawn")
    over, out = context.Event(), context.Queue()
    few_bd = queries_bd[:200]
    changer = context.Process(target=_change, args=(str(folder), few_bd, over, out))
    changer.start()
    times, answers = _asked(port, "JSON", clients, 1, seconds, few_bd, keep=True)
    over.set()
    wanted = out.get(timeout=60)
    changer.join()
    wrong = sum(not np.array_equal(ids, wanted[version][row]) for row, version, ids in answers)
    seen = len({version for _, version, _ in answers})
    return times, (
        f"In the last line the index was changed {len(wanted) - 1} times meanwhile; the answers "
        f"are of {seen} versions, and {wrong} of {len(answers):,} differ from what the index finds "
        "in theirs."
    )


def _processor() -> str:
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "")
    return platform.machine()


def main(argv: Sequence[str]) -> None:
    """Runs the command line; see the module's docstring."""
    from mrl_jax.search import Index, Schedule
    from mrl_jax.search.index.threads import cores
    from mrl_jax.search.plan import Plan

    parser = argparse.ArgumentParser("python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--seconds", type=float, default=8, help="of each case")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--note", default="", help="a sentence on the machine")
    a = parser.parse_args(argv)
    x_nd, queries_bd = vectors(a.rows, a.width)
    short = Schedule.parse(f"{a.width // 3}:100 > {a.width}")
    lists = {"lists": max(a.rows // 100, 2), "list_dim": a.width // 3, "probes": 16}
    lines = []

    def add(*line) -> None:
        lines.append(_line(*line))
        print(lines[-1], flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) / "index"
        Index.build(folder, x_nd, plan=Plan(short, code="int8", **lists))
        for batch in (1, 64):
            times = _in_process(folder, batch, a.seconds, queries_bd)
            add("one process, `Index.search`", 1, batch, times)
        serve = [sys.executable, "-m", "mrl_jax.search", "serve", str(folder), "--port", "0"]
        server = subprocess.Popen(serve, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            port = int(server.stdout.readline().rpartition(":")[2])
            for form in ("JSON", ".npy, answer JSON", ".npy, answer .npz"):
                for clients, batch in ((1, 1), (8, 1), (1, 64), (8, 64)):
                    times, _ = _asked(port, form, clients, batch, a.seconds, queries_bd)
                    add(form, clients, batch, times)
            times, found = _while_changed(port, folder, 8, a.seconds, queries_bd)
            add("JSON, while the index changes", 8, 1, times)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    command = shlex.join(["python", "-m", "benchmarks.serve", *argv])
    what = f"{a.rows:,} generated vectors of {a.width} dims, the {K} nearest of each query"
    how = f"int8 codes of {a.width // 3} dims in {lists['lists']:,} clusters, then all dims"
    text = f"""{what}; plan: {how}.
Server and clients share {cores()} cores ({_processor()}).
Measured on {datetime.date.today()} by `{command}`. {a.note}

| how it is asked | clients | queries a request | queries/s | p50, ms | p99, ms |
| --- | --: | --: | --: | --: | --: |
{chr(10).join(lines)}

{found}
"""
    (a.out / "serve.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
