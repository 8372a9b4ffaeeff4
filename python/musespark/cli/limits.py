"""What this machine can do at most: bytes read, int8 and f32 operations a second (``limits.c``).

    with Limits() as limits:
        limits.read_bandwidth(threads=2)     # bytes a second, now
        limits.peaks(threads=2)              # {"avx512vnni": operations a second, ...}

The probe is C, compiled with the system's compiler when it is first used, into the cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from musespark.engine import build_report
from musespark.errors import Error
from musespark.weights.cache import cache_folder

SOURCE = Path(__file__).with_name("limits.c")
FLAGS = ("-O3", "-march=native", "-pthread")
_STREAMS, _AHEAD = (1, 2, 4, 8), (0, 512, 2048, 4096)
_QUICK = 7  # passes over 1 GiB of one reading: some 0.2 s


class Unmeasured(Error):  # noqa: N818 - named as the other public errors
    """The limits cannot be measured here; the message says why."""


def compiler() -> list[str]:
    """The C compiler: ``CC``, else cc, gcc or clang."""
    for asked in (os.environ.get("CC"), "cc", "gcc", "clang"):
        command = shlex.split(asked) if asked else []
        if command and shutil.which(command[0]):
            return command
    raise Unmeasured("the machine's limits: no C compiler (CC, cc, gcc or clang)")


def binary() -> Path:
    """The compiled probe in the cache folder: one for each source, compiler and processor."""
    command = [*compiler(), *FLAGS]
    report = build_report()
    parts = [SOURCE.read_text(), command, report["processor"], report["instruction sets"]]
    path = cache_folder() / f"limits-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".limits-") as folder:
            made = Path(folder) / "limits"
            run = subprocess.run(
                [*command, str(SOURCE), "-o", str(made)], capture_output=True, text=True
            )
            if run.returncode:
                why = run.stderr.strip().split("\n")[0]
                raise Unmeasured(f"the machine's limits: {shlex.join(command)} failed: {why:.300}")
            made.replace(path)
    except OSError as error:
        raise Unmeasured(f"the machine's limits: {error}") from error
    return path


class Limits:
    """The probe as a process of its own, which holds 1 GiB once something was read.

    Close it, or use it as a context manager. Unmeasured where it cannot be had.
    """

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([binary()], stdin=pipe, stdout=pipe, text=True)
        self._best: dict[int, tuple[int, int]] = {}  # threads -> streams, bytes ahead
        self.names = tuple(self._ask("names").split())

    def read_bandwidth(self, threads: int, passes: int = _QUICK) -> float:
        """Bytes a second that ``threads`` cores read from memory now, the best of ``passes``.

        The first reading of a number of threads looks for the streams and the prefetch distance
        that suit this machine, in two or three seconds; later ones use them.
        """
        if threads not in self._best:
            speeds = {
                setting: self._read(threads, *setting, passes=3)
                for setting in itertools.product(_STREAMS, _AHEAD)
            }
            self._best[threads] = max(speeds, key=speeds.__getitem__)
        return self._read(threads, *self._best[threads], passes=passes)

    def setting(self, threads: int) -> dict[str, int]:
        """The streams of a thread and the bytes of prefetch with which that was read."""
        streams, ahead = self._best[threads]
        return {"streams": streams, "ahead": ahead}

    def peak(self, name: str, threads: int, passes: int = 3) -> float:
        """Operations a second, 2 for each multiply-add, of the instruction of a level in
        :attr:`names` (``avx512vnni`` …: int8; ``f32_…``: fused multiply-adds)."""
        if name not in self.names:
            raise Unmeasured(f"peak {name!r:.40}: this machine has {', '.join(self.names)}")
        return float(self._ask(f"peak {name} {threads} {passes}"))

    def peaks(self, threads: int, passes: int = 3) -> dict[str, float]:
        """:meth:`peak` of every level there is."""
        return {name: self.peak(name, threads, passes) for name in self.names}

    def _read(self, threads: int, streams: int, ahead: int, *, passes: int) -> float:
        return float(self._ask(f"read {threads} {streams} {ahead} {passes}"))

    def _ask(self, line: str) -> str:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(line + "\n")
            stdin.flush()
            answer = stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            status = self._process.wait()
            raise Unmeasured(f"the machine's limits: the probe ended with status {status}")
        return answer

    def close(self) -> None:
        """Ends the process. Idempotent."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                # A probe that has ended leaves what could not be written; closing tries once more.
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait()

    def __enter__(self) -> Limits:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def vector_peak(peaks: dict[str, float]) -> float:
    """The int8 peak of vector registers: the largest of the levels but AMX, whose tiles only
    prefill can fill. 0 where there is none."""
    return max(
        (speed for name, speed in peaks.items() if name != "amx" and not name.startswith("f32")),
        default=0.0,
    )
