import dataclasses
import json
import signal

import commands
import jax
import numpy as np
import pytest
import test_train
from jax import export as jax_export

import mrl_jax
from mrl_jax import config as configs
from mrl_jax import dry_run, embed, experiment, export
from mrl_jax.errors import DataError, UsageError
from mrl_jax.nesting import Nesting
from mrl_jax.runtime.step import evaluated
from mrl_jax.store.vectors import open_vectors
from mrl_jax.tasks import common

CONFIG = commands.ROOT / "configs" / "adaptor.py"
WIDTH, DIMS = 12, (2, 4, 12)
SMALL = (
    "--config.nesting.dims=2,4,12",
    "--config.eval.dims=2,4,12",
    "--config.steps=60",
    "--config.batch_size=16",
    "--config.eval.batch_size=64",
    "--config.log_every=1",
    "--config.optimizer.learning_rate=0.03",
    "--config.optimizer.warmup_steps=5",
    "--config.checkpoint.every=10",
)
IDENTITY = "--config.adaptor.start=identity"
# Directions of very unequal variance, in an order that prefixes do not follow.
SPREAD = np.array([0.2, 0.1, 0.1, 0.2, 3.0, 0.1, 0.3, 2.0, 0.1, 0.2, 1.0, 0.1])


def vectors(n, seed):
    return np.random.default_rng(seed).normal(size=(n, WIDTH)) * SPREAD


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("vectors")
    for seed, (name, n) in enumerate((("train", 200), ("val", 60))):
        x = vectors(n, seed)
        answers = x + 0.2 * np.random.default_rng(seed + 9).normal(size=x.shape)
        np.save(path / f"{name}.npy", x.astype(np.float16))
        np.save(path / f"{name}_positives.npy", answers.astype(np.float32))
    np.save(path / "test.npy", vectors(60, 5).astype(np.float32))
    a, b = vectors(40, 6), vectors(40, 7)
    np.savez(path / "sts.npz", a=a, b=b, score=(unit(a) * unit(b)).sum(1))
    return path


def train(workdir, folder, *overrides, arg="linear"):
    where = ("--config", f"{CONFIG}:{arg}", "--workdir", workdir)
    sets = (f"--config.data.path={folder}", f"--config.eval.sts=pairs={folder / 'sts.npz'}")
    return commands.command("mrl_jax.train", *where, *SMALL, *sets, *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, folder):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, commands.here(train(workdir, folder, IDENTITY))


def values_of(workdir):
    return commands.values(workdir)


def adapt(setup, state, x):
    """Rows [N, D] adapted on one device, float64."""
    task = dataclasses.replace(setup.program.task, mesh=None)
    values = jax.device_get(evaluated(state))
    return np.asarray(task.embed(*values, {"vector": np.float32(x)}), np.float64)


def test_a_run_learns_and_stands_beside_what_needs_no_training(finished):
    workdir, output = finished
    for part in ("200 with positives", "dense/kernel", "test/overlap10"):
        assert part in output
    found = values_of(workdir)
    for name in ("val/overlap10", "test/cosine_spearman", "val/ndcg10", "pairs/spearman"):
        for suffix in ("", "_cut", "_pca", "_rotation"):
            assert {dim for n, dim in found if n == name + suffix} == {*DIMS}
    assert ("test/ndcg10", 2) not in found  # no positives there
    assert found["test/overlap10", 2] > found["test/overlap10_cut", 2] + 0.2
    assert found["val/ndcg10", 2] > found["val/ndcg10_cut", 2] + 0.2
    assert found["pairs/spearman", 4] > found["pairs/spearman_cut", 4] + 0.2
    assert found["test/overlap10_cut", WIDTH] == found["test/overlap10_rotation", WIDTH] == 1
    assert found["test/overlap10", WIDTH] > 0.8
    written = test_train.records(workdir)
    # Means of ten steps: batches differ.
    first, last = (
        np.mean([r["train/loss/0002"] for r in part]) for part in (written[:10], written[50:60])
    )
    assert last < 0.9 * first


def test_rivals_are_those_of_the_frozen_vectors(finished, folder):
    found = values_of(finished[0])
    with np.load(folder / "sts.npz") as pairs:
        sides = [pairs[name].astype(np.float32).astype(np.float64) for name in "ab"]
        score = pairs["score"]
    train_nd = unit(np.load(folder / "train.npy").astype(np.float64))
    _, axes = np.linalg.eigh(np.cov(train_nd.T))
    ways = {"_cut": sides, "_pca": [(unit(z) - train_nd.mean(0)) @ axes[:, ::-1] for z in sides]}
    for suffix, (a, b) in ways.items():
        cosines = [(unit(a[:, :m]) * unit(b[:, :m])).sum(1) for m in (2, 4)]
        for m, cosine in zip((2, 4), cosines, strict=True):
            expected = np.corrcoef(cosine, score)[0, 1]
            assert found[f"pairs/pearson{suffix}", m] == pytest.approx(expected, abs=1e-4)


def test_nearest_answers_are_found_by_brute_force(finished, folder):
    workdir, _ = finished
    setup, state = experiment.restored(workdir)
    z, y = (
        unit(adapt(setup, state, np.load(path))[:, :4])
        for path in (folder / "val.npy", folder / "val_positives.npy")
    )
    cosine = z @ y.T
    rank = (cosine > np.diagonal(cosine)[:, None]).sum(1)
    expected = np.where(rank < 10, 1 / np.log2(rank + 2), 0).mean()
    assert values_of(workdir)["val/ndcg10", 4] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_killed_it_goes_on_bit_for_bit(finished, folder, tmp_path):
    workdir = tmp_path / "run"
    process = test_train.start(train(workdir, folder, IDENTITY), devices=8)
    test_train.wait_for_step(workdir, 25, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert "resuming from step" in commands.here(train(workdir, folder, IDENTITY))
    assert test_train.records(workdir) == test_train.records(finished[0])
    (_, mine), (_, other) = (test_train.final_arrays(w) for w in (workdir, finished[0]))
    for one, two in zip(mine, other, strict=True):
        np.testing.assert_array_equal(one, two)


def load(folder, *overrides, arg="linear"):
    sets = [f"--config.data.path={folder}", *overrides]
    return configs.load(
        f"{CONFIG}:{arg}", [*SMALL, "--config.mesh.data=1", "--config.mesh.fsdp=8", *sets]
    )


@pytest.mark.parametrize("kind", ["linear", "residual", "rotation"])
def test_every_kind_starts_with_the_cosines_of_principal_axes(folder, kind):
    setup = experiment.from_config(load(folder, arg=kind))
    program = setup.program
    _, put_in = setup.start
    state = put_in(program.init_state(program.run_key(0)))
    x = np.load(folder / "val.npy").astype(np.float64)
    train_nd = unit(np.load(folder / "train.npy").astype(np.float64))
    _, axes = np.linalg.eigh(train_nd.T @ train_nd)
    expected = unit(x) @ axes[:, ::-1]
    found = adapt(setup, state, unit(x))
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-5)
    for m in DIMS:
        z, y = unit(found[:, :m]), unit(expected[:, :m])
        np.testing.assert_allclose(z @ z.T, y @ y.T, atol=1e-4)


@pytest.fixture(scope="module")
def rotated(tmp_path_factory, folder):
    """A short run of a rotation."""
    workdir = tmp_path_factory.mktemp("rotated") / "run"
    return workdir, commands.here(train(workdir, folder, "--config.steps=20", arg="rotation"))


@pytest.mark.slow
def test_a_trained_rotation_keeps_all_cosines_of_whole_vectors(rotated, folder):
    workdir, output = rotated
    assert "starts from the principal axes" in output
    setup, state = experiment.restored(workdir)
    assert np.abs(state["params"]["skew"]).max() > 0.01
    x = np.load(folder / "test.npy")
    z = adapt(setup, state, x)
    np.testing.assert_allclose(unit(z) @ unit(z).T, unit(x) @ unit(x).T, atol=1e-5)
    found = values_of(workdir)
    assert found["test/overlap10", WIDTH] == pytest.approx(1, abs=0.01)


def test_vectors_are_adapted_into_a_folder_that_can_be_searched(finished, folder, tmp_path, capsys):
    workdir, _ = finished
    where = ("--workdir", workdir, "--input")
    new = vectors(30, 8).astype(np.float32)
    np.save(tmp_path / "new.npy", new)
    for source, out in ((tmp_path / "new.npy", "new"), ("test", "test"), (tmp_path / "new", "two")):
        embed.main([*map(str, (*where, source, "--out", tmp_path / out, "--shard_rows", 16))])
    assert "30 vectors of 12 dims, step 60; 2 of 2 shards written" in capsys.readouterr().out
    setup, state = experiment.restored(workdir)
    for x, out in ((new, "new"), (np.load(folder / "test.npy"), "test")):
        expected = adapt(setup, state, x)
        found = open_vectors(tmp_path / out)
        np.testing.assert_allclose(found.read(0, found.rows), expected, rtol=1e-5, atol=1e-5)
    np.save(tmp_path / "narrow.npy", new[:, :5])
    argv = (*where, tmp_path / "narrow.npy", "--out", tmp_path / "other")
    with pytest.raises(UsageError, match="has 5 dims, the run adapts 12"):
        embed.main([*map(str, argv)])


def test_vectors_with_texts_for_ids(finished, folder, tmp_path):
    """They are embedded in memory; the folder of vectors numbers its rows, which is said."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    workdir, _ = finished
    z_nd = np.load(folder / "test.npy")[:5]
    names = ["e", "d", "c", "b", "a"]
    pq.write_table(pa.table({"id": names, "vector": list(z_nd)}), tmp_path / "x.parquet")
    model = mrl_jax.load(workdir)
    np.testing.assert_array_equal(model.embed(tmp_path / "x.parquet"), model.embed(z_nd))
    argv = ("--workdir", workdir, "--input", tmp_path / "x.parquet", "--out", tmp_path / "out")
    with pytest.raises(DataError, match=r"x\.parquet must hold ids as whole numbers.* holds texts"):
        embed.main([*map(str, argv)])


@pytest.mark.parametrize("run", ["finished", pytest.param("rotated", marks=pytest.mark.slow)])
def test_an_adaptor_is_exported(request, tmp_path, run):
    workdir, _ = request.getfixturevalue(run)
    argv = ["--workdir", str(workdir), "--out", str(tmp_path / "out"), "--format", "stablehlo"]
    export.main(argv)
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert about["dims"] == [*DIMS]
    content = (tmp_path / "out" / "embed.stablehlo").read_bytes()
    x = vectors(7, 3).astype(np.float32)
    found = jax_export.deserialize(bytearray(content)).call(x)["embedding"]
    setup, state = experiment.restored(workdir)
    np.testing.assert_allclose(found, adapt(setup, state, x), rtol=1e-5, atol=1e-5)


def test_a_report_shows_the_frozen_vectors_beside_the_adaptor(finished, tmp_path):
    argv = (finished[0], "--out", tmp_path / "report")
    assert "report.html" in commands.here(commands.command("mrl_jax.report", *argv))
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Nearest neighbours kept, test" in text
    table = text[text.index("Nearest neighbours kept, test") :]
    header = next(line for line in table.splitlines() if line.startswith("| dim"))
    assert [name in header for name in ("MRL", "first m dims", "random rotation to m")] == [
        True
    ] * 3


def test_a_dry_run_is_of_the_batches_of_a_run(folder):
    program = dry_run.program_of(load(folder))
    batch = experiment.from_config(load(folder)).batches(0)(0)
    for name, array in batch.items():
        shape = program.largest_batch[name]
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adaptor.kind=deep"], "config.adaptor.kind must be one of linear, residual, rotation"),
        (["adaptor.start=zero"], "config.adaptor.start must be one of identity, pca; got 'zero'"),
        (["adaptor.hidden=8"], "config.adaptor: hidden must be 0, or units of a residual adaptor"),
        (["adaptor.pairs=-1"], "config.adaptor: pairs must be >= 0, got -1"),
        (["adaptor.nearest=0"], "config.adaptor: nearest must be >= 1"),
        (["nesting.dims=2,16"], "config.nesting: nesting dim 16 is wider than the embedding (12"),
        (["head.kind=shared"], "config.head.kind of adaptor is separate"),
        (["optimizer.accumulate=2"], "config.optimizer.accumulate: vectors are compared with"),
        (["text.width=3"], "config.text.width: task adaptor does not read it"),
        (["eval.sts=x"], "config.eval.sts must be NAME=PATH,..."),
        (["eval.sts=test=x.npz"], "config.eval.sts: the name test is taken"),
        (["eval.sts=x=nowhere.npz"], "nowhere.npz must be .npz with arrays a, b and score"),
    ],
)
def test_experiments_that_cannot_run_say_why(folder, overrides, message):
    with pytest.raises((UsageError, DataError)) as error:
        experiment.from_config(load(folder, *[f"--config.{o}" for o in overrides])).check()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bad_file_is_one_line(folder, tmp_path):
    bad = np.load(folder / "test.npy")
    bad[11, 3] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    files = f"--config.data.files=train={folder / 'train.npy'},val={tmp_path / 'bad.npy'}"
    line = commands.refused(train(tmp_path / "run", folder, "--config.data.path=", files), 3)
    assert line.endswith("bad.npy: row 11 holds NaN or infinity (as float32)")
    with pytest.raises(UsageError, match="the argument must be one of linear, residual"):
        configs.load(f"{CONFIG}:mrl")


def test_the_dims_one_asks_for_are_measured_up_to_the_last():
    config = configs.load(str(CONFIG), ["--config.nesting.dims=16,64,1024"])
    nesting = Nesting(config.nesting.dims)
    assert {16, 64, 1024} <= set(common.evaluated_dims(config, nesting))
