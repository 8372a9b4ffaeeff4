"""What a model makes of an image: rows that stand in a prompt in place of embeddings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musespark.errors import InvalidRequest

Piece = tuple[str, int, bool]  # a text, how often it stands there, whether each time it is a row


@dataclass(frozen=True, eq=False)
class ImageOutline:
    """What a prompt must know of an image before it is encoded.

    ``key``: 32 bytes, SHA-256 of the pixels, how they are processed, and by which model.
    ``pieces``: how the image is written in a prompt. ``grid``: (frames, rows, columns) of
    embeddings, of each tile. ``places``: int32 [tokens, 3], rotary positions along time, height and
    width, counted from the image's first, for models that have such (None: one after the other);
    what comes behind the image goes on ``advance`` positions after its first. ``transform``: from
    the processed image's pixels to the original's, of the whole image or of each tile.
    ``model``: what names the model; empty where nobody says.
    """

    key: bytes
    pieces: tuple[Piece, ...]
    grid: tuple[tuple[int, int, int], ...] = ()
    places: NDArray[np.int32] | None = field(default=None, repr=False)
    advance: int | None = None
    transform: Any = None
    model: str = field(default="", repr=False)

    @property
    def runs(self) -> list[int]:
        """How many rows stand side by side, of each group that text parts."""
        return [count for _, count, image in self.pieces if image]

    @property
    def tokens(self) -> int:
        """Rows in all."""
        return sum(self.runs)


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """An image as a model sees it, made by :meth:`musespark.Model.encode_image`; may stand in a
    message as an image.

    ``array``: float32 [tokens, width of the text's model], read-only. ``taps``: arrays of the same
    shape that the first layers of the text's model add (Qwen3-VL).
    """

    outline: ImageOutline
    array: NDArray[np.float32] = field(repr=False)
    taps: tuple[NDArray[np.float32], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        tokens = self.outline.tokens
        for one in (self.array, *self.taps):
            if one.dtype != np.float32 or one.ndim != 2 or len(one) != tokens:
                raise InvalidRequest(
                    f"an image's embedding: got {one.dtype} {one.shape}, "
                    f"float32 with {tokens} rows is needed"
                )
            one.setflags(write=False)

    @property
    def key(self) -> str:
        """SHA-256 of the pixels, how they were processed and by which model, in hexadecimal."""
        return self.outline.key.hex()

    @property
    def grid(self) -> tuple[tuple[int, int, int], ...]:
        """(frames, rows, columns) of embeddings, of each tile."""
        return self.outline.grid

    @property
    def transform(self) -> Any:
        """From the processed image's pixels to the original's."""
        return self.outline.transform

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        return self.array.nbytes + sum(tap.nbytes for tap in self.taps)

    def __repr__(self) -> str:
        return f"<musespark.ImageEmbedding {self.array.shape} {self.key[:12]}>"


def row_ids(outline: ImageOutline, hidden: int) -> NDArray[np.int32]:
    """int32 [tokens]: the ids that stand for the rows in a sequence of tokens, all negative.

    31 bits each of a hash of the key, the places and the row's number: keys and values are found
    again by ids alone, and a page of 64 with the same ids was made of the same rows. (A sequence
    that is gone on with shares single rows too: two images agree in one with a chance of 2^-31.)
    """
    seed = hashlib.sha256(outline.key + np.array([hidden, outline.tokens], "<i8").tobytes())
    if outline.places is not None:
        seed.update(np.ascontiguousarray(outline.places, "<i4").tobytes())
    if outline.advance is not None:
        seed.update(outline.advance.to_bytes(8, "little"))
    words = [
        hashlib.sha256(seed.digest() + block.to_bytes(8, "little")).digest()
        for block in range(-(-outline.tokens // 8))
    ]
    ids = np.frombuffer(b"".join(words), "<u4")[: outline.tokens]
    return (ids | np.uint32(1 << 31)).astype(np.uint32).view(np.int32)


def grid_places(height: int, width: int, frames: int = 1) -> NDArray[np.int32]:
    """int32 [frames * height * width, 3]: places of an image's or a video's rows, row by row."""
    at = np.indices((frames, height, width), np.int32)
    return np.ascontiguousarray(at.reshape(3, -1).T)
