"""Why q4 has sub-scales over 32 columns: error and size of 16, 32 and 64, and of llama.cpp's Q4_0.

    python benchmarks/formats.py [--rows 256] [--weights FILE.safetensors] [--save]

Relative root mean square error in percent of the packer's own search (written again in NumPy with
the group as a parameter; at 32 it must agree with the packer) on Gaussian, Laplace and Student t5
rows of 2048 columns, and on the matrices of a safetensors file. The speed of one row of activations
follows the size, since it is bound by memory; unpacking takes the same operations but for one or
two vector operations per 64 columns that widen sub-scales, of about 150.
"""

from __future__ import annotations

import argparse
import json

import common
import numpy as np

from musespark import _core
from musespark.reference.formats import LEVELS_Q4

BLOCK = 256
FACTORS = (0.76, 0.82, 0.88, 0.93, 0.97, 1.0, 1.03, 1.07, 1.12)
MIDDLES = (LEVELS_Q4[1:] + LEVELS_Q4[:-1]) / 2


def fit(x: np.ndarray) -> np.ndarray:
    """The scale of each group [n, group] with the least squared error of trial scales and signs."""
    amax = np.abs(x).max(1, keepdims=True)
    best, gain = np.zeros(len(x)), np.zeros(len(x))
    for factor in FACTORS:
        for sign in (1, -1):
            t = sign * x * 127 / np.maximum(amax * factor, 1e-30)
            level = sign * LEVELS_Q4[np.searchsorted(MIDDLES, t)]
            dot = (x * level).sum(1)
            scale = dot / (level * level).sum(1)
            better = dot * scale > gain
            best = np.where(better, sign * scale, best)
            gain = np.where(better, dot * scale, gain)
    return best


def encode(t: np.ndarray, sub: np.ndarray) -> np.ndarray:
    """The nearest int8 weights to t [n, group] under sub-scales [n]."""
    table = np.sort((LEVELS_Q4[None, :] * sub[:, None] + 64) >> 7, axis=1)
    at = (t[:, :, None] > ((table[:, 1:] + table[:, :-1]) / 2)[:, None, :]).sum(2)
    return np.take_along_axis(table, at, axis=1)


def q4_values(w: np.ndarray, group: int) -> np.ndarray:
    """w [n, k] through q4 with sub-scales over `group` columns."""
    n, k = w.shape
    per_block = BLOCK // group
    unit = np.abs(w).max(1)
    x = (w / unit[:, None]).reshape(-1, group)
    scale = fit(x)
    step = np.abs(scale).reshape(-1, per_block).max(1).reshape(n, -1) * 128 / 127
    row = step.max(1)
    step = (step / row[:, None]).astype(np.float16).astype(np.float64) * row[:, None]
    step = np.repeat(step.reshape(-1), per_block)
    t = x / step[:, None]
    middle = np.rint(scale / step * 128).astype(np.int64)
    best, error = np.zeros(x.shape), np.full(len(x), np.inf)
    for delta in (0, 1, -1, 2, -2):
        w8 = encode(t, np.clip(middle + delta, -127, 127))
        miss = ((t - w8) ** 2).sum(1)
        best = np.where((miss < error)[:, None], w8, best)
        error = np.minimum(miss, error)
    return (best * step[:, None]).reshape(n, k) * unit[:, None]


def q4_0_values(w: np.ndarray) -> np.ndarray:
    """w through llama.cpp's Q4_0: 32 columns, f16 scale, the largest magnitude to -8."""
    x = w.reshape(-1, 32)
    top = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)
    scale = (top / -8).astype(np.float16).astype(np.float64)
    codes = np.floor(x * np.where(scale == 0, 0, 1 / np.where(scale == 0, 1, scale)) + 8.5)
    return ((np.clip(codes, 0, 15) - 8) * scale).reshape(w.shape)


def error(w: np.ndarray, values: np.ndarray) -> float:
    return float(100 * np.sqrt(((values - w) ** 2).sum() / (w**2).sum()))


def packer_error(w: np.ndarray) -> float:
    packed = np.zeros(_core.packed_nbytes("q4", *w.shape), np.uint8)
    _core.pack("q4", w.astype(np.float32), out=packed)
    return error(w, _core.unpack("q4", packed, *w.shape).astype(np.float64))


def real_matrices(path: str, rows: int) -> dict[str, np.ndarray]:
    """Up to `rows` rows of the F32, F16 and BF16 matrices of a safetensors file, whole blocks."""
    data = np.fromfile(path, np.uint8)
    size = int(data[:8].view("<u8")[0])
    header = json.loads(data[8 : 8 + size].tobytes())
    found = {}
    for name, tensor in header.items():
        shape = tensor.get("shape", ())
        if len(shape) != 2 or shape[1] < BLOCK or tensor["dtype"] not in ("F32", "F16", "BF16"):
            continue
        begin, end = (8 + size + at for at in tensor["data_offsets"])
        raw = data[begin:end].copy()
        if tensor["dtype"] == "BF16":
            values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = raw.view("<f4" if tensor["dtype"] == "F32" else "<f2")
        found[name] = values.reshape(shape)[:rows, : shape[1] // BLOCK * BLOCK]
    return found


def matrices(args: argparse.Namespace) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (args.rows, 2048)
    found = {
        "gaussian": rng.standard_normal(shape),
        "laplace": rng.laplace(size=shape),
        "t5": rng.standard_t(5, size=shape),
    }
    if args.weights:
        found.update(real_matrices(args.weights, args.rows))
    return {name: w.astype(np.float32).astype(np.float64) for name, w in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--weights", help="a safetensors file of F32, F16 or BF16 matrices")
    parser.add_argument("--save", action="store_true", help="write results/formats.json")
    args = parser.parse_args()
    bits = {g: 4 + 8 / g + 16 / BLOCK + 32 / 2048 for g in (16, 32, 64)}
    print("error in percent; bits per weight at 2048 columns")
    print(f"{'':<24} {'Q4_0':>7} " + " ".join(f"{f'group {g}':>9}" for g in bits) + "    packer")
    print(f"{'bits':<24} {4.5:7.2f} " + " ".join(f"{b:9.3f}" for b in bits.values()))
    rows = {}
    for name, w in matrices(args).items():
        row = {"q4_0": error(w, q4_0_values(w))}
        row.update({f"group {g}": error(w, q4_values(w, g)) for g in bits})
        row["packer"] = packer_error(w)
        rows[name] = row
        print(
            f"{name[-24:]:<24} {row['q4_0']:7.2f} "
            + " ".join(f"{row[f'group {g}']:9.2f}" for g in bits)
            + f" {row['packer']:9.2f}"
        )
        if abs(row["packer"] - row["group 32"]) > 0.02 * row["group 32"]:
            raise SystemExit(f"{name}: the packer and this script disagree")
    if args.save:
        common.save("formats", {"machine": common.machine(), "bits": bits, "error": rows})


if __name__ == "__main__":
    main()
