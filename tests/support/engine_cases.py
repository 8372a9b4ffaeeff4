"""Tiny models behind the engine, and fixed requests that any run answers with the same bits.

Run as a script it prints those answers' fingerprints, for fresh processes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from musespark.engine import Engine, Handle, Request, Result, TokenClasses
from musespark.errors import MemoryBudgetExceeded
from support import run_engine, tiny_models

MODELS = {
    # name: spec, format of each matrix in turn, kv
    "muse_kv8": (tiny_models.muse, ("q4", "q8", "q6"), "kv8"),
    "llama_f32": (tiny_models.llama, ("f32", "bf16"), "f32"),
}
_PACKED: dict[str, tuple] = {}


def packed(name: str) -> tuple[Any, dict[str, tuple], str]:
    """spec, tensors and kv format of one of MODELS; made once."""
    if name not in _PACKED:
        make, formats, kv = MODELS[name]
        spec = make()
        tensors = {}
        for i, (key, value) in enumerate(sorted(tiny_models.random_weights(spec).items())):
            fmt = formats[i % len(formats)]
            if value.ndim == 2 and fmt == "bf16":
                data = run_engine.aligned(run_engine._core.packed_nbytes(fmt, *value.shape))
                bits = (value.view(np.uint32) >> 16).astype(np.uint16)
                run_engine._core.pack(fmt, bits, dtype="bf16", out=data)
                tensors[key] = (fmt, *value.shape, data)
            else:
                tensors |= run_engine.pack_weights({key: value}, fmt)
        _PACKED[name] = (spec, tensors, kv)
    return _PACKED[name]


def make_engine(name: str = "muse_kv8", **settings: Any) -> Engine:
    spec, tensors, kv = packed(name)
    defaults = {"threads": 2, "context": 1024, "memory_budget": 1 << 28, "kv": kv}
    engine = Engine(spec, tensors, **(defaults | settings))
    engine.vocab = spec.vocab  # for requests()
    return engine


def bytes_needed(name: str, count: int, **settings: Any) -> int:
    """What admission reserves for `count` tokens, from the message of a budget of nothing."""
    with make_engine(name, memory_budget=1, **settings) as engine:
        try:
            engine.submit(Request(tokens=[0], max_new_tokens=count - 1))
        except MemoryBudgetExceeded as error:
            return int(re.search(r"needs (\d+) bytes", str(error)).group(1))
    raise AssertionError("a budget of one byte was enough")


def tokens(count: int, seed: int = 1, vocab: int = 101) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab, count).tolist()


def requests(vocab: int = 101) -> list[Request]:
    """Sixteen: greedy and sampled, every filter, prompts within and far beyond page and window; a
    thought that loses rows while it is written, one that is demoted when it ends, one with trial
    answers and a budget, one that they end, two that stoppers end, without trials and with, and one
    that is ended by a trial whose rows begin its answer."""
    sampled = Request(tokens=[], max_new_tokens=40, temperature=0.9, draft_tokens=16)
    sure = 0.6 if vocab > 101 else 0.155  # so that the second trial ends the thought

    def vary(count: int, **changes: Any) -> Request:
        return dataclasses.replace(sampled, tokens=tokens(count, seed=count), **changes)

    return [
        vary(1, temperature=0.0),
        vary(65, temperature=0.0, logprobs=3),
        vary(700, temperature=0.0),
        vary(3, seed=11),
        vary(130, seed=11, stream=2, top_k=20, logprobs=2),
        vary(64, seed=12, top_p=0.8, temperature=1.5),
        vary(527, seed=2**64 - 1, min_p=0.05, repetition_penalty=1.3),
        vary(31, seed=5, presence_penalty=0.5, frequency_penalty=0.3, logit_bias={7: 2.5}),
        vary(100, seed=6, max_new_tokens=120, logprobs=2, thoughts=_EVICTED),
        vary(350, seed=7, thoughts=_DEMOTED),
        Request(tokens=tokens(600, seed=9), logits="all"),
        thinking(230, vocab, logprobs=1, confident=1.0, budget=70),
        thinking(61, vocab, repetition_penalty=1.2, frequency_penalty=0.1, confident=sure),
        thinking(77, vocab, stopper=_LATE),
        thinking(140, vocab, confident=1.0, hopeless=_LATE),
        thinking(62, vocab, confident=sure, temperature=0.3),
    ]


def thinking(
    count: int,
    vocab: int,
    *,
    confident: float | None = None,
    budget: int | None = None,
    stopper: dict | None = None,
    hopeless: dict | None = None,
    max_new_tokens: int | None = 90,
    temperature: float = 0.9,
    **more: Any,
) -> Request:
    """A thought that the prompt opens and only others end; every seventh id ends a sentence. With
    ``confident`` there are trials, which stoppers then look at."""
    stoppers = {"stopper": stopper, "hopeless": hopeless}
    trials = {"tokens": 5, "every": 6, "confident": confident, "stable": 1, "close": [6, 8, 9]}
    return Request(
        tokens=[*tokens(count, seed=count), 5],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=count,
        logit_bias={6: -50.0},
        thoughts={"cache": "keep", "opens": [[5]], "closes": [6]},
        thinking={
            "close": 6,
            "openings": [[5]],
            "classes": TokenClasses(
                bytes(8 * (i % 7 == 0) + 16 * (i % 5 == 0) for i in range(vocab))
            ),
            "budget": budget,
            "landing": 0 if budget is None else budget // 4,
            "landing_bias": 4.0,
            "message": [60, 61, 63],  # a sentence
            "signals": True,
            **({} if confident is not None else stoppers),
        },
        trials=None if confident is None else {**trials, **stoppers},
        **more,
    )


# A stopper that looks at everything, and stops at the third border or so.
_WEIGHTS = {"margin": 0.01, "logprob": -0.1, "entropy": 0.1, "confidence": 0.1, "tokens": 0.5}
_WEIGHTS |= {"borders": 8.0, "cues": 1.0, "trial_confidence": 0.05, "trial_streak": 0.1}
_LATE = {"weights": _WEIGHTS, "bias": -13.5, "threshold": 0.5}
_EVICTED = {"cache": "keep", "most_tokens": 48, "opens": [[i] for i in range(101)], "closes": []}
_DEMOTED = {"cache": "demote", "opens": [[i] for i in range(6)], "closes": [6]}


def at_once(engine: Engine, submits: Sequence[Callable[[], Handle]]) -> list[Handle]:
    """Submitted between two steps, however slowly this thread gets along: before the first of them
    another request ends, which waits inside its own until all are there."""
    begun, there = threading.Event(), threading.Event()

    def ends(tokens: list[int]) -> bytes:
        begun.set()
        assert there.wait(60)
        return b""

    before = engine.submit(Request(tokens=[1], max_new_tokens=1, constraint=ends))
    assert begun.wait(60)
    try:
        return [submit() for submit in submits]
    finally:
        there.set()
        before.result()


def fingerprint(result: Result) -> str:
    """Tokens and the bits of every number a result holds."""
    parts = {
        "tokens": result.tokens,
        "logprobs": np.asarray(result.logprobs or [], np.float32).tobytes().hex(),
        "top": [[(i, float(x).hex()) for i, x in row] for row in result.top or []],
        "logits": None
        if result.logits is None
        else [list(result.logits.shape), hashlib.sha256(result.logits.tobytes()).hexdigest()],
        "reason": result.reason,
        "stop": result.stats["thought_stop"],
        "trial_tokens": result.stats["trial_tokens"],
        "trials": [[at, answer, x.hex(), rows] for at, answer, x, rows in result.stats["trials"]],
        "signals": None if result.signals is None else result.signals.tobytes().hex(),
    }
    return json.dumps(parts, sort_keys=True)


def alone(engine: Engine) -> list[str]:
    return [fingerprint(engine.submit(request).result()) for request in requests(engine.vocab)]


def together(engine: Engine) -> list[str]:
    handles = [engine.submit(request) for request in requests(engine.vocab)]
    return [fingerprint(handle.result()) for handle in handles]


def main() -> None:
    name, way, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    with make_engine(name, **settings) as engine:
        answers = {"alone": alone, "together": together}[way](engine)
        print(json.dumps({"isa": engine.stats()["isa"], "answers": answers}))


if __name__ == "__main__":
    main()
