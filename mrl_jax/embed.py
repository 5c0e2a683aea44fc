"""Embeds many examples: `python -m mrl_jax.embed --workdir RUN --input DATA --out DIR`.

Restores the newest checkpoint of a trained run. DATA is one of its splits (train, val, test), a
folder with images at any depth, which are prepared as in evaluation, a file of texts (.txt with one
in a line; .jsonl, .tsv or .parquet with a column text, caption, sentence or query), or, for an
adaptor, vectors: whatever `mrl_jax.search` reads, such a folder as this writes included. Of a run
with several towers, one of them reads DATA: of photos and captions, --tower text reads the captions
of a split, where otherwise its photos are meant. DIR gets vectors and ids in shards, and
manifest.json; `mrl_jax.store.vectors.open_vectors(DIR)` reads them. Ids are the rows of a split or
a file, the lines of names.txt, or those that vectors have. Called again it goes on: finished shards
are kept, damaged ones written again. Keys that do not change the model may be given anew, such as
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
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from mrl_jax import config as configs
from mrl_jax import errors, experiment
from mrl_jax.data.named import SPLITS
from mrl_jax.errors import UsageError
from mrl_jax.experiment import Experiment
from mrl_jax.model import Model
from mrl_jax.record import folder
from mrl_jax.runtime import agreement, distributed
from mrl_jax.runtime.forks import check_not_forked
from mrl_jax.runtime.step import evaluated
from mrl_jax.store import ids, shards, tables
from mrl_jax.store.files import write_text
from mrl_jax.store.shards import Format, Manifest, Shard
from mrl_jax.store.vectors import place


class Request(NamedTuple):
    """Which vectors are wanted: see `add_arguments`, and `model.load` for the overrides."""

    workdir: pathlib.Path
    source: str
    dim: int | None = None
    normalize: bool = False
    overrides: tuple[str, ...] = ()
    step: int | None = None
    tower: str | None = None
    prompt_name: str | None = None


def add_arguments(parser: cli.ArgumentParser) -> None:
    """The arguments that say which vectors are wanted and where they go."""
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run")
    parser.add_argument("--step", type=int, help="of an older checkpoint (default: the newest)")
    a_source = "split of the run, images, texts, or vectors"
    parser.add_argument("--input", required=True, help=a_source)
    parser.add_argument("--tower", help="of a run with several, which one reads the input")
    a_prompt = "of texts, which prompt is put before each (default: the model's own, if any)"
    parser.add_argument("--prompt_name", help=a_prompt)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder of the vectors")
    parser.add_argument("--dim", type=int, help="keep this prefix only (default: all dims)")
    parser.add_argument("--format", choices=get_args(Format), default="npy", help="of the shards")
    parser.add_argument("--shard_rows", type=int, default=65536, help="vectors per shard")
    of_length_1 = "to unit length, after cutting to --dim; zeros stay zeros"
    parser.add_argument("--normalize", action="store_true", help=of_length_1)


def request(arguments, overrides: Sequence[str]) -> Request:
    """What the arguments of `add_arguments` ask for."""
    a = arguments
    return Request(
        a.workdir,
        a.input,
        a.dim,
        a.normalize,
        tuple(overrides),
        a.step,
        a.tower,
        a.prompt_name,
    )


class Job:
    """A checkpoint of a run, the newest or a requested one, and what is embedded with it.

    A shard's vectors do not depend on which others are written by whom: `main` goes through the
    shards in one job of JAX, `engines.ray` gives them to the workers of a cluster.

    Attributes:
      rows: what is embedded.
      made_from: what must be the same for the same vectors to come out.
      notes: lines on a prefix that was not trained and on what is not read.

    Raises:
      UsageError: there is no such run or source, the dims are out of range, or this is a fork of a
        process that used JAX. See also `experiment.restored`.
    """

    def __init__(self, request: Request):
        check_not_forked()
        config = folder.read_config(request.workdir)
        setup, state = experiment.restored(request.workdir, request.overrides, request.step)
        model = Model.of_run(setup, *evaluated(state))
        self.dim = model.check_dim(request.dim)
        self._normalize = request.normalize
        asked = {"prompt_name": request.prompt_name}
        if request.source in SPLITS:
            self._model = model.tower(request.tower or next(iter(model.towers), None))
            self.rows = self._model.open(_split(request.source, setup, self._model), **asked)
            source = f"split {request.source} {setup.dataset.fingerprint(request.source)}"
        else:
            path = pathlib.Path(request.source)
            if not place(path)[0].exists():
                raise UsageError(
                    f"--input must be a split ({', '.join(SPLITS)}) or a folder of images, a file "
                    f"of texts, or vectors; got {request.source!r}"
                )
            self._model = model.tower(request.tower, path)
            self.rows = self._model.open(path, **asked)
            source = self.rows.source()
        self.ids = np.arange(self.rows.count)
        if self.rows.ids is not None:
            self.ids = ids.as_int64(self.rows.ids, request.source)
        self.notes = list(self.rows.notes)
        if line := self._model.untrained(self.dim):
            self.notes.append(f"warning: {line}")
        self.made_from = {
            "config": configs.digest(config),
            "step": int(state["step"]),
            "data": folder.trained_on(request.workdir) or setup.dataset.training_fingerprint(),
            "input": source,
            "dim": self.dim,
            "normalize": request.normalize,
        }
        # Not where they say nothing: folders of before go on.
        self.made_from |= {name: value for name, value in asked.items() if value is not None}
        for name, tower in model.towers.items():
            if tower is self._model:
                self.made_from["tower"] = name

    def embed(
        self, first: int, last: int, progress: Callable[[int], Any] = lambda rows: None
    ) -> np.ndarray:
        """The vectors of rows first to last - 1, see `Model.embed_rows`."""
        options = {"dim": self.dim, "normalize": self._normalize, "progress": progress}
        return self._model.embed_rows(self.rows, first, last, **options)

    def plan(self, form: Format, shard_rows: int) -> Manifest:
        """The shards that all examples make, none of them finished.

        Raises:
          UsageError: shards without rows, or Parquet without pyarrow.
        """
        if shard_rows < 1:
            raise UsageError(f"--shard_rows must be >= 1, got {shard_rows}")
        if form == "parquet":
            tables.parquet()
        count = self.rows.count
        parts = [Shard(min(shard_rows, count - i), {}) for i in range(0, count, shard_rows)]
        return Manifest(self.dim, form, tuple(parts), self.made_from)

    def write(
        self, folder: pathlib.Path, manifest: Manifest, index: int, z_nd: np.ndarray
    ) -> dict[str, str]:
        """Writes one shard's vectors with their ids and names; gives the sha256 of its files."""
        first, last = manifest.span(index)
        names = self.rows.names[first:last] if self.rows.names else None
        ids_n = self.ids[first:last]
        return shards.write_shard(folder, manifest, index, ids_n, z_nd, names)


def _split(name: str, setup: Experiment, model: Model) -> Any:
    """A split of a run, whose examples the model reads.

    Raises:
      UsageError: there is no such split, or its examples are no such items.
    """
    if not model.inputs.reads_splits:
        raise UsageError(
            f"--input {name}: the examples of {setup.config.task} are not embedded one by one; "
            f"give {model.inputs.legal}"
        )
    if name not in setup.dataset.splits:
        raise UsageError(
            f"--input {name}: {setup.dataset.name} has no such split, it has "
            f"{', '.join(setup.dataset.splits)}"
        )
    return setup.dataset.splits[name]


def check_place(folder: pathlib.Path) -> None:
    """Refuses a folder that holds something else than vectors; changes nothing there."""
    if not folder.is_dir() or (folder / shards.MANIFEST).exists():
        return
    own = {".lock", f"{shards.MANIFEST}.tmp"}  # of a call that was stopped at its start
    others = sorted(p.name for p in folder.iterdir() if p.name not in own)
    if others:
        raise UsageError(
            f"{folder} holds {others[0]} and no {shards.MANIFEST}: give a new folder as --out"
        )


def begin(folder: pathlib.Path, plan: Manifest, names: tuple[str, ...] | None) -> Manifest:
    """Makes the folder that of these vectors, or goes on where it was left.

    Returns:
      The plan with the checksums of shards that the folder holds undamaged.

    Raises:
      UsageError: the folder holds other vectors, or something else.
      DataError: its manifest is damaged.
    """
    check_place(folder)
    if (folder / shards.MANIFEST).exists():
        old = shards.read_manifest(folder)
        before, now = _facts(old), _facts(plan)
        changed = [
            f"{key}: {before.get(key)} -> {now.get(key)}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        if changed:
            raise UsageError(
                f"{folder} holds other vectors ({'; '.join(changed[:3])}): "
                "use another --out or remove this one"
            )
        done = {i: s.sha256 for i, s in enumerate(old.shards) if shards.intact(folder, old, i)}
        for index, sha256 in done.items():
            plan = plan.with_shard(index, sha256)
    plan.write(folder)
    if names and plan.format == "npy":
        write_text(folder / shards.NAMES, "".join(f"{name}\n" for name in names))
    return plan


def _facts(manifest: Manifest) -> dict[str, Any]:
    shape = {"rows": manifest.rows, "shard_rows": manifest.shards[0].rows}
    return {**manifest.made_from, "format": manifest.format, **shape}


def summary(folder: pathlib.Path, manifest: Manifest, written: int) -> str:
    """One line on what was done."""
    count = len(manifest.shards)
    return (
        f"{manifest.rows} vectors of {manifest.width} dims, step {manifest.made_from['step']}; "
        f"{written} of {count} shards written, {count - written} were there; {folder}"
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
    job = Job(request(arguments, overrides))
    manifest = job.plan(arguments.format, arguments.shard_rows)
    if job.notes and first:
        print("\n".join(job.notes))

    def finish(manifest, index, z_nd):
        manifest = manifest.with_shard(index, job.write(out, manifest, index, z_nd))
        manifest.write(out)
        return manifest

    with contextlib.ExitStack() as stack:
        _on_first(lambda: check_place(out))  # no lock is left in a foreign folder
        _on_first(lambda: stack.enter_context(folder.locked(out)))
        manifest = _on_first(lambda: begin(out, manifest, job.rows.names)) or manifest
        todo = _agreed([not shard.sha256 for shard in manifest.shards])
        rows = sum(manifest.shards[index].rows for index in todo)
        # disable=None: shown on a terminal only, and for sets that take a while.
        quiet = None if rows >= 5000 and first else True
        with tqdm(desc="embedding", total=rows, unit="row", disable=quiet) as bar:
            for index in todo:
                z_nd = job.embed(*manifest.span(index), bar.update)
                write = functools.partial(finish, manifest, index, z_nd)
                manifest = _on_first(write) or manifest
    if first:
        print(summary(out, manifest, len(todo)))


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
    if jax.process_count() > 1:
        wanted = multihost_utils.broadcast_one_to_all(np.array(wanted))
    return np.flatnonzero(wanted).tolist()


if __name__ == "__main__":
    cli.run(main)
