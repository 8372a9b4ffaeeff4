"""One engine on the tower of vision_graph.py: ENGINE THREADS OUTPUT; a line on standard input is a
run, answered with its seconds as JSON. The rows of the first run are written to OUTPUT (.npy).

Engines: torch-f32, onnxruntime-f32, onnxruntime-int8 (dynamic, per channel), openvino-f32,
openvino-bf16, openvino-int8 (post-training quantization of NNCF, transformer preset, calibrated on
images like the measured one).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
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


def onnxruntime(threads: int, kind: str) -> tuple[Run, str]:
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f32.onnx"
        onnx.save(graph.onnx_model(graph.weights()), path)
        if kind == "int8":
            from onnxruntime.quantization import QuantType, quantize_dynamic

            small = Path(folder) / "int8.onnx"
            quantize_dynamic(path, small, per_channel=True, weight_type=QuantType.QInt8)
            path = small
        session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return lambda x: session.run(None, {"patches": x})[0], ort.__version__


def openvino(threads: int, kind: str) -> tuple[Run, str]:
    import openvino as ov

    core = ov.Core()
    with tempfile.TemporaryDirectory() as folder:
        import onnx

        path = Path(folder) / "f32.onnx"
        onnx.save(graph.onnx_model(graph.weights()), path)
        model = core.read_model(path)
        if kind == "int8":
            import nncf

            images = nncf.Dataset([graph.patches(i) for i in range(1, 9)])
            transformer = nncf.ModelType.TRANSFORMER
            model = nncf.quantize(model, images, model_type=transformer, subset_size=8)
        hint = "bf16" if kind == "bf16" else "f32"
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
        compiled = core.compile_model(model, "CPU", settings | {"PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()

    def run(x: np.ndarray) -> np.ndarray:
        return next(iter(request.infer({0: x}, share_inputs=True).values()))

    return run, ov.__version__


def load(engine: str, threads: int) -> tuple[Run, str]:
    name, _, kind = engine.partition("-")
    if name == "torch":
        return torch_f32(threads)
    return (onnxruntime if name == "onnxruntime" else openvino)(threads, kind)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    engine, threads, output = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    run, version = load(engine, threads)
    x = graph.patches()
    np.save(output, np.array(run(x)))
    print(json.dumps({"version": version}), file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run(x)
        print(json.dumps({"seconds": time.perf_counter() - start}), file=answers, flush=True)


if __name__ == "__main__":
    main()
