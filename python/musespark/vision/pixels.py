"""Pictures: pixels in one form, whatever they came from, and what is known of their origin."""

from __future__ import annotations

import base64
import hashlib
import io
import operator
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from musespark.errors import CorruptFile, InvalidRequest, MissingLibrary
from musespark.untrusted import open_regular
from musespark.vision import headers
from musespark.vision.geometry import IDENTITY, Transform

if TYPE_CHECKING:
    from types import ModuleType

    from PIL.Image import Image as PilImage

_ORIENTATION_TAG = 0x0112  # EXIF
_DATA = re.compile(r"data:[\w.+/-]*(;[\w=.+-]+)*?(;base64)?,", re.IGNORECASE)
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_MOST_DATA = 256 << 20  # characters of a data URL


@dataclass(frozen=True)
class Limits:
    """What is refused before it is decoded: ``file_bytes`` of a file, ``pixels`` of an image
    (3 bytes each when decoded), ``aspect`` (longer side by shorter), ``count`` of images taken
    together."""

    file_bytes: int = 128 << 20
    pixels: int = 1 << 26
    aspect: float = 500.0
    count: int = 256


@dataclass(frozen=True, eq=False)
class Picture:
    """An upright RGB image and where it comes from.

    ``pixels``: uint8 [height, width, 3], packed, read-only. ``format``: PNG, JPEG, WEBP, GIF, BMP,
    ``array`` or ``PIL``. ``mode``: how colours were stored, Pillow's name of it (RGB, L, P, CMYK,
    I;16, …). ``alpha``: whether there was transparency, which was laid over white. ``frames``: of
    an animation, of which the pixels are the first. ``orientation``: as EXIF has it, 1 to 8; the
    pixels are turned by it already.

    ``transform`` maps the pixels to those of the original, the upright image that was opened; it is
    the identity but for crops. ``stored`` maps the original's pixels to the file's.
    """

    pixels: NDArray[np.uint8] = field(repr=False)
    format: str = "array"
    mode: str = "RGB"
    alpha: bool = False
    frames: int = 1
    orientation: int = 1
    transform: Transform = IDENTITY
    stored: Transform = IDENTITY

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @cached_property
    def sha256(self) -> str:
        """Of height and width (8 bytes each, little-endian) and the pixels, in hexadecimal."""
        state = hashlib.sha256(np.array(self.size, "<u8").tobytes())
        state.update(self.pixels.data)
        return state.hexdigest()

    def crop(self, box: Sequence[int]) -> Picture:
        """The part (left, top, right, bottom), in whole pixels of this picture, with its place in
        the original. Raises InvalidRequest for a box that is empty or not inside."""
        height, width = self.size
        try:
            left, top, right, bottom = (operator.index(edge) for edge in box)
        except (TypeError, ValueError):
            raise InvalidRequest(
                f"crop: got {box!r:.60}, allowed are 4 whole numbers: left, top, right, bottom"
            ) from None
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise InvalidRequest(
                f"crop: box must be (left, top, right, bottom), not empty, inside {width} x "
                f"{height} pixels, got {tuple(box)}"
            )
        return Picture(
            _frozen(self.pixels[top:bottom, left:right]),
            format=self.format,
            mode=self.mode,
            alpha=self.alpha,
            frames=self.frames,
            orientation=self.orientation,
            transform=self.transform @ Transform.shift(left, top),
            stored=self.stored,
        )


def open_pictures(sources: Sequence[Any], *, limits: Limits | None = None) -> list[Picture]:
    """Each as :func:`open_picture` does; InvalidRequest for more than ``limits.count``."""
    return list(open_each(sources, limits))


def open_each(sources: Sequence[Any], limits: Limits | None = None) -> Iterator[Picture]:
    """The same one after the other, for a caller that keeps less of each than its pixels; the
    count is checked at once."""
    limits = limits or Limits()
    if isinstance(sources, (str, bytes)):
        raise InvalidRequest(f"images: got {type(sources).__name__}, allowed is a list of images")
    if len(sources) > limits.count:
        raise InvalidRequest(f"{len(sources)} images, at most {limits.count} are taken together")
    return (open_picture(source, limits=limits) for source in sources)


def open_picture(source: Any, *, limits: Limits | None = None) -> Picture:
    """A picture from a path, the bytes of a file, an array, a PIL image or a picture; a path may be
    a ``file:`` URL or a data URL.

    Files are PNG, JPEG, WebP, GIF or BMP and need Pillow (``pip install 'musespark[vision]'``):
    MissingLibrary without it. The limits are checked against the header, before pixels are
    decoded. Of an animation the first frame is taken, EXIF orientation is applied, transparency is
    laid over white, 16 bits are cut to the upper 8, CMYK and palettes become RGB as Pillow does.
    Arrays are uint8 [h, w] or [h, w, 1, 3 or 4 channels] at any strides, grey, RGB or RGBA; they
    need no Pillow and are copied.

    Raises CorruptFile for a file that is damaged or of another format; InvalidRequest for anything
    beyond the limits, with the number and the limit, or that is none of these.
    """
    limits = limits or Limits()
    if not isinstance(limits, Limits):
        raise InvalidRequest(f"limits: got {type(limits).__name__}, allowed is a Limits")
    if isinstance(source, Picture):
        return source
    if isinstance(source, str):
        source = file_of(source)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        try:
            data = _read(path, limits)
        except (CorruptFile, InvalidRequest):
            raise
        except ValueError as error:  # a name with a null character or a surrogate
            raise InvalidRequest(f"{source!r:.120}: {error}") from None
        return _from_bytes(data, str(path), limits)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(source), "image", limits)
    if isinstance(source, np.ndarray):
        return _from_array(source, limits)
    if type(source).__module__.split(".")[0] == "PIL" and hasattr(source, "getexif"):
        _check_size((source.height, source.width), "image", limits)
        return _from_pil(source, "PIL", limits, "image")
    raise InvalidRequest(
        "an image is a path, bytes, an array, a PIL image or a Picture, "
        f"got {type(source).__name__}"
    )


def file_of(text: str) -> str | bytes:
    """The path that a text names, or what a data URL holds. InvalidRequest for a URL of anything
    remote: nothing is fetched."""
    if text[:5].lower() == "data:":
        return _data(text)
    if text[:7].lower() == "file://":
        return text[7:]
    if _REMOTE.match(text):
        raise InvalidRequest(f"got {text!r:.80}; nothing remote is fetched, give the file")
    return text


def _data(url: str) -> bytes:
    if len(url) > _MOST_DATA:
        raise InvalidRequest(f"{len(url)} characters, at most {_MOST_DATA} are allowed")
    head = _DATA.match(url)
    if head is None or head[2] is None:
        raise InvalidRequest(f"got {url!r:.60}, allowed is data:…;base64,…")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except ValueError as error:  # binascii.Error, and text beyond ASCII
        raise InvalidRequest(f"a data URL: not base64: {error}") from None


def open_named(source: Any, where: str, *, limits: Limits | None = None) -> Picture:
    """:func:`open_picture` for what a caller's list or message holds: errors say ``where``, and a
    file that cannot be read is InvalidRequest."""
    try:
        return open_picture(source, limits=limits)
    except (InvalidRequest, CorruptFile, MissingLibrary) as error:
        raise type(error)(f"{where}: {error}") from None
    except OSError as error:
        raise InvalidRequest(f"{where}: {source!r:.120}: {error.strerror}") from None
    except ValueError as error:  # a name with a null character
        raise InvalidRequest(f"{where}: {source!r:.120}: {error}") from None


def _frozen(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    copy = np.array(pixels, np.uint8, order="C", copy=True)
    copy.flags.writeable = False
    return copy


def _check_size(size: tuple[int, int], where: str, limits: Limits) -> None:
    height, width = size
    if height < 1 or width < 1:
        raise InvalidRequest(f"{where}: {width} x {height} pixels: it is empty")
    if height * width > limits.pixels:
        raise InvalidRequest(
            f"{where}: {width} x {height} = {height * width} pixels, the limit is {limits.pixels}"
        )
    aspect = max(height, width) / min(height, width)
    if aspect > limits.aspect:
        raise InvalidRequest(
            f"{where}: {width} x {height} pixels: one side is {aspect:.6g} times the other, "
            f"the limit is {limits.aspect:g}"
        )


# --- Arrays --------------------------------------------------------------------------------------


def _from_array(array: NDArray[Any], limits: Limits) -> Picture:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise InvalidRequest(
            "an image array is uint8 [height, width] or [height, width, 1, 3 or 4 channels], "
            f"got {array.dtype} {list(array.shape)}"
        )
    _check_size((array.shape[0], array.shape[1]), "image", limits)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    if channels == 4:
        array = _over_white(array)
    elif channels == 1:
        array = np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    return Picture(_frozen(array), mode=mode, alpha=channels == 4)


def _over_white(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGBA over white, the bits of Pillow's alpha_composite."""
    alpha = array[:, :, 3:].astype(np.uint32)
    mixed = (array[:, :, :3] * alpha + 255 * (255 - alpha)) * 128 + (0x80 << 7)
    return ((((mixed >> 8) + mixed) >> 8) >> 7).astype(np.uint8)


# --- Files ---------------------------------------------------------------------------------------


def _read(path: Path, limits: Limits) -> bytes:
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        _check_bytes(size, str(path), limits)
        return file.read(limits.file_bytes)


def _check_bytes(size: int, where: str, limits: Limits) -> None:
    if size > limits.file_bytes:
        raise InvalidRequest(f"{where}: {size} bytes, the limit is {limits.file_bytes}")


def _pil_image() -> ModuleType:
    try:
        from PIL import Image
    except ImportError:
        raise MissingLibrary(
            "reading image files needs Pillow: pip install 'musespark[vision]'; arrays do without"
        ) from None
    return Image


def _from_bytes(data: bytes, where: str, limits: Limits) -> Picture:
    _check_bytes(len(data), where, limits)
    format = headers.sniff(data, where)
    _check_size(headers.size_of(data, format, where), where, limits)
    library = _pil_image()
    try:
        image = library.open(io.BytesIO(data), formats=[format])
    except library.DecompressionBombError as error:
        raise InvalidRequest(f"{where}: {error}") from None
    except library.UnidentifiedImageError:  # which quotes the object that it read
        raise CorruptFile(f"{where}: damaged {format}: nothing can be read of it") from None
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(where, format, error) from error
    with image:
        # A GIF's first frame may reach beyond the screen its header tells of.
        _check_size((image.height, image.width), where, limits)
        return _from_pil(image, format, limits, where)


def _damaged(where: str, format: str, error: Exception) -> CorruptFile:
    return CorruptFile(f"{where}: damaged {format}: {error}")


def _from_pil(image: PilImage, format: str, limits: Limits, where: str) -> Picture:
    """The first frame; whatever Pillow raises while it decodes means a damaged file."""
    mode = image.mode
    if format == "PIL" and mode in ("F", "I"):
        raise InvalidRequest(
            f"{where}: a PIL image of mode {mode}: nobody says what its numbers range over; "
            "convert it to RGB or L first"
        )
    try:
        frames = int(getattr(image, "n_frames", 1))
        if frames > 1:
            image.seek(0)
        has_alpha = "A" in image.getbands() or image.info.get("transparency") is not None
        pixels = _rgb(image, has_alpha)
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(where, format, error) from error
    _check_size(pixels.shape[:2], where, limits)
    orientation = _orientation(image)  # which may decode: after what tells of damage
    stored = Transform.oriented(orientation, (pixels.shape[0], pixels.shape[1]))
    return Picture(
        _frozen(_upright(pixels, orientation)),
        format=format,
        mode=mode,
        alpha=has_alpha,
        frames=frames,
        orientation=orientation,
        stored=stored,
    )


def _rgb(image: PilImage, has_alpha: bool) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16 bits of grey, as I;16 or, by some versions, as I
        grey = (np.asarray(image, np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if has_alpha:
        return _over_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _orientation(image: PilImage) -> int:
    """1 where EXIF says nothing, or nothing that makes sense: cameras write such blocks."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
