"""Speed beside other engines on this machine, in one run: prefill, decode and small batches.

    python benchmarks/peers.py [--shape llama-3.2-1b] [--formats q4 q8] [--engines musespark …]
                               [--rounds 5] [--threads N] [--level avx2] [--quick]

Every engine loads a random model of the shape (models.py) in a process and an environment of its
own (environments.py), both made under build/bench when they are missing: 10 GB and half an hour for
the first shape. Rounds go through the engines in turn; whose turn it is not is stopped. Read
bandwidth is measured right before and after every decode timing; the dot peak is the best of
readings at the beginning and after each format. A timing around which bandwidth moved by more than
5% is repeated, and does not count where others do; ratios are of timings in the same round at the
same bandwidth (within 10%). Where the models do not fit into memory together, engines are measured
one after the other, and the report says so. What cannot be installed, built or run is named with
the reason.

Times of musespark, OpenVINO, ONNX Runtime and mistral.rs hold the greedy choice of each token,
llama.cpp's hold no sampling. Shares: prefill, operations of the linear layers and of causal
attention by the int8 dot peak of vector registers (and of AMX); decode, bytes of weights by the
bandwidth; "of limit", what bandwidth and peak allow by the time it took.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import models
from common import machine, save
from engines import Engine, Worker, WorkerFailed, engines
from environments import LLAMA_LEVELS, EnvironmentFailed
from report import OURS, Row, Sample, Task, Work, loads_table, row, task_table
from shapes import SHAPES, Shape

from musespark.cli.limits import Limits, vector_peak
from musespark.cli.work import prefill_operations, step_operations
from musespark.engine import default_threads
from musespark.machine import available_memory

RETRIES = 2
CONTEXT = 4096
_RESIDENT = 2.5  # of a model's bytes that an engine may hold


def tasks(args: argparse.Namespace) -> list[Task]:
    found = [Task(f"prefill {n}", tokens=n) for n in args.prefill]
    found.append(Task(f"decode {args.decode}", steps=args.decode))
    steps = min(32, args.decode)
    return found + [Task(f"step of {b}", rows=b, steps=steps) for b in args.batch if b > 1]


class Run:
    """The samples of one format: engines started, asked in turn, ended."""

    def __init__(self, limits: Limits, threads: int, asked: Sequence[Task], rounds: int):
        self._limits, self._threads, self._rounds = limits, threads, rounds
        self._tasks = asked
        self.samples: list[Sample] = []
        self.infos: dict[str, dict[str, Any]] = {}
        self.reasons: dict[str, str] = {}  # engine, or engine and task -> why there is no figure
        self.interleaved = True

    def start(self, engine: Engine, shape: Shape, form: str) -> Worker | None:
        print(f"loading {engine.name} {form}", file=sys.stderr)
        try:
            worker = engine.start(shape, form, self._threads, CONTEXT)
        except (EnvironmentFailed, models.NotBuilt, WorkerFailed) as error:
            self.reasons[engine.name] = str(error)
            return None
        self.infos[engine.name] = worker.info
        worker.pause()
        return worker

    def measure(self, chosen: Sequence[Engine], shape: Shape, form: str) -> None:
        """All rounds of all engines, together where memory allows."""
        self.interleaved = _fit_together(chosen, shape, form)
        groups = [list(chosen)] if self.interleaved else [[engine] for engine in chosen]
        for group in groups:
            workers: dict[str, Worker] = {}
            try:
                for engine in group:
                    worker = self.start(engine, shape, form)
                    if worker is not None:
                        workers[engine.name] = worker
                self._measure_group(workers)
            finally:
                for worker in workers.values():
                    worker.close()

    def _measure_group(self, workers: dict[str, Worker]) -> None:
        for number in range(-1, self._rounds):  # round -1 warms up
            print(f"round {number + 1} of {self._rounds}", file=sys.stderr)
            for name, worker in _turned(workers, number):
                try:
                    worker.resume()
                    self._one_turn(name, worker, number)
                    worker.pause()
                except WorkerFailed as error:
                    self.reasons[name] = str(error)
                    del workers[name]
        for name, worker in workers.items():
            worker.resume()
            self.infos[name] |= worker.ask({"test": "memory"})

    def _one_turn(self, name: str, worker: Worker, number: int) -> None:
        for task in self._tasks:
            key = f"{name}, {task.name}"
            if key in self.reasons:
                continue
            for _ in range(1 if number < 0 else 1 + RETRIES):
                answer, bandwidth = self._timed(worker, task, number >= 0)
                if "error" in answer:
                    self.reasons[key] = answer["error"]
                    break
                if number < 0:
                    break
                sample = Sample(name, task.name, number, answer["seconds"], bandwidth)
                self.samples.append(sample)
                if sample.steady:
                    break

    def _timed(
        self, worker: Worker, task: Task, counts: bool
    ) -> tuple[dict[str, Any], tuple[float, float] | None]:
        if not counts:
            return worker.ask(task.warm_up.question), None
        if not task.bound_by_memory:
            return worker.ask(task.question), None
        before = self._limits.read_bandwidth(self._threads)
        answer = worker.ask(task.question)
        return answer, (before, self._limits.read_bandwidth(self._threads))


def _turned(workers: Mapping[str, Worker], number: int) -> list[tuple[str, Worker]]:
    """The engines, beginning with another one each round."""
    order = list(workers.items())
    first = number % len(order) if order else 0
    return order[first:] + order[:first]


def _fit_together(chosen: Sequence[Engine], shape: Shape, form: str) -> bool:
    """Whether all engines may be expected to hold their models at once."""
    whats = [engine.models[form][0] for engine in chosen if form in engine.models]
    size = models.weight_bytes(shape, whats[0], models.build(shape, whats[0]))
    return _RESIDENT * size * len(whats) < available_memory()


def work_of(
    shape: Shape, asked: Sequence[Task], infos: Mapping[str, Mapping[str, Any]], peaks: Any
) -> Work:
    spec = models.spec_of(shape)
    operations = {
        t.name: float(prefill_operations(spec, t.tokens) if t.tokens
                      else step_operations(spec, t.rows))
        for t in asked
    }  # fmt: skip
    token_bytes = {name: info["model_bytes"] for name, info in infos.items()}
    return Work(operations, token_bytes, vector_peak(peaks), peaks.get("amx", 0.0))


def show(form: str, run: Run, rows: Sequence[Row], asked: Sequence[Task]) -> None:
    together = "in turn" if run.interleaved else "one after the other: they do not fit together"
    print(f"\n{form}, engines {together}\n")
    loaded = {name: info for name, info in run.infos.items() if "peak_bytes" in info}
    if loaded:
        print(loads_table(loaded))
    for task in asked:
        own = [r for r in rows if r.test == task.name]
        if own:
            print("\n" + task_table(task, own))
    if run.reasons:
        print()
    for name, reason in run.reasons.items():
        print(f"{name}: not measured: {reason}")


def one_format(
    args: argparse.Namespace, shape: Shape, form: str, limits: Limits, peaks: dict[str, float]
) -> dict[str, Any]:
    found = engines(args.level)
    unknown = [name for name in args.engines if name not in found]
    asked = tasks(args)
    run = Run(limits, args.threads, asked, args.rounds)
    for name in unknown:
        run.reasons[name] = "cannot be held to an instruction set"
    run.measure([found[name] for name in args.engines if name in found], shape, form)
    for name, peak in limits.peaks(args.threads).items():
        peaks[name] = max(peaks[name], peak)
    work = work_of(shape, asked, run.infos, peaks)
    rows = [r for task in asked for name in run.infos if (r := row(task, name, run.samples, work))]
    show(form, run, rows, asked)
    return {
        "format": form,
        "interleaved": run.interleaved,
        "engines": run.infos,
        "operations": work.operations,
        "rows": [dataclasses.asdict(r) for r in rows],
        "not_measured": run.reasons,
        "samples": [dataclasses.asdict(s) for s in run.samples],
    }


def machine_name(processor: str) -> str:
    """A processor's name as a part of a file name."""
    words = re.sub(r"\((r|tm)\)", " ", processor.lower())
    kept = [w for w in re.findall(r"[a-z0-9]+", words) if w not in ("processor", "cpu", "core")]
    return "-".join(kept) or "unknown"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.2-1b")
    parser.add_argument("--formats", nargs="+", choices=["q4", "q8"])
    parser.add_argument("--engines", nargs="+", choices=list(engines()), default=list(engines()))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--prefill", type=int, nargs="*", default=[512, 2048])
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--batch", type=int, nargs="*", default=[2, 4, 8, 16])
    parser.add_argument("--level", choices=LLAMA_LEVELS, help="ours and llama.cpp, held to this")
    parser.add_argument("--quick", action="store_true", help="one small round, nothing is saved")
    parser.add_argument("--machine", help="the machine's name in the file of results")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.prefill, args.decode, args.batch = 1, [64], 8, [2]
    if min([args.rounds, args.threads, args.decode, *args.prefill, *args.batch]) < 1:
        parser.error("every number must be at least 1")
    if OURS not in args.engines:
        print("without musespark there are no ratios", file=sys.stderr)
    return args


def main() -> None:
    args = parsed()
    shape, about = SHAPES[args.shape], machine()
    with Limits() as limits:
        peaks = limits.peaks(args.threads)
        bandwidth = [limits.read_bandwidth(args.threads)]
        forms = [f for f in args.formats or shape.formats if f in shape.formats]
        found = [one_format(args, shape, form, limits, peaks) for form in forms]
        bandwidth.append(limits.read_bandwidth(args.threads))
    print(f"\n{about['processor']}, {args.threads} threads: reads {bandwidth[0] / 1e9:.1f} GB/s "
          f"before and {bandwidth[1] / 1e9:.1f} after; " + ", ".join(
              f"{name} {peak / 1e9:,.0f} Gop/s" for name, peak in peaks.items()))  # fmt: skip
    if args.quick:
        return
    level = f"_{args.level}" if args.level else ""
    name = f"peers_{shape.name}_{args.machine or machine_name(about['processor'])}{level}"
    save(
        name,
        {
            "shape": shape.name,
            "config": shape.config,
            "machine": about,
            "threads": args.threads,
            "level": args.level,
            "limits": {"read_bandwidth": bandwidth, "peaks": peaks},
            "formats": found,
        },
    )


if __name__ == "__main__":
    main()
