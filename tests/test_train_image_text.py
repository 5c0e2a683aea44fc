"""Two towers trained by the command: in two processes, stopped and gone on with, locked."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import mrl_jax
from mrl_jax import config as configs
from mrl_jax import experiment
from mrl_jax.errors import DataError, UsageError
from mrl_jax.interop.two_towers import read_two_towers
from mrl_jax.models.text.tokenizer import pad
from mrl_jax.runtime.step import evaluated
from mrl_jax.tasks.image_text import build
from tests import commands, test_train, text_models, tower_models


def close(workdir, expected, rel):
    for mine, one in zip(*map(test_train.records, (workdir, expected)), strict=True):
        for name in one:
            if name.startswith("train/"):
                assert mine[name] == pytest.approx(one[name], rel=rel), (mine["step"], name)


def test_two_processes_give_the_result_of_one(towers_run, tmp_path):
    """On two devices each: the photos of one process are compared with the texts of the other."""
    finished, data = towers_run
    launcher = (commands.sys.executable, "launch/local.py", "--processes", "2")
    rules = "(('kernel|embedding','largest:fsdp'),('.*','replicate'))"
    keys = {"mesh__data": 2, "mesh__fsdp": 2, "sharding": rules}
    argv = commands.train_towers(tmp_path / "run", data, **keys)
    commands.succeed([*launcher, "--devices_per_process", "2", "--", *argv])
    close(tmp_path / "run", finished, rel=1e-5)


def test_goes_on_bit_for_bit(towers_run, tmp_path):
    finished, data = towers_run
    workdir = tmp_path / "run"
    argv = commands.train_towers(workdir, data, checkpoint__every=1)
    commands.here(argv)
    for name in ("DONE", "results.json"):
        (workdir / name).unlink()
    for step in (path for path in (workdir / "ckpt").iterdir() if path.name == "3"):
        shutil.rmtree(step)
    assert "resuming from step 2" in commands.here(argv)
    (_, mine), (_, other) = (test_train.final_arrays(w) for w in (workdir, finished))
    for one, two in zip(mine, other, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    text_models.bert_folder(folder)
    return folder


LOCKED = {"text__width": 0, "text__vocab_size": 30522, "towers__locked": "text"}


def test_a_locked_text_tower_is_kept_and_its_vectors_are_made_once(towers_run, encoder, tmp_path):
    _, data = towers_run
    keys = {**LOCKED, "text__encoder": encoder, "data__cache": tmp_path / "cache"}
    commands.here(commands.train_towers(tmp_path / "run", data, **keys))
    assert len(list((tmp_path / "cache").glob("vectors-*/manifest.json"))) == 1
    assert not list((tmp_path / "cache").glob("tokens-*"))
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.bin")}
    commands.here(commands.train_towers(tmp_path / "again", data, **keys))
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.bin")}
    close(tmp_path / "again", tmp_path / "run", rel=0)
    setup, state = experiment.restored(tmp_path / "run")
    params, model_state = jax.device_get(evaluated(state))
    start = text_models.bert().params
    jax.tree.map(np.testing.assert_array_equal, model_state["locked"]["text"], start)
    assert "text" not in params
    weights = encoder / "model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    other = shutil.copytree(encoder, tmp_path / "other") / weights.name
    safetensors.numpy.save_file({name: 2 * x for name, x in tensors.items()}, other)
    setup.config.text.encoder = str(other.parent)
    with pytest.raises(
        DataError, match=r"stays locked \(text\) are others than the run began with"
    ):
        experiment.from_config(setup.config, tmp_path / "run")


@pytest.mark.slow
def test_trained_in_memory_or_from_a_stream_it_is_the_same(towers_run, tmp_path):
    _, data = towers_run
    keys = {"data__random_crop": 0.0, "data__flip": False}
    for stream in (False, True):
        workdir = tmp_path / str(stream)
        commands.here(commands.train_towers(workdir, data, data__stream=stream, **keys))
    close(tmp_path / "True", tmp_path / "False", rel=0)


def from_clip(arg, weights, data, workdir, *flags):
    """The argv of a run that starts from both towers in a folder."""
    config = commands.ROOT / "configs" / f"clip_nested.py:{arg}"
    keys = {"towers.weights": weights, "data.path": data, "nesting.dims": "2,4,8", "steps": 30}
    keys |= {"batch_size": 16, "eval.batch_size": 8, "optimizer.warmup_steps": 1}
    given = (f"--config.{name}={value}" for name, value in keys.items())
    where = ("--config", config, "--workdir", workdir)
    return commands.command("mrl_jax.train", *where, *given, *flags)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    return {kind: tower_models.KINDS[kind](root / kind) for kind in ("clip", "siglip")}


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("locked", [pytest.param("none", marks=pytest.mark.slow), "both"])
def test_a_run_starts_as_the_towers_in_a_folder(kind, locked, clips, towers_run, tmp_path):
    _, data = towers_run
    config = configs.load(str(commands.ROOT / "configs" / "clip_nested.py"))
    config.towers.weights, config.data.path = str(clips[kind]), str(data)
    config.towers.locked, config.nesting.dims = locked, (2, 4, 8)
    config.pairs.loss = "sigmoid" if kind == "siglip" else "info_nce"
    config.batch_size = config.eval.batch_size = 8
    setup = experiment.from_config(config)
    source, put_in = setup.start
    assert source == f"both towers from {clips[kind]}"
    state = put_in(setup.program.init_state(jax.random.key(0)))
    towers = read_two_towers(clips[kind])
    *expected, logits = tower_models.features(towers)
    task, values = setup.program.task, evaluated(state)
    ids = towers.text.tokenizer.encode(tower_models.TEXTS, towers.text.max_length)
    tokens_bt, lengths_b = pad(ids, max(map(len, ids)), len(ids))
    batches = (
        {"image": tower_models.images(towers.image_size)},
        {
            "tokens": tokens_bt,
            "lengths": lengths_b,
        },
    )
    found = [np.asarray(task.embed(*values, batch)) for batch in batches]
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in found]
    scale, bias = np.exp(values[0]["log_scale"]), values[0].get("bias", 0.0)
    np.testing.assert_allclose(unit[0] @ unit[1].T * scale + bias, logits, atol=1e-4)


def test_a_clip_is_made_nested_by_an_adaptor_on_its_frozen_outputs(clips, towers_run, tmp_path):
    _, data = towers_run
    weights = shutil.copytree(clips["clip"], tmp_path / "clip")
    workdir = tmp_path / "run"
    own = ("--config.log_every=1", "--config.optimizer.learning_rate=0.03")
    commands.here(from_clip("adaptor", weights, data, workdir, *own))
    shutil.rmtree(weights)
    first, *_, last = (r for r in test_train.records(workdir) if "train/loss" in r)
    for dim in (2, 4, 8):
        name = f"train/loss/{dim:04d}"
        assert last[name] < first[name] - 0.1, name
    assert mrl_jax.load(workdir).embed(["a red picture"], dim=4).shape == (1, 4)


def test_dropout_is_refused_as_the_text_tower_of_a_clip_has_none(clips, towers_run, tmp_path):
    _, data = towers_run
    argv = from_clip("finetune", clips["clip"], data, tmp_path, "--config.text.dropout=0.1")
    assert "config.text.dropout is 0.1, but both towers" in commands.refused(argv, 2)


@pytest.mark.slow
def test_a_siglip_is_made_nested_by_training_all_of_it(clips, towers_run, tmp_path):
    _, data = towers_run
    own = ("--config.pairs.loss=sigmoid", "--config.optimizer.learning_rate=0.003")
    own = (*own, "--config.log_every=1", "--config.data.stream=True", "--config.text.remat=True")
    commands.here(from_clip("finetune", clips["siglip"], data, tmp_path / "run", *own))
    first, *_, last = (r for r in test_train.records(tmp_path / "run") if "train/loss" in r)
    assert last["train/loss"] < first["train/loss"] - 0.1


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"towers__locked": "image"}, "would stay as random as it starts; give config.weights"),
        ({"towers__locked": "text"}, "would stay as random as it starts; give config.text.encoder"),
        ({"towers__locked": "all"}, "config.towers.locked must be one of none, image, text, both"),
        ({"towers__width": 4}, "nesting dim 8 is wider than the embedding"),
        ({"pairs__micro_batch": 5}, "micro_batch 5 does not divide the batch_size 16"),
        (
            {"pairs__micro_batch": 4, "model__batch_norm_groups": 8},
            "model.batch_norm_groups 8 does not divide the micro_batch 4",
        ),
        ({"data__std": (0.0,)}, "config.data: std must be one positive number"),
        ({"pairs__temperature": 0.001}, "temperature must be >= 0.01"),
        ({"optimizer__accumulate": 2}, "config.pairs.micro_batch saves the memory"),
        ({"text__width": 0}, "a static table needs so many dims"),
        ({"towers__weights": "."}, "config.model.depth is 1, but both towers and what they read"),
    ],
)
def test_keys_that_cannot_be_are_refused(keys, line, towers_run, tmp_path):
    _, data = towers_run
    argv = commands.train_towers(tmp_path / "run", data, **keys)
    assert line in commands.refused(argv, 2)


@pytest.mark.parametrize("same", ["photo", "caption"])
def test_pairs_that_are_all_positives_are_refused(same, towers_run, tmp_path):
    _, data = towers_run
    rows = [{"image": f"photos/{n:02}.png", "caption": f"number {n}"} for n in range(2)]
    column = {"photo": "image"}.get(same, same)
    rows = [{**row, column: rows[0][column]} for row in rows]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = commands.train_towers(tmp_path / "run", tmp_path, data__images=data)
    assert f"all pairs of train have the same {same}, so none is" in commands.refused(argv, 3)


def test_a_batch_of_one_pair_is_refused():
    config = configs.load(str(commands.ROOT / "configs" / "flickr8k.py"))
    config.batch_size = 1
    with pytest.raises(UsageError, match="batch_size must be >= 2: a pair is told from the others"):
        build.check(config)
