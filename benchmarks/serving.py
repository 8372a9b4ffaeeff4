"""Continuous batching: sequences that arrive at random, against what the single figures predict.

    python benchmarks/serving.py [--shape llama-3.2-1b] [--format q4] [--sequences 32] [--new 512]
                                 [--prompts 20 2000] [--check 2] [--threads N] [--save]

Prompt lengths (uniform) and arrival times (uniform over the first quarter of the predicted time)
come from a fixed seed. First the single figures are measured on the same engine: prefill of 512
tokens, and a step of 1, 2, 4 … rows with half of the tokens behind them that rows have on average.
From these alone a simulation in which a prompt is computed whole while everybody waits predicts the
time of the run; it knows no gain of mixing prefill with decode rows, and no loss.

Reported: throughput against the prediction, the decode-only gain of all rows over one, and the
gaps between two tokens of one sequence: all of them, those in which another sequence prefilled,
and what prefill added to the longest (over the step of so many rows alone). Tokens reach Python in
slices of 20 ms or one step, whichever is longer: for steps shorter than that gaps are of slices.
``--check`` runs some sequences again alone and compares their tokens.
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import models
from common import machine, save
from report import spread
from shapes import SHAPES

from musespark.engine import Engine, Finished, Request, Tokens, default_threads, kv_bytes
from musespark.weights import open_model

KV = "kv8"
SEED = 20
_MEASURED_PROMPT, _MEASURED_STEPS = 512, 16


@dataclass(frozen=True)
class Arrival:
    """One request: seconds after the start, and its prompt's length."""

    at: float
    prompt: int


@dataclass
class Served:
    """What one request got: its tokens, and when each came (seconds after the start)."""

    arrival: Arrival
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Single:
    """Single figures: seconds a prompt token takes, and seconds of a step by its rows."""

    prefill_token_s: float
    step_s: dict[int, float]

    def step(self, rows: int) -> float:
        """Seconds of a step of any number of rows: linear between the measured numbers."""
        known = sorted(self.step_s)
        if rows <= known[0]:
            return self.step_s[known[0]]
        if rows >= known[-1]:
            return self.step_s[known[-1]]
        above = next(n for n in known if n >= rows)
        below = max(n for n in known if n <= rows)
        if above == below:
            return self.step_s[rows]
        part = (rows - below) / (above - below)
        return self.step_s[below] + part * (self.step_s[above] - self.step_s[below])


def arrivals(count: int, least: int, most: int, over: float, seed: int = SEED) -> list[Arrival]:
    """``count`` requests in the order of their arrival within ``over`` seconds, the first at 0."""
    source = random.Random(seed)
    times = sorted(source.uniform(0, over) for _ in range(count))
    return [Arrival(at - times[0], source.randint(least, most)) for at in times]


def predicted_seconds(asked: Sequence[Arrival], new: int, single: Single) -> float:
    """Seconds until the last token where prompts are computed one by one, then all rows decode."""
    now, waiting, left = 0.0, list(asked), []
    while waiting or left:
        if waiting and (waiting[0].at <= now or not left):
            first = waiting.pop(0)
            now = max(now, first.at) + first.prompt * single.prefill_token_s
            left.append(new - 1)  # its first token came with the prompt
        else:
            now += single.step(len(left))
            left = [n - 1 for n in left]
        left = [n for n in left if n > 0]
    return now


def prompt_ids(arrival: Arrival, vocab: int) -> list[int]:
    source = random.Random(arrival.prompt * 7919 + round(arrival.at * 1e6))
    return [source.randrange(vocab) for _ in range(arrival.prompt)]


class Server:
    """An engine with room for all sequences."""

    def __init__(self, path: Any, threads: int, sequences: int, tokens: int):
        self._weights = open_model(path, progress=False)
        self.vocab, self.threads = self._weights.spec.vocab, threads
        self._engine = Engine(
            self._weights.spec,
            self._weights.tensors,
            threads=threads,
            context=tokens,
            kv=KV,
            memory_budget=(sequences + 2) * kv_bytes(self._weights.spec, KV, tokens),
        )

    def request(self, ids: Sequence[int], new: int) -> Request:
        return Request(tokens=ids, max_new_tokens=new, min_new_tokens=new)

    def alone(self, ids: Sequence[int], new: int) -> Any:
        return self._engine.submit(self.request(ids, new)).result()

    def step_seconds(self, rows: int, behind: int) -> float:
        """One step of ``rows`` sequences with ``behind`` tokens each behind them.

        They share one retained prompt, and begin in the same step: all wait for another prompt.
        """
        ids = [(7 + 13 * i) % self.vocab for i in range(behind)]
        keep = Request(tokens=ids, max_new_tokens=1, retain=True)
        base = self._engine.submit(keep)
        base.result()
        blocker = self._engine.submit(self.request([5] * 64, 1))
        handles = [
            self._engine.submit(
                self.request([*ids, (row + 1) % self.vocab], _MEASURED_STEPS + 1),
                base=base.retained,
            )
            for row in range(rows)
        ]
        blocker.result()
        results = [handle.result() for handle in handles]
        base.discard()
        return max(r.stats["decode_s"] for r in results) / _MEASURED_STEPS

    def measure(self, most_rows: int, behind: int, rounds: int = 3) -> Single:
        """The single figures, medians; a first round of each warms up."""
        ids = [(7 + 13 * i) % self.vocab for i in range(_MEASURED_PROMPT)]
        took = [self.alone(ids, 1).stats["prefill_s"] for _ in range(rounds + 1)][1:]
        counts = [b for b in (1, 2, 4, 8, 16, 32, 64) if b < most_rows] + [most_rows]
        self.step_seconds(1, behind)
        steps = {
            b: statistics.median(self.step_seconds(b, behind) for _ in range(rounds))
            for b in counts
        }
        return Single(statistics.median(took) / len(ids), steps)

    def serve(self, asked: Sequence[Arrival], new: int) -> list[Served]:
        """All requests, each submitted at its time and read by a thread of its own."""
        served = [Served(arrival) for arrival in asked]
        prompts = [prompt_ids(arrival, self.vocab) for arrival in asked]
        start = time.perf_counter()

        def read(handle: Any, one: Served) -> None:
            for event in handle:
                if isinstance(event, Tokens):
                    now = time.perf_counter() - start
                    one.tokens += event.ids
                    one.times += [now] * len(event.ids)
                elif isinstance(event, Finished):
                    assert event.reason == "length", event

        readers = []
        for one, ids in zip(served, prompts, strict=True):
            time.sleep(max(0.0, one.arrival.at - (time.perf_counter() - start)))
            handle = self._engine.submit(self.request(ids, new))
            readers.append(threading.Thread(target=read, args=(handle, one)))
            readers[-1].start()
        for reader in readers:
            reader.join()
        return served

    def close(self) -> None:
        self._engine.close()
        self._weights.close()


@dataclass(frozen=True)
class Gap:
    """Time between two tokens of a sequence: begin, seconds, rows that decoded, and whether
    another sequence prefilled meanwhile."""

    begin: float
    seconds: float
    rows: int
    prefilling: bool


def gaps(served: Sequence[Served]) -> list[Gap]:
    """Every gap of every sequence. One prefills from its arrival to its first token, and decodes
    from there to its last."""
    prefill = [(one.arrival.at, one.times[0]) for one in served]
    decode = [(one.times[0], one.times[-1]) for one in served]

    def during(spans: Sequence[tuple[float, float]], begin: float, end: float) -> int:
        return sum(first < end and begin < last for first, last in spans)

    found = []
    for one in served:
        for begin, end in zip(one.times, one.times[1:], strict=False):
            if end > begin:
                busy = during(prefill, begin, end) > 0
                found.append(Gap(begin, end - begin, during(decode, begin, end), busy))
    return found


def summary(
    served: Sequence[Served], asked: Sequence[Arrival], new: int, single: Single
) -> dict[str, Any]:
    """The figures of a run, in seconds and tokens a second."""
    took = max(one.times[-1] for one in served)
    predicted = predicted_seconds(asked, new, single)
    every = gaps(served)
    mixed = [gap for gap in every if gap.prefilling] or every
    added = [gap.seconds - single.step(gap.rows) for gap in mixed]
    made = sum(len(one.tokens) for one in served)
    rows = max(single.step_s)
    return {
        "seconds": took,
        "predicted_seconds": predicted,
        "share_of_predicted": predicted / took,
        "output_tokens_per_s": made / took,
        "all_tokens_per_s": (made + sum(a.prompt for a in asked)) / took,
        "gain_of_all_rows": rows * single.step_s[min(single.step_s)] / single.step_s[rows],
        "first_token_s": spread([one.times[0] - one.arrival.at for one in served]),
        "gap_s": spread([gap.seconds for gap in every]),
        "longest_gap_while_prefilling_s": max(gap.seconds for gap in mixed),
        "longest_added_by_prefill_s": max(added),
    }


def show(report: dict[str, Any]) -> None:
    found, single = report["found"], report["single"]
    steps = ", ".join(f"{rows}: {s * 1e3:.1f}" for rows, s in single["step_s"].items())
    print(f"prefill {1 / single['prefill_token_s']:.0f} tokens/s; step in ms by rows {steps}")
    print(f"{found['seconds']:.1f} s, {found['predicted_seconds']:.1f} s predicted "
          f"({found['share_of_predicted']:.0%}); {found['output_tokens_per_s']:.1f} tokens/s "
          f"written, {found['all_tokens_per_s']:.1f} with prompts")  # fmt: skip
    print(f"all rows decode {found['gain_of_all_rows']:.1f} times as fast as one")
    print(f"first token after {found['first_token_s']['median']:.2f} s (median), "
          f"{found['first_token_s']['high']:.2f} at most")  # fmt: skip
    print(f"gap between tokens {found['gap_s']['median'] * 1e3:.0f} ms (median); the longest while "
          f"another prefilled {found['longest_gap_while_prefilling_s'] * 1e3:.0f} ms, prefill added"
          f" {found['longest_added_by_prefill_s'] * 1e3:.0f} ms at most")  # fmt: skip
    print(f"{report['checked']} sequences run alone again: the same tokens")


def check(server: Server, served: Sequence[Served], count: int, new: int) -> int:
    """Runs ``count`` of the sequences alone; ends the program where a token differs."""
    chosen = random.Random(SEED).sample(list(served), min(count, len(served)))
    for one in chosen:
        ids = prompt_ids(one.arrival, server.vocab)
        if server.alone(ids, new).tokens != one.tokens:
            raise SystemExit(f"a prompt of {len(ids)} tokens gives other tokens alone")
    return len(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.2-1b")
    parser.add_argument("--format", choices=["q4", "q8"], default="q4")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--new", type=int, default=512, help="tokens that each writes")
    parser.add_argument("--prompts", type=int, nargs=2, default=[20, 2000], help="least and most")
    parser.add_argument("--check", type=int, default=2, help="sequences run again alone")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--save", action="store_true", help="write results/serving_SHAPE.json")
    args = parser.parse_args()
    least, most = args.prompts
    if not (args.sequences >= 1 and args.new >= 2 and 1 <= least <= most):
        parser.error("at least one sequence, two new tokens, and prompts from least to most")
    path = models.build(SHAPES[args.shape], f"{args.format}.safetensors")
    longest = max(_MEASURED_PROMPT, most) + max(args.new, _MEASURED_STEPS + 2)
    server = Server(path, args.threads, args.sequences, longest)
    try:
        single = server.measure(args.sequences, (least + most + args.new) // 2)
        together = arrivals(args.sequences, least, most, 0.0)
        quarter = predicted_seconds(together, args.new, single) / 4
        asked = arrivals(args.sequences, least, most, quarter)
        served = server.serve(asked, args.new)
        checked = check(server, served, args.check, args.new)
    finally:
        server.close()
    report = {
        "shape": args.shape, "format": args.format, "kv": KV, "machine": machine(),
        "threads": args.threads, "new": args.new, "checked": checked,
        "arrivals": [[a.at, a.prompt] for a in asked],
        "single": {"prefill_token_s": single.prefill_token_s, "step_s": single.step_s},
        "found": summary(served, asked, args.new, single),
    }  # fmt: skip
    show(report)
    if args.save:
        save(f"serving_{args.shape}", report)


if __name__ == "__main__":
    main()
