"""Checked reading of GGUF metadata: every value has the type and the range that is asked for."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from musespark.errors import CorruptFile
from musespark.untrusted import ArrayOf, array_length, plain_value

# Beyond every vocabulary in use (262,144 tokens and about twice as many merges), far below harm.
MAX_TOKENS = 1 << 21
MAX_MERGES = 1 << 22
MAX_TOKEN_CHARS = 4096
MAX_TOTAL_CHARS = 1 << 27


class VocabularyKeys:
    """The metadata of one file; every method raises CorruptFile that names the field."""

    def __init__(self, metadata: Mapping[str, Any]):
        self._metadata = metadata

    def text(self, key: str) -> str | None:
        """A string; None where the key is missing."""
        value = plain_value(self._metadata, key)
        return None if value is None else _text(value, key)

    def flag(self, key: str) -> bool | None:
        value = plain_value(self._metadata, key)
        if value is None or isinstance(value, (bool, np.bool_)):
            return None if value is None else bool(value)
        raise CorruptFile(f"{key}: expected a boolean, got {_shown(value)}")

    def number(self, key: str, low: float, high: float) -> float | int | None:
        """A number from ``low`` to ``high``; an int where the file holds an integer."""
        value = plain_value(self._metadata, key)
        if value is None:
            return None
        integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not integer and not isinstance(value, (float, np.floating)):
            raise CorruptFile(f"{key}: expected a number, got {_shown(value)}")
        if not low <= value <= high:  # false for NaN too
            raise CorruptFile(f"{key}: {value}, allowed is {low} to {high}")
        return int(value) if integer else float(value)

    def token_id(self, key: str, count: int) -> int | None:
        """A token id below ``count``."""
        value = plain_value(self._metadata, key)
        if value is None:
            return None
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            raise CorruptFile(f"{key}: expected a token id, got {_shown(value)}")
        if not 0 <= value < count:
            raise CorruptFile(f"{key}: token id {value}, but tokenizer.ggml.tokens has {count}")
        return int(value)

    def length(self, key: str, limit: int) -> int | None:
        """The number of items of an array, at most ``limit``: known before it is decoded."""
        count = array_length(self._metadata, key)
        if count is None and self._metadata.get(key) is not None:
            raise CorruptFile(f"{key}: expected an array, got {_shown(self._metadata[key])}")
        if count is not None and count > limit:
            raise CorruptFile(f"{key}: {count} entries, at most {limit} are allowed")
        return count

    def strings(self, key: str, limit: int) -> list[str] | None:
        """An array of at most ``limit`` strings of Unicode text."""
        if self.length(key, limit) is None:
            return None
        value = self._metadata[key]
        items = value.tolist() if isinstance(value, np.ndarray) else list(value)
        if not all(map(str.__instancecheck__, items)):
            items = [_text(item, f"{key}[{i}]") for i, item in enumerate(items)]
        lengths = list(map(len, items))
        if max(lengths, default=0) > MAX_TOKEN_CHARS:
            at = next(i for i, n in enumerate(lengths) if n > MAX_TOKEN_CHARS)
            raise CorruptFile(
                f"{key}[{at}]: {lengths[at]} characters, at most {MAX_TOKEN_CHARS} are allowed"
            )
        if sum(lengths) > MAX_TOTAL_CHARS:
            raise CorruptFile(f"{key}: more than {MAX_TOTAL_CHARS} characters in all")
        try:
            "".join(items).encode()
        except UnicodeEncodeError:  # a surrogate: find whose
            for i, item in enumerate(items):
                _text(item, f"{key}[{i}]")
        return items

    def numbers(self, key: str, kind: str, count: int) -> np.ndarray | None:
        """An array of exactly ``count`` numbers; ``kind``: ``int`` or ``float``."""
        found = self.length(key, MAX_TOKENS)
        if found is None:
            return None
        if found != count:
            raise CorruptFile(f"{key}: {found} entries, but tokenizer.ggml.tokens has {count}")
        value = self._metadata[key]
        try:
            array = np.asarray(value)
        except (ValueError, TypeError, OverflowError):
            array = np.empty(0, object)
        if array.ndim != 1 or array.dtype.kind not in ("iu" if kind == "int" else "iuf"):
            raise CorruptFile(f"{key}: expected an array of {kind}s, got {_shown(value)}")
        return array.astype(np.int64 if kind == "int" else np.float64)


def _text(value: Any, name: str) -> str:
    try:
        if isinstance(value, (bytes, bytearray)):
            return bytes(value).decode()
        if isinstance(value, str):
            value.encode()
            return str(value)
    except UnicodeError as error:
        raise CorruptFile(f"{name}: not valid UTF-8: {error}") from error
    raise CorruptFile(f"{name}: expected a string, got {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, ArrayOf):
        return repr(value)
    return f"{type(value).__name__} {reprlib.repr(value)}"
