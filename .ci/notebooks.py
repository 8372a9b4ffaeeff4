"""Executes each notebook given, in its own kernel and from its own folder; prints which fails.

What they pack lies in a temporary cache, which they share.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

CELL_SECONDS = 300


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="musespark-notebooks-") as cache:
        os.environ["MUSESPARK_CACHE"] = cache  # the kernels have it from here
        return run([*map(Path, sys.argv[1:])])


def run(paths: list[Path]) -> int:
    failures = 0
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}},
        )
        start = time.monotonic()
        try:
            client.execute()
        except CellExecutionError as error:
            failures += 1
            print(f"{path}: failed\n{error}", file=sys.stderr)
        else:
            print(f"{path}: {time.monotonic() - start:.1f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
