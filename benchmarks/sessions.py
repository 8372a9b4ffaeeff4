"""Sessions on disk: resuming against prefilling the same tokens, and saves that are killed.

    python benchmarks/sessions.py [llama-3.2-1b] [--tokens 8000] [--rounds 5] [--save]
    python benchmarks/sessions.py --kills 200 [--save]

A session of random tokens is computed once (its prefill is timed), saved, and resumed in a process
of its own in each round: model loaded, nothing computed, the file in the system's cache. Then both
go on greedily; the tokens must be equal. ``--kills``: a process saves two sessions of the embedded
model in turn under one name and is killed at a random moment; the file must be one of the two.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import models
import numpy as np
from common import machine, save
from report import spread
from shapes import SHAPES

import musespark
from musespark.events import Request

GO_ON = [5, 6, 7]
_TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"  # the random models have none
_SAVE_FOR_EVER = """
import sys, musespark
with musespark.load(threads=1, context=1024) as model:
    one, two = (model.resume(p) for p in sys.argv[2:4])
    print("ready", flush=True)
    while True:
        one.save(sys.argv[1])
        two.save(sys.argv[1])
"""


def _load(path: str, tokens: int) -> musespark.Model:
    model = musespark.load(path, kv="kv8", context=tokens + 64, prefix_cache=False)
    model.template = _TEMPLATE
    return model


def _continued(model: musespark.Model, session: Any, ids: list[int]) -> dict[str, Any]:
    request = Request(tokens=[*ids, *GO_ON], max_new_tokens=16)
    began = time.perf_counter()
    result = model._engine.submit(request, base=session._kept).result()
    first = result.stats["first_token_s"]
    assert result.stats["cached_tokens"] == len(ids), result.stats
    return {"tokens": result.tokens, "first_token_s": first, "s": time.perf_counter() - began}


def resume_once(path: str, file: str, ids: list[int]) -> dict[str, Any]:
    """In a process of its own: seconds of resuming, and how it goes on."""
    with _load(path, len(ids)) as model:
        began = time.perf_counter()
        session = model.resume(file)
        seconds = time.perf_counter() - began
        return {"resume_s": seconds, **_continued(model, session, ids)}


def _worker(path: str, file: str, tokens: int) -> dict[str, Any]:
    run = [sys.executable, __file__, "--worker", path, file, "--tokens", str(tokens)]
    return json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def _ids(tokens: int) -> list[int]:
    return np.random.default_rng(0).integers(1000, 100_000, tokens).tolist()


def measure(path: str, tokens: int, rounds: int) -> dict[str, Any]:
    """Prefill, save and resume of one session."""
    ids = _ids(tokens)
    with tempfile.TemporaryDirectory() as folder, _load(path, tokens) as model:
        file, session = str(Path(folder) / "s"), model.session()
        handle = model._engine.submit(Request(tokens=ids, max_new_tokens=1, retain=True))
        prefill = handle.result().stats["first_token_s"]
        session._kept = handle.retained
        began = time.perf_counter()
        session.save(file)
        saved = time.perf_counter() - began
        wanted = _continued(model, session, ids)["tokens"]
        runs = [_worker(path, file, tokens) for _ in range(rounds)]
        assert all(run["tokens"] == wanted for run in runs), "a resumed session went on otherwise"
        resumed = spread([run["resume_s"] for run in runs])
        return {
            "tokens": tokens,
            "kv": model.info.kv,
            "isa": model.info.isa,
            "threads": model.info.threads,
            "prefill_s": prefill,
            "save_s": saved,
            "file_bytes": Path(file).stat().st_size,
            "resume_s": resumed,
            "first_token_after_s": spread([run["first_token_s"] for run in runs]),
            "times_faster": prefill / resumed["median"],
            "identical": True,
        }


def kill(times: int) -> dict[str, Any]:
    """How often which file was there after kill -9 at a random moment of saving."""
    counts = {"one": 0, "two": 0}
    choose = random.Random(0)
    with tempfile.TemporaryDirectory() as folder, musespark.load(threads=1) as model:
        path, one, two = (Path(folder) / name for name in ("s", "one", "two"))
        session = model.session()
        for file in (one, two):
            session.chat("Tell me a long story about the sun. " * 10, max_new_tokens=60)
            session.save(file)
        path.write_bytes(one.read_bytes())
        for _ in range(times):
            run = [sys.executable, "-c", _SAVE_FOR_EVER, str(path), str(one), str(two)]
            with subprocess.Popen(run, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None and process.stdout.readline() == b"ready\n"
                time.sleep(choose.random() * 0.05)
                process.send_signal(signal.SIGKILL)
            found = path.read_bytes()
            counts["one" if found == one.read_bytes() else "two"] += 1
            assert found in (one.read_bytes(), two.read_bytes()), "a file that nobody saved"
            model.resume(path).close()
    return {"kills": times, "found": counts, "always_loadable": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", nargs="?", default="llama-3.2-1b", choices=sorted(SHAPES))
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="write results/sessions*.json")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(resume_once(*args.worker, _ids(args.tokens))))
        return
    if args.kills:
        name, found = "sessions_kill", kill(args.kills)
    else:
        path = str(models.build(SHAPES[args.shape], "q4.safetensors"))
        name = f"sessions_{args.shape}"
        found = {"shape": args.shape, **measure(path, args.tokens, args.rounds)}
    print(json.dumps(found, indent=1))
    if args.save:
        save(name, {"machine": machine(), **found})


if __name__ == "__main__":
    main()
