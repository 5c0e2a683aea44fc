"""Sentence encoders beside sentence-transformers: a training step, real lengths, and encoding.

    python -m benchmarks.text --model MODEL_FOLDER --texts train.jsonl    # 15 minutes on two cores
    python -m benchmarks.text --cases 'encode:*'

MODEL_FOLDER is one that sentence-transformers reads, as all-MiniLM-L6-v2; without it, a fresh
network of that size. --texts holds pairs or groups of texts (see configs/sentence_minilm.py);
without it, sentences of made-up words, 20 tokens on average.

Three settings, all float32, without dropout, AdamW:
  step    32 pairs of 64 tokens each, no padding
  lengths 64 batches of 32 pairs, their texts as long as they are; mrl_jax sorts within the 64
          batches, sentence-transformers takes them in random order, each padded to its longest
  encode  2,000 texts to embeddings of unit length, tokenising included
The loss is InfoNCE in one direction: MultipleNegativesRankingLoss, within MatryoshkaLoss where it
is nested. Every case of a setting starts from the same weights; that losses and embeddings of the
libraries agree is checked. Prints a JSON line per case and tables; writes text.jsonl, text.md and
text.png to --out.
"""

import argparse
import dataclasses
import fnmatch
import json
import os
import pathlib
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# What PyTorch's idle threads do would otherwise slow down whoever comes next in turn.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import numpy as np

from benchmarks import harness, report
from mrl_jax import config as configs
from mrl_jax import experiment
from mrl_jax.data.text import load
from mrl_jax.interop.sentence_folder import write_sentence_folder
from mrl_jax.model import load as load_model
from mrl_jax.nesting import halvings
from mrl_jax.runtime import mesh as meshes

NOTES = """\
Time: median of one step (`step`), of all 64 (`lengths`), of all texts (`encode`). Ratio: time over
that of the first row in the same round, median and quartiles over rounds. GFLOP by hand: products
of the layers on tokens that are there, three times the forward pass in training, two FLOP per
multiplication and addition.
"""
SETTINGS = ("step", "lengths", "encode")
PAIRS, TOKENS, BATCHES, TEXTS = 32, 64, 64, 2000
LOSS_TOLERANCE, EMBEDDING_TOLERANCE = 1e-3, 1e-4


@dataclasses.dataclass(frozen=True)
class Material:
    """What all cases work on.

    Attributes:
      model: folder of the encoder.
      config: of a run with it on the texts, nested.
      texts: for encoding.
      smoke: sizes of nothing.
    """

    model: pathlib.Path
    config: Any
    texts: list[str]
    smoke: bool

    @property
    def batches(self) -> int:
        """Of the setting `lengths`."""
        return 2 if self.smoke else BATCHES

    def experiment(self, nested: bool) -> experiment.Experiment:
        """The run with all dims, or with the widest alone."""
        config = configs.override(self.config, ())
        if not nested:
            configs.set_method(config, f"fixed={config.nesting.dims[-1]}")
        return experiment.from_config(config)


def sentences(rng: random.Random) -> Iterator[str]:
    """Made-up words, of one to three syllables; 5 to 31 of them."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(3000)]
    while True:
        yield " ".join(rng.choices(words, k=round(5 + rng.betavariate(1.5, 3.5) * 26)))


def material(folder: pathlib.Path, model: str, texts: str, smoke: bool) -> Material:
    """Weights and texts, made in `folder` where none are given."""
    if not texts:
        made = sentences(random.Random(0))
        rows = [{"texts": [next(made), next(made)]} for _ in range(64 if smoke else 4096)]
        texts = folder / "train.jsonl"
        texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configs.default_config("sentence_pairs")
    config.data.files = (f"train={texts}",)
    config.text.encoder = "bert_tiny" if smoke else "minilm_l6"
    config.pairs.symmetric = False
    config.batch_size = 4 if smoke else PAIRS
    config.eval.batch_size = config.batch_size
    config.nesting.dims = halvings(128, 3).dims if smoke else halvings(384, 5).dims
    config.sharding = ((".*", "replicate"),)
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 2e-5, 0
    config.optimizer.weight_decay = 0.0
    if not model:
        fresh = experiment.from_config(config)
        params = jax.device_get(fresh.program.init_state(fresh.program.run_key(0))["params"])
        model = folder / "model"
        write_sentence_folder(model, fresh.text_folder(params))
    config.text.encoder = str(model)
    config.text.max_length = TOKENS
    found = list(load(files=config.data.files).splits["train"].texts)
    random.Random(0).shuffle(found)
    return Material(pathlib.Path(model), config, found[: 20 if smoke else TEXTS], smoke)


def _fixed_batch(task: Any, batch_size: int) -> dict[str, np.ndarray]:
    rng, batch = np.random.default_rng(0), {"mask": np.ones(batch_size, np.float32)}
    rows = task.encoder.backbone.vocab_size
    for side in task.sides:
        # Ids below 1000 are special in BERT's vocabulary.
        low = min(1000, rows // 2)
        batch[f"{side}_tokens"] = rng.integers(low, rows, (batch_size, TOKENS)).astype(np.int32)
        batch[f"{side}_lengths"] = np.full(batch_size, TOKENS, np.int32)
        batch[f"{side}_id"] = np.arange(batch_size, dtype=np.int32)
    return batch


def host_batches(run: experiment.Experiment, setting: str, count: int) -> list[dict]:
    """The batches of a setting, as they are before they go to the device."""
    if setting == "step":
        return [_fixed_batch(run.program.task, run.program.batch_size)]
    batches = run.batches(seed=0)
    return [batches.host_batch(step) for step in range(count)]


def _jax_training(m: Material, setting: str, nested: bool) -> Callable[[], harness.Step]:
    def build():
        run = m.experiment(nested)
        program = run.program
        rows = meshes.batch_sharding(program.mesh)
        key = program.run_key(0)
        batches = [jax.device_put(b, rows) for b in host_batches(run, setting, m.batches)]
        updates = {_shapes(batch): batch for batch in batches}
        updates = {shapes: program.compile(batch) for shapes, batch in updates.items()}
        stop = jax.device_put(np.zeros(1, np.int32), meshes.one_per_device(program.mesh))
        state = program.init_state(key)
        kept = {"state": run.start[1](state) if run.start else state}

        def step():
            losses = []
            for batch in batches:
                kept["state"], metrics = updates[_shapes(batch)](kept["state"], batch, key, stop)
                losses.append(metrics["loss"])
            return float(np.mean(jax.device_get(losses)))

        return harness.Step(step, next(iter(updates.values())) if len(updates) == 1 else None)

    return build


def _shapes(batch: dict) -> tuple:
    return tuple((name, array.shape) for name, array in sorted(batch.items()))


def _torch_model(m: Material, device: str) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(harness.threads())
    model = SentenceTransformer(str(m.model), device=device)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def _torch_features(batches: Sequence[dict], sides: Sequence[str], device: str) -> list[list[dict]]:
    """The same pairs as sentence-transformers takes them: in random order, padded per side."""
    import torch

    pairs = [
        [b[f"{side}_tokens"][i, : b[f"{side}_lengths"][i]] for side in sides]
        for b in batches
        for i in range(len(b["mask"]))
    ]
    size = len(batches[0]["mask"])
    order = np.random.default_rng(0).permutation(len(pairs)).reshape(-1, size)
    found = []
    for rows in order if len(batches) > 1 else [np.arange(size)]:
        features = []
        for side in range(len(sides)):
            tokens = [torch.from_numpy(pairs[row][side]).long() for row in rows]
            ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
            real = torch.nn.utils.rnn.pad_sequence(
                [torch.ones_like(t) for t in tokens], batch_first=True
            )
            feature = {"input_ids": ids, "attention_mask": real}
            feature["token_type_ids"] = torch.zeros_like(ids)
            features.append({name: tensor.to(device) for name, tensor in feature.items()})
        found.append(features)
    return found


def _torch_training(m: Material, setting: str, nested: bool) -> Callable[[], harness.Step]:
    def build():
        import torch
        from sentence_transformers.sentence_transformer import losses

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = _torch_model(m, device)
        model.train()
        loss_of = losses.MultipleNegativesRankingLoss(model)
        run = m.experiment(nested)
        if nested:
            dims = list(run.program.task.nesting.dims)
            loss_of = losses.MatryoshkaLoss(model, loss_of, dims)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
        hosts = host_batches(run, setting, m.batches)
        batches = _torch_features(hosts, run.program.task.sides, device)

        def step():
            found = []
            for features in batches:
                optimizer.zero_grad(set_to_none=True)
                # The model adds its results to the dicts.
                loss = loss_of([dict(side) for side in features], None)
                loss.backward()
                optimizer.step()
                found.append(loss.detach())
            return float(torch.stack(found).mean())

        return harness.Step(step)

    return build


def _jax_encoding(m: Material) -> Callable[[], harness.Step]:
    def build():
        model = load_model(m.model)
        return harness.Step(lambda: _checked(m, model.embed(m.texts)))

    return build


def _torch_encoding(m: Material) -> Callable[[], harness.Step]:
    def build():
        import torch

        model = _torch_model(m, "cuda" if torch.cuda.is_available() else "cpu")
        options = {"normalize_embeddings": True, "show_progress_bar": False}
        return harness.Step(lambda: _checked(m, model.encode(m.texts, **options)))

    return build


def _checked(m: Material, z_nd: np.ndarray) -> float:
    """A number that says which embeddings these are."""
    weights_n = np.random.default_rng(0).standard_normal(len(m.texts))
    return float(weights_n @ z_nd @ np.arange(z_nd.shape[1])) / z_nd.size


def cases_of(m: Material, setting: str) -> list[harness.Case]:
    """All implementations of one setting, the floor first."""
    gflop = _gflop(m, setting)
    if setting == "encode":
        return [
            harness.Case("mrl_jax/encode", "encode", gflop, _jax_encoding(m)),
            harness.Case("sentence-transformers/encode", "encode", gflop, _torch_encoding(m)),
        ]
    makers = {"mrl_jax": _jax_training, "sentence-transformers": _torch_training}
    return [
        harness.Case(f"{library}/{loss}", loss, gflop, make(m, setting, loss == "nested"))
        for library, make in makers.items()
        for loss in ("plain", "nested")
    ]


def _gflop(m: Material, setting: str) -> float:
    """Products of layers and attention on the tokens that are there."""
    run = m.experiment(nested=True)
    backbone = run.program.task.encoder.backbone
    if setting == "encode":
        tokens = load_model(m.model).inputs.tokenizer.encode(m.texts, backbone.max_tokens)
        lengths = np.array([len(ids) for ids in tokens], np.float64)
    else:
        hosts = host_batches(run, setting, m.batches)
        sides = [b[f"{side}_lengths"] for b in hosts for side in run.program.task.sides]
        lengths = np.concatenate(sides).astype(np.float64)
    width, hidden = backbone.width, backbone.hidden
    per_token = 2 * (4 * width**2 + 2 * width * hidden) + 4 * width * lengths
    forward = backbone.layers * (lengths * per_token).sum() / 1e9
    return forward if setting == "encode" else 3 * forward


def title(m: Material, setting: str) -> str:
    """For tables and plots."""
    dims = harness.dims_text(m.config.nesting.dims)
    what = {
        "step": f"Training step, {m.config.batch_size} pairs of {TOKENS} tokens, {dims}",
        "lengths": f"{m.batches} training steps of {m.config.batch_size} pairs, real lengths, "
        f"{dims}",
        "encode": f"Encoding {len(m.texts):,} texts",
    }
    return what[setting]


def check(setting: str, losses: dict[str, float], computes: dict[str, str]) -> None:
    """Refuses to compare what does not compute the same."""
    if setting == "lengths":
        return  # other batches: other negatives
    tolerance = EMBEDDING_TOLERANCE if setting == "encode" else LOSS_TOLERANCE
    for name, loss in losses.items():
        floor = next(x for other, x in losses.items() if computes[other] == computes[name])
        if not abs(loss - floor) <= tolerance * max(1, abs(floor)):
            raise RuntimeError(f"{setting}: {name} finds {loss}, another library {floor}")


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Text beside sentence-transformers.")
    parser.add_argument("--model", default="", help="folder of a BERT-like sentence encoder")
    parser.add_argument("--texts", default="", help="file of pairs or groups of texts")
    parser.add_argument("--cases", nargs="+", default=["*"], help="SETTING:CASE, with wildcards")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="sizes of nothing")
    parser.add_argument("--out", type=pathlib.Path, default=harness.ROOT / "benchmarks" / "results")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        parser.error("--rounds must be >= 1")
    patterns = [p if ":" in p else f"{p}:*" for p in arguments.cases]
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        m = material(pathlib.Path(folder), arguments.model, arguments.texts, arguments.smoke)
        for setting in SETTINGS:
            first, *others = cases_of(m, setting)
            chosen = [
                case
                for case in (first, *others)
                if any(fnmatch.fnmatchcase(f"{setting}:{case.name}", p) for p in patterns)
            ]
            if not chosen:
                continue
            cases = chosen if first in chosen else [first, *chosen]
            computes = {case.name: case.computes for case in cases}
            found = harness.lines_in_turn(
                cases,
                arguments.rounds,
                setting=setting,
                title=title(m, setting),
                check=lambda losses, setting=setting, computes=computes: check(
                    setting, losses, computes
                ),
            )
            for line in found:
                lines.append(line)
                print(json.dumps(line), flush=True)
            jax.clear_caches()
    if not lines:
        parser.error(f"no case matches; settings: {', '.join(SETTINGS)}")
    (arguments.out / "text.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    text = report.markdown(lines, NOTES)
    (arguments.out / "text.md").write_text(text)
    report.plot(lines, arguments.out / "text.png")
    print(text)


if __name__ == "__main__":
    main()
