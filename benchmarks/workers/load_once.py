"""One round of load.py: loads a packed file in this process, and prints what was measured.

python load_once.py FILE OPTIONS(JSON) LIMITS(0 or 1)
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

PROMPT, DECODED, WARM = 512, 32, 4


def memory() -> dict[str, int]:
    """Resident bytes of this process: now of files and anonymous, and the peak of both."""
    fields = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmHWM", "RssFile", "RssAnon"):
            fields[name] = int(value.split()[0]) << 10
    return fields


def measure(path: str, options: dict[str, Any], limits: bool) -> dict[str, Any]:
    """The figures of one round (see load.py)."""
    begin = time.perf_counter()
    from musespark import load  # with all that it imports

    start = time.perf_counter()
    model = load(path, progress=False, **options)
    found: dict[str, Any] = {"import_s": start - begin, "load_s": time.perf_counter() - start}
    seen = [memory()]

    def prefill(tokens: int) -> float:
        ids = [(7 + 13 * i) % model.info.vocab for i in range(tokens)]
        return model.generate(ids, max_new_tokens=1, temperature=0).timings.prefill_s

    def decode(tokens: int) -> float:
        count = {"max_new_tokens": tokens + 1, "min_new_tokens": tokens + 1, "temperature": 0}
        return model.generate([1], **count).timings.decode_s / tokens

    prefill(1)
    found["first_token_s"] = time.perf_counter() - start
    found["prefill_speed"] = PROMPT / prefill(PROMPT)
    seen.append(memory())
    decode(WARM)
    from musespark.cli.limits import Limits  # here: no part of loading

    with Limits() if limits else contextlib.nullcontext() as probe:
        before = probe.read_bandwidth(options["threads"]) if probe else 0.0
        found["token_s"] = decode(DECODED)
        after = probe.read_bandwidth(options["threads"]) if probe else 0.0
    found["bandwidth"] = (before + after) / 2
    seen.append(memory())
    found["anonymous"] = max(one["RssAnon"] for one in seen)
    found["file"] = max(one["RssFile"] for one in seen)
    found["peak"] = seen[-1]["VmHWM"]
    found["keys_values"] = model.info.kv_bytes_per_token * (PROMPT + 1)
    return found | {"notes": list(model.info.notes)}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == "1")))
