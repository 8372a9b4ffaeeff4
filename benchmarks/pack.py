"""Packing speed and memory: a bf16 checkpoint of the Llama-3.2-1B shape to q4 and q8.

    python benchmarks/pack.py [--model FOLDER] [--rounds 3] [--threads 2]

Without --model a random bf16 checkpoint (standard deviation 0.02, 1.24e9 parameters) is written to
a temporary folder first. Each round packs in a process of its own, source in the page cache, and
includes fsync; memory is the peak of anonymous pages (what packing needs besides the mapped file)
and the peak of all resident pages.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from common import machine, save, spread

SHAPE = {"hidden": 2048, "inter": 8192, "layers": 16, "kv": 512, "vocab": 128256}


def write_checkpoint(folder: Path) -> Path:
    """A random tied llama checkpoint in bf16, written tensor by tensor."""
    h, inter, kv = SHAPE["hidden"], SHAPE["inter"], SHAPE["kv"]
    shapes = {"model.embed_tokens.weight": (SHAPE["vocab"], h), "model.norm.weight": (h,)}
    for i in range(SHAPE["layers"]):
        for name, shape in {
            "input_layernorm": (h,),
            "post_attention_layernorm": (h,),
            "self_attn.q_proj": (h, h),
            "self_attn.k_proj": (kv, h),
            "self_attn.v_proj": (kv, h),
            "self_attn.o_proj": (h, h),
            "mlp.gate_proj": (inter, h),
            "mlp.up_proj": (inter, h),
            "mlp.down_proj": (h, inter),
        }.items():
            shapes[f"model.layers.{i}.{name}.weight"] = shape
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    encoded = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for shape in shapes.values():
            for rows in np.array_split(np.arange(shape[0]), -(-int(np.prod(shape)) // 2**24)):
                values = rng.standard_normal((len(rows), *shape[1:]), np.float32) * 0.02
                file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    config = {
        "model_type": "llama",
        "hidden_size": h,
        "intermediate_size": inter,
        "num_hidden_layers": SHAPE["layers"],
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": SHAPE["vocab"],
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().split("\n"):
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def worker(folder: str, target: str, quantize: str) -> None:
    """One round in this process; prints its measurements as JSON."""
    from musespark.weights import convert

    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            peak[0] = max(peak[0], _memory("RssAnon"))

    before = _memory("RssAnon")
    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    info = convert(folder, target, quantize=quantize, progress=False)
    seconds = time.perf_counter() - begin
    stop.set()
    watcher.join()
    measured = {"seconds": seconds, "anonymous": peak[0] - before, "resident": _memory("VmHWM")}
    print(json.dumps(measured | {"parameters": info["parameters"], "bytes": info["bytes"]}))


def measure(folder: Path, quantize: str, rounds: int) -> dict:
    """Medians over rounds, each a process of its own."""
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(rounds):
            command = [sys.executable, __file__, "--worker", str(folder), scratch + "/m", quantize]
            out = subprocess.run(command, check=True, capture_output=True, text=True)
            results.append(json.loads(out.stdout))
    seconds = spread([r["seconds"] for r in results])
    parameters = results[0]["parameters"]
    return {
        "parameters": parameters,
        "bytes": results[0]["bytes"],
        "seconds": seconds,
        "seconds_per_1e9": seconds["median"] * 1e9 / parameters,
        "anonymous_mb": max(r["anonymous"] for r in results) / 1e6,
        "resident_mb": max(r["resident"] for r in results) / 1e6,
    }


def main() -> None:
    if "--worker" in sys.argv:
        worker(*sys.argv[2:5])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="a folder with a bf16 checkpoint")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="processors to use; all by default")
    arguments = parser.parse_args()
    if arguments.threads:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model or write_checkpoint(Path(scratch))
        report = {"machine": machine()}
        for quantize in ("q4", "q8"):
            report[quantize] = measure(folder, quantize, arguments.rounds)
            r = report[quantize]
            print(
                f"{quantize}: {r['parameters'] / 1e9:.2f}e9 parameters in "
                f"{r['seconds']['median']:.1f} s ({r['seconds']['low']:.1f} … "
                f"{r['seconds']['high']:.1f}), {r['seconds_per_1e9']:.1f} s per 1e9, "
                f"{r['bytes'] / 1e6:.0f} MB, {r['anonymous_mb']:.0f} MB above the mapped file, "
                f"{r['resident_mb']:.0f} MB resident at most"
            )
    save("pack", report)


if __name__ == "__main__":
    main()
