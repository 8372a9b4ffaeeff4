"""Schemas of places: what they make is read back, all of it, inside the image."""

from __future__ import annotations

import json
import random

import jsonschema
import pytest

import musespark
from musespark.errors import InvalidRequest
from musespark.vision import boxes_schema
from musespark.vision.regions import View, find_regions

JSON_CONVENTIONS = ("muse", "qwen2-vl", "qwen2.5-vl", "qwen3-vl")


@pytest.fixture(scope="module")
def model():
    with musespark.load(context=2048) as model:
        yield model


@pytest.mark.parametrize("convention", JSON_CONVENTIONS)
@pytest.mark.parametrize("kind", ["box", "point"])
def test_every_answer_is_read_as_places_in_the_image(model, convention: str, kind: str) -> None:
    """Sampled answers on sizes of all shapes: as many regions as were written, none malformed,
    clipped or outside, labels as written; corners in the wrong order are flagged."""
    rng, seen = random.Random(f"{convention} {kind}"), set()
    places = 0
    for seed in range(12):
        size = rng.choice([(1, 1), (480, 640), (28, 4000), (999, 10)])
        labels = rng.choice([None, ["cat", "größe: 3 m", "<b>"]])
        schema = boxes_schema(size, convention, kind=kind, labels=labels, least=1, most=4)
        result = model.chat(
            "Where?", mode="instant", json_schema=schema, temperature=1.0, seed=seed
        )
        assert result.finish_reason == "stop"
        jsonschema.validate(result.parsed, schema)
        found = find_regions(result.content, View(size, original=size), convention)
        assert [r.label.strip() for r in found.regions] == [
            one["label"].strip() for one in result.parsed
        ]
        for region, one in zip(found.regions, result.parsed, strict=True):
            numbers = one["bbox_2d" if kind == "box" else "point_2d"]
            assert region.kind == kind and list(region.written) == numbers
            assert not {"malformed", "clipped", "off-image"} & set(region.flags), (size, numbers)
            if kind == "box":
                x1, y1, x2, y2 = numbers
                assert ("inverted" in region.flags) == (x1 > x2 or y1 > y2)
            seen |= set(region.flags)
            places += 1
    assert places > 15
    assert kind == "point" or "inverted" in seen, "no box had its corners in the wrong order"


def test_bounds_are_the_images_or_the_conventions() -> None:
    def bounds(convention: str) -> list[int]:
        schema = boxes_schema((480, 640), convention)
        axes = schema["items"]["properties"]["bbox_2d"]["prefixItems"]
        assert all(axis["minimum"] == 0 for axis in axes)
        return [axis["maximum"] for axis in axes]

    assert bounds("qwen2.5-vl") == [640, 480, 640, 480]
    assert bounds("qwen3-vl") == bounds("muse") == [1000] * 4


@pytest.mark.parametrize("number", [-1, 641, 0.5, "1"])
def test_numbers_outside_are_no_answer(number) -> None:
    schema = boxes_schema((480, 640), "qwen2.5-vl")
    good = [{"bbox_2d": [640, 480, 0, 0], "label": "a"}]
    jsonschema.validate(good, schema)
    bad = [{"bbox_2d": [number, 480, 0, 0], "label": "a"}]
    assert not jsonschema.Draft202012Validator(schema).is_valid(bad)
    short = [{"bbox_2d": [1, 2, 3], "label": "a"}]
    assert not jsonschema.Draft202012Validator(schema).is_valid(short)


@pytest.mark.parametrize("text", ["'bbox_2d': [1,2,3,4]", '"', "a\nb", "[1,2,3,4]", "", "x" * 49])
def test_no_label_holds_coordinates(text: str) -> None:
    schema = boxes_schema((480, 640), "qwen3-vl")
    value = [{"bbox_2d": [1, 2, 3, 4], "label": text}]
    assert not jsonschema.Draft202012Validator(schema).is_valid(json.loads(json.dumps(value)))
    with pytest.raises(InvalidRequest, match="labels: got"):
        boxes_schema((480, 640), "qwen3-vl", labels=[text * 5])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"convention": "molmo"}, r"'molmo' has no JSON; there is a schema for \['muse'"),
        ({"convention": "owl"}, "convention: 'owl', known are"),
        ({"size": (0, 5)}, "height: got 0"),
        ({"size": 5}, r"size: got 5, allowed is \(height, width\)"),
        ({"kind": "line"}, "kind: got 'line'"),
        ({"most": 0}, "most: got 0"),
        ({"least": 5, "most": 4}, "most: got 4, allowed is an integer from 5"),
        ({"most": True}, "most: got True"),
        ({"labels": "cat"}, "labels: got 'cat'"),
        ({"labels": []}, r"labels: got \[\]"),
    ],
)
def test_refusals(given: dict, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        boxes_schema(**{"size": (480, 640), "convention": "muse", **given})
