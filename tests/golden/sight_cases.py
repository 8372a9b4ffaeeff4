"""Whole models that see, small: configurations, a tokenizer, conversations; see make_sight.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import processor_cases
import tokenizers
import vision_cases
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from vision_cases import TEXT
from weights import random_weight

SEED = 31
VOCAB, BYTES = 384, 256  # ids from BYTES on are markers, or nobody's
ENDS = ("<|im_start|>", "<|im_end|>", "</s>")
MARKERS = (
    *ENDS,
    *("<image>", "<fake_token_around_image>", "<global-img>"),
    *(f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
    *("<|image_start|>", "<|image_end|>", "<|patch|>", "<|video|>"),
    *("<|vid_start|>", "<|vid_end|>", "<|vid_frame_separator|>"),
)
ID = {marker: BYTES + i for i, marker in enumerate(MARKERS)}
GREEDY = 16
MOST_IMAGES = 4
FPS = 2.0  # of the frames of processor_cases.py in film()


def tokenizer() -> tokenizers.Tokenizer:
    """A token a byte, and the markers of all families."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(m, normalized=False, special=True) for m in MARKERS])
    assert all(made.token_to_id(marker) == i for marker, i in ID.items())
    return made


@dataclass(frozen=True)
class SightCase:
    """``processor``: as in processor_cases.py, with the model's config.json for its config.
    ``written``: what the chat template writes for an image, ``placeholder`` the part of it that the
    processor replaces. ``video``: settings of videos, of a family that reads them."""

    family: str
    architecture: str
    processor: processor_cases.Case
    written: str
    placeholder: str
    image_token: str
    sizes: tuple[tuple[int, int], ...] = ((24, 32), (40, 20), (17, 33), (32, 32))
    video: dict[str, Any] | None = None

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.processor.config) | {"architectures": [self.architecture]}

    def image(self, index: int) -> np.ndarray:
        """uint8 [h, w, 3]."""
        return processor_cases.scene(*self.sizes[index], seed=index)


def conversation(images: int) -> list[dict[str, Any]]:
    """Messages in which so many images stand: before, between and behind texts, the last ones in a
    later turn."""

    def see(*indices: int) -> list[Any]:
        return [{"type": "image", "index": i} for i in indices if i < images]

    first = [{"type": "text", "text": "Look: "}, *see(0), {"type": "text", "text": " and "}]
    first += [*see(1), {"type": "text", "text": "say what."}]
    if images < 3:
        return [{"role": "user", "content": first}]
    second = [*see(2), {"type": "text", "text": "And "}, *see(3)]
    return [
        {"role": "user", "content": first},
        {"role": "assistant", "content": "I see."},
        {"role": "user", "content": second},
    ]


def film() -> list[dict[str, Any]]:
    """Messages with a video and then an image."""
    first = [{"type": "text", "text": "Watch: "}, {"type": "video"}]
    second = [{"type": "text", "text": " and "}, {"type": "image", "index": 0}]
    last = {"type": "text", "text": " say what."}
    return [{"role": "user", "content": [*first, *second, last]}]


def template(case: SightCase) -> str:
    video = "{% elif part.type == 'video' %}<|video|>" if case.video else ""
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
        f"{{% if part.type == 'image' %}}{case.written}{video}"
        "{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def weight(case: SightCase, name: str, shape: tuple[int, ...], tied: bool) -> np.ndarray:
    if TEXT.match(name):
        return random_weight(case.family, SEED, name, shape, tied)
    return vision_cases.weight(name, shape)


# --- Configurations ------------------------------------------------------------------------------

_QWEN_PIXELS = {
    "patch_size": 4,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": 64, "longest_edge": 1024},
}
_IDEFICS_PIXELS = {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 24}}
_MUSE_PIXELS = {"patch_size": 4, "max_image_tokens": 12}


def _config(name: str, image_token: str, **changes: Any) -> dict[str, Any]:
    """That of a vision case, with our vocabulary."""
    config = dict(vision_cases.CASES[name].config)
    key = "image_token_index" if "image_token_index" in config else "image_token_id"
    config |= {key: ID[image_token]} | changes
    config["text_config"] = config["text_config"] | {"vocab_size": VOCAB}
    if name == "qwen3_vl":
        config["text_config"] |= {"head_dim": 20}
    given = {
        "video_token_id": ID["<|video_pad|>"],
        "vision_start_token_id": ID["<|vision_start|>"],
        "vision_end_token_id": ID["<|vision_end|>"],
        "audio_token_id": VOCAB - 1,
        "boi_token_index": ID["<start_of_image>"],
        "eoi_token_index": ID["<end_of_image>"],
    }
    return config | {key: value for key, value in given.items() if key in config}


def _qwen(kind: str, architecture: str) -> SightCase:
    return SightCase(
        "qwen3_vl" if kind == "qwen3_vl" else "qwen2_vl",
        architecture,
        processor_cases.Case(
            kind, "Qwen2VLImageProcessorPil", _QWEN_PIXELS, _config(kind, "<|image_pad|>")
        ),
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<|image_pad|>",
        "<|image_pad|>",
    )


def _muse(kind: str, architecture: str, **more: Any) -> SightCase:
    config = _config(kind, "<|patch|>") | {"video_token_id": ID["<|video|>"]}
    frames = config["vision_config"].get("patch_temporal", 2)
    pixels = _MUSE_PIXELS | {"temporal_patch_size": frames}
    return SightCase(
        kind,
        architecture,
        processor_cases.Case(kind, "MuseGlimmerImageProcessor", pixels, config),
        "<|patch|>",
        "<|patch|>",
        "<|patch|>",
        **more,
    )


def _idefics3(kind: str, theirs: str, case: str) -> SightCase:
    config = _config(case, "<image>", scale_factor=2)
    config["vision_config"] = config["vision_config"] | {"image_size": 24}
    return SightCase(
        "smolvlm",
        f"{theirs}ForConditionalGeneration",
        processor_cases.Case(
            kind, f"{theirs}ImageProcessorPil", _IDEFICS_PIXELS, config, {"image_seq_len": 9}
        ),
        "<image>",
        "<image>",
        "<image>",
    )


def _gemma3(**pixels: Any) -> SightCase:
    config = _config("gemma3", "<image_soft_token>", mm_tokens_per_image=9)
    size = {"size": {"height": 24, "width": 24}}
    return SightCase(
        "gemma3",
        "Gemma3ForConditionalGeneration",
        processor_cases.Case("gemma3", "Gemma3ImageProcessorPil", size | pixels, config),
        "<start_of_image>",
        "<start_of_image>",
        "<image_soft_token>",
    )


_LLAVA_PIXELS = {"size": {"shortest_edge": 20}, "crop_size": {"height": 20, "width": 20}}
_PAN = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 8,
    "pan_and_scan_max_num_crops": 3,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}

CASES = {
    "idefics3": _idefics3("idefics3", "Idefics3", "idefics3"),
    "smolvlm": _idefics3("smolvlm", "SmolVLM", "smolvlm_between"),
    "qwen2_vl": _qwen("qwen2_vl", "Qwen2VLForConditionalGeneration"),
    "qwen2_5_vl": _qwen("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": _qwen("qwen3_vl", "Qwen3VLForConditionalGeneration"),
    "gemma3": _gemma3(),
    "gemma3_pan": _gemma3(**_PAN),
    "llava": SightCase(
        "llava",
        "LlavaForConditionalGeneration",
        processor_cases.Case(
            "llava", "CLIPImageProcessorPil", _LLAVA_PIXELS, _config("llava", "<image>")
        ),
        "<image>",
        "<image>",
        "<image>",
    ),
    "muse_glimmer": _muse(
        "muse_glimmer",
        "MuseGlimmerForConditionalGeneration",
        video={"patch_size": 4, "max_video_frame_tokens": 6},
    ),
    # Which experts are chosen hangs on a level of a pixel here: of sizes that are not resized.
    "muse_spark": _muse(
        "muse_spark",
        "MuseSparkForConditionalGeneration",
        sizes=((24, 32), (40, 16), (16, 40), (24, 24)),
    ),
}
