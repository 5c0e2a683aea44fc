import json
import os
import shutil
import signal
import subprocess
import time

import commands
import jax
import numpy as np
import pytest
from PIL import Image

from mrl_jax import embed, experiment
from mrl_jax.embed import Job, Request
from mrl_jax.errors import CheckpointError, DataError, NonFiniteError, UsageError
from mrl_jax.evaluators.subject import Instruments, Subject
from mrl_jax.record import folder as workdir
from mrl_jax.runtime.checkpoint import Checkpoints
from mrl_jax.runtime.step import evaluated
from mrl_jax.store.vectors import open_vectors


@pytest.fixture
def run(digits_run):
    return digits_run[0]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A run on colour images, and the folder of the images."""
    base = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for k, name in enumerate(("cat", "dog")):
            (base / "data" / split / name).mkdir(parents=True)
            for i in range(6):
                pixels_hwc = rng.integers(0, 128, (20, 16, 3)) + 127 * k
                image = Image.fromarray(pixels_hwc.astype(np.uint8))
                image.save(base / "data" / split / name / f"{i}.png")
    config = commands.ROOT / "configs" / "image_folder.py:mrl_e"
    keys = (f"--config.data.path={base / 'data'}", "--config.data.image_size=16")
    argv = ("--config", config, "--workdir", base / "run", *commands.SMALL, *keys)
    commands.here(commands.command("mrl_jax.train", *argv, "--config.steps=9"))
    return base / "run", base / "data"


def arguments(folder, source, out, *more):
    return ["--workdir", str(folder), "--input", str(source), "--out", str(out), *map(str, more)]


def command(*args):
    return commands.command("mrl_jax.embed", *arguments(*args))


def vectors_of(out):
    vectors = open_vectors(out)
    return vectors.read(0, vectors.rows)


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


def wait_for(count, out, process):
    """Waits until so many shards are finished."""
    for _ in range(6000):
        if len(list(out.glob("vectors-*.npy"))) >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    pytest.fail("nothing was written")


def test_vectors_of_evaluation(run, tmp_path, capsys):
    setup, state = experiment.restored(run)
    tools = Instruments(setup.program.task, setup.program.mesh, 256, (8,))
    subject = Subject(tools, setup.dataset, *evaluated(state), seed=0)
    for split in ("train", "test"):
        out = tmp_path / split
        embed.main(arguments(run, split, out, "--shard_rows", 512))
        vectors = open_vectors(out)
        np.testing.assert_array_equal(vectors_of(out), subject.embedded(split).z_nd)
        np.testing.assert_array_equal(vectors.ids, np.arange(vectors.rows))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"1078 vectors of 8 dims, step 60; 3 of 3 shards written, 0 were there; {tmp_path}/train",
        f"360 vectors of 8 dims, step 60; 1 of 1 shards written, 0 were there; {tmp_path}/test",
    ]
    manifest = json.loads((tmp_path / "train" / "manifest.json").read_text())
    assert (manifest["schema"], manifest["rows"], manifest["width"]) == (1, 1078, 8)
    assert [shard["rows"] for shard in manifest["shards"]] == [512, 512, 54]
    made_from = manifest["made_from"]
    assert made_from["step"] == 60
    assert made_from["input"] == f"split train {setup.dataset.fingerprint('train')}"
    assert made_from["data"] == setup.dataset.training_fingerprint()


def test_prefixes_of_unit_length(run, photos, tmp_path, capsys):
    embed.main(arguments(run, "val", tmp_path / "all"))
    z_nd = vectors_of(tmp_path / "all").astype(np.float64)
    embed.main(arguments(run, "val", tmp_path / "cut", "--dim", 4))
    np.testing.assert_array_equal(vectors_of(tmp_path / "cut"), z_nd[:, :4])
    assert "warning" not in capsys.readouterr().out
    embed.main(arguments(run, "val", tmp_path / "unit", "--dim", 3, "--normalize"))
    assert capsys.readouterr().out.startswith(
        "warning: a prefix of 3 dims was not trained, 2, 4, 8 were\n359 vectors of 3 dims"
    )
    norm_n1 = np.linalg.norm(z_nd[:, :3], axis=1, keepdims=True)
    unit_nd = vectors_of(tmp_path / "unit")
    np.testing.assert_allclose(unit_nd, z_nd[:, :3] / np.where(norm_n1, norm_n1, 1), rtol=1e-6)
    # MRL-E has one classifier for all prefixes.
    assert not Job(Request(photos[0], "val", dim=3)).notes


def test_parquet_holds_the_same(photos, tmp_path):
    folder, data = photos
    for kind in ("npy", "parquet"):
        argv = arguments(folder, data / "train", tmp_path / kind, "--format", kind)
        embed.main([*argv, "--shard_rows", "5"])
    np.testing.assert_array_equal(vectors_of(tmp_path / "parquet"), vectors_of(tmp_path / "npy"))
    names = (tmp_path / "npy" / "names.txt").read_text().splitlines()
    assert names == [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(6)]
    import pyarrow.parquet

    files = sorted((tmp_path / "parquet").glob("*.parquet"))
    tables = [pyarrow.parquet.read_table(file) for file in files]
    assert [file.name for file in files] == [f"vectors-{i:05d}-of-00003.parquet" for i in range(3)]
    assert [name for table in tables for name in table["name"].to_pylist()] == names
    assert [i for table in tables for i in table["id"].to_pylist()] == list(range(12))
    assert str(tables[0]["vector"].type) == "fixed_size_list<element: float>[8]"


def test_images_at_any_depth_are_prepared_as_in_evaluation(photos, tmp_path):
    folder, data = photos
    embed.main(arguments(folder, "val", tmp_path / "split"))
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    shutil.copy(data / "val" / "dog" / "3.png", tmp_path / "mine" / "deep" / "x.png")
    shutil.copy(data / "val" / "cat" / "1.png", tmp_path / "mine" / "a.png")
    embed.main(arguments(folder, tmp_path / "mine", tmp_path / "out"))
    assert (tmp_path / "out" / "names.txt").read_text() == "a.png\ndeep/x.png\n"
    expected = vectors_of(tmp_path / "split")[[1, 9]]
    np.testing.assert_allclose(vectors_of(tmp_path / "out"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_goes_on_after_kill(run, tmp_path):
    out = tmp_path / "out"
    argv = command(run, "train", out, "--shard_rows", 4)
    process = subprocess.Popen(
        argv,
        cwd=commands.ROOT,
        env=commands.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with process:
        wait_for(20, out, process)
        process.send_signal(signal.SIGKILL)
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("vectors-*.npy")}
    assert 20 <= len(finished) < 270
    with pytest.raises(DataError, match="is unfinished: call"):
        open_vectors(out)
    output = commands.succeed(argv)
    # The shard that was there but not yet in the manifest may be written again.
    there = int(output.partition(" were there")[0].rpartition(" ")[2])
    assert len(finished) - 1 <= there <= len(finished)
    kept = [name for name, when in finished.items() if (out / name).stat().st_mtime_ns == when]
    assert len(kept) == there
    commands.succeed(command(run, "train", tmp_path / "whole", "--shard_rows", 4))
    assert contents(out) == contents(tmp_path / "whole")


def test_damaged_shards_are_written_again(run, tmp_path, capsys):
    argv = arguments(run, "train", tmp_path / "out", "--shard_rows", 200)
    embed.main(argv)
    before = contents(tmp_path / "out")
    path = tmp_path / "out" / "vectors-00001-of-00006.npy"
    damaged = bytearray(before[path.name])
    damaged[-5] ^= 1
    path.write_bytes(damaged)
    (tmp_path / "out" / "ids-00004-of-00006.npy").unlink()
    capsys.readouterr()
    embed.main(argv)
    assert "2 of 6 shards written, 4 were there" in capsys.readouterr().out
    assert contents(tmp_path / "out") == before
    embed.main(argv)
    assert "0 of 6 shards written, 6 were there" in capsys.readouterr().out


@pytest.mark.slow  # compiles in three processes
def test_two_processes_write_what_one_writes(photos, tmp_path):
    folder, data = photos
    launcher = (commands.sys.executable, "launch/local.py", "--processes", "2", "--")
    both, one = tmp_path / "both", tmp_path / "one"
    argv = command(folder, data / "train", both, "--shard_rows", 5)
    output = commands.succeed([*launcher, *argv])
    assert output.count("12 vectors of 8 dims") == 1
    commands.succeed(command(folder, data / "train", one, "--shard_rows", 5), devices=2)
    assert contents(both) == contents(one)
    (both / "ids-00001-of-00003.npy").unlink()  # the first process says which are to be written
    assert "1 of 3 shards written" in commands.succeed([*launcher, *argv])
    assert contents(both) == contents(one)
    # What only the first process finds ends both at once.
    begin = time.perf_counter()
    done = commands.run([*launcher, *commands.impatient([*argv, "--dim", "4"])])
    assert done.returncode == 2
    assert done.stdout.count("holds other vectors") == 1
    others = done.stdout.count("error: another process has failed with exit code 2")
    assert done.stdout.count("error: ") == 1 + others
    assert time.perf_counter() - begin < 100  # it would be 300 s


def test_a_folder_of_other_vectors_is_refused(run, photos, tmp_path):
    out = tmp_path / "out"
    argv = arguments(run, "val", out)
    embed.main(argv)
    before = contents(out)
    for changed, message in (
        (["--dim", "4"], "dim: 8 -> 4"),
        (["--normalize"], "normalize: False -> True"),
        (["--format", "parquet"], "format: npy -> parquet"),
        (["--shard_rows", "100"], "shard_rows: 359 -> 100"),
        (["--input", "test"], r"input: split val \w+ -> split test"),
        (["--workdir", str(photos[0])], "config: "),
    ):
        with pytest.raises(UsageError, match=f"out holds other vectors .*{message}"):
            embed.main([*argv, *changed])
    assert contents(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").touch()
    with pytest.raises(UsageError, match=r"mine holds photo\.png and no manifest\.json"):
        embed.main(arguments(run, "val", tmp_path / "mine"))
    assert os.listdir(tmp_path / "mine") == ["photo.png"]
    with workdir.locked(out), pytest.raises(UsageError, match="in use"):
        embed.main(argv)
    (out / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        embed.main(argv)


def test_refusals(run, photos, tmp_path):
    out = tmp_path / "out"
    for folder, source, more, message in (
        (run, "val", ["--dim", 9], "dim must be 1 to 8, got 9"),
        (run, "val", ["--dim", 0], "dim must be 1 to 8, got 0"),
        (run, "val", ["--shard_rows", 0], "--shard_rows must be >= 1"),
        (run, "val", ["--format", "csv"], "invalid choice: 'csv'"),
        (run, "elsewhere", [], r"a split \(train, val, test\) or a folder of images"),
        (run, photos[1], [], "pictures are read as RGB, those of this network are grey"),
        (run, "val", ["--config.model.width=8"], "model.width: 16 -> 8"),
        (tmp_path / "none", "val", [], "holds no run"),
    ):
        with pytest.raises(UsageError, match=message):
            embed.main(arguments(folder, source, out, *more))
    with pytest.raises(DataError, match="has no images"):
        embed.main(arguments(photos[0], tmp_path, out))
    bare = shutil.copytree(run, tmp_path / "bare")
    shutil.rmtree(bare / "ckpt")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        embed.main(arguments(bare, "val", out))
    assert not out.exists()
    assert "holds no run" in commands.fail(command(tmp_path / "none", "val", out), 2)


def test_not_a_number(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    setup, state = experiment.restored(folder)
    state["params"] = jax.tree.map(lambda x: x * 1e30, state["params"])
    state["step"] += 1
    checkpoints = Checkpoints(folder / "ckpt", setup.config.checkpoint.keep)
    checkpoints.save(int(state["step"]), state, setup.remembered())
    checkpoints.close()
    out = tmp_path / "out"
    with pytest.raises(NonFiniteError, match="the embedding of image 0 holds NaN or infinity"):
        embed.main(arguments(folder, "val", out))
    assert not list(out.glob("vectors-*"))
    assert os.listdir(out)
