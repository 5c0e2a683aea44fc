"""Hands a trained model on: `python -m mrl_jax.export --workdir RUN --out PLACE --format FORMAT`.

Takes the newest checkpoint of a run. FORMAT is one of

  sentence_transformers   of text: a folder for SentenceTransformer(PLACE, truncate_dim=64) and for
                          `mrl_jax.encoder.Encoder.load`, with the scores of results.json
  stablehlo               a folder with the embedding compiled for any number of examples on CPU,
                          CUDA and TPU, for `jax.export.deserialize`; needs the extra `export`
  onnx                    a folder with the embedding for ONNX Runtime; needs the extra `export`
  safetensors             a folder with all parameters by name

Embeddings come out whole and as they are: cut a prefix, then scale it to unit length.
"""

from mrl_jax import cli, extras

if __name__ == "__main__":
    cli.start()  # before the imports below, which take seconds

import dataclasses
import json
import logging
import pathlib
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export

from mrl_jax import outputs, prompts, trained, workdir
from mrl_jax import results as result_files
from mrl_jax.adaptors import Rotation
from mrl_jax.errors import DataError, UsageError
from mrl_jax.experiment import Experiment
from mrl_jax.reporting.runs import read_run
from mrl_jax.runtime.step import evaluated
from mrl_jax.tasks.adaptor import AdaptorTask

with extras.needed("export", "exporting"):
    from mrl_jax.interop.sentence_folder import check_sentence_folder, write_sentence_folder

FORMATS = ("sentence_transformers", "stablehlo", "onnx", "safetensors")
PLATFORMS = ("cpu", "cuda", "tpu")
ABOUT = "about.json"


def embedding_of(setup: Experiment, state: Any) -> tuple[Callable[..., jax.Array], dict]:
    """What a run embeds by, as a function of arrays, and their shapes with "b" examples.

    Of text: tokens [b, t] and lengths [b], int32, t from 1 to the run's `max_length`. Of images:
    image [b, H, W, C] uint8. Of an adaptor: vector [b, width] float32. The result is [b, D]
    float32, D the widest trained prefix.
    """
    # What is handed on runs on one device, whatever the run was trained on.
    task = dataclasses.replace(setup.program.task, mesh=None)
    params, model_state = jax.device_get(evaluated(state))
    width = task.nesting.width
    if setup.text_folder:
        shapes = {"tokens": ("b, t", np.int32), "lengths": ("b", np.int32)}
    elif isinstance(task, AdaptorTask):
        shapes = {"vector": (f"b, {task.width}", np.float32)}
    else:
        size = ", ".join(map(str, setup.dataset.image_shape))
        shapes = {"image": (f"b, {size}", np.uint8)}

    if isinstance(task, AdaptorTask) and isinstance(task.adaptor, Rotation):
        # A product, because not every runtime can solve for what makes the rotation.
        unit_dd = np.eye(task.width, dtype=np.float32)
        turn_dd = np.asarray(task.embed(params, model_state, {"vector": unit_dd}))[:, :width]
        return lambda z_bd: z_bd @ turn_dd, shapes

    def embed(*arrays: jax.Array) -> jax.Array:
        batch = dict(zip(shapes, arrays, strict=True))
        return task.embed(params, model_state, batch)[:, :width].astype(jnp.float32)

    return embed, shapes


def write_stablehlo(folder: pathlib.Path, setup: Experiment, state: Any) -> None:
    """The embedding as `jax.export` serialises it, which JAX promises to read for 6 months."""
    embed, shapes = embedding_of(setup, state)
    # A transformer has no positions for more.
    longest = (f"t <= {setup.program.task.max_length}",) if setup.text_folder else ()
    scope = export.SymbolicScope(longest)
    arguments = [
        jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), dtype)
        for shape, dtype in shapes.values()
    ]
    exported = export.export(jax.jit(embed), platforms=PLATFORMS)(*arguments)
    with extras.needed("export", "format stablehlo"):
        content = exported.serialize()
    (folder / "embed.stablehlo").write_bytes(content)


def write_onnx(folder: pathlib.Path, setup: Experiment, state: Any) -> None:
    """The embedding as an ONNX graph, inputs by name: of text, padded to `max_length` tokens."""
    # They warn of operations of newer JAX that they skip and of values without a name: what
    # matters ends in an error.
    for name in ("jax2onnx", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with extras.needed("export", "format onnx"):
        from jax2onnx import to_onnx
    embed, shapes = embedding_of(setup, state)
    longest = getattr(setup.program.task, "max_length", 0)
    sizes = {"b": "b", "t": longest}
    inputs = [
        # A ShapeDtypeStruct takes no names.
        types.SimpleNamespace(
            shape=tuple(sizes.get(d) or int(d) for d in shape.split(", ")), dtype=np.dtype(dtype)
        )
        for shape, dtype in shapes.values()
    ]
    to_onnx(
        embed,
        inputs=inputs,
        return_mode="file",
        output_path=str(folder / "embed.onnx"),
        input_names=list(shapes),
        output_names=["embedding"],
    )


def write_safetensors(folder: pathlib.Path, setup: Experiment, state: Any) -> None:
    """All parameters and model state under "params/..." and "model_state/..."."""
    from safetensors.numpy import save_file

    params, model_state = jax.device_get(evaluated(state))
    tree = {"params": params, "model_state": model_state}
    tensors = {
        name: np.ascontiguousarray(value)
        for name, value in traverse_util.flatten_dict(tree, sep="/").items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "mrl_jax"})


WRITERS = {"stablehlo": write_stablehlo, "onnx": write_onnx, "safetensors": write_safetensors}


def write_plain(out: pathlib.Path, form: str, setup: Experiment, state: Any, about: dict) -> None:
    """A folder of one of `WRITERS`, which appears when it is whole.

    Raises:
      UsageError: something is there, or packages are missing.
      DataError: it cannot be written.
    """
    try:
        with outputs.made(out) as new:
            WRITERS[form](new, setup, state)
            (new / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror}") from error


def scores_of(folder: pathlib.Path) -> dict[str, dict[int, float]]:
    """What results.json says of every prefix: measure -> dim -> value; {} where there is none.

    Raises:
      DataError: it is damaged.
    """
    if not (folder / workdir.RESULTS).exists():
        return {}
    scores: dict[str, dict[int, float]] = {}
    for result in read_run(folder, folder.name).results:
        scores.setdefault(f"{result.split}/{result.metric}", {})[result.dim] = result.value
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
    config, setup, state = trained.restored(arguments.workdir, overrides, arguments.step)
    task = setup.program.task
    width = task.nesting.width
    if form == "sentence_transformers":
        if setup.text_folder is None:
            raise UsageError(
                f"format {form} is of text, {arguments.workdir} has task {config.task}"
            )
        folder = setup.text_folder(jax.device_get(evaluated(state)[0]))
        scores = scores_of(arguments.workdir)
        if not folder.trained_dims:
            # What was nested is not in the folder: its scores would be misread.
            width, scores = folder.encoder.out_dim, {}
        write_sentence_folder(out, folder, scores=scores)
    else:
        about = {
            "run": config.name,
            "step": int(state["step"]),
            "commit": result_files.commit(),
            "dims": list(task.nesting.dims),
            "format": form,
        }
        if setup.text_folder:
            folder = setup.text_folder(evaluated(state)[0])
            about["prompts"] = prompts.by_role(folder.prompts, folder.default_prompt)
        write_plain(out, form, setup, state, about)
    print(f"step {int(state['step'])}, {width} dims, as {form} in {out}")


if __name__ == "__main__":
    cli.run(main)
