"""What keeping less of a thought costs: Spark Nano's exercises, its conversations, and stories260K.

    python benchmarks/thoughts.py DATA [--n 100] [--save]        # DATA: the folder with stories260K

Exercises: held-out instances at the efforts high and xhigh, greedy; for each choice accuracy with
its 95% interval, answers that another choice got right, length of the trace, what was evicted and
the bytes of whole pages inside thoughts. Six of Nano's eight layers have a window of 256 tokens, in
which most of its thoughts fit: what is evicted or demoted are the rows of the other two.

Conversations: four turns, thoughts kept or dropped; what the next turn computes and how long its
first token takes, and the bytes held between turns.

stories260K has no windows. Its text counts as one thought that is evicted while it is sampled; the
whole model then says how likely each token was. And a demoted thought of 256 tokens in a prompt:
the divergence of what comes after it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import divergence
import numpy as np
from common import machine, save

import musespark
from musespark.events import Request
from musespark.lab.evaluate import items_for, wilson
from musespark.lab.grading import grade
from musespark.lab.item import Item

BUDGETS = (32, 48, 64, 96)
CHOICES: dict[str, dict[str, Any]] = {
    "keep": {},
    "demote": {"thought_cache": "demote"},
    "drop": {"thought_cache": "drop"},
    **{f"evict {n}": {"thought_cache_tokens": n} for n in BUDGETS},
    "evict 32, demote": {"thought_cache_tokens": 32, "thought_cache": "demote"},
}
TASKS = ("addition", "subtraction", "multiplication", "comparison", "sorting", "extreme")
STORY_BUDGETS = (32, 64, 128, 256)
STORIES, STORY_TOKENS, STORY_PROMPT = 40, 440, 16
CLOSED_AT = 256
LONG = 100


def _replies(model: musespark.Model, items: list[Item], **options: Any) -> list[Any]:
    out: dict[int, Any] = {}
    for effort in sorted({item.effort for item in items}):
        mine = [i for i, item in enumerate(items) if item.effort == effort]
        asked = [items[i].messages for i in mine]
        given = {"reasoning_effort": effort, "max_new_tokens": 600, "temperature": 0.0, **options}
        out.update(zip(mine, model.chat_batch(asked, **given), strict=True))
    return [out[i] for i in range(len(items))]


def _accuracy(right: list[bool]) -> dict[str, Any]:
    n, correct = len(right), sum(right)
    interval = [round(x, 4) for x in wilson(correct, n)]
    return {"n": n, "correct": correct, "accuracy": round(correct / n, 4), "interval": interval}


def exercises(n: int) -> dict[str, Any]:
    """Every choice over the same items; ``keep`` is what the others are compared with, ``long``
    the items whose thought is of LONG tokens or more there."""
    items = items_for(list(TASKS), ["middle", "hard"], ["high", "xhigh"], n, 0)
    rows: dict[str, Any] = {}
    plain: list[bool] = []
    long: list[int] = []
    with musespark.load(threads=2, kv="kv8") as model:
        for name, options in CHOICES.items():
            replies = _replies(model, items, **options)
            right = [
                r.finish_reason == "stop" and bool(grade(item, r.content))
                for item, r in zip(items, replies, strict=True)
            ]
            told = [r.thought_cache for r in replies]
            if name == "keep":
                plain = right
                long = [i for i, t in enumerate(told) if t.tokens >= LONG]
            pairs = list(zip(plain, right, strict=True))
            rows[name] = {
                **_accuracy(right),
                "lost": sum(a and not b for a, b in pairs),
                "won": sum(b and not a for a, b in pairs),
                "long": _accuracy([right[i] for i in long]),
                "trace_tokens": round(statistics.mean(t.tokens for t in told), 2),
                "kept_tokens": round(statistics.mean(t.kept_tokens for t in told), 2),
                "evicted_replies": sum(t.evictions > 0 for t in told),
                "evictions": sum(t.evictions for t in told),
                "demoted_pages": sum(t.demoted_pages for t in told),
                "bytes_in_thoughts": round(statistics.mean(t.bytes for t in told)),
                "unfinished": sum(r.finish_reason != "stop" for r in replies),
            }
        return {"kv": model.info.kv, "isa": model.info.isa, "choices": rows}


def conversations(count: int) -> dict[str, Any]:
    """Turns after the first, thoughts kept and dropped: medians, and the bytes between turns."""
    tasks = ("multiplication", "sorting", "subtraction", "comparison")
    groups = [items_for([t], ["middle"], ["high"], count, 1) for t in tasks]
    found: dict[str, Any] = {}
    tokens: dict[str, Any] = {}
    for choice in ("keep", "drop"):
        computed, first, held, freed, said = [], [], [], [], []
        with musespark.load(threads=2, kv="kv8", prefix_cache=False) as model:
            for turns in zip(*groups, strict=True):
                with model.session(thought_cache=choice) as session:
                    for at, item in enumerate(turns):
                        text = item.messages[-1]["content"]
                        r = session.chat(text, reasoning_effort="high", max_new_tokens=600)
                        said.append(r.tokens)
                        freed.append(r.thought_cache.freed_bytes)
                        if at > 0:
                            computed.append(r.usage.prompt_tokens - r.usage.cached_tokens)
                            first.append(r.timings.first_token_s)
                        session._settle()
                        model.generate("x", max_new_tokens=1)  # what was asked for has been done
                        held.append(model._engine.stats()["kv_bytes_used"])
        tokens[choice] = said
        found[choice] = {
            "turns": len(said),
            "prompt_tokens_computed": statistics.median(computed),
            "first_token_ms": round(1e3 * statistics.median(first), 3),
            "bytes_between_turns": round(statistics.mean(held)),
            "freed_bytes": round(statistics.mean(freed)),
        }
    assert tokens["keep"] == tokens["drop"], "dropping changed a turn"
    return {**found, "identical": True}


def _log_softmax(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64) - rows.max(-1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


def sampled_stories(model: musespark.Model, chunks: list[np.ndarray]) -> dict[str, Any]:
    """Stories sampled while they are evicted: nats a token under the model with everything kept."""
    prompts = [chunk[:STORY_PROMPT].tolist() for chunk in chunks]
    out: dict[str, Any] = {}
    plain = np.zeros(len(prompts))
    for budget in (None, *STORY_BUDGETS):
        thoughts = {"cache": "keep", "most_tokens": budget, "closes": []}
        handles = [
            model._engine.submit(
                Request(
                    tokens=prompt,
                    max_new_tokens=STORY_TOKENS,
                    min_new_tokens=STORY_TOKENS,
                    temperature=1.0,
                    seed=seed,
                    thoughts={**thoughts, "opens": [[prompt[-1]]]},
                )
            )
            for seed, prompt in enumerate(prompts)
        ]
        results = [handle.result() for handle in handles]
        scores = [
            model.score([*p, *r.tokens])[STORY_PROMPT:]
            for p, r in zip(prompts, results, strict=True)
        ]
        mean = np.array([row.mean() for row in scores])
        plain = mean if budget is None else plain
        out["keep" if budget is None else f"evict {budget}"] = {
            "nats": round(float(mean.mean()), 4),
            "less_than_keep": round(float((plain - mean).mean()), 4),
            "standard_error": round(float((plain - mean).std(ddof=1) / len(mean) ** 0.5), 4),
            "evictions": sum(r.stats["evictions"] for r in results),
            "kept_tokens": STORY_TOKENS - results[0].stats["evicted_tokens"],
            "bytes_in_thoughts": round(statistics.mean(r.stats["thought_bytes"] for r in results)),
        }
    return {"stories": len(prompts), "tokens": STORY_TOKENS, "choices": out}


def demoted_stories(model: musespark.Model, chunks: list[np.ndarray]) -> dict[str, Any]:
    """Divergence of what follows a thought of CLOSED_AT tokens, demoted against kept."""
    kld, same = [], []
    for chunk in chunks:
        unused = next(i for i in range(3, 512) if i not in chunk)
        ids = np.insert(chunk, CLOSED_AT, unused)

        def rows(cache: str, ids: np.ndarray = ids, unused: int = unused) -> np.ndarray:
            marks = {"opens": [[int(ids[0])]], "closes": [unused]}
            request = Request(tokens=ids, logits="all", thoughts={"cache": cache, **marks})
            return _log_softmax(model._engine.submit(request).result().logits[CLOSED_AT + 1 :])

        kept, demoted = rows("keep"), rows("demote")
        kld.append(float((np.exp(kept) * (kept - demoted)).sum(-1).mean()))
        same.append(float((kept.argmax(-1) == demoted.argmax(-1)).mean()))
    return {
        "texts": len(chunks),
        "thought_tokens": CLOSED_AT,
        "tokens_after": len(chunks[0]) - CLOSED_AT,
        "kld": round(statistics.mean(kld), 6),
        "same_top": round(statistics.mean(same), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--n", type=int, default=100, help="instances of a task and level")
    parser.add_argument("--save", action="store_true", help="write results/thoughts.json")
    args = parser.parse_args()
    bed = divergence.stories(args.data)
    found: dict[str, Any] = {"exercises": exercises(args.n), "conversations": conversations(12)}
    with musespark.load(bed.folder, quantize="none", kv="kv8", threads=2) as model:
        chunks = bed.held_out[:STORIES]
        found["stories260K"] = {
            "sampled": sampled_stories(model, chunks),
            "demoted": demoted_stories(model, chunks),
        }
    print(json.dumps(found, indent=1))
    if args.save:
        save("thoughts", {"machine": machine(), **found})


if __name__ == "__main__":
    main()
