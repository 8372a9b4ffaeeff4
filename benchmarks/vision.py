"""A vision tower beside other engines: SigLIP-B/16 at 512 x 512, random weights, one image.

    python benchmarks/vision.py [--rounds 7] [--threads 2] [--engines torch-f32 …] [--isa …]
                                [--save]

1,024 patches, 12 layers of 12 heads of 64, MLPs of 3,072, and one product after them: 215 Gop (two
a multiply-add). Every engine loads the same weights (workers/vision_graph.py) in a process of its
own; rounds go through the engines in turn, medians are shown. ``cosine`` is the mean over rows of
the cosine to torch's f32 rows (to ours, if torch is left out). ``--isa`` holds musespark to a level
by MUSESPARK_ISA, OpenVINO and torch (oneDNN) by ONEDNN_MAX_CPU_ISA where there is a name for it;
ONNX Runtime is not held: its own kernels take what the processor has.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, save, spread
from environments import BUILD, EXPORT

sys.path.insert(0, str(Path(__file__).parent / "workers"))
import vision_graph as graph

PEERS = (
    "torch-f32",
    "onnxruntime-f32",
    "onnxruntime-int8",
    "openvino-f32",
    "openvino-bf16",
    "openvino-int8",
)
OURS = ("musespark-f32", "musespark-q8")
PAUSE = 0.4  # seconds, for the threads of the engine before to stop spinning
ONEDNN = {"avx2": "AVX2", "avxvnni": "AVX2_VNNI", "avx512vnni": "AVX512_CORE_VNNI"}


class Ours:
    """musespark in this process."""

    def __init__(self, kind: str, threads: int):
        import musespark
        from musespark.families.spec import AttentionSpec, LayerSpec, MlpSpec, NormSpec
        from musespark.families.vision.spec import HeadSpec, PositionSpec, VisionSpec
        from musespark.vision.tower import VisionTower, pack_tower

        norm = NormSpec("layer", graph.EPS, bias=True)
        dim = graph.HIDDEN // graph.HEADS
        attention = AttentionSpec(
            heads=graph.HEADS, kv_heads=graph.HEADS, head_dim=dim, query_scale=dim**-0.5,
            qkv_bias=True, o_bias=True,
        )  # fmt: skip
        mlp = MlpSpec(activation="gelu_tanh", gated=False, bias=True, intermediate=graph.INNER)
        layer = LayerSpec(attention, mlp, attn_norm=norm, mlp_norm=norm)
        spec = VisionSpec(
            patch_dim=graph.PATCH_DIM,
            hidden=graph.HIDDEN,
            patch_bias=True,
            positions=PositionSpec("table", graph.SIDE),
            layers=[layer] * graph.LAYERS,
            head=HeadSpec(norm=norm, widths=(graph.HIDDEN,)),
        )
        self._tower = VisionTower(
            spec, pack_tower(spec, graph.weights().__getitem__, kind), threads=threads
        )
        self._patches = graph.patches()
        self.version = musespark.__version__
        self.rows = self._run()

    def _run(self) -> np.ndarray:
        return self._tower.encode(self._patches, [(1, graph.SIDE, graph.SIDE)]).rows

    def seconds(self) -> float:
        start = time.perf_counter()
        self._run()
        return time.perf_counter() - start


class Peer:
    """Another engine in a process of its own."""

    def __init__(self, engine: str, threads: int, variables: dict[str, str]):
        worker = Path(__file__).parent / "workers" / "run_vision.py"
        models = BUILD / "models" / "siglip-b16-512"
        models.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "rows.npy"
            self._process = subprocess.Popen(
                [str(EXPORT.python()), str(worker), engine, str(threads), str(models), str(output)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | variables,
            )
            self.version = self._answer()["version"]
            self.rows = np.load(output)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args[2]} ended before it answered")
        return json.loads(line)

    def seconds(self) -> float:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()["seconds"]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over rows."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.mean((a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engines", nargs="+", default=[*OURS, *PEERS], choices=[*OURS, *PEERS])
    parser.add_argument("--isa", help="a level that all engines are held to")
    parser.add_argument("--save", action="store_true", help="write results/vision[_ISA].json")
    options = parser.parse_args()
    variables = {}
    if options.isa:
        os.environ["MUSESPARK_ISA"] = options.isa
        variables = {"ONEDNN_MAX_CPU_ISA": ONEDNN[options.isa]} if options.isa in ONEDNN else {}

    engines: dict[str, Ours | Peer] = {}
    for name in options.engines:
        ours = name in OURS
        kind = name.removeprefix("musespark-")
        engines[name] = (
            Ours(kind, options.threads) if ours else Peer(name, options.threads, variables)
        )
        engines[name].seconds()
    timings: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(options.rounds):
        for name, engine in engines.items():
            time.sleep(PAUSE)
            timings[name].append(engine.seconds())
    reference = engines.get("torch-f32") or next(iter(engines.values()))
    rows = [
        {
            "engine": name,
            "version": engine.version,
            "seconds": spread(timings[name]),
            "cosine": cosine(engine.rows, reference.rows),
        }
        for name, engine in engines.items()
    ]
    for row in rows:
        print(f"{row['engine']:18} {row['seconds']['median'] * 1e3:8.1f} ms  {row['cosine']:.6f}")
    if options.save:
        name = f"vision_{options.isa}" if options.isa else "vision"
        report = {"threads": options.threads, "isa": options.isa, "rows": rows}
        save(name, {"machine": machine()} | report)


if __name__ == "__main__":
    main()
