"""Schemas that strangers give: how much work they may be, and what is said of them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from musespark.errors import InvalidRequest
from musespark.schema import argument_schema

LEVELS = 30


def doubled(leaf: Any, *beside: Any) -> dict[str, Any]:
    """A schema in which each reference is two of the next one, and what stands between them."""
    levels = {}
    for i in range(LEVELS):
        below = {"$ref": f"#/$defs/a{i + 1}"}
        levels[f"a{i}"] = {"allOf": [below, *(one(i) for one in beside), below]}
    return {"$ref": "#/$defs/a0", "$defs": {**levels, f"a{LEVELS}": leaf}}


def rule(level: int) -> dict[str, Any]:
    """Another rule for the same argument on each level."""
    return {"properties": {"x": {"minimum": level}}, "required": ["x"]}


def test_references_that_double_at_each_step_are_followed_once() -> None:
    """Hours, where each of them is followed; 2 ** 30 rules, where what they say is nested."""
    whole = {"type": "object", "properties": {}, "required": []}
    found = argument_schema(doubled({"type": "object"}), "x")
    assert {name: found[name] for name in whole} == whole
    with pytest.raises(InvalidRequest, match="x: none of what its schema allows is an object"):
        argument_schema(doubled({"type": "string"}), "x")
    found = argument_schema(doubled({"type": "object"}, rule), "x")
    assert len(found["properties"]["x"]["allOf"]) == LEVELS and found["required"] == ["x"]


def test_schemas_that_are_much_work_are_refused_in_time() -> None:
    rules = [{"properties": {"x": {"minimum": i}}} for i in range(20_000)]
    many = {f"p{i}": {"type": "integer"} for i in range(5_000)}
    wide = {"allOf": [{"properties": many} for _ in range(1_000)]}
    for schema in ({"allOf": rules}, wide):
        began = time.monotonic()
        with pytest.raises(InvalidRequest, match="x: its schema is too involved: got more than"):
            argument_schema(schema, "x")
        assert time.monotonic() - began < 10
