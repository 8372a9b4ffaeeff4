"""What the benchmarks share: the machine's limits, medians and result files."""

from __future__ import annotations

import functools
import json
import platform
import sys
from pathlib import Path
from typing import Any

from report import spread

from musespark.cli.limits import Limits, vector_peak

__all__ = ["dot_peak", "machine", "read_bandwidth", "save", "spread"]

RESULTS = Path(__file__).parent / "results"


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


@functools.cache
def limits() -> Limits:
    """The probe of this process; it ends with it."""
    return Limits()


def read_bandwidth(threads: int = 2) -> float:
    """Bytes per second that ``threads`` cores read from memory now (best of several passes)."""
    return limits().read_bandwidth(threads)


def dot_peak(threads: int = 2) -> float:
    """int8 operations per second of the widest dot instruction but AMX (2 per multiply-add)."""
    return vector_peak(limits().peaks(threads))


def save(name: str, report: dict[str, Any]) -> Path:
    """Writes ``results/<name>.json`` aside and renames it; prints where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(report, indent=1) + "\n")
    aside.replace(path)
    print(f"wrote {path}", file=sys.stderr)
    return path
