"""What a schema costs: tokens a second with and without one, and the time of each mask.

    python benchmarks/grammar.py [llama-3.2-1b] [--tokens 256] [--rounds 5] [--save]
    python benchmarks/grammar.py nano [--save]

Each round samples as many tokens freely and under each schema, in turn, at temperature 1 from the
50 likeliest after the same prompt (random weights make all of a vocabulary likely, and drawing from
all of it takes longer than a mask does); the engine's own decode time counts, from the first token
to the last, and a share is the median of the rounds'. Texts under a schema are long lists, so that
none ends early. Masks are timed around the callable that the engine asks: Python, the interpreter's
lock taken before it not included, which the rates have. ``calls`` is the grammar of a whole turn
that has to call a tool, as Llama 3 writes them, beside two tools that it may not. A shape's model
has random weights: what it writes is noise, which leaves a grammar more ways to go than words do.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median
from typing import Any

import models
from common import machine, save
from latency import percentiles
from report import spread
from shapes import SHAPES

import musespark
from musespark.calls import offer_of, turn_grammar
from musespark.events import Request
from musespark.grammar import Grammar, Grammars, chosen_grammar
from musespark.text.protocols import PROTOCOLS
from musespark.turn_start import Constraint
from musespark.vision import boxes_schema

GOAL = 0.02  # of the time of a token, at the shape
_PROMPT = 32


def _many(properties: dict[str, Any]) -> dict[str, Any]:
    one = {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }
    return {"type": "array", "items": one, "minItems": 400}


SCHEMAS = {
    "records": _many(
        {
            "name": {"type": "string", "minLength": 1, "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "role": {"enum": ["reader", "writer", "owner"]},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 4},
        }
    ),
    "texts": _many({"text": {"type": "string", "minLength": 200}}),
    "dates": _many({"at": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"}}),
    "boxes": boxes_schema((1080, 1920), "qwen2.5-vl", least=400, most=512),
}


def _tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": [*properties]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    _tool("write_records", records=SCHEMAS["records"], urgent={"type": "boolean"}),
    _tool("read_record", number={"type": "integer"}),
    _tool("send_text", to={"type": "string"}, text={"type": "string"}),
]


def _calls(model: musespark.Model) -> Grammar:
    name = TOOLS[0]["function"]["name"]
    return turn_grammar(PROTOCOLS["llama-3"], model.tokenizer, [1], offer_of(TOOLS, name))


class Timed:
    """A constraint, and the seconds of each of its answers."""

    def __init__(self, constraint: Constraint):
        self._constraint = constraint
        self.seconds: list[float] = []

    def __call__(self, new: list[int]) -> bytes | None:
        began = time.perf_counter()
        mask = self._constraint(new)
        self.seconds.append(time.perf_counter() - began)
        return mask


def _rate(model: musespark.Model, tokens: int, seed: int, constraint: Any) -> float:
    request = Request(
        tokens=list(range(1000, 1000 + _PROMPT)),
        max_new_tokens=tokens,
        temperature=1.0,
        top_k=50,
        seed=seed,
        constraint=constraint,
    )
    result = model._engine.submit(request).result()
    assert len(result.tokens) == tokens, (len(result.tokens), result.reason)
    return (tokens - 1) / result.stats["decode_s"]


def measured(model: musespark.Model, tokens: int, rounds: int) -> dict[str, Any]:
    stops = model._requests.stop_ids
    began = time.perf_counter()
    grammars = Grammars(model.tokenizer, model.info.vocab, stops)
    chosen = {name: chosen_grammar({"json_schema": schema}) for name, schema in SCHEMAS.items()}
    chosen["calls"] = _calls(model)
    grammars.matcher(chosen_grammar({"regex": "a"}))
    vocabulary_s = time.perf_counter() - began
    compile_s = {}
    for name, grammar in chosen.items():
        began = time.perf_counter()
        grammars.matcher(grammar)
        compile_s[name] = time.perf_counter() - began
    free: list[float] = []
    bound: dict[str, list[float]] = {name: [] for name in chosen}
    masks: dict[str, list[float]] = {name: [] for name in chosen}
    for seed in range(rounds + 1):
        rates = {"": _rate(model, tokens, seed, None)}
        for name, grammar in chosen.items():
            timed = Timed(Constraint(grammars, grammar))
            rates[name] = _rate(model, tokens, seed, timed)
            masks[name] += timed.seconds if seed else []
        if seed:  # the first round wakes everything
            free.append(rates.pop(""))
            for name, rate in rates.items():
                bound[name].append(rate)
    plain = spread(free)
    out: dict[str, Any] = {"vocabulary_s": vocabulary_s, "free_tokens_s": plain, "schemas": {}}
    for name, rates in bound.items():
        rate = spread(rates)
        out["schemas"][name] = {
            "tokens_s": rate,
            "slower": 1 - median(one / without for one, without in zip(rates, free, strict=True)),
            "compile_s": compile_s[name],
            "mask_s": percentiles(masks[name]),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    shapes = ["nano", *sorted(SHAPES)]
    parser.add_argument("shape", nargs="?", default="llama-3.2-1b", choices=shapes)
    parser.add_argument("--tokens", type=int, default=256, help="of each text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/grammar_SHAPE.json")
    args = parser.parse_args()
    source = None
    if args.shape != "nano":
        source = str(models.build(SHAPES[args.shape], "q4.safetensors"))
    with musespark.load(source, context=args.tokens + 64, progress=False) as model:
        info = {"kv": model.info.kv, "isa": model.info.isa, "threads": model.info.threads}
        report = {"shape": args.shape, "vocab": model.info.vocab, "tokens": args.tokens, **info}
        report |= measured(model, args.tokens, args.rounds)
    print(json.dumps(report, indent=1))
    if args.save:
        save(f"grammar_{args.shape}", {"machine": machine(), "goal_slower": GOAL, **report})
    worst = max(one["slower"] for one in report["schemas"].values())
    if args.shape != "nano" and worst > GOAL:
        raise SystemExit(f"a schema takes {worst:.1%} of the speed, the goal is {GOAL:.0%}")


if __name__ == "__main__":
    main()
