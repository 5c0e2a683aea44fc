"""`python -m mrl_jax.embed` by the workers of a Ray cluster, with the same arguments and files.

python launch/ray/embed.py --workers 8 --gpus 1 --address auto --workdir RUN --input DATA --out DIR

Without --address a cluster of this machine's CPUs is started and ended. All nodes need RUN, DATA
and DIR under the same paths. When a worker dies its shard is done again; when this command dies,
start it again. Either command goes on in a folder of the other.
"""

from mrl_jax import cli

if __name__ == "__main__":
    cli.start()  # before the imports below, which take seconds

from collections.abc import Sequence

from mrl_jax import embed as local
from mrl_jax.engines import ray


def main(argv: Sequence[str]) -> None:
    """Runs the command line; see the module's docstring."""
    parser = cli.ArgumentParser("launch/ray/embed.py", description=__doc__)
    local.add_arguments(parser)
    ray.add_arguments(parser)
    a, overrides = parser.parse_known_args(argv)
    workers = ray.workers(a)
    with ray.connected(a.address, workers):
        print(ray.embed(local.request(a, overrides), a.out, a.format, a.shard_rows, workers))


if __name__ == "__main__":
    cli.run(main)
