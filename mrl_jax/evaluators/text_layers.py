"""Embeddings after fewer layers: the main number of each measurement at layer x dim."""

from collections.abc import Sequence

from mrl_jax.record import metrics
from mrl_jax.record.finding import Finding

# What is told of a layer; the other metrics of a measurement are of all layers alone.
MAIN = ("match", "spearman", metrics.NDCG(10))


def check_layers(layers: Sequence[int], there: int) -> tuple[int, ...]:
    """The layers to measure beside the last of `there`.

    Raises:
      ValueError: not different numbers from 1 to below `there`.
    """
    if len({*layers}) != len(layers) or any(not 1 <= layer < there for layer in layers):
        legal = f"different numbers from 1 to {there - 1}" if there > 1 else "none"
        raise ValueError(
            f"legal is {legal}, the encoder has {there} {'layers' if there > 1 else 'layer'}; "
            f"got {tuple(layers)}"
        )
    return tuple(sorted(layers))


def main_numbers(found: Finding) -> Finding:
    """Those of the results, with their examples."""
    results = [result for result in found.results if result.metric in MAIN]
    return Finding(results, found.examples)
