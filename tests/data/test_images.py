import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from mrl_jax.data.images import (
    MAX_PIXELS,
    centre_square,
    decode,
    dimensions,
    fit_short_side,
    render,
    render_fast,
)
from mrl_jax.errors import DataError


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(width=40, height=30):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)


def test_rgb_is_read_as_it_is():
    pixels = gradient()
    np.testing.assert_array_equal(decode(file_of(Image.fromarray(pixels)), "x"), pixels)


@pytest.mark.parametrize("size", [(65, 700), (9, 100), (33, 500), (81, 900), (15, 15), (1, 64)])
@pytest.mark.parametrize("small", [1, 2, 4, 6])
def test_a_narrow_jpeg_becomes_small(size, small):
    data = file_of(Image.new("RGB", size, (10, 200, 30)), "JPEG", quality=95)
    for pixels in (centre_square(data, "x", small), fit_short_side(data, "x", small)):
        assert min(pixels.shape[:2]) == small
        assert np.abs(pixels.astype(int) - (10, 200, 30)).max() < 8


def test_what_is_no_image_says_what_would_be_legal():
    with pytest.raises(DataError, match="x: its content is not JPEG, PNG, BMP, WebP, PGM or PPM"):
        decode(b"GIF89a", "x")


def test_grey_becomes_three_equal_channels():
    grey = gradient()[..., 0]
    found = decode(file_of(Image.fromarray(grey)), "x")
    np.testing.assert_array_equal(found, np.repeat(grey[..., None], 3, 2))


def test_sixteen_bits_become_eight_by_their_range():
    value = np.array([[0, 257, 65535], [128, 32768, 1000]], np.uint16)
    found = decode(file_of(Image.fromarray(value)), "x")
    np.testing.assert_array_equal(found[..., 0], np.round(value / 257).astype(np.uint8))


def test_transparency_is_laid_on_white():
    ink = np.zeros((2, 2, 4), np.uint8)
    ink[0, 0] = (255, 0, 0, 255)
    ink[0, 1] = (255, 0, 0, 0)
    ink[1] = (0, 0, 0, 128)
    found = decode(file_of(Image.fromarray(ink)), "x")
    assert found[0, 0].tolist() == [255, 0, 0]
    assert found[0, 1].tolist() == [255, 255, 255]
    assert abs(int(found[1, 0, 0]) - 127) <= 1


def test_palette_with_a_transparent_colour():
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    assert decode(file_of(picture), "x").tolist() == [[[10, 20, 30], [200, 100, 50]]]
    clear = decode(file_of(picture, transparency=1), "x")
    assert clear.tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_cmyk_jpeg_becomes_rgb():
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    found = decode(file_of(picture, "JPEG", quality=95), "x")
    assert found.shape == (16, 16, 3)
    assert found.mean((0, 1)) == pytest.approx((255, 0, 0), abs=12)


def test_photos_stand_as_a_viewer_shows_them():
    pixels = gradient(8, 4)
    exif = Image.Exif()
    for orientation, turn in (
        (1, lambda p: p),
        (3, lambda p: p[::-1, ::-1]),
        (6, lambda p: p.swapaxes(0, 1)[:, ::-1]),
        (8, lambda p: p.swapaxes(0, 1)[::-1]),
    ):
        exif[0x0112] = orientation
        data = file_of(Image.fromarray(pixels), "PNG", exif=exif)
        np.testing.assert_array_equal(decode(data, "x"), turn(pixels))
        # A plan is made for the image as it stands.
        shape = centre_square(data, "x", 4).shape
        assert shape == (4, 4, 3)


@pytest.mark.parametrize("name", ["exif", "APP1"])
@pytest.mark.parametrize("compressed", [False, True])
def test_imagemagick_writes_the_orientation_as_a_text(name, compressed):
    """As `convert photo.jpg photo.png` of its releases before PNG had a chunk for it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = exif.tobytes()
    lines = [content.hex()[i : i + 72] for i in range(0, 2 * len(content), 72)]
    about = PngImagePlugin.PngInfo()
    text = "\n".join(["", name, f"{len(content):8d}", *lines, ""])
    about.add_text(f"Raw profile type {name}", text, zip=compressed)
    pixels = gradient(8, 4)
    data = file_of(Image.fromarray(pixels), "PNG", pnginfo=about)
    upright = pixels.swapaxes(0, 1)[:, ::-1]
    np.testing.assert_array_equal(decode(data, "x"), upright)
    np.testing.assert_array_equal(
        render_fast(data, "x", lambda w, h: ((0, 0, w, h), (w, h))), upright
    )
    if name == "exif":
        opened = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(np.asarray(opened), upright)


def test_a_broken_text_says_nothing_of_the_orientation():
    about = PngImagePlugin.PngInfo()
    about.add_text("Raw profile type exif", "\nexif\n  9\nno hex")
    pixels = gradient(8, 4)
    data = file_of(Image.fromarray(pixels), "PNG", pnginfo=about)
    np.testing.assert_array_equal(decode(data, "x"), pixels)


def test_grey_maps_use_their_own_range():
    header = b"P5\n2 1\n%d\n"
    assert decode(header % 255 + bytes([0, 200]), "x")[0, :, 0].tolist() == [0, 200]
    assert decode(header % 100 + bytes([0, 100]), "x")[0, :, 0].tolist() == [0, 255]
    assert decode(header % 65535 + bytes([0, 0, 255, 255]), "x")[0, :, 0].tolist() == [0, 255]
    assert decode(b"P1\n2 1\n1 0\n", "x")[0, :, 0].tolist() == [0, 255]
    with pytest.raises(DataError, match="x holds floating point numbers"):
        decode(b"Pf\n1 1\n-1.0\n" + bytes(4), "x")


def test_animations_show_their_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = file_of(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode(data, "x")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1)])
def test_tiny_images_are_enlarged(shape):
    picture = Image.new("RGB", shape, (10, 200, 30))
    found = centre_square(file_of(picture), "x", 8)
    assert found.shape == (8, 8, 3)
    np.testing.assert_array_equal(found, np.broadcast_to([10, 200, 30], found.shape))


def bomb(width, height):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot read image cat/1.jpg: "),
        (b"no image at all", "cannot read image cat/1.jpg: "),
        (file_of(Image.fromarray(gradient()))[:100], "cannot read image cat/1.jpg: "),
        (file_of(Image.fromarray(gradient(64, 64)), "JPEG")[:700], "cannot read image cat/1.jpg: "),
        (file_of(Image.fromarray(gradient()), "GIF"), "cannot read image cat/1.jpg: "),
        (bomb(9000, 9000), f"has 9000 x 9000 pixels, at most {MAX_PIXELS:,} are read"),
        (
            bomb(60000, 60000),
            "cannot read image cat/1.jpg: Image size .* could be decompression bomb",
        ),
    ],
)
def test_what_cannot_be_read_is_named(data, message):
    with pytest.raises(DataError, match=message):
        decode(data, "cat/1.jpg")


def test_cutting_while_resizing_is_resizing_then_cutting():
    """Resize the short side to 256 and cut 224 out of the middle, as evaluation is defined."""
    image = Image.fromarray(gradient(400, 300)).resize((400, 300))
    found = centre_square(file_of(image), "x", 224, 224 / 256)
    small = image.resize((round(400 * 256 / 300), 256), Image.Resampling.BILINEAR)
    left = (small.width - 224) / 2
    expected = small.crop((int(left), 16, int(left) + 224, 240))
    assert np.abs(found.astype(int) - np.asarray(expected)).mean() < 1.5


def test_large_jpegs_are_decoded_at_the_scale_that_is_needed():
    pixels = np.asarray(Image.fromarray(gradient(32, 24)).resize((1600, 1200)))
    data = file_of(Image.fromarray(pixels), "JPEG", quality=95)
    found = centre_square(data, "x", 64)
    expected = Image.fromarray(pixels).resize(
        (64, 64), Image.Resampling.BILINEAR, (200, 0, 1400, 1200)
    )
    assert np.abs(found.astype(int) - np.asarray(expected)).mean() < 1.5


def test_the_short_side_and_the_size():
    data = file_of(Image.fromarray(gradient(40, 30)))
    assert fit_short_side(data, "x", 15).shape == (15, 20, 3)
    assert dimensions(data, "x") == (40, 30)
    assert render(data, "x", lambda w, h: ((0, 0, w, h), (7, 5))).shape == (5, 7, 3)


def smooth(width, height):
    """An image without detail that depends on how it is resized."""
    image = Image.fromarray(gradient(16, 12)[..., [0, 1, 0]])
    return image.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(500, 375), (97, 640), (31, 33), (2000, 1501)])
def test_the_fast_way_shows_the_same_part(size):
    data = file_of(smooth(*size), "JPEG", quality=95)
    rng = np.random.default_rng(0)
    for _ in range(4):
        left, top = (int(rng.integers(0, n // 2)) for n in size)
        box = (left, top, left + size[0] // 2, top + size[1] // 2)
        found = render_fast(data, "x", lambda w, h, box=box: (box, (24, 20)))
        expected = render(data, "x", lambda w, h, box=box: (box, (24, 20)))
        assert found.shape == (20, 24, 3)
        assert np.abs(found.astype(int) - expected).mean() < 3


def test_the_fast_way_is_taken():
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    data = file_of(Image.fromarray(noise), "JPEG", quality=95)

    def whole(w, h):
        return (0, 0, w, h), (80, 60)

    # Of noise four nearest pixels make something else than all that an output pixel covers.
    assert np.abs(render_fast(data, "x", whole).astype(int) - render(data, "x", whole)).mean() > 3


@pytest.mark.parametrize("kind", ["PNG", "turned", "grey", "CMYK", "tiny"])
def test_what_the_fast_way_does_not_know_is_read_as_ever(kind):
    image, options = smooth(60, 40), {"quality": 95}
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    modes = {"grey": "L", "CMYK": "CMYK"}
    image = image.resize((1, 1)) if kind == "tiny" else image.convert(modes.get(kind, "RGB"))
    data = file_of(image, "PNG") if kind == "PNG" else file_of(image, "JPEG", **options)

    def whole(w, h):
        return (0, 0, w, h), (8, 8)

    found, expected = render_fast(data, "x", whole), render(data, "x", whole)
    if kind == "tiny":
        assert np.abs(found.astype(int) - expected).max() < 3
    else:
        np.testing.assert_array_equal(found, expected)


def test_the_fast_way_refuses_by_the_same_policy():
    data = file_of(smooth(200, 100), "JPEG", quality=95)
    for bad in (data[: len(data) // 2], b"", data[:100], b"GIF89a" + data):
        with pytest.raises(DataError, match="cannot read image x"):
            render_fast(bad, "x", lambda w, h: ((0, 0, w, h), (8, 8)))
    # Bytes behind the end are no harm to any viewer.
    render_fast(data + b"more", "x", lambda w, h: ((0, 0, w, h), (8, 8)))
