"""Python in a process of its own that sees no network and none of the machine's files."""

from __future__ import annotations

import codecs
import json
import os
import platform
import selectors
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from musespark.agents.tools import Tool
from musespark.errors import InvalidRequest, SandboxUnavailable
from musespark.options import integer, real

_CHILD = Path(__file__).with_name("sandbox.py")
_LONGEST = 64 << 10  # bytes of a program, which is an argument of another
_GRACE = 5.0  # seconds to build the sandbox
_MiB = 1 << 20
_TIMED_OUT = "timed out"  # what sandbox.py says then


@dataclass(frozen=True)
class SandboxLimits:
    """``seconds``: wall clock, and processor time of each process. ``memory``: bytes of address
    space of each process. ``files``: bytes that it may write. ``output``: bytes of what it prints
    that are kept; a program that prints more is ended. ``processes``: at once, its own and threads
    included; one can start no other, but Linux does not hold root to a larger number."""

    seconds: float = 10.0
    memory: int = 512 * _MiB
    files: int = 16 * _MiB
    output: int = 64 << 10
    processes: int = 1

    def __post_init__(self) -> None:
        real("seconds", self.seconds, 0.1, 3600.0, "0.1 to 3600 seconds")
        integer("memory", self.memory, 64 * _MiB)
        integer("files", self.files, 64 << 10)
        integer("output", self.output, 1)
        integer("processes", self.processes, 1, 64)


def python_tool(limits: SandboxLimits | None = None) -> Tool:
    """A tool ``run_python(code)``: runs a program and gives what it prints.

    Each runs in new Linux namespaces (user, mount, network, process, IPC, host name), without the
    system calls for memory beyond its limits: there is no network, of the files only the
    interpreter's folder, ``/usr`` and the system's libraries, read-only, and one empty folder in
    memory that is gone afterwards. Nothing is kept between runs. Raises
    :class:`SandboxUnavailable` at once where that cannot be had; nothing then runs without.
    """
    chosen = SandboxLimits() if limits is None else limits
    if not isinstance(chosen, SandboxLimits):
        raise InvalidRequest(f"limits: got {limits!r:.60}, allowed is a SandboxLimits")
    run_in_sandbox("", chosen)

    def run_python(code: str) -> str:
        """Run a Python program and get what it prints. It has the standard library, no network.

        Args:
            code: the program
        """
        return run_in_sandbox(code, chosen)

    return Tool.of(run_python)


def run_in_sandbox(code: str, limits: SandboxLimits) -> str:
    """What a program prints, and behind it how it ended where that was not well: with a status, or
    because it printed too much. One that prints nothing is told so, since a model may have expected
    the value of the last line. InvalidRequest for one that takes too long. SandboxUnavailable."""
    try:
        size = len(code.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"code: a lone surrogate at index {error.start}, which no text has"
        ) from None
    if size > _LONGEST:
        raise InvalidRequest(f"code: got {size} bytes, allowed are at most {_LONGEST}")
    if "\0" in code:
        raise InvalidRequest("code: a null character, which no program has")
    if platform.system() != "Linux":
        raise SandboxUnavailable(f"python_tool needs Linux, this is {platform.system()}")
    said, status = _run(code, limits)
    if len(said) > limits.output:  # perhaps within a character
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(said[: limits.output])
        return f"{text}\n[ended here: it printed more than {limits.output} bytes]"
    text = said.decode(errors="replace").rstrip("\n")
    if status != 0:
        return f"{text}\n[ended with status {status}]".lstrip("\n")
    return text or "[nothing was printed; print what you want to see]"


def _run(code: str, limits: SandboxLimits) -> tuple[bytes, int]:
    reading, writing = os.pipe()
    with tempfile.TemporaryDirectory(prefix="musespark-") as root, open(reading, "rb") as failures:
        asked = {"root": root, "code": code, "failures": writing, **asdict(limits)}
        asked |= {"prefix": sys.base_prefix, "python": os.path.realpath(_interpreter())}
        try:
            child = subprocess.Popen(
                [asked["python"], "-I", "-S", "-B", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(writing,),
                env={},
            )
        finally:
            os.close(writing)
        with child:
            try:
                assert child.stdin is not None
                child.stdin.write(json.dumps(asked).encode())
                child.stdin.close()
                said = _output(child, limits)
            finally:
                child.kill()
        failure = failures.read().decode(errors="replace")
    if failure == _TIMED_OUT:
        raise InvalidRequest(f"code: it took more than {limits.seconds:g} s")
    if failure:
        raise SandboxUnavailable(f"python_tool: {failure}; nothing is run without a sandbox")
    return said, child.returncode


def _interpreter() -> str:
    """The interpreter itself, where this is a virtual environment's."""
    return getattr(sys, "_base_executable", None) or sys.executable


def _output(child: subprocess.Popen[bytes], limits: SandboxLimits) -> bytes:
    """All that a child prints, until it ends or has printed more than it may."""
    assert child.stdout is not None
    end, said = time.monotonic() + limits.seconds + _GRACE, bytearray()
    with selectors.DefaultSelector() as ready:
        ready.register(child.stdout, selectors.EVENT_READ)
        while ready.select(max(0.0, end - time.monotonic())):
            piece = os.read(child.stdout.fileno(), 1 << 16)
            if not piece:
                child.wait(max(0.1, end - time.monotonic()))
                return bytes(said)
            said += piece
            if len(said) > limits.output:
                return bytes(said)
    raise InvalidRequest(f"code: it took more than {limits.seconds:g} s")
