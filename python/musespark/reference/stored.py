"""Number types of checkpoint files, written to be read: ``csrc/formats/stored.h`` in NumPy.

``decode(name, rows)`` takes uint8 [n, bytes of a row] and gives float32 [n, values of a row].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

IQ4_LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
FP4_LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _f16(two: np.ndarray) -> np.ndarray:
    """float32 [n, 1] of the f16 in uint8 [n, 2]."""
    return np.ascontiguousarray(two).view("<f2").astype(np.float32)


def _nibbles(q: np.ndarray) -> np.ndarray:
    """[..., m] bytes -> [..., 2 m] codes: the low nibbles, then the high ones."""
    return np.concatenate([q & 15, q >> 4], axis=-1)


def _bits(q: np.ndarray, width: int) -> np.ndarray:
    """[..., m] bytes -> [..., 8 / width * m] codes: the lowest bits of all bytes come first."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    codes = q[..., None, :] >> shifts & np.uint8(2**width - 1)
    return codes.reshape(*q.shape[:-1], -1)


def _fifth_bit(h: np.ndarray) -> np.ndarray:
    """uint8 [n, 4] -> [n, 32], 16 where the bit is set: bit k belongs to value k."""
    return np.unpackbits(h, axis=1, bitorder="little") << np.uint8(4)


def _grouped(scale: np.ndarray, codes: np.ndarray, least: np.ndarray | None = None) -> np.ndarray:
    """scale[g] * code - least[g], one g for each of the equal groups of a block."""
    groups = codes.reshape(len(codes), scale.shape[1], -1).astype(np.float32)
    values = scale[:, :, None] * groups
    if least is not None:
        values = values - least[:, :, None]
    return values.reshape(len(codes), -1)


def q4_0(b: np.ndarray) -> np.ndarray:
    return _f16(b[:, :2]) * (_nibbles(b[:, 2:]).astype(np.float32) - 8)


def q4_1(b: np.ndarray) -> np.ndarray:
    return _f16(b[:, :2]) * _nibbles(b[:, 4:]).astype(np.float32) + _f16(b[:, 2:4])


def q5_0(b: np.ndarray) -> np.ndarray:
    codes = _nibbles(b[:, 6:]) | _fifth_bit(b[:, 2:6])
    return _f16(b[:, :2]) * (codes.astype(np.float32) - 16)


def q5_1(b: np.ndarray) -> np.ndarray:
    codes = _nibbles(b[:, 8:]) | _fifth_bit(b[:, 4:8])
    return _f16(b[:, :2]) * codes.astype(np.float32) + _f16(b[:, 2:4])


def q8_0(b: np.ndarray) -> np.ndarray:
    return _f16(b[:, :2]) * b[:, 2:].view(np.int8).astype(np.float32)


def iq4_nl(b: np.ndarray) -> np.ndarray:
    return _f16(b[:, :2]) * IQ4_LEVELS[_nibbles(b[:, 2:])]


def mxfp4(b: np.ndarray) -> np.ndarray:
    scale = np.ldexp(np.float32(1), b[:, :1].astype(np.int32) - 128)
    return scale * FP4_LEVELS[_nibbles(b[:, 1:])]


def q2_k(b: np.ndarray) -> np.ndarray:
    scale = _f16(b[:, 80:82]) * (b[:, :16] & 15).astype(np.float32)
    least = _f16(b[:, 82:84]) * (b[:, :16] >> 4).astype(np.float32)
    return _grouped(scale, _bits(b[:, 16:80].reshape(-1, 2, 32), 2).reshape(len(b), 256), least)


def q3_k(b: np.ndarray) -> np.ndarray:
    low, high = _nibbles(b[:, 96:104]), _bits(b[:, 104:108], 2)
    scale = _f16(b[:, 108:]) * ((low | high << 4).astype(np.float32) - 32)
    two = _bits(b[:, 32:96].reshape(-1, 2, 32), 2).reshape(len(b), 256)
    codes = (two | _bits(b[:, :32], 1) << 2).astype(np.float32) - 4
    return _grouped(scale, codes)


def _scales_and_mins(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [n, 8] each, of the head that q4_k and q5_k share: d, m and twelve bytes."""
    first, second, third = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scale = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    least = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return _f16(b[:, :2]) * scale.astype(np.float32), _f16(b[:, 2:4]) * least.astype(np.float32)


def q4_k(b: np.ndarray) -> np.ndarray:
    scale, least = _scales_and_mins(b)
    return _grouped(scale, _nibbles(b[:, 16:].reshape(-1, 4, 32)).reshape(len(b), 256), least)


def q5_k(b: np.ndarray) -> np.ndarray:
    scale, least = _scales_and_mins(b)
    four = _nibbles(b[:, 48:].reshape(-1, 4, 32)).reshape(len(b), 256)
    return _grouped(scale, four | _bits(b[:, 16:48], 1) << 4, least)


def q6_k(b: np.ndarray) -> np.ndarray:
    scale = _f16(b[:, 208:]) * b[:, 192:208].view(np.int8).astype(np.float32)
    four = _nibbles(b[:, :128].reshape(-1, 2, 64)).reshape(len(b), 256)
    two = _bits(b[:, 128:192].reshape(-1, 2, 32), 2).reshape(len(b), 256)
    return _grouped(scale, (four | two << 4).astype(np.float32) - 32)


def iq4_xs(b: np.ndarray) -> np.ndarray:
    low = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    high = np.ascontiguousarray(b[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scale = _f16(b[:, :2]) * ((low | high.astype(np.uint8) << 4).astype(np.float32) - 32)
    return _grouped(scale, IQ4_LEVELS[_nibbles(b[:, 8:].reshape(-1, 8, 16)).reshape(len(b), 256)])


def _plain(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda b: np.ascontiguousarray(b).view(dtype).astype(np.float32)


def _bf16(b: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(b).view("<u2").astype(np.uint32) << 16).view(np.float32)


# name -> (bytes of a block, decoder of uint8 [n, bytes of a block])
TYPES: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    "f32": (4, _plain("<f4")), "f16": (2, _plain("<f2")), "bf16": (2, _bf16),
    "q4_0": (18, q4_0), "q4_1": (20, q4_1), "q5_0": (22, q5_0), "q5_1": (24, q5_1),
    "q8_0": (34, q8_0), "iq4_nl": (18, iq4_nl), "mxfp4": (17, mxfp4),
    "q2_k": (84, q2_k), "q3_k": (110, q3_k), "q4_k": (144, q4_k), "q5_k": (176, q5_k),
    "q6_k": (210, q6_k), "iq4_xs": (136, iq4_xs),
}  # fmt: skip


def decode(name: str, rows: np.ndarray) -> np.ndarray:
    """float32 [n, values of a row] of uint8 [n, bytes of a row] of stored type `name`."""
    size, block = TYPES[name]
    rows = np.ascontiguousarray(rows, np.uint8)
    return block(rows.reshape(-1, size)).reshape(len(rows), -1)
