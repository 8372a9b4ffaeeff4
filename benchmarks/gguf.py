"""GGUF: transcoding speed of every type, and load time and memory of a 1B-shaped model.

    python benchmarks/gguf.py [--model MODEL_DIR] [--peer PEER_PYTHON] [--rounds 3] [--threads 2]
                              [--only transcode|load]

Transcoding is the packing of a random 4096 x 4096 matrix of the type into the format that keeps it,
in memory, in GB/s of GGUF bytes. Loading is the time from a path to the first logits, each round in
processes of its own: first with an empty packing cache (the model is packed into it, fsync
included), then again; the files are in the page cache. first_text is what the first encoded text
takes after that: it builds the tokenizer, which llama.cpp has built by then. Memory is what was
resident at most until the logits, mapped files included, and of that the anonymous pages. llama.cpp
loads the same GGUF files. MODEL_DIR is what make_model.py wrote.
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
from typing import Any

import numpy as np
from common import bench_model, machine, peer_python, save, spread

WORKER = Path(__file__).parent / "llama_cpp_worker.py"


def random_blocks(name: str, rows: int, cols: int) -> np.ndarray:
    """Rows of random codes under small scales: uint8 [rows, bytes of a row]."""
    from musespark.reference import stored

    size, decode = stored.TYPES[name]
    values = decode(np.zeros((1, size), np.uint8)).size
    rng = np.random.default_rng(1)
    if name in ("f32", "f16", "bf16"):
        plain = (rng.standard_normal((rows, cols), np.float32) * 0.02).astype(np.float16)
        if name == "f16":
            return plain.view(np.uint8)
        wide = plain.astype(np.float32)
        bits = wide if name == "f32" else (wide.view(np.uint32) >> 16).astype(np.uint16)
        return np.ascontiguousarray(bits).view(np.uint8)
    blocks = rng.integers(0, 256, (rows, cols // values, size), np.uint8)
    scale = np.frombuffer(np.float16(0.002).tobytes(), np.uint8)
    for at in {"q2_k": (80, 82), "q3_k": (108,), "q6_k": (208,), "mxfp4": ()}.get(name, (0,)):
        blocks[:, :, at : at + 2] = scale
    if name in ("q4_1", "q5_1", "q4_k", "q5_k"):
        blocks[:, :, 2:4] = scale
    if name == "mxfp4":
        blocks[:, :, 0] = rng.integers(116, 124, blocks.shape[:2])
    return blocks.reshape(rows, -1)


def transcode(rounds: int, threads: int) -> dict[str, Any]:
    """Type -> format, and GB/s of stored bytes."""
    from musespark import _core
    from musespark.weights.pack import KEPT

    report = {}
    for name, form in {
        "f16": "q8",
        "bf16": "q8",
        **{k.lower(): v for k, v in KEPT.items()},
    }.items():
        rows = random_blocks(name, 4096, 4096)
        out = np.empty(_core.packed_nbytes(form, 4096, 4096), np.uint8)
        speeds = []
        for i in range(rounds + 1):
            quick = name not in ("f16", "bf16")
            start = time.perf_counter()
            _core.pack(form, rows, dtype=name, out=out, threads=threads, quick=quick)
            if i:
                speeds.append(rows.nbytes / (time.perf_counter() - start) / 1e9)
        report[name] = {"format": form, "gb_per_s": spread(speeds)}
        s = report[name]["gb_per_s"]
        print(f"{name:>7} -> {form:<8} {s['median']:6.2f} GB/s [{s['low']:.2f}..{s['high']:.2f}]")
    return report


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().split("\n"):
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def load_once(path: str, quantize: str, threads: str) -> None:
    """One load in this process, to the first logits; prints its measurements as JSON."""
    import musespark

    anonymous, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            anonymous[0] = max(anonymous[0], _status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    with musespark.load(
        path, quantize=quantize, threads=int(threads), context=512, progress=False
    ) as model:
        model.generate([7], max_new_tokens=1, temperature=0)
        seconds = time.perf_counter() - start
        stop.set()
        watcher.join()
        formats = dict(model.info.weight_formats)
        resident = _status("VmHWM")
        start = time.perf_counter()
        model.tokenizer.encode("A first text.")
        first_text = time.perf_counter() - start
    print(
        json.dumps(
            {
                "seconds": seconds,
                "first_text": first_text,
                "resident": resident,
                "anonymous": anonymous[0],
                "formats": formats,
            }
        )
    )


def _run(command: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(out.stdout.strip().split("\n")[-1])


def loading(folder: Path, peer: str, rounds: int, threads: int) -> dict[str, Any]:
    """Our first and second load of GGUF and safetensors, and llama.cpp's of the GGUF."""
    report: dict[str, Any] = {}
    sources = {"q4_0.gguf": "auto", "q8_0.gguf": "auto", "hf": "q4"}
    for name, quantize in sources.items():
        path, runs = folder / name, {"first": [], "second": [], "llama.cpp": []}
        if path.suffix == ".gguf" and not path.exists():
            kind = path.stem
            subprocess.run(
                [peer, str(WORKER), "quantize", str(folder / "f16.gguf"), str(path), kind],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                environment = os.environ | {"MUSESPARK_CACHE": cache}
                for which in ("first", "second"):
                    mine = [sys.executable, __file__, "--load", str(path), quantize, str(threads)]
                    runs[which].append(_run(mine, environment))
            if path.suffix == ".gguf":
                command = [peer, str(WORKER), "load", str(path), str(threads)]
                runs["llama.cpp"].append(_run(command))
        report[name] = {"quantize": quantize, "formats": runs["first"][0]["formats"]}
        for which, found in runs.items():
            if not found:
                continue
            report[name][which] = {
                **{
                    kind: spread([r[kind] for r in found])
                    for kind in ("seconds", "first_text")
                    if kind in found[0]
                },
                **{
                    f"{kind}_mb": max(r[kind] for r in found) / 1e6
                    for kind in ("resident", "anonymous")
                    if kind in found[0]
                },
            }
            one = report[name][which]
            print(
                f"{name:>10} {which:<9} {one['seconds']['median']:6.2f} s "
                f"[{one['seconds']['low']:.2f}..{one['seconds']['high']:.2f}], "
                f"{one['resident_mb']:.0f} MB resident"
                + (f", {one['anonymous_mb']:.0f} MB anonymous" if "anonymous_mb" in one else "")
                + (
                    f", first text {one['first_text']['median']:.2f} s"
                    if "first_text" in one
                    else ""
                )
            )
    return report


def main() -> None:
    if "--load" in sys.argv:
        load_once(*sys.argv[2:5])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=None, help="what make_model.py wrote")
    parser.add_argument("--peer", default=None, help="a Python with llama-cpp-python")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["transcode", "load"], default=None)
    args = parser.parse_args()
    if args.rounds < 1:
        sys.exit("--rounds must be at least 1")
    report: dict[str, Any] = {"machine": machine(), "threads": args.threads}
    if args.only != "load":
        report["transcode"] = transcode(args.rounds, args.threads)
    if args.only != "transcode":
        folder, peer = args.model or bench_model(), args.peer or peer_python()
        report["load"] = loading(folder, peer, args.rounds, args.threads)
    save("gguf" if args.only is None else f"gguf_{args.only}", report)


if __name__ == "__main__":
    main()
