"""Muse Glimmer and Muse Spark: images and videos of any size in whole blocks of merged patches, at
most so many tokens. As in image_processing_muse_glimmer.py, video_processing_muse_glimmer.py and
processing_muse_glimmer.py."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from musespark.errors import CorruptFile, UnsupportedModel
from musespark.vision.pixels import Limits, Picture
from musespark.vision.preprocess import (
    COMMON,
    Levels,
    Piece,
    ProcessedImage,
    Processor,
    Settings,
    Size,
    Stage,
    Tile,
    patch_rows,
)
from musespark.vision.video import FPS, Video, open_video

_VIDEO = hashlib.sha256(b"video").hexdigest()
_STAMP = re.compile(r"[^{}]{0,80}\{timestamp(:\.\d{1,2}f)?\}[^{}]{0,80}")


def smart_size(size: Size, unit: int, most: int) -> Size:
    """Whole units each way, the grid around the ideal one whose aspect is closest."""
    height, width = size
    rows, columns = height / unit, width / unit
    ratio = columns / rows
    if rows * columns > most:
        rows = (most / ratio) ** 0.5
        columns = rows * ratio
    # A set, as there: it is its order that decides between 25 x 25 and 26 x 26 for a square.
    around = set(
        itertools.product(
            [math.floor(rows), math.ceil(rows)], [math.floor(columns), math.ceil(columns)]
        )
    )
    fitting = [grid for grid in around if min(grid) >= 1 and grid[0] * grid[1] <= most]
    fitting = fitting or [(max(1, round(rows)), max(1, round(columns)))]
    rows, columns = min(fitting, key=lambda grid: abs(grid[0] / grid[1] - height / width))
    return rows * unit, columns * unit


def sampled_frames(count: int, wanted: int) -> list[int]:
    """``wanted`` frames spread evenly over ``count``, as torch.linspace does in float32: from both
    ends to the middle."""
    one = np.float32
    if wanted == 1:
        return [0]
    last = one(count - 1)
    step = last / one(wanted - 1)
    return [
        int(step * one(i)) if i < wanted // 2 else int(last - step * one(wanted - 1 - i))
        for i in range(wanted)
    ]


class Muse(Processor):
    """One tile for an image, its patches row by row; one for a video, group by group of frames."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **COMMON,
        "resample": 1,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "max_image_tokens": 4096,
    }
    video_defaults: ClassVar[Mapping[str, Any]] = {
        **COMMON,
        "resample": 1,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "max_video_frame_tokens": 144,
        "num_frames": 96,
        "fps": 2.0,
        "do_sample_frames": True,
        "frame_timestamp_format": "Time: {timestamp:.1f}s",
    }
    fused = True
    placeholder = "<|patch|>"
    convention = "muse"
    video_placeholder = "<|video|>"

    def __init__(
        self,
        config: Mapping[str, Any],
        preprocessor: Mapping[str, Any] | None = None,
        processor: Mapping[str, Any] | None = None,
        video_preprocessor: Mapping[str, Any] | None = None,
    ):
        self.video = Settings(video_preprocessor or {}, self.video_defaults)
        super().__init__(config, preprocessor, processor)

    def setup(self) -> None:
        for settings in (self.settings, self.video):
            settings.must_be("do_resize", True)
            settings.count("patch_size", most=1024)
            settings.count("temporal_patch_size", most=64)
            settings.count("merge_size", most=64)
            settings.filter()
        self.settings.count("max_image_tokens")
        self.video.count("max_video_frame_tokens")
        self.video_levels = Levels(self.video, fused=True)
        self.stamp(0.0)

    def identity(self) -> list[Any]:
        return [self.settings.values, self.video.values]

    def rows_of(
        self, planes: Sequence[NDArray[np.float32]], settings: Settings
    ) -> NDArray[np.float32]:
        """float32 [patches, frames * 3 * patch * patch] of the frames of one temporal patch."""
        patch = settings.count("patch_size")
        return np.concatenate([patch_rows(each, patch) for each in planes], axis=1)

    def resized(self, picture: Picture, settings: Settings, most: str) -> Stage:
        stage = Stage.of(picture)
        unit = settings.count("patch_size") * settings.count("merge_size")
        size = smart_size(stage.size, unit, settings.count(most))
        return stage.resized(size, settings.filter(), rows_first=True)

    def group_tile(self, stage: Stage, groups: int, settings: Settings) -> Tile:
        patch = settings.count("patch_size")
        grid = (groups, stage.size[0] // patch, stage.size[1] // patch)
        tokens = math.prod(grid) // settings.count("merge_size") ** 2
        return Tile(stage.size, grid, tokens, stage.transform)

    def process_picture(self, picture: Picture) -> ProcessedImage:
        settings = self.settings
        stage = self.resized(picture, settings, "max_image_tokens")
        planes = self.levels.of(stage.pixels)
        patches = self.rows_of([planes] * settings.count("temporal_patch_size"), settings)
        tile = self.group_tile(stage, 1, settings)
        image = Piece(self.placeholder, tile.tokens, True)
        pieces = (Piece("<|image_start|>"), image, Piece("<|image_end|>"))
        return ProcessedImage(patches, (tile,), pieces, self.key(picture.sha256))

    # --- Videos ----------------------------------------------------------------------------------

    def open_video(self, frames: Any, fps: Any = FPS, *, limits: Limits | None = None) -> Video:
        """The frames of a video that are taken, ``fps`` of those given a second: as many as the
        configuration says (2 a second, at most 96). As :func:`musespark.vision.video.open_video`.
        """
        settings, tower = self.video.count("temporal_patch_size"), "patch_temporal"
        if settings != (wanted := self.model_count(tower, 2)):
            raise UnsupportedModel(
                f"video: {self.family}: the video processor's temporal_patch_size is {settings}, "
                f"vision_config.{tower} is {wanted}"
            )
        most = self.video.count("num_frames")
        return open_video(frames, fps, self.frame_indices, most=most, limits=limits)

    def process_video(self, video: Video) -> ProcessedImage:
        """Each temporal patch takes two frames and has its time before it in the text.
        ``transform`` of the tile is that of a frame."""
        stages = [self.resized(one, self.video, "max_video_frame_tokens") for one in video.frames]
        planes = [self.video_levels.of(stage.pixels) for stage in stages]
        together = self.video.count("temporal_patch_size")
        planes += [planes[-1]] * (-len(planes) % together)
        groups = [planes[at : at + together] for at in range(0, len(planes), together)]
        patches = np.concatenate([self.rows_of(group, self.video) for group in groups])
        tile = self.group_tile(stages[0], len(groups), self.video)
        pieces = self.video_pieces(tile, video.times[::together])
        # Of one frame's patches an image would have others.
        key = self.key(_VIDEO, *(frame.sha256 for frame in video.frames))
        return ProcessedImage(patches, (tile,), pieces, key)

    def frame_indices(self, count: int, fps: float) -> list[int]:
        if not self.video.flag("do_sample_frames"):
            return list(range(count))
        together = self.video.count("temporal_patch_size")
        wanted = int(min(count * self.video.number("fps") / fps, self.video.count("num_frames")))
        wanted = max(together, min(wanted, count) // together * together)
        return sampled_frames(count, min(wanted, count))

    def stamp(self, seconds: float) -> str:
        form = self.video.values["frame_timestamp_format"]
        # A format from a file may ask for the seconds and nothing else.
        if not isinstance(form, str) or not _STAMP.fullmatch(form):
            raise CorruptFile(f"video processor: frame_timestamp_format {form!r:.80}")
        return form.format(timestamp=seconds)

    def video_pieces(self, tile: Tile, times: list[float]) -> tuple[Piece, ...]:
        each = tile.tokens // tile.grid[0]
        pieces = [Piece("<|vid_start|>")]
        for number, seconds in enumerate(times):
            last = number == len(times) - 1
            pieces += [
                Piece(self.stamp(seconds)),
                Piece(self.video_placeholder, each, True),
                Piece("<|vid_end|>" if last else "<|vid_frame_separator|>"),
            ]
        return tuple(pieces)
