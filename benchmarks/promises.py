"""What the planner promises, beside what is found: vectors of many kinds, all made by code.

    python -m benchmarks.promises                    # some 20 minutes of one core
    python -m benchmarks.promises --kinds hubs tiny --targets 0.95 --seeds 1
    python -m benchmarks.promises --large            # also a million rows: hours

For every kind, target and seed a plan is made with some queries, an index is built by it, anew, and
asked other queries of the kind: `ROUNDS` times as many as the recall was measured with, for so many
the promised interval is of. Kinds of few rows have a limit of memory, which rules out exact search.
Prints a JSON line for each plan, and writes the table.
"""

import argparse
import json
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from mrl_jax.errors import DataError
from mrl_jax.search.index import Index
from mrl_jax.search.index.rows import InMemory
from mrl_jax.search.planner import frontier, promises, propose, ranks, trial
from mrl_jax.search.schedule import Metric

K, QUERIES, ROUNDS = 10, 400, 10
TARGETS = (0.9, 0.95, 0.99)
OUT = pathlib.Path(__file__).resolve().parent.parent / "docs" / "promises.md"
# Rows [n, D] drawn by a generator; what all draws share comes from one that is fixed.
Draw = Callable[[int, np.random.Generator], np.ndarray]


class Kind(NamedTuple):
    """Vectors of one kind.

    Attributes:
      rows, metric: how many, and what makes them the nearest.
      rows_of: draws vectors.
      asked_of: draws queries.
    """

    rows: int
    metric: Metric
    rows_of: Draw
    asked_of: Draw


def _fixed(width: int) -> np.random.Generator:
    return np.random.default_rng((7, width))


def _falling(width: int, power: float) -> np.ndarray:
    return (1.0 + np.arange(width)) ** -power


def _turn(width: int) -> np.ndarray:
    return np.linalg.qr(_fixed(width).standard_normal((width, width)))[0]


def _normal(width: int) -> Draw:
    return lambda n, rng: rng.standard_normal((n, width))


def _scaled(width: int, scale_d: np.ndarray) -> Draw:
    return lambda n, rng: rng.standard_normal((n, width)) * scale_d


def _heavy_tails(width: int) -> Draw:
    return lambda n, rng: rng.standard_t(2, (n, width)) * _falling(width, 0.3)


def _clusters(width: int, count: int, spread: float, power: float) -> Draw:
    """Around centres, of which the i-th is drawn i ** -power times as often as the first."""
    centre_cd = _fixed(width).standard_normal((count, width))
    share_c = (1.0 + np.arange(count)) ** -power
    share_c /= share_c.sum()

    def draw(n, rng):
        return centre_cd[rng.choice(count, n, p=share_c)] + spread * rng.standard_normal((n, width))

    return draw


def _with_outliers(width: int) -> Draw:
    scale_d = np.ones(width)
    scale_d[[width // 3, width // 2]] = 15
    return lambda n, rng: rng.standard_normal((n, width)) * scale_d + 2 * (scale_d > 1)


def _of_lengths(draw: Draw, spread: float) -> Draw:
    return lambda n, rng: draw(n, rng) * np.exp(rng.normal(0, spread, (n, 1)))


def _moved(draw: Draw, by: float) -> Draw:
    return lambda n, rng: draw(n, rng) + by


def _other_tower(draw: Draw, width: int) -> Draw:
    """Around another mean, and in directions that rows hardly have."""
    mean_d = _fixed(width).standard_normal(width) * 0.5
    return lambda n, rng: draw(n, rng) + mean_d + 0.5 * rng.standard_normal((n, width))


def _classes(width: int, power: float, turned: bool = False) -> Draw:
    """Classes of classes, whose first dims say most; or principal directions do."""
    fixed, scale_d = _fixed(width), _falling(width, power)
    class_cd, sub_sd = (fixed.standard_normal((n, width)) for n in (100, 2000))
    turn_dd = _turn(width) if turned else np.eye(width)

    def draw(n, rng):
        sub_n = rng.integers(0, len(sub_sd), n)
        z_nd = class_cd[sub_n % 100] + 0.7 * sub_sd[sub_n] + 0.7 * rng.standard_normal((n, width))
        return (z_nd * scale_d) @ turn_dd

    return draw


def _manifold(width: int, inner: int) -> Draw:
    """Of few dims, bent into many."""
    fixed = _fixed(width)
    out_id, shift_d = fixed.standard_normal((inner, width)), fixed.uniform(0, 6, width)
    return lambda n, rng: np.sin(rng.standard_normal((n, inner)) @ out_id + shift_d)


def _hubs(width: int) -> Draw:
    """Some rows near the middle, which are neighbours of many queries."""

    def draw(n, rng):
        return rng.standard_normal((n, width)) * np.where(rng.random((n, 1)) < 0.02, 0.4, 1)

    return draw


def _sparse(width: int) -> Draw:
    """Numbers of at least 0, few above it."""
    often_d = np.minimum(0.5, 6 * _falling(width, 0.8))
    return lambda n, rng: (rng.random((n, width)) < often_d) * rng.exponential(1, (n, width))


def _counts(width: int) -> Draw:
    """Whole numbers of 0 to 255, as descriptors of images have."""
    draw = _clusters(width, 300, 0.8, 0)
    return lambda n, rng: np.clip(np.rint(30 * draw(n, rng)), 0, 255)


def _some_others(draw: Draw, other: Draw, share: float) -> Draw:
    """So few queries of another kind that a plan may have seen hardly any."""
    return lambda n, rng: np.where(rng.random((n, 1)) < share, other(n, rng), draw(n, rng))


def _same(rows: int, metric: Metric, draw: Draw) -> Kind:
    return Kind(rows, metric, draw, draw)


KINDS = {
    "tiny": _same(500, "cosine", _classes(24, 0.5)),
    "tiny, isotropic": _same(500, "l2", _normal(64)),
    "heavy tails": _same(3000, "cosine", _heavy_tails(64)),
    "heavy tails, l2": _same(3000, "l2", _heavy_tails(64)),
    "Zipf clusters": _same(4000, "cosine", _clusters(64, 300, 0.5, 1.0)),
    "near-duplicates": _same(3000, "cosine", _clusters(64, 300, 0.01, 0)),
    "isotropic": _same(2000, "cosine", _normal(32)),
    "outlier dims": _same(3000, "cosine", _with_outliers(96)),
    "lengths, inner": _same(3000, "inner", _of_lengths(_classes(48, 0.5), 0.4)),
    "far mean, l2": _same(3000, "l2", _moved(_classes(48, 0.5), 40)),
    "other tower": Kind(
        3000, "cosine", _classes(64, 0.4), _other_tower(_classes(64, 0.4), 64)
    ),
    "Matryoshka-like": _same(3000, "cosine", _classes(128, 0.6)),
    "Matryoshka-like, turned": _same(3000, "cosine", _classes(128, 0.6, True)),
    "low intrinsic dim": _same(3000, "cosine", _manifold(128, 5)),
    "hubs": _same(3000, "l2", _hubs(48)),
    "sparse": _same(3000, "cosine", _sparse(128)),
    "counts": _same(3000, "l2", _counts(128)),
    "some of another kind": Kind(
        3000, "cosine", _classes(48, 0.6), _some_others(_classes(48, 0.6), _normal(48), 0.03)
    ),
    "wide": _same(2000, "cosine", _classes(768, 0.6)),
    "12,000, Matryoshka-like": _same(12_000, "cosine", _classes(128, 0.6)),
    "12,000, turned": _same(12_000, "cosine", _classes(128, 0.6, True)),
    "12,000, Zipf clusters": _same(12_000, "cosine", _clusters(64, 300, 0.5, 1.0)),
    "12,000, near-duplicates": _same(12_000, "l2", _clusters(64, 1200, 0.01, 0)),
    "12,000, other tower": Kind(
        12_000, "cosine", _classes(96, 0.4), _other_tower(_classes(96, 0.4), 96)
    ),
    "12,000, lengths, inner": _same(12_000, "inner", _of_lengths(_classes(64, 0.5), 0.3)),
    "12,000, heavy tails": _same(12_000, "l2", _heavy_tails(64)),
    "50,000, Matryoshka-like": _same(50_000, "cosine", _classes(64, 0.6)),
}  # fmt: skip
LARGE = {"1,000,000, Matryoshka-like": _same(1_000_000, "cosine", _classes(128, 0.6))}
_SEEDS, _OF_MANY = 2, 1  # plans of each target, and of kinds of 10,000 rows or more
_MANY = 10_000


class Tried(NamedTuple):
    """A promise and what came of it.

    Attributes:
      found: mean recall of all fresh queries.
      kept: share of the rounds in which the recall was not below what was promised.
    """

    kind: str
    rows: int
    width: int
    metric: str
    target: float
    seed: int
    plan: str
    low: float
    high: float
    found: float
    kept: float
    within: float
    seconds: float


def _draw(draw: Draw, n: int, seed: tuple[int, ...]) -> np.ndarray:
    return draw(n, np.random.default_rng(seed)).astype(np.float32)


def tried(name: str, kind: Kind, target: float, seed: int) -> Tried | None:
    """Plans, builds, asks; None if no plan is promised to reach the target."""
    start = time.process_time()
    z_nd = _draw(kind.rows_of, kind.rows, (seed, 0))
    query_bd = _draw(kind.asked_of, QUERIES, (seed, 1))
    memory = int(3.9 * z_nd.size) if kind.rows < _MANY else None
    wanted = promises.Wanted(target, K, kind.metric, memory, seed=seed)
    try:
        chosen = propose.propose(InMemory(z_nd), InMemory(query_bd), wanted).chosen
    except DataError:
        return None
    size = promises.held_out(QUERIES)
    fresh_bd = _draw(kind.asked_of, ROUNDS * size, (seed, 2))
    index = Index.build(None, z_nd, plan=chosen.plan, seed=seed + 1)
    true_bk = ranks.neighbours(InMemory(z_nd), fresh_bd, K, kind.metric)
    found_bk, _ = index.search(fresh_bd, K)
    recall_b = (true_bk[:, :, None] == found_bk[:, None, :]).any(2).mean(1)
    recall_r = recall_b.reshape(ROUNDS, size).mean(1)
    kept_r = recall_r >= chosen.low
    return Tried(
        name, *z_nd.shape, kind.metric, target, seed, frontier.described(chosen.plan),
        chosen.low, chosen.high, float(recall_b.mean()), float(kept_r.mean()),
        float((kept_r & (recall_r <= chosen.high)).mean()), time.process_time() - start,
    )  # fmt: skip


def all_tried(
    kinds: dict[str, Kind], targets: Sequence[float], seeds: int | None
) -> Iterator[tuple[str, float, int, Tried | None]]:
    """One after another; with None seeds as many as a kind of so many rows is worth."""
    for name, kind in kinds.items():
        count = seeds or (_SEEDS if kind.rows < _MANY else _OF_MANY)
        for target in targets:
            for seed in range(count):
                yield name, target, seed, tried(name, kind, target, seed)


def broken_too_often(found: Sequence[Tried]) -> float:
    """The probability of as many broken promises or more, if 1 - `promises.LEVEL` of them are.

    The rounds of one plan depend on each other: a plan counts by the share of its rounds.
    """
    broken = sum(1 - one.kept for one in found)
    return float(stats.binom.sf(np.ceil(broken) - 1, len(found), 1 - promises.LEVEL))


def table(found: Sequence[Tried], unpromised: int, command: str) -> str:
    """As Markdown: a row for each kind and target, then all together."""
    heads = (
        "kind", "rows x dims, metric", "target", "promised", "found", "kept", "plan of the first",
    )  # fmt: skip
    groups: dict[tuple, list[Tried]] = {}
    for one in found:
        groups.setdefault((one.kind, one.target), []).append(one)
    rows = []
    for (name, target), members in groups.items():
        first = members[0]
        rows.append((
            name, f"{first.rows:,} x {first.width}, {first.metric}", f"{target:g}",
            " ".join(f"{x.low:.4f}" for x in members), " ".join(f"{x.found:.4f}" for x in members),
            f"{np.mean([x.kept for x in members]):.1%}", first.plan,
        ))  # fmt: skip
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
    within = np.mean([x.within for x in found])
    searching = [x for x in found if not x.plan.startswith("exact")] or found
    broken = broken_too_often(searching)
    about = f"""
The recall@{K} that the planner promises, the lower end of its interval, beside what an index that
is built by the plan, anew, finds for fresh queries of the same kind. Plans are made with {QUERIES}
queries; kept: the share of {ROUNDS} rounds of {promises.held_out(QUERIES)} fresh queries, as many as the recall was
measured with, in which it was no less than promised. Several numbers are of seeds 0, 1, ..., which
draw vectors, queries and all else that is random. Of fewer than {_MANY:,} rows memory is limited to
3.9 bytes a number, which rules out exact search.

Of {len(found)} plans, {len(found) - len(searching)} of them exact search, the others kept {np.mean([x.kept for x in searching]):.2%} of their promises, where at
least {promises.LEVEL:.0%} are said to be kept: as many broken ones or more would be seen with probability
{broken:.2g} if 1 % were broken. {within:.2%} of all were within the interval. {unpromised} times the planner said that
no plan within the limit of memory can be promised to reach the target with so few queries.

Made by `{command}`.
"""  # noqa: E501
    return "\n".join(("# Promised and found", about, *lines, ""))


def main(argv: Sequence[str]) -> None:
    """Tries all, prints a line for each plan, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS, *LARGE], metavar="KIND")
    parser.add_argument("--targets", nargs="+", type=float, default=TARGETS)
    parser.add_argument("--seeds", type=int, help="plans of each target")
    parser.add_argument("--large", action="store_true", help="also a million rows")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    arguments = parser.parse_args(argv)
    trial.SECONDS = 0.02  # which of some plans is the fastest says nothing of their recall
    every = {**KINDS, **(LARGE if arguments.large or arguments.kinds else {})}
    kinds = {name: every[name] for name in arguments.kinds or every}
    found, unpromised = [], 0
    for name, target, seed, one in all_tried(kinds, arguments.targets, arguments.seeds):
        about = {"kind": name, "target": target, "seed": seed}
        print(json.dumps(about if one is None else one._asdict()), flush=True)
        found, unpromised = (found, unpromised + 1) if one is None else ([*found, one], unpromised)
    command = shlex.join(["python", "-m", "benchmarks.promises", *argv])
    if found:
        arguments.out.write_text(table(found, unpromised, command))


if __name__ == "__main__":
    main(sys.argv[1:])
