"""How a worker talks: one JSON object a line, first its ``info``, then an answer to each question.

    {"test": "prefill", "tokens": 512}        -> {"seconds": 1.2}
    {"test": "step", "rows": 4, "steps": 32}  -> {"seconds": 0.03}      one step of 4 rows
    {"test": "deep", "tokens": 8192, "steps": 32}
                           -> {"prefill_s": 20.5, "step_s": 0.05}       steps after so many tokens
    {"test": "memory"}                        -> {"peak_bytes": 900000000}

A question that fails is answered with {"error": "why"}. Nothing but the standard library here: each
engine runs it in an environment of its own. What libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, Protocol


class Engine(Protocol):
    """One loaded model. ``info``: version and whatever says how the engine runs."""

    info: dict[str, Any]

    def prefill(self, tokens: int) -> float:
        """Seconds from a prompt's ids to its last logits (or first token)."""
        ...

    def step(self, rows: int, steps: int) -> float:
        """Seconds of one decode step of ``rows`` sequences, over ``steps`` of them from an empty
        context. NotImplementedError says why an engine cannot."""
        ...

    def deep(self, tokens: int, steps: int) -> tuple[float, float]:
        """Seconds to prefill, and then of one decode step over ``steps`` of them."""
        ...


def token_ids(count: int, vocab: int, first: int = 7) -> list[int]:
    """An arithmetic sequence over the vocabulary: the same prompt for every engine."""
    return [(first + 13 * i) % vocab for i in range(count)]


def peak_bytes() -> int:
    """The most memory that was resident, mapped files included."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if "VmHWM" in line)
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def answer(engine: Engine, question: dict[str, Any]) -> dict[str, Any]:
    if question["test"] == "memory":
        return {"peak_bytes": peak_bytes()}
    if question["test"] == "prefill":
        return {"seconds": engine.prefill(question["tokens"])}
    if question["test"] == "deep":
        prefill_s, step_s = engine.deep(question["tokens"], question["steps"])
        return {"prefill_s": prefill_s, "step_s": step_s}
    return {"seconds": engine.step(question["rows"], question["steps"])}


def serve(make: Any) -> None:
    """Loads ``make(model, threads, context)`` and answers until standard input ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not reach the answers

    def say(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=out, flush=True)

    start = time.perf_counter()
    try:
        engine = make(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
        load = time.perf_counter() - start
        engine.prefill(1)
    except BaseException as error:
        say({"error": f"{type(error).__name__}: {error}"[:400]})
        raise
    say({**engine.info, "load_s": load, "first_token_s": time.perf_counter() - start})
    for line in sys.stdin:
        try:
            say(answer(engine, json.loads(line)))
        except NotImplementedError as error:
            say({"error": str(error)})
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"[:400]})
