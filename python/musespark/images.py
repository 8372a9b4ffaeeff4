"""Images of a conversation: taken out of its messages, written into its prompt, encoded when the
engine asks for them."""

from __future__ import annotations

import base64
import binascii
import re
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from musespark.errors import CorruptFile, InvalidRequest, MissingLibrary, UnsupportedModel
from musespark.events import GivenRows
from musespark.results import ImageUse
from musespark.text.given import IMAGE_PARTS
from musespark.vision.embedding import ImageEmbedding, ImageOutline, row_ids
from musespark.vision.pixels import Limits, open_picture

if TYPE_CHECKING:
    from musespark.text import Tokenizer
    from musespark.vision.eyes import Eyes
    from musespark.vision.pixels import Picture

_DATA = re.compile(r"data:[\w.+/-]*(;[\w=.+-]+)*?(;base64)?,", re.IGNORECASE)
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_MOST_DATA = 256 << 20  # characters of a data URL
_MOST_PIXELS = 1 << 28  # of all images of a prompt: 3 bytes each, while it runs
_HOLDS = ("image", "image_url", "url", "path", "data")
Ids = list[int]


class Source(NamedTuple):
    """What an image part holds, and where it stands."""

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
    return _local(value, where) if isinstance(value, str) else value


def _check_keys(given: Mapping[str, Any], known: set[str], where: str) -> None:
    for key, value in given.items():
        if key not in known:
            raise InvalidRequest(f"{where}.{key}: unknown; known are {', '.join(sorted(known))}")
        if key == "detail" and value not in (None, "auto"):
            raise InvalidRequest(
                f"{where}.detail: got {value!r:.40}, allowed is 'auto': how large an image is seen "
                "is the model's own"
            )


def _local(text: str, where: str) -> Any:
    if text[:5].lower() == "data:":
        return _data(text, where)
    if text[:7].lower() == "file://":
        return text[7:]
    if _REMOTE.match(text):
        raise InvalidRequest(f"{where}: got {text!r:.80}; nothing remote is fetched, give the file")
    return text


def _data(url: str, where: str) -> bytes:
    if len(url) > _MOST_DATA:
        raise InvalidRequest(f"{where}: {len(url)} characters, at most {_MOST_DATA} are allowed")
    head = _DATA.match(url)
    if head is None or head[2] is None:
        raise InvalidRequest(f"{where}: got {url!r:.60}, allowed is data:…;base64,…")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except binascii.Error as error:
        raise InvalidRequest(f"{where}: not base64: {error}") from None


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in IMAGE_PARTS


def without_images(messages: Any) -> tuple[Any, list[Source]]:
    """The messages with bare ``{"type": "image"}`` parts, and what the parts held, in order."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        return messages, []
    found: list[Source] = []
    plain = []
    for i, message in enumerate(messages):
        if callable(getattr(message, "model_dump", None)):  # pydantic
            message = message.model_dump()
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, (list, tuple)) and any(map(_is_image, content)):
            parts = []
            for j, part in enumerate(content):
                if _is_image(part):
                    where = f"messages[{i}].content[{j}]"
                    found.append(Source(image_of(part, where), where))
                    part = {"type": "image"}
                parts.append(part)
            message = {**message, "content": parts}
        plain.append(message)
    return plain, found


def opened(source: Any, where: str = "image") -> Any:
    """A Picture of what an image part holds, or the ImageEmbedding that it is; errors say
    ``where``."""
    if isinstance(source, ImageEmbedding):
        return source
    try:
        return open_picture(source)
    except (InvalidRequest, CorruptFile, MissingLibrary) as error:
        raise type(error)(f"{where}: {error}") from None
    except OSError as error:
        raise InvalidRequest(f"{where}: {source!r:.120}: {error.strerror}") from None
    except ValueError as error:  # a name with a null character
        raise InvalidRequest(f"{where}: {source!r:.120}: {error}") from None


def encoded(eyes: Eyes | None, image: Any, blind: str) -> ImageEmbedding:
    """See :meth:`musespark.Model.encode_image`; ``blind`` is why there are no eyes."""
    if eyes is None:
        raise UnsupportedModel(f"images: {blind}")
    return _Image(eyes, opened(image)).made()


# ---- prompts ------------------------------------------------------------------------------------


class PromptImages:
    """The images of one prompt, in order. Made for one request. ``blind``: why there are no eyes,
    where there are none."""

    def __init__(self, eyes: Eyes | None, sources: Sequence[Source], blind: str):
        self._eyes = eyes
        self._images: list[_Image] = []
        if sources and eyes is None:
            raise UnsupportedModel(f"images: {blind}")
        if len(sources) > (most := Limits().count):
            raise InvalidRequest(f"messages: {len(sources)} images, at most {most} are taken")
        pixels = 0
        for source, where in sources:
            assert eyes is not None
            one = opened(source, where)
            pixels += 0 if isinstance(one, ImageEmbedding) else one.pixels.size // 3
            if pixels > _MOST_PIXELS:
                raise InvalidRequest(
                    f"{where}: the images up to here have {pixels} pixels, at most {_MOST_PIXELS} "
                    "are taken together"
                )
            self._images.append(_Image(eyes, one))

    def __len__(self) -> int:
        return len(self._images)

    @property
    def outlines(self) -> list[ImageOutline]:
        """What the prompt knows of each."""
        return [one.outline for one in self._images]

    @property
    def pictures(self) -> list[Picture]:
        """Each of them; empty where one is an embedding."""
        found = [one.source for one in self._images]
        return [] if any(isinstance(one, ImageEmbedding) for one in found) else found

    @property
    def markers(self) -> set[str]:
        """What the template writes for an image, and what stands for a row: markers, whatever else
        the tokenizer and the template make of them."""
        rows = {text for one in self._images for text, _, image in one.outline.pieces if image}
        return rows | {self._eyes.placeholder} if self._images and self._eyes else set()

    def written(self, pieces: Sequence[tuple[str, bool]], tokenizer: Tokenizer) -> list:
        """A rendered conversation with the images written out: each run of rows as one marker.
        InvalidRequest unless the template wrote each image once."""
        if not self._images:
            return list(pieces)
        assert self._eyes is not None
        left = iter(self._images)
        placeholder, out, found = self._eyes.placeholder, [], 0
        for text, marker in pieces:
            if not marker or text != placeholder:
                out.append((text, marker))
                continue
            found += 1
            image = next(left, None)
            for piece, count, is_row in image.outline.pieces if image else ():
                known = piece in tokenizer.markers
                out += [(piece, known)] * (1 if is_row else count)
        if found != len(self._images):
            raise InvalidRequest(
                f"messages: {len(self._images)} images, but the chat template writes "
                f"{placeholder!r} {found} times; the model would not see each of them once"
            )
        return out

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
            given.append(image.given(len(out), at, count))
            out += image.ids(hidden)[at : at + count].tolist()
        if len(given) != len(runs):
            raise InvalidRequest(
                f"messages: {len(runs)} groups of image rows were written, {len(given)} encoded; "
                "the tokenizer does not know the model's image token"
            )
        return out, given

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
    """One image of a prompt. ``origin``: where its rows came from, empty while nobody asked."""

    def __init__(self, eyes: Eyes, source: Any):
        self._eyes, self.source = eyes, source
        self.origin, self.seconds = "", 0.0
        self._made: ImageEmbedding | None = None
        self._ids: np.ndarray | None = None
        self._making = threading.Lock()
        if isinstance(source, ImageEmbedding):
            eyes.check(source)
            self.outline: ImageOutline = source.outline
        else:
            self.outline = eyes.outline(source)

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

    def given(self, first: int, at: int, count: int) -> GivenRows:
        """Rows at .. at + count - 1, standing in the prompt from `first` on."""
        places = self.outline.places

        def make() -> tuple[np.ndarray, list[np.ndarray]]:
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
        with self._making:
            if self._made is None and isinstance(self.source, ImageEmbedding):
                self._made, self.origin = self.source, "memory"
            elif self._made is None:
                start = time.perf_counter()
                self._made, self.origin = self._eyes.embed(self.source, self.outline)
                self.seconds = time.perf_counter() - start
            return self._made


# ---- sessions -----------------------------------------------------------------------------------


def _each_image(messages: Sequence[Mapping[str, Any]], change: Any) -> list[dict[str, Any]]:
    """Copies of messages whose image parts are what `change` makes of a part and its place."""
    out = []
    for i, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, (list, tuple)) and any(map(_is_image, content)):
            parts = [
                change(part, f"messages[{i}].content[{j}]") if _is_image(part) else part
                for j, part in enumerate(content)
            ]
            message = {**message, "content": parts}
        out.append(dict(message))
    return out


def pinned(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose images are opened: what a path names may change, the conversation may not."""

    def pin(part: Mapping[str, Any], where: str) -> dict[str, Any]:
        return {"type": "image", "image": opened(image_of(part, where), where)}

    return _each_image(messages, pin)


def savable(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pinned messages as JSON has them: an image's pixels, packed."""

    def save(part: Mapping[str, Any], where: str) -> dict[str, Any]:
        picture = part.get("image")
        if isinstance(picture, ImageEmbedding) or not hasattr(picture, "pixels"):
            raise InvalidRequest(f"{where}: an ImageEmbedding cannot be saved; give the image")
        packed = base64.b64encode(zlib.compress(picture.pixels.tobytes(), 1)).decode()
        return {"type": "image", "size": list(picture.pixels.shape[:2]), "pixels": packed}

    return _each_image(messages, save)


def restored(messages: Sequence[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
    """What :func:`savable` was given. CorruptFile for what it cannot have written."""

    def restore(part: Mapping[str, Any], place: str) -> dict[str, Any]:
        size, packed = part.get("size"), part.get("pixels")
        good = isinstance(size, list) and len(size) == 2 and isinstance(packed, str)
        if not good or not all(type(n) is int and 1 <= n <= 1 << 16 for n in size):
            raise CorruptFile(f"{where}: {place}: an image has a size and pixels")
        wanted = 3 * size[0] * size[1]
        try:
            unpack = zlib.decompressobj()
            pixels = unpack.decompress(base64.b64decode(packed, validate=True), wanted + 1)
        except (binascii.Error, zlib.error) as error:
            raise CorruptFile(f"{where}: {place}.pixels: {error}") from None
        if len(pixels) != wanted:
            raise CorruptFile(f"{where}: {place}.pixels: not the {wanted} bytes of its size")
        array = np.frombuffer(pixels, np.uint8).reshape(*size, 3)
        return {"type": "image", "image": opened(array)}

    return _each_image(messages, restore)
