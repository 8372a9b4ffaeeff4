"""What was seen, from a model's own turns: traces of results, answers scored, tools that look."""

from __future__ import annotations

import base64
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from tests.python.test_images_chat import ask, folder, model, part, user  # noqa: F401
from tests.support import eyes as e

from musespark.errors import InvalidRequest, UnsupportedModel
from musespark.scoring import _whole
from musespark.vision.conventions import convention_named
from musespark.vision.embedding import ImageOutline
from musespark.vision.geometry import Transform
from musespark.vision.regions import find_regions
from musespark.vision.render.png import encode
from musespark.vision.trace import VisualTrace
from musespark.vision.trace.build import TraceBuilder
from musespark.vision.trace.heat import NEUTRAL

BOX = '{"bbox_2d": [2, 4, 6, 8], "label": "thing"}'


def test_a_result_about_images_has_a_trace(model) -> None:  # noqa: F811
    result = ask(model, user("one", part(1), "two ", part(2), "where?"), logprobs=1)
    trace = result.trace
    assert [i.sha256 for i in trace.images] == [e.picture(s).sha256 for s in (1, 2)]
    assert trace.question == "one two  where?"
    assert (trace.answer, trace.model) == (result.content, model.info.source)
    assert trace.images[0].shown == (12, 10)  # what the processor says
    assert [m["role"] for m in trace.messages] == ["user", "assistant"]
    parts = trace.messages[0]["content"]
    assert [p["id"] for p in parts if p["type"] == "image"] == ["image-0", "image-1"]
    assert VisualTrace.from_json(trace.to_json()) == trace
    assert json.loads(json.dumps(result.to_dict()))["trace"]["answer"] == result.content
    assert pickle.loads(pickle.dumps(result)).trace == trace
    assert "trace" not in repr(result)


def test_an_answer_whose_beginning_was_given(model) -> None:  # noqa: F811
    talk = [user(part(1), "where?"), {"role": "assistant", "content": f"Here: {BOX} and"}]
    result = ask(model, *talk, continue_final_message=True)
    trace = result.trace
    assert [m["role"] for m in trace.messages] == ["user", "assistant"]
    assert trace.answer == f"Here: {BOX} and{result.content}"
    assert [r.label for step in trace.steps for r in step.regions] == ["thing"]


def test_there_is_none_without_pixels(model) -> None:  # noqa: F811
    assert ask(model, user("hello")).trace is None
    embedding = model.encode_image(e.picture(1))
    assert ask(model, user("x", {"type": "image", "image": embedding})).trace is None


def test_places_are_read_as_the_family_writes_them(model, monkeypatch) -> None:  # noqa: F811
    """Here in pixels of the image as it was resized, twice its size."""
    turn = TraceBuilder.turn
    monkeypatch.setattr(
        TraceBuilder,
        "turn",
        lambda self, result: turn(self, type(result)(**{**vars(result), "content": BOX})),
    )
    (step,) = ask(model, user(part(1), "?")).trace.steps
    (region,) = step.regions
    assert region.label == "thing"
    assert region.bounds == (1, 2, 3, 4)


def test_the_probability_of_an_answer(model) -> None:  # noqa: F811
    """That of its tokens, one after the other; they are forced here, and reported as unforced."""
    talk = [user("look: ", part(1), " what is it?")]
    token = next(i for c in "abcxyz" if len(i := model.tokenizer.encode(c)) == 1)[0]
    text = next(c for c in "abcxyz" if model.tokenizer.encode(c) == [token]) * 3
    assert model.tokenizer.encode(text) == [token] * 3
    forced = ask(model, *talk, logit_bias={token: 1e4}, max_new_tokens=3, logprobs=1)
    wanted = sum(one.logprob for one in forced.logprobs)
    assert model.answer_logprob(talk, text) == pytest.approx(wanted, abs=1e-5)
    other = model.answer_logprob([user("look: ", part(2), " what is it?")], text)
    assert other != pytest.approx(wanted, abs=1e-3)
    before = model._requests.eyes.tower.calls
    assert model.answer_logprob(talk, text) == pytest.approx(wanted, abs=1e-5)
    assert model._requests.eyes.tower.calls == before
    plain = [{"role": "user", "content": "hello"}]
    assert model.answer_logprob(plain, text) < 0


@pytest.mark.parametrize("answer", ["", 3])
def test_no_answer_to_score(model, answer) -> None:  # noqa: F811
    with pytest.raises(InvalidRequest, match="answer: got"):
        model.answer_logprob([user("x")], answer)


def test_an_option_that_scoring_has_not(model) -> None:  # noqa: F811
    with pytest.raises(InvalidRequest, match="seed: allowed here are tools, adapter and steering"):
        model.answer_logprob([user("x")], "y", seed=1)


def test_a_trace_is_verified_with_its_model(model) -> None:  # noqa: F811
    """The box covers half of the image; masked, the rows are others and so is the probability."""
    trace = ask(model, user(part(1), "where?"), max_new_tokens=2, temperature=1.0, seed=3).trace
    again = VisualTrace.from_json(trace.to_json()).attach({"image-0": e.picture(1)})
    checked = _pointing(again, '{"bbox_2d": [0, 0, 5, 6]}').verify(model, draws=2, ask=True)
    (check,) = checked.steps[-1].checks
    assert check.change != 0 and check.draws == 2
    assert check.flipped in (True, False) and check.random_flips in (0, 1, 2)
    assert again.verify(model).steps == again.steps  # nothing was cited


def test_what_verifies_is_a_model_or_a_function(model) -> None:  # noqa: F811
    trace = ask(model, user(part(1), "where?")).trace
    for wrong in (None, "model"):
        with pytest.raises(InvalidRequest, match=r"score: .* must be a model or callable"):
            trace.verify(wrong)
    for wrong in ({"draws": 1.5}, {"limit": -1}, {"draws": 0}):
        with pytest.raises(InvalidRequest, match=rf"{next(iter(wrong))}: .* must be 1 or more"):
            trace.verify(model, **wrong)
    with pytest.raises(InvalidRequest, match="ask: 3, must be callable, or True"):
        trace.verify(model, ask=3)


def test_where_attention_goes(model) -> None:  # noqa: F811
    """A map of each image for each token of the answer; as if asked for a token at a time."""
    talk = [user("one", part(1), "two ", part(2), "where?")]
    answer = "twelve letters"
    found = model.image_attention(talk, answer)
    tokens = len(model.tokenizer.encode(answer))
    assert tokens > 8  # more than are looked at together
    assert found.layers == (0,)
    assert [m.shape for m in found.maps] == [(1, tokens, 8, 8)] * 2
    everywhere = sum(m.sum((2, 3)) for m in found.maps)
    assert (everywhere > 0).all() and (everywhere < 1).all()
    for count in (1, 5):
        begun = model.tokenizer.decode(model.tokenizer.encode(answer)[:count])
        assert len(model.tokenizer.encode(begun)) == count
        for whole, piece in zip(found.maps, model.image_attention(talk, begun).maps, strict=True):
            assert np.array_equal(whole[:, :count], piece)
    swapped = model.image_attention([user("one", part(2), "two ", part(1), "where?")], answer)
    assert not np.array_equal(found.maps[0], swapped.maps[0])
    with pytest.raises(InvalidRequest, match="there are no images to look at"):
        model.image_attention([user("hello")], answer)


def test_the_part_that_shows_all_of_an_image() -> None:
    tiles = [Transform.shift(0, 0), Transform.shift(4, 0), Transform.scale(2, 2)]
    pieces = tuple(("<row>", count, True) for count in (16, 16, 16))
    outline = ImageOutline(b"", pieces, ((1, 4, 4),) * 3, transform=tuple(tiles))
    assert _whole(outline) == (32, 4, 4)
    with pytest.raises(UnsupportedModel, match="form no grid"):
        _whole(ImageOutline(b"", (("<row>", 17, True),), ((1, 4, 4),), transform=tiles[0]))


def test_a_trace_has_heat_maps(model) -> None:  # noqa: F811
    trace = ask(model, user("one", part(1), "two ", part(2), "where?")).trace
    talk = [user("one", part(1), "two ", part(2), "where?")]
    neutral = [user(part(1), part(2), NEUTRAL)]
    answer = "twelve letters"
    hot = replace(trace, answer=answer).heat(model)
    assert hot.steps[: len(trace.steps)] == trace.steps
    for number, step in enumerate(hot.steps[len(trace.steps) :]):
        assert (step.source, step.kind, step.image) == ("engine", "look", f"image-{number}")
        wanted = model.image_attention(talk, answer).maps[number]
        wanted = wanted.mean((0, 1)) - model.image_attention(neutral, answer).maps[number].mean(
            (0, 1)
        )
        assert np.allclose(np.reshape(step.heat.values, (8, 8)), wanted, atol=1e-7)
        assert "not an explanation" in step.heat.note
    assert VisualTrace.from_json(hot.to_json()) == hot
    assert 'class="heat"' in hot.to_html()
    with pytest.raises(InvalidRequest, match=r"layers: got \[3\], allowed are \[0\]"):
        trace.heat(model, layers=[3])
    with pytest.raises(InvalidRequest, match="pixels: not there"):
        VisualTrace.from_json(trace.to_json()).heat(model)
    with pytest.raises(InvalidRequest, match="layers: got 0, allowed is a list"):
        trace.heat(model, layers=0)
    with pytest.raises(InvalidRequest, match="model: got NoneType"):
        trace.heat(None)


def test_a_model_looks(model) -> None:  # noqa: F811
    model.template = "{% for t in tools %}{{ t.function.name }}{% endfor %}" + e.TEMPLATE
    black = [np.zeros((8, 8, 3), np.uint8)]
    with pytest.raises(InvalidRequest, match="no calls that are known; tool_choice=None"):
        model.look("what is it?", black)
    looked = model.look("what is it?", black, max_new_tokens=4, tool_choice=None)
    assert looked.trace.question == "what is it?"
    assert looked.trace.answer == looked.content
    assert looked.trace.convention == "qwen2.5-vl"
    image = np.zeros((8, 8, 3), np.uint8)
    data = "data:image/png;base64," + base64.b64encode(encode(image)).decode()
    for one in (image, e.picture(1), encode(image), data, [image], image[None], (data,)):
        seen = model.look("what is it?", one, calls=0, max_new_tokens=1)
        assert len(seen.trace.images) == 1
    embedding = model.encode_image(e.picture(1))
    for wrong, told in (
        (None, "images: got None"),
        ([], r"images: got \[\]"),
        ("https://a.b/c.png", "nothing remote is fetched"),
        (["/no/a.png"], r"images\[0\]: '/no/a\.png': No such file"),
        (embedding, "an embedding has no pixels"),
    ):
        with pytest.raises(InvalidRequest, match=told):
            model.look("?", wrong)
    for options, told in (
        ({"calls": "1"}, "calls: '1'"),
        ({"calls": None}, "calls: None"),
        ({"stream": True}, "stream: look gives its result whole"),
    ):
        with pytest.raises(InvalidRequest, match=told):
            model.look("?", image, **options)
    model.template = e.TEMPLATE
    with pytest.raises(InvalidRequest, match=r"tools: .*With calls=0"):
        model.look("?", image)
    with pytest.raises(InvalidRequest, match="convention: 'nobody'"):
        model.look("?", [np.zeros((8, 8, 3), np.uint8)], convention="nobody")


def test_a_blind_model_looks_at_nothing(model) -> None:  # noqa: F811
    model._requests.eyes = None
    with pytest.raises(UnsupportedModel, match="images"):
        model.look("?", [np.zeros((8, 8, 3), np.uint8)])


def _pointing(trace: VisualTrace, text: str) -> VisualTrace:
    """The trace with a step that points at the place in a text."""
    regions = find_regions(text, trace.view("image-0"), convention_named("qwen2.5-vl")).regions
    steps = (*trace.steps, replace(trace.steps[-1], text=text, regions=regions))
    return replace(trace, steps=steps)
