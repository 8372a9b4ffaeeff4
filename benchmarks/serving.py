"""Continuous batching: sequences that arrive at random, against what the single figures predict.

    python benchmarks/serving.py [--shape llama-3.2-1b] [--format q4] [--sequences 32] [--new 512]
                                 [--prompts 20 2000] [--over 30] [--check 8] [--threads N] [--save]

Prompt lengths (uniform) and arrival times (uniform over ``--over`` seconds) come from a fixed
seed.

Single figures, on the same engine in the same run: seconds of a lone prefill of several lengths;
and seconds of a decode-only step of 1, 2, 4 … 64 rows (ROWS), with 20 tokens behind each row and
with all that the served sequences have in the end (their own keys and values, no copies of one;
beyond their number each serves again). In between, and for what is behind all rows together,
figures are linear.

    predicted seconds = for each prompt in the order of arrival, as soon as it is there:
                            everybody waits for prefill(its length);
                        else, while rows are left: step(rows, tokens behind them)

It knows no gain of mixing prefill with decode rows, and no loss. Output tokens over these seconds
is the throughput that the single figures predict.

Reported: throughput against the prediction; the decode-only gain of b rows over one; the time to
the first token; and what prefill adds to a step of a decoding row: each gap between two tokens of a
sequence, while another one prefills, less step(rows, tokens behind them) at that moment. The same
difference where nobody prefills tells how far the single figures are off. Tokens reach Python in
slices of 20 ms or one step, whichever is longer: for steps shorter than that gaps are of slices.
``--check`` runs some sequences again alone (the shortest and longest prompts among them) and
compares their tokens.
"""

from __future__ import annotations

import argparse
import bisect
import random
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import models
from common import machine, read_bandwidth, save
from report import spread
from shapes import SHAPES

from musespark.engine import Engine, Finished, Request, Tokens, default_threads
from musespark.sizes import kv_bytes
from musespark.weights import open_model

KV = "kv8"
SEED = 20
ROWS = (1, 2, 4, 8, 16, 17, 24, 32, 64)  # kernels take up to 16 at once: 17 cost a step more
_SHALLOW = 20  # tokens behind a row, at least
_MEASURED_STEPS = 16
_BLOCKER = 256  # tokens of a prompt that others wait for, to begin in one step


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
    retained: Any = None

    def behind(self, now: float) -> int:
        """Tokens behind the row that makes the first token after ``now``."""
        return self.arrival.prompt + bisect.bisect_right(self.times, now) - 1


@dataclass(frozen=True)
class Kept:
    """A sequence whose keys and values are retained."""

    ids: list[int]
    retained: Any


def linear(known: Sequence[tuple[float, float]], x: float) -> float:
    """The line through the neighbours of ``x`` among ascending points, the outermost beyond."""
    if len(known) == 1:
        return known[0][1]
    at = min(max(bisect.bisect_left([k for k, _ in known], x), 1), len(known) - 1)
    (x0, y0), (x1, y1) = known[at - 1], known[at]
    return y0 + (x - x0) / (x1 - x0) * (y1 - y0)


@dataclass(frozen=True)
class Single:
    """Single figures: seconds of a lone prefill by its tokens, and of a step by its rows, each a
    list of (tokens behind all rows together, seconds)."""

    prefill_s: dict[int, float]
    step_s: dict[int, list[tuple[int, float]]]

    def prefill(self, tokens: int) -> float:
        return linear([(0, 0.0), *sorted(self.prefill_s.items())], tokens)

    def step(self, rows: int, behind: int) -> float:
        """Seconds of a step of any number of rows; beyond the measured ones, as of the most."""
        rows = min(rows, max(self.step_s))
        return linear([(b, linear(s, behind)) for b, s in sorted(self.step_s.items())], rows)

    def gain(self, rows: int) -> list[float]:
        """How many times one row's tokens a second ``rows`` make: shallow, deep."""
        pairs = zip(self.step_s[1], self.step_s[rows], strict=True)
        return [rows * one / many for (_, one), (_, many) in pairs]


def arrivals(count: int, least: int, most: int, over: float, seed: int = SEED) -> list[Arrival]:
    """``count`` requests in the order of their arrival within ``over`` seconds, the first at 0."""
    source = random.Random(seed)
    times = sorted(source.uniform(0, over) for _ in range(count))
    return [Arrival(at - times[0], source.randint(least, most)) for at in times]


def predicted_seconds(asked: Sequence[Arrival], new: int, single: Single) -> float:
    """Seconds until the last token where prompts are computed one by one, then all rows decode."""
    now, waiting = 0.0, list(asked)
    left: list[int] = []  # tokens that each row still writes
    behind: list[int] = []
    while waiting or left:
        if waiting and (waiting[0].at <= now or not left):
            first = waiting.pop(0)
            now = max(now, first.at) + single.prefill(first.prompt)
            left.append(new - 1)  # its first token came with the prompt
            behind.append(first.prompt)
        else:
            now += single.step(len(left), sum(behind))
            left = [n - 1 for n in left]
            behind = [n + 1 for n in behind]
        behind = [b for b, n in zip(behind, left, strict=True) if n > 0]
        left = [n for n in left if n > 0]
    return now


def prompt_ids(arrival: Arrival, vocab: int) -> list[int]:
    source = random.Random(arrival.prompt * 7919 + round(arrival.at * 1e6))
    return [source.randrange(vocab) for _ in range(arrival.prompt)]


class Server:
    """An engine with room for all sequences, kept, and for the steps measured on them."""

    def __init__(self, path: Any, threads: int, sequences: int, tokens: int):
        self._weights = open_model(path, progress=False)
        self.vocab, self.threads = self._weights.spec.vocab, threads
        context = tokens + _MEASURED_STEPS + 2
        rows = sequences + 2 * max(ROWS) + 2
        self._engine = Engine(
            self._weights.spec,
            self._weights.tensors,
            threads=threads,
            context=context,
            kv=KV,
            memory_budget=rows * kv_bytes(self._weights.spec, KV, context),
        )

    def request(self, ids: Sequence[int], new: int, retain: bool = False) -> Request:
        return Request(tokens=ids, max_new_tokens=new, min_new_tokens=new, retain=retain)

    def alone(self, ids: Sequence[int], new: int) -> Any:
        return self._engine.submit(self.request(ids, new)).result()

    def prefill_seconds(self, lengths: Sequence[int], rounds: int) -> dict[int, float]:
        """Medians; a first round warms up."""
        ids = [(7 + 13 * i) % self.vocab for i in range(max(lengths))]
        self.alone(ids, 2)
        return {
            n: statistics.median(self.alone(ids[:n], 1).stats["prefill_s"] for _ in range(rounds))
            for n in sorted(set(lengths))
        }

    def keep_shallow(self) -> list[Kept]:
        """As many short prompts as the most rows that are measured."""
        ids = [
            [(7 * row + 13 * i) % self.vocab for i in range(_SHALLOW)] for row in range(max(ROWS))
        ]
        handles = [self._engine.submit(self.request(one, 1, retain=True)) for one in ids]
        for handle in handles:
            handle.result()
        return [Kept(one, handle.retained) for one, handle in zip(ids, handles, strict=True)]

    def step_seconds(self, kept: Sequence[Kept], rows: int) -> tuple[int, float]:
        """One step of ``rows`` rows, each behind one of ``kept``, evenly chosen: tokens behind all
        rows halfway, and seconds. They begin in the same step: all wait for another prompt."""
        bases = [kept[(2 * i + 1) * len(kept) // (2 * rows)] for i in range(rows)]
        if rows > len(kept):
            bases = [kept[i % len(kept)] for i in range(rows)]
        blocker = self._engine.submit(self.request([5] * _BLOCKER, 1))
        while self._engine.stats()["running"] == 0 and not blocker.stream.ended:
            time.sleep(0.0005)
        handles = [
            self._engine.submit(
                self.request([*base.ids, (row + 1) % self.vocab], _MEASURED_STEPS + 1),
                base=base.retained,
            )
            for row, base in enumerate(bases)
        ]
        blocker.result()
        stats = [handle.result().stats for handle in handles]
        assert [s["cached_tokens"] for s in stats] == [len(base.ids) for base in bases]
        behind = sum(len(base.ids) for base in bases) + rows * _MEASURED_STEPS // 2
        return behind, max(s["decode_s"] for s in stats) / _MEASURED_STEPS

    def measure(self, served: Sequence[Served], rounds: int = 3) -> Single:
        """The single figures, medians; steps on short prompts and on what was served."""
        longest = max(one.arrival.prompt for one in served)
        prefill = self.prefill_seconds([min(n, longest) for n in (128, 512, longest)], rounds)
        order = sorted(served, key=lambda one: one.arrival.prompt)
        deep = [
            Kept(prompt_ids(one.arrival, self.vocab) + one.tokens[:-1], one.retained)
            for one in order
        ]
        shallow = self.keep_shallow()

        def steps(kept: list[Kept], rows: int) -> tuple[int, float]:
            found = [self.step_seconds(kept, rows) for _ in range(rounds)]
            return found[0][0], statistics.median(took for _, took in found)

        return Single(prefill, {rows: [steps(shallow, rows), steps(deep, rows)] for rows in ROWS})

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
            handle = self._engine.submit(self.request(ids, new, retain=True))
            one.retained = handle.retained
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
    """Time between two tokens of a sequence: begin, seconds, rows that decoded, the tokens behind
    them all, and whether another sequence prefilled meanwhile."""

    begin: float
    seconds: float
    rows: int
    behind: int
    prefilling: bool


def gaps(served: Sequence[Served]) -> list[Gap]:
    """Every gap of every sequence. One prefills from its arrival to its first token, and decodes
    from there to its last."""
    found = []
    for one in served:
        for begin, end in zip(one.times, one.times[1:], strict=False):
            if end > begin:
                decoding = [o for o in served if o.times[0] < end and begin < o.times[-1]]
                busy = any(o.arrival.at < end and begin < o.times[0] for o in served)
                behind = sum(o.behind(begin) for o in decoding)
                found.append(Gap(begin, end - begin, len(decoding), behind, busy))
    return found


def shares(values: Sequence[float]) -> dict[str, float]:
    """Percentiles (nearest rank) and the largest."""
    ordered = sorted(values)
    ranks = {f"p{p}": ordered[min(len(ordered) - 1, p * len(ordered) // 100)] for p in (50, 90, 99)}
    return {**ranks, "max": ordered[-1], "n": len(ordered)}


def summary(served: Sequence[Served], new: int, single: Single) -> dict[str, Any]:
    """The figures of a run, in seconds and tokens a second."""
    asked = [one.arrival for one in served]
    took = max(one.times[-1] for one in served)
    predicted = predicted_seconds(asked, new, single)
    every = gaps(served)
    made = sum(len(one.tokens) for one in served)

    def over_alone(prefilling: bool) -> dict[str, float] | None:
        chosen = [g for g in every if g.prefilling == prefilling]
        return shares([g.seconds - single.step(g.rows, g.behind) for g in chosen] or [0.0])

    return {
        "seconds": took,
        "predicted_seconds": predicted,
        "share_of_predicted": predicted / took,
        "output_tokens_per_s": made / took,
        "all_tokens_per_s": (made + sum(a.prompt for a in asked)) / took,
        "gain_of_rows": {rows: single.gain(rows) for rows in single.step_s},
        "first_token_s": spread([one.times[0] - one.arrival.at for one in served]),
        "gap_s": shares([gap.seconds for gap in every]),
        "added_by_prefill_s": over_alone(True),
        "added_without_prefill_s": over_alone(False),
    }


def show(report: dict[str, Any]) -> None:
    found, single = report["found"], report["single"]
    print("prefill in ms", {n: round(s * 1e3) for n, s in single["prefill_s"].items()})
    print("rows: step in ms shallow and deep, gain over one row")
    for rows, steps in single["step_s"].items():
        gain = found["gain_of_rows"][rows]
        print(f"{rows:4}", *(f"{s * 1e3:8.1f} ({g:.1f})" for (_, s), g in zip(steps, gain)))  # noqa: B905
    print(f"{found['seconds']:.1f} s, {found['predicted_seconds']:.1f} s predicted "
          f"({found['share_of_predicted']:.0%}); {found['output_tokens_per_s']:.1f} tokens/s "
          f"written, {found['all_tokens_per_s']:.1f} with prompts")  # fmt: skip
    print(f"first token after {found['first_token_s']['median']:.2f} s (median), "
          f"{found['first_token_s']['high']:.2f} at most")  # fmt: skip
    names = {"gap_s": "gap between tokens", "added_by_prefill_s": "added by prefill",
             "added_without_prefill_s": "the same where nobody prefills"}  # fmt: skip
    for name, words in names.items():
        found_ms = {k: round(v * 1e3) if k != "n" else v for k, v in found[name].items()}
        print(words, "in ms", found_ms)
    print(f"{report['checked']} sequences run alone again: the same tokens")


def check(server: Server, served: Sequence[Served], count: int, new: int) -> int:
    """Runs ``count`` of the sequences alone; ends the program where a token differs."""
    order = sorted(served, key=lambda one: one.arrival.prompt)
    inner = order[1:-1]
    random.Random(SEED).shuffle(inner)
    chosen = [order[0], order[-1], *inner][: min(count, len(order))]
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
    parser.add_argument("--over", type=float, default=30.0, help="seconds in which they arrive")
    parser.add_argument("--check", type=int, default=8, help="sequences run again alone")
    parser.add_argument("--rounds", type=int, default=3, help="of each single figure")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--save", metavar="NAME", help="write results/serving_SHAPE_NAME.json")
    args = parser.parse_args()
    least, most = args.prompts
    if not (args.sequences >= 1 and args.new >= 2 and _SHALLOW <= least <= most):
        parser.error(f"at least one sequence, two new tokens, prompts of {_SHALLOW} or more")
    path = models.build(SHAPES[args.shape], f"{args.format}.safetensors")
    server = Server(path, args.threads, args.sequences, max(most, _BLOCKER) + args.new)
    try:
        asked = arrivals(args.sequences, least, most, args.over)
        server.prefill_seconds([_BLOCKER], 1)  # warms up
        before = read_bandwidth(args.threads)
        served = server.serve(asked, args.new)
        single = server.measure(served, args.rounds)
        after = read_bandwidth(args.threads)
        checked = check(server, served, args.check, args.new)
    finally:
        server.close()
    report = {
        "shape": args.shape, "format": args.format, "kv": KV, "machine": machine(),
        "threads": args.threads, "new": args.new, "checked": checked, "seed": SEED,
        "bandwidth_before_and_after": [before, after],
        "arrivals": [[a.at, a.prompt] for a in asked],
        "single": asdict(single),
        "found": summary(served, args.new, single),
    }  # fmt: skip
    show(report)
    if args.save:
        save(f"serving_{args.shape}_{args.save}", report)


if __name__ == "__main__":
    main()
