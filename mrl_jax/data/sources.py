"""Data sets that fit in memory, decoded once: built-in digits, image folders, TFDS."""

import dataclasses
import functools
import hashlib
import pathlib
from typing import NamedTuple

import numpy as np

from mrl_jax.errors import DataError, UsageError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
SPLITS = ("train", "val", "test")


class Split(NamedTuple):
    """Examples of one split: `image` [N, H, W, C] uint8 and `label` [N] int32."""

    image: np.ndarray
    label: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A labelled image data set, checked once at the door.

    Attributes:
      name: what it is called in messages.
      splits: "train" and "val", and "test" where the source has one.
      class_names: one per class; labels index them.

    Raises:
      DataError: an empty split, images that are not uint8 of one shape, labels that are not
        int32 in [0, number of classes); names the split.
    """

    name: str
    splits: dict[str, Split]
    class_names: tuple[str, ...]

    def __post_init__(self):
        shape = self.splits["train"].image.shape[1:]
        for name, (image, label) in self.splits.items():
            where = f"{self.name}: split {name}"
            if not len(image):
                raise DataError(f"{where} has no examples")
            if image.dtype != np.uint8 or image.ndim != 4 or image.shape[1:] != shape:
                raise DataError(
                    f"{where} must hold uint8 images of shape {shape}, "
                    f"got {image.dtype} {image.shape[1:]}"
                )
            if label.dtype != np.int32 or label.shape != (len(image),):
                raise DataError(f"{where} must have one int32 label per image, got {label.shape}")
            if label.min() < 0 or label.max() >= len(self.class_names):
                raise DataError(
                    f"{where} has labels from {label.min()} to {label.max()}, "
                    f"legal are 0 to {len(self.class_names) - 1}"
                )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return self.splits["train"].image.shape[1:]

    @functools.cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(repr(self.class_names).encode())
        for name, split in sorted(self.splits.items()):
            digest.update(f"{name} {split.image.shape}".encode())
            digest.update(np.ascontiguousarray(split.image))
            digest.update(np.ascontiguousarray(split.label))
        return digest.hexdigest()[:16]

    def fingerprint(self) -> str:
        """Sixteen hex digits over all images and labels; a checkpoint remembers them."""
        return self._digest


def load(source: str, *, path: str = "", dataset: str = "", image_size: int = 32) -> Dataset:
    """Reads a data set into memory.

    Args:
      source: "digits", "image_folder" or "tfds".
      path: of image_folder, the folder; of tfds, where prepared data sets lie ("" = its default).
      dataset: of tfds, the data set's name.
      image_size: of image_folder and tfds, pixels per side that images are brought to.

    Raises:
      UsageError: unknown source, or a key the source needs is empty.
      DataError: data missing, unreadable or inconsistent; names the path.
    """
    if source == "digits":
        return _digits()
    if source not in ("image_folder", "tfds"):
        raise UsageError(f"data.source must be digits, image_folder or tfds; got {source!r}")
    if image_size < 1:
        raise UsageError(f"data.image_size must be >= 1, got {image_size}")
    needed, value = ("path", path) if source == "image_folder" else ("dataset", dataset)
    if not value:
        raise UsageError(f"data.source {source} needs --config.data.{needed}=...")
    if source == "image_folder":
        return _image_folder(pathlib.Path(path), image_size)
    return _tfds(dataset, path, image_size)


def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    # Pixels are 0 to 16.
    image = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    label = digits.target.astype(np.int32)
    # Fixed for all seeds of a study: 60 % train, 20 % val, 20 % test, each class in proportion.
    train, rest = train_test_split(
        np.arange(len(label)), train_size=0.6, stratify=label, random_state=0
    )
    val, test = train_test_split(rest, train_size=0.5, stratify=label[rest], random_state=0)
    rows = dict(zip(SPLITS, (train, val, test), strict=True))
    splits = {name: Split(image[i], label[i]) for name, i in rows.items()}
    return Dataset("digits", splits, tuple(str(k) for k in range(10)))


def _square(picture, size: int) -> np.ndarray:
    """An RGB square: the short side scaled to `size`, the middle cut out."""
    from PIL import Image

    width, height = picture.size
    scale = size / min(width, height)
    picture = picture.convert("RGB").resize(
        (max(size, round(width * scale)), max(size, round(height * scale))),
        Image.Resampling.BICUBIC,
    )
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)), np.uint8)


def _image_folder(root: pathlib.Path, size: int) -> Dataset:
    from PIL import Image

    layout = f"expected {root}/train/CLASS/*.jpg and {root}/val/CLASS/*.jpg (test is optional)"
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        raise DataError(f"image folder {root} lacks a train or val folder; {layout}")
    classes = tuple(sorted(p.name for p in (root / "train").iterdir() if p.is_dir()))
    if len(classes) < 2:
        raise DataError(f"{root}/train has {len(classes)} class folders, needs two; {layout}")
    splits = {}
    for name in SPLITS:
        if not (root / name).is_dir():
            continue
        unknown = sorted({p.name for p in (root / name).iterdir() if p.is_dir()} - set(classes))
        if unknown:
            raise DataError(f"{root / name} has class {unknown[0]!r}, which train has not")
        images, labels = [], []
        for index, label in enumerate(classes):
            for file in sorted((root / name / label).glob("*")):
                if file.suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                try:
                    with Image.open(file) as picture:
                        images.append(_square(picture, size))
                except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                    raise DataError(f"cannot read image {file}: {error}") from error
                labels.append(index)
        if not images:
            raise DataError(f"{root / name} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        splits[name] = Split(np.stack(images), np.array(labels, np.int32))
    return Dataset(str(root), splits, classes)


def _tfds(name: str, path: str, size: int) -> Dataset:
    import tensorflow_datasets as tfds
    from PIL import Image

    prepare = (
        'prepare it once (pip install "mrl_jax[tf]"): tfds build '
        f"{name} --file_format=array_record" + (f" --data_dir={path}" if path else "")
    )
    try:
        builder = tfds.builder(name, data_dir=path or None)
        label = builder.info.features["label"]
        sources = {
            split: builder.as_data_source(split)
            for split in ("train", "validation", "test")
            if split in builder.info.splits
        }
    except Exception as error:  # TFDS raises many kinds for "not there" and "wrong format"
        reason = str(error).strip().partition("\n")[0][:200]
        raise DataError(f"TFDS data set {name!r}: {reason}; {prepare}") from error
    if not sources:
        raise DataError(f"TFDS data set {name!r} is not prepared in {builder.data_dir}; {prepare}")
    if "train" not in sources or len(sources) < 2:
        raise DataError(f"TFDS data set {name!r} needs a train and a validation or test split")
    splits = {}
    for split, source in sources.items():
        examples = [source[i] for i in range(len(source))]
        images = [_square(Image.fromarray(np.squeeze(e["image"])), size) for e in examples]
        labels = np.array([e["label"] for e in examples], np.int32)
        splits["val" if split == "validation" else split] = Split(np.stack(images), labels)
    # Many data sets have two splits only: then there is nothing to tune on but the test split.
    splits.setdefault("val", splits.get("test"))
    return Dataset(name, splits, tuple(label.names))
