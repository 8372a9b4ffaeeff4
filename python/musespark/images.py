"""Images and videos of a conversation: taken out of its messages, written into its prompt, encoded
when the engine asks for them."""

from __future__ import annotations

import base64
import binascii
import itertools
import math
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from musespark.errors import CorruptFile, InvalidRequest, MissingLibrary, UnsupportedModel
from musespark.events import GivenRows
from musespark.parts import VIDEO_PART, is_media, with_media
from musespark.results import ImageUse
from musespark.vision.embedding import ImageEmbedding, ImageOutline, row_ids
from musespark.vision.pixels import Limits, file_of, open_named
from musespark.vision.video import MOST_FRAMES, MOST_PIXELS, Video, checked_fps

if TYPE_CHECKING:
    from musespark.text import Tokenizer
    from musespark.vision.eyes import Eyes
    from musespark.vision.pixels import Picture

_BATCH_ROWS = 4096  # of images that are encoded together
_HOLDS = ("image", "image_url", "url", "path", "data")
Ids = list[int]


class Clip(NamedTuple):
    """What a video part holds. ``fps``: None where it does not say."""

    frames: Any
    fps: Any = None


class Source(NamedTuple):
    """What an image part holds, or the Clip of a video part, and where it stands."""

    image: Any
    where: str


# ---- messages -----------------------------------------------------------------------------------


def image_of(part: Mapping[str, Any], where: str) -> Any:
    """What an image part of a message holds: a path, bytes, an array, an image of Pillow, a
    Picture or an ImageEmbedding. InvalidRequest for a part without an image, and for a remote one:
    nothing is fetched."""
    _check_keys(part, {"type", *_HOLDS, "detail"}, where)
    given = [name for name in _HOLDS if part.get(name) is not None]
    if len(given) != 1:
        raise InvalidRequest(
            f"{where}: {' and '.join(given) or 'no image'}; allowed is one of them: "
            '{"type": "image", "image": a path, bytes, an array, an image of Pillow or an '
            "ImageEmbedding}, or an image_url with a data URL"
        )
    (name,) = given
    value, where = part[name], f"{where}.{name}"
    if isinstance(value, Mapping):
        _check_keys(value, {"url", "detail"}, where)
        value = value.get("url")
    try:
        return file_of(value) if isinstance(value, str) else value
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error}") from None


def clip_of(part: Mapping[str, Any], where: str) -> Clip:
    """What a video part of a message holds: an array of frames, a list of what open_picture
    takes, a Video or an ImageEmbedding, and how many frames a second it has."""
    _check_keys(part, {"type", "video", "fps"}, where)
    if part.get("video") is None:
        raise InvalidRequest(
            f'{where}.video: no video; allowed is {{"type": "video", "video": an array [frames, '
            'height, width, 3] or a list of pictures, "fps": a number}'
        )
    return Clip(part["video"], part.get("fps"))


def _source(part: Mapping[str, Any], where: str) -> Source:
    held = clip_of if part["type"] == VIDEO_PART else image_of
    return Source(held(part, where), where)


def _check_keys(given: Mapping[str, Any], known: set[str], where: str) -> None:
    for key, value in given.items():
        if key not in known:
            raise InvalidRequest(f"{where}.{key}: unknown; known are {', '.join(sorted(known))}")
        if key == "detail" and value not in (None, "auto"):
            raise InvalidRequest(
                f"{where}.detail: got {value!r:.40}, allowed is 'auto': how large an image is seen "
                "is the model's own"
            )


def without_images(messages: Any) -> tuple[Any, list[Source]]:
    """The messages with bare ``{"type": "image"}`` and ``{"type": "video"}`` parts, and what the
    parts held, in order."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        return messages, []
    found: list[Source] = []
    plain = []
    for i, message in enumerate(messages):
        if callable(getattr(message, "model_dump", None)):  # pydantic
            message = message.model_dump()
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, (list, tuple)) and any(map(is_media, content)):
            parts = []
            for j, part in enumerate(content):
                if is_media(part):
                    found.append(_source(part, f"messages[{i}].content[{j}]"))
                    part = {"type": "video" if isinstance(found[-1].image, Clip) else "image"}
                parts.append(part)
            message = {**message, "content": parts}
        plain.append(message)
    return plain, found


def opened(source: Any, where: str = "image") -> Any:
    """A Picture of what an image part holds, or the ImageEmbedding that it is; errors say
    ``where``."""
    return source if isinstance(source, ImageEmbedding) else open_named(source, where)


def _seen(eyes: Eyes | None, source: Source, blind: str) -> Any:
    """A Picture, a Video or an ImageEmbedding of what a part holds. ``blind`` is why there are no
    eyes."""
    held, where = source
    if isinstance(held, Clip):
        return _seen_video(eyes, held, f"{where}." if where else "", blind)
    if eyes is None:
        raise UnsupportedModel(f"images: {blind}")
    return opened(held, where)


def _seen_video(eyes: Eyes | None, clip: Clip, prefix: str, blind: str) -> Any:
    if eyes is None:
        raise UnsupportedModel(f"{prefix}video: {blind}")
    frames, fps = clip
    try:
        if not isinstance(frames, (Video, ImageEmbedding)):
            return eyes.open_video(frames, fps)
    except (InvalidRequest, CorruptFile, MissingLibrary, UnsupportedModel) as error:
        raise type(error)(f"{prefix}{error}") from None
    if not eyes.video_placeholder:
        raise UnsupportedModel(f"{prefix}video: {eyes.family} models read images and no video here")
    if fps is not None:
        kind = type(frames).__name__
        raise InvalidRequest(
            f"{prefix}fps: got {fps!r:.40}, allowed is none: the {kind} has its own"
        )
    return frames


def encoded(eyes: Eyes | None, image: Any, blind: str) -> ImageEmbedding:
    """See :meth:`musespark.Model.encode_image` and ``encode_video``; ``image``: what an image part
    holds, or a Clip. ``blind`` is why there are no eyes."""
    seen = _seen(eyes, Source(image, "" if isinstance(image, Clip) else "image"), blind)
    assert eyes is not None
    one = _Image(eyes, seen, isinstance(image, Clip))
    _make(eyes, [one])
    return one.made()


def image_tokens(eyes: Eyes, parts: Sequence[Mapping[str, Any]]) -> int:
    """Tokens in a prompt of the images and videos that a message's parts hold. Raises what a prompt
    with these alone would."""
    sources = [_source(part, f"content[{i}]") for i, part in enumerate(parts) if is_media(part)]
    return sum(outline.tokens for outline in PromptImages(eyes, sources, "").outlines)


# ---- prompts ------------------------------------------------------------------------------------


class PromptImages:
    """The images of one prompt, in order, for one request or several alike. ``blind``: why there
    are no eyes, where there are none."""

    def __init__(self, eyes: Eyes | None, sources: Sequence[Source], blind: str):
        self._eyes = eyes
        self._images: list[_Image] = []
        if len(sources) > (most := Limits().count):
            raise InvalidRequest(f"messages: {len(sources)} images, at most {most} are taken")
        pixels = 0
        for source in sources:
            one = _seen(eyes, source, blind)
            assert eyes is not None
            pixels += 0 if isinstance(one, ImageEmbedding) else one.pixels.size // 3
            if pixels > MOST_PIXELS:
                raise InvalidRequest(
                    f"{source.where}: the images up to here have {pixels} pixels, at most "
                    f"{MOST_PIXELS} are taken together"
                )
            self._images.append(_Image(eyes, one, isinstance(source.image, Clip)))
        self._making = threading.Lock()

    def __len__(self) -> int:
        return len(self._images)

    @property
    def outlines(self) -> list[ImageOutline]:
        """What the prompt knows of each."""
        return [one.outline for one in self._images]

    @property
    def sources(self) -> list[Source]:
        """Each, opened: what makes the same prompt again."""
        return [
            Source(Clip(one.source) if one.is_video else one.source, "") for one in self._images
        ]

    @property
    def pictures(self) -> list[Picture]:
        """Each image, without the videos; empty where one is an embedding."""
        found = [one.source for one in self._images if not one.is_video]
        return [] if any(isinstance(one, ImageEmbedding) for one in found) else found

    @property
    def markers(self) -> set[str]:
        """What the template writes for an image, and what stands for a row: markers, whatever else
        the tokenizer and the template make of them."""
        return self.row_tokens | {one.placeholder for one in self._images}

    def written(self, pieces: Sequence[tuple[str, bool]], tokenizer: Tokenizer) -> list:
        """A rendered conversation with the images written out: each run of rows as one marker.
        InvalidRequest unless the template wrote each image and each video once, in order."""
        if not self._images:
            return list(pieces)
        wanted = [one.placeholder for one in self._images]
        self._check_written(wanted, [t for t, marker in pieces if marker and t in wanted])
        left, out = iter(self._images), []
        for text, marker in pieces:
            if not marker or text not in wanted:
                out.append((text, marker))
                continue
            for piece, count, is_row in next(left).outline.pieces:
                known = piece in tokenizer.markers
                out += [(piece, known)] * (1 if is_row else count)
        return out

    def _check_written(self, wanted: list[str], found: list[str]) -> None:
        for one in self._images:
            count, written = wanted.count(one.placeholder), found.count(one.placeholder)
            if count != written:
                raise InvalidRequest(
                    f"messages: {count} {'videos' if one.is_video else 'images'}, but the chat "
                    f"template writes {one.placeholder!r} {written} times; the model would not see "
                    "each of them once"
                )
        if found != wanted:
            raise InvalidRequest(
                f"messages: images and videos are {wanted}, the chat template writes {found}"
            )

    def placed(self, ids: Ids, tokenizer: Tokenizer, hidden: int) -> tuple[Ids, list[GivenRows]]:
        """The prompt with negative ids for rows in place of each run's one marker, and the rows."""
        if not self._images:
            return ids, []
        runs = [(one, at, count) for one in self._images for at, count in one.runs]
        rows = {tokenizer.markers[t] for t in self.row_tokens if t in tokenizer.markers}
        wanted = iter(runs)
        out: Ids = []
        given: list[GivenRows] = []
        for token in ids:
            run = next(wanted, None) if token in rows else None
            if run is None:
                out.append(token)
                continue
            image, at, count = run
            given.append(image.given(len(out), at, count, self._make_from))
            out += image.ids(hidden)[at : at + count].tolist()
        if len(given) != len(runs):
            raise InvalidRequest(
                f"messages: {len(runs)} groups of image rows were written, {len(given)} encoded; "
                "the tokenizer does not know the model's image token"
            )
        return out, given

    def _make_from(self, image: _Image) -> None:
        """Makes an image's rows, and those of images that follow: a prefix that is known ends
        before `image`, so theirs will be asked for too. As many as make a batch."""
        assert self._eyes is not None
        with self._making:
            rest = [one for one in self._images[self._images.index(image) :] if not one.is_made]
            ends = itertools.accumulate(one.outline.tokens for one in rest)
            count = sum(end <= _BATCH_ROWS for end in ends)
            _make(self._eyes, rest[: max(count, 1)] if image in rest else [])

    @property
    def row_tokens(self) -> set[str]:
        """The texts that stand for a row."""
        return {text for one in self._images for text, _, image in one.outline.pieces if image}

    def use(self) -> ImageUse | None:
        """What became of them until now; None where there are none."""
        if not self._images:
            return None
        origins = [one.origin for one in self._images]
        return ImageUse(
            count=len(self._images),
            tokens=sum(one.outline.tokens for one in self._images),
            encoded=origins.count("tower"),
            from_memory=origins.count("memory"),
            from_disk=origins.count("disk"),
            encode_s=sum(one.seconds for one in self._images),
        )


class _Image:
    """One image or video of a prompt. ``origin``: where its rows came from, empty while nobody
    asked."""

    def __init__(self, eyes: Eyes, source: Any, is_video: bool):
        self.source, self.is_video = source, is_video
        self.placeholder = eyes.video_placeholder if is_video else eyes.placeholder
        self.origin, self.seconds = "", 0.0
        self._made: ImageEmbedding | None = None
        self._ids: np.ndarray | None = None
        if isinstance(source, ImageEmbedding):
            eyes.check(source)
            self.outline: ImageOutline = source.outline
        else:
            self.outline = eyes.outline(source)

    @property
    def is_made(self) -> bool:
        return self._made is not None

    @property
    def runs(self) -> list[tuple[int, int]]:
        """(first row, rows) of each group that text parts."""
        out, at = [], 0
        for count in self.outline.runs:
            out.append((at, count))
            at += count
        return out

    def ids(self, hidden: int) -> np.ndarray:
        if self._ids is None:
            self._ids = row_ids(self.outline, hidden)
        return self._ids

    def given(
        self, first: int, at: int, count: int, make_rows: Callable[[_Image], None]
    ) -> GivenRows:
        """Rows at .. at + count - 1, standing in the prompt from `first` on. `make_rows` makes the
        image's rows."""
        places = self.outline.places

        def make() -> tuple[np.ndarray, list[np.ndarray]]:
            make_rows(self)
            made = self.made()
            rows = slice(at, at + count)
            return made.array[rows], [tap[rows] for tap in made.taps]

        return GivenRows(
            first=first,
            count=count,
            advance=count if self.outline.advance is None else self.outline.advance,
            places=None if places is None else places[at : at + count],
            make=make,
        )

    def made(self) -> ImageEmbedding:
        assert self._made is not None
        return self._made

    def take(self, made: ImageEmbedding, origin: str, seconds: float) -> None:
        self._made, self.origin, self.seconds = made, origin, seconds


def _make(eyes: Eyes, images: Sequence[_Image]) -> None:
    """Their rows. The first of them counts the time."""
    if not images:
        return
    sources = [(one.source, one.outline) for one in images]
    wanted = [pair for pair in sources if not isinstance(pair[0], ImageEmbedding)]
    start = time.perf_counter()
    found = iter(eyes.embed(wanted))
    seconds = time.perf_counter() - start if wanted else 0.0
    for one in images:
        if isinstance(one.source, ImageEmbedding):
            one.take(one.source, "memory", 0.0)
        else:
            one.take(*next(found), seconds)
            seconds = 0.0


# ---- sessions -----------------------------------------------------------------------------------


def pinned(
    eyes: Eyes | None, messages: Sequence[Mapping[str, Any]], blind: str
) -> list[dict[str, Any]]:
    """Messages whose images are opened: what a path names may change, the conversation may not."""

    def pin(part: Mapping[str, Any], where: str) -> dict[str, Any]:
        source = _source(part, where)
        kind = VIDEO_PART if isinstance(source.image, Clip) else "image"
        return {"type": kind, kind: _seen(eyes, source, blind)}

    return with_media(messages, pin)


def savable(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pinned messages as JSON has them: an image's pixels, packed."""

    def save(part: Mapping[str, Any], where: str) -> dict[str, Any]:
        kind = part["type"]
        seen = part.get(kind)
        if isinstance(seen, ImageEmbedding) or not hasattr(seen, "pixels"):
            raise InvalidRequest(f"{where}: an ImageEmbedding cannot be saved; give the {kind}")
        packed = base64.b64encode(zlib.compress(seen.pixels.tobytes(), 1)).decode()
        times = {"indices": list(seen.indices), "fps": seen.fps} if kind == VIDEO_PART else {}
        return {"type": kind, "size": list(seen.pixels.shape[:-1]), "pixels": packed} | times

    return with_media(messages, save)


def restored(messages: Sequence[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
    """What :func:`savable` was given. CorruptFile for what it cannot have written."""

    def restore(part: Mapping[str, Any], place: str) -> dict[str, Any]:
        place = f"{where}: {place}"
        if part["type"] == VIDEO_PART:
            return {"type": VIDEO_PART, VIDEO_PART: _restored_video(part, place)}
        return {"type": "image", "image": opened(_restored_pixels(part, place, 2))}

    return with_media(messages, restore)


def _restored_pixels(part: Mapping[str, Any], place: str, sides: int) -> np.ndarray:
    """uint8 [(frames,) height, width, 3]."""
    size, packed = part.get("size"), part.get("pixels")
    good = isinstance(size, list) and len(size) == sides and isinstance(packed, str)
    if not good or not all(type(n) is int and 1 <= n <= 1 << 16 for n in size):
        kind = "a video" if part["type"] == VIDEO_PART else "an image"
        raise CorruptFile(f"{place}: {kind} has a size and pixels")
    wanted = 3 * math.prod(size)
    if wanted > 3 * MOST_PIXELS:
        raise CorruptFile(f"{place}.size: {size}, at most {MOST_PIXELS} pixels are saved")
    try:
        unpack = zlib.decompressobj()
        pixels = unpack.decompress(base64.b64decode(packed, validate=True), wanted + 1)
    except (binascii.Error, zlib.error) as error:
        raise CorruptFile(f"{place}.pixels: {error}") from None
    if len(pixels) != wanted:
        raise CorruptFile(f"{place}.pixels: not the {wanted} bytes of its size")
    return np.frombuffer(pixels, np.uint8).reshape(*size, 3)


def _restored_video(part: Mapping[str, Any], place: str) -> Video:
    pixels, indices = _restored_pixels(part, place, 3), part.get("indices")
    good = isinstance(indices, list) and len(indices) == len(pixels)
    if not good or not all(type(n) is int and 0 <= n < MOST_FRAMES for n in indices):
        raise CorruptFile(f"{place}.indices: not {len(pixels)} whole numbers below {MOST_FRAMES}")
    try:
        return Video(pixels, tuple(indices), checked_fps(part.get("fps")))
    except InvalidRequest as error:
        raise CorruptFile(f"{place}.{error}") from None
