"""Hands a trained model on: `python -m mrl_jax.export --workdir RUN --out PLACE --format FORMAT`.

Takes the newest checkpoint of a run. FORMAT is one of

  sentence_transformers   of text, and of images beside it where there is a module for the network:
                          a folder for SentenceTransformer(PLACE, truncate_dim=64) and for
                          `mrl_jax.load`, with the scores of results.json
  stablehlo               a folder with the network compiled for any number of examples on CPU,
                          CUDA and TPU, for `jax.export.deserialize`; needs the extra `export`
  onnx                    a folder with the network for ONNX Runtime; needs the extra `export`
  safetensors             a folder with all parameters by name

`mrl_jax.load(PLACE)` opens every one of them. A graph gives `embedding` and, for images, `logits_8`
and so on: the scores of the classes by each trained prefix. Embeddings come out whole and not
scaled: cut a prefix, then scale it to unit length. Each folder also has README.md, with code for
all graphs and for parameters of images; about.json, which names the classes and says what is done
to an image, or holds the prompts of texts; the run's config.json and facts.json; and for texts
tokenizer.json. Of a run with several towers there is a graph of each, and one folder holds all.
"""

from mrl_jax import cli, extras

if __name__ == "__main__":
    cli.start()  # before the imports below, which take seconds

import contextlib
import dataclasses
import io
import json
import logging
import pathlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export

from mrl_jax import config as configs
from mrl_jax import experiment
from mrl_jax.errors import DataError, UsageError
from mrl_jax.experiment import Experiment
from mrl_jax.model import SENTENCE_CONFIG, inputs_of
from mrl_jax.record import folder as workdir
from mrl_jax.record import results as result_files
from mrl_jax.record.runs import read_run
from mrl_jax.runtime.step import evaluated
from mrl_jax.store import outputs
from mrl_jax.store.about import ABOUT, each_tower
from mrl_jax.tasks.inputs import Inputs, alone

with extras.needed("export", "exporting"):
    from mrl_jax.interop.plain_card import card
    from mrl_jax.interop.sentence_folder import (
        check_sentence_folder,
        holds_images,
        write_sentence_folder,
    )

PLATFORMS = ("cpu", "cuda", "tpu")
OPSET = 21  # of ONNX, which ONNX Runtime reads from 1.20 on
# How far ONNX Runtime may be from JAX, as a share of the largest number: rounding is far below it.
TOLERANCE = 1e-3


class Graph(NamedTuple):
    """What a run computes: of the arrays in `inputs.spec`, those in `outputs`, float32.

    The embedding [b, D] ends with the widest trained prefix.
    """

    compute: Callable[..., dict[str, jax.Array]]
    inputs: Inputs
    outputs: tuple[str, ...]


def graph_of(setup: Experiment, state: Any, *, tower: str = "", exact: bool = False) -> Graph:
    """The graph of a run or of one of its towers, for one device.

    Args:
      setup, state: the run.
      tower: a key of `inputs_of`.
      exact: with all products in float32.
    """
    task = alone(setup.program.task)
    if exact:
        task = in_float32(task)
    params, model_state = jax.device_get(evaluated(state))
    inputs = inputs_of(setup.config.task)[tower].of_run(setup, params)
    of_batch = inputs.graph(task, params, model_state)

    def compute(*arrays: jax.Array) -> dict[str, jax.Array]:
        return of_batch(dict(zip(inputs.spec, arrays, strict=True)))

    return Graph(compute, inputs, inputs.outputs(task))


def in_float32(part: Any) -> Any:
    """A task, or a network in it, with all products in float32."""
    if not dataclasses.is_dataclass(part):
        return part
    found = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.name == "dtype":
            found["dtype"] = jnp.float32
        elif isinstance(value, nn.Module) and field.name != "parent":
            found[field.name] = in_float32(value)
    return (
        part.clone(**found) if isinstance(part, nn.Module) else dataclasses.replace(part, **found)
    )


def as_stablehlo(setup: Experiment, state: Any, about: Mapping, tower: str = "") -> bytes:
    """The graph as `jax.export` serialises it, which JAX promises to read for 6 months."""
    del about
    graph = graph_of(setup, state, tower=tower)
    # A transformer has no positions for more tokens.
    scope = export.SymbolicScope([f"{name} <= {n}" for name, n in graph.inputs.most.items()])
    arguments = [
        jax.ShapeDtypeStruct(
            export.symbolic_shape(", ".join(map(str, shape)), scope=scope), np.dtype(dtype)
        )
        for shape, dtype in graph.inputs.spec.values()
    ]
    exported = export.export(jax.jit(graph.compute), platforms=PLATFORMS)(*arguments)
    with extras.needed("export", "format stablehlo"):
        return bytes(exported.serialize())


def as_onnx(setup: Experiment, state: Any, about: Mapping, tower: str = "") -> bytes:
    """The graph as ONNX, with what about.json says of it; texts are padded to `max_length` tokens.

    ONNX checks all of its shapes, and ONNX Runtime that it computes what the run does.

    Raises:
      UsageError: packages are missing, or the network cannot be written as ONNX.
    """
    # They warn of operations of newer JAX that they skip and of values without a name: what
    # matters ends in an error.
    for name in ("jax2onnx", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with extras.needed("export", "format onnx"):
        import onnx
        import onnxruntime  # noqa: F401 (`check_numbers` needs it)
        from jax2onnx import to_onnx
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(evaluated(state)))
    if size >= 2**31:
        raise UsageError(
            f"an .onnx file holds less than 2 GiB, the parameters have {size / 2**30:.1f}; "
            "legal: --format stablehlo"
        )
    graph = graph_of(setup, state, tower=tower, exact=True)
    inputs = [
        # A ShapeDtypeStruct takes no names of dimensions.
        types.SimpleNamespace(shape=tuple(entry["shape"]), dtype=np.dtype(entry["dtype"]))
        for entry in about["inputs"].values()
    ]
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some releases of jax2onnx say too much
            model = to_onnx(
                lambda *arrays: tuple(graph.compute(*arrays).values()),
                inputs=inputs,
                input_names=list(graph.inputs.spec),
                output_names=list(graph.outputs),
                model_name=about["run"],
                opset=OPSET,
            )
        # Where jax2onnx lays out axes anew it leaves the shapes of before behind.
        del model.graph.value_info[:]
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        onnx.checker.check_model(model, full_check=True)
        content = {key: v if isinstance(v, str) else json.dumps(v) for key, v in about.items()}
        onnx.helper.set_model_props(model, content)
        found = model.SerializeToString()
        check_numbers(found, graph)
    except UsageError:
        raise
    except Exception as error:  # three packages raise dozens of kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UsageError(
            f"this network cannot be written as ONNX ({reason}); legal: --format stablehlo"
        ) from error
    return found


def check_numbers(content: bytes, graph: Graph) -> None:
    """Refuses an ONNX file that computes something else than the run.

    Raises:
      UsageError: names the output.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(content)
    feed = graph.inputs.example(np.random.default_rng(0))
    theirs = session.run(list(graph.outputs), feed)
    ours = jax.device_get(jax.jit(graph.compute)(*feed.values()))
    for name, found in zip(graph.outputs, theirs, strict=True):
        off, most = np.abs(found - ours[name]).max(), np.abs(ours[name]).max()
        if not off <= TOLERANCE * most:
            raise UsageError(
                f"as ONNX, {name} of this network is off by {off:.3g} of {most:.3g}: not written; "
                "legal: --format stablehlo"
            )


def as_safetensors(state: Any) -> bytes:
    """All parameters and model state under "params/..." and "model_state/..."."""
    from safetensors.numpy import save

    tree = dict(zip(("params", "model_state"), jax.device_get(evaluated(state)), strict=True))
    tensors = traverse_util.flatten_dict(tree, sep="/")
    tensors = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    return save(tensors, metadata={"format": "mrl_jax"})


GRAPHS = {"stablehlo": as_stablehlo, "onnx": as_onnx}
PARAMETERS = "safetensors"
FORMATS = ("sentence_transformers", *GRAPHS, PARAMETERS)


def about_of(setup: Experiment, state: Any, form: str) -> dict[str, Any]:
    """What about.json says: what the files are of, and what goes into them and comes out.

    Of a run with several towers, what is said of each stands in `towers` by its name.
    """
    parts = {}
    for tower in inputs_of(setup.config.task):
        graph = graph_of(setup, state, tower=tower)
        sizes = graph.inputs.most if form == "onnx" else {}
        name = "_".join(filter(None, ("embed", tower)))
        parts[tower] = {
            **({} if form == PARAMETERS else {"file": f"{name}.{form}"}),
            "inputs": {
                name: {"shape": [sizes.get(d, d) for d in shape], "dtype": np.dtype(dtype).name}
                for name, (shape, dtype) in graph.inputs.spec.items()
            },
            "outputs": list(graph.outputs),
            **graph.inputs.about(setup, form),
        }
    return {
        "run": setup.config.name,
        "step": int(state["step"]),
        "commit": result_files.commit(),
        "dims": list(setup.program.task.nesting.dims),
        "format": form,
        **({"file": "model.safetensors"} if form == PARAMETERS else {}),
        **parts.get("", {"towers": parts}),
    }


def write_plain(
    out: pathlib.Path, setup: Experiment, state: Any, about: dict, of_run: dict[str, str]
) -> None:
    """A folder of graphs or parameters, which appears when it is whole, with files `of_run`.

    Raises:
      UsageError: something is there, packages are missing, or the network cannot be written so.
      DataError: it cannot be written.
    """
    try:
        with outputs.made(out) as new:
            kinds, params = inputs_of(setup.config.task), evaluated(state)[0]
            for tower, part in each_tower(about).items():
                if part["format"] in GRAPHS:
                    graph = GRAPHS[part["format"]](setup, state, part, tower)
                    (new / part["file"]).write_bytes(graph)
                kinds[tower].of_run(setup, params).save(new)
            if about["format"] == PARAMETERS:
                (new / about["file"]).write_bytes(as_safetensors(state))
            texts = {ABOUT: json.dumps(about, indent=1) + "\n", "README.md": card(about)}
            for name, content in {**of_run, **texts}.items():
                (new / name).write_text(content, "utf-8")
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror}") from error


def scores_of(folder: pathlib.Path) -> dict[str, dict[int, float]]:
    """What results.json says of every prefix: measure -> dim -> value; {} where there is none.

    Raises:
      DataError: it is damaged.
    """
    scores: dict[str, dict[int, float]] = {}
    if (folder / workdir.RESULTS).exists():
        for result in read_run(folder, folder.name).results:
            scores.setdefault(result.name, {})[result.dim] = result.value
    return scores


def main(argv: Sequence[str]) -> None:
    """Runs the command line; see the module's docstring."""
    parser = cli.ArgumentParser("python -m mrl_jax.export", description=__doc__)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run")
    parser.add_argument("--step", type=int, help="of an older checkpoint (default: the newest)")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="new folder")
    parser.add_argument("--format", required=True, choices=FORMATS)
    arguments, overrides = parser.parse_known_args(argv)
    out, form = arguments.out, arguments.format
    if form == "sentence_transformers":
        check_sentence_folder(out)
    else:
        outputs.check_new(out)
    setup, state = experiment.restored(arguments.workdir, overrides, arguments.step)
    width, task = setup.program.task.nesting.width, setup.config.task
    config = configs.to_json(setup.config) + "\n"
    if form == "sentence_transformers":
        if setup.text_folder is None:
            raise UsageError(f"format {form} is of text, {arguments.workdir} has task {task}")
        values = jax.device_get(evaluated(state))
        folder = setup.text_folder(*values)
        image = setup.image_folder(*values) if setup.image_folder else None
        of_text_alone = image is not None and not holds_images(folder, image)
        scores = scores_of(arguments.workdir)
        if not folder.trained_dims:
            # What was nested is not in the folder: its scores would be misread.
            width, scores = folder.encoder.out_dim, {}
        files = {SENTENCE_CONFIG: config}
        of_images = None if of_text_alone else image
        write_sentence_folder(out, folder, image=of_images, scores=scores, files=files)
        if of_text_alone:
            print(
                "of the text tower alone: sentence-transformers has no module for the "
                f"{type(image.backbone).__name__} of the image tower; "
                f"--format {', '.join(FORMATS[1:])} hold both"
            )
    else:
        facts = workdir.facts_text(setup.facts, workdir.trained_on(arguments.workdir), {})
        of_run = {workdir.CONFIG: config, workdir.FACTS: facts}
        write_plain(out, setup, state, about_of(setup, state, form), of_run)
    print(f"step {int(state['step'])}, {width} dims, as {form} in {out}")


if __name__ == "__main__":
    cli.run(main)
