"""What this machine can do at most: read bandwidth, int8 dot peak and f32 peak by instruction set.

    python benchmarks/limits.py [--threads N] [--rounds 5] [--save]

Each for one thread and for all, median [lowest..highest] of the rounds. Bandwidth is the best of
seven passes over 1 GiB with the streams and the prefetch distance that suit the machine; peaks run
from registers (python/musespark/cli/limits.c).
"""

from __future__ import annotations

import argparse

from common import machine, save
from report import aligned, between, spread

from musespark.cli.limits import Limits
from musespark.engine import default_threads


def measure(limits: Limits, threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """Name -> spread, in bytes or operations a second."""
    found: dict[str, list[float]] = {"read": []} | {name: [] for name in limits.names}
    for _ in range(rounds):
        found["read"].append(limits.read_bandwidth(threads))
        for name, peak in limits.peaks(threads).items():
            found[name].append(peak)
    return {name: spread(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/limits.json")
    args = parser.parse_args()
    if min(args.threads, args.rounds) < 1:
        parser.error("every number must be at least 1")
    counts = sorted({1, args.threads})
    with Limits() as limits:
        found = {count: measure(limits, count, args.rounds) for count in counts}
        settings = {count: limits.setting(count) for count in counts}
    rows = [["", *(cell for count in counts for cell in (f"{count} threads", ""))]]
    for name in found[1]:
        unit = "GB/s" if name == "read" else "Gop/s"
        cells = [f"{name} {unit}"]
        for count in counts:
            one = {key: value / 1e9 for key, value in found[count][name].items()}
            cells += [f"{one['median']:,.1f}", between(one, 1)]
        rows.append(cells)
    print(aligned(rows))
    for count, setting in settings.items():
        print(f"{count} threads read {setting['streams']} streams each, {setting['ahead']} bytes "
              "of prefetch")  # fmt: skip
    if args.save:
        save("limits", {"machine": machine(), "settings": settings, "limits": found})


if __name__ == "__main__":
    main()
