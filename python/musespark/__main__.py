"""``python -m musespark``, and what the ``musespark`` command starts.

Until the command can answer Ctrl-C itself, it ends the process at once: imports take a while, and
the traceback of one says nothing to anybody.
"""

from __future__ import annotations

import signal
import sys

_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _default:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run() -> int:
    from musespark.cli import main

    if _default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return main()


if __name__ == "__main__":
    sys.exit(run())
