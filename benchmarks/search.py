"""Nearest neighbours: speed, latency and bytes at equal recall, beside faiss, usearch and hnswlib.

    python -m benchmarks.search --rows 100000                    # 0.8 GB of vectors
    python -m benchmarks.search --rows 1000000 --folder DIR      # 8.2 GB, and as many for indexes
    python -m benchmarks.search --vectors X.npy --query_vectors Q.npy
    python -m benchmarks.search --cases 'mrl_jax/*' 'faiss/IVF*'

Every case is given more effort until it finds the exact ten nearest often enough. Then the
settings that won are measured again, all cases in turn, each in a process of its own. Prints a
JSON line per case and target; writes search.jsonl, search.md and search.png to --out, where lines
of other vectors stay. Vectors, the exact result and, until the end, indexes lie in --folder.
"""

import argparse
import contextlib
import fnmatch
import importlib.metadata
import json
import os
import pathlib
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import harness, search_ours, search_peers, search_report
from benchmarks.search_data import Data, in_fresh_process, interval, prepare, recalls
from benchmarks.search_peers import FLOOR, RERANK, Case, Setting

KEYS = {"batch": "qps", "single": "p50_ms"}  # what counts of either mode
MODES = tuple(KEYS)
Ask = tuple[str, Setting]
SINGLES = 200
# What a quick look is made of: repeated so often, for so long, when it takes less; and so many
# queries one by one.
QUICK_SECONDS, REPEATS, QUICK_SINGLES = 5.0, 4, 40
# Further efforts are not tried when so many of them, one after the other, made no case faster.
PATIENCE = 3
# Settings of a case that are measured again, for either mode of a target.
FINALISTS = 2
_PACKAGES = ("faiss-cpu", "numba", "numkong", "usearch", "hnswlib")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _batch_seconds(case: Case, q_bd: np.ndarray, setting: Setting) -> tuple[float, np.ndarray]:
    """Of all queries at once, when memory has been touched before; and what is found."""
    # Vectors that another case's index pushed out of memory are read from disk now: the first
    # measurement may be the only one.
    case.search(q_bd[:1], setting)
    found = []
    first = _seconds(lambda: found.append(case.search(q_bd, setting)))
    if first >= QUICK_SECONDS:
        return first, found[0]
    again = [0.0]
    while len(again) <= REPEATS and sum(again) < QUICK_SECONDS:
        time.sleep(harness.SETTLE_SECONDS)
        again.append(_seconds(lambda: case.search(q_bd, setting)))
    return min(again[1:]), found[0]


def _single_seconds(case: Case, q_bd: np.ndarray, setting: Setting) -> list[float]:
    case.search(q_bd[:1], setting)  # some compile at the first call
    return [_seconds(lambda i=i: case.search(q_bd[i : i + 1], setting)) for i in range(len(q_bd))]


def _fastest_rerank(case: Case, q_bd: np.ndarray) -> str:
    """Of a batch: who ranks a hundred candidates of each query first."""
    if len(case.reranks) == 1:
        return case.reranks[0]
    ids_bk = np.random.default_rng(0).integers(0, len(case.z_nd), (len(q_bd), 100))
    taken = {
        name: min(
            _seconds(lambda f=RERANK[name]: f(case.z_nd, q_bd, ids_bk, case.threads))
            for _ in range(3)
        )
        for name in case.reranks
    }
    return min(taken, key=taken.get)


def _fastest_alone(case: Case, q_bd: np.ndarray, setting: Setting) -> tuple[float, Setting]:
    """Of a single query: the median latency, and by how many threads and whom it is ranked then."""
    ways = [setting._replace(rerank=r, threads=n) for r in case.reranks for n in (0, 1)]
    return min((float(np.median(_single_seconds(case, q_bd, way))), way) for way in ways)


def border(
    case: Case, recall: Callable[[Setting], float], target: float
) -> Iterator[tuple[float, int]]:
    """For each effort, as it rises, the fewest candidates that reach the target."""
    last = len(case.keeps) - 1
    for effort in case.efforts:
        if recall(Setting(effort, case.keeps[last])) < target:
            continue
        while last > 0 and recall(Setting(effort, case.keeps[last - 1])) >= target:
            last -= 1
        yield effort, case.keeps[last]
        if last == 0:
            return


def build(case: Case, data: Data, folder: pathlib.Path) -> float:
    """Seconds it takes."""
    folder.mkdir(parents=True)
    return _seconds(lambda: case.build(data.vectors, folder))


def sweep(case: Case, data: Data, folder: pathlib.Path, targets: Sequence[float]) -> dict:
    """Finds, for every target, the settings worth another look."""
    q_bd, exact_bk = np.load(data.queries), np.load(data.exact)
    case.open(data.vectors, folder)
    rerank = _fastest_rerank(case, q_bd)
    known: dict[Setting, float] = {}
    points: dict[Setting, tuple[float, float, Setting]] = {}

    def recall(setting: Setting) -> float:
        if setting not in known:
            known[setting] = float(recalls(case.candidates(q_bd, setting), exact_bk).mean())
        return known[setting]

    chosen = {}
    for target in targets:
        reaching, least_seconds, least_p50, waited = [], np.inf, np.inf, 0
        for effort, keep in border(case, recall, target):
            batch = Setting(effort, keep, rerank)
            if batch not in points:
                seconds, _ = _batch_seconds(case, q_bd, batch)
                points[batch] = (seconds, *_fastest_alone(case, q_bd[:QUICK_SINGLES], batch))
            seconds, p50, single = points[batch]
            reaching.append((seconds, p50, batch, single))
            waited = 0 if seconds < least_seconds or p50 < least_p50 else waited + 1
            least_seconds, least_p50 = min(least_seconds, seconds), min(least_p50, p50)
            if waited == PATIENCE:
                break
        if reaching:
            chosen[target] = {
                mode: [x[2 + i] for x in sorted(reaching, key=lambda x, i=i: x[i])[:FINALISTS]]
                for i, mode in enumerate(MODES)
            }
    index_bytes, vector_bytes = case.bytes(folder)
    return {
        "index_bytes": index_bytes,
        "vector_bytes": vector_bytes,
        "chosen": chosen,
        "best_recall": max(known.values()),
        "swept": [
            {
                "effort": setting.effort,
                "keep": setting.keep,
                "recall": known[setting._replace(rerank="")],
                "qps": len(q_bd) / seconds,
                "p50_ms": 1e3 * p50,
            }
            for setting, (seconds, p50, _) in points.items()
        ],
    }


def look(case: Case, data: Data, folder: pathlib.Path, asks: Sequence[Ask]) -> dict[Ask, dict]:
    """One measurement of every setting: all queries at once, or some of them one by one."""
    q_bd, exact_bk = np.load(data.queries), np.load(data.exact)
    case.open(data.vectors, folder)
    found = {}
    for mode, setting in asks:
        if mode == "batch":
            seconds, ids_bk = _batch_seconds(case, q_bd, setting)
            times = {"qps": len(q_bd) / seconds}
        else:
            ids_bk = case.search(q_bd, setting._replace(threads=0))
            seconds_b = _single_seconds(case, q_bd[:SINGLES], setting)
            p50, p99 = 1e3 * np.quantile(seconds_b, (0.5, 0.99))
            times = {"p50_ms": p50, "p99_ms": p99, "reads_bytes": case.reads(q_bd, setting)}
        recall_b = recalls(ids_bk, exact_bk)
        about = {"recall": float(recall_b.mean()), "interval": interval(recall_b)}
        found[mode, setting] = {**times, **about, "asked": case.describe(setting)}
    return found


def _best(mode: str, settings: Sequence[list[dict]]) -> dict:
    """Of some settings, each with all its rounds, the best: its best round."""
    key, choose = KEYS[mode], max if mode == "batch" else min
    rounds = choose(settings, key=lambda looks: choose(one[key] for one in looks))
    found = {**choose(rounds, key=lambda one: one[key]), "all_rounds": [one[key] for one in rounds]}
    if mode == "single":
        found["p99_ms"] = min(one["p99_ms"] for one in rounds)
    return found


def measure(
    data: Data,
    chosen: Sequence[Case],
    targets: Sequence[float],
    rounds: int,
    folder: pathlib.Path,
) -> list[dict]:
    """All cases on one set of vectors: a line each for every target."""
    progress, queries = harness.Progress(len(chosen) * (3 + rounds)), len(np.load(data.queries))
    skipped = {case.name: reason for case in chosen if (reason := case.missing())}
    homes = {case.name: folder / case.name.replace("/", "-").replace(" ", "-") for case in chosen}
    swept, looks, work = {}, {}, 0
    for case in chosen:
        progress.advance(work, f"{data.title}: {case.name}")
        work, home = 3, homes[case.name]
        if case.name not in skipped:
            try:
                seconds = in_fresh_process(build, case, data, home)
                found = in_fresh_process(sweep, case, data, home, targets)
            except Exception as error:  # the others' hours are not lost
                skipped[case.name] = f"{type(error).__name__}: {error}"
            else:
                swept[case.name] = {"build_seconds": seconds, **found}
    for number in range(rounds):
        for case in chosen:
            progress.advance(work, f"{data.title}: {case.name}, round {number + 1} of {rounds}")
            work, targeted = 1, swept.get(case.name, {}).get("chosen", {}).values()
            asks = [(mode, s) for modes in targeted for mode in MODES for s in modes[mode]]
            if asks := list(dict.fromkeys(asks)):
                found = in_fresh_process(look, case, data, homes[case.name], asks)
                for ask, one in found.items():
                    looks.setdefault((case.name, ask), []).append(one)
    progress.advance(work, "done")
    shutil.rmtree(folder, ignore_errors=True)
    lines = []
    for case in chosen:
        about = dict(swept.get(case.name, {}))
        settings = about.pop("chosen", {})
        for target in targets:
            # What reaches a higher target reaches this one.
            enough = [modes for reached, modes in settings.items() if reached >= target]
            asks = {mode: {(mode, s) for modes in enough for s in modes[mode]} for mode in MODES}
            reached = {
                mode: _best(mode, [looks[case.name, ask] for ask in found]) if found else None
                for mode, found in asks.items()
            }
            common = {"data": data.title, "queries": queries, "rounds": rounds, "target": target}
            common["repeats"] = REPEATS
            lines.append(
                {"case": case.name, **common, "skipped": skipped.get(case.name), **reached, **about}
            )
    floor = next(line for line in lines if line["case"] == FLOOR)
    floor = {mode: floor[mode] and floor[mode][key] for mode, key in KEYS.items()}
    return [{**line, "floor": floor} for line in lines]


def _kernels() -> str:
    """OpenBLAS's name for the widest vectors of this processor; "" where it must find out itself.

    faiss's wheels carry OpenBLAS 0.3.15, which takes processors it does not know for one of 2004:
    exact search, and k-means, are then some five times slower than they need be.
    """
    with contextlib.suppress(OSError):
        flags = set(pathlib.Path("/proc/cpuinfo").read_text().split())
        for flag, name in (("avx512bw", "SkylakeX"), ("avx2", "Haswell")):
            if flag in flags:
                return name
    return ""


def _environment(threads: int, read_bandwidth: float) -> dict:
    found = harness.environment()
    for package in _PACKAGES:
        try:
            found["versions"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found["versions"][package] = None
    kernels = os.environ.get("OPENBLAS_CORETYPE", "")
    return {**found, "threads": threads, "bandwidth": read_bandwidth, "openblas": kernels}


def select(data: Data, patterns: Sequence[str], threads: int) -> list[Case]:
    """Cases whose names match, always with exact search.

    Raises:
      ValueError: a pattern that matches none.
    """
    known = [
        case
        for module in (search_peers, search_ours)
        for case in module.cases(data.rows, data.width, threads)
    ]
    for case in known:
        case.metric = data.metric
    for pattern in patterns:
        if not any(fnmatch.fnmatch(case.name, pattern) for case in known):
            names = ", ".join(case.name for case in known)
            raise ValueError(f"no case is called {pattern}; there are {names}")
    wanted = (FLOOR, *(patterns or ["*"]))
    return [c for c in known if any(fnmatch.fnmatch(c.name, pattern) for pattern in wanted)]


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Nearest neighbours at equal recall.")
    parser.add_argument("--rows", type=int, help="default 100,000, or all of --vectors")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--vectors", type=pathlib.Path, help=".npy [N, D] instead of made ones")
    parser.add_argument("--query_vectors", type=pathlib.Path, help=".npy [B, D], with --vectors")
    parser.add_argument("--folder", type=pathlib.Path, default=harness.ROOT / "runs" / "search")
    parser.add_argument("--cases", nargs="+", default=[], help="names with wildcards")
    parser.add_argument(
        "--prefixes", choices=("cosine", "inner"), default="cosine", help="how they are compared"
    )
    parser.add_argument("--targets", type=float, nargs="+", default=[0.985, 0.99])
    parser.add_argument("--threads", type=int, default=harness.threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default=harness.ROOT / "benchmarks" / "results")
    a = parser.parse_args(argv)
    if (a.vectors is None) != (a.query_vectors is None):
        parser.error("--vectors and --query_vectors go together")
    # Every other process starts with these, before it imports anything.
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(a.threads)))
    if kernels := os.environ.get("OPENBLAS_CORETYPE", _kernels()):
        os.environ["OPENBLAS_CORETYPE"] = kernels
    data = prepare(a.folder, a.rows, a.queries, a.vectors, a.query_vectors, a.prefixes)
    chosen = select(data, a.cases, a.threads)
    environment = _environment(a.threads, in_fresh_process(search_ours.bandwidth, a.threads))
    lines = measure(data, chosen, a.targets, a.rounds, a.folder / f"indexes-{os.getpid()}")
    source = f"--vectors {data.name}.npy --query_vectors ..." if a.vectors else ""
    targets = " ".join(f"{target:g}" for target in a.targets)
    command = f"python -m benchmarks.search {source} --rows {data.rows} --queries {a.queries}"
    command += (
        f" --prefixes {data.metric} --targets {targets} --threads {a.threads} --rounds {a.rounds}"
    )
    command += f" --cases {' '.join(map(shlex.quote, a.cases))}" if a.cases else ""
    lines = [{**line, "command": " ".join(command.split()), **environment} for line in lines]
    for line in lines:
        print(json.dumps(line))
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / "search.jsonl"
    old = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    # What was measured before keeps its place.
    lines = list({(x["data"], x["case"], x["target"]): x for x in (*old, *lines)}.values())
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = search_report.markdown(lines)
    (a.out / "search.md").write_text(text)
    search_report.plot(lines, a.out / "search.png")
    print(text)


if __name__ == "__main__":
    main()
