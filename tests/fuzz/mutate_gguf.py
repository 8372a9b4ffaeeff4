"""Seeded mutations of GGUF files: what damage, and what malice, would write."""

from __future__ import annotations

import random
import struct

from mutate import HOSTILE_NUMBERS, flip

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# Places of a valid file: (what, offset, bytes).
Place = tuple[str, int, int]


class _Walk:
    """Finds every number of a valid file's header."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 4
        self.found: list[Place] = []
        self.number("version", 4)
        tensors = self.number("count", 8)
        self.values: list[tuple[str, int, int]] = []  # key, and where its type and value stand
        for _ in range(self.number("count", 8)):
            key, begin = self.string(), self.at
            self.value(self.number("type", 4))
            self.values.append((key, begin, self.at))
        for _ in range(tensors):
            self.string()
            for _ in range(self.number("dimensions", 4)):
                self.number("length", 8)
            self.number("tensor type", 4)
            self.number("offset", 8)

    def number(self, what: str, size: int) -> int:
        self.found.append((what, self.at, size))
        self.at += size
        return int.from_bytes(self.data[self.at - size : self.at], "little")

    def string(self) -> str:
        length = self.number("string length", 8)
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def value(self, kind: int) -> None:
        if kind == 8:
            self.string()
        elif kind == 9:
            inner, count = self.number("item type", 4), self.number("items", 8)
            for _ in range(count):
                self.value(inner)
        else:
            self.number("value", _SIZES[kind])


def places(data: bytes) -> tuple[list[Place], int]:
    """Every number of a valid file's header, and where the header ends."""
    walk = _Walk(data)
    return walk.found, walk.at


def mutate_numbers(rng: random.Random, data: bytes) -> bytes:
    """One or two numbers of the header become hostile, or a little more or less.

    Strings of vocabularies are many: kinds of numbers are drawn first, so that counts, types,
    dimensions and offsets come as often.
    """
    out = bytearray(data)
    found, _ = places(data)
    for _ in range(rng.randint(1, 2)):
        kind = rng.choice(sorted({what for what, _, _ in found}))
        what, at, size = rng.choice([p for p in found if p[0] == kind])
        old = int.from_bytes(data[at : at + size], "little")
        new = rng.choice([n for n in HOSTILE_NUMBERS if isinstance(n, int)])
        if rng.random() < 0.5:
            new = old + rng.choice([-32, -8, -1, 1, 2, 8, 32])
        if "type" in what and rng.random() < 0.7:
            new = rng.randrange(45)
        out[at : at + size] = (new % 2 ** (8 * size)).to_bytes(size, "little")
    return bytes(out)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Damage that knows no format: flips, cuts, growth, parts removed or exchanged."""
    _, header = places(data)
    how = rng.randrange(6)
    if how == 0:
        return flip(rng, data, 0, len(data))
    if how == 1:
        return flip(rng, data, 4, header)
    if how == 2:
        return data[: rng.randrange(len(data))]
    if how == 3:
        return data + rng.randbytes(rng.choice([1, 7, 64, 4096]))
    begin, size = rng.randrange(4, header), rng.randint(1, 200)
    if how == 4:
        return data[:begin] + data[begin + size :]
    other = rng.randrange(4, header)
    return data[:begin] + data[other : other + size] + data[begin + size :]


def mutate_nested(rng: random.Random, data: bytes) -> bytes:
    """A key more, first of all, whose value nests arrays, a few or very many."""
    depth = rng.choice([1, 2, 3, 4, 5, 1000])
    wide = rng.choice([0, 1, 3, 2**16, 2**40])
    value = struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", rng.randrange(14), wide)
    key = struct.pack("<Q", 1) + b"n" + struct.pack("<I", 9) + value + bytes(rng.randrange(64))
    count = int.from_bytes(data[16:24], "little") + 1
    return data[:16] + count.to_bytes(8, "little") + key + data[24:]


def mutate_values(rng: random.Random, data: bytes) -> bytes:
    """The value of a key, most often of one of the vocabulary, becomes an array of many strings or
    numbers: empty ones, equal ones, or runs that are one inside the other."""
    values = _Walk(data).values
    arrays = [one for one in values if one[0].startswith(("tokenizer.", "clip.vision.image_"))]
    _, begin, end = rng.choice(arrays if rng.random() < 0.7 else values)
    count = rng.choice([0, 1, 39, 40, 41, 1000, 400_000])
    kind = rng.choice([4, 5, 6, 8, 8, 8])
    if kind == 8:
        step = rng.choice([0, 0, 1, 16, 64, 101])
        texts = [b"a" * (step * (i + 1) % 4097) for i in range(min(count, 1000) if step else count)]
        items = b"".join(struct.pack("<Q", len(text)) + text for text in texts)
        count = len(texts)
    else:
        items = rng.choice([bytes(4), b"\1\0\0\0"]) * count
    value = struct.pack("<IIQ", 9, kind, count) + items
    return data[:begin] + value + data[end:]
