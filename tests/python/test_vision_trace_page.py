"""The page in a real browser: slider, keys, boxes, crops, themes, widths, hostile texts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from musespark.vision.trace import VisualTrace
from support import browser
from support.browser import Browser
from support.traces import rich_trace

PROGRAM = browser.find()
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(PROGRAM is None, reason="no chromium on the path"),
    pytest.mark.xdist_group("browser"),
]

# Where screenshots are kept for people to look at; a temporary folder otherwise.
SHOTS = os.environ.get("MUSESPARK_SCREENSHOTS")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(PROGRAM or "", tmp_path_factory.mktemp("browser") / "profile") as running:
        yield running


@pytest.fixture(scope="module")
def trace() -> VisualTrace:
    return rich_trace()


@pytest.fixture(scope="module")
def page(trace: VisualTrace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "trace.html"
    trace.to_html(path)
    return path


def visible(on: Browser, selector: str) -> list[int]:
    """data-step of the elements of a selector that take room."""
    return on.run(
        f"[...document.querySelectorAll('{selector}')].filter(e => "
        "e.getClientRects().length && getComputedStyle(e).display != 'none')"
        ".map(e => Number(e.dataset.step))"
    )


def position(on: Browser) -> str:
    return on.run("document.getElementById('position').textContent")


def test_the_slider_shows_one_step_and_its_boxes(
    chromium: Browser, page: Path, trace: VisualTrace
) -> None:
    chromium.open(page)
    count = len(trace.steps)
    for step in range(count):
        assert position(chromium) == f"{step + 1} / {count}"
        assert visible(chromium, ".step") == [step]
        drawn = [r for r in trace.steps[step].regions if r.points]
        assert visible(chromium, ".region") == [step] * len(drawn)
        chromium.press("ArrowRight")
    assert position(chromium) == f"{count} / {count}"
    assert not chromium.problems


def test_keys_buttons_and_the_slider_itself_move(chromium: Browser, page: Path) -> None:
    chromium.open(page)
    last = int(position(chromium).split("/")[1])
    chromium.press("End")
    assert visible(chromium, ".step") == [last - 1]
    chromium.press("ArrowLeft")
    assert visible(chromium, ".step") == [last - 2]
    chromium.press("Home")
    chromium.click("#next")
    chromium.click("#next")
    chromium.click("#previous")
    assert visible(chromium, ".step") == [1]
    chromium.run("document.getElementById('slider').focus()")
    chromium.press("ArrowRight")  # once, not once by the slider and once by the page
    assert visible(chromium, ".step") == [2]
    chromium.press("a")
    assert len(visible(chromium, ".region")) > 3
    assert chromium.run("document.getElementById('all').checked")
    chromium.press("a")
    assert set(visible(chromium, ".region")) <= {2}


def test_boxes_stand_where_the_pixels_are(
    chromium: Browser, page: Path, trace: VisualTrace
) -> None:
    """Box 1 is around the red square: its edges on the screen, in shares of the picture."""
    chromium.open(page)
    chromium.press("ArrowRight")
    (region,) = trace.steps[1].regions
    left, top, right, bottom = region.bounds
    shares = chromium.run(
        "(() => { const i = document.querySelector('figure.here image').getBoundingClientRect();"
        "const b = document.querySelector('.region.here rect').getBoundingClientRect();"
        "return [(b.left - i.left) / i.width, (b.top - i.top) / i.height,"
        "(b.right - i.left) / i.width, (b.bottom - i.top) / i.height] })()"
    )
    assert shares == pytest.approx([left / 400, top / 240, right / 400, bottom / 240], abs=0.01)
    size = chromium.run(
        "document.querySelector('.region.here .tag text').getBoundingClientRect().height"
    )
    assert 10 < size < 22  # as other text, however wide the picture is


def test_a_crop_leads_to_the_step_that_made_it(
    chromium: Browser, page: Path, trace: VisualTrace
) -> None:
    chromium.open(page)
    (made,) = [index for index, step in enumerate(trace.steps) if step.crop]
    chromium.click(".crops button")
    assert visible(chromium, ".step") == [made]
    sizes = chromium.run(
        "[...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight])"
    )
    assert sizes == [[True, 80, 192]]


def test_the_picture_of_the_step_is_shown(
    chromium: Browser, page: Path, trace: VisualTrace
) -> None:
    chromium.open(page, width=390, height=800)
    for step in trace.steps:
        shown = chromium.run(
            "[...document.querySelectorAll('figure')].filter(f => f.getClientRects().length)"
            ".map(f => f.querySelector('figcaption').textContent.split(' ')[0])"
        )
        assert shown == [trace.original(step.image).id]
        chromium.press("ArrowRight")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_it_is_readable_in_both_themes_and_at_two_widths(
    chromium: Browser, page: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    chromium.open(page, width=width, height=900, dark=dark)
    chromium.press("ArrowRight")
    assert chromium.run("document.documentElement.scrollWidth") <= width
    light = (
        "((c) => { const [r, g, b] = c.match(/\\d+/g).map(Number).map(v => v / 255)"
        ".map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);"
        "return 0.2126 * r + 0.7152 * g + 0.0722 * b })"
    )
    for selector, behind in ((".text", ".step.here"), (".facts", "body"), (".warning", ".warning")):
        front = f"getComputedStyle(document.querySelector('{selector}')).color"
        back = f"getComputedStyle(document.querySelector('{behind}')).backgroundColor"
        a, b = sorted([chromium.run(f"{light}({front})"), chromium.run(f"{light}({back})")])
        assert (b + 0.05) / (a + 0.05) >= 4.5, selector  # WCAG 2.2, 1.4.3
    back = chromium.run(f"{light}(getComputedStyle(document.body).backgroundColor)")
    assert (back < 0.2) == dark
    folder = Path(SHOTS) if SHOTS else tmp_path
    chromium.screenshot(folder / f"trace-{width}-{'dark' if dark else 'light'}.png")
    assert not chromium.problems


HOSTILE = [
    "<script>document.title='owned'</script>",
    "</script><script>document.title='owned'</script>",
    "</style><img src=x onerror=\"document.title='owned'\">",
    '"><svg onload="document.title=\'owned\'">',
    "' onmouseover='document.title=1' x='",
    "<!-- <![CDATA[ ]]> --> &lt;b&gt; &#x3c;",
    "\x00\x1b[31m\u202egnitseretni\u2066\ud800\ufffe",
    "javascript:document.title='owned'",
    "x" * 1_000_000,
    "\n" * 5000,
]


def test_hostile_texts_are_shown_as_texts(chromium: Browser, tmp_path: Path) -> None:
    text = "\n".join(HOSTILE)
    trace = rich_trace(question="\n".join(HOSTILE[:8]))
    hostile = [
        replace(
            step,
            text=text,
            warnings=(text,),
            tool=text,
            regions=tuple(replace(r, label=text, raw=text) for r in step.regions),
            heat=replace(step.heat, note=text) if step.heat else None,
            checks=tuple(replace(check, note=text) for check in step.checks),
        )
        for step in trace.steps
    ]
    names = {image.id: f"{image.id}{HOSTILE[3]}{HOSTILE[1]}" for image in trace.images}
    evil = replace(
        trace, steps=tuple(hostile), answer=text, model=text, convention=text, warnings=(text,)
    )
    evil = renamed(evil, names)
    path = tmp_path / "evil.html"
    page = evil.to_html(path)
    assert len(page) < 3_000_000
    chromium.open(path)
    assert chromium.run("document.title").startswith("<script>document.title='owned'</script>")
    assert chromium.run("document.scripts.length") == 1
    handlers = "[onerror], [onload], [onmouseover]"
    assert chromium.run(f"document.querySelectorAll('{handlers}').length") == 0
    answer = chromium.run("document.querySelector('.answer .text').textContent")
    assert answer.startswith("\n".join(HOSTILE[:6]) + "\n\\u0000\\u001b[31m\\u202egnits")
    chromium.press("End")
    assert visible(chromium, ".step") == [len(trace.steps) - 1]
    assert not chromium.problems


def test_the_policy_stops_what_escaping_might_have_missed(
    chromium: Browser, page: Path, tmp_path: Path
) -> None:
    """A page with a script and a style planted in it after it was made."""
    text = page.read_text(encoding="utf-8")
    planted = (
        "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    )
    path = tmp_path / "planted.html"
    path.write_text(text.replace("<footer>", planted + "<footer>"), encoding="utf-8")
    chromium.open(path)
    assert chromium.run("document.title") != "owned"
    assert position(chromium).startswith("1 /")
    assert any("Content Security Policy" in problem for problem in chromium.problems)
    chromium.problems.clear()


def renamed(trace: VisualTrace, names: dict[str, str]) -> VisualTrace:
    def region(one):
        return replace(one, image=names[one.image])

    images = tuple(
        replace(i, id=names[i.id], parent=names[i.parent] if i.parent else None)
        for i in trace.images
    )
    steps = tuple(
        replace(
            step,
            image=names.get(step.image, ""),
            crop=names.get(step.crop, ""),
            regions=tuple(map(region, step.regions)),
            heat=replace(step.heat, image=names[step.heat.image]) if step.heat else None,
        )
        for step in trace.steps
    )
    pictures = {names[id]: picture for id, picture in trace.pictures.items()}
    return replace(trace, images=images, steps=steps, pictures=pictures, messages=())
