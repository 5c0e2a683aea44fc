"""What nearest neighbours at all prefixes cost over those at the full dim alone.

    python -m benchmarks.all_prefix                              # half an hour on two cores
    python -m benchmarks.all_prefix --topology v5e:2x2           # also compiles for TPUs (libtpu)
    python -m benchmarks.all_prefix --rows 1281167 --rounds 3 --cases mrl_jax/full mrl_jax/all

Exact cosine search of random vectors of 2,048 dims at 8, 16, ..., 2,048 of them, database and
queries placed before the clock starts:

    mrl_jax/full      `top_k` at 2,048 dims alone: the floor, 1.00
    mrl_jax/all       `top_k` at all nine prefixes in one pass
    mrl_jax/separate  nine passes, one for each prefix
    faiss/full        `faiss.knn` at 2,048 dims
    faiss/all         `faiss.knn` for each prefix, of which it has nine normalised copies

Prints a JSON line per case and, at the end, tables; writes all_prefix.jsonl and all_prefix.md to
--out, where lines of other sizes stay. Cases run in turn within one process; implementations that
find other neighbours stop it. The database is there three times (faiss compares copies of all
prefixes), or once without faiss's cases.
"""

import argparse
import functools
import json
import mmap
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import faiss
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, report
from mrl_jax.nesting import powers_of_two
from mrl_jax.runtime import cost
from mrl_jax.search.device import exact, placement
from mrl_jax.search.device.funnel import DeviceIndex
from mrl_jax.search.schedule import Schedule

DIMS = powers_of_two(8, 2048).dims
SMOKE_DIMS = (2, 4, 8)
FLOOR = "mrl_jax/full"
CASES = (FLOOR, "mrl_jax/all", "mrl_jax/separate", "faiss/full", "faiss/all")
# Of neighbours that faiss finds, too; the others are nearly as near.
AGREEMENT = 0.999


def vectors(rows: int, width: int, seed: int) -> np.ndarray:
    """Normal numbers that get smaller from dim to dim, in rows of length 1."""
    rng = np.random.default_rng(seed)
    # Pages, because JAX copies what does not lie on a multiple of 64 bytes.
    pages = mmap.mmap(-1, 4 * rows * width)
    z_nd = np.frombuffer(pages, np.float32).reshape(rows, width)
    rng.standard_normal(dtype=np.float32, out=z_nd)
    z_nd *= (1 + np.arange(width, dtype=np.float32)) ** -0.5
    faiss.normalize_L2(z_nd)
    return z_nd


def cases(
    database_nd: np.ndarray, query_bd: np.ndarray, dims: tuple[int, ...], k: int, names: Sequence
) -> dict[str, Callable[[], np.ndarray]]:
    """Functions that give rows [G, B, k], by name; those of the full dim alone give [1, B, k]."""
    full = dims[-1:]
    placed_nd = jax.device_put(database_nd)  # once for both; no copy, unlike jnp.asarray
    all_index, full_index = DeviceIndex(placed_nd, dims), DeviceIndex(placed_nd, full)
    copies = {}
    for m in dims if any(name.startswith("faiss/") for name in names) else ():
        copies[m] = [np.ascontiguousarray(x[:, :m]) for x in (query_bd, database_nd)]
        for x in copies[m]:
            faiss.normalize_L2(x)

    def separate():
        return np.stack([all_index.search(query_bd, Schedule.exact(m), k)[0] for m in dims])

    def naive(dims):
        inner = faiss.METRIC_INNER_PRODUCT
        return np.stack([faiss.knn(*copies[m], k, metric=inner)[1] for m in dims])

    functions = (
        lambda: full_index.top_k(query_bd, k)[0],
        lambda: all_index.top_k(query_bd, k)[0],
        separate,
        lambda: naive(full),
        lambda: naive(dims),
    )
    known = dict(zip(CASES, functions, strict=True))
    return {name: known[name] for name in names}


def check(found: dict[str, np.ndarray]) -> None:
    """Stops a benchmark of things that are not the same.

    Raises:
      ValueError: a case finds other neighbours than the last one, at the dims that both have.
    """
    last, expected_gbk = list(found.items())[-1]
    for name, rows_gbk in found.items():
        common = min(len(rows_gbk), len(expected_gbk))
        rows_gbk, best_gbk = rows_gbk[-common:], expected_gbk[-common:]
        same = (rows_gbk[..., None] == best_gbk[..., None, :]).any(-1).mean()
        if same < AGREEMENT:
            raise ValueError(f"{name} finds {same:.4f} of the neighbours that {last} finds")


def processor() -> str:
    """What the system calls its CPU."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown"
    found = re.search(r"model name\s*: (.+)", text)
    return found[1] if found else "unknown"


def measure(
    rows: int, queries: int, dims: tuple[int, ...], k: int, rounds: int, names: Sequence[str]
) -> list[dict[str, Any]]:
    """The cases of one size, a line each."""
    query_bd = vectors(queries, dims[-1], seed=1)
    functions = cases(vectors(rows, dims[-1], seed=0), query_bd, dims, k, names)
    check({name: function() for name, function in functions.items()})
    steps = {
        name: harness.Step(lambda function=function: float(function()[0, 0, 0]))
        for name, function in functions.items()
    }
    environment = harness.environment()
    environment["versions"]["faiss"] = faiss.__version__
    seconds = harness.in_turn(steps, rounds, lambda index: None)
    lines = []
    for name in steps:
        median, quartiles = harness.spread(seconds[name])
        ratios = [x / y for x, y in zip(seconds[name], seconds[FLOOR], strict=True)]
        ratio, ratio_quartiles = harness.spread(ratios)
        lines.append(
            {
                "case": name,
                "rows": rows,
                "queries": queries,
                "dims": dims,
                "k": k,
                "rounds": rounds,
                "seconds_median": median,
                "seconds_quartiles": quartiles,
                "ratio_median": ratio,
                "ratio_quartiles": ratio_quartiles,
                "processor": processor(),
                **environment,
                "load_after": harness.environment()["load"],
            }
        )
    return lines


def compiled_tile(dims: tuple[int, ...], rows: int, topology: str) -> dict[str, Any]:
    """What XLA says about the scores of one tile of rows, compiled for one TPU device.

    Everything that grows with the database is done tile by tile: products at all prefixes and the
    maxima of blocks.
    """
    device = cost.topology_devices(topology)[0]
    mesh = jax.sharding.Mesh(np.array([device]), ("rows",))
    split = placement.Split(dims, "cosine", rows, rows, mesh)
    queries = exact.sizes_for(mesh).queries
    scan = exact.make_scan(split, dims, 10, queries)

    def local(placed, query_bd):
        parts = [query_bd[:, lo:hi].T for lo, hi in exact.ranges(dims)]
        return exact.block_maxima(split, scan, placed, parts, jnp.int32(0))

    on = functools.partial(jax.NamedSharding, mesh)
    shapes = (
        ((rows, dims[-1]), jax.P("rows")),
        ((len(dims), rows), jax.P(None, "rows")),
        ((queries, dims[-1]), jax.P()),
    )
    arrays = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=on(p)) for s, p in shapes]
    program = jax.jit(lambda *x: placement.on_mesh(local, split, placement.Sharded(*x[:2]), x[2]))
    costs = program.lower(*arrays).compile().cost_analysis()
    return {"device": device.device_kind, "flops": costs["flops"], "bytes": costs["bytes accessed"]}


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The lines as Markdown: sizes below each other, cases beside each other."""
    names = [name for name in CASES if any(line["case"] == name for line in lines)]
    machines = dict.fromkeys(f"{x['processor']}; {report.conditions(x)}" for x in lines)
    rows = [
        *(f"{machine}\n" for machine in machines),
        "Seconds: median. Ratio: over mrl_jax/full in the same round, median [quartiles].\n",
        "| rows | queries | k | rounds | load | " + " | ".join(names) + " |",
        "| --: | --: | --: | --: | --: |" + " --: |" * len(names),
    ]
    sizes: dict[tuple, dict[str, dict]] = {}
    for line in lines:
        size = line["rows"], line["queries"], line["k"], line["rounds"]
        sizes.setdefault(size, {})[line["case"]] = line
    for size, mine in sizes.items():
        first = next(iter(mine.values()))
        cells = [*(f"{x:,}" for x in size), f"{first['load']:.1f} to {first['load_after']:.1f}"]
        for name in names:
            if name not in mine:
                cells.append("not run")
                continue
            line = mine[name]
            low, high = line["ratio_quartiles"]
            ratio = f"{line['ratio_median']:.2f} [{low:.2f}, {high:.2f}]"
            cells.append(f"{line['seconds_median']:.2f} s, {ratio}")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Nearest neighbours at all prefixes.")
    parser.add_argument("--out", type=pathlib.Path, default=harness.ROOT / "benchmarks" / "results")
    parser.add_argument("--rows", nargs="+", type=int, default=[20_000, 50_000])
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--k", nargs="+", type=int, default=[1, 10, 100])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--smoke", action="store_true", help="few dims, for tests")
    parser.add_argument("--topology", help='TPU devices to compile for, e.g. "v5e:2x2"')
    arguments = parser.parse_args(argv)
    names = [name for name in CASES if name == FLOOR or name in arguments.cases]
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "all_prefix.jsonl"
    dims = SMOKE_DIMS if arguments.smoke else DIMS
    todo = [(rows, k) for rows in arguments.rows for k in arguments.k]
    old = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    measured = {(arguments.queries, *size) for size in todo}
    lines = [line for line in old if (line["queries"], line["rows"], line["k"]) not in measured]
    progress = harness.Progress(sum(rows for rows, _ in todo))
    for rows, k in todo:
        progress.advance(0, f"{rows} rows, k = {k}")
        for line in measure(rows, arguments.queries, dims, k, arguments.rounds, names):
            print(json.dumps(line), flush=True)
            lines.append(line)
        progress.advance(rows, "done")
        jax.clear_caches()
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = table(lines)
    if arguments.topology:
        at_all, at_full = (
            compiled_tile(x, 1_281_167, arguments.topology) for x in (dims, dims[-1:])
        )
        operations, moved = (at_all[name] / at_full[name] for name in ("flops", "bytes"))
        text += (
            f"\nOn one {at_all['device']}, compiled only, a tile of scores and maxima at "
            f"{len(dims)} prefixes takes {operations:.3f} times the operations and {moved:.2f} "
            f"times the bytes of one at {dims[-1]} dims alone (XLA's cost analysis).\n"
        )
    (arguments.out / "all_prefix.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
