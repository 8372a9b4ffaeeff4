"""Schemas that strangers give: how much work they may be, and what is said of them."""

from __future__ import annotations

import time
from typing import Any

import pytest

import musespark
from musespark.calls.lark import Lark
from musespark.calls.values import Values
from musespark.errors import InvalidRequest
from musespark.grammar import chosen_grammar
from musespark.schema import argument_schema, check_multiples, check_value

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


MULTIPLES: list[tuple[Any, bool]] = [
    ({"multipleOf": 10_000_019}, False),  # more than a minute, and the memory of it
    ({"multipleOf": 0.1234567}, False),
    ({"multipleOf": 10**300}, True),
    ({"multipleOf": 0.001}, True),
    ({"multipleOf": 0}, True),
    ({"multipleOf": True}, True),
    ({"multipleOf": float("inf")}, True),
    ({"properties": {"multipleOf": {"type": "string"}}}, True),
    ({"items": [{"multipleOf": 997}, {"multipleOf": 1009}, {"multipleOf": 997}]}, True),
    ({"allOf": [{"multipleOf": 997}, {"multipleOf": 1009}]}, False),
    ({"multipleOf": 997, "$ref": "#/$defs/a", "$defs": {"a": {"multipleOf": 1009}}}, False),
    ({"allOf": [{"multipleOf": 99}, {"multipleOf": 1000}, {"multipleOf": 12}]}, True),
    ({"items": [{"multipleOf": 50_001}, {"multipleOf": 50_003}]}, False),
]


@pytest.mark.parametrize(("schema", "allowed"), MULTIPLES)
def test_multiples_that_no_grammar_could_follow(schema: Any, allowed: bool) -> None:
    if allowed:
        check_multiples(schema, "x")
        return
    with pytest.raises(InvalidRequest, match=r"x: multipleOf: got a .* of more than 100000"):
        check_multiples(schema, "x")
    with pytest.raises(InvalidRequest, match="json_schema: multipleOf: got a"):
        chosen_grammar({"json_schema": schema})


@pytest.fixture(scope="module")
def nano() -> Any:
    with musespark.load(context=512) as model:
        yield model


def test_multiples_of_all_tools_count_together(nano: Any) -> None:
    rules = [{"type": "integer", "multipleOf": step} for step in (50_001, 50_003)]
    functions = [
        {"name": f"f{i}", "parameters": {"type": "object", "properties": {"x": one}}}
        for i, one in enumerate(rules)
    ]
    tools = [{"type": "function", "function": one} for one in functions]
    with pytest.raises(InvalidRequest, match="tools: multipleOf: got a sum of more than"):
        nano.chat("?", tools=tools, tool_choice="auto")
    assert nano.chat("?", tools=tools[:1], tool_choice="auto", max_new_tokens=1)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"minimum": "a"}, 1),
        ({"type": 5}, 1),
        ({"type": [["a"]]}, 1),
        ({"enum": 5}, 1),
        ({"allOf": 5}, 1),
        ({"required": [["a"]]}, {}),
        ({"multipleOf": 0}, 1),
        ({"prefixItems": 3}, [1]),
        ({"minLength": "x"}, "a"),
    ],
)
def test_schemas_that_are_none_are_a_typed_error(schema: Any, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^x: its schema is none \(.*\), allowed is"):
        check_value(value, schema, "x")


def test_values_and_schemas_that_are_nested_too_deeply() -> None:
    deep: Any = 1
    rules: Any = {}
    for _ in range(5_000):
        deep, rules = [deep], {"anyOf": [rules]}
    for value, schema in ((deep, {"items": {"$ref": "#"}}), (1, rules)):
        with pytest.raises(InvalidRequest, match="nested too deeply to be checked"):
            check_value(value, schema, "x")


def test_definitions_that_each_rule_would_repeat_are_refused_in_time() -> None:
    """A gigabyte, of a schema that has less than one of its thousandths."""
    names = [f"a{i}" for i in range(1_500)]
    schema = {
        "properties": {n: {"$ref": f"#/$defs/{n}", "pattern": f"{n}$"} for n in names},
        "$defs": {name: {"type": "string", "description": "a" * 400} for name in names},
    }
    began = time.monotonic()
    with pytest.raises(InvalidRequest, match="tools: got more than 1048576 characters as a gramm"):
        Values(Lark({}), argument_schema(schema, "x"), "x").arguments()
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "rule",
    [
        {"anyOf": 5},
        {"enum": 5},
        {"type": {"x": 1}},
        {"type": "array", "minItems": "x"},
        {"type": "string", "pattern": 5},
        {"type": "object", "properties": 5},
        {"type": "object", "properties": {"a": {}}, "required": 5},
    ],
)
def test_schemas_of_tools_that_are_none_are_a_typed_error(nano: Any, rule: Any) -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": {"x": rule}}}
    tools = [{"type": "function", "function": function}]
    with pytest.raises(InvalidRequest, match=r"^tools: its schema is none|^tools: f"):
        nano.chat("?", tools=tools, tool_choice="auto")
