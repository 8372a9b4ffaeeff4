"""Decode speed with drafts from the text so far, beside none; and with a block drafter.

    python benchmarks/speculation.py [llama-3.2-1b | nano] [--tokens 256] [--rounds 5] [--save]
    python benchmarks/speculation.py [llama-3.2-1b | nano] --drafter own [--items 100] [--save]

The weights of the larger shapes are random, so what the model writes is given: a text is replayed,
token by token, as if the model had chosen it, and drafts are right where the text agrees with them.
Texts: a file of Python edited (its prompt is the file, what is written is the file with another
name for a word), JSON records after a few of them, prose, and random tokens, where no draft helps.
Tokens of Spark Nano's tokenizer. Each round runs every text with and without drafts, in turn;
ratios are paired by round.

``--drafter``: of Spark Nano (own: the one in the package). Nano answers ``--items`` held-out
problems, with a pass before every step: tokens of a pass. Then in turn without drafts and as the
engine chooses: the ratio. On another shape nothing is right or wrong: a random drafter of as many
layers is timed there, a pass and the step that checks it, and Nano's tokens of a pass are replayed,
which is arithmetic: ratio = tokens of a pass * time of a plain step / time of a step with its pass.
"""

from __future__ import annotations

import argparse
import dataclasses
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
    source = (PACKAGE / "agents" / "tools.py").read_text()[1000:6000]
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


TASKS = ("addition", "word_problem", "sorting", "table")
EAGER = {"draft_tokens": 16, "draft_eagerly": True}


def own_texts(folder: str, items: int, rounds: int) -> dict[str, Any]:
    """Tokens of a pass where Nano answers held-out problems, and decode speeds, by effort."""
    from musespark.lab.evaluate import items_for

    found = {}
    with musespark.load(drafter=folder, prefix_cache=False) as model:
        for effort in ("low", "medium", "high", "xhigh"):
            asked = [
                model._chat_request(
                    item.messages,
                    {"reasoning_effort": effort, "max_new_tokens": 300, "thinking_policy": "off"},
                )[0]
                for item in items_for(TASKS, ["middle"], [effort], items, 2026)
            ]
            found[effort] = _answers(model._engine, asked, rounds)
    return found


def _answers(engine: Any, asked: list[Request], rounds: int) -> dict[str, Any]:
    def all_of(**changes: Any) -> tuple[list[list[int]], dict[str, float]]:
        results = [engine.submit(dataclasses.replace(one, **changes)).result() for one in asked]
        names = ("decode_s", "completion_tokens", "drafter_passes", "drafter_accepted_tokens")
        totals = {name: sum(result.stats[name] for result in results) for name in names}
        return [result.tokens for result in results], totals

    plain, _ = all_of(draft_tokens=0)
    eager, counts = all_of(**EAGER)
    assert eager == plain, "drafts changed a result"
    ratios = []
    for _ in range(rounds):
        off, on = all_of(draft_tokens=0)[1], all_of(draft_tokens=16)[1]
        ratios.append(off["decode_s"] / on["decode_s"])
    passes = counts["drafter_passes"]
    return {
        "tokens": counts["completion_tokens"],
        "passes": passes,
        "tokens_per_pass": 1 + counts["drafter_accepted_tokens"] / max(1, passes),
        "ratio": statistics.median(ratios),
        "least_ratio": min(ratios),
    }


def random_drafter(target: Any, block: int, layers: int) -> tuple[Any, dict[str, tuple]]:
    """Spec and q4 tensors of a drafter for a model: its heads, its width, random weights."""
    from musespark import _core
    from musespark.families.spec import LayerSpec, ModelSpec, NormSpec, RopeSpec
    from musespark.families.tensors import canonical_shapes

    norm, like = NormSpec("rms", 1e-5), target.layers[0]
    attention = dataclasses.replace(like.attention, window=2049, rope=0, output_gate=False)
    layer = LayerSpec(attention, like.mlp, attn_norm=norm, mlp_norm=norm)
    deep = len(target.layers)
    spec = ModelSpec(
        vocab=2,
        hidden=target.hidden,
        max_context=target.max_context,
        final_norm=norm,
        ropes=[RopeSpec(dim=attention.head_dim)],
        layers=[layer] * layers,
        block=block,
        mask_token=1,
        target_layers=(1, deep // 2, deep - 2),
        context_norm=norm,
    )
    tensors = {}
    for name, shape in canonical_shapes(spec).items():
        values = models.normal(int(np.prod(shape))).reshape(shape)
        if len(shape) == 1:
            tensors[name] = ("f32", 1, shape[0], np.ones(shape, np.float32))
            continue
        room = np.zeros(_core.packed_nbytes("q4", *shape) + 64, np.uint8)
        data = room[-room.ctypes.data % 64 :][: _core.packed_nbytes("q4", *shape)]
        _core.pack("q4", values, dtype="f32", out=data)
        tensors[name] = ("q4", *shape, data)
    return spec, tensors


def replayed_passes(shape: str, folder: str, per_pass: float, rounds: int) -> dict[str, Any]:
    """What Nano's tokens of a pass would give at another shape."""
    from musespark.drafters import drafter_of, open_drafter
    from musespark.engine import Engine, default_threads
    from musespark.weights import open_model

    nano = open_drafter(drafter_of(folder, None), progress=False)
    block, layers = nano.spec.block, len(nano.spec.layers)
    nano.close()
    weights = open_model(models.build(SHAPES[shape], "q4.safetensors"), progress=False)
    drafter = random_drafter(weights.spec, block, layers)
    run = {"threads": default_threads(), "context": 2048, "kv": "kv8v4", "memory_budget": 1 << 30}
    request = Request(tokens=list(range(64, 564)), max_new_tokens=65)
    plain, drafted = [], []
    with Engine(weights.spec, weights.tensors, drafter=drafter, **run) as engine:
        for turn in range(rounds + 1):
            for more, times in (({}, plain), (EAGER, drafted)):
                stats = engine.submit(dataclasses.replace(request, **more)).result().stats
                steps = 64 - stats["drafter_accepted_tokens"]
                if turn:
                    times.append(stats["decode_s"] / steps)
    weights.close()
    ratios = [per_pass * a / b for a, b in zip(plain, drafted, strict=True)]
    return {
        "block": block,
        "drafter_layers": layers,
        "plain_step_ms": 1e3 * statistics.median(plain),
        "drafted_step_ms": 1e3 * statistics.median(drafted),
        "replayed_tokens_per_pass": per_pass,
        "replayed_ratio": statistics.median(ratios),
        "least_replayed_ratio": min(ratios),
    }


def with_drafter(args: argparse.Namespace) -> None:
    """The figures of ``--drafter``."""
    found = {"own_texts": own_texts(args.drafter, args.items, args.rounds)}
    if args.shape != "nano":
        rows = found["own_texts"].values()
        per_pass = statistics.mean(row["tokens_per_pass"] for row in rows)
        found["replayed"] = replayed_passes(args.shape, args.drafter, per_pass, args.rounds)
    print(json.dumps(found, indent=1))
    if args.save:
        save(f"drafter_{args.shape}", {"machine": machine(), **found})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", nargs="?", default="llama-3.2-1b", choices=["nano", *SHAPES])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/speculation_SHAPE.json")
    parser.add_argument("--drafter", metavar="FOLDER", help="a block drafter of Spark Nano")
    parser.add_argument("--items", type=int, default=100, help="problems per task and effort")
    args = parser.parse_args()
    if args.drafter:
        with_drafter(args)
        return
    path = None if args.shape == "nano" else models.build(SHAPES[args.shape], "q4.safetensors")
    with musespark.load(path, context=2048, prefix_cache=True) as model:
        found = measure(model, args.tokens, args.rounds)
    print(json.dumps(found, indent=1))
    if args.save:
        save(f"speculation_{args.shape}", {"machine": machine(), "texts": found})


if __name__ == "__main__":
    main()
