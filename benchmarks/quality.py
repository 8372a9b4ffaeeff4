"""What the formats cost beside llama.cpp's: weight error, and the divergence of whole models.

    python benchmarks/quality.py --data ../shared/data [--save]

Needs llama.cpp's library (environments.py), which quantizes for its own formats. Weight error is
relative RMS in percent, on random 512 x 2048 matrices and on all matrices of the test beds
(divergence.py). Of the models: perplexity of held-out text and Kullback-Leibler divergence from the
unquantized model in nats per token with 95% intervals, on our f32 kernels for dequantized weights,
so that all rows differ in weights alone; ``engine`` is the packed file itself, with activations in
int8. Bits are of all matrices together, blocks filled up to whole ones not counted as more.

Q4_K_S is llama.cpp's mix of that name: Q4_K; Q5_K for v in the first four layers and for down in
the first eighth; Q6_K for the head. Both test beds are narrower than its blocks of 256, so
llama.cpp itself would take formats with more bits; here rows are filled up with zeros. The head is
tied in both. "+ importance" of both sides means the same calibration text.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import divergence
import numpy as np
from common import machine, save
from divergence import Divergence, TestBed
from ggml import KINDS, bits, theirs
from models import spec_of
from shapes import SHAPES

import musespark
from musespark import _core
from musespark.families.tensors import canonical_shapes
from musespark.weights import open_model
from musespark.weights.calibration import input_of
from musespark.weights.pack import matrix_format

OURS = ("q8", "q6", "q4")
METHODS = (None, "importance", "error-feedback")
Change = Callable[[str, np.ndarray], np.ndarray]


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    """Root of the squared error over the squared size, in percent."""
    found, exact = found.astype(np.float64), exact.astype(np.float64)
    return 100 * float(np.sqrt(((found - exact) ** 2).sum() / (exact**2).sum()))


def ours(form: str, matrix: np.ndarray) -> np.ndarray:
    """Through one of our formats and back."""
    matrix = np.ascontiguousarray(matrix, np.float32)
    data = np.empty(_core.packed_nbytes(form, *matrix.shape), np.uint8)
    _core.pack(form, matrix, dtype="f32", out=data)
    return _core.unpack(form, data, *matrix.shape)


def our_bits(form: str, rows: int, cols: int) -> float:
    """Bits per number without padding: code, sub-scale, block scale, row scale."""
    block, sub = {"q8": (64, 0), "q6": (256, 32), "q4": (256, 32)}[form]
    return int(form[1:]) + 16 / block + (8 / sub if sub else 0) + 32 / cols


# ---- weights ------------------------------------------------------------------------------------


def random_matrices() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (512, 2048)
    drawn = {
        "gaussian": rng.standard_normal(shape),
        "laplace": rng.laplace(size=shape),
        "student t5": rng.standard_t(5, size=shape),
        "student t4": rng.standard_t(4, size=shape),
    }
    return {name: matrix.astype(np.float32) for name, matrix in drawn.items()}


def error_row(matrices: list[np.ndarray]) -> dict[str, float]:
    """Format -> relative RMS over all of the matrices."""

    def error(through: Callable[[np.ndarray], np.ndarray]) -> float:
        missed = sum(float(((through(m) - m).astype(np.float64) ** 2).sum()) for m in matrices)
        whole = sum(float((m.astype(np.float64) ** 2).sum()) for m in matrices)
        return round(100 * (missed / whole) ** 0.5, 3)

    row = {form: error(lambda m, f=form: ours(f, m)) for form in OURS}
    return row | {kind: error(lambda m, k=kind: theirs(k, m)) for kind in KINDS}


def weight_errors(beds: list[TestBed]) -> dict[str, dict[str, float]]:
    """Source -> format -> relative RMS in percent; bits per weight at 2048 columns first."""
    table = {"bits at 2048 columns": {form: round(our_bits(form, 16, 2048), 3) for form in OURS}}
    table["bits at 2048 columns"] |= {kind: bits(kind) for kind in KINDS}
    table |= {name: error_row([matrix]) for name, matrix in random_matrices().items()}
    for bed in beds:
        table[f"{bed.name}: all"] = error_row([w for w in bed.weights.values() if w.ndim == 2])
        leaves = dict.fromkeys(n.split(".")[-1] for n, w in bed.weights.items() if w.ndim == 2)
        for leaf in leaves:
            chosen = [w for n, w in bed.weights.items() if n.split(".")[-1] == leaf and w.ndim == 2]
            table[f"{bed.name}: {leaf}"] = error_row(chosen)
    return table


# ---- models -------------------------------------------------------------------------------------


def q4_k_s(name: str, layers: int) -> str:
    """llama.cpp's kind for a matrix in the mix Q4_K_S (llama-quant.cpp), the head tied."""
    if name in ("embed", "head"):
        return "Q6_K"
    _, layer, leaf = name.split(".")
    early_v = leaf == "v" and int(layer) < 4
    early_down = leaf == "down" and int(layer) < layers // 8
    return "Q5_K" if early_v or early_down else "Q4_K"


def importance_of(bed: TestBed) -> dict[str, np.ndarray]:
    """Mean squares of the inputs of each matrix on the calibration text."""
    from dataclasses import asdict

    from support.run_engine import pack_weights

    core = _core.Calibrator(asdict(bed.spec), pack_weights(bed.weights), threads=2)
    inputs = {n: input_of(n, bed.spec) for n, w in bed.weights.items() if w.ndim == 2}
    for name, key in inputs.items():
        core.want(*key, bed.weights[name].shape[1], products=False)
    for chunk in bed.calibration:
        core.run(np.array(chunk, np.int32))
    found = {key: core.take(*key) for key in dict.fromkeys(inputs.values())}
    return {n: (found[k][1] / found[k][0]).astype(np.float32) for n, k in inputs.items()}


def mean_bits(bed: TestBed, of: Callable[[str, int, int], float]) -> float:
    matrices = {n: w.shape for n, w in bed.weights.items() if w.ndim == 2}
    whole = sum(rows * cols for rows, cols in matrices.values())
    return sum(of(n, *shape) * shape[0] * shape[1] for n, shape in matrices.items()) / whole


def shape_bits() -> dict[str, dict[str, float]]:
    """Bits per weight of whole models of real widths: our recipe q4, and Q4_K_S."""
    table = {}
    for name, shape in SHAPES.items():
        spec = spec_of(shape)
        sizes = {n: dims for n, dims in canonical_shapes(spec).items() if len(dims) == 2}
        whole = sum(rows * cols for rows, cols in sizes.values())
        own = theirs = 0.0
        for n, (rows, cols) in sizes.items():
            form = matrix_format("q4", n, "BF16", rows, cols)
            if form not in OURS or ".experts." in n:
                break  # routers, experts: llama.cpp has rules of its own for them
            own += our_bits(form, rows, cols) * rows * cols
            theirs += bits(q4_k_s(n, len(spec.layers))) * rows * cols
        else:
            table[name] = {"q4": round(own / whole, 3), "Q4_K_S": round(theirs / whole, 3)}
    return table


def theirs_rows(bed: TestBed) -> dict[str, tuple[float, Change]]:
    """Name -> bits per weight, and what becomes of a matrix."""
    layers, weighs = len(bed.spec.layers), importance_of(bed)

    def mix(name: str) -> str:
        return q4_k_s(name, layers)

    def head_in(kind: str) -> Callable[[str], str]:
        return lambda name: "Q6_K" if name in ("embed", "head") else kind

    def row(kind_of: Callable[[str], str], guided: bool = False) -> tuple[float, Change]:
        return mean_bits(bed, lambda n, *_: bits(kind_of(n))), lambda n, w: theirs(
            kind_of(n), w, weighs[n] if guided else None
        )

    return {
        "Q8_0": row(lambda _: "Q8_0"),
        "Q4_0, head Q6_K": row(head_in("Q4_0")),
        "IQ4_NL, head Q6_K": row(head_in("IQ4_NL")),
        "Q4_K, head Q6_K": row(head_in("Q4_K")),
        "Q4_K_S": row(mix),
        "Q4_K_S + importance": row(mix, guided=True),
        "IQ4_NL, head Q6_K + importance": row(head_in("IQ4_NL"), guided=True),
    }


def our_rows(bed: TestBed) -> dict[str, tuple[float, divergence.Packed]]:
    """Recipe -> bits per weight, and the packed tensors."""
    rows = {}
    for quantize, method in [("q8", None), ("q8", METHODS[2]), *(("q4", m) for m in METHODS)]:
        target = Path(tempfile.mkdtemp()) / "packed.safetensors"
        guide = {"calibration": bed.calibration, "method": method} if method else {}
        musespark.convert(bed.folder, target, quantize=quantize, progress=False, **guide)
        tensors = open_model(target).tensors
        spent = mean_bits(bed, lambda n, r, c, t=tensors: our_bits(t[n][0], r, c))
        rows[quantize + (f" + {method}" if method else "")] = (spent, tensors)
    return rows


def unpacked(tensors: divergence.Packed) -> Change:
    return lambda name, _: _core.unpack(*(tensors[name][i] for i in (0, 3, 1, 2)))


def report(found: Divergence, spent: float, against: dict[str, Divergence]) -> dict:
    out = {
        "bits": round(spent, 3),
        "perplexity": round(found.perplexity, 4),
        "kld": found.mean(),
        "kld_95": found.interval(),
    }
    for name, other in against.items():
        ratio, between = found.ratio(other)
        out[f"kld over {name}"] = [round(v, 3) for v in (ratio, *between)]
    return out


def model_table(bed: TestBed) -> dict:
    exact = bed.exact()
    one = divergence.measure(bed, exact, bed.changed(lambda _, w: w))
    table = {"unquantized": {"bits": 32, "perplexity": round(one.perplexity, 4)}}
    against: dict[str, Divergence] = {}
    for name, (spent, change) in theirs_rows(bed).items():
        found = divergence.measure(bed, exact, bed.changed(change))
        if name in ("Q8_0", "Q4_K_S", "Q4_K_S + importance"):
            against[name] = found
        table[name] = report(found, spent, {})
    for name, (spent, tensors) in our_rows(bed).items():
        sides = {k: v for k, v in against.items() if (k == "Q8_0") == name.startswith("q8")}
        found = divergence.measure(bed, exact, bed.changed(unpacked(tensors)))
        table[name] = report(found, spent, sides)
        table[f"{name}, engine"] = report(divergence.measure(bed, exact, tensors), spent, {})
    tokens = sum(len(chunk) - 1 for chunk in bed.held_out)
    given = sum(len(chunk) for chunk in bed.calibration)
    return {"held_out_tokens": tokens, "calibration_tokens": given, "rows": table}


def show_errors(errors: dict) -> None:
    print("relative RMS error of the weights, percent")
    print(f"{'':24}" + "".join(f"{form:>8}" for form in (*OURS, *KINDS)))
    for name, row in errors.items():
        print(f"{name:24}" + "".join(f"{row[form]:8.3f}" for form in (*OURS, *KINDS)))


def show_model(name: str, table: dict) -> None:
    print(f"\n{name}: {table['held_out_tokens']:,} tokens held out, calibrated on "
          f"{table['calibration_tokens']:,}")  # fmt: skip
    print(f"{'':32}{'bits':>7}{'perplexity':>12}{'KLD':>11}  95%")
    for row, v in table["rows"].items():
        line = f"{row:32}{v['bits']:7.3f}{v['perplexity']:12.4f}"
        if "kld" in v:
            low, high = v["kld_95"]
            line += f"{v['kld']:11.6f}  {low:.6f} to {high:.6f}"
        for key in (key for key in v if key.startswith("kld over ")):
            ratio, low, high = v[key]
            line += f"  {ratio:.2f} [{low:.2f}, {high:.2f}] of {key.removeprefix('kld over ')}'s"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the shared data folder")
    parser.add_argument("--save", action="store_true", help="write results/quality.json")
    args = parser.parse_args()
    beds = [divergence.nano(), divergence.stories(args.data)]
    errors = weight_errors(beds)
    show_errors(errors)
    models = {}
    for bed in beds:
        models[bed.name] = model_table(bed)
        show_model(bed.name, models[bed.name])
    if args.save:
        save("quality", {"machine": machine(), "weight_error_percent": errors,
                         "bits_of_shapes": shape_bits(), "models": models})  # fmt: skip


if __name__ == "__main__":
    main()
