"""Measures a trained run again: `python -m mrl_jax.evaluate --workdir DIR`.

Restores the newest checkpoint, or that of --step, and runs the same evaluators as the end of
training, on the same splits; the numbers are identical. Rewrites results.json and the folder
evaluation beside it. Keys that do not change the model may be given anew:
--config.eval.measures=all measures all there is, others are --config.eval.dims=4,8,12,
--config.mesh.tensor=1 or --config.data.path=...
"""

from mrl_jax import cli

if __name__ == "__main__":
    cli.start(preemptible=True)  # before the imports below, which take seconds

import contextlib
import pathlib
import shlex
from collections.abc import Sequence

import jax

from mrl_jax import config as configs
from mrl_jax import experiment, imported
from mrl_jax.record import folder as workdir
from mrl_jax.record import results
from mrl_jax.runtime import agreement, distributed, memory, watchdog
from mrl_jax.runtime.phases import Phases


def main(argv: Sequence[str]) -> None:
    """Runs the command line; see the module's docstring."""
    parser = cli.ArgumentParser("python -m mrl_jax.evaluate", description=__doc__)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run")
    parser.add_argument("--step", type=int, help="of an older checkpoint (default: the newest)")
    parser.add_argument(
        "--distributed", action="store_true", help="let JAX detect the cluster (TPU pods)"
    )
    arguments, overrides = parser.parse_known_args(argv)
    folder = arguments.workdir
    # A folder without a run is refused before it is locked.
    config = configs.override(workdir.read_config(folder), overrides)
    distributed.initialize(detect=arguments.distributed)
    agreement.check("program", {"--step": arguments.step, **agreement.of_program(config)})
    first = jax.process_index() == 0
    with workdir.locked(folder) if first else contextlib.nullcontext():
        setup, state = experiment.restored(folder, overrides, arguments.step, measured=True)
        agreement.check("code", imported.code())
        if first:
            print("\n".join(filter(None, [workdir.unknown_keys(folder), *setup.notes])))
        phases = Phases()
        with (
            memory.exhausted(),
            watchdog.watching(phases, config.hang_minutes, lambda: False),
            phases("eval"),
        ):
            found = setup.evaluate(state)
        if first:
            command = f"python -m mrl_jax.evaluate {shlex.join(argv)}"
            setup.record(found, command, int(state["step"]))
            printed = results.table(found.results, found.rows)
            print("\n".join([printed, *results.not_measured(found.skipped)]))
            print(f"step {int(state['step'])}; results in {folder / workdir.RESULTS}")
        if found.unread:
            raise found.unread[0]


if __name__ == "__main__":
    cli.run(main)
