"""A run needs no training data: they are moved away before everything else is done with it."""

import json
import shutil

import commands
import jax
import numpy as np
import pytest
import safetensors.numpy
import test_train_adaptor
import test_train_masked
import test_train_text
import text_models
from flax.traverse_util import flatten_dict
from PIL import Image

import mrl_jax
from mrl_jax import cascade, models
from mrl_jax.cascade import Policy
from mrl_jax.errors import CheckpointError
from mrl_jax.interop.sentence_folder import write_sentence_folder
from mrl_jax.record import folder
from mrl_jax.record.runs import read_run
from mrl_jax.store.vectors import open_vectors

TEXTS = text_models.SENTENCES[:3]
FORMS = ("safetensors", "stablehlo", pytest.param("onnx", marks=pytest.mark.slow))


def images(base):
    """Photographs of two classes, of which the test split has one."""
    rng = np.random.default_rng(0)
    for split, classes in (("train", "ab"), ("val", "ab"), ("test", "b")):
        for name in classes:
            (base / split / name).mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 128, (16, 16, 3)) + 127 * (name == "a")
                Image.fromarray(pixels.astype(np.uint8)).save(base / split / name / f"{i}.png")
    config = commands.ROOT / "configs/image_folder.py:mrl"
    keys = (f"--config.data.path={base}", "--config.data.image_size=16", "--config.eval.every=0")
    argv = ("--config", config, "--workdir", base.with_name("run"), *commands.SMALL, *keys)
    return commands.command("mrl_jax.train", *argv, "--config.steps=9")


def texts(base):
    base.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in test_train_text.groups()[:12])
    for split in ("train", "val"):
        (base / f"{split}.jsonl").write_text(lines)
    test = ["sentence1\tsentence2\tscore", "a man\ta dog\t1", "a cat\ta cat\t5", "a\tan egg\t2"]
    (base / "test.tsv").write_text("\n".join(test))
    shutil.copy(base / "test.tsv", base.with_name("sts.tsv"))
    argv = test_train_text.train(base.with_name("run"), base, "--config.steps=9")
    return [*argv, f"--config.eval.sts=own={base.with_name('sts.tsv')}"]


def vectors(base):
    base.mkdir()
    for seed, name in enumerate(("train", "val")):
        np.save(base / f"{name}.npy", test_train_adaptor.vectors(40, seed).astype(np.float32))
    argv = test_train_adaptor.train(base.with_name("run"), base, "--config.steps=9")
    return [word for word in argv if "eval.sts" not in word]


def documents(base):
    base.mkdir()
    for split in ("train", "val"):
        (base / f"{split}.txt").write_text("apple bread cherry date egg fig grape\n" * 20)
    where = (
        "--config",
        f"{test_train_masked.CONFIG}:mrl_e,small",
        "--workdir",
        base.parent / "run",
    )
    keys = {
        **{"data.path": base, "text.encoder": "bert_tiny", "text.max_length": 12},
        **{"nesting.dims": "2,4,16", "eval.dims": "2,4,16", "batch_size": 16, "steps": 9},
        **{"eval.batch_size": 16, "optimizer.warmup_steps": 2},
    }
    return commands.command(
        "mrl_jax.train", *where, *(f"--config.{key}={value}" for key, value in keys.items())
    )


def towers(base):
    """Photos with captions, and the weights of both towers, which stay as they are."""
    commands.captioned_photos(base)
    text_models.bert_folder(base / "bert", layers=1, projection=7)
    network = models.build("cnn", embedding_dim=6, width=4, depth=1)
    variables = jax.jit(network.init)(jax.random.key(3), np.zeros((1, 16, 16, 3), np.float32))
    tree = {"params": {"backbone": variables["params"]}}
    tree["model_state"] = {"batch_stats": variables["batch_stats"]}
    named = flatten_dict(jax.tree.map(np.asarray, tree), sep="/")
    safetensors.numpy.save_file(named, base / "network.safetensors")
    keys = {"weights": base / "network.safetensors", "text__encoder": base / "bert"}
    own = {"towers__locked": "both", "text__width": 0, "steps": 9, **keys}
    return commands.train_towers(base.with_name("run"), base, **own)


PHOTOS = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
VECTORS = np.random.default_rng(1).normal(size=(3, 12)).astype(np.float32)
TASKS = {
    "classification": (images, PHOTOS),
    "sentence_pairs": (texts, TEXTS),
    "adaptor": (vectors, VECTORS),
    "masked_lm": (documents, TEXTS),
    "image_text": (towers, PHOTOS),
}


@pytest.fixture(scope="module", params=TASKS)
def alone(request, tmp_path_factory):
    """A finished run whose data are not where they were, things to embed, and the data."""
    prepare, items = TASKS[request.param]
    base = tmp_path_factory.mktemp(request.param)
    commands.here(prepare(base / "data"))
    (base / "data").rename(base / "elsewhere")
    return base / "run", items, base / "elsewhere"


def test_it_is_opened_and_embeds(alone):
    run, items, _ = alone
    model = mrl_jax.load(run)
    assert model.embed(items).shape == (3, model.nesting.width)
    if model.towers:
        assert model.embed(TEXTS).shape == (3, model.nesting.width)
        assert model.task.locked == ("image", "text")
    if model.classes:
        assert model.classes == ("a", "b")
        z_nd = model.embed(items, normalize=False)
        assert model.logits(z_nd).shape == (3, 2)
        found = cascade.infer(model.task, model.params, z_nd, Policy((2, 8), (1.0, 0.0)))
        assert len(found.predicted_b) == 3


@pytest.mark.parametrize("form", FORMS)
def test_it_is_exported(alone, tmp_path, form):
    run, items, _ = alone
    argv = ("--workdir", run, "--out", tmp_path / "out", "--format", form)
    commands.here(commands.command("mrl_jax.export", *argv))
    model, found = mrl_jax.load(run), mrl_jax.load(tmp_path / "out")
    for some in (items, TEXTS) if model.towers else (items,):
        np.testing.assert_allclose(found.embed(some), model.embed(some), atol=1e-4)


def test_texts_become_a_folder_of_sentence_transformers(alone, tmp_path):
    run, items, _ = alone
    argv = ("--workdir", run, "--out", tmp_path / "out", "--format", "sentence_transformers")
    command = commands.command("mrl_jax.export", *argv)
    towers = mrl_jax.load(run).towers
    if items is not TEXTS and not towers:
        assert "is of text" in commands.refused(command, 2)
        return
    told = "of the text tower alone: sentence-transformers has no module for the Cnn of the image"
    assert commands.here(command).startswith(told) == bool(towers)
    found, model = mrl_jax.load(tmp_path / "out").embed(TEXTS), mrl_jax.load(run)
    if model.config.task == "masked_lm":
        # The folder embeds by hidden states, the run by what its output layer reads.
        assert found.shape == (3, model.task.backbone.width)
        return
    np.testing.assert_allclose(found, model.embed(TEXTS)[:, : found.shape[1]], atol=1e-5)


def test_it_is_reported_and_its_step_is_costed(alone, tmp_path):
    run, _, _ = alone
    commands.here(commands.command("mrl_jax.report", run, "--out", tmp_path))
    assert (tmp_path / "report.html").exists()
    dry_run = commands.command("mrl_jax.train", "--dry_run", "--workdir", run)
    assert "FLOP per example" in commands.here(dry_run)


def test_given_items_are_embedded_into_a_folder(alone, tmp_path):
    run, items, _ = alone
    source = tmp_path / "items.npy"
    if items is TEXTS:
        source = tmp_path / "items.txt"
        source.write_text("\n".join(items))
    elif items is PHOTOS:
        source = tmp_path / "photos"
        source.mkdir()
        for number, image in enumerate(items):
            Image.fromarray(image).save(source / f"{number}.png")
    else:
        np.save(source, items)
    argv = ("--workdir", run, "--input", source, "--out", tmp_path / "out")
    assert "3 vectors" in commands.here(commands.command("mrl_jax.embed", *argv))
    if items is TEXTS:
        vectors = open_vectors(tmp_path / "out")
        expected = mrl_jax.load(run).embed(TEXTS, normalize=False)
        np.testing.assert_allclose(vectors.read(0, 3), expected, atol=1e-6)
    of_split = ("--workdir", run, "--input", "val", "--out", tmp_path / "other")
    pairs = items is TEXTS
    line = commands.refused(commands.command("mrl_jax.embed", *of_split), 2 if pairs else 3)
    assert ("are not embedded one by one" if pairs else str(run.with_name("data"))) in line


def test_it_is_evaluated_with_what_it_measures_alone(alone, tmp_path):
    run, _, elsewhere = alone
    before = {(r.name, r.dim): r.value for r in read_run(run, "run").results}
    again = shutil.copytree(run, tmp_path / "run")
    data = shutil.copytree(elsewhere, tmp_path / "data")
    for path in data.glob("train*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    argv = ("--workdir", again, f"--config.data.path={data}")
    commands.here(commands.command("mrl_jax.evaluate", *argv))
    after = read_run(again, "run")
    found = {(r.name, r.dim): r.value for r in after.results}
    assert found.items() <= before.items()
    assert found
    lost = before.keys() - found.keys()
    assert bool(lost) == any("train split" in reason for reason in after.skipped.values())


def test_a_taught_run_is_evaluated_without_its_teacher(tmp_path):
    encoder = text_models.bert()
    write_sentence_folder(tmp_path / "teacher", encoder)
    argv = texts(tmp_path / "data")
    own = ("--config.pairs.loss=distill_similarity", f"--config.pairs.teacher={tmp_path}/teacher")
    commands.here([*argv, *own])
    before = read_run(tmp_path / "run", "run").results
    (tmp_path / "teacher").rename(tmp_path / "elsewhere")
    commands.here(commands.command("mrl_jax.evaluate", "--workdir", tmp_path / "run"))
    assert read_run(tmp_path / "run", "run").results == before


def test_facts_of_another_run_are_refused(digits_run, tmp_path):
    run = shutil.copytree(digits_run[0], tmp_path / "run")
    facts = folder.read_facts(run)
    facts["classes"].reverse()
    (run / "facts.json").write_text(folder.facts_text(facts, folder.trained_on(run), {}))
    with pytest.raises(CheckpointError, match=r"it does not belong to facts\.json"):
        mrl_jax.load(run)
