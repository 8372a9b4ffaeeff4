"""What every family's processor is made of: settings, stages of an image, patches, placeholders.

A processor turns pictures into what a vision tower reads and the text side writes. Parity is with
the image processors of transformers 5.23.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.vision.geometry import Transform
from musespark.vision.pixels import Limits, Picture, open_each
from musespark.vision.resampling import FILTERS, filter_name, resize
from musespark.vision.video import FPS, Video

IMAGENET_STANDARD_MEAN = IMAGENET_STANDARD_STD = (0.5, 0.5, 0.5)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# No processor of any family comes near; what a configuration asks beyond it is a mistake.
_MOST = 1 << 16
_MOST_PIXELS = 1 << 28

Floats = NDArray[np.float32]
Size = tuple[int, int]


class Piece(NamedTuple):
    """A part of the text that stands for an image: ``text`` ``count`` times. With ``is_image`` the
    text is one token, and each of them is replaced by a row of the image's embedding."""

    text: str
    count: int = 1
    is_image: bool = False


@dataclass(frozen=True)
class Tile:
    """A part of an image that the tower encodes by itself. ``size``: its pixels (height, width);
    ``grid``: its patches (frames, rows, columns); ``tokens``: the embedding rows it becomes;
    ``transform`` maps its pixels to the original's."""

    size: Size
    grid: tuple[int, int, int]
    tokens: int
    transform: Transform


@dataclass(frozen=True, eq=False)
class ProcessedImage:
    """An image, or the frames of a video, as a tower reads it.

    ``patches``: float32 [patches of all tiles, patch length], tile by tile, each in the order in
    which the family's processor of transformers emits them. Within a patch values lie as the
    weight of the family's patch embedding flattens: (channel, y, x) for a 2-d convolution,
    (channel, frame, y, x) for Qwen's 3-d one, (frame, channel, y, x) for Muse and (y, x, channel)
    for LFM2, whose embeddings are linear. So ``patches @ weight.reshape(rows, -1).T`` embeds them.

    ``pieces``: the text that replaces the placeholder; as many image tokens as the tiles have.
    ``key``: sha256 of the pixels and the processing, in hexadecimal: same key, same patches.
    """

    patches: Floats = field(repr=False)
    tiles: tuple[Tile, ...]
    pieces: tuple[Piece, ...]
    key: str

    @property
    def tokens(self) -> int:
        return sum(tile.tokens for tile in self.tiles)

    @property
    def grids(self) -> list[tuple[int, int, int]]:
        return [tile.grid for tile in self.tiles]

    @property
    def text(self) -> str:
        """The pieces written out."""
        return "".join(piece.text * piece.count for piece in self.pieces)


# --- Settings ------------------------------------------------------------------------------------


class Settings:
    """A processor's configuration: what the file says, the class defaults for the rest; null counts
    as missing. CorruptFile for a value of the wrong kind, naming the key."""

    def __init__(self, given: Mapping[str, Any], defaults: Mapping[str, Any]):
        present = {key: value for key, value in given.items() if value is not None}
        self.values = {key: present.get(key, default) for key, default in defaults.items()}

    def _wrong(self, key: str, what: str) -> CorruptFile:
        return CorruptFile(f"image processor: {key} must be {what}, got {self.values[key]!r:.80}")

    def flag(self, key: str) -> bool:
        value = self.values[key]
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def must_be(self, key: str, value: bool) -> None:
        """UnsupportedModel where a step is switched that has no other way here."""
        if self.flag(key) is not value:
            raise UnsupportedModel(f"image processor: {key} = {str(not value).lower()}")

    def count(self, key: str, least: int = 1, most: int = _MOST) -> int:
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._wrong(key, f"a whole number between {least} and {most}")
        return value

    def number(self, key: str) -> float:
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise self._wrong(key, "a positive number")
        return float(value)

    def colour(self, key: str) -> tuple[float, float, float]:
        value = self.values[key]
        values = [value] * 3 if isinstance(value, (int, float)) else value
        try:
            red, green, blue = (float(each) for each in values)
        except (TypeError, ValueError):
            raise self._wrong(key, "a number or one for each of 3 channels") from None
        if not all(math.isfinite(each) for each in (red, green, blue)):
            raise self._wrong(key, "finite")
        return red, green, blue

    def filter(self, key: str = "resample") -> str:
        try:
            return filter_name(self.values[key])
        except InvalidRequest:
            raise self._wrong(key, f"one of {', '.join(FILTERS)} or its number") from None

    def size(self, key: str, *names: str, square: bool = True, most: int = _MOST) -> list[int]:
        """The entries ``names`` of a size; a bare number is a square, or the shortest edge."""
        value = self.values[key]
        if isinstance(value, int) and not isinstance(value, bool):
            value = {"height": value, "width": value} if square else {"shortest_edge": value}
        if isinstance(value, (list, tuple)) and len(value) == 2:
            value = {"height": value[0], "width": value[1]}
        found = [value.get(name) for name in names] if isinstance(value, Mapping) else [None]
        for side in found:
            if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= most:
                raise self._wrong(key, f"{' and '.join(names)} between 1 and {most}")
        return found

    def has_size(self, key: str, name: str) -> bool:
        return isinstance(self.values[key], Mapping) and name in self.values[key]


class Levels:
    """What each byte of each channel becomes: 3 x 256 floats, so that processing is a lookup.

    ``fused`` is how transformers computes it on torchvision; otherwise as on Pillow and numpy.
    """

    def __init__(self, settings: Settings, *, fused: bool = False):
        one = np.float32
        scale = settings.number("rescale_factor") if settings.flag("do_rescale") else 1.0
        mean = np.array(settings.colour("image_mean"), one)[:, None]
        std = np.array(settings.colour("image_std"), one)[:, None]
        values = np.arange(256, dtype=np.float64)[None].repeat(3, axis=0)
        if not settings.flag("do_normalize"):
            self.table = (values * scale).astype(one)
        elif fused and settings.flag("do_rescale"):
            inverse = one(1.0 / scale)
            self.table = (values.astype(one) - mean * inverse) / (std * inverse)
        else:
            self.table = ((values * scale).astype(one) - mean) / std
        if not np.isfinite(self.table).all():
            raise CorruptFile("image processor: image_std and rescale_factor give no finite values")

    def of(self, pixels: NDArray[np.uint8]) -> Floats:
        """float32 [3, h, w] from uint8 [h, w, 3]."""
        return np.stack([self.table[c].take(pixels[:, :, c]) for c in range(3)])


# --- Stages of an image --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Stage:
    """An image on its way: pixels uint8 [h, w, 3] and where they lie in the original."""

    pixels: NDArray[np.uint8]
    transform: Transform

    @classmethod
    def of(cls, picture: Picture) -> Stage:
        return cls(picture.pixels, picture.transform)

    @property
    def size(self) -> Size:
        return self.pixels.shape[0], self.pixels.shape[1]

    def resized(self, size: Size, resample: str, *, rows_first: bool = False) -> Stage:
        if size[0] * size[1] > _MOST_PIXELS:
            raise InvalidRequest(
                f"an image of {self.size[1]} x {self.size[0]} pixels would be processed as "
                f"{size[1]} x {size[0]}, more than {_MOST_PIXELS} pixels"
            )
        step = Transform.resized(self.size, size)
        pixels = resize(self.pixels, size, resample=resample, rows_first=rows_first)
        return Stage(pixels, self.transform @ step)

    def cropped(self, left: int, top: int, right: int, bottom: int) -> Stage:
        """The part inside; beyond the image it ends."""
        pixels = self.pixels[top:bottom, left:right]
        return Stage(pixels, self.transform @ Transform.shift(left, top))

    def padded(self, size: Size, left: int, top: int, colour: Iterable[int] = (0, 0, 0)) -> Stage:
        """In a larger image, at (left, top)."""
        pixels = np.empty((*size, 3), np.uint8)
        pixels[:] = tuple(colour)
        pixels[top : top + self.size[0], left : left + self.size[1]] = self.pixels
        return Stage(pixels, self.transform @ Transform.shift(-left, -top))

    def centre(self, size: Size) -> Stage:
        """The middle ``size``; where the image is smaller, with black around it."""
        larger = (max(size[0], self.size[0]), max(size[1], self.size[1]))
        top = math.ceil((larger[0] - self.size[0]) / 2)
        left = math.ceil((larger[1] - self.size[1]) / 2)
        stage = self if larger == self.size else self.padded(larger, left, top)
        top += (self.size[0] - size[0]) // 2
        left += (self.size[1] - size[1]) // 2
        return stage.cropped(left, top, left + size[1], top + size[0])

    def grid_of(self, rows: int, columns: int, tile: Size) -> list[Stage]:
        """rows x columns parts of ``tile`` size, row by row."""
        return [
            self.cropped(c * tile[1], r * tile[0], (c + 1) * tile[1], (r + 1) * tile[0])
            for r in range(rows)
            for c in range(columns)
        ]


def whole_blocks(size: Size, block: int, least: int, most: int, *, smallest: int = 0) -> Size:
    """Both sides multiples of ``block``, between ``least`` and ``most`` pixels in all, the aspect
    kept as well as that goes; ``smallest`` is the least side before the pixels are counted."""
    height, width = size
    rows, columns = (max(smallest, round(side / block) * block) for side in size)
    if rows * columns > most:
        beta = math.sqrt((height * width) / most)
        rows = max(block, math.floor(height / beta / block) * block)
        columns = max(block, math.floor(width / beta / block) * block)
    elif rows * columns < least:
        beta = math.sqrt(least / (height * width))
        rows = math.ceil(height * beta / block) * block
        columns = math.ceil(width * beta / block) * block
    return rows, columns


# The order of (channel, y, x) within a patch, as axes of [c, Y, my, y, X, mx, x].
_INSIDE = {"cyx": (0, 3, 6), "yxc": (3, 6, 0)}


def patch_rows(
    planes: Floats, patch: int, *, merge: int = 1, inside: str = "cyx", frames: int = 1
) -> Floats:
    """float32 [patches, values] from [3, h, w], row by row of patches, or of merge x merge blocks
    of them, row by row inside. ``frames`` repeats each channel of a patch: (channel, frame, y, x).
    """
    _, height, width = planes.shape
    rows, columns = height // patch, width // patch
    cut = planes[:, : rows * patch, : columns * patch]
    cut = cut.reshape(3, rows // merge, merge, patch, columns // merge, merge, patch)
    blocks = cut.transpose(1, 4, 2, 5, *_INSIDE[inside])
    if frames > 1:
        blocks = np.repeat(blocks[:, :, :, :, :, None], frames, axis=5)
    return np.ascontiguousarray(blocks).reshape(rows * columns, -1)


# --- Processors ----------------------------------------------------------------------------------

COMMON = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "image_mean": IMAGENET_STANDARD_MEAN,
    "image_std": IMAGENET_STANDARD_STD,
}


class Processor:
    """One family's way from pictures to patches. Subclasses are data and two methods: ``setup`` and
    ``process_picture``, which ends in :meth:`one_tile` or :meth:`finished`.

    ``config`` is the model's config.json, ``preprocessor`` its preprocessor_config.json (or
    ``image_processor`` of processor_config.json), ``processor`` the rest of processor_config.json.
    """

    defaults: ClassVar[Mapping[str, Any]] = COMMON
    fused: ClassVar[bool] = False
    inside: ClassVar[str] = "cyx"
    placeholder: ClassVar[str] = "<image>"  # what the chat template writes for an image
    video_placeholder: ClassVar[str] = ""  # for a video; a family without one reads none
    convention: str = "none"  # how the family writes places: a name of conventions.py

    patch: int  # pixels along a side; set by setup
    merge: int = 1  # patches of a block along a side, see patch_rows
    frames: int = 1

    def __init__(
        self,
        config: Mapping[str, Any],
        preprocessor: Mapping[str, Any] | None = None,
        processor: Mapping[str, Any] | None = None,
    ):
        self.config, self.processor = config, processor or {}
        self.family = str(config.get("model_type"))
        self.settings = Settings(preprocessor or {}, self.defaults)
        self.levels = Levels(self.settings, fused=self.fused)
        self.setup()

    def setup(self) -> None:
        """Reads what the family's steps need from settings and configurations."""
        raise NotImplementedError

    def process(
        self, images: Sequence[Any], *, limits: Limits | None = None
    ) -> list[ProcessedImage]:
        """Each image (whatever :func:`open_picture` takes) as the tower reads it.

        Raises as open_picture does, and InvalidRequest for a picture that the family refuses.
        """
        return [self.process_picture(each) for each in open_each(images, limits)]

    def process_picture(self, picture: Picture) -> ProcessedImage:
        raise NotImplementedError

    def open_video(self, frames: Any, fps: Any = FPS, *, limits: Limits | None = None) -> Video:
        """The frames that are taken of a video. UnsupportedModel where the family reads none."""
        raise UnsupportedModel(f"video: {self.family} models read images and no video here")

    def process_video(self, video: Video) -> ProcessedImage:
        """A video as the tower reads it, of a family that reads such."""
        raise NotImplementedError

    def tile_of(self, stage: Stage, tokens: int | None = None) -> Tile:
        """A stage as a tile; without ``tokens`` it becomes one for each block of patches."""
        rows, columns = stage.size[0] // self.patch, stage.size[1] // self.patch
        tokens = rows * columns // self.merge**2 if tokens is None else tokens
        return Tile(stage.size, (1, rows, columns), tokens, stage.transform)

    def finished(
        self,
        picture: Picture,
        stages: Sequence[Stage],
        tiles: Sequence[Tile],
        pieces: Sequence[Piece],
    ) -> ProcessedImage:
        """The image whose tiles are ``stages``, cut into patches."""
        patches = [
            patch_rows(
                self.levels.of(stage.pixels),
                self.patch,
                merge=self.merge,
                inside=self.inside,
                frames=self.frames,
            )
            for stage in stages
        ]
        rows = patches[0] if len(patches) == 1 else np.concatenate(patches)
        return ProcessedImage(rows, tuple(tiles), tuple(pieces), self.key(picture.sha256))

    def one_tile(self, picture: Picture, stage: Stage, tokens: int | None = None) -> ProcessedImage:
        """The image that is one tile and whose text is image tokens alone."""
        tile = self.tile_of(stage, tokens)
        return self.finished(picture, [stage], [tile], [Piece(self.placeholder, tile.tokens, True)])

    def fitted(self, size: Size) -> Size:
        """The size of the image whose pixels a family counts that writes places in pixels."""
        return size

    def key(self, *pictures: str) -> str:
        """sha256 of what decides the patches: family, settings, patch, ``sha256`` of pictures."""
        state = hashlib.sha256(type(self).__name__.encode())
        state.update(json.dumps(self.identity(), sort_keys=True, default=repr).encode())
        for picture in pictures:
            state.update(bytes.fromhex(picture))
        return state.hexdigest()

    def identity(self) -> list[Any]:
        return [self.settings.values, self.patch, self.merge, self.frames]

    def model_count(self, key: str, default: int | None = None) -> int:
        """A whole number of the model's vision_config; CorruptFile without one or a default."""
        vision = self.config.get("vision_config", self.config)
        value = vision.get(key) if isinstance(vision, Mapping) else None
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
            raise CorruptFile(
                f"config: vision_config.{key} must be a whole number above 0, got {value!r}"
            )
        return value

    def processor_count(self, key: str, default: int) -> int:
        """A whole number of processor_config.json."""
        value = self.processor.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
            raise CorruptFile(f"processor: {key} must be a whole number, got {value!r}")
        return value
