"""Pages, notebook cells and pictures of traces, read without a browser."""

from __future__ import annotations

import re
import struct
import sys
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from musespark.errors import InvalidRequest, MissingLibrary
from musespark.vision.render.overlay import MAX_DRAWN
from musespark.vision.render.png import encode, reduced
from musespark.vision.render.texts import shown
from musespark.vision.trace import VisualTrace
from support.traces import rich_trace

EVIL = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>\" onload='x' \x00\u202e\ud800"
)


class Tags(HTMLParser):
    """The tags of a page and the attributes they have."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}


def evil(trace: VisualTrace) -> VisualTrace:
    steps = [
        replace(
            step,
            text=EVIL,
            warnings=(EVIL,),
            regions=tuple(replace(r, label=EVIL, raw=EVIL) for r in step.regions),
        )
        for step in trace.steps
    ]
    return replace(trace, steps=tuple(steps), question=EVIL, answer=EVIL, model=EVIL)


# --- Texts -------------------------------------------------------------------------------------


def test_texts_are_escaped_cut_and_spelled_out() -> None:
    assert shown("<a href=\"x\" id='y'>&amp;") == (
        "&lt;a href=&quot;x&quot; id=&#x27;y&#x27;&gt;&amp;amp;"
    )
    assert shown("tab\tline\nend") == "tab\tline\nend"
    assert shown("\r\x00\x7f\x9b\u202e\u2066\ud800\ufffe") == (
        "\\u000d\\u0000\\u007f\\u009b\\u202e\\u2066\\ud800\\ufffe"
    )
    assert shown("ab" * 10, 3) == "aba… (17 more characters)"
    assert shown("שלום 你好 é") == "שלום 你好 é"


@pytest.mark.parametrize("render", [VisualTrace.to_html, VisualTrace._repr_html_])
def test_hostile_texts_add_no_tag_and_no_attribute(render) -> None:
    plain, hostile = Tags(render(rich_trace())), Tags(render(evil(rich_trace())))
    assert set(hostile.tags) == set(plain.tags)
    assert hostile.tags.count("script") == plain.tags.count("script")
    assert hostile.attributes == plain.attributes
    assert not {name for name in hostile.attributes if name.startswith("on")}
    render(evil(rich_trace())).encode("utf-8")


# --- Pages -------------------------------------------------------------------------------------


def test_a_page_fetches_nothing_and_names_what_may_run(tmp_path: Path) -> None:
    path = tmp_path / "trace.html"
    page = rich_trace().to_html(path)
    assert path.read_text(encoding="utf-8") == page
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in page
    links = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert links and all(link.startswith("data:image/png;base64,") for link in links)
    assert " style=" not in page  # the policy would drop it


def test_every_region_is_drawn_or_listed_with_its_flags() -> None:
    trace = rich_trace()
    page = trace.to_html()
    regions = [region for step in trace.steps for region in step.regions]
    assert page.count('<li data-region="') == len(regions)
    drawn = [region for region in regions if region.points]
    assert page.count('<g class="region ') == len(drawn)
    for flag in ("clipped", "off-image"):
        assert f'<span class="flag">{flag}</span>' in page
    assert 'stroke-dasharray="1.5 3.5"' in page.split("<footer>")[0]  # of a tool
    assert "(uncalibrated)" in page and "load-bearing" in page
    assert "measured, not an explanation" in page


def test_the_drawing_is_well_formed_and_in_pixels_of_the_original() -> None:
    page = rich_trace().to_html()
    svg = [ElementTree.fromstring(s) for s in re.findall(r'<svg class="picture".*?</svg>', page)]
    assert [s.get("viewBox") for s in svg] == ["0 0 400 240", "0 0 120 200"]
    first = svg[0].find(".//{*}g[@data-region='1']/{*}rect")
    assert [float(first.get(key)) for key in ("x", "y", "width", "height")] == [100, 60, 40, 40.08]
    heat = svg[0].find(".//{*}image[@class='heat']")
    assert heat.get("transform") == "matrix(1 0 0 1 0 0)"


def test_a_trace_without_pixels_or_steps_or_images_is_shown_as_what_it_is() -> None:
    bare = VisualTrace.from_json(rich_trace().to_json())
    assert "pixels are not attached" in bare.to_html()
    assert "pixels are not attached" in bare._repr_html_()
    empty = VisualTrace(images=())
    assert Tags(empty.to_html()).tags.count("script") == 1
    assert "<script" not in empty._repr_html_()


def test_very_many_regions_are_cut_and_that_is_said() -> None:
    trace = rich_trace()
    step = replace(trace.steps[1], regions=trace.steps[1].regions * (MAX_DRAWN + 5))
    page = replace(trace, steps=(step,)).to_html()
    assert page.count('<g class="region ') == MAX_DRAWN
    assert "5 more regions are not drawn" in page


# --- Pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 5, 3), (3, 300, 4)])
def test_png_files_hold_the_pixels(shape: tuple[int, int, int]) -> None:
    """Read by a decoder of its own: chunks, checksums, the one filter that is used."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    data = encode(pixels)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (length,), kind = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(kind + body)
        chunks[kind], at = body, at + 12 + length
    width, height, depth, color, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (height, width, depth, color) == (*shape[:2], 8, {3: 2, 4: 6}[shape[2]])
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert (lines[:, 0] == 2).all()
    assert (np.cumsum(lines[:, 1:], axis=0, dtype=np.uint8).reshape(shape) == pixels).all()


def test_large_pictures_are_reduced_to_means() -> None:
    pixels = np.zeros((5, 9, 3), np.uint8)
    pixels[:, 8] = 200
    pixels[0, 0] = 90
    small = reduced(pixels, 3)
    assert small.shape == (2, 3, 3)
    assert small[0, 0, 0] == 10 and small[0, 2, 0] == round(200 / 3)
    assert reduced(pixels, 9) is pixels


def test_to_png_draws_what_is_cited(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    trace = rich_trace()
    trace.to_png(tmp_path / "all.png")
    trace.to_png(tmp_path / "one.png", step=1)
    trace.to_png(tmp_path / "other.png", image="image-1")
    every, one = (np.asarray(image.open(tmp_path / f"{name}.png")) for name in ("all", "one"))
    before = trace.pictures["image-0"].pixels
    assert every.shape == before.shape
    changed = (one != before).any(axis=2)
    assert changed[80, 99:101].any() and changed[100, 110]  # edges of the red square
    assert not changed[70:95, 106:135].any() and not changed[150:].any()
    assert (every != before).any(axis=2).sum() > changed.sum()
    assert image.open(tmp_path / "other.png").size == (120, 200)


def test_to_png_enlarges_picture_and_places_alike(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    trace = rich_trace()
    trace.to_png(tmp_path / "one.png", step=1, scale=3)
    large = np.asarray(image.open(tmp_path / "one.png"))
    before = trace.pictures["image-0"].pixels.repeat(3, 0).repeat(3, 1)
    changed = (large != before).any(axis=2)
    assert changed[3 * 80, 3 * 100] and changed[3 * 100, 3 * 110]  # edges of the red square
    assert not changed[3 * 75 : 3 * 95, 3 * 106 : 3 * 135].any() and not changed[3 * 150 :].any()
    for scale in (0, 17, 1.5, True):
        with pytest.raises(InvalidRequest, match=r"scale: .*, must be a whole number from 1 to 16"):
            trace.to_png(tmp_path / "x.png", scale=scale)


def test_to_png_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingLibrary, match=r"to_png needs Pillow: pip install 'musespark\[vis"):
        rich_trace().to_png(tmp_path / "x.png")


def test_to_png_refuses_what_it_cannot_draw(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    trace = rich_trace()
    with pytest.raises(InvalidRequest, match="step: 99, the trace has steps 0 to"):
        trace.to_png(tmp_path / "x.png", step=99)
    with pytest.raises(InvalidRequest, match="image: 'image-9'"):
        trace.to_png(tmp_path / "x.png", image="image-9")
    with pytest.raises(InvalidRequest, match="image-0: its pixels are not there"):
        VisualTrace.from_json(trace.to_json()).to_png(tmp_path / "x.png")
    with pytest.raises(InvalidRequest, match="images: the trace has none"):
        VisualTrace(images=()).to_png(tmp_path / "x.png")
