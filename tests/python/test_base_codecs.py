"""f16 and bf16: every code, every rounding border."""

import numpy as np

from musespark._core import testing
from support.compare import assert_same_bits

CODES = np.arange(1 << 16, dtype=np.uint16)


def test_f16_decodes_every_code_as_ieee() -> None:
    expected = CODES.view(np.float16).astype(np.float32)
    signalling = np.isnan(expected) & ((CODES & 0x200) == 0)
    quieted = expected.view(np.uint32) | np.where(signalling, np.uint32(0x00400000), np.uint32(0))
    assert_same_bits(testing.f16_to_f32(CODES).view(np.uint32), quieted)


def test_f16_encodes_every_code_to_itself() -> None:
    values = CODES.view(np.float16).astype(np.float32)
    expected = np.where(np.isnan(values), np.uint16(0x7E00), CODES)
    assert_same_bits(testing.f32_to_f16(values), expected)


def test_f16_rounds_as_ieee_at_every_border() -> None:
    """Between two neighbouring codes: the midpoint, and one f32 step to either side of it."""
    finite = CODES[:0x7C00].view(np.float16).astype(np.float64)
    upper = np.append(finite[1:], 65536.0)  # what infinity stands for when rounding
    middles = ((finite + upper) / 2).astype(np.float32)
    below = np.nextafter(middles, np.float32(0))
    above = np.nextafter(middles, np.float32(np.inf))
    values = np.concatenate([below, middles, above])
    values = np.concatenate([values, -values])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).view(np.uint16)
    assert len(values) == 6 * 0x7C00
    assert_same_bits(testing.f32_to_f16(values), expected)


def test_f16_encodes_random_bit_patterns_as_ieee() -> None:
    bits = np.random.default_rng(1).integers(0, 1 << 32, 2_000_000, dtype=np.uint64)
    values = bits.astype(np.uint32).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(np.float16).view(np.uint16)
    expected = np.where(np.isnan(values), np.uint16(0x7E00), expected)
    assert_same_bits(testing.f32_to_f16(values), expected)


def bf16_reference(values: np.ndarray) -> np.ndarray:
    """Round to nearest even by the carry of an addition; NaN is 0x7fc0."""
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def test_bf16_decodes_every_code() -> None:
    assert_same_bits(
        testing.bf16_to_f32(CODES).view(np.uint32), CODES.astype(np.uint32) << np.uint32(16)
    )


def test_bf16_encodes_every_code_and_border() -> None:
    high = CODES.astype(np.uint32) << np.uint32(16)
    for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = (high | np.uint32(low)).view(np.float32)
        assert_same_bits(testing.f32_to_bf16(values), bf16_reference(values), f"low {low:#x}")


def test_named_values() -> None:
    """Goldens named by the reason they exist."""
    cases = {
        "one": (1.0, 0x3C00, 0x3F80),
        "minus zero keeps its sign": (-0.0, 0x8000, 0x8000),
        "largest f16": (65504.0, 0x7BFF, 0x4780),
        "tie above the largest f16 goes to infinity": (65520.0, 0x7C00, 0x4780),
        "least subnormal f16": (2.0**-24, 0x0001, 0x3380),
        "tie below the least subnormal goes to even, zero": (2.0**-25, 0x0000, 0x3300),
        "infinity": (np.inf, 0x7C00, 0x7F80),
        "largest f32 is infinite in bf16": (np.finfo(np.float32).max, 0x7C00, 0x7F80),
        "a negative NaN becomes the canonical one": (-np.nan, 0x7E00, 0x7FC0),
    }
    for name, (value, f16, bf16) in cases.items():
        one = np.float32([value])
        assert testing.f32_to_f16(one)[0] == f16, name
        assert testing.f32_to_bf16(one)[0] == bf16, name
