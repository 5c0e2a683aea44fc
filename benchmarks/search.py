"""Nearest neighbours: speed, latency and bytes at equal recall, beside seven other libraries.

    python -m benchmarks.search --vectors X.npy --query_vectors Q.npy --title "captions, MiniLM" \\
        --kind ordinary                                          # all dims, and rotations
    python -m benchmarks.search --vectors X.npy --query_vectors Q.npy --title CIFAR-10
    python -m benchmarks.search --rows 100000                    # generated: 0.8 GB of vectors
    python -m benchmarks.search --rows 1000000 --folder DIR      # 8.2 GB, and as many for indexes
    python -m benchmarks.search --cases 'mrl_jax/*' 'faiss/IVF*' --quick

The others are installed by `pip install usearch hnswlib scann scalable-vs turbovec`; what is
missing is skipped, as is what fails, and both are said.

The first --queries of the file are measured; plans are made with the 4,000 that follow, none of
which is measured. Every case is given more effort until it finds the exact ten nearest often
enough. Then the settings that won are measured again, all cases in turn, each in a process of its
own. Prints a JSON line per case and target; writes search.jsonl, search.md and search.png to --out,
where lines of other vectors stay. Vectors, the exact result and, until the end, indexes lie in
--folder. --quick measures fewer settings, for a shorter time: a dozen cases of 100,000 x 384
vectors take a quarter of an hour on two cores.
"""

import argparse
import bisect
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
from typing import Any, NamedTuple

import numpy as np

from benchmarks import harness, search_ours, search_peers, search_report
from benchmarks.search_case import RERANK, Case, Setting
from benchmarks.search_data import Data, in_fresh_process, interval, prepare, recalls
from benchmarks.search_faiss import FLOOR

KEYS = {"batch": "qps", "single": "p50_ms"}  # what counts of either mode
MODES = tuple(KEYS)
Ask = tuple[str, Setting]
SINGLES = 200
# A batch is repeated so often; and a first look is at so many queries one by one.
REPEATS, FIRST_SINGLES = 4, 40
_PACKAGES = ("faiss-cpu", "numba", "numkong", "rabitqlib", "usearch", "hnswlib", "scann")
_PACKAGES += ("scalable-vs", "turbovec")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_THREAD_VARIABLES += ("RAYON_NUM_THREADS",)


class Care(NamedTuple):
    """How much time is spent.

    Attributes:
      rounds: of all cases in turn.
      seconds: a batch that takes less is repeated.
      patience: further efforts are not tried when so many of them, one after the other, made no
        case faster.
      finalists: settings of a case that are measured again, for either mode of a target.
    """

    rounds: int
    seconds: float
    patience: int
    finalists: int


FULL, QUICK = Care(3, 5.0, 3, 2), Care(2, 1.0, 2, 1)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _batch_seconds(
    case: Case, q_bd: np.ndarray, setting: Setting, least: float
) -> tuple[float, np.ndarray]:
    """Of all queries at once, when memory has been touched before; and what is found."""
    # Vectors that another case's index pushed out of memory are read from disk now: the first
    # measurement may be the only one.
    case.search(q_bd[:1], setting)
    found = []
    first = _seconds(lambda: found.append(case.search(q_bd, setting)))
    if first >= least:
        return first, found[0]
    again = [0.0]
    while len(again) <= REPEATS and sum(again) < least:
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
    """For each effort, as it rises, the fewest candidates that reach the target.

    More of either finds more: both are looked for by halving, between the least effort, which
    is soon tried, and the first that is enough of every second, fourth, eighth.
    """
    last = len(case.keeps) - 1

    def reaches(setting: Setting) -> bool:
        return recall(setting) >= target

    def most_reaches(effort: float) -> bool:
        return reaches(Setting(effort, case.keeps[last]))

    low = high = 0
    while high < len(case.efforts) and not most_reaches(case.efforts[high]):
        low, high = high + 1, 2 * high + 1
    high = min(high, len(case.efforts))
    first = bisect.bisect_left(case.efforts, True, low, high, key=most_reaches)
    for effort in case.efforts[first:]:
        if not reaches(Setting(effort, case.keeps[last])):
            continue
        fewer = case.keeps[:last]
        last = bisect.bisect_left(fewer, True, key=lambda keep, e=effort: reaches(Setting(e, keep)))
        yield effort, case.keeps[last]
        if last == 0:
            return


def build(case: Case, data: Data, folder: pathlib.Path) -> dict:
    """What there is to say of it, with the seconds that it takes, those of planning apart."""
    folder.mkdir(parents=True)
    said = []
    seconds = _seconds(lambda: said.append(case.build(data.vectors, folder) or {}))
    return {**said[0], "build_seconds": seconds - said[0].get("planning_seconds", 0)}


def sweep(
    case: Case, data: Data, folder: pathlib.Path, targets: Sequence[float], care: Care
) -> dict:
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
        if case.only_target:  # whatever it finds is measured
            recall(Setting(case.efforts[0], case.keeps[0]))
            settings = [(case.efforts[0], case.keeps[0])] if target == case.only_target else []
        else:
            settings = border(case, recall, target)
        for effort, keep in settings:
            batch = Setting(effort, keep, rerank)
            if batch not in points:
                seconds, _ = _batch_seconds(case, q_bd, batch, care.seconds)
                points[batch] = (seconds, *_fastest_alone(case, q_bd[:FIRST_SINGLES], batch))
            seconds, p50, single = points[batch]
            reaching.append((seconds, p50, batch, single))
            waited = 0 if seconds < least_seconds or p50 < least_p50 else waited + 1
            least_seconds, least_p50 = min(least_seconds, seconds), min(least_p50, p50)
            if waited == care.patience:
                break
        if reaching:
            chosen[target] = {
                mode: [
                    x[2 + i] for x in sorted(reaching, key=lambda x, i=i: x[i])[: care.finalists]
                ]
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


def look(
    case: Case, data: Data, folder: pathlib.Path, asks: Sequence[Ask], care: Care
) -> dict[Ask, dict]:
    """One measurement of every setting: all queries at once, or some of them one by one."""
    q_bd, exact_bk = np.load(data.queries), np.load(data.exact)
    case.open(data.vectors, folder)
    found = {}
    for mode, setting in asks:
        if mode == "batch":
            seconds, ids_bk = _batch_seconds(case, q_bd, setting, care.seconds)
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


def _reason(error: Exception) -> str:
    """In one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".")


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
    care: Care,
    folder: pathlib.Path,
) -> list[dict]:
    """All cases on one set of vectors: a line each for every target.

    A case that fails, even one that ends its process, has lines that say so.
    """
    rounds, queries = care.rounds, len(np.load(data.queries))
    progress = harness.Progress(len(chosen) * (3 + rounds))
    skipped = {case.name: reason for case in chosen if (reason := case.missing())}
    homes = {case.name: folder / case.name.replace("/", "-").replace(" ", "-") for case in chosen}
    swept, looks, work = {}, {}, 0
    for case in chosen:
        progress.advance(work, f"{data.title}: {case.name}")
        work, home = 3, homes[case.name]
        if case.name not in skipped:
            try:
                about = in_fresh_process(build, case, data, home)
                found = in_fresh_process(sweep, case, data, home, targets, care)
            except Exception as error:  # the others' hours are not lost
                skipped[case.name] = _reason(error)
                shutil.rmtree(home, ignore_errors=True)
            else:
                swept[case.name] = {**about, **found}
    for number in range(rounds):
        for case in chosen:
            progress.advance(work, f"{data.title}: {case.name}, round {number + 1} of {rounds}")
            work, targeted = 1, swept.get(case.name, {}).get("chosen", {}).values()
            asks = [(mode, s) for modes in targeted for mode in MODES for s in modes[mode]]
            if not (asks := list(dict.fromkeys(asks))):
                continue
            try:
                found = in_fresh_process(look, case, data, homes[case.name], asks, care)
            except Exception as error:
                skipped[case.name] = _reason(error)
                del swept[case.name]
            else:
                for ask, one in found.items():
                    looks.setdefault((case.name, ask), []).append(one)
    progress.advance(work, "done")
    shutil.rmtree(folder, ignore_errors=True)
    lines = []
    for case in chosen:
        about = dict(swept.get(case.name, {}))
        settings = about.pop("chosen", {})
        for target in targets:
            if case.only_target not in (None, target):
                continue
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


def select(
    data: Data, patterns: Sequence[str], threads: int, targets: Sequence[float]
) -> list[Case]:
    """Cases that suit the vectors and whose names match, always with exact search.

    Raises:
      ValueError: a pattern that matches none.
    """
    about = data.rows, data.width, threads
    known = [*search_peers.cases(*about), *search_ours.cases(*about, targets)]
    known = [case for case in known if data.prefixes or not case.by_prefix]
    for case in known:
        case.metric, case.plan_queries = data.metric, data.plan_queries
    for pattern in patterns:
        if not any(fnmatch.fnmatch(case.name, pattern) for case in known):
            names = ", ".join(case.name for case in known)
            raise ValueError(f"no case is called {pattern}; there are {names}")
    wanted = (FLOOR, *(patterns or ["*"]))
    return [c for c in known if any(fnmatch.fnmatch(c.name, pattern) for pattern in wanted)]


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, help="default 100,000, or all of --vectors")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--vectors", type=pathlib.Path, help=".npy [N, D] instead of made ones")
    parser.add_argument("--query_vectors", type=pathlib.Path, help=".npy [B, D], with --vectors")
    parser.add_argument("--title", help="what they are; of made ones it begins with generated")
    parser.add_argument(
        "--kind",
        choices=("matryoshka", "ordinary"),
        default="matryoshka",
        help="ordinary: no case compares first dims, which tell no more than others",
    )
    parser.add_argument("--folder", type=pathlib.Path, default=harness.ROOT / "runs" / "search")
    parser.add_argument("--cases", nargs="+", default=[], help="names with wildcards")
    parser.add_argument(
        "--prefixes", choices=("cosine", "inner"), default="cosine", help="how they are compared"
    )
    parser.add_argument("--targets", type=float, nargs="+", default=[0.985, 0.99])
    parser.add_argument("--threads", type=int, default=harness.threads())
    parser.add_argument("--rounds", type=int, help="default 3; of --quick, 2")
    parser.add_argument("--quick", action="store_true", help="fewer settings, measured shorter")
    parser.add_argument("--out", type=pathlib.Path, default=harness.ROOT / "benchmarks" / "results")
    a = parser.parse_args(argv)
    if (a.vectors is None) != (a.query_vectors is None):
        parser.error("--vectors and --query_vectors go together")
    # Every other process starts with these, before it imports anything.
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(a.threads)))
    if kernels := os.environ.get("OPENBLAS_CORETYPE", _kernels()):
        os.environ["OPENBLAS_CORETYPE"] = kernels
    care = QUICK if a.quick else FULL
    care = care._replace(rounds=a.rounds or care.rounds)
    data = prepare(
        a.folder, a.rows, a.queries, a.vectors, a.query_vectors, a.prefixes,
        a.kind == "matryoshka", a.title,
    )  # fmt: skip
    chosen = select(data, a.cases, a.threads, a.targets)
    environment = _environment(a.threads, in_fresh_process(search_ours.bandwidth, a.threads))
    lines = measure(data, chosen, a.targets, care, a.folder / f"indexes-{os.getpid()}")
    source = f"--vectors {a.vectors.name} --query_vectors ... --kind {a.kind}" if a.vectors else ""
    source += f" --title {shlex.quote(a.title)}" if a.title else ""
    targets = " ".join(f"{target:g}" for target in a.targets)
    command = f"python -m benchmarks.search {source} --rows {data.rows} --queries {a.queries}"
    command += f" --prefixes {data.metric} --targets {targets}"
    command += f" --threads {a.threads} --rounds {care.rounds}"
    command += " --quick" if a.quick else ""
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
