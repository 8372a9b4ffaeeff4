"""Results to traces, and traces to JSON and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from musespark.errors import CorruptFile, InvalidRequest
from musespark.vision.trace import Album, VisualTrace, trace_of
from musespark.vision.trace.data import turned
from musespark.vision.trace.thoughts import MAX_STEPS, sentences
from support.traces import Characters, rich_trace, said, scene

# --- Thoughts ----------------------------------------------------------------------------------


def test_sentences_are_cut_at_their_ends_and_told_apart_by_words() -> None:
    text = (
        "A street with cars. Trees, too. The sign reads 3.5 km. The tower is on the left! "
        "I zoom in on it.\nIt is taller than the tree. Therefore the tower."
    )
    cut = [(s.kind, text[s.start : s.end]) for s in sentences(text, [])]
    assert cut == [
        ("look", "A street with cars. Trees, too."),
        ("read", "The sign reads 3.5 km."),
        ("locate", "The tower is on the left!"),
        ("zoom", "I zoom in on it."),
        ("compare", "It is taller than the tree."),
        ("conclude", "Therefore the tower."),
    ]


def test_no_sentence_ends_inside_a_region_and_lines_of_a_list_are_one() -> None:
    text = 'Here:\n[{"a": 1.\n2},\n{"b": 2}]\nDone.'
    regions = [(text.index("{"), text.index("}") + 1), (text.index('{"b'), text.rindex("}") + 1)]
    cut = [text[s.start : s.end] for s in sentences(text, regions)]
    assert cut == ["Here:", '[{"a": 1.\n2},\n{"b": 2}]', "Done."]


def test_very_many_sentences_end_in_one() -> None:
    text = "".join(("A cat. ", "It reads. ")[i % 2] for i in range(3 * MAX_STEPS))
    cut = sentences(text, [])
    assert len(cut) == MAX_STEPS
    assert cut[-1].end == len(text) - 1


# --- Results to traces -------------------------------------------------------------------------


def test_a_result_becomes_steps_with_regions_tokens_and_confidence() -> None:
    result = said("The square is at [250,250,350,417].", "It is red.")
    trace = trace_of(result, [scene()], "muse", question="Colour?", tokenizer=Characters())
    locate, answer = trace.steps
    assert (locate.kind, locate.exact, locate.channel) == ("locate", False, "reasoning")
    assert (answer.kind, answer.exact, answer.channel) == ("conclude", True, "content")
    (region,) = locate.regions
    assert region.bounds == pytest.approx((100, 60, 140, 100.08))
    # Digits 250 250 350 417: zeros count 1, the others a tenth each.
    digits = [0.2, 0.5, 1, 0.2, 0.5, 1, 0.3, 0.5, 1, 0.4, 0.1, 0.7]
    assert region.confidence == pytest.approx(np.mean(digits))
    written = "".join(map(chr, result.tokens))
    for step in trace.steps:
        assert written[slice(*step.tokens)] == step.text
        assert step.cost == {"tokens": len(step.text)}
    assert (trace.answer, trace.question) == ("It is red.", "Colour?")
    assert trace.images[0].sha256 == scene().sha256


def test_without_a_tokenizer_nothing_is_made_up() -> None:
    trace = trace_of(said("See [1,2,3,4].", "Yes."), [scene()], "muse")
    assert [step.tokens for step in trace.steps] == [None, None]
    assert trace.steps[0].regions[0].confidence is None


def test_which_image_a_box_is_in_is_said_or_warned_of() -> None:
    images = [scene(), scene(200, 120)]
    text = "Image 1: [0,0,500,500]. At [0,0,500,500]. {'img_idx': 0, 'bbox_2d': [0,0,500,500]}"
    steps = trace_of(said(text), images, "muse").steps
    assert [step.image for step in steps] == ["image-0", "image-1", "image-0"]
    assert [bool(step.warnings) for step in steps] == [False, True, False]
    assert [step.regions[0].bounds[2] for step in steps] == [200, 60, 200]
    (step,) = trace_of(said("In image 7 at (1,1)."), images, "muse").steps
    assert step.warnings == ("image 7 is named, there are 2 images; taken as the last",)


def test_pixel_coordinates_need_the_size_that_the_model_was_given() -> None:
    text = '{"bbox_2d": [50, 25, 100, 75], "label": "x"}'
    album = Album([scene()], fit=lambda size: (size[0] // 2, size[1] // 2))
    known = trace_of(said("", text), album, "qwen2.5-vl")
    assert known.steps[0].regions[0].bounds == (100, 50, 200, 150)
    assert not known.warnings
    unknown = trace_of(said("", text), [scene()], "qwen2.5-vl")
    assert unknown.steps[0].regions[0].bounds == (50, 25, 100, 75)
    assert "that size is not known here" in unknown.warnings[0]


def test_a_call_is_an_exact_step_whose_numbers_have_x_first() -> None:
    call = ("image_zoom_in_tool", {"bbox_2d": [0, 0, 512, 256], "label": "a", "img_idx": 0})
    (step,) = trace_of(said(calls=(call,)), [scene()], "paligemma").steps
    assert (step.kind, step.exact, step.tool) == ("zoom", True, "image_zoom_in_tool")
    assert step.regions[0].bounds == (0, 0, 200, 60)
    assert step.arguments == call[1]


def test_arguments_that_no_file_could_hold_are_kept_as_text() -> None:
    deep: Any = []
    for _ in range(40):
        deep = [deep]
    for arguments in ({"x": deep}, {"x": 10**80}, {"x": float("nan")}):
        trace = trace_of(said(calls=(("measure", arguments),)), [scene()], "muse")
        assert set(trace.steps[0].arguments) == {"raw"}
        assert VisualTrace.from_json(trace.to_json()) == trace


def test_a_trace_needs_an_image() -> None:
    with pytest.raises(InvalidRequest, match="images: a trace needs one"):
        trace_of(said("x"), [], "muse")


# --- Pixels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_turned_picture_knows_where_its_pixels_come_from(degrees: int) -> None:
    picture = scene(6, 10)
    made = turned(picture, degrees)
    height, width = made.size
    for y in range(height):
        for x in range(width):
            (px, py) = made.transform.points((x + 0.5, y + 0.5))
            assert (made.pixels[y, x] == picture.pixels[int(py), int(px)]).all()
    if degrees == 90:  # clockwise: what was at the bottom left is at the top left
        assert (made.pixels[0, 0] == picture.pixels[5, 0]).all()


def test_crops_of_crops_and_turns_keep_their_place() -> None:
    album = Album([scene()])
    album.crop(0, (80, 40, 180, 120))
    album.turn(1, 90)
    last = album.crop(2, (10, 20, 40, 60))
    assert [image.parent for image in album.images] == [None, "image-0", "image-1", "image-2"]
    assert last.size == (40, 30)
    x, y = last.transform.points((0.5, 0.5))
    assert (album.pictures[3].pixels[0, 0] == scene().pixels[int(y), int(x)]).all()
    with pytest.raises(InvalidRequest, match="img_idx: 9, there are images 0 to 3"):
        album.crop(9, (0, 0, 1, 1))


# --- JSON --------------------------------------------------------------------------------------


def test_a_trace_goes_through_json_without_its_pixels() -> None:
    trace = rich_trace()
    text = trace.to_json()
    again = VisualTrace.from_json(text)
    assert again == trace
    assert again.to_json() == text
    assert len(text) < 30_000
    assert not again.pictures


def test_pixels_are_attached_again_and_crops_cut_again() -> None:
    trace = rich_trace()
    again = VisualTrace.from_json(trace.to_json())
    originals = {"image-0": scene(), "image-1": scene(200, 120, seed=1)}
    full = again.attach(originals)
    assert full.pictures.keys() == trace.pictures.keys()
    assert full.pictures["image-2"].sha256 == trace.images[2].sha256
    with pytest.raises(InvalidRequest, match=r"image-0: pixels of sha256 \w+, the trace has"):
        again.attach({"image-0": scene(seed=5)})
    with pytest.raises(InvalidRequest, match="image: 'image-9'"):
        again.attach({**originals, "image-9": scene()})


def change(path: str, value: Any) -> Callable[[dict], None]:
    def edit(data: Any) -> None:
        *way, last = [int(key) if key.isdigit() else key for key in path.split(".")]
        for key in way:
            data = data[key]
        if value is ...:
            del data[last]
        else:
            data[last] = value

    return edit


BROKEN = [
    ("format", "other", r'trace\.format: "other", must be musespark\.visual-trace'),
    ("version", 2, r"trace\.version: 2, must be an integer from 1 to 1"),
    ("extra", 1, r"trace\.extra: no such field"),
    ("answer", ..., r"trace\.answer: missing"),
    ("images.0.size", [0, 5], r"trace\.images\[0\]\.size: \[0, 5\]"),
    ("images.0.size", [5], r"trace\.images\[0\]\.size: \[5\], must be 2 integers"),
    ("images.0.transform", [1, 0, 0, 2, 0, 0], r"transform: .* a map that has an inverse"),
    ("images.1.id", "image-0", r"trace\.images\[1\]\.id: 'image-0' stands twice"),
    ("images.2.parent", "image-7", r"images\[2\]\.parent: 'image-7' is no image before it"),
    ("images.0.parent", "image-0", r"images\[0\]\.parent: 'image-0' is no image before it"),
    ("steps.0.kind", "dream", r"trace\.steps\[0\]\.kind: \"dream\", must be one of look"),
    ("steps.0.source", 3, r"trace\.steps\[0\]\.source: 3, must be text"),
    ("steps.0.image", "image-9", r"steps\[0\]\.image: 'image-9' is no image of the trace"),
    ("steps.0.parent", 0, r"steps\[0\]\.parent: 0, must be a step before 0"),
    ("steps.0.tokens", [1], r"steps\[0\]\.tokens: \[1\], must be 2 integers"),
    ("steps.0.cost", {"tokens": True}, r"steps\[0\]\.cost\.tokens: true, must be a number"),
    ("steps.1.regions.0.kind", "blob", r"steps\[1\]\.regions\[0\]\.kind"),
    ("steps.1.regions.0.flags", ["odd"], r"steps\[1\]\.regions\[0\]\.flags\[0\]: \"odd\""),
    ("steps.1.regions.0.points", [[1, 2]], r"regions\[0\]\.points: .* must be those of a box"),
    ("steps.1.regions.0.points.0", [1, "2"], r"regions\[0\]\.points\[0\]\[1\]: \"2\""),
    ("steps.1.regions.0.points.0", [1, 1e300], r"points\[0\]\[1\]: 1e\+300"),
    ("steps.1.regions.0.confidence", 1.5, r"regions\[0\]\.confidence: 1\.5"),
    ("steps.1.checks.0.region", 5, r"checks\[0\]\.region: 5, must be an integer from 0 to 0"),
    ("messages.0.role", 3, r"messages\[0\]\.role: 3, must be text"),
    ("messages.0.content.0.id", "image-9", r"messages\[0\]: 'image-9' is no image"),
    ("messages.0.content.0", "hello", r"messages\[0\]\.content\[0\]: \"hello\", must be an object"),
]


@pytest.mark.parametrize("path, value, message", BROKEN, ids=[f"{p}={v}" for p, v, _ in BROKEN])
def test_a_damaged_file_is_refused_by_its_field(path: str, value: Any, message: str) -> None:
    data = json.loads(rich_trace().to_json())
    change(path, value)(data)
    with pytest.raises(CorruptFile, match=message):
        VisualTrace.from_json(json.dumps(data))


def test_heat_maps_hold_as_many_values_as_cells() -> None:
    data = json.loads(rich_trace().to_json())
    (index,) = [i for i, step in enumerate(data["steps"]) if step["heat"]]
    data["steps"][index]["heat"]["rows"] = 4096
    with pytest.raises(CorruptFile, match=r"heat\.values: .* must be 12288 numbers"):
        VisualTrace.from_json(json.dumps(data))


@pytest.mark.fuzz
def test_any_damage_to_any_field_is_a_corrupt_file_or_still_a_trace() -> None:
    text = rich_trace().to_json()
    draw = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = json.loads(text)
        holder: Any = data
        while True:
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            key = keys[draw.integers(len(keys))]
            inner = holder[key]
            if not isinstance(inner, dict | list) or not inner or draw.random() < 0.2:
                break
            holder = inner
        holder[key] = [None, -1, 1 << 70, "x", [], {}, True, 0.5, [[]]][draw.integers(9)]
        try:
            trace = VisualTrace.from_json(json.dumps(data))
        except CorruptFile as error:
            assert str(error).startswith("trace")
            refused += 1
        else:
            assert VisualTrace.from_json(trace.to_json()) == trace
            str(trace)
    assert refused > 150


def test_texts_with_lone_surrogates_go_through_json() -> None:
    trace = replace(rich_trace(), answer="a\ud800b\x00</script>\u202e")
    assert VisualTrace.from_json(trace.to_json()).answer == trace.answer


def test_a_trace_prints_as_its_steps() -> None:
    text = str(rich_trace())
    assert "  2  locate   model  [1 regions] The red square is at" in text
    assert "(clipped)" in text and "(off-image)" in text


def test_what_is_no_text_is_no_trace() -> None:
    with pytest.raises(InvalidRequest, match="trace: got int, allowed is a str or bytes"):
        VisualTrace.from_json(5)  # type: ignore[arg-type]
