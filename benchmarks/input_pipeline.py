"""Images per second from files to training batches, beside tf.data, OpenCV and Pillow.

    python -m benchmarks.input_pipeline            # two minutes on two cores

Reads the same JPEG files (made here, of photographs' detail), takes a random part of each, scales
it and, where the rival does, flips it. "memory" is our loader for sets that fit: decoded once,
cropped and flipped on the device. Prints a JSON line per case and a table; writes
input_pipeline.jsonl and input_pipeline.md to --out.
"""

import argparse
import concurrent.futures
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from benchmarks import harness, report
from mrl_jax.data import Augmentation, load
from mrl_jax.data.boxes import ATTEMPTS, random_box
from mrl_jax.runtime.mesh import batch_sharding, make_mesh

BATCH = 128


class Files(NamedTuple):
    """One set of files and the size of the images made of them."""

    name: str
    width: int
    height: int
    size: int
    count: int


SETS = (
    Files("32 px", 32, 32, 32, 4096),
    Files("224 px", 224, 224, 224, 768),
    Files("500 x 375 to 224 px", 500, 375, 224, 384),
)
SMOKE = Files("smoke", 40, 30, 32, 128)


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Noise whose power falls with frequency as in photographs, so that files are as large."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    spectrum = rng.normal(size=(3, *frequency.shape)) * np.exp(
        2j * np.pi * rng.random(frequency.shape)
    )
    pixels_chw = np.fft.irfft2(spectrum / np.maximum(frequency, 1 / width) ** 1.2, (height, width))
    pixels_chw = pixels_chw.mean(0, keepdims=True) + 0.3 * pixels_chw
    pixels_chw = 127 + 50 * (pixels_chw - pixels_chw.mean()) / pixels_chw.std()
    return Image.fromarray(pixels_chw.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def write(files: Files, root: pathlib.Path) -> None:
    """The files as an image folder of two classes."""
    rng = np.random.default_rng(0)
    pictures = [photograph(rng, files.width, files.height) for _ in range(32)]
    for split, count in (("train", files.count), ("val", 2)):
        for i in range(count):
            folder = root / split / f"class{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            pictures[i % 32].save(folder / f"{i:05d}.jpg", quality=90)


def rate(batches: Iterator, warm: int, seconds: float) -> float:
    """Images per second after some batches, over so many seconds."""
    for _ in range(warm):
        next(batches)
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        done += len(next(batches))
    return done / (time.perf_counter() - begin)


def ours_streamed(files: Files, root: pathlib.Path) -> Iterator:
    """Our loader for sets that do not fit."""
    data = load(
        "image_folder", path=str(root), image_size=files.size, stream=True, random_crop=0.08
    )
    batches = data.splits["train"].batches(BATCH, 0, batch_sharding(make_mesh()))
    step = 0
    while True:
        yield batches(step)["image"]
        step += 1


def ours_in_memory(files: Files, root: pathlib.Path) -> Iterator:
    """Our loader for sets that fit, with what the device does to the images."""
    data = load("image_folder", path=str(root), image_size=files.size)
    batches = data.splits["train"].batches(BATCH, 0, batch_sharding(make_mesh()))
    change = jax.jit(Augmentation(crop=0.08, flip=True))
    step = 0
    while True:
        key = jax.random.key(step)
        yield jax.block_until_ready(change(key, batches(step)["image"]))
        step += 1


def _paths(root: pathlib.Path) -> list[str]:
    return sorted(map(str, root.glob("train/*/*.jpg")))


def _random_part(width: int, height: int, rng: np.random.Generator) -> tuple[float, ...]:
    return tuple(float(e) for e in random_box(rng.random((ATTEMPTS, 4)), width, height))


def _looped(read: Callable, root: pathlib.Path, threads: int) -> Iterator:
    """Batches of `read(path, random)`, by threads or one after the other."""
    paths = _paths(root)

    def one(index):
        return read(paths[index % len(paths)], np.random.default_rng(index))

    start = 0
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        while True:
            indices = range(start, start + BATCH)
            yield np.stack(list(pool.map(one, indices) if threads > 1 else map(one, indices)))
            start += BATCH


def _flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image[:, ::-1] if rng.random() < 0.5 else image


def pillow(files: Files, root: pathlib.Path) -> Iterator:
    """Pillow in a loop: torchvision's default."""

    def read(path, rng):
        with Image.open(path) as picture:
            picture = picture.convert("RGB")
        part = tuple(map(int, _random_part(*picture.size, rng)))
        picture = picture.crop(part).resize((files.size, files.size), Image.Resampling.BILINEAR)
        return _flip(np.asarray(picture), rng)

    return _looped(read, root, 1)


def opencv(files: Files, root: pathlib.Path, threads: int = 1) -> Iterator:
    """OpenCV in a loop, as many PyTorch pipelines."""
    import cv2

    cv2.setNumThreads(0)

    def read(path, rng):
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        left, top, right, bottom = map(int, _random_part(image.shape[1], image.shape[0], rng))
        image = cv2.resize(image[top:bottom, left:right], (files.size, files.size))
        return _flip(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), rng)

    return _looped(read, root, threads)


def tf_data(files: Files, root: pathlib.Path) -> Iterator:
    """tf.data with the fused decoding of a part, as in most JAX projects."""
    import tensorflow as tf

    def read(path, index):
        data = tf.io.read_file(path)
        shape = tf.image.extract_jpeg_shape(data)
        box = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape, box, tf.stack([0, index]), area_range=(0.08, 1), max_attempts=ATTEMPTS
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        image = tf.cast(tf.image.resize(image, (files.size, files.size)), tf.uint8)
        return tf.image.stateless_random_flip_left_right(image, tf.stack([1, index]))

    paths = _paths(root)
    data = tf.data.Dataset.from_tensor_slices((paths, np.arange(len(paths), dtype=np.int32)))
    data = data.repeat().map(read, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH)
    return data.prefetch(2).as_numpy_iterator()


CASES = {
    "mrl_jax/streamed": ours_streamed,
    "mrl_jax/memory": ours_in_memory,
    "tf.data": tf_data,
    "opencv/1 thread": opencv,
    "opencv/all threads": lambda files, root: opencv(files, root, harness.threads()),
    "pillow/1 thread": pillow,
}


def measure(files: Files, rounds: int, seconds: float) -> list[dict]:
    """All cases on one set of files, in turn, a line each."""
    found: dict[str, list[float]] = {name: [] for name in CASES}
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write(files, root)
        size = np.mean([pathlib.Path(path).stat().st_size for path in _paths(root)])
        for _ in range(rounds):
            for name, make in CASES.items():
                if name in skipped:
                    continue
                try:
                    found[name].append(rate(make(files, root), 3, seconds))
                except ImportError as error:
                    skipped[name] = str(error)
    about = {"files": files.name, "kilobytes": round(size / 1e3, 1), "rounds": rounds}
    return [
        {
            "case": name,
            "skipped": skipped.get(name),
            "images_per_second": float(np.median(rates)) if rates else None,
            "all_rounds": [round(r, 1) for r in rates],
            **about,
            **harness.environment(),
        }
        for name, rates in found.items()
    ]


def table(lines: Sequence[dict]) -> str:
    """Images per second, a column per set of files."""
    sets = list(dict.fromkeys(line["files"] for line in lines))
    value = {(line["case"], line["files"]): line["images_per_second"] for line in lines}
    rows = [
        f"{report.conditions(lines[0])}\n\nMedian of {lines[0]['rounds']} rounds; files to batches "
        f"of {BATCH}, a random part of each image, flipped in half of the cases but in streamed.\n",
    ]
    rows += ["| images per second | " + " | ".join(sets) + " |", "| --- |" + " --: |" * len(sets)]
    for case in CASES:
        cells = [value[case, name] for name in sets]
        shown = ["" if cell is None else f"{cell:,.0f}" for cell in cells]
        rows.append(f"| {case} | " + " | ".join(shown) + " |")
    return "\n".join(rows) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Images per second from files to batches.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="per case and round")
    parser.add_argument("--smoke", action="store_true", help="a tiny set, for tests")
    parser.add_argument("--out", type=pathlib.Path, default=harness.ROOT / "benchmarks" / "results")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    chosen = (SMOKE,) if arguments.smoke else SETS
    progress, lines = harness.Progress(len(chosen)), []
    for files in chosen:
        progress.advance(0, files.name)
        lines += measure(files, arguments.rounds, arguments.seconds)
        progress.advance(1, "done")
    with (arguments.out / "input_pipeline.jsonl").open("w") as file:
        for line in lines:
            print(json.dumps(line), file=file)
    text = table(lines)
    (arguments.out / "input_pipeline.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
