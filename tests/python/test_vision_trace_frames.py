"""Frames that differ are given on; the rest is counted and dropped."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from musespark.errors import InvalidRequest
from musespark.vision.frames import Frames


def still(level: int = 100, size: tuple[int, int] = (60, 90)) -> np.ndarray:
    noise = np.random.default_rng(level).integers(-3, 4, (*size, 3))
    return (level + noise).astype(np.uint8)


def test_only_frames_that_differ_are_given_on() -> None:
    moved = still()
    moved[20:24, 40:46] = 255  # a small thing: 24 of 5,400 pixels
    frames = Frames([still(), still() + 1, moved, moved, still(), still(140)])
    assert [frame.index for frame in frames] == [0, 2, 4, 5]
    assert (frames.seen, frames.given) == (6, 4)
    assert frames.kept[0].change == float("inf")
    assert 38 < frames.kept[3].change < 44


def test_slow_changes_add_up() -> None:
    frames = Frames([np.full((8, 8, 3), level, np.uint8) for level in range(100, 130)])
    assert [frame.index for frame in frames] == [0, 9, 18, 27]


def test_the_last_k_are_kept_and_the_source_is_read_as_needed() -> None:
    read = []

    def camera() -> Iterator[np.ndarray]:
        for level in range(0, 250, 20):
            read.append(level)
            yield np.full((5, 7), level, np.uint8)

    frames = Frames(camera(), keep=2)
    next(frames)
    assert read == [0]
    assert len(list(frames)) == 12
    assert [frame.index for frame in frames.kept] == [11, 12]
    assert frames.kept[1].picture.pixels.shape == (5, 7, 3)


def test_another_size_is_a_change() -> None:
    frames = Frames([still(), still(size=(60, 91))], threshold=255)
    assert [frame.change for frame in frames] == [float("inf")] * 2


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3, 17), (16, 16), (33, 40)])
def test_blocks_cover_every_pixel_once(size: tuple[int, int]) -> None:
    """A change of the last pixel alone is seen when it is large enough for its block."""
    before = np.zeros((*size, 3), np.uint8)
    after = before.copy()
    after[-1, -1] = 255
    rows, columns = -(-size[0] // 16), -(-size[1] // 16)
    frames = list(Frames([before, after], threshold=0))
    assert frames[1].change >= 255 / (rows * columns) - 1e-3


def test_wrong_settings_and_frames_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="threshold: 300"):
        Frames([], threshold=300)
    with pytest.raises(InvalidRequest, match="keep: 0"):
        Frames([], keep=0)
    with pytest.raises(InvalidRequest, match="an image array is uint8"):
        next(Frames([np.zeros((4, 4))]))
