"""Rollouts of Spark Nano: sampled replies a second, on our engine and by transformers' generate.

    python benchmarks/rollouts.py [--model FOLDER] [--prompts 64] [--samples 8] [--new 400]
                                  [--rounds 3] [--threads 2] [--python PYTHON] [--save]

As in expert iteration: text exercises of the training side at high effort, several replies to
each, sampled at temperature 1 with nothing cut off, until they end (``--new`` tokens at most). A
figure is tokens written (up to each reply's end) by seconds. transformers gets batches of 64 of the
same prompts as the same ids, in f32 and in bf16; the rows of a batch are exercises of one kind,
which wastes least of it. ``all rows`` is what it would be if no row of a batch had ended before the
last, which is more than it can give. musespark gets all rollouts at once, as it ships (auto) and
with the weights as stored (none), without its prefix cache: the replies to a prompt share nothing.
The ratio is to the faster of the two, in the same round; medians are shown.

transformers runs in an environment of its own under build/bench, or in that of ``--python``; it is
stopped while others are measured. ``right`` is the share of right replies: all engines sample from
the same model, up to its formats.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import machine, save, spread
from engines import WORKERS, Worker
from environments import TRANSFORMERS

import musespark
from musespark.engine import default_threads
from musespark.lab import protocol
from musespark.lab import tokenizer as tok
from musespark.lab.backends import parse_reply
from musespark.lab.evaluate import items_for
from musespark.lab.grading import grade
from musespark.lab.item import Item
from musespark.lab.tasks import GATED, pictures

NANO = Path(musespark.__file__).parent / "nano"
BATCH = 64
DTYPES = {"f32": "float32", "bf16": "bfloat16"}
OURS = ("auto", "none")
TASKS = tuple(t for t in GATED if t not in pictures.TASKS and t != "tool_call")
ENDS = [tok.EOT, tok.EOS]
_WARM = 4  # tokens of a first batch


@dataclass(frozen=True)
class Sampled:
    """One engine's rollouts of a round. ``steps``: rows computed, those that had ended too."""

    seconds: float
    tokens: list[list[int]]
    steps: int = 0

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return sum(map(len, self.tokens)) / self.seconds


class Ours:
    """musespark in this process."""

    def __init__(self, folder: str, quantize: str, threads: int):
        self._model = musespark.load(folder, quantize=quantize, threads=threads, prefix_cache=False)
        self.info = {"version": musespark.__version__, "kv": self._model.info.kv}

    def sample(self, prompts: Sequence[list[int]], new: int, seed: int) -> Sampled:
        seeds = [seed * len(prompts) + i for i in range(len(prompts))]
        begin = time.perf_counter()
        results = self._model.generate_batch(
            prompts, max_new_tokens=new, temperature=1.0, seed=seeds
        )
        seconds = time.perf_counter() - begin
        return Sampled(seconds, [list(r.tokens) for r in results])

    def pause(self) -> None:
        """Its threads park by themselves."""

    resume = close = pause


class Theirs:
    """transformers in a process of its own, ``BATCH`` rows at a time."""

    def __init__(self, python: str, folder: str, dtype: str, threads: int):
        script = str(WORKERS / "run_transformers.py")
        variables = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        command = [python, script, folder, str(threads), DTYPES[dtype]]
        self._worker = Worker(command, variables, f"transformers-{dtype}")
        self.info = self._worker.info
        self.pause, self.resume, self.close = (
            self._worker.pause, self._worker.resume, self._worker.close,
        )  # fmt: skip

    def sample(self, prompts: Sequence[list[int]], new: int, seed: int) -> Sampled:
        seconds, steps, tokens = 0.0, 0, []
        for at in range(0, len(prompts), BATCH):
            rows = list(prompts[at : at + BATCH])
            asked = {"prompts": rows, "new": new, "ends": ENDS, "pad": tok.PAD, "seed": seed + at}
            answer = self._worker.ask(asked, timeout=3600)
            if "error" in answer:
                raise SystemExit(f"transformers: {answer['error']}")
            seconds += answer["seconds"]
            steps += answer["steps"] * len(rows)
            tokens += answer["tokens"]
        return Sampled(seconds, tokens, steps)


def exercises(count: int, samples: int, seed: int) -> list[Item]:
    """``count`` items of the training side, each ``samples`` times, like ones side by side."""
    each = -(-count // (2 * len(TASKS)))
    items = items_for(TASKS, ["easy", "middle"], ["high"], each, seed, evaluation=False)
    spaced = [items[i * len(items) // count] for i in range(count)]
    return [item for item in spaced for _ in range(samples)]


def prompt_ids(items: Sequence[Item], folder: str) -> list[list[int]]:
    """Each item as the ids that the model is asked with."""
    tokenizer = tok.load(folder)
    pieces = (protocol.prompt_pieces(i.messages, i.effort, None) for i in items)
    return [protocol.encode(one, tokenizer)[0] for one in pieces]


def right(items: Sequence[Item], tokens: Sequence[list[int]], folder: str) -> float:
    """The share of right replies."""
    tokenizer = tok.load(folder)
    replies = [
        parse_reply(ids, lambda ids: tokenizer.decode(ids, skip_special_tokens=True))
        for ids in tokens
    ]
    marks = [r.finished and grade(i, r.answer) for i, r in zip(items, replies, strict=True)]
    return sum(marks) / len(marks)


def ratios(rounds: Sequence[dict[str, Sampled]], ours: str) -> list[float]:
    """How many times the tokens a second of the faster of their formats, in each round."""
    return [
        one[ours].speed / max(s.speed for name, s in one.items() if name.startswith("transformers"))
        for one in rounds
    ]


def row(name: str, found: Sequence[Sampled], share: float) -> dict[str, Any]:
    """The figures of an engine over the rounds."""
    lengths = [len(tokens) for one in found for tokens in one.tokens]
    figures = {
        "tokens_per_s": spread([one.speed for one in found]),
        "tokens_each": statistics.mean(lengths),
        "right": share,
    }
    if found[0].steps:
        figures["all_rows_per_s"] = spread([one.steps / one.seconds for one in found])
    return {"engine": name, **figures}


def show(rows: Sequence[dict[str, Any]], found: dict[str, list[float]]) -> None:
    print(
        "| engine | tokens/s (all rows) | tokens a reply | right | ratio |\n|---|---|---|---|---|"
    )
    for one in rows:
        speed = f"{one['tokens_per_s']['median']:,.0f}"
        if "all_rows_per_s" in one:
            speed += f" ({one['all_rows_per_s']['median']:,.0f})"
        ratio = found.get(one["engine"])
        told = f"{statistics.median(ratio):.1f}" if ratio else ""
        cells = (one["engine"], speed, f"{one['tokens_each']:.0f}", f"{one['right']:.1%}", told)
        print(f"| {' | '.join(cells)} |")


def measure(
    engines: dict[str, Any], prompts: Sequence[list[int]], new: int, rounds: int
) -> list[dict[str, Sampled]]:
    """Rounds through the engines in turn, after a few tokens of each."""
    for engine in engines.values():
        engine.resume()
        engine.sample(prompts[:BATCH], _WARM, 0)
        engine.pause()
    out = []
    for number in range(rounds):
        one = {}
        for name, engine in engines.items():
            engine.resume()
            one[name] = engine.sample(prompts, new, number + 1)
            engine.pause()
            print(f"round {number + 1}: {name}: {one[name].speed:,.0f} tokens/s", flush=True)
        out.append(one)
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", default=str(NANO), help="folder (default: Spark Nano)")
    p.add_argument("--prompts", type=int, default=64)
    p.add_argument("--samples", type=int, default=8, help="of each prompt")
    p.add_argument("--new", type=int, default=400, help="tokens of a reply at most")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=default_threads())
    p.add_argument("--seed", type=int, default=1, help="of the exercises")
    p.add_argument("--python", help="interpreter with torch and transformers >= 5.17")
    p.add_argument("--save", action="store_true", help="write results/rollouts.json")
    args = p.parse_args()
    items = exercises(args.prompts, args.samples, args.seed)
    prompts = prompt_ids(items, args.model)
    python = args.python or str(TRANSFORMERS.python())
    engines: dict[str, Any] = {}
    try:
        for dtype in DTYPES:
            engines[f"transformers {dtype}"] = Theirs(python, args.model, dtype, args.threads)
            engines[f"transformers {dtype}"].pause()
        for form in OURS:
            engines[f"musespark {form}"] = Ours(args.model, form, args.threads)
        rounds = measure(engines, prompts, args.new, args.rounds)
    finally:
        for engine in engines.values():
            engine.close()
    rows = []
    for name in engines:
        found = [one[name] for one in rounds]
        rows.append(row(name, found, right(items, found[-1].tokens, args.model)))
    found = {name: ratios(rounds, name) for name in engines if name.startswith("musespark")}
    show(rows, found)
    if args.save:
        asked = {k: getattr(args, k) for k in ("prompts", "samples", "new", "rounds", "threads")}
        facts = {name: engine.info for name, engine in engines.items()}
        report = {"machine": machine(), "asked": asked, "engines": facts, "rows": rows}
        save("rollouts", report | {"ratios": {n: spread(r) for n, r in found.items()}})


if __name__ == "__main__":
    main()
