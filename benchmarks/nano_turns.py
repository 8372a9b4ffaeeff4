"""What Spark Nano makes of tools that nobody needs, and of budgets that are too small to think in.

    python benchmarks/nano_turns.py [--n 10] [--save]

Held-out exercises of the gated families without tools, easy and middle, --n of each, greedy.
Questions of text at medium effort: alone, beside one and beside four tools drawn as training draws
them (nobody needs one; a call is a wrong answer), and beside tools of the package that training
never shows, through `act`, where a call is answered. Questions about pictures: through `look`,
without tools and with them. Budgets: text exercises at high effort with no thought, with budgets in
tokens, and without a budget; `aloud`: answers at least 8 tokens longer than the right one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from common import machine, save

import musespark
from musespark.agents.builtin import convert_units, days_between, weekday
from musespark.lab.engine import messages_of
from musespark.lab.evaluate import items_for, wilson
from musespark.lab.grading import grade
from musespark.lab.item import Item
from musespark.lab.tasks import GATED, functions, pictures

TEXT = [t for t in GATED if t not in pictures.TASKS and t != "tool_call"]
VISION = [t for t in GATED if t in pictures.TASKS]
BUDGETS: dict[str, dict[str, Any]] = {
    "no thought": {"mode": "instant"},
    **{f"budget {n}": {"thinking_token_budget": n} for n in (0, 4, 8, 16, 32, 64)},
    "no budget": {},
}
ALOUD = 8
_GREEDY = {"temperature": 0.0, "max_new_tokens": 400, "thinking_policy": "off"}


def _row(name: str, right: Sequence[bool], **counts: int) -> dict[str, Any]:
    low, high = wilson(sum(right), len(right))
    told = "".join(f", {key} {value}" for key, value in counts.items())
    print(f"{name}: {sum(right)}/{len(right)} right [{low:.0%}, {high:.0%}]{told}", flush=True)
    return {"case": name, "n": len(right), "right": sum(right), **counts}


def _chats(model: musespark.Model, items: Sequence[Item], **options: Any) -> list[Any]:
    asked = [messages_of(item) for item in items]
    return model.chat_batch(asked, **(_GREEDY | options))


def _beside(model: musespark.Model, items: Sequence[Item]) -> list[dict[str, Any]]:
    rows = []
    for count in (0, 1, 4):
        results = []
        for at, item in enumerate(items):
            tools = functions.spare(Random(f"nano turns {at}"), count) or None
            options = _GREEDY | {"reasoning_effort": "medium", "tools": tools}
            results.append(model.chat(messages_of(item), **options))
        right = [
            grade(i, r.content, [c["function"] for c in r.tool_calls])
            for i, r in zip(items, results, strict=True)
        ]
        called = sum(bool(r.tool_calls or r.malformed_tool_calls) for r in results)
        rows.append(_row(f"text, {count} tools nobody needs", right, called=called))
    own = [convert_units, weekday, days_between]
    options = _GREEDY | {"reasoning_effort": "medium", "max_steps": 4}
    found = [model.act(messages_of(item), own, **options) for item in items]
    right = [grade(i, f.content or "") for i, f in zip(items, found, strict=True)]
    called = sum(bool(f.uses) for f in found)
    return [*rows, _row("text, the package's tools, answered", right, called=called)]


def _looking(model: musespark.Model, items: Sequence[Item]) -> list[dict[str, Any]]:
    rows = []
    for calls in (0, 8):
        right, called = [], 0
        for item in items:
            question = item.messages[-1]["content"][-1]["text"]
            shown = [p.pixels if p.original is None else p.original for p in item.pictures]
            options = _GREEDY | {"reasoning_effort": "medium"}
            looked = model.look(question, shown, calls=calls, **options)
            right.append(grade(item, looked.content or ""))
            called += any(m.get("tool_calls") for m in looked.messages)
        rows.append(_row(f"pictures, {calls} calls allowed", right, called=called))
    return rows


def _short(model: musespark.Model, items: Sequence[Item]) -> list[dict[str, Any]]:
    count: Callable[[str], int] = lambda text: len(model.tokenizer.encode(text))  # noqa: E731
    rows = []
    for name, options in BUDGETS.items():
        effort = {} if "mode" in options else {"reasoning_effort": "high"}
        results = _chats(model, items, **options, **effort)
        pairs = list(zip(items, results, strict=True))
        aloud = sum(count(r.content) >= count(i.answer) + ALOUD for i, r in pairs)
        tokens = round(sum(r.usage.reasoning_tokens for r in results) / len(results), 1)
        right = [grade(i, r.content) for i, r in pairs]
        rows.append(_row(f"text, {name}", right, aloud=aloud) | {"thinking_tokens": tokens})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="default: Spark Nano")
    parser.add_argument("--n", type=int, default=10, help="items of each task and level")
    parser.add_argument("--save", action="store_true", help="write results/nano_turns.json")
    args = parser.parse_args()
    levels = ["easy", "middle"]
    text = items_for(TEXT, levels, ["medium"], args.n, 2027)
    seen = items_for(VISION, levels, ["medium"], args.n, 2027)
    with musespark.load(args.model) as model:
        rows = _beside(model, text) + _looking(model, seen)
        rows += _short(model, [replace(item, effort="high") for item in text])
    if args.save:
        save("nano_turns", {"machine": machine(), "n": args.n, "rows": rows})


if __name__ == "__main__":
    main()
