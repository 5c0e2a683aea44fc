"""What a trained image network reads: images, as files, as pictures or as pixels."""

import dataclasses
import functools
import io
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np
from PIL import Image

from mrl_jax.data import Split, Stream
from mrl_jax.data.folder import Chosen, Record
from mrl_jax.data.images import IMAGE_SUFFIXES
from mrl_jax.data.remarks import Remarks
from mrl_jax.data.tree import open_tree
from mrl_jax.errors import DataError, UsageError
from mrl_jax.runtime.rows import Embed, Rows, in_order
from mrl_jax.tasks import inputs
from mrl_jax.tasks.image_encoder import scaled

_OF_PNG = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")  # modes that it can hold


if TYPE_CHECKING:  # it needs packages that models of our own do without
    from mrl_jax.interop.image_folder import ImageFolder


@dataclasses.dataclass(frozen=True)
class Inputs(inputs.Inputs):
    """Images, prepared as in evaluation; see `tasks.inputs.Inputs`.

    Attributes:
      crop: share of the short side that is kept of a picture.
      threads: that decode pictures; 0 = one per core.
    """

    unit: ClassVar[str] = "image"
    legal: ClassVar[str] = (
        "a folder of images, a list of files or of PIL images, or an array of uint8"
    )
    crop: float = 1.0
    threads: int = 0

    @classmethod
    def of_run(cls, setup: Any, params: Any) -> "Inputs":
        """Those of a run."""
        del params
        options = setup.config.data
        spec = {"image": (("b", *setup.program.task.image_shape), np.dtype(np.uint8))}
        return cls(spec, crop=options.eval_crop, threads=options.threads)

    @classmethod
    def of_folder(cls, folder: "ImageFolder") -> "Inputs":
        """Those of a network and what belongs to it."""
        spec = {"image": (("b", folder.size, folder.size, 3), np.dtype(np.uint8))}
        return cls(spec, crop=folder.crop)

    @classmethod
    def of_export(cls, about: Mapping[str, Any], folder: pathlib.Path, **more: Any) -> "Inputs":
        """Those of an exported folder, whose about.json says this."""
        return super().of_export(about, folder, crop=about["preprocessing"]["crop_share"], **more)

    def about(self, setup: Any, form: str) -> dict[str, Any]:
        """What is done to an image file, for about.json."""
        task = setup.program.task
        return {
            "preprocessing": preprocessing(self._shape, self.crop),
            # Apart from the preprocessing, because who normalises twice gets wrong numbers.
            "normalization": {
                "applied_by": "caller" if form == "safetensors" else "graph",
                "mean": list(task.mean),
                "std": list(task.std),
            },
        }

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.spec["image"][0][1:]

    def fits(self, items: Any) -> bool:
        """Whether these look like images; strings do where all of them name files."""
        if isinstance(items, Split | Stream):
            return True
        if isinstance(items, np.ndarray | jax.Array):
            return items.dtype == np.uint8
        if isinstance(items, str | os.PathLike):
            return pathlib.Path(items).is_dir()
        kinds = Image.Image | os.PathLike
        try:
            return all(isinstance(item, kinds) or _names_file(item) for item in items)
        except TypeError:
            return False

    def open(self, items: Any) -> Rows:
        """Checks images.

        Args:
          items: a folder, searched at any depth; a list of paths and PIL images; pixels
            [N, H, W, C] uint8 of the shape that the network reads; or a split of a run.

        Raises:
          UsageError: something else, or pictures for a network of grey images.
          DataError: a folder without images, or a file that is not there. What is wrong with the
            content of a file shows when it is read.
        """
        if isinstance(items, Split):
            return Rows(items.examples, inputs.reader({"image": items.image}))
        if isinstance(items, Stream):
            return _of_stream(items)
        if isinstance(items, np.ndarray | jax.Array):
            return super().open(items)
        size, _, channels = self._shape
        if isinstance(items, str | os.PathLike):
            root, remarks = pathlib.Path(items), Remarks()
            if not root.is_dir():
                raise UsageError(f"{root} is not a folder of images; legal: {self.legal}")
            records: Any = open_tree(root, remarks)
        else:
            records, remarks = _Pictures.of(items, self.legal), Remarks()
        if channels != 3:
            raise UsageError(
                "pictures are read as RGB, those of this network are grey: give an array of uint8 "
                f"[N, {', '.join(map(str, self._shape))}]"
            )
        stream = Stream(records, size, eval_crop=self.crop, threads=self.threads)
        return dataclasses.replace(
            _of_stream(stream),
            names=records.names,
            source=lambda: f"images {records.fingerprint()}",
            notes=tuple(remarks.lines()),
        )


def preprocessing(shape: Sequence[int], crop_share: float) -> dict[str, Any]:
    """How an image file becomes uint8 pixels [H, W, C], see `data.images.centre_square`."""
    height, width, channels = shape
    return {
        "orientation": "exif",
        "transparent": "white",
        "color": "RGB" if channels == 3 else "L",
        "crop": "center_square",
        "crop_share": crop_share,
        "size": [height, width],
        "resample": "bilinear",
        "antialias": True,
        "layout": "NHWC",
        "dtype": "uint8",
        "range": [0, 255],
    }


def _names_file(item: Any) -> bool:
    if not isinstance(item, str):
        return False
    # A file that is missing would else be embedded as the text that its name is.
    return item.lower().endswith(tuple(IMAGE_SUFFIXES)) or os.path.isfile(item)


def _of_stream(stream: Stream) -> Rows:
    def read(first, last, batch_size, sharding):
        records = Chosen(stream.records, np.arange(first, last))
        part = dataclasses.replace(stream, records=records)
        return in_order(part.padded(batch_size, sharding), last - first)

    return Rows(stream.examples, read)


@dataclasses.dataclass(frozen=True)
class _Pictures:
    """Records of image files and of PIL images; `names` are for messages."""

    pictures: tuple[pathlib.Path | Image.Image, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, items: Iterable[Any], legal: str) -> "_Pictures":
        try:
            items = tuple(items)
        except TypeError:
            raise UsageError(f"images must be {legal}, got {inputs.listed_kinds(items)}") from None
        found = []
        for row, item in enumerate(items):
            if isinstance(item, str | os.PathLike):
                found.append(pathlib.Path(item))
                if not found[-1].is_file():
                    raise DataError(f"image {row}: there is no file {item}")
            elif isinstance(item, Image.Image):
                found.append(item)
            else:
                kind = inputs.listed_kinds(item)
                raise UsageError(f"image {row} must be a file or a PIL image, got {kind}")
        names = (
            str(x) if isinstance(x, pathlib.Path) else f"image {i}" for i, x in enumerate(found)
        )
        return cls(tuple(found), tuple(names))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, row: int) -> Record:
        picture, name = self.pictures[row], self.names[row]
        try:
            if isinstance(picture, pathlib.Path):
                return Record(picture.read_bytes(), 0, name)
            file = io.BytesIO()
            if picture.mode == "F":
                raise ValueError("it holds floating point numbers, whose range is not known")
            # As a file, so that all that holds for files does: orientation, transparency, grey.
            exif = picture.getexif()
            if picture.mode not in _OF_PNG:
                picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
            picture.save(file, "PNG", compress_level=1, exif=exif)
            return Record(file.getvalue(), 0, name)
        except Exception as error:  # Pillow raises dozens of kinds for what a picture can hold
            reason = getattr(error, "strerror", None) or error or type(error).__name__
            raise DataError(f"cannot read {name}: {reason}") from error


def embed_of(folder: "ImageFolder") -> Embed:
    """What embeds a batch of `image` [B, H, W, 3] by a network and its projection."""

    @jax.jit
    def embed(params, projection, batch):
        image_bhwc = scaled(batch["image"], folder.mean, folder.std)
        z_bd = folder.backbone.apply({"params": params}, image_bhwc) @ projection["kernel"]
        return z_bd + projection["bias"][None] if "bias" in projection else z_bd

    return functools.partial(embed, *jax.device_put((folder.params, folder.projection)))
