"""Running the real commands, small and quick, in processes of their own or in this one.

Python and the imports of a command take seconds. So a process is started where it is what is
tested: its exit code and streams, its end by a signal, its environment. Otherwise `here` calls the
command's main, on the eight devices of this process.
"""

import contextlib
import importlib
import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mrl_jax import cli, errors
from mrl_jax.record.results import Result

ROOT = pathlib.Path(__file__).parent.parent

# A run of a second or two: small net, few steps, still all of nesting, checkpoints and metrics.
SMALL = (
    "--config.model.name=mlp",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.embedding_dim=8",
    "--config.nesting.dims=2,4,8",
    "--config.eval.dims=2,3,4,8",
    "--config.steps=60",
    "--config.batch_size=32",
    "--config.log_every=1",
    "--config.optimizer.warmup_steps=5",
    "--config.optimizer.learning_rate=0.03",
    "--config.checkpoint.every=10",
)


def environment(devices: int = 1) -> dict[str, str]:
    """This process's variables, as on a machine with `devices` CPU devices, warnings as errors."""
    return {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error",
        # One compilation for all tests that run the same program.
        "JAX_COMPILATION_CACHE_DIR": os.environ["MRL_JAX_TEST_CACHE"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def command(module: str, *arguments: object) -> list[str]:
    """The argv of `python -m module arguments`."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def train(workdir: pathlib.Path, *overrides: str, arg: str = "mrl") -> list[str]:
    """The argv of a small training run."""
    config = ROOT / "configs" / f"digits.py:{arg}"
    return command("mrl_jax.train", "--config", config, "--workdir", workdir, *SMALL, *overrides)


# As `SMALL`, of two towers.
TOWERS = {
    "data.image_size": 16,
    "model.name": "cnn",
    "model.width": 4,
    "model.depth": 1,
    "model.stem": "imagenet",
    "model.embedding_dim": 6,
    "text.encoder": "static",
    "text.width": 10,
    "text.vocab_size": 60,
    "text.max_length": 12,
    "nesting.dims": "2,4,8",
    "eval.dims": "2,4,8",
    "steps": 3,
    "batch_size": 16,
    "eval.batch_size": 8,
    "optimizer.warmup_steps": 1,
}
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220), "grey": (130,) * 3}


def captioned_photos(folder: pathlib.Path) -> None:
    """Writes 20 small pictures of a colour and, in train, val and test.jsonl, two captions each."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True)
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number in range(20):
        name, rgb = list(COLOURS.items())[number % len(COLOURS)]
        pixels_hwc = np.clip(rng.normal(rgb, 30, (20, 24, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels_hwc).save(folder / "photos" / f"{number:02}.png")
        captions = [f"a {name} picture", f"this is number {number} and it is {name}"]
        row = {"image": f"photos/{number:02}.png", "captions": captions}
        split = "train" if number < 12 else "val" if number < 16 else "test"
        lines[split].append(json.dumps(row) + "\n")
    for split, rows in lines.items():
        (folder / f"{split}.jsonl").write_text("".join(rows))


def train_towers(workdir: pathlib.Path, data: pathlib.Path, **keys: object) -> list[str]:
    """The argv of a small training run of two towers; `keys` of the config have __ for a dot."""
    own = {name.replace("__", "."): value for name, value in keys.items()}
    where = ("--config", ROOT / "configs" / "flickr8k.py", "--workdir", workdir)
    overrides = {"data.path": data, **TOWERS, **own}
    values = (f"--config.{key}={value}" for key, value in overrides.items())
    return command("mrl_jax.train", *where, *values)


_IMPATIENT = """
import runpy, sys
from mrl_jax.runtime import preemption
preemption._FAILED_S = 2
module = sys.argv.pop(1)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def impatient(argv: list[str]) -> list[str]:
    """The argv of a command that gives the rest of its group 2 s instead of 20 to fail as well."""
    return [sys.executable, "-c", _IMPATIENT, *argv[2:]]


def run(argv: list[str], *, devices: int = 1, **variables: str) -> subprocess.CompletedProcess:
    """Runs to the end; stdout and stderr as text."""
    return subprocess.run(
        argv,
        cwd=ROOT,
        env={**environment(devices), **variables},
        capture_output=True,
        text=True,
        timeout=240,
    )


def succeed(argv: list[str], *, devices: int = 1, **variables: str) -> str:
    """Runs to the end, must exit with 0 and write nothing to stderr; gives stdout."""
    done = run(argv, devices=devices, **variables)
    if done.returncode or done.stderr:
        pytest.fail(f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def fail(argv: list[str], code: int, **variables: str) -> str:
    """Runs to the end, must exit with `code` and one line "error: ..."; gives that line."""
    done = run(argv, **variables)
    lines = done.stderr.strip().splitlines()
    assert (done.returncode, len(lines)) == (code, 1), done.stderr[-3000:]
    assert lines[0].startswith("error: ")
    return lines[0]


def here(argv: list[str]) -> str:
    """Runs a command's argv to the end in this process; gives what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        importlib.import_module(argv[2]).main(argv[3:])
    return printed.getvalue()


def refused(argv: list[str], code: int) -> str:
    """As `fail`, in this process: the message of the error that gives the command this code."""
    with pytest.raises(errors.USER_ERRORS) as caught:
        here(argv)
    assert caught.value.exit_code == code
    return errors.cut(str(caught.value), cli.LONGEST)


def by_name(workdir: pathlib.Path) -> dict[tuple[str, int], Result]:
    """The numbers in results.json, as logs name them, at each dim."""
    results = json.loads((workdir / "results.json").read_text())["results"]
    return {(r.name, r.dim): r for r in (Result(**values) for values in results)}


def values(workdir: pathlib.Path) -> dict[tuple[str, int], float]:
    """As `by_name`, the values alone."""
    return {key: result.value for key, result in by_name(workdir).items()}
