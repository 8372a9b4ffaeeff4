"""Image processors beside transformers': configurations, images, and what theirs make of them.

What follows ``theirs`` needs transformers, Pillow and torchvision; the rest numpy alone, since the
tests read it too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray


class Case(NamedTuple):
    """A family's configuration, small enough for a test, or as a known model has it."""

    model_type: str
    theirs: str  # the class in transformers
    preprocessor: dict[str, Any]
    config: Mapping[str, Any] = MappingProxyType({})
    processor: Mapping[str, Any] = MappingProxyType({})


def vision(patch: int) -> dict[str, Any]:
    return {"vision_config": {"patch_size": patch}}


SMALL: dict[str, Case] = {
    "siglip": Case("siglip", "SiglipImageProcessorPil", {}, vision(16)),
    "idefics3": Case(
        "idefics3",
        "Idefics3ImageProcessorPil",
        {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 32}},
        vision(8),
        {"image_seq_len": 4},
    ),
    "idefics3_whole": Case(
        "idefics3",
        "Idefics3ImageProcessorPil",
        {
            "size": {"longest_edge": 96},
            "max_image_size": {"longest_edge": 48},
            "do_image_splitting": False,
        },
        vision(16),
        {"image_seq_len": 9},
    ),
    "smolvlm": Case(
        "smolvlm",
        "SmolVLMImageProcessorPil",
        {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 64}},
        vision(16),
        {"image_seq_len": 16},
    ),
    "qwen2_vl": Case("qwen2_vl", "Qwen2VLImageProcessorPil", {"max_pixels": 28 * 28 * 12}),
    "qwen2_5_vl": Case(
        "qwen2_5_vl",
        "Qwen2VLImageProcessorPil",
        {"size": {"shortest_edge": 28 * 28 * 9, "longest_edge": 28 * 28 * 10}, "do_rescale": True},
    ),
    "qwen3_vl": Case(
        "qwen3_vl",
        "Qwen2VLImageProcessorPil",
        {
            "patch_size": 16,
            "size": {"shortest_edge": 65536 // 16, "longest_edge": 65536 // 4},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    ),
    "gemma3": Case(
        "gemma3",
        "Gemma3ImageProcessorPil",
        {"size": {"height": 84, "width": 84}, "do_pan_and_scan": None},
        {"mm_tokens_per_image": 9, **vision(14)},
    ),
    "gemma3_pan": Case(
        "gemma3",
        "Gemma3ImageProcessorPil",
        {
            "size": {"height": 56, "width": 56},
            "do_pan_and_scan": True,
            "pan_and_scan_min_crop_size": 20,
            "pan_and_scan_max_num_crops": 4,
            "pan_and_scan_min_ratio_to_activate": 1.2,
        },
        vision(14),
        {"image_seq_length": 4},
    ),
    "llava": Case(
        "llava",
        "CLIPImageProcessorPil",
        {"size": {"shortest_edge": 70}, "crop_size": {"height": 56, "width": 56}},
        {"vision_feature_select_strategy": "default", **vision(14)},
    ),
    "llava_crop_pads": Case(
        "llava",
        "CLIPImageProcessorPil",
        {"size": 42, "crop_size": 56},
        vision(14),
        {"patch_size": 14, "vision_feature_select_strategy": "full"},
    ),
    "llava_padded": Case(
        "llava",
        "LlavaImageProcessorPil",
        {
            "size": {"shortest_edge": 56},
            "crop_size": {"height": 56, "width": 56},
            "do_pad": True,
            "image_processor_type": "LlavaImageProcessor",
        },
        vision(14),
    ),
    "lfm2_vl": Case(
        "lfm2_vl",
        "Lfm2VlImageProcessor",
        {"tile_size": 64, "min_image_tokens": 4, "max_image_tokens": 9},
    ),
    "lfm2_vl_whole": Case(
        "lfm2_vl",
        "Lfm2VlImageProcessor",
        {"min_image_tokens": 4, "max_image_tokens": 9, "do_image_splitting": False},
    ),
    "muse_glimmer": Case("muse_glimmer", "MuseGlimmerImageProcessor", {"max_image_tokens": 12}),
    "muse_spark": Case(
        "muse_spark", "MuseGlimmerImageProcessor", {"max_image_tokens": 20, "patch_size": 8}
    ),
}

# As the models have them; for real images.
REAL: dict[str, Case] = {
    "siglip": Case(
        "siglip", "SiglipImageProcessorPil", {"size": {"height": 512, "width": 512}}, vision(16)
    ),
    "idefics3": Case("idefics3", "Idefics3ImageProcessorPil", {}, vision(14)),
    "smolvlm": Case(
        "smolvlm",
        "SmolVLMImageProcessorPil",
        {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
        vision(16),
        {"image_seq_len": 64},
    ),
    "qwen2_5_vl": Case(
        "qwen2_5_vl", "Qwen2VLImageProcessorPil", {"min_pixels": 3136, "max_pixels": 12845056}
    ),
    "qwen3_vl": Case(
        "qwen3_vl",
        "Qwen2VLImageProcessorPil",
        {
            "patch_size": 16,
            "size": {"shortest_edge": 65536, "longest_edge": 16777216},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    ),
    "gemma3": Case(
        "gemma3",
        "Gemma3ImageProcessorPil",
        {"size": {"height": 896, "width": 896}},
        {"mm_tokens_per_image": 256, **vision(14)},
    ),
    "gemma3_pan": Case(
        "gemma3",
        "Gemma3ImageProcessorPil",
        {
            "size": {"height": 896, "width": 896},
            "do_pan_and_scan": True,
            "pan_and_scan_min_crop_size": 256,
            "pan_and_scan_max_num_crops": 4,
            "pan_and_scan_min_ratio_to_activate": 1.2,
        },
        {"mm_tokens_per_image": 256, **vision(14)},
    ),
    "llava": Case(
        "llava",
        "CLIPImageProcessorPil",
        {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
        vision(14),
    ),
    "lfm2_vl": Case("lfm2_vl", "Lfm2VlImageProcessor", {}),
    "muse_glimmer": Case("muse_glimmer", "MuseGlimmerImageProcessor", {}),
}

# (height, width); the last ones as long as families take them
SIZES = [(60, 90), (90, 60), (64, 64), (97, 31), (33, 180), (1, 1), (200, 150), (10, 150), (190, 1)]
FRAMES = (7, 40, 66)
FPS = (2.0, 4.0, 24.0)
VIDEO = {"max_video_frame_tokens": 6}


def scene(height: int, width: int, seed: int = 0) -> Array:
    """uint8 [h, w, 3]: slopes, edges and noise, the same on every machine."""
    rng = np.random.default_rng(seed * 1000003 + height * 1009 + width)
    y, x = np.mgrid[:height, :width]
    slopes = np.stack([x * 3, y * 5, x * 2 + y * 7], axis=-1) % 256
    edges = ((x // 9 + y // 7) % 2 * 255)[:, :, None]
    noise = rng.integers(0, 256, (height, width, 3))
    return ((slopes + 2 * edges + noise) // 4).astype(np.uint8)


def frames() -> Array:
    """uint8 [frames, h, w, 3]."""
    count, height, width = FRAMES
    return np.stack([scene(height, width, seed) for seed in range(count)])


# --- What needs transformers ---------------------------------------------------------------------


def theirs(case: Case) -> Any:
    """Their image processor. There is no torchvision for torch's CPU build: of the ordinary wheel
    the transforms work once its C++ operators need no registration."""
    sys.modules.setdefault(
        "torchvision._meta_registrations", ModuleType("torchvision._meta_registrations")
    )
    import transformers

    kind = getattr(transformers, case.theirs)
    return kind(**{key: v for key, v in case.preprocessor.items() if "type" not in key})


def unfolded(pixels: Array, patch: int) -> Array:
    """[n, channels * patch * patch] of [channels, h, w], patch by patch in plain loops."""
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
    return np.stack(
        [
            pixels[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].reshape(-1)
            for r in range(rows)
            for c in range(columns)
        ]
    )


class Theirs(NamedTuple):
    patches: Array
    grids: list[tuple[int, ...]]
    text: str


def a_processor(name: str, **attributes: Any) -> Any:
    """A processor of transformers without a tokenizer: what its replacements read, given."""
    import transformers

    made = object.__new__(getattr(transformers, name))
    for key, value in attributes.items():
        object.__setattr__(made, key, value)
    return made


def expected(case: Case, image: Any) -> Theirs:
    """What transformers makes of a PIL image."""
    family = {"smolvlm": "idefics3", "muse_spark": "muse_glimmer"}.get(case.model_type)
    family = family or case.model_type.replace("2_5", "2").replace("qwen3", "qwen2")
    return globals()[f"expected_{family}"](case, theirs(case), image)


def tile_patches(case: Case, pixels: Array) -> tuple[Array, list[tuple[int, ...]]]:
    """Of pixel values [tiles, 3, h, w]."""
    patch = case.config["vision_config"]["patch_size"]
    grid = (1, pixels.shape[2] // patch, pixels.shape[3] // patch)
    return np.concatenate([unfolded(tile, patch) for tile in pixels]), [grid] * len(pixels)


def expected_siglip(case: Case, processor: Any, image: Any) -> Theirs:
    pixels = processor([image], return_tensors="np")["pixel_values"]
    patches, grids = tile_patches(case, pixels)
    return Theirs(patches, grids, "<image>" * len(patches))


def expected_idefics3(case: Case, processor: Any, image: Any) -> Theirs:
    made = processor([[image]], return_row_col_info=True, return_tensors="np")
    patches, grids = tile_patches(case, made["pixel_values"][0])
    writer = a_processor(
        "Idefics3Processor",
        fake_image_token="<fake_token_around_image>",
        image_token="<image>",
        global_image_tag="<global-img>",
        image_seq_len=case.processor.get("image_seq_len", 169),
    )
    return Theirs(patches, grids, writer.replace_image_token(made, 0))


def expected_qwen2_vl(case: Case, processor: Any, image: Any) -> Theirs:
    made = processor([image], return_tensors="np")
    writer = a_processor("Qwen2VLProcessor", image_token="<|image_pad|>", image_processor=processor)
    grids = [tuple(int(n) for n in grid) for grid in made["image_grid_thw"]]
    return Theirs(made["pixel_values"], grids, writer.replace_image_token(made, 0))


def expected_gemma3(case: Case, processor: Any, image: Any) -> Theirs:
    made = processor([image], return_tensors="np")
    patches, grids = tile_patches(case, np.asarray(made["pixel_values"]))
    tokens = case.processor.get("image_seq_length", case.config.get("mm_tokens_per_image"))
    around = "\n\n<start_of_image>" + "<image_soft_token>" * tokens + "<end_of_image>\n\n"
    writer = a_processor("Gemma3Processor", full_image_sequence=around)
    return Theirs(patches, grids, writer.replace_image_token(made, 0))


def expected_llava(case: Case, processor: Any, image: Any) -> Theirs:
    made = processor([image], return_tensors="np")
    patches, grids = tile_patches(case, np.asarray(made["pixel_values"]))
    strategy = case.processor.get("vision_feature_select_strategy", "default")
    writer = a_processor(
        "LlavaProcessor",
        image_token="<image>",
        patch_size=case.config["vision_config"]["patch_size"],
        num_additional_image_tokens=1,
        vision_feature_select_strategy=strategy,
    )
    return Theirs(patches, grids, writer.replace_image_token(made, 0))


def expected_lfm2_vl(case: Case, processor: Any, image: Any) -> Theirs:
    made = processor([image], return_row_col_info=True, return_tensors="pt")
    grids = [(1, int(rows), int(columns)) for rows, columns in made["spatial_shapes"]]
    padded = made["pixel_values"].numpy()
    kept = [tile[: math.prod(grid)] for tile, grid in zip(padded, grids, strict=True)]
    writer = a_processor(
        "Lfm2VlProcessor",
        image_token="<image>",
        image_start_token="<|image_start|>",
        image_end_token="<|image_end|>",
        image_thumbnail_token="<|img_thumbnail|>",
        image_processor=processor,
    )
    text = writer.replace_image_token(made, 0, use_image_special_tokens=True)
    return Theirs(np.concatenate(kept), grids, text)


MUSE_TOKENS = {
    "image_token": "<|patch|>",
    "image_start_token": "<|image_start|>",
    "image_end_token": "<|image_end|>",
    "video_token": "<|video|>",
    "video_sep_token": "<|vid_frame_separator|>",
    "video_start_token": "<|vid_start|>",
    "video_end_token": "<|vid_end|>",
}


def expected_muse_glimmer(case: Case, processor: Any, image: Any) -> Theirs:
    made = processor([image], return_tensors="pt")
    writer = a_processor("MuseGlimmerProcessor", image_processor=processor, **MUSE_TOKENS)
    grids = [tuple(int(n) for n in grid) for grid in made["image_grid_thw"]]
    return Theirs(made["pixel_values"].numpy(), grids, writer.replace_image_token(made, 0))


def expected_video(video: Array, fps: float, settings: dict[str, Any] = VIDEO) -> Theirs:
    """Of frames [n, h, w, 3]."""
    theirs(SMALL["muse_glimmer"])
    import transformers

    processor = transformers.MuseGlimmerVideoProcessor(**settings)
    count, height, width, _ = video.shape
    about = {"total_num_frames": count, "fps": fps, "height": height, "width": width}
    made = processor(
        [np.ascontiguousarray(video.transpose(0, 3, 1, 2))],
        video_metadata=[about],
        return_metadata=True,
        return_tensors="pt",
    )
    writer = a_processor("MuseGlimmerProcessor", video_processor=processor, **MUSE_TOKENS)
    grids = [tuple(int(n) for n in grid) for grid in made["video_grid_thw"]]
    text = writer.replace_video_token(made, 0)
    return Theirs(made["pixel_values_videos"].numpy(), grids, text)
