"""What the planner found, as a plan file, a table and a chart."""

from collections.abc import Sequence
from typing import Any

from mrl_jax import plots, printing
from mrl_jax.plots import Chart, Line
from mrl_jax.record import results
from mrl_jax.search import plan as plans
from mrl_jax.search.plan import Plan
from mrl_jax.search.planner.promises import LEVEL, Wanted
from mrl_jax.search.planner.propose import Point, Proposal, beats

_NOTE = (
    "expected.interval holds the mean recall over as many other queries of the same kind with at "
    "least probability level, the intervals of the frontier each by itself; times are of the "
    "machine that planned, those of more than sample_rows vectors scaled by rows scanned, but for "
    "a graph, whose times are of so many rows alone"
)


def described(plan: Plan) -> str:
    """A plan in a few words."""
    if not plan.schedule.stages:
        return f"exact, {plan.schedule.final} dims"
    rotated = ", principal directions" if plan.rotated else ""
    if plan.factory:
        return f"{plan.factory} {plan.schedule}, {plan.parameters or 'as it is'}{rotated}"
    lists = f", {plan.probes} of {plan.lists} lists by {plan.list_dim}" if plan.lists > 1 else ""
    return f"{plan.code} {plan.schedule}{lists}{rotated}"


def content(proposal: Proposal, wanted: Wanted, command: str) -> dict[str, Any]:
    """Of a plan file; `plan.read_plan` reads the plan in it."""
    return {
        "schema": plans.SCHEMA,
        "plan": proposal.chosen.plan.to_json(),
        "expected": _expected(proposal.chosen, proposal),
        "wanted": {
            "target_recall": wanted.target_recall,
            "k": wanted.k,
            "memory": wanted.memory,
            "latency_ms": wanted.latency_ms,
        },
        "n": {
            "rows": proposal.rows,
            "width": proposal.width,
            "sample_rows": proposal.sample_rows,
            "queries_tuned_on": proposal.tuned_on,
            "queries_held_out": proposal.held_out,
        },
        "frontier": [
            {"role": point.role, "plan": point.plan.to_json(), **_expected(point, proposal)}
            for point in proposal.points
        ],
        "note": _NOTE,
        "command": command,
        "seed": wanted.seed,
        "commit": results.commit(),
    }


def _expected(point: Point, proposal: Proposal) -> dict[str, Any]:
    return {
        "recall": point.recall,
        "interval": [point.low, point.high],
        "level": LEVEL,
        "latency_ms": point.times.latency_ms,
        "qps": point.times.qps,
        "resident_bytes_per_row": point.resident / proposal.rows,
        "vector_bytes_per_row": point.vectors / proposal.rows,
        "memory": point.memory,
    }


def _unbeaten(points: Sequence[Point]) -> list[Point]:
    """By recall and QPS alone."""
    return [p for p in points if not any(beats(q.merits[:2], p.merits[:2]) for q in points)]


def table(proposal: Proposal, k: int) -> str:
    """The frontier as text; a star marks the plan."""
    heads = (f"recall@{k}", f"{LEVEL:.0%} interval", "QPS", "p50 ms", "p99 ms", "B/row", "plan")
    rows = []
    unbeaten = _unbeaten(proposal.points)
    for point in proposal.points:
        if not (point in unbeaten or point.role or point is proposal.chosen):
            continue
        mark = "*" if point is proposal.chosen else " "
        of_row = point.memory / proposal.rows
        role = {"": "", "exact": " (baseline)", "paper": " (paper's Ds, K)"}[point.role]
        latency = point.times.latency_ms
        cells = (
            f"{mark} {point.recall:.4f}",
            f"{point.low:.4f} {point.high:.4f}",
            f"{point.times.qps:,.0f}",
            f"{latency['p50']:.3f}",
            f"{latency['p99']:.3f}",
            f"{of_row:,.0f}",
            described(point.plan) + role,
        )
        rows.append(cells)
    return printing.table(heads, rows, left={len(heads) - 1})


def chart(proposal: Proposal, k: int) -> bytes:
    """Recall by queries a second, as PNG."""
    groups = (
        ("graphs and lists of rabitqlib", "ff_pca", lambda p: bool(p.plan.factory)),
        ("lists, then codes", "mrl", lambda p: p.plan.lists > 1),
        ("codes of all rows", "mrl_e", lambda p: bool(p.plan.schedule.stages)),
        ("exact search", "ff", lambda p: True),
    )
    rest = [p for p in proposal.points if p is not proposal.chosen and p.role != "paper"]
    lines = []
    for label, role, belongs in groups:
        members = [p for p in rest if belongs(p)]
        rest = [p for p in rest if not belongs(p)]
        if members:
            lines.append(_points(label, role, _unbeaten(members)))
    paper = [p for p in proposal.points if p.role == "paper" and p is not proposal.chosen]
    if paper:
        lines.append(_points(f"paper's {paper[0].plan.schedule}", "ff_cut", paper))
    lines.append(_points("proposed", "slim", [proposal.chosen]))
    qps = [p.times.qps for p in proposal.points]
    ticks = tuple(10.0**i * j for i in range(-3, 9) for j in (1, 2, 5))
    ticks = tuple(t for t in ticks if min(qps) <= t <= max(qps)) or (qps[0],)
    title = f"Recall@{k}, %, of {proposal.rows:,} vectors of {proposal.width} dims"
    return plots.draw(Chart(title, "queries a second", tuple(lines), ticks))


def _points(label: str, role: str, members: Sequence[Point]) -> Line:
    ordered = sorted(members, key=lambda p: p.times.qps)
    points = (plots.Point(p.times.qps, p.recall, p.low, p.high) for p in ordered)
    return Line(label, role, tuple(points))
