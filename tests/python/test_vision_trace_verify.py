"""Masking what was cited, against a judge who looks at pixels."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from musespark.errors import InvalidRequest
from musespark.vision.loop import VisualLoop
from musespark.vision.pixels import Picture
from musespark.vision.trace import Album, TraceBuilder, VisualTrace
from support.traces import said, scene

QUESTION = [
    {"role": "user", "content": [{"type": "image", "id": "image-0"}, {"type": "text", "text": "?"}]}
]
SQUARE = "[250,250,350,417]"  # the red square of the scene
NOTHING = "[500,500,600,667]"


class Judge:
    """Believes in red by how much red it sees; each red pixel that is gone costs e."""

    def __init__(self) -> None:
        self.pictures: list[list[Picture]] = []
        self.messages: Any = None

    def __call__(self, pictures: Any, messages: Any, answer: str) -> float:
        self.pictures.append(list(pictures))
        self.messages = messages
        red = (pictures[-1].pixels == (200, 30, 30)).all(axis=2).sum()
        return float(red - 1600) if answer == "Red." else -50.0

    def ask(self, pictures: Any, messages: Any) -> str:
        return "Red." if self(pictures, messages, "Red.") > -800 else "Grey."


def told(thought: str, answer: str = "Red.", image: Picture | None = None) -> VisualTrace:
    builder = TraceBuilder(Album([image or scene()]), "muse", question="?")
    builder.turn(said(thought, answer))
    return builder.finish([*QUESTION, {"role": "assistant", "content": answer}])


def test_a_region_the_answer_comes_from_is_told_from_one_it_does_not() -> None:
    judge = Judge()
    trace = told(f"A square at {SQUARE}. It reads at {NOTHING}.").verify(judge, ask=judge.ask)
    square, nothing = (step.checks[0] for step in trace.steps[:2])
    assert (square.change, square.random_change) == (-1600.0, 0.0)
    assert (square.load_bearing, square.flipped, square.random_flips) == (True, True, 0)
    assert (nothing.change, nothing.load_bearing, nothing.flipped) == (0.0, False, False)
    assert [step.load_bearing for step in trace.steps] == [True, False, None]
    assert judge.messages == QUESTION  # without the answer
    assert VisualTrace.from_json(trace.to_json()) == trace


def test_the_region_is_painted_with_the_mean_and_nothing_else_is() -> None:
    judge = Judge()
    told(f"A square at {SQUARE}.").verify(judge, draws=2)
    before, masked, *random = (pictures[0].pixels for pictures in judge.pictures)
    changed = (before != masked).any(axis=2)
    ys, xs = np.nonzero(changed)
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (100, 139, 60, 100)
    assert (masked[60:101, 100:140] == np.round(before.mean(axis=(0, 1)))).all()
    for other in random:  # the same area elsewhere, less where noise had that colour
        count = (before != other).any(axis=2).sum()
        assert 0.95 * 40 * 41 < count <= 40 * 41
        assert not (changed & (before != other).any(axis=2)).any()


def test_draws_depend_on_the_seed_alone() -> None:
    trace = told(f"A square at {SQUARE}.")

    def masks(seed: int) -> list[str]:
        judge = Judge()
        trace.verify(judge, seed=seed)
        return [picture.sha256 for (picture,) in judge.pictures]

    assert masks(1) == masks(1)
    assert masks(1) != masks(2)


def test_crops_are_cut_from_the_masked_original() -> None:
    call = ("image_zoom_in_tool", {"bbox_2d": [200, 200, 400, 500], "label": "", "img_idx": 0})
    lines = [said("", calls=(call,)), said("Seen (500, 500) of image 2.", "Red.")]
    looked = VisualLoop(lambda *_, **__: lines.pop(0), "muse").run("?", [scene()])
    judge = Judge()
    trace = looked.trace.verify(judge)
    zoomed = next(step for step in trace.steps if step.kind == "zoom" and step.source == "model")
    assert zoomed.checks[0].change == -1600.0  # the judge looks at the last picture, the crop
    assert all(pictures[1].size == (72, 80) for pictures in judge.pictures)
    assert [m["role"] for m in judge.messages] == ["user", "assistant", "tool"]
    point = next(s for s in trace.steps if s.text.startswith("Seen"))
    assert point.checks[0].load_bearing is True  # (500, 500) of the crop is in the square


def test_a_region_with_no_equal_beside_it_is_not_decided() -> None:
    trace = told("Look at [0,0,1000,900].").verify(Judge())
    check = trace.steps[0].checks[0]
    assert check.load_bearing is None
    assert "hold up to" in check.note


def test_what_cannot_be_checked_is_left_and_limits_are_said() -> None:
    text = f"Off [1200,0,1300,9]. Points [1,2,3,4]. At {SQUARE} and [10,10,20,20]."
    trace = told(text).verify(Judge(), limit=1)
    assert [len(step.checks) for step in trace.steps].count(0) == len(trace.steps) - 1
    assert trace.warnings == ("verify: the first 1 of 3 regions were checked",)


def test_verify_refuses_what_it_cannot_do() -> None:
    trace = told(f"At {SQUARE}.")
    with pytest.raises(InvalidRequest, match=r"pixels: not there for \['image-0'\]"):
        VisualTrace.from_json(trace.to_json()).verify(Judge())
    with pytest.raises(InvalidRequest, match="messages: the trace has none"):
        replace(trace, messages=()).verify(Judge())
    with pytest.raises(InvalidRequest, match="score: gave nan, must be a finite"):
        trace.verify(lambda *_: math.nan)
    with pytest.raises(InvalidRequest, match="score: object, must be a model or callable"):
        trace.verify(object())  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="draws: 0, must be 1 or more"):
        trace.verify(Judge(), draws=0)
