"""Seeded mutations of safetensors and packed files: what damage, and what malice, would write."""

from __future__ import annotations

import json
import random
from typing import Any

HOSTILE_NUMBERS = [
    -1, 0, 1, 2, 7, 15, 16, 17, 63, 64, 65, 127, 128, 2**31 - 1, 2**31, 2**32, 2**40,
    2**62, 2**63 - 1, 2**63, 2**64 - 1, 10**30, -(2**63), 1e308, 0.5,
]  # fmt: skip
HOSTILE_VALUES: list[Any] = [
    *HOSTILE_NUMBERS, None, True, False, "", "F32", "BF16", "F64", "q4", "q8", "bf16", "\0", "../x",
    "mxfp4", "x" * 300, [], {}, [[]], [0, 0], [2**63, 2**63 + 1], {"a": {}}, [1] * 9,
]  # fmt: skip


def flip(rng: random.Random, data: bytes, low: int, high: int) -> bytes:
    """Changes 1 … 8 bytes between low and high."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        out[rng.randrange(low, max(low + 1, min(high, len(out))))] = rng.randrange(256)
    return bytes(out)


def places(value: Any, most: int, path: tuple = ()) -> list[tuple]:
    """Paths to everything inside a JSON value; of a list only its first `most` items."""
    found = [path] if path else []
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value[:most]))
    for key, inner in items:
        found += places(inner, most, (*path, key))
    return found


def at_place(value: Any, path: tuple) -> Any:
    """What stands at a path."""
    for step in path:
        value = value[step]
    return value


def mutate_json(rng: random.Random, value: Any) -> None:
    """Changes 1 … 3 places of a JSON value in place: replaced, removed, renamed or exchanged."""
    for _ in range(rng.randint(1, 3)):
        found = places(value, 8)
        if not found:
            return
        *parents, last = rng.choice(found)
        at = at_place(value, tuple(parents))
        how = rng.randrange(6)
        if how < 3:
            at[last] = rng.choice(HOSTILE_VALUES)
        elif how == 3 and type(at[last]) in (int, float):
            at[last] = at[last] + rng.choice([-64, -16, -1, 1, 16, 64])
        elif how == 4 and isinstance(at, dict):
            at[rng.choice(["surplus", "embed", "layers.0.q", "__metadata__"])] = at.pop(last)
        elif isinstance(at, dict):
            other = rng.choice(list(at))
            at[last], at[other] = at[other], at[last]
        else:
            del at[last]


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data part of a valid file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: Any, body: bytes) -> bytes:
    """A file with this header, aligned as the packed container's."""
    encoded = json.dumps(header).encode()
    encoded += b" " * (-(8 + len(encoded)) % 64)
    return len(encoded).to_bytes(8, "little") + encoded + body


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Damage that knows nothing of JSON: flips, cuts, growth, exchanged parts, hostile lengths."""
    header_end = 8 + int.from_bytes(data[:8], "little")
    how = rng.randrange(8)
    if how == 0:
        return flip(rng, data, 0, len(data))
    if how in (1, 2):
        return flip(rng, data, 8, header_end)
    if how == 3:
        return data[: rng.randrange(len(data))]
    if how == 4:
        return data + rng.randbytes(rng.choice([1, 7, 64, 4096]))
    if how == 5:
        near = rng.choice([header_end - 8 + rng.randint(-9, 9), len(data) - 8, len(data) - 7])
        length = rng.choice([near, *[n for n in HOSTILE_NUMBERS if type(n) is int]])
        return (length % 2**64).to_bytes(8, "little") + data[8:]
    if how == 6:
        begin, size = rng.randrange(len(data)), rng.randint(1, 200)
        return data[:begin] + data[begin + size :]
    a, b = sorted(rng.randrange(8, len(data)) for _ in range(2))
    size = min(rng.randint(1, 64), b - a, len(data) - b)
    return (
        data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]
    )


def mutate_header(rng: random.Random, data: bytes) -> bytes:
    """A well-formed file whose header says something else."""
    header, body = split(data)
    mutate_json(rng, header)
    return join(header, body)
