"""The tools alone, and the loop around a model of thirty lines."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from musespark.errors import InvalidRequest
from musespark.vision.conventions import CONVENTIONS
from musespark.vision.loop import VisualLoop
from musespark.vision.pixels import open_picture
from musespark.vision.tools import TOOLS, Answer, Desk, ToolLimits
from musespark.vision.trace import Album, VisualTrace
from support.traces import Characters, said, scene

BY_NAME = {tool.name: tool for tool in TOOLS}


def desk(convention: str = "muse", *, limits: ToolLimits | None = None, **album: Any) -> Desk:
    made = Album([scene()], **album)  # 400 wide, 240 high
    return Desk(made, CONVENTIONS[convention], limits or ToolLimits())


def use(on: Desk, name: str, **arguments: Any) -> Answer:
    return BY_NAME[name](on, {"img_idx": 0, **arguments})


# --- Facts -------------------------------------------------------------------------------------


def test_zoom_cuts_the_original_and_says_where() -> None:
    on = desk()
    answer = use(on, "image_zoom_in_tool", bbox_2d=[250, 250, 350, 417], label="square")
    assert answer.facts == {"img_idx": 1, "width": 40, "height": 41, "label": "square"}
    assert (on.album.pictures[1].pixels == scene().pixels[60:101, 100:140]).all()
    assert answer.regions[0].points == ((100, 60), (140, 101))
    inner = use(on, "image_zoom_in_tool", img_idx=1, bbox_2d=[0, 0, 1000, 700], label="part")
    assert inner.facts["height"] == 29
    assert inner.regions[0].points == ((100, 60), (140, 89))


def test_zoom_reads_boxes_as_the_model_writes_them() -> None:
    half = {"fit": lambda size: (size[0] // 2, size[1] // 2)}
    for convention, box, extra in (
        ("qwen2.5-vl", [50, 30, 100, 60], half),
        ("molmo", [25, 25, 50, 50], {}),
        ("paligemma", [256, 256, 512, 512], {}),
    ):
        on = desk(convention, **extra)
        answer = use(on, "image_zoom_in_tool", bbox_2d=box, label="")
        assert answer.regions[0].points == ((100, 60), (200, 120)), convention


def test_small_boxes_are_widened_and_large_ones_cut_and_both_are_said() -> None:
    on = desk()
    answer = use(on, "image_zoom_in_tool", bbox_2d=[0, 500, 5, 505], label="x")
    assert answer.regions[0].points == ((0, 107), (28, 135))
    assert "widened to 28 x 28" in answer.facts["note"]
    answer = use(on, "image_zoom_in_tool", bbox_2d=[900, 0, 1200, 1000], label="x")
    assert answer.regions[0].points == ((360, 0), (400, 240))
    assert "cut to it" in answer.facts["note"]


def test_rotate_turns_clockwise() -> None:
    on = desk()
    assert use(on, "rotate", degrees=90).facts == {"img_idx": 1, "width": 240, "height": 400}
    assert (on.album.pictures[1].pixels == np.rot90(scene().pixels, -1)).all()
    # The red square, seen in the turned image, is measured in the original.
    answer = use(on, "measure", what="area", img_idx=1, points=CORNERS_TURNED)
    assert answer.facts["area"] == 1600


CORNERS_TURNED = [
    [x / 240 * 1000, y / 400 * 1000] for x, y in ((140, 100), (180, 100), (180, 140), (140, 140))
]


def test_measures_are_exact() -> None:
    on = desk("qwen2.5-vl")
    assert use(on, "measure", what="distance", points=[[0, 0], [30, 40]]).facts == {
        "distance": 50.0,
        "unit": "pixels of the original image",
    }
    angle = use(on, "measure", what="angle", points=[[10, 0], [0, 0], [10, 10]])
    assert angle.facts["angle"] == 45.0
    straight = use(on, "measure", what="angle", points=[[0, 5], [10, 5], [20, 5]])
    assert straight.facts["angle"] == 180.0
    area = use(on, "measure", what="area", points=[[0, 0], [10, 0], [10, 10], [5, 5], [0, 10]])
    assert area.facts["area"] == 75.0
    muse = use(desk(), "measure", what="distance", points=[[0, 0], [1000, 1000]])
    assert muse.facts["distance"] == round(math.hypot(400, 240), 3)


def test_colors_are_counted() -> None:
    pixels = np.zeros((10, 10, 3), np.uint8)
    pixels[:, :3] = (255, 0, 128)
    pixels[0, 9] = (1, 2, 3)
    on = Desk(Album([open_picture(pixels)]), CONVENTIONS["muse"])
    facts = use(on, "read_colors", bbox_2d=[0, 0, 1000, 1000], most=3).facts
    assert facts["most_frequent"] == [
        {"color": "#000000", "share": 0.69},
        {"color": "#ff0080", "share": 0.3},
        {"color": "#010203", "share": 0.01},
    ]
    assert (facts["pixels"], facts["colors"]) == (100, 3)
    assert (facts["darkest"], facts["lightest"]) == ("#000000", "#ff0080")
    assert facts["mean_rgb"] == [76.5, 0.0, 38.4]
    assert use(on, "read_colors", bbox_2d=[900, 0, 1000, 100]).facts["most_frequent"] == [
        {"color": "#010203", "share": 1.0}
    ]


# --- Wrong arguments ---------------------------------------------------------------------------

WRONG = [
    ("image_zoom_in_tool", [1], r"arguments must be an object, got \[1\]"),
    ("image_zoom_in_tool", {"img_idx": 0, "label": "x"}, "bbox_2d is missing"),
    ("image_zoom_in_tool", {"bbox": [0, 0, 9, 9]}, r"no argument 'bbox', it has \['bbox_2d'"),
    ("image_zoom_in_tool", {"bbox_2d": "0,0,9,9"}, 'bbox_2d: "0,0,9,9", must be an array'),
    ("image_zoom_in_tool", {"bbox_2d": [0, 0, 9]}, "bbox_2d: 3 items, must be 4"),
    ("image_zoom_in_tool", {"bbox_2d": [0, 0, 9, True]}, r"bbox_2d\[3\]: true, must be a number"),
    ("image_zoom_in_tool", {"bbox_2d": [0, 0, 9, math.nan]}, r"bbox_2d\[3\]: NaN, must be a n"),
    ("image_zoom_in_tool", {"bbox_2d": [0, 0, 9, 10**400]}, r"bbox_2d\[3\]: 1000"),
    ("image_zoom_in_tool", {"bbox_2d": [9, 0, 0, 9]}, r"bbox_2d: \[9, 0, 0, 9\], must be \[x1"),
    ("image_zoom_in_tool", {"bbox_2d": [1200, 0, 1300, 9]}, r"bbox_2d: .* is outside image 0"),
    ("image_zoom_in_tool", {"bbox_2d": [0, 0, 9, 9], "img_idx": 3}, "img_idx: 3, there are images"),
    ("image_zoom_in_tool", {"bbox_2d": [0, 0, 9, 9], "img_idx": 0.0}, "img_idx: 0.0, must be an"),
    ("image_zoom_in_tool", {"bbox_2d": [0, 0, 9, 9], "label": 3}, "label: 3, must be a string"),
    ("rotate", {"degrees": 45}, r"degrees: 45, must be one of \[90, 180, 270\]"),
    ("measure", {"what": "mass", "points": [[0, 0], [1, 1]]}, 'what: "mass", must be one of'),
    ("measure", {"what": "angle", "points": [[0, 0], [1, 1]]}, "points: 2 points, angle needs 3"),
    ("measure", {"what": "area", "points": [[0, 0], [1, 1]]}, "area needs at least 3"),
    ("measure", {"what": "distance", "points": [[0, 0], [1]]}, r"points\[1\]: 1 items, must be 2"),
    ("measure", {"what": "distance", "points": [[0, 0], [1, 2000]]}, r"points\[1\]: .* is outside"),
    ("measure", {"what": "angle", "points": [[0, 0], [0, 0], [1, 1]]}, "two of them are the same"),
    ("read_colors", {"bbox_2d": [0, 0, 9, 9], "most": 1000}, "most: 1000, must be one of"),
]


@pytest.mark.parametrize("name, arguments, message", WRONG, ids=[w[2] for w in WRONG])
def test_wrong_arguments_are_named(name: str, arguments: Any, message: str) -> None:
    if isinstance(arguments, dict):
        label = {"label": "x"} if name == "image_zoom_in_tool" else {}
        arguments = {"img_idx": 0, **label, **arguments}
    with pytest.raises(InvalidRequest, match=message):
        BY_NAME[name](desk(), arguments)


def test_made_images_have_limits() -> None:
    on = desk(limits=ToolLimits(made=2))
    use(on, "rotate", degrees=90)
    use(on, "rotate", degrees=180)
    with pytest.raises(InvalidRequest, match="2 images were made already, at most 2"):
        use(on, "image_zoom_in_tool", bbox_2d=[0, 0, 500, 500], label="")
    on = desk(limits=ToolLimits(pixels=100_000))
    use(on, "rotate", degrees=90)
    with pytest.raises(InvalidRequest, match=r"192000 pixels in made images .* limit is 100000"):
        use(on, "rotate", degrees=90)
    assert len(on.album) == 2


def test_schemas_say_how_coordinates_are_written() -> None:
    for convention in CONVENTIONS.values():
        for tool in TOOLS:
            function = tool.schema(convention)["function"]
            assert convention.brief in function["description"]
            parameters = function["parameters"]
            assert set(parameters["required"]) <= set(parameters["properties"])
            json.dumps(function)


# --- The loop ----------------------------------------------------------------------------------


class Scripted:
    """A model that says its lines, whatever it is asked, and keeps what it was shown."""

    def __init__(self, *lines: Any):
        self.lines, self.seen, self.given = list(lines), [], []

    def __call__(self, messages: list[dict], *, tools: list[dict], **options: Any) -> Any:
        self.seen.append([dict(m) for m in messages])
        self.tools, self.options = tools, options
        self.given.append(options)
        return self.lines.pop(0) if len(self.lines) > 1 else self.lines[0]


def zoom(*box: float, index: int = 0) -> tuple[str, dict]:
    return "image_zoom_in_tool", {"bbox_2d": list(box), "label": "it", "img_idx": index}


def test_the_loop_shows_the_model_what_its_tools_made() -> None:
    model = Scripted(
        said("Too small to read. I zoom in.", calls=(zoom(250, 250, 350, 417),)),
        said("It is red.", "Red."),
    )
    loop = VisualLoop(model, "muse", tokenizer=Characters(), model="mock")
    looked = loop.run("What colour?", [scene()], temperature=0)
    assert (looked.content, model.options) == ("Red.", {"temperature": 0})
    assert [tool["function"]["name"] for tool in model.tools] == [*BY_NAME]
    user, assistant, tool = model.seen[1]
    assert [part["type"] for part in user["content"]] == ["image", "text"]
    assert assistant["tool_calls"][0]["function"]["name"] == "image_zoom_in_tool"
    assert (tool["role"], tool["name"], tool["tool_call_id"]) == (
        "tool",
        "image_zoom_in_tool",
        "call-0",
    )
    image, text = tool["content"]
    assert (image["image"].pixels == scene().pixels[60:101, 100:140]).all()
    assert json.loads(text["text"])["img_idx"] == 1
    trace = looked.trace
    kinds = [(step.kind, step.source, step.exact) for step in trace.steps]
    assert kinds == [
        ("read", "model", False),
        ("zoom", "model", False),
        ("zoom", "model", True),
        ("zoom", "tool", True),
        ("look", "model", False),
        ("conclude", "model", True),
    ]
    answered = trace.steps[3]
    assert (answered.parent, answered.crop, answered.regions[0].source) == (2, "image-1", "tool")
    assert answered.cost["pixels"] == 40 * 41
    assert trace.messages[2]["content"][0] == {"type": "image", "id": "image-1"}
    assert VisualTrace.from_json(trace.to_json()) == trace


def test_wrong_arguments_go_back_to_the_model() -> None:
    model = Scripted(
        said(calls=(zoom(9, 9, 0, 0),)),
        said(calls=(("paint", {"x": 1}),)),
        said("", "I give up."),
    )
    looked = VisualLoop(model, "muse").run("?", [scene()])
    assert model.seen[1][-1]["content"].startswith("error: bbox_2d: [9, 9, 0, 0], must be")
    assert model.seen[2][-1]["content"].startswith("error: no tool 'paint', there are image_zoom")
    errors = [step for step in looked.trace.steps if step.source == "tool"]
    assert [step.warnings for step in errors] == [("refused",), ("refused",)]
    assert "inverted" in looked.trace.steps[0].regions[0].flags


def test_calls_are_capped_and_the_model_is_told() -> None:
    model = Scripted(said(calls=(zoom(0, 0, 500, 500),)))
    looked = VisualLoop(model, "muse", calls=2).run("?", [scene()])
    assert len(model.seen) == 4  # two calls, one refused, and the last word
    assert "answer now" in model.seen[3][-1]["content"]
    assert looked.trace.warnings == ("stopped: the model went on calling tools",)
    assert len(looked.trace.images) == 3


def test_a_call_is_required_until_there_is_one() -> None:
    model = Scripted(said(calls=(zoom(0, 0, 500, 500),)), said("", "A cat."))
    looked = VisualLoop(model, "muse").run("?", [scene()], tool_choice="required")
    assert looked.content == "A cat."
    assert [one["tool_choice"] for one in model.given] == ["required", "auto"]


def test_calls_that_are_none_are_answered_as_often_as_calls() -> None:
    model = Scripted(said("Hm.", malformed_tool_calls=("<tool_call>{",)))
    looked = VisualLoop(model, "muse", calls=2).run("?", [scene()])
    assert model.seen[1][-1] == {
        "role": "user",
        "content": "That was no valid tool call. Call a tool again, or answer.",
    }
    assert len(model.seen) == 4
    assert looked.trace.steps[1].warnings == ("no valid tool call",)


def test_a_turn_that_was_cut_ends_the_loop() -> None:
    cut = replace(said("I zo", calls=(zoom(0, 0, 9, 9),)), finish_reason="length")
    model = Scripted(cut)
    VisualLoop(model, "muse").run("?", [scene()])
    assert len(model.seen) == 1
