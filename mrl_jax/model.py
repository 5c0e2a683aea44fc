"""A trained model: `mrl_jax.load(path)` opens a run or what `mrl_jax.export` wrote."""

import contextlib
import functools
import inspect
import operator
import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax import export
from jax.sharding import Sharding, SingleDeviceSharding
from ml_collections import ConfigDict
from tqdm import tqdm

from mrl_jax import experiment, extras
from mrl_jax.config import tasks
from mrl_jax.data.loader import padded_batches
from mrl_jax.errors import DataError, UsageError, shown
from mrl_jax.experiment import Experiment
from mrl_jax.nesting import Nesting
from mrl_jax.record import folder as workdir
from mrl_jax.runtime import mesh as meshes
from mrl_jax.runtime.forks import check_not_forked
from mrl_jax.runtime.program import Program
from mrl_jax.runtime.rows import Embed, Rows, embedded, in_batches
from mrl_jax.runtime.step import evaluated
from mrl_jax.store import json_files
from mrl_jax.store.about import ABOUT, each_tower
from mrl_jax.tasks import inputs
from mrl_jax.tasks.inputs import Inputs, alone

SENTENCE_CONFIG = "mrl_jax.config.json"  # the run's config in a folder of sentence-transformers


_CLIP = "a CLIP or SigLIP"
_BATCH = 64  # images at a time, where no config says it


def inputs_of(task: str) -> Mapping[str, type[Inputs]]:
    """What models of a task read, by the names of its towers; "" where there is one alone."""
    module = tasks.part(task, "inputs")
    return getattr(module, "TOWERS", {"": getattr(module, "Inputs", inputs.Inputs)})


def load(
    path: str | os.PathLike, *, step: int | None = None, overrides: Sequence[str] = ()
) -> "Model":
    """Opens a trained model.

    Args:
      path: the folder of a run, of an export in any format, of a text encoder that transformers or
        sentence-transformers saved, or of a CLIP or SigLIP of transformers or OpenCLIP.
      step: of a run, an older checkpoint; None: the newest.
      overrides: of a run or of safetensors, "--config.key=value" strings of keys that do not change
        the model, such as --config.mesh.tensor=1.

    Raises:
      UsageError: there is no model, or packages are missing; or this is a fork of a process that
        used JAX.
      CheckpointError: no checkpoint, or a damaged one.
      DataError: a file is missing or damaged.
    """
    check_not_forked()
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: give that of a run or of an export")
    kind = _kind(folder)
    if kind == "a run":
        setup, state = experiment.restored(folder, overrides, step)
        return Model.of_run(setup, *evaluated(state))
    if step is not None:
        raise UsageError(f"step is of a run, {folder} holds {kind}")
    if kind == "an export":
        return Model.of_export(folder, overrides)
    known = (folder / SENTENCE_CONFIG).exists()
    config = workdir.read_config(folder, SENTENCE_CONFIG) if known else None
    with extras.needed("text", "embedding texts"):
        from mrl_jax.interop.text_folder import ROUTER, read_text_folder
    if kind == "a text encoder" and not (folder / ROUTER).exists():
        return Model.of_text_folder(read_text_folder(folder), config)
    with extras.needed("weights", "reading image networks of others"):
        from mrl_jax.interop.router_folder import read_clip_folder, read_router_folder
    read = read_clip_folder if kind == _CLIP else read_router_folder
    text, image = read(folder)
    towers = {
        "image": Model.of_image_folder(image, text.trained_dims, config),
        "text": Model.of_text_folder(text, config),
    }
    return Model.of_towers(towers)


def _kind(folder: pathlib.Path) -> str:
    if (folder / ABOUT).exists():
        return "an export"
    if (folder / "open_clip_config.json").exists():
        return _CLIP
    with contextlib.suppress(DataError):  # the reader of a run says what is wrong
        model_type = json_files.read_object(folder / "config.json").get("model_type")
        if model_type in ("clip", "siglip"):
            return _CLIP
        if model_type is not None:
            return "a text encoder"
    if (folder / "modules.json").exists():
        return "a text encoder"
    return "a run"


class Model:
    """A trained model of any task.

    Attributes:
      inputs: what it reads; None where each of its towers has its own.
      towers: a model of each tower by its name, where there are several; else {}.
      width: dims of a whole embedding.
      nesting: the prefixes that were trained; None where that is not known.
      config: of the run; None where that is not known.
      classes: names of the classes that it tells apart, or None.
      task, params: model and loss with trained parameters, for `cascade.infer`; None of a graph.
    """

    def __init__(
        self,
        embed: Embed | None,
        inputs: Inputs | None,
        *,
        towers: Mapping[str, "Model"] = MappingProxyType({}),
        width: int,
        nesting: Nesting | None,
        config: ConfigDict | None = None,
        task: Any = None,
        params: Any = None,
        sharding: Sharding | None = None,
        default_dim: int | None = None,
    ):
        check_not_forked()
        self._embed, self.inputs, self.width = embed, inputs, width
        self.towers, self.nesting, self.config = towers, nesting, config
        self.classes = inputs.classes if inputs else None
        self.task, self.params = task, params
        self._sharding = sharding or SingleDeviceSharding(jax.devices()[0])
        self._batch_size = config.eval.batch_size if config else _BATCH
        self._default_dim = default_dim or width
        self._judge = None
        if self.classes is not None and task is not None:
            # Every process gets all scores, whatever the batch is split over.
            whole = meshes.replicated(self._sharding.mesh)
            self._judge = jax.jit(task.logits, static_argnames="dims", out_shardings=whole)

    @classmethod
    def of_run(cls, setup: Experiment, params: Any, model_state: Any) -> "Model":
        """The model of a run with trained parameters, on the devices of its mesh."""
        task = setup.program.task
        trained = {"config": setup.config, "task": task, "params": params}
        trained |= {"width": task.nesting.width, "nesting": task.nesting}
        towers = {}
        for name, kind in inputs_of(setup.config.task).items():
            read = kind.of_run(setup, params)
            embed, sharding = _embed_of(setup.program, read.spread, params, model_state)
            towers[name] = cls(embed, read, sharding=sharding, **trained)
        return cls.of_towers(towers)

    @classmethod
    def of_text_folder(cls, folder: Any, config: ConfigDict | None = None) -> "Model":
        """The model of an `interop.text_folder.TextFolder`; `config` of the run it comes from."""
        from mrl_jax.tasks.text_inputs import Inputs, embed_of

        return cls(
            embed_of(folder),
            Inputs.of_folder(folder),
            width=folder.encoder.out_dim,
            nesting=Nesting(folder.trained_dims) if folder.trained_dims else None,
            config=config,
            default_dim=folder.truncate_dim,
        )

    @classmethod
    def of_image_folder(
        cls, folder: Any, dims: Sequence[int] = (), config: ConfigDict | None = None
    ) -> "Model":
        """The model of an `interop.image_folder.ImageFolder`; `dims` are the trained prefixes."""
        from mrl_jax.tasks.image_inputs import Inputs, embed_of

        return cls(
            embed_of(folder),
            Inputs.of_folder(folder),
            width=folder.projection["kernel"].shape[1],
            nesting=Nesting(tuple(dims)) if dims else None,
            config=config,
        )

    @classmethod
    def of_towers(cls, towers: Mapping[str, "Model"]) -> "Model":
        """One model of those of several towers, which end in one space; of one alone itself."""
        first = next(iter(towers.values()))
        if "" in towers:
            return first
        known = {"width": first.width, "nesting": first.nesting, "config": first.config}
        return cls(None, None, towers=towers, task=first.task, params=first.params, **known)

    @classmethod
    def of_export(cls, folder: pathlib.Path, overrides: Sequence[str] = ()) -> "Model":
        """The model in a folder of stablehlo, onnx or safetensors; `overrides` as of `load`.

        Raises:
          UsageError: an export of an older release, overrides of a graph, or packages are missing.
          DataError: a file is missing or damaged.
        """
        about = json_files.read_object(folder / ABOUT)
        if not (folder / workdir.CONFIG).exists():
            raise UsageError(
                f"{folder} has no {workdir.CONFIG}: it was exported by an older release; export "
                "the run again"
            )
        config = workdir.read_config(folder)
        try:
            form = about["format"]
            if form == "safetensors":
                setup = experiment.of_run(folder, overrides)
                return cls.of_run(setup, *_parameters(folder / about["file"], setup.program.state))
            if overrides:
                raise UsageError(f"overrides are of a run, {folder} holds a graph")
            nesting = Nesting(tuple(about["dims"]), config.nesting.weights or None)
            known = {"width": nesting.width, "nesting": nesting, "config": config}
            kinds, towers = inputs_of(config.task), {}
            for name, part in each_tower(about).items():
                read = kinds[name].of_export(part, folder)
                embed = _graph(form, folder / part["file"], tuple(read.spec))
                towers[name] = cls(embed, read, **known)
        except UsageError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{folder / ABOUT} is damaged: {error!r}") from error
        return cls.of_towers(towers)

    def embed(
        self,
        items: Any,
        dim: int | None = None,
        normalize: bool = True,
        *,
        prompt_name: str | None = None,
        depth: int | None = None,
        batch_tokens: int | None = None,
        tower: str | None = None,
    ) -> np.ndarray:
        """The embeddings [N, dim] float32 of N items, in their order; of none, [0, dim].

        Args:
          items: of images a folder, a list of files or of PIL images, or an array of uint8
            [N, H, W, C]; of text any iterable of strings, which are cut at the model's longest; of
            an adaptor an array [N, width], or a file or folder of vectors.
          dim: length of the prefix; None: all dims, or what a folder of sentence-transformers says.
          normalize: scale to unit length, after cutting; zeros stay zeros. False: only cut; if the
            model scales its embeddings itself, they are scaled before they are cut.
          prompt_name: of text, which of the model's prompts is put before each; None: its default,
            if it has one; "": none.
          depth: of text, layers to run; None: all.
          batch_tokens: of text, tokens of a batch, padding included; None: what suits the device. A
            longer text is a batch by itself, and a table of tokens reads it in pieces.
          tower: of a model with several, which reads the items; None: the one that they fit.

        Raises:
          UsageError: items that the model does not read, no such prompt, dims, layers, batches or
            tower; or this is a fork of a process that used JAX.
          DataError: text that is not Unicode, or a file that cannot be read; names it.
          NonFiniteError: NaN or infinity; names the item.

        Warns:
          UserWarning: a prefix that was not trained, where it is known which were; and files in a
            folder that are not read.
        """
        check_not_forked()
        dim = self.check_dim(dim)
        if line := self.untrained(dim):
            warnings.warn(line, stacklevel=2)
        options = {"prompt_name": prompt_name, "depth": depth, "batch_tokens": batch_tokens}
        if isinstance(items, Iterator):
            items = list(items)
        reader = self.tower(tower, items)
        rows = reader.open(items, **options)
        for line in rows.notes:
            warnings.warn(line, stacklevel=2)
        # A bar for what takes long, on a terminal.
        bar = {"total": rows.count, "unit": reader.inputs.unit, "delay": 2}
        with tqdm(desc="embedding", disable=None if jax.process_index() == 0 else True, **bar) as b:
            options = {"normalize": normalize, "progress": b.update}
            return reader.embed_rows(rows, 0, rows.count, dim, **options)

    def open(self, items: Any, **options: Any) -> Rows:
        """The items as `embed_rows` takes them, see `Inputs.open`; options of None are not set.

        Raises:
          UsageError: items or options that the model does not read.
          DataError: a file that cannot be read.
        """
        asked = {name: value for name, value in options.items() if value is not None}
        for name in asked:
            if name not in inspect.signature(self.inputs.open).parameters:
                raise UsageError(f"{name} is of texts, and these are {self.inputs.unit}s")
        return self.inputs.open(items, **asked)

    def tower(self, name: str | None = None, items: Any = None) -> "Model":
        """The model of one tower: by its name, or else the one that these items fit.

        A model without towers is its own.

        Raises:
          UsageError: there is no such tower, or the items fit none or several.
        """
        if not self.towers:
            if name is not None:
                raise UsageError(f"tower: this model has none, it reads {self.inputs.unit}s")
            return self
        if name is not None:
            if name not in self.towers:
                raise UsageError(f"tower must be {_either(self.towers)}, got {shown(name)}")
            return self.towers[name]
        found = {name: model for name, model in self.towers.items() if model.inputs.fits(items)}
        kinds = [model.inputs for model in (found or self.towers).values()]
        if not found:
            legal = _either(f"{kind.unit}s ({kind.legal})" for kind in kinds)
            raise UsageError(f"items must be {legal}; got {inputs.listed_kinds(items)}")
        if len(found) > 1 and len(items):
            could_be = _either(f"{kind.unit}s" for kind in kinds)
            which = _either(f'tower="{name}"' for name in found)
            raise UsageError(
                f"these items could be {could_be}: say {which}, and give files as pathlib.Path"
            )
        return next(iter(found.values()))

    def embed_rows(self, rows: Rows, first: int, last: int, dim: int, **options: Any) -> np.ndarray:
        """As `embed`, of some of the rows that `open` gives; `options` as of `embedded`.

        Of a model with several towers, one of them does it.
        """
        check_not_forked()
        options |= {"unit": self.inputs.unit, "scaled": self.inputs.scaled}
        span = (first, last, self._batch_size, self._sharding)
        return embedded(self._embed, rows, dim, *span, **options)

    @property
    def _units(self) -> str:
        models = self.towers.values() or [self]
        return " and ".join(f"{model.inputs.unit}s" for model in models)

    def check_dim(self, dim: int | None) -> int:
        """The dims that are asked for; None stands for those that are usual.

        Raises:
          UsageError: an embedding has not as many.
        """
        if dim is None:
            return self._default_dim
        try:
            legal = not isinstance(dim, bool) and 1 <= operator.index(dim) <= self.width
        except TypeError:
            legal = False
        if not legal:
            raise UsageError(f"dim must be 1 to {self.width}, got {shown(dim)}")
        return int(dim)

    def untrained(self, dim: int) -> str:
        """A line on a prefix that was not trained; "" for one that was, or where nobody knows."""
        shared = self.config is not None and self.config.head.kind == "shared"
        if self.nesting is None or dim in self.nesting.dims or shared:
            return ""
        trained_dims = ", ".join(map(str, self.nesting.dims))
        return f"a prefix of {dim} dims was not trained, {trained_dims} were"

    def logits(self, z_nd: np.ndarray) -> np.ndarray:
        """The scores [N, C] float32 of the classes, by the classifier of a prefix.

        Args:
          z_nd: embeddings [N, dim] of `embed` with normalize=False; the classifier is that of the
            first `dim` dims.

        Raises:
          UsageError: the model has no classifiers, none for so many dims, or is a graph; or these
            are no embeddings.
        """
        check_not_forked()
        if self.classes is None:
            raise UsageError(f"this model embeds {self._units} and has no classes")
        if self._judge is None:
            raise UsageError(
                "a graph gives the scores of images, not of embeddings: load the run, or export it "
                "as safetensors"
            )
        width = self.width
        try:
            z_nd = np.asarray(z_nd)
        except ValueError as error:  # rows of several lengths
            raise UsageError(f"z_nd must be [N, dim] of floats: {error}") from None
        if z_nd.ndim != 2 or not np.issubdtype(z_nd.dtype, np.floating):
            raise UsageError(f"z_nd must be [N, dim] of floats, got {z_nd.dtype} {z_nd.shape}")
        dim = z_nd.shape[1]
        if not 1 <= dim <= width or not self.task.classifiable(dim):
            separate = self.task.head.kind == "separate"
            legal = ", ".join(map(str, self.nesting.dims)) if separate else f"1 to {width}"
            raise UsageError(f"there is no classifier of {dim} dims; legal: {legal}")
        finite_n = np.isfinite(z_nd).all(1)
        if not finite_n.all():
            raise UsageError(f"row {finite_n.argmin()} of z_nd holds NaN or infinity")
        if not len(z_nd):
            return np.empty((0, len(self.classes)), np.float32)
        # A classifier reads its own dims only, whatever comes after them.
        z_nd = np.pad(z_nd.astype(np.float32), ((0, 0), (0, width - dim)))
        batches = padded_batches({"z": z_nd}, self._batch_size, self._sharding)

        def judge(batch):
            return self._judge(self.params, batch["z"], dims=(dim,))[0]

        return in_batches(judge, batches, len(z_nd)).astype(np.float32, copy=False)


def _embed_of(
    program: Program, spread: bool, params: Any, model_state: Any
) -> tuple[Embed, Sharding | None]:
    """What embeds a batch, and how that is split: over the mesh if it is `spread`, else not."""
    task, mesh, sharding, options = program.task, program.mesh, None, {}
    if spread:
        sharding = meshes.batch_sharding(mesh)
        options["out_shardings"] = meshes.replicated(mesh)
    else:
        task = alone(task)
        if mesh.size > 1:
            params, model_state = jax.device_put(meshes.on_host((params, model_state), mesh))
    if "depth" in inspect.signature(task.embed).parameters:
        options["static_argnames"] = "depth"
    return functools.partial(jax.jit(task.embed, **options), params, model_state), sharding


def _either(names: Iterable[str]) -> str:
    return " or ".join(names)


def _parameters(path: pathlib.Path, state: Any) -> tuple[Any, Any]:
    """(parameters, model state) from a file, where the state of a program has them.

    Raises:
      DataError: the file is missing or damaged, or holds other parameters.
    """
    with extras.needed("export", "format safetensors"):
        from safetensors.numpy import load_file
    try:
        tensors = load_file(path)
    except Exception as error:  # the package raises kinds of its own
        raise DataError(f"cannot read {path}: {error}") from error
    wanted = {name: state[name] for name in ("params", "model_state")}
    places = traverse_util.flatten_dict(wanted, sep="/")
    for name in sorted(places.keys() ^ tensors.keys()):
        there = "has no" if name in places else "has a foreign"
        raise DataError(f"{path} {there} tensor {name}")
    for name, leaf in places.items():
        if (leaf.shape, leaf.dtype) != (tensors[name].shape, tensors[name].dtype):
            found = f"{tensors[name].dtype} {tensors[name].shape}"
            raise DataError(f"{path}: {name} must be {leaf.dtype} {leaf.shape}, it is {found}")
    placed = {name: jax.device_put(tensors[name], leaf.sharding) for name, leaf in places.items()}
    tree = traverse_util.unflatten_dict(placed, sep="/")
    return tree["params"], tree.get("model_state", {})


def _graph(form: str, path: pathlib.Path, names: Sequence[str]) -> Embed:
    """What embeds a batch of arrays with these names, in the order of the graph in a file."""
    start = {"stablehlo": _stablehlo, "onnx": _onnx}[form]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    try:
        with extras.needed("export", f"format {form}"):
            return start(content, names)
    except UsageError:
        raise
    except Exception as error:  # each package has kinds of its own
        raise DataError(f"{path} is damaged: {str(error).partition(chr(10))[0]}") from error


def _stablehlo(content: bytes, names: Sequence[str]) -> Embed:
    import flatbuffers  # noqa: F401 (`deserialize` needs it)

    call = jax.jit(export.deserialize(bytearray(content)).call)
    return lambda batch: call(*(batch[name] for name in names))["embedding"]


def _onnx(content: bytes, names: Sequence[str]) -> Embed:
    import onnxruntime

    session = onnxruntime.InferenceSession(content)

    def embed(batch):
        return session.run(["embedding"], {name: np.asarray(batch[name]) for name in names})[0]

    return embed
