"""One engine on the tower of vision_graph.py: ENGINE THREADS FOLDER OUTPUT; a line on standard
input is a run, answered with its seconds as JSON. The rows of the first run are written to OUTPUT
(.npy), models to FOLDER, where a later run finds them.

Engines: torch-f32, onnxruntime-f32, onnxruntime-int8 (dynamic, per channel), openvino-f32,
openvino-bf16, openvino-int8 (post-training quantization of NNCF, transformer preset, calibrated on
images like the measured one).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import vision_graph as graph

Run = Callable[[np.ndarray], np.ndarray]


def torch_f32(threads: int) -> tuple[Run, str]:
    import torch

    torch.set_num_threads(threads)
    forward = graph.torch_forward(graph.weights())

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return forward(torch.from_numpy(x)).numpy()

    return run, torch.__version__


def onnx_file(folder: Path) -> Path:
    path = folder / "f32.onnx"
    if not path.exists():
        import onnx

        onnx.save(graph.onnx_model(graph.weights()), path)
    return path


def onnxruntime(threads: int, kind: str, folder: Path) -> tuple[Run, str]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    path = onnx_file(folder) if kind == "f32" else folder / "int8.onnx"
    if not path.exists():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(onnx_file(folder), path, per_channel=True, weight_type=QuantType.QInt8)
    session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return lambda x: session.run(None, {"patches": x})[0], ort.__version__


def openvino(threads: int, kind: str, folder: Path) -> tuple[Run, str]:
    import openvino as ov

    core = ov.Core()
    path = onnx_file(folder) if kind != "int8" else folder / "int8.xml"
    if not path.exists():
        import nncf

        images = nncf.Dataset([graph.patches(i) for i in range(1, 9)])
        transformer = nncf.ModelType.TRANSFORMER
        model = core.read_model(onnx_file(folder))
        model = nncf.quantize(model, images, model_type=transformer, subset_size=8)
        ov.save_model(model, path, compress_to_fp16=False)
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if kind == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(path, "CPU", settings)
    request = compiled.create_infer_request()

    def run(x: np.ndarray) -> np.ndarray:
        return next(iter(request.infer({0: x}, share_inputs=True).values()))

    return run, ov.__version__


def load(engine: str, threads: int, folder: Path) -> tuple[Run, str]:
    name, _, kind = engine.partition("-")
    if name == "torch":
        return torch_f32(threads)
    return (onnxruntime if name == "onnxruntime" else openvino)(threads, kind, folder)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    engine, threads, folder, output = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    run, version = load(engine, threads, folder)
    x = graph.patches()
    np.save(output, np.array(run(x)))
    print(json.dumps({"version": version}), file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run(x)
        print(json.dumps({"seconds": time.perf_counter() - start}), file=answers, flush=True)


if __name__ == "__main__":
    main()
