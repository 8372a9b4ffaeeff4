"""The counter-based generator and the checksum, against published vectors and slow twins."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musespark._core import testing

MASK = (1 << 64) - 1
P1, P2, P3, P4, P5 = (
    11400714785074694791,
    14029467366897019727,
    1609587929392839161,
    9650029242287828579,
    2870177450012600261,
)


def rotl(x: int, r: int) -> int:
    return ((x << r) | (x >> (64 - r))) & MASK


def xxh64(data: bytes, seed: int) -> int:
    """XXH64 as its specification tells it, step by step."""
    n = len(data)
    mix = lambda acc, lane: rotl((acc + lane * P2) & MASK, 31) * P1 & MASK  # noqa: E731
    if n >= 32:
        acc = [(seed + P1 + P2) & MASK, (seed + P2) & MASK, seed, (seed - P1) & MASK]
        at = 0
        while at + 32 <= n:
            for i, lane in enumerate(struct.unpack_from("<4Q", data, at)):
                acc[i] = mix(acc[i], lane)
            at += 32
        h = sum(rotl(a, r) for a, r in zip(acc, (1, 7, 12, 18), strict=True)) & MASK
        for a in acc:
            h = ((h ^ mix(0, a)) * P1 + P4) & MASK
    else:
        at, h = 0, (seed + P5) & MASK
    h = (h + n) & MASK
    while at + 8 <= n:
        h = (rotl(h ^ mix(0, struct.unpack_from("<Q", data, at)[0]), 27) * P1 + P4) & MASK
        at += 8
    if at + 4 <= n:
        word = struct.unpack_from("<I", data, at)[0]
        h = (rotl(h ^ (word * P1 & MASK), 23) * P2 + P3) & MASK
        at += 4
    for byte in data[at:]:
        h = rotl(h ^ (byte * P5 & MASK), 11) * P1 & MASK
    h = (h ^ (h >> 33)) * P2 & MASK
    h = (h ^ (h >> 29)) * P3 & MASK
    return h ^ (h >> 32)


def test_xxh64_published_vectors() -> None:
    assert testing.xxh64(b"", 0) == 0xEF46DB3751D8E999
    assert testing.xxh64(b"a", 0) == 0xD24EC4F1A98C6E5B
    assert testing.xxh64(b"abc", 0) == 0x44BC2CF5AD770999


@pytest.mark.parametrize("seed", [0, 2654435761, MASK])
def test_xxh64_equals_its_twin_at_every_length(seed: int) -> None:
    data = np.random.default_rng(3).integers(0, 256, 300, dtype=np.uint8).tobytes()
    for n in range(len(data)):
        assert testing.xxh64(data[:n], seed) == xxh64(data[:n], seed), n


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=70), max_size=8), st.integers(0, MASK))
def test_xxh64_of_pieces_is_that_of_the_whole(pieces: list[bytes], seed: int) -> None:
    assert testing.xxh64_pieces(pieces, seed) == testing.xxh64(b"".join(pieces), seed)


def test_xxh64_sees_every_bit() -> None:
    data = bytes(range(77))
    seen = {testing.xxh64(data, 0)}
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << (bit % 8)
        seen.add(testing.xxh64(bytes(flipped), 0))
    assert len(seen) == 8 * len(data) + 1


def test_philox_published_vectors() -> None:
    """Known answers distributed with the authors' Random123 library."""
    ones = 0xFFFFFFFF
    assert testing.philox4x32([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert testing.philox4x32([ones] * 4, [ones] * 2) == [
        0x408F276D,
        0x41C83B0E,
        0xA20BC7C6,
        0x6D5451FD,
    ]
    assert testing.philox4x32(
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]
    ) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_counter_and_key_order() -> None:
    seed, stream, position = 0x0123456789ABCDEF, 0x1122334455667788, 0x99AABBCCDDEEFF00
    words = testing.philox4x32(
        [0xDDEEFF00, 0x99AABBCC, 0x55667788, 0x11223344], [0x89ABCDEF, 0x01234567]
    )
    assert testing.random_words(seed, stream, position) == words
    assert testing.random_uniform(seed, stream, position) == (words[0] >> 8) / 2**24
    assert testing.random_uniform64(seed, stream, position) == (
        ((words[0] << 21) | (words[1] >> 11)) / 2**53
    )


def test_uniform_numbers_are_uniform_and_uncorrelated() -> None:
    """n = 20,000 per stream. Mean within 5 standard errors and each of 16 bins within 5 standard
    deviations: a sound generator fails one of these 18 checks with probability below 2e-5."""
    n = 20_000
    first = np.array([testing.random_uniform(9, 0, i) for i in range(n)])
    second = np.array([testing.random_uniform(9, 1, i) for i in range(n)])
    assert first.min() >= 0.0 and first.max() < 1.0
    assert abs(first.mean() - 0.5) < 5 / np.sqrt(12 * n)
    bins = np.bincount((first * 16).astype(int), minlength=16)
    assert np.all(np.abs(bins - n / 16) < 5 * np.sqrt(n * (1 / 16) * (15 / 16)))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(n)
