"""The metadata of a projector file (mmproj): every key checked as it is read, and accounted for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from musespark.errors import CorruptFile, UnsupportedModel
from musespark.untrusted import array_length, plain_value

# Keys that older files have beside those that are read, and what they may say (None: anything).
_NEUTRAL: dict[str, tuple[Any, ...] | None] = {
    "clip.has_audio_encoder": (False,),
    "clip.has_glm_projector": (False,),
    "clip.has_llava_projector": None,
    "clip.has_minicpmv_projector": (False,),
    "clip.has_qwen2vl_merger": None,
    "clip.has_text_encoder": (False,),
    "clip.vision.image_crop_resolution": None,
    "clip.vision.image_split_resolution": None,
    "clip.vision.mm_patch_merge_type": ("flat",),
    "clip.vision.mm_projector_type": None,
}


class ClipKeys:
    """The keys ``clip.*`` of a file, and which of them were read. CorruptFile names the key whose
    value is missing, of another type or out of range."""

    def __init__(self, metadata: Mapping[str, Any]):
        self._metadata = metadata
        self._read: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether the key is there."""
        return key in self._metadata

    def refuse(self, key: str, why: str) -> UnsupportedModel:
        """The error for a key whose value is not supported."""
        return UnsupportedModel(f"{key} is {self._value(key)!r:.80}: {why}")

    def wrong(self, key: str, needed: str) -> CorruptFile:
        """The error for a key whose value makes no sense."""
        if not self.has(key):
            return CorruptFile(f"{key} is missing")
        return CorruptFile(f"{key} is {self._value(key)!r:.80}, {needed} is needed")

    def _value(self, key: str) -> Any:
        self._read.add(key)
        return plain_value(self._metadata, key)

    def text(self, key: str) -> str | None:
        """A string, None where the key is missing."""
        value = self._value(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def flag(self, key: str) -> bool:
        """A boolean; false where the key is missing."""
        value = self._value(key)
        if value is not None and type(value) is not bool:
            raise self.wrong(key, "a boolean")
        return bool(value)

    def integer(self, key: str, high: int, default: int | None = None, low: int = 1) -> int:
        """An integer in low … high."""
        value = self._value(key)
        value = default if value is None else value
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(key, f"an integer in {low} … {high}")
        return value

    def number(self, key: str, high: float) -> float:
        """A number above 0 and at most `high`."""
        value = self._value(key)
        if type(value) not in (int, float) or not 0 < value <= high:
            raise self.wrong(key, f"a number above 0, at most {high:g},")
        return float(value)

    def numbers(self, key: str, count: int) -> list[float]:
        """An array of `count` finite numbers."""
        found = self._array(key, count, f"{count} finite numbers")
        if not all(type(one) in (int, float) and math.isfinite(one) for one in found):
            raise self.wrong(key, f"{count} finite numbers")
        return [float(one) for one in found]

    def flags(self, key: str, count: int) -> list[bool]:
        """An array of `count` booleans."""
        found = self._array(key, count, f"an array of {count} booleans")
        if not all(type(one) is bool for one in found):
            raise self.wrong(key, f"an array of {count} booleans")
        return found

    def _array(self, key: str, count: int, needed: str) -> list[Any]:
        self._read.add(key)
        if array_length(self._metadata, key) != count:  # before it is decoded
            raise self.wrong(key, needed)
        value = self._metadata[key]
        return value.tolist() if hasattr(value, "tolist") else list(value)

    def refuse_unread(self) -> None:
        """UnsupportedModel for a key that nobody read, unless it is known to say nothing."""
        for key in self._metadata:
            if not key.startswith("clip.") or key in self._read:
                continue
            value, known = self._value(key), _NEUTRAL.get(key, ())
            if known is not None and not any(type(value) is type(k) and value == k for k in known):
                raise self.refuse(key, "this key is not supported")
