"""Whole training steps with a plain head, MRL and MRL-E, beside PyTorch on the same machine.

    python -m benchmarks.train_step                       # half an hour on two cores
    python -m benchmarks.train_step --cases 'resnet18-*'
    python -m benchmarks.train_step --dtype bfloat16 --scale 16    # on a GPU: 16 times the batch

One step is forward, backward and optimiser on random images that are on the device already; SGD
with momentum for residual networks, AdamW for transformers. The first row of a table, 1.00, is
mrl_jax with a plain head of full width. PyTorch's networks are torchvision's and timm's, channels
last, compiled with torch.compile on a GPU. Prints a JSON line per case and tables; writes
train_step.jsonl, train_step.md and train_step.png to --out.
"""

import argparse
import dataclasses
import fnmatch
import json
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from benchmarks import harness, report
from mrl_jax import Nesting, experiment
from mrl_jax import config as configs
from mrl_jax.config import tasks
from mrl_jax.nesting import halvings, powers_of_two
from mrl_jax.runtime import mesh as meshes

NOTES = """\
Time: median of one training step: forward, backward and optimiser. Ratio: time over that of the
first row in the same round, median and quartiles over rounds. XLA temp: buffers XLA plans beside
arguments and outputs. GFLOP by hand: three times the forward pass of the network, two FLOP per
multiplication and addition. XLA's own count takes the body of a loop once, however often it runs.
"""

HEADS = {"plain": "fixed", "mrl": "separate", "mrl_e": "shared"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """One network and one size of images.

    Attributes:
      model: of `mrl_jax.models`.
      batch: examples per step.
      size: pixels per side.
      classes: C.
      nesting: granularities of the nested heads.
      gflop: of one example, forward, without the head: two per multiplication and addition.
    """

    model: str
    batch: int
    size: int
    classes: int
    nesting: Nesting
    gflop: float

    @property
    def name(self) -> str:
        """As in --cases."""
        return f"{self.model}-{self.size}"

    def title(self, dtype: str) -> str:
        """For tables and plots."""
        granularities = harness.dims_text(self.nesting.dims)
        return (
            f"Training step, {self.model}, {self.size} px, batch {self.batch}, "
            f"{self.classes} classes, {granularities}, {dtype}"
        )


# FLOP by hand: He et al. and Dosovitskiy et al. count multiplications and additions as one.
SETTINGS = (
    Setting("resnet18", 128, 32, 100, powers_of_two(8, 512), 2 * 0.556),
    Setting("resnet50", 16, 224, 1000, powers_of_two(8, 2048), 2 * 4.09),
    Setting("vit_s16", 16, 224, 1000, halvings(384, 6), 2 * 4.6),
)
SMOKE = Setting("resnet18", 4, 8, 5, powers_of_two(8, 512), 2 * 0.04)


def batch_of(setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Random images [B, H, W, 3] of uint8 and labels [B]."""
    rng = np.random.default_rng(0)
    shape = (setting.batch, setting.size, setting.size, 3)
    image_bhwc = rng.integers(0, 256, shape).astype(np.uint8)
    return image_bhwc, rng.integers(0, setting.classes, setting.batch).astype(np.int32)


def _jax_case(setting: Setting, head: str, dtype: str) -> Callable[[], harness.Step]:
    def build():
        c = configs.default_config()
        c.model.name, c.model.embedding_dim, c.model.dtype = setting.model, 0, dtype
        if setting.size <= 64:
            c.model.stem = "small"
        c.head.kind = HEADS[head]
        c.nesting.dims = setting.nesting.dims[-1:] if head == "plain" else setting.nesting.dims
        c.batch_size = setting.batch
        residual = setting.model.startswith("resnet")
        c.optimizer.name = "sgd" if residual else "adamw"
        c.optimizer.learning_rate = 1e-3 if residual else 1e-4
        mesh = meshes.make_mesh(devices=jax.devices()[:1])
        classes, shape = [*map(str, range(setting.classes))], [setting.size, setting.size, 3]
        facts, build = {"classes": classes, "image_shape": shape}, tasks.builder(c.task)
        program = experiment.make_program(c, facts, mesh, build)
        compiled = program.compile(program.largest_batch)
        key = program.run_key(0)
        image, label = batch_of(setting)
        rows = {"image": image, "label": label, "mask": np.ones(setting.batch, np.float32)}
        batch = jax.device_put(rows, meshes.batch_sharding(mesh))
        stop = jax.device_put(np.zeros(1, np.int32), meshes.one_per_device(mesh))
        kept = {"state": program.init_state(key)}

        def run():
            kept["state"], metrics = compiled(kept["state"], batch, key, stop)
            loss = float(metrics["loss"])
            jax.block_until_ready(kept["state"])
            return loss

        return harness.Step(run, compiled)

    return build


def _torch_network(setting: Setting):
    """(network without classifier, width of its embedding)."""
    import torch

    if setting.model.startswith("vit"):
        import timm

        size = {"s": "small", "b": "base"}[setting.model[4]]
        network = timm.create_model(
            f"vit_{size}_patch16_224",
            num_classes=0,
            class_token=False,
            global_pool="avg",
        )
        return network, network.num_features
    import torchvision

    network = getattr(torchvision.models, setting.model)()
    width, network.fc = network.fc.in_features, torch.nn.Identity()
    if setting.size <= 64:
        network.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = torch.nn.Identity()
    return network, width


def _torch_case(setting: Setting, head: str, dtype: str) -> Callable[[], harness.Step]:
    def build():
        import torch
        from torch.nn import functional

        on_gpu = torch.cuda.is_available()
        device = "cuda" if on_gpu else "cpu"
        if not on_gpu:
            torch.set_num_threads(harness.threads())
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        network, width = _torch_network(setting)
        dims = setting.nesting.dims if head != "plain" else (width,)
        count = 1 if head == "mrl_e" else len(dims)
        heads = [torch.nn.Linear(m, setting.classes) for m in dims[-count:]]

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.network, self.heads = network, torch.nn.ModuleList(heads)

            def forward(self, x, label):
                z = self.network(x)
                if head == "mrl_e":
                    last = self.heads[0]
                    logits = [z[:, :m] @ last.weight[:, :m].T + last.bias for m in dims]
                else:
                    logits = [part(z[:, :m]) for m, part in zip(dims, self.heads, strict=True)]
                return sum(functional.cross_entropy(found.float(), label) for found in logits)

        model = Model().to(device, memory_format=torch.channels_last)
        if setting.model.startswith("resnet"):
            optimizer = torch.optim.SGD(
                model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4
            )
        else:
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
        called = torch.compile(model) if on_gpu else model
        image, label = batch_of(setting)
        image = torch.from_numpy(image).to(device).permute(0, 3, 1, 2)
        label = torch.from_numpy(label).long().to(device)
        narrow = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

        def run():
            optimizer.zero_grad(set_to_none=True)
            with narrow:
                x = image.float().div(127.5).sub(1)
                loss = called(x.contiguous(memory_format=torch.channels_last), label)
            loss.backward()
            optimizer.step()
            return float(loss)

        return harness.Step(run)

    return build


def cases_of(setting: Setting, dtype: str) -> list[harness.Case]:
    """All implementations for one setting, the floor first."""
    gflop = 3 * setting.gflop * setting.batch
    makers = {"mrl_jax": _jax_case, "torch": _torch_case}
    return [
        harness.Case(f"{library}/{head}", f"{library}/{head}", gflop, make(setting, head, dtype))
        for library, make in makers.items()
        for head in HEADS
    ]


def measure(
    setting: Setting, dtype: str, rounds: int, patterns: Sequence[str]
) -> list[report.Line]:
    """All cases of one setting in turn, a line each."""
    cases = cases_of(setting, dtype)
    cases = cases[:1] + [
        case
        for case in cases[1:]
        if any(fnmatch.fnmatchcase(f"{setting.name}:{case.name}", p) for p in patterns)
    ]
    title = setting.title(dtype)
    lines = harness.lines_in_turn(cases, rounds, setting=setting.name, title=title)
    for line in lines:
        if not line["skipped"]:
            line["examples_per_second"] = setting.batch / line["seconds_median"]
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Training steps beside PyTorch.")
    parser.add_argument("--cases", nargs="+", default=["*"], help="SETTING:CASE, with wildcards")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--scale", type=int, default=1, help="times the batch")
    parser.add_argument("--out", type=pathlib.Path, default=harness.ROOT / "benchmarks" / "results")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or arguments.scale < 1:
        parser.error("--rounds and --scale must be >= 1")
    patterns = [p if ":" in p else f"{p}:*" for p in arguments.cases]
    smoke = [SMOKE] if arguments.cases[0].startswith("smoke") else []
    if smoke:
        patterns = [p.replace("smoke", SMOKE.name) for p in patterns]
    chosen = smoke or [
        setting
        for setting in SETTINGS
        if any(fnmatch.fnmatchcase(setting.name, p.split(":")[0]) for p in patterns)
    ]
    if not chosen:
        parser.error(f"no case matches; settings: {', '.join(s.name for s in SETTINGS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = []
    with (arguments.out / "train_step.jsonl").open("w") as file:
        for setting in chosen:
            setting = dataclasses.replace(setting, batch=setting.batch * arguments.scale)
            for line in measure(setting, arguments.dtype, arguments.rounds, patterns):
                lines.append(line)
                print(json.dumps(line), flush=True)
                print(json.dumps(line), file=file, flush=True)
            jax.clear_caches()
    text = report.markdown(lines, NOTES)
    (arguments.out / "train_step.md").write_text(text)
    report.plot(lines, arguments.out / "train_step.png")
    print(text)


if __name__ == "__main__":
    main()
