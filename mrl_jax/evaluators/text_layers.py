"""Embeddings after fewer layers: the main number of each measurement at layer x dim."""

from collections.abc import Sequence

from mrl_jax.record.finding import Finding

# What is told of a layer; the other metrics of a measurement are of all layers alone.
MAIN = ("match", "spearman", "ndcg10")


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


def of_layer(found: Finding, layer: int) -> Finding:
    """What was measured after this layer, by names of its own: "{name}/spearman_layer3"."""
    suffix = f"_layer{layer}"
    return Finding(
        [
            result._replace(name=result.name + suffix)
            for result in found.results
            if result.name.rpartition("/")[2] in MAIN
        ],
        {name + suffix: examples for name, examples in found.examples.items()},
    )
