"""Instructions that the hot kernels of the AVX2 level take, counted by valgrind; their record.

    python tests/support/instruction_counts.py     # after building the package: records them anew

Counts depend on the compiler, so the record names it, and only counts of the same one are compared.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
RECORD = REPOSITORY / "tests/golden/instruction_counts.json"
LIMIT = 0.03
AGAIN = "where that is meant: python tests/support/instruction_counts.py, and commit the record"


@dataclass(frozen=True)
class Counts:
    """``compiler`` that built the kernels; ``counts``: case -> instructions."""

    compiler: str
    counts: Mapping[str, int]


def count(program: Path, valgrind: str, folder: Path, *arguments: str) -> Counts:
    """What the program kernel_counts (tests/cpp/counts) takes; `folder` is for valgrind's file."""
    out = folder / "counts"
    command = [valgrind, "--tool=callgrind", "--compress-strings=no", "--compress-pos=no"]
    command += [f"--callgrind-out-file={out}", str(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    # What main called, how often, and the instructions of all of that.
    calls = re.findall(r"^cfn=count_(\w+)\ncalls=1 .*\n\S+ (\d+)$", out.read_text(), re.MULTILINE)
    return Counts(done.stdout.strip(), {case: int(n) for case, n in calls})


def recorded() -> Counts:
    return Counts(**json.loads(RECORD.read_text()))


def differences(record: Mapping[str, int], now: Mapping[str, int]) -> list[str]:
    """Cases that take over 3% more instructions than recorded, or less: then the record would hide
    the next 3%. And cases that only one of both has."""
    wrong = [f"{case}: only in the record" for case in sorted(set(record) - set(now))]
    wrong += [f"{case}: not in the record" for case in sorted(set(now) - set(record))]
    for case in sorted(set(record) & set(now)):
        was, is_now = record[case], now[case]
        if abs(is_now - was) > LIMIT * was:
            change = is_now / was - 1
            wrong.append(f"{case}: {was:,} -> {is_now:,} instructions ({change:+.1%})")
    return wrong


def _record() -> None:
    import shutil
    import sys
    import tempfile

    sys.path.insert(0, str(REPOSITORY / "tests"))
    from support.core_programs import build, package_folder

    program = build("kernel_counts", REPOSITORY, package_folder(REPOSITORY))
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise SystemExit("no valgrind on the path")
    before = recorded() if RECORD.exists() else None
    with tempfile.TemporaryDirectory() as folder:
        now = count(program, valgrind, Path(folder))
    RECORD.write_text(json.dumps({"compiler": now.compiler, "counts": now.counts}, indent=1) + "\n")
    print(now.compiler)
    for case, instructions in now.counts.items():
        was = before.counts.get(case) if before and before.compiler == now.compiler else None
        change = f"  {instructions / was - 1:+.1%}" if was else ""
        print(f"{case:<28}{instructions:>14,}{change}")


if __name__ == "__main__":
    _record()
