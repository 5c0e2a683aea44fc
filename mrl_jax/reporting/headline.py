"""What the tables carry, in a few plain sentences; nothing is said that is not computed."""

from collections.abc import Sequence

from mrl_jax.reporting.tables import Comparison, Curve, Table

WITHIN = 0.01  # "within one point"


def percent(fraction: float) -> str:
    """0.9712 -> "97.12"."""
    return f"{100 * fraction:.2f}"


def listing(items: Sequence[object]) -> str:
    """[2, 4, 8] -> "2, 4 and 8"; [] -> "none"."""
    texts = [str(item) for item in items]
    if len(texts) < 2:
        return texts[0] if texts else "none"
    return f"{', '.join(texts[:-1])} and {texts[-1]}"


def count(number: int, noun: str) -> str:
    """1, "seed" -> "1 seed"; 3, "seed" -> "3 seeds"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _prefix_sentence(curve: Curve) -> str | None:
    """How far down the trained prefixes of one nested method stay near its full width."""
    dims = sorted(curve.trained & curve.values.keys())
    if not dims:
        return None
    means = {dim: curve.summary(dim).mean for dim in dims}
    width = dims[-1]
    text = f"{curve.label} reaches {percent(means[width])}% at its full {width} dims"
    small = width
    for dim in reversed(dims):
        if means[dim] < means[width] - WITHIN - 1e-12:
            break
        small = dim
    if small < width:
        return (
            f"{text}. Its first {small} dims alone, {width / small:.3g} times smaller, reach "
            f"{percent(means[small])}%; from there up every trained prefix is within one point."
        )
    if len(dims) > 1:
        lost = means[width] - means[dims[-2]]
        return f"{text}; the next smaller prefix, {dims[-2]} dims, loses {percent(lost)} points."
    return f"{text}."


def _comparison_sentence(comparison: Comparison) -> str:
    differences = {dim: difference for dim, (difference, _) in comparison.by_dim.items()}
    text = f"{comparison.curve.label} against FF-m trained at that dim alone"
    if all(difference.n == 1 for difference in differences.values()):
        higher = [dim for dim, difference in differences.items() if difference.mean > 1e-9]
        lower = [dim for dim, difference in differences.items() if difference.mean < -1e-9]
        return (
            f"{text} is higher at {listing(higher)} and lower at {listing(lower)} dims; with one "
            "seed each, whether that is more than chance is unknown."
        )
    better, worse = comparison.dims("better"), comparison.dims("worse")
    parts = [f"better at {listing(better)}", f"worse at {listing(worse)}"]
    for verdict, words in (
        ("no clear difference", "no clear difference at"),
        ("same in every seed", "the same difference in every seed at"),
        ("one seed", "one seed only at"),
    ):
        if dims := comparison.dims(verdict):
            parts.append(f"{words} {listing(dims)} dims")
    text += f": {'; '.join(parts)}."
    if not better and not worse:
        return text
    kept = [
        f"{verdict} at {listing(dims)}"
        for verdict in ("better", "worse")
        if (dims := comparison.dims(verdict, holm=True))
    ]
    what = f"what remains is: {'; '.join(kept)}" if kept else "none of these verdicts remains"
    return f"{text} After Holm's correction for {count(len(differences), 'comparison')}, {what}."


def _best_sentence(table: Table) -> str | None:
    """Which column has the highest mean at which trained dims, baselines included."""
    wins: dict[str, list[int]] = {}
    for dim in table.dims:
        if dim in table.trained:
            for label in table.best(dim):
                wins.setdefault(label, []).append(dim)
    if not wins:
        return None
    parts = [f"{label} at {listing(dims)}" for label, dims in wins.items()]
    return f"Highest mean, by trained dim: {'; '.join(parts)}."


def sentences(table: Table) -> list[str]:
    """What one table says: how far prefixes carry, MRL against FF-m, and who is highest."""
    nested = [curve for curve in table.curves if curve.role in ("mrl", "mrl_e")]
    said = [_prefix_sentence(curve) for curve in nested if curve.role == nested[0].role]
    said += [_comparison_sentence(comparison) for comparison in table.comparisons]
    said.append(_best_sentence(table))
    if not nested:
        for curve in (c for c in table.curves if c.role == "ff"):
            width = max(curve.values)
            said.append(
                f"{curve.label} reaches {percent(curve.summary(width).mean)}% at m = {width}."
            )
        said.append("No MRL run is among these, so nothing is said about nested embeddings.")
    return [text for text in said if text]
