"""GGUF: transcoding speed of every type, and load time and memory of a 1B-shaped model.

    python benchmarks/gguf_files.py [--rounds 3] [--threads 2] [--only transcode|load]

Transcoding is the packing of a random 4096 x 4096 matrix of the type into the format that keeps it,
in memory, in GB/s of GGUF bytes. Loading is the time from a path to the first logits, each round in
processes of its own: first with an empty packing cache (the model is packed into it, fsync
included), then again; the files are in the page cache. first_text is what the first encoded text
takes after that: it builds the tokenizer, which llama.cpp has built by then. Memory is what was
resident at most until the logits, mapped files included, and of that the anonymous pages. llama.cpp
loads the same GGUF files (models.py makes them, environments.py its environment).
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

import models
import numpy as np
from common import machine, save, spread
from engines import engines
from shapes import SHAPES

SHAPE = SHAPES["llama-3.2-1b"]
CONTEXT = 512


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
        rows = models.random_blocks(name, 4096, 4096)
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
        path, quantize=quantize, threads=int(threads), context=CONTEXT, progress=False
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


def _peer(form: str, threads: int) -> dict[str, Any]:
    """One load of llama.cpp, of the same GGUF file, to its first logits."""
    worker = engines()["llama.cpp"].start(SHAPE, form, threads, CONTEXT)
    try:
        resident = worker.ask({"test": "memory"})["peak_bytes"]
        return {"seconds": worker.info["first_token_s"], "resident": resident}
    finally:
        worker.close()


def loading(rounds: int, threads: int) -> dict[str, Any]:
    """Our first and second load of GGUF and safetensors, and llama.cpp's of the GGUF."""
    report: dict[str, Any] = {}
    sources = {"q4_0.gguf": ("auto", "q4"), "q8_0.gguf": ("auto", "q8"), "checkpoint": ("q4", "")}
    for name, (quantize, form) in sources.items():
        path, runs = models.build(SHAPE, name), {"first": [], "second": [], "llama.cpp": []}
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(dir=models.BUILD) as cache:
                environment = os.environ | {"MUSESPARK_CACHE": cache}
                for which in ("first", "second"):
                    mine = [sys.executable, __file__, "--load", str(path), quantize, str(threads)]
                    runs[which].append(_run(mine, environment))
            if form:
                runs["llama.cpp"].append(_peer(form, threads))
        report[name] = {"quantize": quantize, "formats": runs["first"][0]["formats"]}
        for which, found in runs.items():
            if found:
                report[name][which] = _loads(found)
                _show(name, which, report[name][which])
    return report


def _loads(found: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = [kind for kind in ("resident", "anonymous") if kind in found[0]]
    memory = {f"{kind}_mb": max(r[kind] for r in found) / 1e6 for kind in kinds}
    times = [kind for kind in ("seconds", "first_text") if kind in found[0]]
    return {kind: spread([r[kind] for r in found]) for kind in times} | memory


def _show(name: str, which: str, one: dict[str, Any]) -> None:
    anonymous = f", {one['anonymous_mb']:.0f} MB anonymous" if "anonymous_mb" in one else ""
    text = f", first text {one['first_text']['median']:.2f} s" if "first_text" in one else ""
    print(
        f"{name:>10} {which:<9} {one['seconds']['median']:6.2f} s "
        f"[{one['seconds']['low']:.2f}..{one['seconds']['high']:.2f}], "
        f"{one['resident_mb']:.0f} MB resident{anonymous}{text}"
    )


def main() -> None:
    if "--load" in sys.argv:
        load_once(*sys.argv[2:5])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
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
        report["load"] = loading(args.rounds, args.threads)
    save("gguf" if args.only is None else f"gguf_{args.only}", report)


if __name__ == "__main__":
    main()
