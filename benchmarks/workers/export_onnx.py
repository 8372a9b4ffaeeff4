"""A Hugging Face folder as ONNX Runtime GenAI's model builder makes it: SOURCE DESTINATION int4.

Blocks of 32 with int8 activations (accuracy level 4), its own choice for processors. bench.json
holds the bytes that decoding a token reads: all constants but tables of positions, and but an
embedding beside the head.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import onnx

source, destination, kind = sys.argv[1:4]
options = ["int4_block_size=32", "int4_accuracy_level=4"]
builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source]
command = [*builder, "-o", destination, "-p", kind, "-e", "cpu", "--extra_options", *options]
subprocess.run(command, check=True)
graph = onnx.load(Path(destination) / "model.onnx", load_external_data=False).graph
bits = {onnx.TensorProto.FLOAT: 32, onnx.TensorProto.FLOAT16: 16, onnx.TensorProto.INT64: 64}
sizes = {t.name: math.prod(t.dims) * bits.get(t.data_type, 8) // 8 for t in graph.initializer}
read = {
    name: size
    for name, size in sizes.items()
    if "_cache" not in name and not (name.startswith("model.embed_tokens") and size > 2**20)
}
report = {"weight_bytes": sum(read.values()), "constants": sizes}
(Path(destination) / "bench.json").write_text(json.dumps(report, indent=1))
