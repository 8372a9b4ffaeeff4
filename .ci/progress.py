"""python .ci/progress.py COMMAND...: runs a build and says now and then how far it has come.

Of its output only ninja's `[3/80]` is looked at; all of it is shown where the build fails.
"""

from __future__ import annotations

import collections
import re
import subprocess
import sys
import time

EVERY_S = 5.0
STEP = re.compile(r"\s*\[(\d+)/(\d+)\]")


def main() -> int:
    said, kept = 0.0, collections.deque[str](maxlen=4000)
    process = subprocess.Popen(
        sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert process.stdout is not None
    for line in process.stdout:
        kept.append(line)
        step = STEP.match(line)
        if step and time.monotonic() - said >= EVERY_S:
            said = time.monotonic()
            print(f"compiling: {step[1]} of {step[2]} files", flush=True)
    status = process.wait()
    if status:
        sys.stdout.writelines(kept)
    return status


if __name__ == "__main__":
    sys.exit(main())
