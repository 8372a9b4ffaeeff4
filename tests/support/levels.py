"""A script run in a fresh process on each instruction-set level."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable

from musespark import _core


def stdout_by_level(
    script: str, *arguments: str, levels: Iterable[str] | None = None
) -> dict[str, str]:
    """What ``script`` prints on each of ``levels`` (those with kernels of their own), stripped."""
    # Where the package and the test support are found is this process's to know.
    path = os.pathsep.join([p for p in sys.path if p] + [os.getcwd()])
    outputs = {}
    for level in _core.testing.kernel_levels() if levels is None else levels:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            env=os.environ | {"MUSESPARK_ISA": level, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, f"{level}: {done.stderr[-2000:]}"
        outputs[level] = done.stdout.strip()
    return outputs
