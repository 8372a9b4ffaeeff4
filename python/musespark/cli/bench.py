"""``musespark bench``: speed of a model on this machine, and how much of the machine that is."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from musespark.cli import common
from musespark.cli.limits import Limits, Unmeasured
from musespark.cli.work import bytes_per_token, prefill_operations, step_operations
from musespark.errors import InvalidRequest
from musespark.machine import human_bytes

PREFILL, DECODE, BATCH = (512, 2048), 64, (1, 2, 4, 8, 16)
_STEPS = 32  # decoded by each row of a small batch
_BLOCKER = 64  # prompt tokens of the request behind which a batch gathers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    parser.add_argument(
        "-p", "--prefill", type=int, nargs="+", help="tokens of a prompt (default: 512 and 2048)"
    )
    parser.add_argument("-d", "--decode", type=int, help="tokens decoded in a round (default: 64)")
    parser.add_argument(
        "-b",
        "--batch",
        type=int,
        nargs="+",
        default=list(BATCH),
        help="sequences that decode at once (default: 1 2 4 8 16)",
    )
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument(
        "--no-limits",
        action="store_true",
        help="do not measure what the machine can do (that takes a C compiler and some seconds)",
    )
    parser.add_argument("--json", action="store_true")


def prefill_seconds(model: Any, tokens: int) -> float:
    """Seconds from admission to the first token of a prompt; its greedy choice is inside.

    Token ids are an arithmetic sequence over the vocabulary: speed does not depend on the text.
    """
    ids = [(7 + 13 * i) % model.info.vocab for i in range(tokens)]
    return model.generate(ids, max_new_tokens=1, temperature=0).timings.prefill_s


def step_seconds(model: Any, rows: int, steps: int) -> float:
    """Seconds of one step in which ``rows`` sequences decode, over ``steps`` of them from an empty
    context; the greedy choices are inside.

    The rows are submitted while another prompt is computed, so that all begin in the same step.
    """
    vocab = model.info.vocab
    blocker = [5 % vocab] * min(_BLOCKER, model.info.context - 1)
    prompts = [[(1 + 17 * row) % vocab] for row in range(rows)]
    count = steps + 1
    with model.generate(blocker, max_new_tokens=1, temperature=0, stream=True):
        results = model.generate_batch(
            prompts, max_new_tokens=count, min_new_tokens=count, temperature=0
        )
    return max(result.timings.decode_s for result in results) / steps


@dataclass(frozen=True)
class Roof:
    """What a model asks and the machine gives; ``limits`` None where that is not measured."""

    spec: Any
    token_bytes: int
    limits: Limits | None
    threads: int
    level: str
    peaks: dict[str, float]

    def bandwidth(self) -> float | None:
        return None if self.limits is None else self.limits.read_bandwidth(self.threads)

    @property
    def peak(self) -> float:
        return self.peaks.get(self.level, 0.0)

    def prefill_share(self, tokens: int, seconds: float) -> float | None:
        if not self.peak:
            return None
        return prefill_operations(self.spec, tokens) / self.peak / seconds

    def step_share(self, rows: int, seconds: float, bandwidth: float | None) -> float | None:
        """The least time that ``bandwidth`` and the peak allow, over the time it took."""
        if bandwidth is None:
            return None
        least = self.token_bytes / bandwidth
        if self.peak:
            least = max(least, step_operations(self.spec, rows) / self.peak)
        return least / seconds


def peak_level(isa: str, formats: dict[str, int], names: Sequence[str]) -> str:
    """Which peak the matrices of a model can reach: int8 of the level in use, f32 where most bytes
    are floats; "" where this was not measured."""
    plain = sum(size for form, size in formats.items() if form in ("f32", "bf16"))
    if 2 * plain <= sum(formats.values()):
        return isa if isa in names else ""
    return next((name for name in names if name.startswith("f32_")), "")


def roof_of(args: argparse.Namespace, info: Any, limits: Limits | None) -> Roof:
    """The roof of a loaded model, from its packed file."""
    from musespark.weights import open_model

    weights = open_model(args.model, quantize=args.quantize, mmproj=args.mmproj, progress=False)
    try:
        nbytes = {name: data.nbytes for name, (*_, data) in weights.tensors.items()}
        spec, size = weights.spec, bytes_per_token(weights.spec, nbytes)
    finally:
        weights.close()
    names = () if limits is None else limits.names
    level = peak_level(info.isa, info.weight_formats, names)
    peaks = {} if limits is None else limits.peaks(info.threads)
    return Roof(spec, size, limits, info.threads, level, peaks)


@dataclass
class Timed:
    """One round of one test: seconds, and bytes a second read right before and after it."""

    seconds: float
    bandwidth: float | None


def _rounds(rounds: int, run: Callable[[], float], roof: Roof, *, bound: bool) -> list[Timed]:
    """Timed rounds after one that warms up; ``bound``: the memory is read around each."""
    run()
    timed = []
    for _ in range(rounds):
        before = roof.bandwidth() if bound else None
        seconds = run()
        after = roof.bandwidth() if bound else None
        read = None if before is None or after is None else (before + after) / 2
        timed.append(Timed(seconds, read))
    return timed


def _row(test: str, unit: str, values: list[float], shares: list[float | None]) -> dict[str, Any]:
    known = [share for share in shares if share is not None]
    return {
        "test": test,
        "unit": unit,
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "share": statistics.median(known) if known else None,
    }


def measure(
    model: Any, prefill: list[int], decode: int, batch: list[int], rounds: int, roof: Roof
) -> Iterator[dict[str, Any]]:
    """Rows {test, unit, median, low, high, share, tokens, rows}. ``share``: of the operations or
    bytes a second that the machine can do, None where that is not known."""
    for count in prefill:
        timed = _rounds(rounds, lambda n=count: prefill_seconds(model, n), roof, bound=False)
        speeds = [count / t.seconds for t in timed]
        shares = [roof.prefill_share(count, t.seconds) for t in timed]
        yield _row(f"prefill {count}", "tokens/s", speeds, shares) | {"tokens": count, "rows": 1}
    timed = _rounds(rounds, lambda: step_seconds(model, 1, decode), roof, bound=True)
    speeds = [1 / t.seconds for t in timed]
    shares = [roof.step_share(1, t.seconds, t.bandwidth) for t in timed]
    yield _row(f"decode {decode}", "tokens/s", speeds, shares) | {"tokens": decode, "rows": 1}
    steps = min(_STEPS, decode)
    for rows in batch:
        timed = _rounds(rounds, lambda b=rows: step_seconds(model, b, steps), roof, bound=True)
        shares = [roof.step_share(rows, t.seconds, t.bandwidth) for t in timed]
        took = [t.seconds * 1e3 for t in timed]
        yield _row(f"step of {rows}", "ms", took, shares) | {"tokens": steps, "rows": rows}


def _sizes(args: argparse.Namespace, context: int) -> tuple[list[int], int]:
    """Prompt lengths and decoded tokens: the defaults are cut to the context, what was asked is
    not."""
    prefill = args.prefill or sorted({min(n, max(1, context - 1)) for n in PREFILL})
    decode = max(1, min(DECODE, context - 2)) if args.decode is None else args.decode
    longest = max([*(count + 1 for count in prefill), decode + 2])
    if longest > context:
        raise InvalidRequest(f"bench: {longest} tokens asked, the context is {context}")
    return prefill, decode


def _limits(args: argparse.Namespace, stack: contextlib.ExitStack) -> tuple[Limits | None, str]:
    """The probe, or why there is none."""
    if args.no_limits:
        return None, "the machine's limits were not asked for"
    try:
        return stack.enter_context(Limits()), ""
    except Unmeasured as error:
        return None, str(error)


def run(args: argparse.Namespace) -> int:
    asked = [args.rounds, *(args.prefill or ()), *args.batch]
    if min([*asked, 1 if args.decode is None else args.decode]) < 1:
        raise InvalidRequest("bench: --rounds, --decode, --prefill and --batch must be at least 1")
    with contextlib.ExitStack() as stack:
        start = time.perf_counter()
        model = stack.enter_context(common.load_model(args, "generate", prefix_cache=False))
        load_s = time.perf_counter() - start
        prefill_seconds(model, 1)
        first_s = time.perf_counter() - start
        info = model.info
        prefill, decode = _sizes(args, info.context)
        limits, note = _limits(args, stack)
        roof = roof_of(args, info, limits)
        rows = list(measure(model, prefill, decode, args.batch, args.rounds, roof))
        read = roof.bandwidth()
    report = {
        "source": info.source,
        "parameters": info.parameters,
        "weight_formats": info.weight_formats,
        "bytes_per_token": roof.token_bytes,
        "isa": info.isa,
        "threads": info.threads,
        "kv": info.kv,
        "huge_pages": args.huge_pages,
        "load_s": load_s,
        "first_token_s": first_s,
        "peak_bytes": common.peak_memory_bytes(),
        "limits": {"read_bandwidth": read, "peaks": roof.peaks, "level": roof.level, "note": note},
        "rounds": args.rounds,
        "rows": rows,
    }
    common.show_json(report) if args.json else _show(report)
    return 0


def _show(report: dict[str, Any]) -> None:
    formats = ", ".join(f"{name} {human_bytes(n)}" for name, n in report["weight_formats"].items())
    size = f"{report['parameters'] / 1e6:.1f} M parameters"
    common.show(f"{report['source']}: {size} ({formats}), kv {report['kv']}")
    loaded = f"loaded in {report['load_s']:.2f} s, first token after {report['first_token_s']:.2f}"
    common.show(f"{report['isa']}, {report['threads']} threads; {loaded} s")
    limits = report["limits"]
    if limits["read_bandwidth"] is None:
        common.show(f"no shares: {limits['note']}")
    else:
        peak = limits["peaks"].get(limits["level"], 0.0) / 1e9
        common.show(
            f"the machine reads {limits['read_bandwidth'] / 1e9:.1f} GB/s and computes "
            f"{peak:,.0f} Gop/s ({limits['level'] or 'no level measured'}); a token needs "
            f"{human_bytes(report['bytes_per_token'])}"
        )
    common.show(f"{'test':<14}{'median':>9}  {'':<9}{'share':>6}   spread of {report['rounds']}")
    for row in report["rows"]:
        share = "" if row["share"] is None else f"{row['share']:.0%}"
        digits = 2 if row["unit"] == "ms" else 1
        common.show(
            f"{row['test']:<14}{row['median']:>9.{digits}f}  {row['unit']:<9}{share:>6}   "
            f"{row['low']:.{digits}f} .. {row['high']:.{digits}f}"
        )
    if any((row["share"] or 0) > 1 for row in report["rows"]):
        common.show("shares above 100%: the weights stay in the processor's caches")
    common.show(f"peak memory {human_bytes(report['peak_bytes'])}")
