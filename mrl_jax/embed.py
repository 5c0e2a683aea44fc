"""Embeds many examples: `python -m mrl_jax.embed --workdir RUN --input DATA --out DIR`.

Restores the newest checkpoint of a trained run. DATA is one of its splits (train, val, test), a
folder with images at any depth, which are prepared as in evaluation, or, for an adaptor, vectors:
.npy, .parquet or such a folder as this writes. DIR gets vectors and ids in shards, and
manifest.json; `mrl_jax.store.vectors.open_vectors(DIR)` reads them. Ids are the rows of a split,
the lines of names.txt, or those that vectors have. Called again it goes on: finished shards are
kept, damaged ones written again. Keys that do not change the model may be given anew, such as
--config.eval.batch_size=512, --config.mesh.tensor=1 or --config.data.path=...
"""

from mrl_jax import cli

if __name__ == "__main__":
    cli.start(preemptible=True)  # before the imports below, which take seconds

import contextlib
import functools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from mrl_jax import config as configs
from mrl_jax import embedder, errors
from mrl_jax.embedder import Embedder, Request
from mrl_jax.record import folder
from mrl_jax.runtime import agreement, distributed
from mrl_jax.store.shards import Format


def add_arguments(parser: cli.ArgumentParser) -> None:
    """The arguments that say which vectors are wanted and where they go."""
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run")
    parser.add_argument("--step", type=int, help="of an older checkpoint (default: the newest)")
    parser.add_argument("--input", required=True, help="split of the run, images, or vectors")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder of the vectors")
    parser.add_argument("--dim", type=int, help="keep this prefix only (default: all dims)")
    parser.add_argument("--format", choices=get_args(Format), default="npy", help="of the shards")
    parser.add_argument("--shard_rows", type=int, default=65536, help="vectors per shard")
    parser.add_argument(
        "--normalize", action="store_true", help="to unit length, after cutting to --dim"
    )


def request(arguments, overrides: Sequence[str]) -> Request:
    """What the arguments of `add_arguments` ask for."""
    return Request(
        arguments.workdir,
        arguments.input,
        arguments.dim,
        arguments.normalize,
        tuple(overrides),
        arguments.step,
    )


def main(argv: Sequence[str]) -> None:
    """Runs the command line; see the module's docstring."""
    parser = cli.ArgumentParser("python -m mrl_jax.embed", description=__doc__)
    add_arguments(parser)
    parser.add_argument(
        "--distributed", action="store_true", help="let JAX detect the cluster (TPU pods)"
    )
    arguments, overrides = parser.parse_known_args(argv)
    distributed.initialize(detect=arguments.distributed)
    config = configs.override(folder.read_config(arguments.workdir), overrides)
    asked = {name: str(value) for name, value in vars(arguments).items()}
    agreement.check("program", {**asked, **agreement.of_program(config)})
    first, out = jax.process_index() == 0, arguments.out
    embed = Embedder(request(arguments, overrides))
    manifest = embed.plan(arguments.format, arguments.shard_rows)
    if embed.warning and first:
        print(embed.warning)
    with contextlib.ExitStack() as stack:
        _on_first(lambda: embedder.check_place(out))  # no lock is left in a foreign folder
        _on_first(lambda: stack.enter_context(folder.locked(out)))
        manifest = _on_first(lambda: embedder.begin(out, manifest, embed.names)) or manifest
        todo = _agreed([not shard.sha256 for shard in manifest.shards])
        rows = sum(manifest.shards[index].rows for index in todo)
        # disable=None: shown on a terminal only, and for sets that take a while.
        quiet = None if rows >= 5000 and first else True
        with tqdm(desc="embedding", total=rows, unit="row", disable=quiet) as bar:
            for index in todo:
                z_nd = embed(*manifest.span(index), bar.update)
                write = functools.partial(embed.write, out, manifest, index, z_nd)
                manifest = _on_first(write) or manifest
    if first:
        print(embedder.summary(out, manifest, len(todo)))


def _on_first(work: Callable[[], Any]) -> Any:
    """Does it in the first process and gives what comes of it there, None elsewhere.

    Where it fails all processes end with its exit code: they would wait for the first one, and that
    one, at its end, for them.
    """
    result, failure, code = None, None, errors.EXIT_DONE
    if jax.process_index() == 0:
        try:
            result = work()
        except (OSError, *errors.USER_ERRORS) as error:
            failure, code = error, getattr(error, "exit_code", errors.EXIT_CHECKPOINT)
    if jax.process_count() > 1:
        code = int(multihost_utils.broadcast_one_to_all(np.array(code)))
    if failure:
        raise failure
    if code:
        sys.exit(code)
    return result


def _agreed(wanted: Sequence[bool]) -> list[int]:
    """Which shards are wanted: the first process has looked at the files, the others follow."""
    wanted_s = np.array(wanted)
    if jax.process_count() > 1:
        wanted_s = multihost_utils.broadcast_one_to_all(wanted_s)
    return np.flatnonzero(wanted_s).tolist()


if __name__ == "__main__":
    cli.run(main)
