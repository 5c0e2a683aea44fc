"""Trains one run: `python -m mrl_jax.train --config FILE.py[:ARG] --workdir DIR`.

Reads top to bottom: join the processes, check the config, build the experiment, restore or
initialise, train, measure. The same command continues a run that was stopped; what it computes
is then bit for bit what an uninterrupted run computes.
"""

from mrl_jax import cli

if __name__ == "__main__":
    cli.start(preemptible=True)  # before the imports below, which take seconds

import contextlib
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

import jax
from clu import parameter_overview

from mrl_jax import config as configs
from mrl_jax import dry_run, experiment, imported
from mrl_jax.errors import Preempted
from mrl_jax.experiment import Experiment
from mrl_jax.record import folder as workdir
from mrl_jax.record import results
from mrl_jax.runtime import agreement, distributed, memory, preemption, watchdog
from mrl_jax.runtime import mesh as meshes
from mrl_jax.runtime.checkpoint import Checkpoints
from mrl_jax.runtime.phases import Phases, Rate, clock
from mrl_jax.runtime.step import check_finite
from mrl_jax.runtime.writer import MetricWriter
from mrl_jax.store.files import write_text


def say(text: str) -> None:
    """Prints on the first process only."""
    if jax.process_index() == 0:
        print(text, flush=True)


class Training:
    """One run from its restored or fresh state to its last step."""

    def __init__(self, setup: Experiment, folder: pathlib.Path, phases: Phases):
        config = self.config = setup.config
        self.experiment, self.folder, self.phases = setup, folder, phases
        self.pending: tuple[int, dict[str, jax.Array]] | None = None
        self.stopping = False
        self.program = setup.program
        setup.check_memory(train=True)
        with phases("start"):
            self.checkpoints = Checkpoints(folder / workdir.CHECKPOINTS, config.checkpoint.keep)
            # Before the key: the facts of a checkpoint may change how keys are made.
            restored = self.checkpoints.restore(self.program.state, setup.adopt_and_check)
            self.key = self.program.run_key(config.seed)
            self.state = restored[0] if restored else self.fresh_state()
            self.begin = int(self.state["step"])
            if restored:
                say(f"resuming from step {self.begin}")
            self.writer = MetricWriter(
                folder / workdir.METRICS,
                self.begin,
                active=jax.process_index() == 0,
                measured_anew=self.begin == config.steps,
            )
            self.batches = setup.batches(config.seed)
            self.rate_of = jax.jit(self.program.rate)
        # The step is compiled once per shape of the batch, before the first of it.
        self.updates: dict[tuple[tuple[int, ...], ...], Any] = {}

    def fresh_state(self) -> Any:
        """The state before the first step."""
        state = self.program.init_state(self.key)
        if start := self.experiment.start:
            source, put_in = start
            state = put_in(state)
            say(source)
        say(parameter_overview.get_parameter_overview(state["params"], include_stats="sharding"))
        return state

    def update_for(self, number: int, batch: dict[str, jax.Array]) -> Any:
        """The compiled training step for batches of this shape, from step `number` on."""
        shape = tuple(batch[name].shape for name in sorted(batch))
        if shape not in self.updates:
            with self.phases("compile"), self.paused():
                compiled = self.program.compile(batch)
                memory.check_step(compiled, self.program.mesh)
            if not self.updates:
                self.rate = Rate(self.config.steps, self.config.batch_size, number)
            self.updates[shape] = compiled
        return self.updates[shape]

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Keeps the time of a with-block out of the measured speed, once there are steps."""
        return self.rate.paused() if self.updates else contextlib.nullcontext()

    def is_validated(self, done: int) -> bool:
        """Whether the val split is evaluated after this step and before the next."""
        every = self.config.eval.every
        return every > 0 and 0 < done < self.config.steps and done % every == 0

    def run(self) -> None:
        """All steps that are left.

        Raises:
          NonFiniteError: naming step and granularity.
          Preempted: after a signal to any process, with the state saved.
          CheckpointError: a checkpoint could not be written.
        """
        config = self.config
        # The process may have died between saving this step and evaluating it.
        if self.is_validated(self.begin) and not distributed.of_first_process(self.writer.measured):
            self.evaluate_val(self.begin)
        for number in range(self.begin, config.steps):
            with self.phases("data"):
                batch = self.batches(number)
            update = self.update_for(number, batch)
            # A scheduler may signal only one process, and no two processes are at the same line of
            # code. So each passes its wish to stop into the step, and all act on the same sum.
            preemption.hold()
            stop = meshes.votes(self.program.mesh, preemption.wanted())
            with self.phases("step"), jax.transfer_guard("disallow"):
                self.state, metrics = update(self.state, batch, self.key, stop)
                # The device works on this step while the host reads the numbers of the one before.
                previous, self.pending = self.pending, (number + 1, metrics)
                self.digest(previous)
            done = number + 1
            last = done == config.steps
            measured = self.is_validated(done)
            # Saved before it is measured, so that a signal can end the evaluation immediately.
            if self.stopping or last or measured or done % config.checkpoint.every == 0:
                self.save(done)
            if self.stopping and not last:
                self.checkpoints.wait()
                raise Preempted(f"stopped by a signal after step {done}, state saved")
            if measured:
                self.evaluate_val(done)
        self.let_go()

    def let_go(self) -> None:
        """Waits until every process has the state on disk; from then on a signal ends the run."""
        self.checkpoints.wait()
        distributed.barrier("saved")
        preemption.release()

    def digest(self, record: tuple[int, dict[str, jax.Array]] | None) -> None:
        """Reads, checks and now and then writes the metrics of a step that is already done."""
        if record is None:
            return
        done, metrics = record[0], jax.device_get(record[1])
        nesting = self.program.task.nesting
        check_finite(done, metrics, nesting.dims)
        self.stopping |= bool(metrics["stop"])
        if done % self.config.log_every and done != self.config.steps:
            return
        speed, left = self.rate.read(done)
        values = {
            "train/loss": float(metrics["loss"]),
            **{
                f"train/loss/{dim:04d}": float(loss)
                for dim, loss in zip(nesting.dims, metrics["loss_g"], strict=True)
            },
            "train/grad_norm": float(metrics["grad_norm"]),
            # The rate this step was taken with: the schedule counts from 0.
            "train/learning_rate": float(self.learning_rate(done - 1)),
            "time/examples_per_second": speed,
            **{f"time/{name}": share for name, share in self.phases.shares().items()},
        }
        self.writer.write(done, values)
        say(
            f"step {done:>6}/{self.config.steps} {done / self.config.steps:4.0%}  "
            f"loss {values['train/loss']:.4f}  {speed:,.0f} examples/s  ETA {clock(left)}"
        )

    def learning_rate(self, number: int) -> float:
        """The schedule's value at a step, for the log."""
        with jax.transfer_guard("allow"):
            return jax.device_get(self.rate_of(number))

    def save(self, done: int) -> None:
        """Saves the state, once the numbers of the step that made it are known to be good."""
        with self.phases("step"):
            record, self.pending = self.pending, None
            self.digest(record)
        with self.phases("checkpoint"), self.paused():
            self.checkpoints.save(done, self.state, self.experiment.remembered())

    def evaluate_val(self, done: int) -> None:
        """Evaluates the val split in the middle of training."""
        with self.phases("checkpoint"), self.paused():
            self.let_go()
        with self.phases("eval"), self.paused():
            found = self.experiment.evaluate(self.state, ("val",))
            self.writer.write(done, results.by_name(found.results))
        for line in results.not_measured(found.skipped):
            say(f"step {done:>6} {line}")
        if main := results.headline(found.results):
            best = [r for r in main if r.name == main[0].name][-1]
            text = f"{best.name} at {best.dim} dims {best.value:.2%} +- {best.stderr:.2%}"
            say(f"step {done:>6} {text}")

    def finish(self, command: str) -> None:
        """Final evaluation, results.json and DONE.

        Raises:
          DataError: some data could not be read. The other numbers are in results.json, and the
            same command repeats the evaluation.
        """
        with self.phases("eval"):
            found = self.experiment.evaluate(self.state)
        self.writer.write(self.config.steps, results.by_name(found.results))
        self.checkpoints.close()
        if jax.process_index() == 0:
            self.experiment.record(found, command, self.config.steps)
            if not found.unread:
                write_text(self.folder / workdir.DONE, f"step {self.config.steps}\n")
        say(results.table(results.headline(found.results)))
        for line in results.not_measured(found.skipped):
            say(line)
        if found.unread:
            raise found.unread[0]
        say(f"time {self.phases.summary()}")
        say(f"results in {self.folder / workdir.RESULTS}")


def main(argv: Sequence[str]) -> None:
    """Runs the command line; see the module's docstring."""
    parser = cli.ArgumentParser("python -m mrl_jax.train", description=__doc__)
    parser.add_argument("--config", help="config file, with :ARG for its argument")
    parser.add_argument("--workdir", type=pathlib.Path, help="folder of the run")
    parser.add_argument(
        "--distributed", action="store_true", help="let JAX detect the cluster (TPU pods)"
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="compile the step of --config, or of the run in --workdir, and print what it costs",
    )
    parser.add_argument(
        "--topology", default="", help="dry run for a TPU slice that is not here, e.g. v5e:16x16"
    )
    parser.add_argument(
        "--help_config", action="store_true", help="print every key of --config with its meaning"
    )
    arguments, overrides = parser.parse_known_args(argv)
    run = arguments.workdir if arguments.dry_run and not arguments.config else None
    if not (run or arguments.config):
        parser.error("the following arguments are required: --config")
    config = experiment.of_run(run, overrides).config if run else None
    config = config or configs.load(arguments.config, overrides)
    if arguments.help_config:
        print(configs.key_table(config))
        return
    if arguments.dry_run:
        print(dry_run.report(config, arguments.topology, run))
        return
    if arguments.topology:
        parser.error("--topology needs --dry_run")
    if arguments.workdir is None:
        parser.error("the following arguments are required: --workdir")
    phases = Phases()
    with phases("start"):
        joined = distributed.initialize(detect=arguments.distributed)
        agreement.check("program", agreement.of_program(config))
    folder = arguments.workdir
    first = jax.process_index() == 0
    # One lock per run: the first process holds it for all.
    with workdir.locked(folder) if first else contextlib.nullcontext():
        workdir.check_same_run(folder, config)
        if workdir.is_done(folder):
            say(f"{config.name} is done already; see {folder / workdir.RESULTS}")
            return
        say(f"{config.name}: {joined}, {jax.devices()[0].device_kind} x{jax.device_count()}")
        with phases("start"):
            setup = experiment.from_config(config, folder)
            read = {"data": setup.dataset.training_fingerprint(), **imported.code()}
            agreement.check("read", read)
        for line in setup.notes:
            say(line)
        for line in results.not_measured(setup.check()):
            say(line)
        watched = watchdog.watching(phases, config.hang_minutes, preemption.wanted)
        with memory.exhausted(), watched:
            training = Training(setup, folder, phases)
            try:
                # Only now: a run that cannot even start does not claim the folder.
                if first:
                    setup.record_start()
                training.run()
                training.finish(f"python -m mrl_jax.train {shlex.join(argv)}")
            finally:
                training.writer.close()


if __name__ == "__main__":
    cli.run(main)
