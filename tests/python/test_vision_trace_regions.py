"""Texts to regions: every convention, views of every kind, and texts made to break the scan."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from musespark.errors import InvalidRequest
from musespark.vision.conventions import CONVENTIONS
from musespark.vision.geometry import Transform
from musespark.vision.pixels import open_picture
from musespark.vision.regions import MAX_REGIONS, View, find_regions

WIDE = View((480, 1920), original=(480, 1920))  # (height, width)
# Given to the model at 1288 x 336.
RESIZED = View((336, 1288), Transform.resized((480, 1920), (336, 1288)), (480, 1920))
# The third tile of 512 x 512, of the image at 2048 x 512.
TILE = View(
    (512, 512),
    Transform.resized((480, 1920), (512, 2048)) @ Transform.shift(1024, 0),
    (480, 1920),
)
# (40, 30) in a crop at (700, 100), shown at twice its size: 300 x 200.
CROP_OF_CROP = View(
    (200, 300),
    Transform.shift(700, 100) @ Transform.shift(40, 30) @ Transform.scale(0.5, 0.5),
    (480, 1920),
)
# Turned a quarter to the right: shown 480 wide, 1920 high.
TURNED = View((1920, 480), Transform(a=0, b=1, d=-1, e=0, f=480), (480, 1920))
PADDED = View((1920, 1920), Transform.shift(0, -720), (480, 1920))

TOLD = (
    '[{"label": "tray (350,450). So [1,2,3,4]", "bbox_2d": [10, 20, 30, 40]}, '
    '{"point_2d": [50, 60], "bbox_2d": [1, 2, 3, 4], "label": "at (7,8)"}] and (9,10)'
)
JSON_LIST = (
    '```json\n[\n\t{"bbox_2d": [64, 34, 644, 168], "label": "a \\"red\\" car"},\n'
    '\t{"label": "wheel", "point_2d": [322, 252]}\n]\n```'
)

TABLE = [
    # convention, view, text, [(kind, points, label, flags)]
    ("muse", WIDE, "Bar A [100,250,200,500]: 4.", [("box", (192, 120, 384, 240), "", "")]),
    ("muse", WIDE, "square at (500,500): red", [("point", (960, 240), "", "")]),
    ("muse", CROP_OF_CROP, "[0,0,1000,1000]", [("box", (740, 130, 890, 230), "", "")]),
    ("muse", CROP_OF_CROP, "(500, 250)", [("point", (815, 155), "", "")]),
    ("muse", TURNED, "[0,0,500,250]", [("box", (0, 240, 480, 480), "", "")]),
    ("muse", PADDED, "[0,375,1000,625]", [("box", (0, 0, 1920, 480), "", "")]),
    ("muse", PADDED, "[0,0,1000,500]", [("box", (0, 0, 1920, 240), "", "clipped")]),
    ("muse", PADDED, "(500, 100)", [("point", (960, -528), "", "off-image")]),
    (
        "qwen2.5-vl",
        RESIZED,
        JSON_LIST,
        [
            ("box", (64 * 1920 / 1288, 34 * 480 / 336, 960, 240), 'a "red" car', ""),
            ("point", (480, 360), "wheel", ""),
        ],
    ),
    ("qwen2.5-vl", TILE, '{"bbox_2d": [0, 0, 512, 512]}', [("box", (960, 0, 1440, 480), "", "")]),
    ("qwen3-vl", WIDE, "{'point_2d': [250.5, 1000]}", [("point", (480.96, 480), "", "")]),
    ("qwen3-vl", WIDE, "(3,4)", []),
    ("llava", WIDE, "at [0.1, 0.25, 0.2, 0.5].", [("box", (192, 120, 384, 240), "", "")]),
    ("none", WIDE, JSON_LIST, []),
    (
        "qwen2-vl",
        WIDE,
        "<|object_ref_start|>the dog<|object_ref_end|><|box_start|>(100,250),(200,500)<|box_end|>",
        [("box", (192, 120, 384, 240), "the dog", "")],
    ),
    ("qwen2-vl", WIDE, "the dog(100,250),(200,500)", []),  # part of a word: f(1,2) is no place
    ("qwen2-vl", WIDE, "the dog (100,250),(200,500)", [("box", (192, 120, 384, 240), "", "")]),
    (
        "qwen2-vl",
        WIDE,
        "<|quad_start|>(0,0),(500,0),(500,500),(0,1000)<|quad_end|>",
        [("polygon", (0, 0, 960, 0, 960, 240, 0, 480), "", "")],
    ),
    (
        "molmo",
        WIDE,
        '<point x="10.5" y="50" alt="the cat">cat</point>',
        [("point", (201.6, 240), "the cat", "")],
    ),
    (
        "molmo",
        WIDE,
        'Two: <points x1="10" y1="50.0" x2="110" y2="25">eyes</points>.',
        [("point", (192, 240), "eyes", ""), ("point", (2112, 120), "eyes", "off-image")],
    ),
    ("molmo", WIDE, '<points x1="10" y2="5">', [("point", (), "", "malformed")] * 2),
    (
        "paligemma",
        WIDE,
        "<loc0256><loc0128><loc0512><loc0256> cat ; <loc0000><loc0000><loc1023><loc1023> wall",
        [
            ("box", (240, 120, 480, 240), "cat", ""),
            ("box", (0, 0, 1920 * 1023 / 1024, 480 * 1023 / 1024), "wall", ""),
        ],
    ),
    (
        "paligemma",
        WIDE,
        "<loc0256><loc0128><loc0512><loc0256><loc0001> cat",
        [("box", (240, 120, 480, 240), "cat", ""), ("box", (), "cat", "malformed")],
    ),
    ("paligemma", WIDE, "<loc0000><loc0000><loc0512><loc2048>", [
        ("box", (0, 0, 1920, 240), "", "clipped")]),
    # What is wrong is flagged and kept.
    ("muse", WIDE, "[200,500,100,250]", [("box", (192, 120, 384, 240), "", "inverted")]),
    ("muse", WIDE, "[900,900,1100,1000]", [("box", (1728, 432, 1920, 480), "", "clipped")]),
    ("muse", WIDE, "[-100,0,100,1000]", [("box", (0, 0, 192, 480), "", "clipped")]),
    ("muse", WIDE, "[1200,0,1300,500]", [("box", (2304, 0, 2496, 240), "", "off-image")]),
    ("muse", WIDE, "[1000,0,1300,500]", [("box", (1920, 0, 2496, 240), "", "off-image")]),
    ("muse", WIDE, "[100,250,100,500]", [("box", (192, 120, 192, 240), "", "empty")]),
    (
        "muse",
        WIDE,
        "[1300,500,-100,0]",
        [("box", (0, 0, 1920, 240), "", "inverted clipped")],
    ),
    (
        "muse",
        WIDE,
        "[1,2,3,4] and [1,2,3,4]",
        [
            ("box", (1.92, 0.96, 5.76, 1.92), "", ""),
            ("box", (1.92, 0.96, 5.76, 1.92), "", "duplicate"),
        ],
    ),
    ("qwen3-vl", WIDE, '{"bbox_2d": [1, 2, 3], "label": "x"}', [("box", (), "x", "malformed")]),
    ("qwen3-vl", WIDE, '{"bbox_2d": [1, 2, 3, NaN]}', [("box", (), "", "malformed")]),
    ("qwen3-vl", WIDE, '[{"bbox_2d": [1, 2, 3', [("box", (), "", "malformed")]),
    # What is no place.
    ("muse", WIDE, "1,000 (1,000) f(2,3) [1,2,3] a[1,2,3,4]", []),
    ("molmo", WIDE, "<pointless x='1'> 3 < 4", []),
]  # fmt: skip


@pytest.mark.parametrize("case", TABLE, ids=lambda case: f"{case[0]}: {case[2][:40]}")
def test_texts_name_these_regions(case: tuple) -> None:
    convention, view, text, expected = case
    regions = find_regions(text, view, convention).regions
    assert [region.kind for region in regions] == [kind for kind, *_ in expected]
    for region, (_, numbers, label, flags) in zip(regions, expected, strict=True):
        flat = [c for point in region.points for c in point]
        assert flat == pytest.approx(numbers, abs=1e-9)
        assert region.label == label
        assert region.flags == tuple(flags.split())
        assert region.convention == convention
        assert region.raw == text[slice(*region.span)]


def test_coordinates_are_where_the_numbers_stand() -> None:
    text = f"See {JSON_LIST}"
    found = find_regions(text, RESIZED, "qwen2.5-vl")
    assert [text[a:b] for a, b in found.coordinates] == ["[64, 34, 644, 168]", "[322, 252]"]
    assert found.regions[0].raw.startswith('{"bbox_2d"')


def test_a_box_in_a_view_that_lies_askew_is_a_polygon() -> None:
    view = View((100, 100), Transform(0.6, -0.8, 50, 0.8, 0.6, 0), (200, 200))
    (region,) = find_regions("[0,0,500,500]", view, "muse").regions
    assert region.kind == "polygon"
    assert np.allclose(region.points, [(50, 0), (80, 40), (40, 70), (10, 30)])


@pytest.mark.parametrize("seed", range(20))
def test_inverse_transforms_are_exact_to_half_a_pixel(seed: int) -> None:
    """A box of the original, written as it is seen after random crops, turns and resizes, comes
    back: the only loss is that of the six digits written."""
    draw = random.Random(seed)
    original = (draw.randrange(200, 3000), draw.randrange(200, 3000))
    picture = open_picture(np.zeros((*original, 3), np.uint8))
    for _ in range(draw.randrange(3)):
        height, width = picture.size
        left, top = draw.randrange(width // 3), draw.randrange(height // 3)
        picture = picture.crop(
            (left, top, draw.randrange(left + 40, width), draw.randrange(top + 40, height))
        )
    orientation = draw.randrange(1, 9)
    turned = picture.size if orientation < 5 else picture.size[::-1]
    transform = picture.transform @ Transform.oriented(orientation, picture.size)
    size = (draw.randrange(28, 1500), draw.randrange(28, 1500))
    view = View(size, transform @ Transform.resized(turned, size), original)
    height, width = picture.size
    x, y = (
        sorted(draw.uniform(0, width) for _ in "ab"),
        sorted(draw.uniform(0, height) for _ in "ab"),
    )
    box = picture.transform.box((x[0], y[0], x[1], y[1]))
    seen = view.transform.inverse().box(box)
    for name, convention in CONVENTIONS.items():
        if name in ("molmo", "paligemma", "none"):
            continue
        across = convention.full / size[1] if convention.full else 1
        down = convention.full / size[0] if convention.full else 1
        scaled = (seen[0] * across, seen[1] * down, seen[2] * across, seen[3] * down)
        text = f"[{', '.join(f'{value:.6f}' for value in scaled)}]"
        (region,) = find_regions(text, view, name).regions
        assert region.bounds == pytest.approx(box, abs=0.5)
        assert "off-image" not in region.flags


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize(
    "piece",
    [
        '"bbox_2d": [', '{"point_2d":[1,2],"label":"', '{"bbox_2d":[1,2,3,4]}', "<|box_start|>(",
        "<|object_ref_start|>", '<point x="', "<points ", 'x1="', "<loc0001>", "[1,2,3,4", "(1,1)",
        "(((((", "[[[[[", "-1", "1,", " ", "\\", '"', "{", "<",
    ],
)  # fmt: skip
def test_hostile_texts_take_linear_time(name: str, piece: str) -> None:
    text = piece * (300_000 // len(piece))
    began = time.process_time()
    found = find_regions(text, WIDE, name)
    assert time.process_time() - began < 2.0  # measured: at most 0.3; quadratic: hours
    assert len(found.regions) <= MAX_REGIONS


def test_more_regions_than_the_limit_are_said() -> None:
    text = " ".join(f"[{i},0,1000,1000]" for i in range(MAX_REGIONS + 1))
    found = find_regions(text, WIDE, "muse")
    assert (len(found.regions), found.complete) == (MAX_REGIONS, False)
    assert find_regions(text[:9000], WIDE, "muse").complete
    assert find_regions("[1,2,3,4] [1,2,3,4]", WIDE, "muse", limit=1).complete is False


def test_an_unknown_convention_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="convention: 'kosmos', known are muse, qwen2-vl"):
        find_regions("", WIDE, "kosmos")


def test_places_inside_a_label_are_none() -> None:
    found = find_regions(TOLD, WIDE, "muse").regions
    assert [(r.kind, r.label, r.written) for r in found] == [
        ("box", "tray (350,450). So [1,2,3,4]", (10, 20, 30, 40)),
        ("point", "at (7,8)", (50, 60)),
        ("box", "at (7,8)", (1, 2, 3, 4)),
        ("point", "", (9, 10)),
    ]
