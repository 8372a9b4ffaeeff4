"""Pictures from files and arrays: what they hold, what is refused, and that refusing is cheap."""

from __future__ import annotations

import base64
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musespark.errors import CorruptFile, InvalidRequest, MissingLibrary
from musespark.vision import Limits, headers, open_picture, open_pictures

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")

SCENE = np.random.default_rng(0).integers(0, 256, (24, 37, 3), dtype=np.uint8)
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "BMP": {}}
WRITERS: dict[str, dict[str, Any]] = {
    **{name: {"format": name, **options} for name, options in LOSSLESS.items()},
    "JPEG": {"format": "JPEG"},
    "JPEG progressive": {"format": "JPEG", "progressive": True},
    "WEBP lossy": {"format": "WEBP", "quality": 80},
    "GIF": {"format": "GIF"},
}


def encoded(image: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def scene_as(writer: str) -> bytes:
    return encoded(Image.fromarray(SCENE), **WRITERS[writer])


def test_urls_of_what_is_here_are_opened_and_nothing_is_fetched(tmp_path: Path) -> None:
    data = scene_as("PNG")
    (tmp_path / "a.png").write_bytes(data)
    packed = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (packed, f"file://{tmp_path}/a.png", f"{tmp_path}/a.png"):
        assert np.array_equal(open_picture(source).pixels, SCENE)
    for source, says in (
        ("https://a.b/c.png", "nothing remote is fetched"),
        ("data:image/png,abc", "allowed is data:…;base64"),
        ("data:;base64,a$", "not base64"),
        ("data:;base64,éé", "not base64"),
        ("a\0b.png", "null"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            open_picture(source)


# --- What is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", WRITERS)
def test_each_format_from_bytes_and_path(writer: str, tmp_path: Path) -> None:
    data = scene_as(writer)
    format = WRITERS[writer]["format"]
    assert headers.sniff(data, "x") == format
    assert headers.size_of(data, format, "x") == (24, 37)
    picture = open_picture(data)
    assert (picture.format, picture.size, picture.frames) == (format, (24, 37), 1)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(picture.pixels, np.asarray(image.convert("RGB")))
    path = tmp_path / "picture"
    path.write_bytes(data)
    assert open_picture(path).sha256 == open_picture(str(path)).sha256 == picture.sha256
    if writer in LOSSLESS:
        assert picture.sha256 == open_picture(SCENE).sha256


def test_pixels_are_packed_and_may_not_be_written() -> None:
    view = np.repeat(SCENE, 2, axis=1)[::-1, ::2]
    picture = open_picture(view)
    assert picture.pixels.flags.c_contiguous
    assert not np.shares_memory(picture.pixels, view)
    assert picture.sha256 == open_picture(SCENE[::-1]).sha256
    with pytest.raises(ValueError, match="read-only"):
        picture.pixels[0, 0, 0] = 1
    assert open_picture(picture) is picture


def test_the_hash_knows_the_shape() -> None:
    flat = np.zeros((4, 6, 3), np.uint8)
    assert open_picture(flat).sha256 != open_picture(flat.reshape(6, 4, 3)).sha256


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_applied_and_recorded(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(SCENE), format=format, exif=exif)
    picture = open_picture(data)
    with Image.open(io.BytesIO(data)) as image:
        stored = np.asarray(image.convert("RGB"))
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert picture.orientation == orientation
    assert np.array_equal(picture.pixels, upright)
    y, x = np.mgrid[: upright.shape[0], : upright.shape[1]] + 0.5
    places = np.floor(picture.stored.points(np.stack([x, y], axis=-1))).astype(int)
    assert np.array_equal(stored[places[..., 1], places[..., 0]], upright)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_makes_no_sense_is_none(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    picture = open_picture(encoded(Image.fromarray(SCENE), format="PNG", exif=exif))
    assert picture.orientation == 1
    assert np.array_equal(picture.pixels, SCENE)


def over_white(rgba: np.ndarray) -> np.ndarray:
    white = Image.new("RGBA", rgba.shape[1::-1], (255, 255, 255, 255))
    laid = Image.alpha_composite(white, Image.fromarray(rgba))
    return np.asarray(laid.convert("RGB"))


def test_transparency_is_laid_over_white() -> None:
    rgba = np.random.default_rng(1).integers(0, 256, (64, 256, 4), dtype=np.uint8)
    rgba[:, :, 3] = np.arange(256)
    for picture in (open_picture(rgba), open_picture(encoded(Image.fromarray(rgba), format="PNG"))):
        assert picture.alpha
        assert picture.mode == "RGBA"
        assert np.array_equal(picture.pixels, over_white(rgba))


def test_grey_palette_and_single_bits() -> None:
    grey = SCENE[:, :, 0]
    want = np.repeat(grey[:, :, None], 3, axis=2)
    for source in (grey, grey[:, :, None], encoded(Image.fromarray(grey), format="PNG")):
        assert np.array_equal(open_picture(source).pixels, want)
    with_alpha = Image.merge("LA", [Image.fromarray(grey), Image.new("L", (37, 24), 255)])
    assert np.array_equal(open_picture(encoded(with_alpha, format="PNG")).pixels, want)
    bits = Image.fromarray(grey).convert("1")
    assert set(np.unique(open_picture(encoded(bits, format="PNG")).pixels)) == {0, 255}
    palette = Image.fromarray(SCENE).quantize(16)
    transparent = open_picture(encoded(palette, format="PNG", transparency=3))
    assert transparent.mode == "P"
    assert (transparent.pixels[np.asarray(palette) == 3] == 255).all()


def test_sixteen_bits_are_cut_to_the_upper_eight() -> None:
    deep = np.arange(24 * 37, dtype=np.uint16).reshape(24, 37) * 73
    picture = open_picture(encoded(Image.fromarray(deep), format="PNG"))
    assert np.array_equal(picture.pixels[:, :, 1], (deep >> 8).astype(np.uint8))


def test_cmyk_becomes_rgb_as_pillow_has_it() -> None:
    data = encoded(Image.fromarray(SCENE).convert("CMYK"), format="JPEG")
    picture = open_picture(data)
    assert picture.mode == "CMYK"
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(picture.pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame(format: str) -> None:
    shades = [Image.new("RGB", (20, 10), (shade, 0, 0)) for shade in (250, 120, 10)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(
        shades[0], format=format, save_all=True, append_images=shades[1:], duration=50, **options
    )
    picture = open_picture(data)
    assert picture.frames == 3
    assert (picture.pixels == (250, 0, 0)).all()


def test_a_pil_image_keeps_its_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encoded(Image.fromarray(SCENE), format="PNG", exif=exif)))
    picture = open_picture(image)
    assert (picture.format, picture.orientation, picture.size) == ("PIL", 6, (37, 24))
    assert open_picture(Image.fromarray(SCENE)).sha256 == open_picture(SCENE).sha256


def test_crops_know_where_they_lie() -> None:
    crop = open_picture(SCENE).crop((5, 3, 30, 20)).crop((1, 2, 11, 12))
    assert np.array_equal(crop.pixels, SCENE[5:15, 6:16])
    assert crop.transform.box((0, 0, 10, 10)) == (6, 5, 16, 15)
    for box in [(0, 0, 0, 5), (0, 0, 11, 5), (-1, 0, 5, 5)]:
        with pytest.raises(InvalidRequest, match="not empty, inside 10 x 10"):
            crop.crop(box)


# --- What is refused -----------------------------------------------------------------------------


def png_claiming(width: int, height: int, body: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(scene_as("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp_claiming(width: int, height: int) -> bytes:
    data = bytearray(scene_as("BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def gif_claiming(width: int, height: int) -> bytes:
    data = bytearray(scene_as("GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def gif_frame_beyond(width: int, height: int) -> bytes:
    """A small screen, a first frame that is large."""
    data = bytearray(scene_as("GIF"))
    at = data.index(b"\x2c\x00\x00\x00\x00")
    data[at + 5 : at + 9] = struct.pack("<HH", width, height)
    return bytes(data)


def webp_claiming(width: int, height: int) -> bytes:
    frame = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + frame + b"VP8L" + bytes(12)
    return b"RIFF" + struct.pack("<I", len(body)) + body


BOMBS = {
    "PNG": png_claiming(60000, 60000, zlib.compress(bytes(1 << 20))),
    "PNG sides of 2^31": png_claiming((1 << 31) - 1, (1 << 31) - 1),
    "JPEG": jpeg_claiming(65000, 65000),
    "BMP": bmp_claiming(60000, -60000),
    "GIF": gif_claiming(65535, 65535),
    "GIF frame": gif_frame_beyond(65535, 65535),
    "WEBP": webp_claiming(1 << 14, 1 << 14),
}


@pytest.mark.parametrize("name", BOMBS)
def test_more_pixels_than_the_limit(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"pixels"):
        open_picture(BOMBS[name])


def test_refusing_takes_no_memory(tmp_path: Path) -> None:
    """The peak of a process that is offered every bomb, against one that reads a small picture."""
    for number, data in enumerate(BOMBS.values()):
        (tmp_path / f"{number}.bomb").write_bytes(data)
    script = (
        "import resource, sys\n"
        "from musespark.vision import open_picture\n"
        "import numpy as np, io\n"
        "from PIL import Image\n"
        "file = io.BytesIO()\n"
        "Image.new('RGB', (8, 8)).save(file, 'WEBP')\n"
        "open_picture(file.getvalue())\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "for path in sys.argv[1:]:\n"
        "    try: open_picture(path)\n"
        "    except ValueError: continue\n"
        "    raise SystemExit('a bomb was opened')\n"
        "print(peak() - before)\n"
    )
    paths = sorted(str(path) for path in tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", script, *paths], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 16 << 10, "KiB more at the peak"


def test_the_other_limits(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"1 x 100000 .* 100000 times .* limit is 500"):
        open_picture(png_claiming(1, 100000))
    with pytest.raises(InvalidRequest, match="100000 times"):
        open_picture(np.zeros((100000, 1, 3), np.uint8))
    tight = Limits(file_bytes=100, pixels=24 * 37 - 1, aspect=1.5, count=2)
    with pytest.raises(InvalidRequest, match=r"bytes, the limit is 100"):
        open_picture(scene_as("PNG"), limits=tight)
    path = tmp_path / "large.png"
    path.write_bytes(scene_as("PNG"))
    with pytest.raises(InvalidRequest, match=r"large.png: \d+ bytes, the limit is 100"):
        open_picture(path, limits=tight)
    for source in (SCENE, Image.fromarray(SCENE)):
        with pytest.raises(InvalidRequest, match="37 x 24 = 888 pixels, the limit is 887"):
            open_picture(source, limits=tight)
    with pytest.raises(InvalidRequest, match="3 images, at most 2"):
        open_pictures([SCENE[:4, :4]] * 3, limits=tight)
    assert len(open_pictures([SCENE[:4, :4]] * 2, limits=tight)) == 2


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_breaks_off(writer: str) -> None:
    """Cut anywhere it raises CorruptFile, or it is the whole picture: of some formats the end says
    nothing about pixels."""
    data = scene_as(writer)
    whole = open_picture(data).pixels
    refused = 0
    for end in {*range(64), *range(64, len(data), 29), len(data) - 1}:
        try:
            assert np.array_equal(open_picture(data[:end]).pixels, whole), end
        except CorruptFile:
            refused += 1
    assert refused > 60


@pytest.mark.fuzz
@pytest.mark.parametrize("writer", WRITERS)
def test_changed_bytes_give_a_picture_or_an_error_of_ours(writer: str) -> None:
    rng = np.random.default_rng(7)
    data = scene_as(writer)
    for _ in range(150):
        changed = bytearray(data)
        for at in rng.integers(0, min(len(data), 200), 3):
            changed[at] = rng.integers(256)
        try:
            picture = open_picture(bytes(changed), limits=Limits(pixels=1 << 20))
        except (CorruptFile, InvalidRequest):
            continue
        assert picture.pixels.size <= 3 << 20


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a PNG"),
        (b"II*\x00" + bytes(60), "not a PNG, JPEG, WebP, GIF or BMP image: begins b'II"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a PNG"),
        (b"\x89PNG\r\n\x1a\n", "PNG header breaks off"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "the first chunk is"),
        (png_claiming(0, 5), "0 x 5 pixels"),
        (png_claiming(9, 9, b"no zlib"), "damaged PNG"),
        (b"\xff\xd8\xff\xe0\x00\x01", "a segment of 1 bytes"),
        (b"\xff\xd8\xff\xda\x00\x02", "no frame before the scan"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8Z" + bytes(40), "WEBP header: the first chunk is"),
        (b"BM" + bytes(60), "0 x 0 pixels"),
    ],
)
def test_what_is_no_image(data: bytes, message: str) -> None:
    with pytest.raises(CorruptFile, match=message):
        open_picture(data)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (SCENE.astype(np.float32), r"uint8 .* got float32 \[24, 37, 3\]"),
        (SCENE[:, :, :2], r"got uint8 \[24, 37, 2\]"),
        (SCENE[0, 0], r"got uint8 \[3\]"),
        (SCENE[:0], "it is empty"),
        (3, "a path, bytes, an array, a PIL image or a Picture, got int"),
    ],
)
def test_sources_that_are_none(source: object, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        open_picture(source)


def test_a_path_that_is_not_there_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_picture(tmp_path / "none.png")
    with pytest.raises(CorruptFile, match="not a regular file"):
        open_picture(tmp_path)


def test_without_pillow_arrays_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    data = scene_as("PNG")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert open_picture(SCENE).size == (24, 37)
    with pytest.raises(MissingLibrary, match=r"pip install 'musespark\[vision\]'"):
        open_picture(data)
    with pytest.raises(CorruptFile, match="not a PNG"):
        open_picture(b"something else")


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pil_images_of_numbers_without_a_range(mode: str) -> None:
    """They became black."""
    Image = pytest.importorskip("PIL.Image")
    with pytest.raises(InvalidRequest, match=f"mode {mode}: nobody says"):
        open_picture(Image.new(mode, (4, 4), 1))


def test_one_image_is_no_list_of_them() -> None:
    with pytest.raises(InvalidRequest, match="images: got str"):
        open_pictures("photo.jpg")


@pytest.mark.parametrize("box", [None, (1, 2, 3), (0, 0, float("nan"), 4), "abcd", (0, 0, 1.5, 2)])
def test_a_crop_takes_four_whole_numbers(box) -> None:
    picture = open_picture(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InvalidRequest, match=r"crop: got .* 4 whole numbers"):
        picture.crop(box)


def test_limits_are_limits() -> None:
    with pytest.raises(InvalidRequest, match="limits: got int"):
        open_picture(np.zeros((8, 8, 3), np.uint8), limits=5)


def test_of_a_file_that_cannot_be_read_no_object_is_quoted() -> None:
    with pytest.raises(CorruptFile, match=r"^[^<]*damaged GIF: nothing can be read of it$"):
        open_picture(b"GIF89a\x08\0\x08\0" + bytes(10))
