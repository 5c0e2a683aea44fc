"""Numbers, lists and untrusted names as the text of a report."""

from collections.abc import Sequence

UNTRAINED, HOLM, BETTER, WORSE = "○", "‡", "▲", "▼"
BETTER_HERE, WORSE_HERE = "△", "▽"  # of these networks alone


def percent(fraction: float, scale: float = 100) -> str:
    """0.9712 -> "97.12"; of what is no fraction, `scale` is another (`Metric.scale`)."""
    return f"{scale * fraction:.2f}"


def signed(fraction: float, scale: float = 100) -> str:
    """A difference in points with its sign: -0.0123 -> "−1.23"; `scale` as of `percent`."""
    text = f"{scale * fraction:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "−")


def listing(items: Sequence[object]) -> str:
    """[2, 4, 8] -> "2, 4 and 8"; [] -> "none"."""
    *first, last = map(str, items or ["none"])
    return f"{', '.join(first)} and {last}" if first else last


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
