"""Quantized checkpoints written from the definitions of their formats, number by number.

Words are built as Python integers, one field at a time; nothing here is shared with the readers.
Tensors are {name: (safetensors dtype, array)}.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Tensors = dict[str, tuple[str, np.ndarray]]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def float8(byte: int, exponent_bits: int, mantissa_bits: int, bias: int) -> float:
    """A finite float8, from its definition."""
    sign = -1.0 if byte & 128 else 1.0
    exponent = byte >> mantissa_bits & (1 << exponent_bits) - 1
    fraction = (byte & (1 << mantissa_bits) - 1) / (1 << mantissa_bits)
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - bias)
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)


def e4m3(byte: int) -> float:
    return float8(byte, 4, 3, 7)


def e5m2(byte: int) -> float:
    return float8(byte, 5, 2, 15)


def pack_words(values: list[int], bits: int) -> list[int]:
    """Fields of `bits`, side by side from the lowest bit on, as signed words of 32 bits."""
    stream = 0
    for i, value in enumerate(values):
        assert 0 <= value < 1 << bits
        stream |= value << (i * bits)
    count = -(-len(values) * bits // 32)
    words = [stream >> (32 * i) & 0xFFFFFFFF for i in range(count)]
    return [word - (1 << 32) if word >> 31 else word for word in words]


def down(codes: np.ndarray, bits: int) -> np.ndarray:
    """Words along the first axis: [n, m] to int32 [n * bits / 32, m]."""
    return along(codes.T, bits).T.copy()


def along(codes: np.ndarray, bits: int) -> np.ndarray:
    """Words along the last axis."""
    return np.array([pack_words([int(c) for c in row], bits) for row in codes], np.int32)


@dataclass
class Matrix:
    """Codes [N, K], zero points and scales [N, G], the group of each column."""

    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    groups: np.ndarray

    @property
    def values(self) -> np.ndarray:
        scale = self.scales.astype(np.float32).astype(np.float64)[:, self.groups]
        return (scale * (self.codes - self.zeros[:, self.groups])).astype(np.float32)


def random_matrix(
    rng: np.random.Generator,
    rows: int,
    cols: int,
    *,
    bits: int = 4,
    group: int = 32,
    symmetric: bool = True,
    order: bool = False,
    dtype: str = "F16",
) -> Matrix:
    group = cols if group == -1 else group
    count = -(-cols // group)
    top = 1 << bits
    zeros = np.full((rows, count), top // 2)
    if not symmetric:
        zeros = rng.integers(0, top, (rows, count))
    groups = np.arange(cols) // group
    scales = rng.uniform(0.5, 1.5, (rows, count)) * 2.0 ** rng.integers(-7, -3, (rows, count))
    return Matrix(
        rng.integers(0, top, (rows, cols)),
        zeros,
        as_stored(scales, dtype)[1],
        rng.permutation(groups) if order else groups,
    )


def as_stored(values: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """An array of a float dtype as its file holds it, and its values as float32."""
    values = np.asarray(values, np.float32)
    if dtype == "F32":
        return values, values
    if dtype == "F16":
        half = values.astype(np.float16)
        return half, half.astype(np.float32)
    assert dtype == "BF16"
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    return bits, (bits.astype(np.uint32) << 16).view(np.float32)


def gptq(
    name: str, m: Matrix, bits: int, *, version: int = 1, g_idx: bool = False, dtype: str = "F16"
) -> Tensors:
    stored = m.zeros.T.astype(object)
    if version == 1 and bits != 3:  # 1 is taken from every field of a word at once
        fields, rows = 32 // bits, []
        ones = sum(1 << (bits * i) for i in range(fields))
        for row in stored:
            words = [w % 2**32 for w in pack_words([int(v) for v in row], bits)]
            words = [(w - ones) % 2**32 for w in words]
            rows.append([w - 2**32 if w >> 31 else w for w in words])
        qzeros = np.array(rows, np.int32)
    else:
        qzeros = along((stored - (version == 1)) % (1 << bits), bits)
    tensors = {
        f"{name}.qweight": ("I32", down(m.codes.T, bits)),
        f"{name}.qzeros": ("I32", qzeros),
        f"{name}.scales": (dtype, as_stored(m.scales, dtype)[0].T.copy()),
    }
    if g_idx:
        tensors[f"{name}.g_idx"] = ("I32", m.groups.astype(np.int32))
    return tensors


def awq(name: str, m: Matrix) -> Tensors:
    def across(codes: np.ndarray) -> np.ndarray:  # [any, N], words across N
        rows, outputs = codes.shape
        eights = codes.reshape(rows, outputs // 8, 8)[:, :, AWQ_ORDER]
        return along(eights.reshape(rows, outputs), 4)

    return {
        f"{name}.qweight": ("I32", across(m.codes.T)),
        f"{name}.qzeros": ("I32", across(m.zeros.T)),
        f"{name}.scales": ("F16", as_stored(m.scales, "F16")[0].T.copy()),
    }


def compressed(
    name: str, m: Matrix, bits: int, *, symmetric: bool, dtype: str = "BF16", order: bool = False
) -> Tensors:
    rows, cols = m.codes.shape
    tensors = {
        f"{name}.weight_packed": ("I32", along(m.codes, bits)),
        f"{name}.weight_scale": (dtype, as_stored(m.scales, dtype)[0]),
        f"{name}.weight_shape": ("I64", np.array([rows, cols])),
    }
    if not symmetric:
        tensors[f"{name}.weight_zero_point"] = ("I32", down(m.zeros, bits))
    if order:
        tensors[f"{name}.weight_g_idx"] = ("I32", m.groups.astype(np.int32))
    return tensors


def int8(name: str, m: Matrix, *, symmetric: bool, dtype: str, flat: bool = False) -> Tensors:
    """Codes of 0 to 255 with a zero point around 128, stored as signed bytes."""
    scales = as_stored(m.scales, dtype)[0]
    zeros = (m.zeros - 128).astype(np.int8)
    if flat:
        scales, zeros = scales.reshape(-1), zeros.reshape(-1)
    tensors = {
        f"{name}.weight": ("I8", (m.codes - 128).astype(np.int8)),
        f"{name}.weight_scale": (dtype, scales),
    }
    if not symmetric:
        tensors[f"{name}.weight_zero_point"] = ("I8", zeros)
    return tensors


def fp8(
    name: str,
    rng: np.random.Generator,
    rows: int,
    cols: int,
    tile: tuple[int, int],
    *,
    kind: str = "F8_E4M3",
    scale: str = "weight_scale_inv",
    dtype: str = "F32",
    shape: tuple[int, ...] | None = None,
) -> tuple[Tensors, np.ndarray]:
    """Finite bytes, one scale for each tile; `shape` replaces that of the scales."""
    decode = e4m3 if kind == "F8_E4M3" else e5m2
    top = 127 if kind == "F8_E4M3" else 0x7C
    data = (rng.integers(0, top, (rows, cols)) + 128 * rng.integers(0, 2, (rows, cols))).astype(
        np.uint8
    )
    tiles = (-(-rows // tile[0]), -(-cols // tile[1]))
    if dtype in ("F8_E8M0", "U8"):
        stored = rng.integers(110, 125, tiles).astype(np.uint8)
        scales = (2.0 ** (stored.astype(np.float64) - 127)).astype(np.float32)
    else:
        stored, scales = as_stored(rng.uniform(0.5, 2, tiles) * 2.0**-9, dtype)
    each = scales[np.ix_(np.arange(rows) // tile[0], np.arange(cols) // tile[1])]
    table = np.array([0.0 if b & 127 >= top else decode(b) for b in range(256)], np.float32)
    tensors = {
        f"{name}.weight": (kind, data),
        f"{name}.{scale}": (dtype, stored if shape is None else stored.reshape(shape)),
    }
    return tensors, table[data] * each


def mxfp4(rng: np.random.Generator, *lead: int, cols: int) -> tuple[np.ndarray, ...]:
    """Blocks uint8 [*lead, cols / 32, 16], scales [*lead, cols / 32], values [*lead, cols]."""
    codes = rng.integers(0, 16, (*lead, cols))
    scales = rng.integers(115, 126, (*lead, cols // 32)).astype(np.uint8)
    pairs = codes.reshape(*lead, cols // 32, 16, 2)
    blocks = (pairs[..., 0] | pairs[..., 1] << 4).astype(np.uint8)
    number = np.array([*E2M1, *(-x for x in E2M1)], np.float64)[codes]
    values = number * np.repeat(2.0 ** (scales.astype(np.float64) - 127), 32, axis=-1)
    return blocks, scales, values.astype(np.float32)


def safetensors_bytes(tensors: Tensors) -> bytes:
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, array) in tensors.items():
        offsets = [at, at + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        at += array.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    data = [np.ascontiguousarray(array).tobytes() for _, array in tensors.values()]
    return b"".join([len(encoded).to_bytes(8, "little"), encoded, *data])


def write_folder(folder: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    """A model folder: config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return folder
