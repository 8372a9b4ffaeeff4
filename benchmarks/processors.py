"""Our image processors beside transformers', on real images and long ones.

    python benchmarks/processors.py FOLDER [--save]

Needs transformers >= 5.23, torch, torchvision and Pillow >= 13. For each family, configured as a
known model is, and each image of FOLDER and some made ones of extreme aspect: whether grids, token
count and text are the same, and by how many levels of 256 the pixel values differ at most and on
how large a share of values by more than one.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import common
import numpy as np
import PIL
from PIL import Image

from musespark.errors import InvalidRequest
from musespark.vision import Picture, open_picture
from musespark.vision.processors import processor_for

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "golden"))
import processor_cases as cases

MADE = [(30, 3000), (3000, 30), (1, 1), (7, 1200), (2000, 1999), (196, 1)]


def pictures(folder: Path) -> dict[str, Picture]:
    found = {f"{h} x {w}": open_picture(cases.scene(h, w)) for h, w in MADE}
    for path in sorted(folder.iterdir()):
        if path.suffix in {".png", ".jpg", ".jpeg", ".bmp"}:
            found[path.name] = open_picture(path)
    return found


def compare(case: cases.Case, picture: Picture) -> dict:
    config = {"model_type": case.model_type, **case.config}
    processor = processor_for(config, case.preprocessor, case.processor)
    try:
        theirs = cases.expected(case, Image.fromarray(picture.pixels))
    except ValueError as error:
        try:
            processor.process([picture])
        except InvalidRequest:
            return {"refused by both": str(error)[:100]}
        raise
    (got,) = processor.process([picture])
    same = list(got.grids) == [tuple(grid) for grid in theirs.grids] and got.text == theirs.text
    assert same, (case.model_type, picture.size, got.grids, theirs.grids)
    # A level is what one step of a byte becomes, different for each channel.
    step = float(np.diff(processor.levels.table, axis=1).max())
    off = np.abs(got.patches - theirs.patches) / step
    return {
        "tokens": got.tokens,
        "levels": round(float(off.max()), 3),
        "beyond one": float((off > 1.001).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    import transformers

    report = {
        "machine": common.machine(),
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
        "families": {},
    }
    for name, case in cases.REAL.items():
        rows = report["families"][name] = {}
        for label, picture in pictures(options.folder).items():
            rows[label] = compare(case, picture)
        worst = max(row.get("levels", 0) for row in rows.values())
        share = max(row.get("beyond one", 0) for row in rows.values())
        print(f"{name:14} {len(rows)} images, at most {worst} levels, {share:.5f} beyond one")
    if options.save:
        common.save("processors", report)


if __name__ == "__main__":
    main()
