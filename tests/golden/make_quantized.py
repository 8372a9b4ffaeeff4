"""Makes quantized.npz: small matrices as the tools that quantize write them, and their values.

Run where torch, transformers, compressed-tensors, and the sources of auto-gptq and autoawq are:

    python tests/golden/make_quantized.py AUTO_GPTQ_FOLDER AUTOAWQ_FOLDER

Only their packing and unpacking code runs, which needs no GPU. Keys of the file are
``case|tensor|safetensors dtype`` and ``case|values``, the matrix in the dtype the tool gives it.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

TARGET = Path(__file__).resolve().parent / "quantized.npz"
ROWS, COLS = 32, 96
_NAMES = {
    torch.int32: "I32", torch.int64: "I64", torch.int8: "I8", torch.uint8: "U8",
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.float8_e8m0fnu: "F8_E8M0",
}  # fmt: skip
stored: dict[str, np.ndarray] = {}


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return (tensor.view(torch.uint8) if "F8" in _NAMES[tensor.dtype] else tensor).numpy()


def keep(case: str, tensors: dict[str, torch.Tensor], values: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        stored[f"{case}|{name}|{_NAMES[tensor.dtype]}"] = bits_of(tensor)
    stored[f"{case}|values|{_NAMES[values.dtype]}"] = bits_of(values)


def load_file(path: Path, **stubs: object) -> types.ModuleType:
    """One module of a package, the rest of which is not there: `stubs` stand for it."""
    module = types.ModuleType(path.stem)
    modules = {name.replace("__", "."): stub for name, stub in stubs.items()}
    text = path.read_text().replace("from ...nn_modules", "from auto_gptq.nn_modules")
    with mock.patch.dict(sys.modules, modules):
        exec(compile(text, str(path), "exec"), module.__dict__)
    return module


def quantized_linear(bits: int, group: int, symmetric: bool) -> tuple:
    """A linear whose weights are codes times scales; scales and zero points [N, G]."""
    count = COLS // group
    scale = (torch.rand(ROWS, count) + 0.5).half().float() / 64
    scale = scale.half().float()
    zero = torch.full((ROWS, count), 2.0 ** (bits - 1))
    if not symmetric:
        zero = torch.randint(1, 2**bits, (ROWS, count)).float()
    codes = torch.randint(0, 2**bits, (ROWS, COLS)).float()
    spread = lambda x: x.repeat_interleave(group, dim=1)  # noqa: E731
    linear = torch.nn.Linear(COLS, ROWS, bias=False)
    linear.weight.data = spread(scale) * (codes - spread(zero))
    return linear, scale, zero


def gptq(folder: Path) -> None:
    empty = mock.MagicMock()
    path = folder / "auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py"
    names = ("auto_gptq", "auto_gptq__nn_modules", "auto_gptq__nn_modules__qlinear")
    names += ("autogptq_cuda_256", "autogptq_cuda_64")
    module = load_file(path, **dict.fromkeys(names, empty))
    for bits in (2, 3, 4, 8):
        for symmetric in (True, False):
            linear, scale, zero = quantized_linear(bits, 32, symmetric)
            values = linear.weight.data.clone()
            q = module.QuantLinear(bits, 32, COLS, ROWS, False, weight_dtype=torch.float16)
            half = torch.nn.Linear(COLS, ROWS, bias=False)
            half.weight.data = linear.weight.data
            q.pack(half, scale.clone(), zero.clone(), None)
            q.scales = q.scales.half()
            names = ("qweight", "qzeros", "scales", "g_idx")
            case = f"gptq {bits} {'sym' if symmetric else 'asym'}"
            keep(case, {f"x.{name}": getattr(q, name) for name in names}, values)


def awq(folder: Path) -> None:
    packing = load_file(folder / "awq/utils/packing_utils.py")
    module = load_file(
        folder / "awq/modules/linear/gemm.py",
        awq=mock.MagicMock(),
        awq__utils=mock.MagicMock(),
        awq__utils__module=types.SimpleNamespace(try_import=lambda name: (None, "")),
        awq__utils__utils=types.SimpleNamespace(get_best_device=lambda: "cpu"),
        awq__utils__packing_utils=packing,
        awq__modules=mock.MagicMock(),
        awq__modules__triton=mock.MagicMock(),
        awq__modules__triton__gemm=mock.MagicMock(),
    )
    linear, scale, zero = quantized_linear(4, 32, False)
    linear = linear.half()
    q = module.WQLinear_GEMM.from_linear(linear, 4, 32, False, scale.T.contiguous(), zero.T)
    values = packing.dequantize_gemm(q.qweight, q.qzeros, q.scales.float(), 4, 32).T
    names = ("qweight", "qzeros", "scales")
    keep("awq", {f"x.{name}": getattr(q, name) for name in names}, values)


def transformers_fp8() -> None:
    for case, block, form in (
        ("fp8 block", (16, 32), "float"),
        ("fp8 ue8m0", (16, 32), "ue8m0"),
        ("fp8 tensor", None, "float"),
    ):
        config = types.SimpleNamespace(weight_block_size=block, scale_fmt=form)
        owner = types.SimpleNamespace(quantization_config=config)
        made = Fp8Quantize(owner).convert({"x.weight": torch.randn(ROWS, COLS) / 50})
        values = Fp8Dequantize(owner)._dequantize_one(
            made["x.weight"], made["x.weight_scale_inv"], torch.float32
        )
        keep(case, made, values)


def mxfp4() -> None:
    blocks = torch.randint(0, 256, (2, ROWS, COLS // 32, 16), dtype=torch.uint8)
    scales = torch.randint(115, 128, (2, ROWS, COLS // 32), dtype=torch.uint8)
    values = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    keep("mxfp4", {"x_blocks": blocks, "x_scales": scales}, values)


def compressed() -> None:
    integer, floating = {"type": "int"}, {"type": "float"}
    cases = {
        "pack-quantized": [
            integer | {"num_bits": 4, "group_size": 32, "strategy": "group"},
            integer | {"num_bits": 4, "group_size": 32, "strategy": "group", "symmetric": False},
            integer | {"num_bits": 8, "strategy": "channel"},
            integer | {"num_bits": 3, "strategy": "channel", "symmetric": False},
        ],
        "int-quantized": [integer | {"num_bits": 8, "strategy": "channel"}],
        "float-quantized": [
            floating | {"num_bits": 8, "strategy": "channel"},
            floating | {"num_bits": 8, "strategy": "block", "block_structure": [16, 32]},
        ],
        "mxfp4-pack-quantized": [
            floating | {"num_bits": 4, "strategy": "group", "group_size": 32},
        ],
        "nvfp4-pack-quantized": [
            floating | {"num_bits": 4, "strategy": "tensor_group", "group_size": 16},
        ],
    }
    for form, many in cases.items():
        for i, weights in enumerate(many):
            one_compressed(f"{form} {i}", form, QuantizationArgs(**weights))


def one_compressed(case: str, form: str, args: QuantizationArgs) -> None:
    weight = torch.randn(ROWS, COLS) / 50
    shape = {"channel": (ROWS, 1), "block": (ROWS // 16, COLS // 32)}.get(
        str(args.strategy), (ROWS, COLS // (args.group_size or COLS))
    )
    scale = torch.rand(shape) / 100 + 0.005
    state = {"weight": weight}
    if form.startswith("mxfp4"):
        scale = 2.0 ** torch.randint(-9, -4, shape)
    if form.startswith("nvfp4"):
        state["weight_global_scale"] = torch.tensor([500.0])
        scale = (scale * 500).to(torch.float8_e4m3fn).float()
    if not args.symmetric:
        top = 2 ** (args.num_bits - 1)
        state["weight_zero_point"] = torch.randint(-top, top, shape, dtype=torch.int8)
    state["weight_scale"] = scale if "fp4" in form else scale.bfloat16()
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(form)
    made = compressor.compress(state, scheme)
    values = compressor.decompress(made, scheme)["weight"]
    keep(case, {f"x.{name}": tensor for name, tensor in made.items()}, values)


def main() -> None:
    torch.manual_seed(0)
    gptq(Path(sys.argv[1]))
    awq(Path(sys.argv[2]))
    transformers_fp8()
    mxfp4()
    compressed()
    np.savez_compressed(TARGET, **stored)
    print(f"{len(stored)} arrays, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
