"""Decode speed with drafts from the text so far, beside none.

    python benchmarks/speculation.py [llama-3.2-1b | nano] [--tokens 256] [--rounds 5] [--save]

The weights of the larger shapes are random, so what the model writes is given: a text is replayed,
token by token, as if the model had chosen it, and drafts are right where the text agrees with them.
Texts: a file of Python edited (its prompt is the file, what is written is the file with another
name for a word), JSON records after a few of them, prose, and random tokens, where no draft helps.
Tokens of Spark Nano's tokenizer. Each round runs every text with and without drafts, in turn;
ratios are paired by round.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import models
import numpy as np
from common import machine, save
from shapes import SHAPES

import musespark
from musespark.engine import TokenClasses
from musespark.events import Request

PACKAGE = Path(musespark.__file__).parent
OPEN, CLOSE = 1, 2  # ids that no text has


def texts(tokens: int) -> dict[str, tuple[list[int], list[int]]]:
    """Name -> prompt and what is written, `tokens` long."""
    with musespark.load(threads=1) as nano:
        encode = nano.tokenizer.encode
    source = (PACKAGE / "tools.py").read_text()[1000:6000]
    records = [
        {"id": i, "name": f"item {i}", "price": 3 * i + 1, "tags": ["new", "sale"][: i % 3]}
        for i in range(60)
    ]
    data = json.dumps(records, indent=1)
    prose = (PACKAGE / "calibration_text.txt").read_text()
    random = np.random.default_rng(1).integers(64, 2500, 2 * tokens + 600).tolist()
    whole = {
        "edit": (encode(source), encode(source.replace("tool", "function"))),
        "json": (encode(data)[:400], encode(data)[400:]),
        "prose": (encode(prose)[:600], encode(prose)[600:]),
        "random": (random[:600], random[600:]),
    }
    return {name: (prompt[:900], text[:tokens]) for name, (prompt, text) in whole.items()}


def replayed(prompt: list[int], text: list[int], vocab: int, draft: int) -> Request:
    """Writes the text as a thought's closing words, which are forced."""
    return Request(
        tokens=[*prompt, OPEN],
        max_new_tokens=len(text) + 1,
        thoughts={"cache": "keep", "opens": [[OPEN]], "closes": [CLOSE]},
        thinking={
            "close": CLOSE,
            "openings": [[OPEN]],
            "classes": TokenClasses(bytes(vocab)),
            "budget": len(text) + 1,
            "message": text,
        },
        draft_tokens=draft,
    )


def measure(model: musespark.Model, tokens: int, rounds: int) -> dict[str, Any]:
    """Tokens a second with and without, by text."""
    engine, vocab, found = model._engine, model.info.vocab, {}
    for name, (prompt, text) in texts(tokens).items():
        speeds: dict[int, list[float]] = {0: [], 16: []}
        for turn in range(rounds + 1):  # the first warms up
            for draft, values in speeds.items():
                result = engine.submit(replayed(prompt, text, vocab, draft)).result()
                assert result.tokens[1:] == text[: len(result.tokens) - 1]
                if turn:
                    values.append((len(result.tokens) - 1) / result.stats["decode_s"])
        ratios = [a / b for a, b in zip(speeds[16], speeds[0], strict=True)]
        found[name] = {
            "tokens": len(text),
            "plain_tokens_per_s": statistics.median(speeds[0]),
            "drafted_tokens_per_s": statistics.median(speeds[16]),
            "ratio": statistics.median(ratios),
            "least_ratio": min(ratios),
            "drafted": result.stats["drafted_tokens"],
            "accepted": result.stats["accepted_tokens"],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", nargs="?", default="llama-3.2-1b", choices=["nano", *SHAPES])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/speculation_SHAPE.json")
    args = parser.parse_args()
    path = None if args.shape == "nano" else models.build(SHAPES[args.shape], "q4.safetensors")
    with musespark.load(path, context=2048, prefix_cache=True) as model:
        found = measure(model, args.tokens, args.rounds)
    print(json.dumps(found, indent=1))
    if args.save:
        save(f"speculation_{args.shape}", {"machine": machine(), "texts": found})


if __name__ == "__main__":
    main()
