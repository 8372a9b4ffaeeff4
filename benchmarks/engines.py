"""The engines that are compared, and each as a process that answers questions (workers/)."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import environments
import models
from environments import BUILD, Environment
from shapes import Shape

WORKERS = Path(__file__).parent / "workers"
# Format that is asked for -> file or folder (models.py) and what it is called in tables.
_OURS = {"q4": ("q4.safetensors", "q4"), "q8": ("q8.safetensors", "q8")}
_LLAMA = {"q4": ("q4_0.gguf", "Q4_0"), "q8": ("q8_0.gguf", "Q8_0")}
_OPENVINO = {"q4": ("openvino-int4", "INT4 g128"), "q8": ("openvino-int8", "INT8")}
_MISTRAL = {"q4": ("q4_k.gguf", "Q4_K"), "q8": ("q8_0.gguf", "Q8_0")}  # Q4_0 never answers


class WorkerFailed(Exception):  # noqa: N818 - it is a reason, shown in a row
    """An engine that could not be started, or broke off; the message says why."""


@dataclass(frozen=True)
class Engine:
    """One engine. ``environment`` None: this interpreter. ``models``: format -> (what models.py
    builds, its label). ``levels``: instruction sets that it can be held to."""

    name: str
    script: str
    models: dict[str, tuple[str, str]]
    environment: Environment | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    levels: tuple[str, ...] = ()

    def start(self, shape: Shape, form: str, threads: int, context: int) -> Worker:
        """The engine with its model loaded. EnvironmentFailed, NotBuilt or WorkerFailed."""
        if form not in self.models:
            raise models.NotBuilt(f"no form of {form} is measured for it")
        what, label = self.models[form]
        path = models.build(shape, what)
        read_anew(path)
        python = sys.executable if self.environment is None else str(self.environment.python())
        count = {"RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        command = [python, str(WORKERS / self.script), str(path), str(threads), str(context)]
        worker = Worker(command, {**count, **self.variables}, f"{self.name}-{form}")
        worker.info |= {"format": label, "model_bytes": models.weight_bytes(shape, what, path)}
        return worker


def read_anew(path: Path) -> None:
    """Has the page cache drop a model's files and read them back, so that no engine decodes faster
    or slower for the way its file was written: small pages of the cache, scattered, cost a quarter
    and more."""
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        with open(file, "rb", buffering=0) as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            piece = bytearray(8 << 20)
            while opened.readinto(piece):
                pass


def engines(level: str | None = None) -> dict[str, Engine]:
    """Name -> engine, ours first. ``level``: those that can be held to an instruction set, so."""
    held = {} if level is None else {"MUSESPARK_ISA": level}
    every = [
        Engine("musespark", "run_musespark.py", _OURS, None, held, environments.LLAMA_LEVELS),
        Engine(
            "llama.cpp",
            "run_llama_cpp.py",
            _LLAMA,
            environments.llama_cpp(level),
            levels=environments.LLAMA_LEVELS,
        ),
        Engine("openvino", "run_openvino.py", _OPENVINO, environments.OPENVINO),
        Engine(
            "onnxruntime",
            "run_onnxruntime.py",
            {"q4": ("onnx-int4", "int4 b32")},
            environments.ONNXRUNTIME,
        ),
        Engine("mistral.rs", "run_mistralrs.py", _MISTRAL, environments.MISTRALRS),
    ]
    return {e.name: e for e in every if level is None or level in e.levels}


class Worker:
    """A worker process and what it said of itself in ``info``. WorkerFailed where it does not run.

    Kept stopped between questions (:meth:`pause`), so that threads which spin or poll take nothing
    from the engine whose turn it is.
    """

    def __init__(self, command: list[str], variables: Mapping[str, str], name: str):
        logs = BUILD / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._log = logs / f"{name}.txt"
        self._buffer = b""
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | dict(variables),
            )
        try:
            self.info = self._answer(timeout=600)
        except BaseException:
            self.close()
            raise
        if "error" in self.info:
            self.close()
            raise WorkerFailed(self.info["error"])

    def ask(self, question: Mapping[str, Any], timeout: float = 300) -> dict[str, Any]:
        """The answer; it may be ``error``. WorkerFailed where none comes; the worker is ended."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
        except OSError:
            pass  # it has ended: reading says so
        return self._answer(timeout)

    def _answer(self, timeout: float) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not ready.select(timeout):
                    self.close()
                    raise WorkerFailed(f"no answer in {timeout:.0f} s")
                part = os.read(stdout.fileno(), 1 << 16)
                if not part:
                    self.close()
                    raise WorkerFailed(self._last_words())
                self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def _last_words(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line]
        said = f": {lines[-1]:.200}" if lines else ""
        return f"ended with status {self._process.returncode}{said}"

    def pause(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends the process. Idempotent."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self.resume()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
