"""From the bytes of an image file to RGB pixels: one policy for every source.

- Grey becomes RGB with three equal channels; 16-bit values 0 to 65535 become 0 to 255.
- Transparent pixels (alpha, or a palette's transparent colour) are laid on white, as on paper; a
  single transparent colour of 16-bit images is not looked for.
- CMYK becomes RGB; of an animation the first frame counts.
- EXIF orientation is applied: photos stand as a viewer shows them. Torchvision and tf.data ignore
  it; of ImageNet it concerns a handful of files.
- A file is refused with a `DataError` that names it if its content is not JPEG, PNG, BMP, WebP or
  PNM, if it is truncated or its decoder finds it broken, or if it has more than `MAX_PIXELS`, which
  its header tells before anything is decoded. Decoders often do not notice wrong bytes inside the
  data of a JPEG, which then show as wrong pixels.
- Any size from 1x1 on is legal: what is too small is enlarged.
"""

import contextlib
import io
import math
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from mrl_jax.data.boxes import Box, centre_box
from mrl_jax.errors import DataError
from mrl_jax.store import inputs

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".pgm", ".ppm"}
IMAGE_SUFFIXES |= {".pbm", ".pnm"}
# Images that are not read: leaving them out without a word would lose data.
OTHER_SUFFIXES = {".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".pfm"}
LEGAL = ", ".join(sorted(IMAGE_SUFFIXES))  # for messages
MAX_PIXELS = 2**26
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM")  # PPM: all of PNM
_OTHER_FORMATS = ("GIF", "TIFF", "AVIF", "JPEG2000")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = tuple(_TURNS[key] for key in (5, 6, 7, 8))

# Many threads decode images already; OpenCV's own threads would only compete with them.
cv2.setNumThreads(1)

# (width, height) of the upright image -> the part that is wanted and the (width, height) it gets.
Crop = Callable[[int, int], tuple[Box, tuple[int, int]]]


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"cannot read image {where}: its content is not JPEG, PNG, BMP, WebP, PGM or PPM"
        ) from error
    except Exception as error:  # decoders raise dozens of kinds for what a broken file can hold
        raise DataError(f"cannot read image {where}: {error or type(error).__name__}") from error


def format_of(path: str) -> str | None:
    """The image format that the first bytes of a file show; None if it is not an image."""
    try:
        inputs.check_file(path)
        with Image.open(path, formats=_FORMATS + _OTHER_FORMATS) as picture:
            return picture.format
    except Exception:  # each format's parser raises errors of its own
        return None


def _open(data: bytes, where: str) -> Image.Image:
    picture = Image.open(io.BytesIO(data), formats=_FORMATS)
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"image {where} has {width} x {height} pixels, at most {MAX_PIXELS:,} are read"
        )
    if picture.mode == "F":
        raise DataError(f"image {where} holds floating point numbers, whose range is not known")
    if picture.format != "JPEG":
        picture.load()  # other formats may hold their metadata behind the pixels
    return picture


def _turn(picture: Image.Image) -> Image.Transpose | None:
    try:
        # ImageMagick writes EXIF into a PNG as a text chunk; Pillow does not know its older name.
        if (older := picture.info.get("Raw profile type APP1")) is not None:
            picture.info.setdefault("Raw profile type exif", older)
        return _TURNS.get(picture.getexif().get(_ORIENTATION))
    except Exception:  # metadata that cannot be read says nothing; the pixels may be fine
        return None


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I", "I;16", "I;16L", "I;16B"):  # 16-bit grey, by version of Pillow
        value_hw = np.asarray(picture).astype(np.uint32)
        picture = Image.fromarray(((value_hw * 255 + 32767) // 65535).astype(np.uint8))
    if picture.has_transparency_data:
        ink = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", ink.size, "white"), ink).convert("RGB")
    picture.load()
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _shrink(picture: Image.Image, factor: float) -> int:
    """Lets the JPEG decoder leave out detail: 1, 2, 4 or 8 times smaller, at most `factor`."""
    times = max((k for k in (1, 2, 4, 8) if k <= factor), default=1)
    width, height = picture.size
    if times > 1:
        # Only the JPEG decoder can do so, not for every file; a side keeps at least one pixel.
        picture.draft("RGB", (max(1, width // times), max(1, height // times)))
    return next(
        k for k in (1, 2, 4, 8) if picture.size == (math.ceil(width / k), math.ceil(height / k))
    )


def render(data: bytes, where: str, crop: Crop, *, detail: float = 2.0) -> np.ndarray:
    """A part of an image at the size that is wanted, RGB uint8 [height, width, 3].

    Bilinear, over all pixels that an output pixel covers. What lies beside the part counts at its
    edges, so that "resize, then cut" and "cut while resizing" are the same.

    A JPEG is decoded 2, 4 or 8 times smaller where that leaves at least `detail` pixels per output
    pixel and side. 1 is fastest, 2 cannot be told from decoding all of it.

    Raises:
      DataError: see the policy above; names `where`.
    """
    with _naming(where):
        picture = _open(data, where)
        turn = _turn(picture)
    width, height = picture.size
    box, size = crop(*((height, width) if turn in _SIDEWAYS else (width, height)))
    with _naming(where):
        least = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
        times = _shrink(picture, least / detail)
        picture = _rgb(picture)
        if turn is not None:
            picture = picture.transpose(turn)
        part = tuple(edge / times for edge in box)
        return np.asarray(picture.resize(size, Image.Resampling.BILINEAR, part))


def render_fast(data: bytes, where: str, crop: Crop) -> np.ndarray:
    """As `render` in half the time, for training: cut at whole pixels and resized less smoothly.

    A JPEG is decoded 2, 4 or 8 times smaller where that leaves at least a pixel per output pixel,
    by libjpeg-turbo's quick transforms, and an output pixel is made of the four nearest ones, as in
    tf.data. Other formats, turned or unusual JPEGs and what the quick decoder refuses go through
    `render`, whose policy holds here as well.
    """
    with _naming(where):
        picture = _open(data, where)
        if picture.format != "JPEG" or picture.mode != "RGB" or _turn(picture) is not None:
            return render(data, where, crop)
    width, height = picture.size
    box, size = crop(width, height)
    least = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
    times = max((k for k in (1, 2, 4, 8) if k <= least), default=1)
    try:
        pixels_hwc = simplejpeg.decode_jpeg(
            data,
            min_height=math.ceil(height / times),
            min_width=math.ceil(width / times),
            min_factor=times,
            fastdct=True,
            fastupsample=True,
        )
    except ValueError:  # Pillow may read it all the same, or our policy refuses it
        return render(data, where, crop)
    left, top, right, bottom = (edge / times for edge in box)
    part_hwc = pixels_hwc[int(top) : math.ceil(bottom), int(left) : math.ceil(right)]
    return cv2.resize(part_hwc, size, interpolation=cv2.INTER_LINEAR)


def decode(data: bytes, where: str) -> np.ndarray:
    """All pixels of an image file, RGB uint8 [height, width, 3]; raises as `render`."""
    return render(data, where, lambda width, height: ((0, 0, width, height), (width, height)))


def centre_square(data: bytes, where: str, size: int, share: float = 1.0) -> np.ndarray:
    """The middle of an image as a square [size, size, 3] of uint8; raises as `render`.

    A `share` of the short side is kept; 224/256 is "resize to 256, cut out 224".
    """
    return render(data, where, lambda w, h: (centre_box(w, h, share), (size, size)))


def dimensions(data: bytes, where: str) -> tuple[int, int]:
    """(width, height) as stored in the file, without decoding a JPEG; raises as `render`."""
    with _naming(where):
        return _open(data, where).size


def fit_short_side(data: bytes, where: str, short_side: int) -> np.ndarray:
    """The whole image with its short side scaled to `short_side` pixels; raises as `render`."""

    def crop(width, height):
        scale = short_side / min(width, height)
        return (0, 0, width, height), (round(width * scale), round(height * scale))

    return render(data, where, crop)
