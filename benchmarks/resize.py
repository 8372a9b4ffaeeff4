"""Resizing a photograph of 12 megapixels, one thread, beside Pillow.

    python benchmarks/resize.py [--rounds 15] [--save]

4032 x 3024 to 1024 x 1024 and others, RGB, each filter; arrays in and out on our side, their own
images on theirs, so that neither pays for a conversion. Every result must equal Pillow's, or
the run stops. Rounds alternate; the figures are medians.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import common
import numpy as np
import PIL
from PIL import Image

from musespark import _core
from musespark.vision.resampling import FILTERS

SIZES = {
    "4032x3024 to 1024x1024": ((3024, 4032), (1024, 1024)),
    "4032x3024 to 336x448": ((3024, 4032), (336, 448)),
    "1280x720 to 896x896": ((720, 1280), (896, 896)),
    "512x512 to 2048x2048": ((512, 512), (2048, 2048)),
}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(source: tuple[int, int], size: tuple[int, int], name: str, rounds: int) -> dict:
    image = np.random.default_rng(0).integers(0, 256, (*source, 3), dtype=np.uint8)
    theirs = Image.fromarray(image)
    levels = [level for level in _core.testing.kernel_levels() if level not in ("amx", "avxvnni")]

    def ours(level: str) -> np.ndarray:
        return _core.resize(image, height=size[0], width=size[1], resample=name, isa=level)

    def pillow() -> Image.Image:
        return theirs.resize((size[1], size[0]), FILTERS.index(name))

    want = np.asarray(pillow())
    for level in levels:
        assert np.array_equal(ours(level), want), (name, level)
    times: dict[str, list[float]] = {name: [] for name in ("pillow", *levels)}
    for _ in range(rounds):
        times["pillow"].append(seconds(pillow))
        for level in levels:
            times[level].append(seconds(lambda level=level: ours(level)))
    medians = {who: float(np.median(taken)) * 1e3 for who, taken in times.items()}
    return {
        "ms": {who: round(value, 2) for who, value in medians.items()},
        "times_pillow": round(medians["pillow"] / medians[levels[0]], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--filters", nargs="*", default=["bicubic", "lanczos", "bilinear"])
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    report = {"machine": common.machine(), "pillow": PIL.__version__, "threads": 1, "sizes": {}}
    for label, (source, size) in SIZES.items():
        rows = report["sizes"][label] = {}
        for name in options.filters:
            rows[name] = compare(source, size, name, options.rounds)
            print(f"{label:24} {name:9} {rows[name]}")
    if options.save:
        common.save("resize", report)


if __name__ == "__main__":
    main()
