"""Attention kernels of every level: decode in bytes read, prefill in operations.

    python benchmarks/attention.py [--rounds 9] [--threads 2] [--levels amx avx2] [--save]

Decode, on all threads: one position of four query heads over 8192 positions for each of many KV
heads, 512 MB of pages laid out as the pool does (in huge pages where the system has them), each
thread with heads of its own. Prefill, on one thread: 64 positions of four heads over 2048 positions
of one KV head, 4 operations (two multiply-adds) for each query row, position and channel.
Shares: of the read bandwidth of these threads (decode of sealed pages: of the smaller of that,
"bytes", and 60% of the dot peak over the operations a byte, "dots"); of the dot peak, and of a
quarter of it for f32: a multiply-add instruction does a quarter of the products of a dot
instruction on the same ports. Limits are measured before and after, the larger counts; the peak is
that of the widest dot instruction but AMX, which may exceed it.
Before anything is timed each level is checked against scalar, bit for bit.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor

import common
import numpy as np

from musespark._core import testing

GROUP = 4
DIMS = (64, 128)
FORMATS = ("f32", "kv8", "kv8v4", "kv4")
MEGABYTES = 512


def check(isa: str, form: str, dim: int) -> None:
    """One chunk of 70 rows over random pages gives scalar's bits."""
    rng = np.random.default_rng(dim)
    pages, sealed = [], []
    for _ in range(8):
        page = np.zeros(testing.open_page_bytes(form, dim), np.uint8)
        for slot in range(64):
            k, v = rng.standard_normal((2, dim)).astype(np.float32)
            testing.write_token("scalar", form, slot, k, v, page)
        pages.append(page)
        sealed.append(None if form == "f32" else testing.seal_page("scalar", form, dim, page))
    q = (rng.standard_normal((70, dim)) / np.sqrt(dim)).astype(np.float32)
    pos = np.arange(442, 512, dtype=np.int64)
    lo = np.zeros_like(pos)
    parts = [
        testing.attend_chunk(level, form, q, pos, lo, pos, 0, pages, sealed, 0.0, dim)
        for level in ("scalar", isa)
    ]
    for expected, actual in zip(*parts, strict=True):
        if expected.tobytes() != actual.tobytes():
            raise SystemExit(f"{isa} {form} D={dim} differs from scalar: nothing was timed")


def decode_bytes(isa: str, form: str, dim: int, threads: int) -> float:
    """Bytes a second, of all threads together."""
    page = testing.sealed_page_bytes(form, dim) or testing.open_page_bytes(form, dim)
    chunks = 16
    heads = max(1, MEGABYTES * 2**20 // (chunks * 8 * page) // threads) if isa != "scalar" else 1
    bytes_read = heads * chunks * 8 * page

    def one(_: int) -> float:
        return bytes_read / testing.attend_seconds(
            isa, form, dim, GROUP, GROUP, chunks, heads, 2 if isa != "scalar" else 1
        )

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(one, range(threads)))


def prefill_operations(isa: str, form: str, dim: int) -> float:
    """Operations a second of one thread."""
    rows, deep = (64 * GROUP, 4) if isa != "scalar" else (GROUP, 1)
    seconds = testing.attend_seconds(isa, form, dim, GROUP, rows, deep, 1, 9 if deep > 1 else 1)
    return 4 * rows * deep * 512 * dim / seconds


def bound(form: str, dim: int, read: float, peak: float) -> tuple[float, str]:
    """Bytes a second that decode can reach at most, and what sets it."""
    page = testing.sealed_page_bytes(form, dim)
    dots = 0.6 * peak * page / (4 * GROUP * 64 * dim) if page else read
    return (dots, "dots") if dots < read else (read, "bytes")


def report(rows: list[dict], read: float, peak: float, peaks: float) -> None:
    """peak: of one thread; peaks: of those that decode."""
    print(f"{'level':11} {'format':6} {'D':>4}  {'decode GB/s':>21}  {'prefill Gop/s':>20}")
    for row in rows:
        if "seal_seconds" in row:
            micros = row["seal_seconds"]["median"] * 1e6
            print(f"{row['level']:11} {row['format']:6} sealing a page, D = 128: {micros:.1f} us")
            continue
        decode, prefill = row["decode_bytes"]["median"], row["prefill_operations"]["median"]
        limit, what = bound(row["format"], row["dim"], read, peaks)
        row["decode_bound"] = what
        row["decode_share"] = decode / limit
        row["prefill_share"] = prefill / (peak / (4 if row["format"] == "f32" else 1))
        print(
            f"{row['level']:11} {row['format']:6} {row['dim']:4}  {decode / 1e9:9.2f} "
            f"({row['decode_share']:4.0%} {what:5})  {prefill / 1e9:11.1f} "
            f"({row['prefill_share']:4.0%})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2, help="that decode at once")
    parser.add_argument("--levels", nargs="+", default=list(testing.kernel_levels()))
    parser.add_argument("--save", action="store_true", help="write results/attention.json")
    options = parser.parse_args()
    threads = options.threads

    def limits() -> list[float]:
        return [common.read_bandwidth(threads), common.dot_peak(1), common.dot_peak(threads)]

    before = limits()
    results = []
    for isa in options.levels:
        rounds = options.rounds if isa != "scalar" else 1
        for form in FORMATS:
            for dim in DIMS:
                check(isa, form, dim)
                decode = [decode_bytes(isa, form, dim, threads) for _ in range(rounds)]
                prefill = [prefill_operations(isa, form, dim) for _ in range(rounds)]
                row = {"level": isa, "format": form, "dim": dim}
                row["decode_bytes"] = common.spread(decode)
                row["prefill_operations"] = common.spread(prefill)
                results.append(row)
        for form in FORMATS[1:]:
            times = [testing.seal_seconds(isa, form, 128, 20) for _ in range(rounds)]
            seal = common.spread(times)
            results.append({"level": isa, "format": form, "seal_seconds": seal})
    after = limits()
    read, peak, peaks = (max(pair) for pair in zip(before, after, strict=True))
    print(f"{threads} threads read {before[0] / 1e9:.1f}, afterwards {after[0] / 1e9:.1f} GB/s")
    print(f"dot peak of one {before[1] / 1e9:.0f}, afterwards {after[1] / 1e9:.0f} Gop/s")
    report(results, read, peak, peaks)
    if options.save:
        found = {"threads": threads, "read_bytes": [before[0], after[0]]}
        found |= {"dot_operations": [before[1], after[1]]}
        common.save("attention", {"machine": common.machine(), "limits": found, "results": results})


if __name__ == "__main__":
    main()
