"""A model's processor, tower and cache of embeddings as one: from an image to its rows."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isqrt, prod
from typing import Any, Protocol

import numpy as np

from musespark.driver import CLOSED_MEANWHILE
from musespark.errors import Cancelled, CorruptFile, InvalidRequest, UnsupportedModel
from musespark.vision.cache import EmbeddingCache
from musespark.vision.embedding import ImageEmbedding, ImageOutline, grid_places
from musespark.vision.video import FPS, Video

_OUTLINES = 1024  # remembered, a few hundred bytes each
_PATCHES = 64 << 20  # bytes of patches kept from an image's outline until its rows are asked for


class Features(Protocol):
    rows: np.ndarray
    taps: tuple[np.ndarray, ...]


class Processor(Protocol):
    """What makes patches of a picture, and says how it is written (vision/preprocess.py)."""

    family: str
    placeholder: str
    video_placeholder: str
    convention: str

    def fitted(self, size: tuple[int, int]) -> tuple[int, int]: ...
    def process_picture(self, picture: Any) -> Any: ...
    def open_video(self, frames: Any, fps: Any) -> Video: ...
    def process_video(self, video: Video) -> Any: ...


class Tower(Protocol):
    """What makes rows of patches (vision/tower.py)."""

    width: int
    taps: int

    def tokens(self, grid: Any) -> int: ...
    def encode(
        self, patches: np.ndarray, grids: Any, stopped: Callable[[], bool] = ...
    ) -> Features: ...
    def close(self) -> None: ...


class Eyes:
    """``identity``: what the rows depend on beside pixels and processing: the model. ``by_axis``:
    its text side has positions along three axes. Thread-safe."""

    def __init__(
        self,
        processor: Processor,
        tower: Tower,
        cache: EmbeddingCache,
        *,
        identity: str,
        by_axis: bool,
    ):
        self.processor, self.tower, self.cache = processor, tower, cache
        self.width = tower.width
        self._identity, self._by_axis = identity, by_axis
        # By pixels, and where they lie in an original: a crop's outline says where its rows do.
        self._outlines: OrderedDict[tuple[str, Any], ImageOutline] = OrderedDict()
        self._ready: OrderedDict[tuple[str, Any], Any] = OrderedDict()  # processed, not yet encoded
        self._lock = threading.Lock()  # of the outlines and of what is ready
        self._stopped = False
        self._encoding = threading.Lock()  # one call at a time: the tower uses every thread

    @property
    def placeholder(self) -> str:
        """What a chat template writes for an image."""
        return self.processor.placeholder

    @property
    def family(self) -> str:
        """The family's name, as errors say it."""
        return self.processor.family

    @property
    def video_placeholder(self) -> str:
        """What a chat template writes for a video; empty where the family reads none."""
        return self.processor.video_placeholder

    def open_video(self, frames: Any, fps: Any = None) -> Video:
        """The frames that the model takes of a video; ``fps`` None: nobody says. As the family's
        processor does: UnsupportedModel of those that read none."""
        return self.processor.open_video(frames, FPS if fps is None else fps)

    def _processed(self, picture: Any) -> Any:
        if isinstance(picture, Video):
            return self.processor.process_video(picture)
        return self.processor.process_picture(picture)

    def outline(self, picture: Any) -> ImageOutline:
        """What a prompt must know of a picture or a Video."""
        of = (picture.sha256, picture.transform)
        with self._lock:
            known = self._outlines.get(of)
        if known is not None:
            return known
        processed = self._processed(picture)
        outline = self._outline_of(processed)
        with self._lock:
            self._outlines[of] = outline
            if len(self._outlines) > _OUTLINES:
                self._outlines.popitem(last=False)
            self._ready[of] = processed
            while sum(one.patches.nbytes for one in self._ready.values()) > _PATCHES:
                self._ready.popitem(last=False)
        return outline

    def _taken(self, picture: Any) -> Any:
        """What was processed for a picture's outline, once; None where it is not kept."""
        with self._lock:
            return self._ready.pop((picture.sha256, picture.transform), None)

    def check(self, embedding: ImageEmbedding) -> None:
        """InvalidRequest for one that another model made."""
        found = (
            embedding.array.shape[1],
            len(embedding.taps),
            embedding.outline.places is not None,
        )
        wanted = (self.width, self.tower.taps, self._by_axis)
        names = ("columns", "taps", "positions along three axes")
        for name, one, ours in zip(names, found, wanted, strict=True):
            if one != ours:
                raise InvalidRequest(
                    f"an image's embedding of another model: {name}: got {one}, needed is {ours}"
                )
        made_by = embedding.outline.model
        if made_by and made_by != self._identity:
            raise InvalidRequest(
                "an image's embedding of another model (or of its other quantization): made by "
                f"{made_by:.16}, this is {self._identity:.16}"
            )

    def _outline_of(self, processed: Any) -> ImageOutline:
        written = sum(count for _, count, image in processed.pieces if image)
        given = sum(self.tower.tokens(tile.grid) for tile in processed.tiles)
        if written != given:
            raise CorruptFile(
                f"images: the processor's settings write {written} tokens for this one, the tower "
                f"gives {given} rows (of patches {[tile.grid for tile in processed.tiles]})"
            )
        key = hashlib.sha256(f"{self._identity}\n{processed.key}".encode()).digest()
        tiles = processed.tiles
        grids = tuple(_rows_of(tile) for tile in tiles)
        places, advance = None, None
        if self._by_axis:
            if len(grids) != 1 or grids[0][0] != 1:
                raise UnsupportedModel(
                    f"images: {len(grids)} tiles of {grids[0][0]} frames have no places along "
                    "three axes"
                )
            _, height, width = grids[0]
            places, advance = grid_places(height, width), max(height, width)
        pieces = tuple((text, count, image) for text, count, image in processed.pieces)
        transforms = tuple(tile.transform for tile in tiles)
        transform = transforms[0] if len(transforms) == 1 else transforms
        return ImageOutline(key, pieces, grids, places, advance, transform, self._identity)

    def embed(self, wanted: Sequence[tuple[Any, ImageOutline]]) -> list[tuple[ImageEmbedding, str]]:
        """The embeddings of pictures with their outlines, and where each comes from: ``memory``,
        ``disk`` or ``tower``. Those that nobody knows go through the tower as one batch; each has
        the rows that it has alone."""
        with self._encoding:  # who waits finds them known
            known: dict[bytes, tuple[ImageEmbedding, str]] = {}
            new: dict[bytes, tuple[Any, Any, ImageOutline]] = {}
            for picture, outline in wanted:
                embedding, where = self.cache.get(outline, self.width)
                ready = self._taken(picture)
                if embedding is not None:
                    known[outline.key] = embedding, where
                elif outline.key not in known:
                    new.setdefault(outline.key, (picture, ready, outline))
            made = self._encoded(list(new.values()))
            for embedding in made:
                self.cache.put(embedding)
        known |= {one.outline.key: (one, "tower") for one in made}
        found = []
        for _, outline in wanted:  # of the same rows, maybe written or placed in another way
            embedding, where = known[outline.key]
            found.append((replace(embedding, outline=outline), where))
            known[outline.key] = embedding, "memory" if where == "tower" else where
        return found

    def _encoded(self, new: Sequence[tuple[Any, Any, ImageOutline]]) -> list[ImageEmbedding]:
        """Of pictures, what they were processed to, or None, and their outlines."""
        if not new:
            return []
        processed = [
            self._processed(picture) if ready is None else ready for picture, ready, _ in new
        ]
        patches = [one.patches for one in processed]
        grids = [tile.grid for one in processed for tile in one.tiles]
        all_patches = patches[0] if len(new) == 1 else np.concatenate(patches)
        try:
            found = self.tower.encode(all_patches, grids, lambda: self._stopped)
        except Cancelled:
            raise Cancelled(CLOSED_MEANWHILE) from None
        ends = np.cumsum([outline.tokens for *_, outline in new])[:-1]
        arrays = [_parts(rows, ends) for rows in (found.rows, *found.taps)]
        return [
            ImageEmbedding(outline, rows, tuple(taps))
            for (*_, outline), rows, *taps in zip(new, *arrays, strict=True)
        ]

    def stop(self) -> None:
        """Ends what is being encoded within a layer; who waits for it gets Cancelled."""
        self._stopped = True

    def close(self) -> None:
        """Lets the tower go. Idempotent."""
        self.stop()
        self.tower.close()


def _parts(rows: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """Each on its own, so that none keeps the others in memory."""
    return [rows] if len(ends) == 0 else [part.copy() for part in np.split(rows, ends)]


def _rows_of(tile: Any) -> tuple[int, int, int]:
    """(frames, rows, columns) of embeddings of a tile whose patches are merged to squares."""
    frames, height, width = tile.grid
    merge = isqrt(prod(tile.grid) // tile.tokens) or 1
    return frames, height // merge, width // merge
