"""Agents that answer at once: wall time against one agent, a step against the roofline, memory.

    python benchmarks/contemplating.py [nano | llama-3.2-1b] [--agents 1 2 4 8 16] [--rounds 5]
                                       [--prefix 2048] [--tokens 128] [--threads N] [--save]
                                       [--deadlines 0.25 0.5 1 2]

nano: word problems at effort high, answered in turn by each number of agents, with consensus (a
round ends when it is decided) and without. A ratio is of the wall times of one question.

nano with --deadlines: hard problems at effort xhigh, under each deadline in turn: wall time by
deadline of those that reached it, how many did, and how many of these have an answer all the same.

A shape: random weights, so that nobody answers and every agent writes ``--tokens``, under a prompt
of ``--prefix`` tokens that is new for each timing, with its prefill in the wall time. A step is the
difference of two runs over a known prompt, of ``--tokens`` and of a quarter of them, by their
difference. The roofline: the larger of reading weights, prefix (once) and suffixes, at the
bandwidth read beside it, and of the operations at the int8 peak. Memory: the engine's keys and
values at the most, against those of the prefix and of a suffix for each agent; and what the process
grew by.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import models
from common import limits, machine, read_bandwidth, save
from forks import resident
from report import spread
from shapes import SHAPES

import musespark
from musespark.cli.limits import vector_peak
from musespark.cli.work import bytes_per_token, step_operations
from musespark.engine import default_threads
from musespark.lab.bench_thinking import TASKS
from musespark.lab.bench_thinking import spread as evaluation_items
from musespark.sizes import kv_bytes, kv_bytes_per_token, shared_kv_bytes

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
PAGE = 64


def questions(count: int) -> list[str]:
    """Word problems of two steps."""
    source = random.Random(0)
    names = ("Tom", "Ann", "Ben", "Eva", "Max", "Lea")
    asked = []
    for _ in range(count):
        one, other = source.sample(names, 2)
        has, more, less = (source.randint(*span) for span in ((20, 60), (5, 40), (2, 20)))
        asked.append(
            f"{one} has {has} apples. {one} buys {more} more and gives {less} to {other}. "
            f"How many apples does {one} have?"
        )
    return asked


def ask(model: musespark.Model, question: Any, agents: int, **more: Any) -> tuple[float, Any]:
    """Seconds, and the result."""
    start = time.perf_counter()
    result = model.chat(question, mode="contemplating", n_agents=agents, **more)
    return time.perf_counter() - start, result


def measure_nano(agents: list[int], rounds: int, threads: int) -> dict[str, Any]:
    """Wall times of each number of agents, and their ratios to one agent's of the same question."""
    found: dict[str, Any] = {}
    with musespark.load(threads=threads) as model:
        for name, consensus in (("consensus", 1.0), ("all", None)):
            walls: dict[int, list[float]] = {n: [] for n in agents}
            tokens: dict[int, list[float]] = {n: [] for n in agents}
            discarded: dict[int, list[float]] = {n: [] for n in agents}
            given = {"reasoning_effort": "high", "consensus": consensus}
            ask(model, questions(1)[0], max(agents), **given)
            for seed, question in enumerate(questions(rounds)):
                for n in agents:
                    wall, result = ask(model, question, n, seed=seed, **given)
                    walls[n].append(wall)
                    tokens[n].append(result.usage.completion_tokens)
                    discarded[n].append(sum(one.discarded_tokens for one in result.rounds))
            found[name] = {
                n: {
                    **_walls(walls, n),
                    "tokens": spread(tokens[n]),
                    "discarded": spread(discarded[n]),
                }
                for n in agents
            }
    return found


def measure_deadlines(
    deadlines: list[float], agents: int, rounds: int, threads: int
) -> dict[float, dict[str, Any]]:
    """Of each deadline, in seconds, the wall times of contemplations that reached it."""
    items = evaluation_items(list(TASKS), ["hard"], 2 * rounds, seed=0)
    asked = [item.messages for item in items if not item.tools][:rounds]
    walls: dict[float, list[float]] = {one: [] for one in deadlines}
    answered = dict.fromkeys(deadlines, 0)
    with musespark.load(threads=threads) as model:
        given = {"reasoning_effort": "xhigh", "consensus": None, "temperature": 0.8}
        ask(model, asked[0], agents, seed=0, **given)
        for seed, question in enumerate(asked):
            for deadline in deadlines:
                wall, result = ask(model, question, agents, seed=seed, deadline=deadline, **given)
                if wall > 0.9 * deadline:
                    walls[deadline].append(wall / deadline)
                    answered[deadline] += bool(result.votes)
    return {
        one: {
            "reached": len(walls[one]),
            "answered": answered[one],
            "wall_over_deadline": spread(walls[one]) if walls[one] else None,
        }
        for one in deadlines
    }


def _walls(walls: dict[int, list[float]], agents: int) -> dict[str, Any]:
    pairs = zip(walls[agents], walls[min(walls)], strict=True)
    return {
        "wall_s": spread(walls[agents]),
        f"ratio_to_{min(walls)}": spread([one / base for one, base in pairs]),
    }


# ---- a shape -------------------------------------------------------------------------------------


def text_of(model: musespark.Model, tokens: int, seed: int) -> str:
    """A text of so many tokens, of random words."""
    source = random.Random(seed)
    words = ["".join(source.choices("abcdefghij", k=6)) for _ in range(tokens)]
    low, high = 1, tokens
    while low < high:
        middle = (low + high + 1) // 2
        fits = len(model.tokenizer.encode(" ".join(words[:middle]))) <= tokens
        low, high = (middle, high) if fits else (low, middle - 1)
    return " ".join(words[:low])


@contextmanager
def most_of(model: musespark.Model) -> Iterator[dict[str, int]]:
    """The most bytes of keys and values that sequences held meanwhile, looked at every 5 ms."""
    seen, done = {"kv_bytes": 0}, threading.Event()

    def look() -> None:
        while not done.wait(0.005):
            seen["kv_bytes"] = max(seen["kv_bytes"], model._engine.stats()["kv_bytes_used"])

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        done.set()
        looking.join()


def memory_bound(model: musespark.Model, agents: int, prefix: int, tokens: int) -> int:
    """Bytes of the keys and values of one prefix, and of a suffix for each agent."""
    spec, kv = model._weights.spec, model.info.kv_formats
    whole = kv_bytes(spec, kv, prefix + tokens, step=1)
    return kv_bytes(spec, kv, prefix) + agents * (whole - shared_kv_bytes(spec, kv, prefix))


def least_step(model: musespark.Model, agents: int, prefix: int, own: int, threads: int) -> float:
    """Seconds of a step at the machine's best."""
    spec, tensors = model._weights.spec, model._weights.tensors
    nbytes = {name: data.nbytes for name, (*_, data) in tensors.items()}
    read = bytes_per_token(spec, nbytes)
    read += kv_bytes_per_token(spec, model.info.kv_formats) * (prefix + agents * own)
    peaks = limits().peaks(threads)
    peak = max(vector_peak(peaks), peaks.get("amx", 0.0))
    return max(read / read_bandwidth(threads), step_operations(spec, agents) / peak)


def measure_shape(
    path: Any, agents: list[int], prefix: int, tokens: int, rounds: int, threads: int
) -> dict[str, Any]:
    """Walls over new prompts; steps and memory over a known one."""
    with musespark.load(path, threads=threads, context=prefix + tokens + PAGE) as model:
        model.template = musespark.ChatTemplate(TEMPLATE)
        known = text_of(model, prefix, seed=0)

        def run(question: str, n: int, count: int) -> float:
            given = {"min_new_tokens": count, "max_new_tokens": count, "consensus": None}
            wall, result = ask(model, question, n, seed=1, **given)
            assert result.usage.completion_tokens == n * count
            return wall

        run(known, max(agents), 4)
        walls: dict[int, list[float]] = {n: [] for n in agents}
        steps: dict[int, list[float]] = {n: [] for n in agents}
        roofs: dict[int, list[float]] = {n: [] for n in agents}
        memory: dict[int, dict[str, Any]] = {}
        few = max(2, tokens // 4)
        for number in range(rounds):
            for n in agents:
                new = text_of(model, prefix, seed=1 + number * 1000 + n)
                walls[n].append(run(new, n, tokens))
                short = run(known, n, few)
                before = resident()
                with most_of(model) as seen:
                    whole = run(known, n, tokens)
                steps[n].append((whole - short) / (tokens - few))
                roof = least_step(model, n, prefix, (tokens + few) // 2, threads)
                roofs[n].append(steps[n][-1] / roof)
                bound = memory_bound(model, n, prefix, tokens)
                memory[n] = {**seen, "bound": bound, "grown": max(0, resident() - before)}
                assert 0 < seen["kv_bytes"] <= bound, (n, seen, bound)
        return {
            n: {
                **_walls(walls, n),
                "step_s": spread(steps[n]),
                "step_over_roofline": spread(roofs[n]),
                "memory": memory[n],
            }
            for n in agents
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", nargs="?", default="nano", choices=["nano", *SHAPES])
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prefix", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--deadlines", type=float, nargs="+", metavar="S", help="of nano alone")
    parser.add_argument(
        "--save",
        action="store_true",
        help="write results/contemplating_SHAPE.json or deadlines_nano.json",
    )
    args = parser.parse_args()
    name = f"contemplating_{args.shape}"
    if args.deadlines:
        if args.shape != "nano":
            parser.error("--deadlines: random weights never answer; only nano")
        name = "deadlines_nano"
        found = measure_deadlines(args.deadlines, max(args.agents), args.rounds, args.threads)
    elif args.shape == "nano":
        found = measure_nano(args.agents, args.rounds, args.threads)
    else:
        path = models.build(SHAPES[args.shape], "q4.safetensors")
        given = (args.agents, args.prefix, args.tokens, args.rounds, args.threads)
        found = measure_shape(path, *given)
    print(json.dumps(found, indent=1))
    if args.save:
        given = {"shape": args.shape, "threads": args.threads}
        if args.shape != "nano":
            given |= {"prefix": args.prefix, "tokens": args.tokens}
        save(name, {"machine": machine(), **given, "agents": found})


if __name__ == "__main__":
    main()
