"""Videos: those frames that a model takes, in one form, whatever they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musespark.errors import InvalidRequest
from musespark.vision.geometry import IDENTITY, Transform
from musespark.vision.pixels import Limits, Picture, open_named

FPS = 24.0  # where nobody says, as transformers takes it
FPS_RANGE = (1e-6, 1e6)
MOST_FRAMES = 1 << 20  # given; a processor takes few of them
MOST_PIXELS = 1 << 28  # of the frames taken, together


@dataclass(frozen=True, eq=False)
class Video:
    """Frames of a video, and when they were.

    ``pixels``: uint8 [frames, height, width, 3], packed, read-only: those that a model takes, of
    ``indices`` in the video, which has ``fps`` frames a second. ``transform`` maps a frame's pixels
    to those of its original, as in :class:`Picture`.
    """

    pixels: NDArray[np.uint8] = field(repr=False)
    indices: tuple[int, ...]
    fps: float
    transform: Transform = IDENTITY

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of each frame."""
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def times(self) -> list[float]:
        """When each frame was, in seconds."""
        return [index / self.fps for index in self.indices]

    @cached_property
    def frames(self) -> tuple[Picture, ...]:
        """Each frame, its pixels shared."""
        return tuple(Picture(one, transform=self.transform) for one in self.pixels)

    @cached_property
    def sha256(self) -> str:
        """Of the pixels, their shape and the times, in hexadecimal."""
        state = hashlib.sha256(np.array(self.pixels.shape, "<u8").tobytes())
        state.update(np.array(self.indices, "<u8").tobytes() + np.array(self.fps, "<f8").tobytes())
        state.update(self.pixels.data)
        return state.hexdigest()


def open_video(
    frames: Any,
    fps: Any,
    choose: Callable[[int, float], list[int]],
    *,
    most: int,
    limits: Limits | None = None,
) -> Video:
    """A video from an array uint8 [frames, height, width, channels] or a list of what open_picture
    takes. ``choose``: which of so many frames, so many a second, are taken; only these are looked
    at, and they may be ``most``.

    Raises as open_picture does, naming the frame, and InvalidRequest for no frames, too many,
    frames of more than one size, more pixels than MOST_PIXELS together, and a rate that is none.
    """
    fps = checked_fps(fps)
    indices = choose(_count(frames), fps)
    if len(indices) > most:
        raise InvalidRequest(f"video: {len(indices)} frames would be taken, at most {most} are")
    first = open_named(frames[indices[0]], f"video[{indices[0]}]", limits=limits)
    height, width = first.size
    if (pixels := len(indices) * height * width) > MOST_PIXELS:
        raise InvalidRequest(
            f"video: {len(indices)} frames of {width} x {height} = {pixels} pixels, at most "
            f"{MOST_PIXELS} are taken together"
        )
    together = np.empty((len(indices), height, width, 3), np.uint8)
    together[0] = first.pixels
    transform = first.transform
    del first
    for place, index in enumerate(indices[1:], 1):
        picture = open_named(frames[index], f"video[{index}]", limits=limits)
        if picture.size != (height, width):
            raise InvalidRequest(
                f"video: the frames of a video have one size; frame {index} has "
                f"{picture.size[1]} x {picture.size[0]} pixels, frame {indices[0]} {width} x "
                f"{height}"
            )
        together[place] = picture.pixels
    together.flags.writeable = False
    return Video(together, tuple(indices), fps, transform)


def checked_fps(fps: Any) -> float:
    """Frames a second; InvalidRequest for what is none."""
    low, high = FPS_RANGE
    known = isinstance(fps, (int, float, np.integer, np.floating)) and not isinstance(fps, bool)
    if not known or not low <= fps <= high:  # not a number compares as false
        raise InvalidRequest(f"fps: got {fps!r:.40}, allowed is a number from {low:g} to {high:g}")
    return float(fps)


def _count(frames: Any) -> int:
    allowed = "an array uint8 [frames, height, width, channels] or a list of pictures"
    if isinstance(frames, np.ndarray):
        if frames.ndim != 4 or frames.dtype != np.uint8:
            got = f"{frames.dtype} {list(frames.shape)}"
            raise InvalidRequest(f"video: got {got}, allowed is {allowed}")
    elif isinstance(frames, (str, bytes, bytearray, memoryview, Mapping)) or not isinstance(
        frames, Sequence
    ):
        what = type(frames).__name__
        raise InvalidRequest(f"video: got {what}, allowed is {allowed}; no video file is decoded")
    if not 1 <= len(frames) <= MOST_FRAMES:
        raise InvalidRequest(f"video: got {len(frames)} frames, allowed are 1 to {MOST_FRAMES}")
    return len(frames)
