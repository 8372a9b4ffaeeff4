"""GGUF files byte by byte, right or wrong: nothing here checks or aligns more than it is told."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B",
          U64: "Q", I64: "q", F64: "d"}  # fmt: skip


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value_bytes(kind: int, value: Any) -> bytes:
    """A value without its type; an array is (type of its items, items)."""
    if kind == STRING:
        return string(value)
    if kind == ARRAY:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(
            value_bytes(inner, one) for one in items
        )
    return struct.pack("<" + _CODES[kind], value)


def key(name: str | bytes, kind: int, value: Any) -> bytes:
    return string(name) + struct.pack("<I", kind) + value_bytes(kind, value)


def info(name: str | bytes, lengths: Sequence[int], kind: int, offset: int) -> bytes:
    """A tensor's description; lengths are fastest first, as the format has them."""
    dims = struct.pack(f"<I{len(lengths)}Q", len(lengths), *lengths)
    return string(name) + dims + struct.pack("<IQ", kind, offset)


def file_bytes(
    keys: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    alignment: int = 32,
    tensor_count: int | None = None,
    key_count: int | None = None,
) -> bytes:
    """A whole file; the counts are those of what is in it unless they are given."""
    tensors = len(infos) if tensor_count is None else tensor_count
    count = len(keys) if key_count is None else key_count
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, count) + b"".join([*keys, *infos])
    return head + bytes(-len(head) % alignment) + data
