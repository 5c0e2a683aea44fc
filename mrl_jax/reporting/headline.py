"""What the tables carry, in a few plain sentences; nothing is said that is not computed."""

from collections.abc import Callable, Sequence

from mrl_jax.reporting.tables import NESTED, Comparison, Curve, Table

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


def spans(dims: Sequence[int], among: Sequence[int]) -> str:
    """Neighbours `among` all dims drawn together: [8, 16, 32, 128] -> "8 to 32 and 128"."""
    among = sorted(among)
    groups: list[list[int]] = []
    for dim in sorted(dims):
        if groups and among.index(dim) == among.index(groups[-1][-1]) + 1:
            groups[-1].append(dim)
        else:
            groups.append([dim])
    parts: list[object] = []
    for group in groups:
        parts += [f"{group[0]} to {group[-1]}"] if len(group) > 2 else group
    return listing(parts)


def count(number: int, noun: str) -> str:
    """1, "seed" -> "1 seed"; 3, "seed" -> "3 seeds"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def prefix_sentence(table: Table, curve: Curve) -> str | None:
    """How far down the trained prefixes of one nested method stay near its full width."""
    dims = sorted(curve.trained & curve.values.keys())
    if not dims:
        return None
    means = {dim: curve.summary(dim).mean for dim in dims}
    width = dims[-1]
    if table.about.lower_is_better:
        ends = f"{percent(means[dims[0]])}% at {dims[0]} dims"
        whole = f"{percent(means[width])}% at {width}"
        return f"The {table.about.noun} of {curve.label} is {ends} and {whole}."
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


def _is_even(comparison: Comparison) -> bool:
    return all(map(comparison.is_even, comparison.by_dim))


def _one_seed(comparisons: Sequence[Comparison]) -> str:
    return "one seed each" if all(map(_is_even, comparisons)) else "the one seed that both have"


def _paired(comparison: Comparison) -> str:
    """Which seeds are compared, if the table's means include other seeds."""
    if _is_even(comparison):
        return ""
    seeds = sorted({seed for dim in comparison.by_dim for seed in comparison.seeds(dim)})
    return f" (seed{'s' if len(seeds) > 1 else ''} {listing(seeds)} only, which both have)"


def rests_on(comparisons: Sequence[Comparison]) -> str:
    """What verdicts speak of, in short: other seeds, other examples, or these networks alone."""
    differences = [d for c in comparisons for d, _ in c.by_dim.values()]
    units = {c.unit for c in comparisons if c.unit}
    noun = f"{max(d.units for d in differences):,} {listing(sorted(units))}" if units else ""
    if all(d.n == 1 for d in differences):
        return f"these trained networks, {_one_seed(comparisons)}, on the same {noun}"
    seeds = f"{max(d.n for d in differences)} seeds"
    return f"{seeds} and {noun}" if noun else seeds


def _after_holm(comparison: Comparison) -> list[str]:
    dims = list(comparison.by_dim)
    return [
        f"{verdict} at {spans(found, dims)}"
        for verdict in ("better", "worse")
        if (found := comparison.dims(verdict, holm=True))
    ]


def _more_of_networks(comparison: Comparison, verdict: str) -> list[int]:
    """Dims where these networks have a verdict for which seeds are too few or too different."""
    said = comparison.dims(verdict, holm=True)
    return [dim for dim in comparison.dims_of_networks(verdict) if dim not in said]


def _of_networks(comparison: Comparison) -> str:
    return "; ".join(
        f"{verdict} at {spans(dims, list(comparison.by_dim))}"
        for verdict in ("better", "worse")
        if (dims := _more_of_networks(comparison, verdict))
    )


def comparison_sentence(comparison: Comparison) -> str:
    """MRL against FF-m: the verdicts, what they rest on, and what Holm's correction leaves."""
    differences = {dim: difference for dim, (difference, _) in comparison.by_dim.items()}
    every = list(differences)
    text = f"{comparison.curve.label} against FF-m trained at that dim alone{_paired(comparison)}"
    if not comparison.has_verdicts and comparison.one_seed:
        higher = [dim for dim, difference in differences.items() if difference.mean > 1e-9]
        lower = [dim for dim, difference in differences.items() if difference.mean < -1e-9]
        found = [
            f"{word} at {spans(dims, every)}"
            for word, dims in (("higher", higher), ("lower", lower))
            if dims
        ]
        where = " and ".join(found) or f"equal at {spans(every, every)}"
        return (
            f"{text} is {where} dims; with {_one_seed([comparison])}, whether that is more than "
            "chance is unknown."
        )
    if comparison.unit:
        text += f" ({rests_on([comparison])})"
    better, worse = comparison.dims("better"), comparison.dims("worse")
    parts = [f"better at {spans(better, every)}", f"worse at {spans(worse, every)}"]
    for verdict, words in (
        ("no clear difference", "no clear difference at"),
        ("same in every seed", "the same difference in every seed at"),
        ("one seed", "one seed only at"),
    ):
        if dims := comparison.dims(verdict):
            parts.append(f"{words} {spans(dims, every)} dims")
    text += f": {'; '.join(parts)}."
    if better or worse:
        kept = _after_holm(comparison)
        what = f"what remains is: {'; '.join(kept)}" if kept else "none of these verdicts remains"
        text += f" After Holm's correction for {count(len(differences), 'comparison')}, {what}."
    if more := _of_networks(comparison):
        text += f" These networks alone, not training again, are {more}."
    return text


def _rivals(comparisons: Sequence[Comparison], verdict: str) -> str:
    """The baselines at the dims where MRL has this verdict after Holm's correction, or "none"."""

    def named(chosen: Callable[[Comparison], list[int]]) -> str:
        return "; ".join(
            f"{c.against.short or c.against.label} at {spans(dims, list(c.by_dim))}"
            for c in comparisons
            if (dims := chosen(c))
        )

    text = named(lambda c: c.dims(verdict, holm=True)) or "none"
    more = named(lambda c: _more_of_networks(c, verdict))
    return f"{text} (these networks alone: {more})" if more else text


def rival_sentences(table: Table) -> list[str]:
    """Where other baselines are ahead, and where MRL is, after one correction for all of them."""
    said = []
    total = count(sum(len(c.by_dim) for c in table.rivals), "comparison")
    for label in dict.fromkeys(c.curve.label for c in table.rivals):
        against = [c for c in table.rivals if c.curve.label == label]
        if not any(c.has_verdicts for c in against):
            continue
        widest = {c.against.label.partition(",")[0] for c in against if c.against.short}
        of = f", most of them made of {listing(sorted(widest))}" if widest else ""
        said.append(
            f"Other baselines{of} (after Holm's correction for {total}): "
            f"{label} loses to {_rivals(against, 'worse')}; it beats {_rivals(against, 'better')}."
        )
    return said


def lead(table: Table) -> str:
    """The shortest account of a table: how far prefixes carry, and the verdicts that remain."""
    nested = [curve for curve in table.curves if curve.role in NESTED and curve.trained]
    if not nested:
        return ""
    curve = nested[0]
    text = prefix_sentence(table, curve) or ""
    for comparison in (c for c in table.comparisons if c.curve.label == curve.label):
        if comparison.has_verdicts:
            found = "; ".join(_after_holm(comparison)) or "no clear difference"
            text += f" Against FF-m{_paired(comparison)}: {found}"
            more = _of_networks(comparison)
            text += f" (these networks alone: {more})." if more else "."
    against = [c for c in table.rivals if c.curve.label == curve.label]
    if any(c.has_verdicts for c in against):
        text += f" Other baselines it loses to: {_rivals(against, 'worse')}."
    return text


def best_sentence(table: Table) -> str | None:
    """Which column has the best mean at which trained dims, baselines included."""
    wins: dict[str, list[int]] = {}
    trained = [dim for dim in table.dims if dim in table.trained]
    for dim in trained:
        for label in table.best(dim):
            wins.setdefault(label, []).append(dim)
    if not wins:
        return None
    parts = [f"{label} at {spans(dims, trained)}" for label, dims in wins.items()]
    word = "Lowest" if table.about.lower_is_better else "Highest"
    return f"{word} mean, by trained dim: {'; '.join(parts)}."


def sentences(table: Table) -> list[str]:
    """What one table says: how far prefixes carry, MRL against the baselines, and who is best."""
    nested = [curve for curve in table.curves if curve.role in NESTED]
    said = [prefix_sentence(table, curve) for curve in nested if curve.role == nested[0].role]
    said += [comparison_sentence(comparison) for comparison in table.comparisons]
    said += rival_sentences(table)
    said.append(best_sentence(table))
    if not nested:
        for curve in (c for c in table.curves if c.role == "ff"):
            width = max(curve.values)
            said.append(
                f"{curve.label} reaches {percent(curve.summary(width).mean)}% at m = {width}."
            )
        said.append("No MRL run is among these, so nothing is said about nested embeddings.")
    return [text for text in said if text]
