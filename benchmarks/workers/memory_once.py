"""One run of memory.py: loads a model in this process, uses it, and prints its peak.

python memory_once.py {"source", "kv", "context", "agents", "prompt", "decoded"}(JSON)
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

from load_once import memory


def measure(
    source: str | None, *, kv: str, context: int, agents: int, prompt: int, decoded: int
) -> dict[str, int]:
    """Bytes: peak, and resident now of files and anonymous ones; the peak of loading."""
    from musespark import load

    choose = random.Random(0)
    options: dict[str, Any] = {"max_new_tokens": decoded, "min_new_tokens": decoded}
    with load(source, kv=kv, context=context, progress=False) as model:
        model.tokenizer.encode("Once upon a time")
        loaded = memory()
        ids = [[choose.randrange(model.info.vocab) for _ in range(prompt)] for _ in range(agents)]
        model.generate_batch(ids, temperature=1.0, seed=1, **options)
        used = memory()
    return {
        "peak": used["VmHWM"],
        "file": used["RssFile"],
        "anonymous": used["RssAnon"],
        "loaded": loaded["VmHWM"],
    }


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
