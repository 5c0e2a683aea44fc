"""From a trained run to vectors in a folder, shard by shard; whoever calls decides where it runs.

`mrl_jax.embed` goes through the shards in one job of JAX, `mrl_jax.engines.ray` gives them to the
workers of a cluster. A shard's vectors do not depend on which others are written by whom.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mrl_jax import config as configs
from mrl_jax import trained
from mrl_jax.data import Split
from mrl_jax.data.loader import padded_batches
from mrl_jax.data.remarks import Remarks
from mrl_jax.data.stream import Stream
from mrl_jax.data.tree import open_tree
from mrl_jax.data.vector_splits import digest, row_digests
from mrl_jax.errors import NonFiniteError, UsageError
from mrl_jax.evaluators.subject import Instruments
from mrl_jax.experiment import Experiment
from mrl_jax.record import folder as workdir
from mrl_jax.record import results
from mrl_jax.runtime import mesh as meshes
from mrl_jax.runtime.forks import check_not_forked
from mrl_jax.runtime.step import evaluated
from mrl_jax.store import shards, tables
from mrl_jax.store.shards import Format, Manifest, Shard
from mrl_jax.store.vectors import open_vectors


class Request(NamedTuple):
    """Which vectors are wanted.

    Attributes:
      workdir: folder of a trained run.
      source: one of its splits, or a folder of images; for an adaptor, vectors.
      dim: length of the prefix that is kept; None = all dims.
      normalize: to unit length, after cutting; a vector of zeros stays one.
      overrides: "--config.key=value" strings of keys that do not change the model.
      step: of the checkpoint; None = the newest.
    """

    workdir: pathlib.Path
    source: str
    dim: int | None = None
    normalize: bool = False
    overrides: tuple[str, ...] = ()
    step: int | None = None


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Some of a stream's records."""

    records: Any
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, row: int) -> Any:
        return self.records[self.first + row]


class _Images:
    """Images as a run embeds them: one of its splits, or a folder.

    Attributes:
      rows: how many there are.
      ids: [rows] int64.
      names: where they come from a folder.
      source: what they are, to tell them from others.
      notes: lines on what is not read.
    """

    notes: Sequence[str] = ()

    def __init__(self, source: str, config: Any, setup: Experiment, values: tuple[Any, Any]):
        dataset, program = setup.dataset, setup.program
        self._values = values
        self._tools = Instruments(program.task, program.mesh, config.eval.batch_size, ())
        self.names: tuple[str, ...] | None = None
        if source in dataset.splits:
            self._split = dataset.splits[source]
            self.source = f"split {source} {dataset.fingerprint(source)}"
        else:
            remarks = Remarks()
            self._split = _open_images(source, dataset, config, remarks)
            self.notes = remarks.lines()
            self.names = self._split.records.names
            self.source = f"images {self._split.records.fingerprint()}"
        self.rows = self._split.examples
        self.ids = np.arange(self.rows)

    def embedded(self, first: int, last: int) -> Iterator[jax.Array]:
        """Embeddings [B, D] of rows first to last - 1, batch by batch; the last is padded."""
        if isinstance(self._split, Split):
            part = Split(self._split.image[first:last], self._split.label[first:last])
        else:
            part = dataclasses.replace(self._split, records=_Rows(self._split.records, first, last))
        for batch in part.padded(self._tools.batch_size, self._tools.sharding):
            yield self._tools.embed(*self._values, batch, flip=False)[0]


class _Vectors:
    """Vectors as a run adapts them; attributes as of `_Images`."""

    names, notes = None, ()

    def __init__(self, source: str, config: Any, setup: Experiment, values: tuple[Any, Any]):
        mesh, task, dataset = setup.program.mesh, setup.program.task, setup.dataset
        self._values, self._batch_size = values, config.eval.batch_size
        self._sharding = meshes.batch_sharding(mesh)
        self._embed = jax.jit(task.embed, out_shardings=meshes.replicated(mesh))
        if source in dataset.splits:
            self._vectors = dataset.splits[source].sides["vector"]
            self.source = f"split {source} {dataset.fingerprint(source)}"
        else:
            self._vectors = open_vectors(source)
            if self._vectors.width != task.width:
                raise UsageError(
                    f"--input {source} has {self._vectors.width} dims, the run adapts {task.width}"
                )
            self.source = f"vectors {digest([row_digests(self._vectors), self._vectors.ids])}"
        self.rows, self.ids = self._vectors.rows, self._vectors.ids

    def embedded(self, first: int, last: int) -> Iterator[jax.Array]:
        """Adapted vectors [B, D] of rows first to last - 1, batch by batch; the last is padded."""
        arrays = {"vector": self._vectors.read(first, last)}
        for batch in padded_batches(arrays, self._batch_size, self._sharding):
            yield self._embed(*self._values, batch)


# By task what a run makes vectors of.
INPUTS = {"classification": _Images, "adaptor": _Vectors}


class Embedder:
    """A checkpoint of a run, the newest or a requested one, and what is embedded with it.

    Attributes:
      rows: how many examples there are.
      width: dims of a vector.
      names: of the examples, where they come from a folder.
      made_from: what must be the same for the same vectors to come out.
      warning: lines on a prefix that was not trained and on what is not read, or "".

    Raises:
      UsageError: there is no such run or source, the dims are out of range, or this is a fork of a
        process that used JAX. See also `trained.restored`.
    """

    def __init__(self, request: Request):
        check_not_forked()
        # What is measured besides has no part in this, and may not be where we are.
        apart = ("eval.shifts=()", "eval.hierarchy=", "eval.sts=()")
        overrides = (*request.overrides, *(f"--config.{key}" for key in apart))
        if (task := workdir.read_config(request.workdir).task) not in INPUTS:
            raise UsageError(
                f"{request.workdir} was trained for {task}: this embeds images and adapts vectors; "
                "for texts there is mrl_jax.encoder"
            )
        config, setup, state = trained.restored(request.workdir, overrides, request.step)
        task, dataset = setup.program.task, setup.dataset
        self._input = INPUTS[config.task](request.source, config, setup, evaluated(state))
        self.rows, self.names = self._input.rows, self._input.names
        widest = task.nesting.width
        self.width = widest if request.dim is None else request.dim
        if not 1 <= self.width <= widest:
            raise UsageError(f"--dim must be 1 to {widest}, got {self.width}")
        notes = [*self._input.notes]
        if self.width not in task.nesting.dims and config.head.kind != "shared":
            notes.append(
                f"warning: a prefix of {self.width} dims was not trained, "
                f"{', '.join(map(str, task.nesting.dims))} were"
            )
        self.warning = "\n".join(notes)
        self._normalize = request.normalize
        self.made_from = {
            "config": configs.digest(workdir.read_config(request.workdir)),
            "step": int(state["step"]),
            "data": dataset.training_fingerprint(),
            "input": self._input.source,
            "dim": self.width,
            "normalize": request.normalize,
        }

    def __call__(
        self, first: int, last: int, progress: Callable[[int], Any] = lambda rows: None
    ) -> np.ndarray:
        """The vectors of examples first to last - 1, [last - first, width] float32, everywhere.

        `progress` is told how many more are done.

        Raises:
          NonFiniteError: NaN or infinity; names the example.
          UsageError: this is a fork of the process that made the embedder.
        """
        check_not_forked()
        z_nd, done = np.empty((last - first, self.width), np.float32), 0
        for embedded in self._input.embedded(first, last):
            z_bd = jax.device_get(embedded)[: len(z_nd) - done, : self.width].astype(np.float32)
            finite_b = np.isfinite(z_bd).all(1)
            if not finite_b.all():
                row = first + done + int(finite_b.argmin())
                name = f" ({self.names[row]})" if self.names else ""
                raise NonFiniteError(f"the embedding of row {row}{name} holds NaN or infinity")
            if self._normalize:
                # In float64 no square overflows, and none but that of 0 is 0.
                norm_b1 = np.linalg.norm(z_bd.astype(np.float64), axis=1, keepdims=True)
                z_bd = z_bd / np.where(norm_b1 > 0, norm_b1, 1)
            z_nd[done : done + len(z_bd)] = z_bd
            done += len(z_bd)
            progress(len(z_bd))
        return z_nd

    def plan(self, form: Format, shard_rows: int) -> Manifest:
        """The shards that all examples make, none of them finished.

        Raises:
          UsageError: shards without rows, or Parquet without pyarrow.
        """
        if shard_rows < 1:
            raise UsageError(f"--shard_rows must be >= 1, got {shard_rows}")
        if form == "parquet":
            tables.parquet()
        sizes = (min(shard_rows, self.rows - first) for first in range(0, self.rows, shard_rows))
        return Manifest(self.width, form, tuple(Shard(n, {}) for n in sizes), self.made_from)

    def write_files(
        self, folder: pathlib.Path, manifest: Manifest, index: int, z_nd: np.ndarray
    ) -> dict[str, str]:
        """Writes one shard's vectors with their ids and names; gives the sha256 of its files."""
        first, last = manifest.span(index)
        names = self.names[first:last] if self.names else None
        ids_n = self._input.ids[first:last]
        return shards.write_shard(folder, manifest, index, ids_n, z_nd, names)

    def write(
        self, folder: pathlib.Path, manifest: Manifest, index: int, z_nd: np.ndarray
    ) -> Manifest:
        """Writes one shard's files, then the manifest that says so, and gives it."""
        manifest = manifest.with_shard(index, self.write_files(folder, manifest, index, z_nd))
        manifest.write(folder)
        return manifest


def _open_images(source: str, dataset: Any, config: Any, remarks: Remarks) -> Stream:
    root, (size, _, channels) = pathlib.Path(source), dataset.image_shape
    if not root.is_dir():
        raise UsageError(
            f"--input must be a split ({', '.join(dataset.splits)}) or a folder of images, "
            f"got {source!r}"
        )
    if channels != 3:
        raise UsageError(f"{root} holds RGB images, those of {dataset.name} are grey")
    records, options = open_tree(root, remarks), config.data
    return Stream(records, size, eval_crop=options.eval_crop, threads=options.threads)


def check_place(folder: pathlib.Path) -> None:
    """Refuses a folder that holds something else than vectors; changes nothing there.

    Raises:
      UsageError: names what it holds.
    """
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
        changed = _changes(old, plan)
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
        results.write_text(folder / shards.NAMES, "".join(f"{name}\n" for name in names))
    return plan


def _changes(old: Manifest, new: Manifest) -> list[str]:
    def facts(manifest: Manifest) -> dict[str, Any]:
        rows = tuple(shard.rows for shard in manifest.shards)
        return {
            **manifest.made_from,
            "format": manifest.format,
            "rows": manifest.rows,
            "shard_rows": rows[0],
        }

    before, now = facts(old), facts(new)
    return [
        f"{key}: {before.get(key)} -> {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def summary(folder: pathlib.Path, manifest: Manifest, written: int) -> str:
    """One line on what was done."""
    count = len(manifest.shards)
    return (
        f"{manifest.rows} vectors of {manifest.width} dims, step {manifest.made_from['step']}; "
        f"{written} of {count} shards written, {count - written} were there; {folder}"
    )
