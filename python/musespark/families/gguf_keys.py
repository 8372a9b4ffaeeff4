"""The metadata of one architecture: every key checked as it is read, and accounted for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from musespark.errors import CorruptFile, UnsupportedModel
from musespark.families.fields import MAX_LAYERS
from musespark.families.gguf_names import ARCHITECTURES
from musespark.families.lacking import GGUF_LACKING, LACKING
from musespark.untrusted import ArrayOf, array_length, plain_value


class Keys:
    """The keys of one architecture, without its name, and which of them were read.

    UnsupportedModel for a ``general.architecture`` that is not known; CorruptFile where it is not
    there.
    """

    def __init__(self, metadata: Mapping[str, Any]):
        self._metadata = metadata
        self._read: set[str] = set()
        name = plain_value(metadata, "general.architecture")
        if name is None:
            raise CorruptFile("general.architecture is missing")
        lacking = GGUF_LACKING.get(name, name) if isinstance(name, str) else ""
        if lacking in LACKING and name not in ARCHITECTURES:
            raise UnsupportedModel(
                f"general.architecture is {name!r:.80}: {LACKING[lacking]} not part of this version"
            )
        if not isinstance(name, str) or name not in ARCHITECTURES:
            raise UnsupportedModel(
                f"general.architecture is {name!r:.80}: supported are "
                f"{', '.join(sorted(ARCHITECTURES))}"
            )
        self.name = name

    def has(self, key: str) -> bool:
        """Whether the key is there. Asking does not count as reading."""
        return f"{self.name}.{key}" in self._metadata

    def get(self, key: str) -> Any:
        """The value as it stands, None where there is none; an array of more items than a model
        may have layers only as its length. Whoever asks must act on it."""
        self._read.add(key)
        count = array_length(self._metadata, f"{self.name}.{key}")
        if count is not None and count > MAX_LAYERS:
            return ArrayOf(count)
        return self._metadata.get(f"{self.name}.{key}")

    def refuse(self, key: str, why: str) -> UnsupportedModel:
        """The error for a key, with its value."""
        if not self.has(key):
            return UnsupportedModel(f"{self.name}.{key} is missing: {why}")
        value = plain_value(self._metadata, f"{self.name}.{key}")
        return UnsupportedModel(f"{self.name}.{key} is {value!r:.80}: {why}")

    def number(self, key: str) -> int | float:
        """An integer or finite number; one that all layers share may be an array."""
        if not self.has(key):
            raise CorruptFile(f"{self.name}.{key} is missing")
        value = self.get(key)
        if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iuf":
            if (value != value[0]).any():
                raise self.refuse(key, "one value for all layers is needed")
            value = value[0].item()
        if type(value) not in (int, float) or not math.isfinite(value):
            raise CorruptFile(f"{self.name}.{key} is {value!r:.80}, a number is needed")
        return value

    def integer(self, key: str) -> int:
        """As :meth:`number`, of an integer type."""
        value = self.number(key)
        if type(value) is not int:
            raise CorruptFile(f"{self.name}.{key} is {value!r:.80}, an integer is needed")
        return value

    def refuse_unread(self, neutral: Mapping[str, tuple[Any, ...]], idle: tuple[str, ...]) -> None:
        """UnsupportedModel for a key that nobody read, unless it is `idle` or, with this value and
        of this type, `neutral`: which no array is."""
        prefix = self.name + "."
        for full in self._metadata:
            key = full[len(prefix) :]
            if not full.startswith(prefix) or key in self._read or key in idle:
                continue
            value, known = plain_value(self._metadata, full), neutral.get(key, ())
            if not any(type(value) is type(one) and value == one for one in known):
                raise self.refuse(key, "this key is not supported")
