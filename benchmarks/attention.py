"""Attention kernels of every level, one thread: decode in bytes read, prefill in operations.

    python benchmarks/attention.py [--rounds 9] [--save]

Decode: one position of four query heads over 8192 positions for each of many KV heads, 256 MB of
pages, so that they come from memory. Prefill: 64 positions of four heads over 2048 positions of one
KV head, 4 operations (two multiply-adds) for each query row, position and channel. Shares: of the
read bandwidth of one thread (decode, sealed pages: of the smaller of that and 60% of the dot peak
over the operations a byte), of the dot peak and of a quarter of it (f32: a multiply-add instruction
does a quarter of the products of a dot instruction on the same ports).
Before anything is timed each level is checked against scalar, bit for bit.
"""

from __future__ import annotations

import argparse

import common
import numpy as np

from musespark._core import testing

GROUP = 4
DIMS = (64, 128)
FORMATS = ("f32", "kv8", "kv8v4", "kv4")
MEGABYTES = 256


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


def measure(isa: str, form: str, dim: int, rounds: int) -> dict[str, dict[str, float]]:
    """Bytes a second of decode and operations a second of prefill."""
    page = testing.sealed_page_bytes(form, dim) or testing.open_page_bytes(form, dim)
    chunks = 16
    heads = max(1, MEGABYTES * 2**20 // (chunks * 8 * page))
    if isa == "scalar":
        heads = 1
    decode = [
        heads
        * chunks
        * 8
        * page
        / testing.attend_seconds(isa, form, dim, GROUP, GROUP, chunks, heads, 1)
        for _ in range(rounds if isa != "scalar" else 1)
    ]
    rows, deep = (64 * GROUP, 4) if isa != "scalar" else (GROUP, 1)
    prefill = [
        4 * rows * deep * 512 * dim
        / testing.attend_seconds(isa, form, dim, GROUP, rows, deep, 1, 3 if isa != "scalar" else 1)
        for _ in range(rounds if isa != "scalar" else 1)
    ]  # fmt: skip
    return {"decode_bytes": common.spread(decode), "prefill_operations": common.spread(prefill)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--save", action="store_true", help="write results/attention.json")
    options = parser.parse_args()
    before = common.read_bandwidth(1), common.dot_peak(1)
    print(f"one thread reads {before[0] / 1e9:.1f} GB/s, dot peak {before[1] / 1e9:.0f} Gop/s")
    print(f"{'level':11} {'format':6} {'D':>4}  {'decode GB/s':>18}  {'prefill Gop/s':>20}")
    results = []
    for isa in testing.kernel_levels():
        for form in FORMATS:
            for dim in DIMS:
                check(isa, form, dim)
                row = measure(isa, form, dim, options.rounds)
                decode, prefill = row["decode_bytes"], row["prefill_operations"]
                peak = before[1] / (4 if form == "f32" else 1)
                page = testing.sealed_page_bytes(form, dim)
                operations = 4 * GROUP * 64 * dim / page if page else 0
                limit = min(before[0], 0.6 * peak / operations) if page else before[0]
                print(
                    f"{isa:11} {form:6} {dim:4}  {decode['median'] / 1e9:9.2f} "
                    f"({decode['median'] / limit:4.0%})  {prefill['median'] / 1e9:11.1f} "
                    f"({prefill['median'] / peak:4.0%})"
                )
                results.append({"level": isa, "format": form, "dim": dim, **row})
        for form in FORMATS[1:]:
            times = [testing.seal_seconds(isa, form, 128, 20) for _ in range(options.rounds)]
            seal = common.spread(times)
            print(f"{isa:11} {form:6} sealing a page, D = 128: {seal['median'] * 1e6:.1f} us")
            results.append({"level": isa, "format": form, "seal_seconds": seal})
    after = common.read_bandwidth(1), common.dot_peak(1)
    print(f"afterwards {after[0] / 1e9:.1f} GB/s, {after[1] / 1e9:.0f} Gop/s")
    if options.save:
        limits = {"read_bytes": [before[0], after[0]], "dot_operations": [before[1], after[1]]}
        common.save(
            "attention", {"machine": common.machine(), "limits": limits, "results": results}
        )


if __name__ == "__main__":
    main()
