"""The other engines' virtual environments under build/bench, made from the package index on demand.

Versions are pinned: figures of other versions are other figures. ``MUSESPARK_BENCH`` names another
folder than build/bench for environments and models (20 GB with all of them).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("MUSESPARK_BENCH") or ROOT / "build" / "bench").resolve()

_PLAIN = "-DGGML_CCACHE=OFF"  # a ccache that is set up for another compiler would be taken along
_SIMD = (
    f"{_PLAIN} -DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON "
    "-DGGML_BMI2=ON"
)
# AMX is off: built with it by GCC 12, llama-cpp-python 0.3.36 crashes in its first matmul (stores
# of the tile configuration are dropped before ldtilecfg).
_LLAMA_LEVELS = {
    "avx2": _SIMD,
    "avxvnni": f"{_SIMD} -DGGML_AVX_VNNI=ON",
    "avx512vnni": f"{_SIMD} -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON "
    "-DGGML_AVX512_BF16=ON",
}


class EnvironmentFailed(Exception):  # noqa: N818 - it is a reason, shown in a row
    """An environment cannot be made; the message is what the installer said last."""


@dataclass(frozen=True)
class Environment:
    """Packages of one engine. ``sources``: built here, not taken as wheels. ``unwanted``: packages
    that come along and do harm, removed again."""

    name: str
    packages: tuple[str, ...]
    sources: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return BUILD / self.name

    def python(self) -> Path:
        """The environment's interpreter; the environment is made when it is not there."""
        python, done = self.folder / "bin" / "python", self.folder / ".packages"
        wanted = "\n".join(self.packages) + "\n"
        if done.exists() and done.read_text() == wanted and python.exists():
            return python
        print(f"making {self.folder}: {' '.join(self.packages)}", file=sys.stderr)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "venv", str(self.folder)])
        # pip would take a wheel that it built before, with whatever flags that was.
        built = [f"--no-binary={name}" for name in self.sources]
        built += ["--no-cache-dir"] if self.sources else []
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        _run([*pip, "install", "--quiet", *built, *self.packages], self.variables)
        if self.unwanted:
            _run([*pip, "uninstall", "--quiet", "--yes", *self.unwanted])
        done.write_text(wanted)
        return python


def _run(command: list[str], variables: dict[str, str] | None = None) -> None:
    environment = os.environ | (variables or {})
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode:
        said = [line.strip() for line in (run.stderr + run.stdout).splitlines() if line.strip()]
        marks = (": error:", "error:", "")  # a compiler's, the installer's, whatever came first
        why = next((line for mark in marks for line in said if mark in line.lower()), "")
        raise EnvironmentFailed(f"{' '.join(command[1:4])} …: {why:.300}")


def processor_flags() -> set[str]:
    """What /proc/cpuinfo lists; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if "flags" in line), set())


def llama_cpp(level: str | None = None) -> Environment:
    """llama-cpp-python built for one of our levels, or for this processor (some 8 minutes).

    For this processor that is AVX512-VNNI where it has AMX, see above.
    """
    if level is None and "amx_int8" in processor_flags():
        level = "avx512vnni"
    flags = f"{_PLAIN} -DGGML_NATIVE=ON" if level is None else _LLAMA_LEVELS[level]
    return Environment(
        f"llama-cpp-{level or 'native'}",
        ("llama-cpp-python==0.3.36",),
        sources=("llama-cpp-python",),
        variables={"CMAKE_ARGS": flags},
    )


LLAMA_LEVELS = tuple(_LLAMA_LEVELS)
OPENVINO = Environment("openvino", ("openvino==2026.4.1", "openvino-genai==2026.4.1"))
ONNXRUNTIME = Environment("onnxruntime", ("onnxruntime==1.31.1", "onnxruntime-genai==0.18.0"))
MISTRALRS = Environment("mistralrs", ("mistralrs==0.9.5",))
# Writes the files that OpenVINO and ONNX Runtime load. A torchvision comes along that may be made
# for another torch, and breaks every import then.
EXPORT = Environment(
    "export",
    (
        "torch==2.13.0",
        "transformers==5.5.4",
        "optimum-intel==2.2.0",
        "nncf==3.4.0",
        "openvino==2026.4.1",
        "onnxruntime-genai==0.18.0",
        "onnx==1.23.2",
        "onnx-ir==1.1.0",
    ),
    unwanted=("torchvision",),
)
# The oldest transformers that loads an exported Nano as the lab does; bf16 and f32 of PyTorch.
TRANSFORMERS = Environment("transformers", ("torch==2.13.0", "transformers==5.23.0"))
