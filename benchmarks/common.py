"""What the benchmarks share: the machine's limits, medians, a llama.cpp peer, and result files."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
BUILD = Path(__file__).resolve().parent.parent / "build" / "bench"
# llama.cpp for the processor at hand. AMX is off: built with it by GCC 12, llama-cpp-python 0.3.36
# crashes in its first matmul (tile configuration stores are dropped before ldtilecfg).
LLAMA_CMAKE_ARGS = (
    "-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON "
    "-DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON"
)


def bench_model() -> Path:
    """The random Llama-3.2-1B-shaped model (make_model.py), made once: 5 GB under build/bench."""
    folder = BUILD / "llama-1b"
    if not (folder / "f16.gguf").exists():
        script = Path(__file__).parent / "make_model.py"
        subprocess.run([sys.executable, str(script), str(folder)], check=True)
    return folder


def peer_python() -> str:
    """An interpreter with llama-cpp-python built for this processor, made once (some 8 minutes)."""
    folder = BUILD / "llama-cpp"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        flags = set()
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                flags = set(line.split(":", 1)[1].split())
                break
        native = "-DGGML_NATIVE=ON"
        environment = {
            **os.environ,
            "CMAKE_ARGS": LLAMA_CMAKE_ARGS if "amx_int8" in flags else native,
        }
        command = [str(python), "-m", "pip", "install", "--no-binary", "llama-cpp-python"]
        subprocess.run([*command, "llama-cpp-python"], check=True, env=environment)
    return str(python)


def machine() -> dict[str, Any]:
    """The processor, cores, kernel table and software of this run."""
    import musespark

    report = musespark.doctor()
    return {
        "processor": report["processor"],
        "instruction_sets": report["instruction sets"],
        "cores": report["cores"],
        "python": platform.python_version(),
        "musespark": musespark.__version__,
    }


def limits_binary() -> Path:
    """The compiled limits probe (benchmarks/limits.c), built once with the C compiler at hand."""
    import tempfile

    source = Path(__file__).parent / "limits.c"
    binary = Path(tempfile.gettempdir()) / f"musespark-limits-{source.stat().st_mtime_ns}"
    if not binary.exists():
        command = ["cc", "-O3", "-march=native", "-pthread", str(source), "-o", str(binary)]
        subprocess.run(command, check=True)
    return binary


def read_bandwidth(threads: int = 2) -> float:
    """Bytes per second that ``threads`` cores read from memory now (best of several passes)."""
    out = subprocess.run([limits_binary(), "read", str(threads)], capture_output=True, check=True)
    return float(out.stdout)


def dot_peak(threads: int = 2) -> float:
    """int8 operations per second of the widest dot instruction but AMX (2 per multiply-add)."""
    out = subprocess.run([limits_binary(), "dot", str(threads)], capture_output=True, check=True)
    return float(out.stdout)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of some rounds, and their number."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "n": len(values),
    }


class LlamaCpp:
    """llama.cpp in its own environment (``llama_cpp_worker.py``), one model, driven by lines."""

    def __init__(self, python: str, model: str, threads: int):
        worker = Path(__file__).parent / "llama_cpp_worker.py"
        self._process = subprocess.Popen(
            [python, str(worker), "serve", model, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.info = self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"llama.cpp worker ended with status {self._process.wait()}")
        return json.loads(line)

    def seconds(self, test: str, count: int) -> float:
        self._process.stdin.write(f"{test} {count}\n")
        self._process.stdin.flush()
        return self._answer()["seconds"]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)


def save(name: str, report: dict[str, Any]) -> Path:
    """Writes ``results/<name>.json`` aside and renames it; prints where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(report, indent=1) + "\n")
    aside.replace(path)
    print(f"wrote {path}", file=sys.stderr)
    return path
