"""Functions as tools: schemas of their signatures, arguments as their types, what is refused."""

from __future__ import annotations

import datetime
import enum
import json
import math
import random
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Optional, TypedDict

import annotated_types
import jsonschema
import numpy as np
import pydantic
import pytest

import musespark
from musespark.agents.tools import Content, Tool, text_of, tools_by_name
from musespark.errors import InvalidRequest
from musespark.schema import check_value


def weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C") -> str:
    """The weather of
    the coming days.

    More than the model needs.

    Args:
        city: which town,
            with its country
        days (int): how many
    """
    return f"{city}: rain for {days} days in {unit}"


# ---- schemas -----------------------------------------------------------------------------------


def test_a_function_as_its_schema() -> None:
    assert Tool.of(weather).to_openai() == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of the coming days.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "which town, with its country"},
                    "days": {"type": "integer", "description": "how many", "default": 1},
                    "unit": {"enum": ["C", "F"], "default": "C"},
                },
                "required": ["city"],
            },
        },
    }


def test_types_as_rules() -> None:
    def many(
        a: float,
        b: bool | None,
        c: list[int],
        d: dict[str, list[str]],
        e: Annotated[str, "a text"],
        f: list,
        g,
    ) -> None: ...

    assert Tool.of(many).parameters["properties"] == {
        "a": {"type": "number"},
        "b": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        "c": {"type": "array", "items": {"type": "integer"}},
        "d": {
            "type": "object",
            "additionalProperties": {"type": "array", "items": {"type": "string"}},
        },
        "e": {"type": "string", "description": "a text"},
        "f": {"type": "array"},
        "g": {},
    }
    assert Tool.of(many).description == ""


def test_what_is_no_tool() -> None:
    def odd(a: bytes) -> None: ...
    def rest(*a: int) -> None: ...
    def names(**a: int) -> None: ...

    for given, says in [
        ([odd], r"odd\(a\): no JSON has the type <class 'bytes'>"),
        ([rest], r"rest\(a\): arguments are given by name"),
        ([names], r"names\(a\): its names are not known"),
        ([lambda a: a], "has no name"),
        ([5], "got 5, allowed are functions and Tool"),
        ("weather", "got 'weather', allowed are functions"),
        ([], "tools: got none"),
        ([weather, weather], "tools: 'weather' is given twice"),
        ({"other": Tool.of(weather)}, r"tools\['other'\]: its name is 'weather'"),
    ]:
        with pytest.raises(InvalidRequest, match=says):
            tools_by_name(given)
    assert [*tools_by_name({"f": lambda a: a})] == ["f"]


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Place(TypedDict, total=False):
    name: str


@dataclass
class Order:
    """An order.

    Args:
        item: what is ordered
    """

    item: str
    color: Color
    count: int = 1
    tags: list[str] = field(default_factory=list)


class Model:
    """What a class of pydantic has, for one is not always installed."""

    def __init__(self, **values: Any):
        self.values = values

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        part = {"type": "object", "properties": {"n": {"type": "integer"}}}
        of = {"type": "object", "properties": {"part": {"$ref": "#/$defs/Part"}}}
        return {**of, "required": ["part"], "$defs": {"Part": part}}

    @classmethod
    def model_validate(cls, values: dict[str, Any]) -> Model:
        return cls(**values)


def test_classes_as_rules_and_arguments_as_their_objects() -> None:
    def order(
        one: Order,
        many: list[Order],
        place: Place,
        model: Model,
        either: Color | int | None = None,
        pair: tuple[int, ...] = (),
        old: Optional[int] = None,  # noqa: UP045 - both spellings are understood
    ) -> Any:
        return one, many, place, model, either, pair, old

    tool = Tool.of(order)
    rules = tool.parameters["properties"]
    assert rules["one"] == {
        "type": "object",
        "properties": {
            "item": {"type": "string", "description": "what is ordered"},
            "color": {"enum": ["red", "blue"]},
            "count": {"type": "integer", "default": 1},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["item", "color"],
    }
    assert rules["place"]["required"] == [] and [*tool.parameters["$defs"]] == ["Part"]
    given = {
        "one": {"item": "tea", "color": "red"},
        "many": [{"item": "cup", "color": "blue", "count": 2}],
        "place": {"name": "here"},
        "model": {"part": {"n": 3}},
        "either": "blue",
        "pair": [1, 2],
    }
    one, many, place, model, either, pair, old = tool(given)
    assert one == Order("tea", Color.RED) and many == [Order("cup", Color.BLUE, 2)]
    assert place == {"name": "here"} and model.values == {"part": {"n": 3}}
    assert (either, pair, old) == (Color.BLUE, (1, 2), None)
    for wrong, says in [
        ({"one": {"item": "tea"}}, "order.one: color is missing"),
        ({"one": {"item": "tea", "color": "green"}}, "order.one.color: 'green', must be one of"),
        (
            {"one": {"item": "tea", "color": "red", "odd": 1}},
            "order.one: no argument 'odd', it has",
        ),
        ({"model": {"part": {"n": "x"}}}, "order.model.part.n: 'x', must be integer"),
        ({"odd": 1}, "order: no argument 'odd'"),
    ]:
        with pytest.raises(InvalidRequest, match=says):
            tool({**given, **wrong})


def test_types_that_no_json_has() -> None:
    @dataclass
    class Tree:
        below: list[Tree]

    Tree.__annotations__["below"] = list[Tree]
    cases: list[tuple[Any, str]] = [
        (dict[int, str], "keys of type <class 'int'>, allowed are str"),
        (Tree, "Tree refers to itself"),
        (Literal[b"a"], "no JSON has the type b'a'"),
        (complex, "no JSON has the type <class 'complex'>"),
        (tuple[int, complex], "no JSON has the type <class 'complex'>"),
    ]
    for hint, says in cases:

        def odd(a: Any) -> None: ...

        odd.__annotations__["a"] = hint
        with pytest.raises(InvalidRequest, match=rf"tools: odd\(a\).*{says}"):
            Tool.of(odd)


class Unknown(TypedDict):
    x: Nowhere  # noqa: F821 - that it is not there is what is tested


def test_types_that_cannot_be_read() -> None:
    """An annotation that is a text is code that somebody else wrote."""

    @dataclass
    class Lost:
        x: Any

    class Undone(pydantic.BaseModel):
        x: Missing  # noqa: F821

    for annotation, says in (
        ("Nowhere", "name 'Nowhere' is not defined"),
        ("enum.Nowhere", "no attribute 'Nowhere'"),
        ("list[", "was never closed|Forward reference must be"),
        ("1 / 0", "division by zero"),
    ):

        def odd(a: Any) -> None: ...

        Lost.__annotations__["x"] = odd.__annotations__["a"] = annotation
        with pytest.raises(InvalidRequest, match=rf"the signature of odd cannot be read .*{says}"):
            Tool.of(odd)
        odd.__annotations__["a"] = Lost
        with pytest.raises(InvalidRequest, match=rf"odd\(a\): Lost cannot be read .*{says}"):
            Tool.of(odd)
    for hint in (Unknown, Undone):
        odd.__annotations__["a"] = list[hint]
        with pytest.raises(InvalidRequest, match=rf"odd\(a\): {hint.__name__} cannot be read"):
            Tool.of(odd)


@dataclass
class Range:
    top: float = math.inf


def test_numbers_that_no_json_has_stand_in_no_schema() -> None:
    def within(a: Range, b: float = math.inf, c: float = math.nan, d: float = 1.5) -> None: ...

    schema = Tool.of(within).parameters
    assert json.loads(json.dumps(schema, allow_nan=False))["required"] == ["a"]
    defaults = {name: rule.get("default") for name, rule in schema["properties"].items()}
    assert defaults == {"a": None, "b": None, "c": None, "d": 1.5}

    def bounded(a: Annotated[float, annotated_types.Le(math.inf)]) -> None: ...

    with pytest.raises(InvalidRequest, match=r"bounded\(a\): le=inf, allowed is a finite number"):
        Tool.of(bounded)


def test_what_the_decorator_says() -> None:
    @musespark.tool(effects=True, name="mail.send", description="Send it.")
    def send(to: str) -> str:
        """Another text."""
        return f"to {to}"

    tool = Tool.of(send)
    assert (tool.name, tool.description, tool.effects) == ("mail.send", "Send it.", True)
    assert send("me") == "to me" and not Tool.of(musespark.tool(lambda_free)).effects
    for name in ("a b", "", "9a", "a" * 65, 'a">'):
        with pytest.raises(InvalidRequest, match="tools: got the name"):
            Tool(name, "", {}, print)
    with pytest.raises(InvalidRequest, match="effects: got 1, allowed is True or False"):
        Tool("a", "", {}, print, effects=1)  # type: ignore[arg-type]


def lambda_free(a: int) -> int:
    return a


def test_values_as_texts() -> None:
    parts = [{"type": "image", "image": 1}, {"type": "text", "text": "a"}]
    assert text_of(Content(parts)) == "a" and text_of("b") == "b"
    assert text_of({"größe": [1.5], "when": Ellipsis}) == '{"größe": [1.5], "when": "Ellipsis"}'
    assert text_of(Order("tea", Color.RED)).startswith('{"item": "tea", "color": "red"')
    assert text_of(Color.RED) == "red" and text_of([Color.RED]) == '["red"]'
    assert text_of({"d", "a", "c", "b"}) == '["a", "b", "c", "d"]'
    assert text_of(frozenset({1j})) == '["1j"]'
    assert text_of(n * n for n in range(3)) == "[0, 1, 4]"
    assert text_of("\ud800") == "?"
    assert text_of(["NaN", {"-Infinity": 1}]) == '["NaN", {"-Infinity": 1}]'
    assert text_of("NaN") == "NaN"
    for number, name in ((math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")):
        for value in (number, {"v": number}, (n for n in [1.0, number]), np.array([0, number])):
            with pytest.raises(InvalidRequest, match=rf"gave the number {name}, allowed"):
                text_of(value)


# ---- values against schemas --------------------------------------------------------------------


def test_values_are_judged_as_jsonschema_judges_them() -> None:
    """Random values against random schemas of every keyword that is checked."""
    rng = random.Random(3)
    schemas = [
        {"type": "integer", "minimum": 0, "maximum": 2},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 2},
        {"type": ["string", "null"], "minLength": 1, "maxLength": 2},
        {"type": "boolean"},
        {"multipleOf": 1.5},
        {"type": "integer", "multipleOf": 2},
        {"enum": [1, "a", None, [1]]},
        {"const": True},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
        {"prefixItems": [{"type": "string"}], "items": False},
        {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"properties": {"a": {}}, "additionalProperties": False},
        {"additionalProperties": {"type": "string"}},
        {"anyOf": [{"type": "integer"}, {"type": "array"}]},
        {"oneOf": [{"type": "integer"}, {"minimum": 1}]},
        {"allOf": [{"type": "integer"}, {"minimum": 1}]},
        {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"},
        True,
        False,
    ]

    def value(depth: int = 0) -> Any:
        plain = [0, 1, 2, 3, 1.0, 1.5, "a", "", "abc", None, True, False]
        if depth < 2 and rng.random() < 0.4:
            if rng.random() < 0.5:
                return [value(depth + 1) for _ in range(rng.randint(0, 3))]
            return {key: value(depth + 1) for key in rng.sample("abc", rng.randint(0, 2))}
        return rng.choice(plain)

    allowed = 0
    for schema in schemas:
        for _ in range(200):
            given = value()
            good = jsonschema.Draft202012Validator(schema).is_valid(given)
            try:
                check_value(given, schema, "x")
                assert good, (schema, given)
            except InvalidRequest:
                assert not good, (schema, given)
            allowed += good
    assert 500 < allowed < 3000


def test_a_schema_without_end() -> None:
    with pytest.raises(InvalidRequest, match="refers to itself without end"):
        check_value(1, {"$ref": "#"}, "x")
    with pytest.raises(InvalidRequest, match=r"\$ref: '#/a' is no place"):
        check_value(1, {"$ref": "#/a"}, "x")


def test_arguments_of_a_union_at_the_root() -> None:
    one = {"properties": {"a": {"type": "string"}}, "required": ["a"]}
    other = {"properties": {"b": {"type": "integer"}}, "required": ["b"]}
    schema = {"oneOf": [{"$ref": "#/$defs/one"}, other], "$defs": {"one": one}}
    given = Tool("f", "", schema, lambda **arguments: arguments)
    for arguments in ({"a": "x"}, {"b": 1}):
        assert given(arguments) == arguments
    for arguments in ({}, {"a": 1}, {"b": "x"}, {"a": "x", "b": 1}, {"a": "x", "c": 1}):
        with pytest.raises(InvalidRequest, match=r"^f\b"):
            given(arguments)
    with pytest.raises(InvalidRequest, match="tools: f: none of what its schema allows"):
        Tool("f", "", {"anyOf": [{"type": "null"}]}, print)({})


def test_a_schema_that_is_endless_work() -> None:
    twice = {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}
    with pytest.raises(InvalidRequest, match="x: none of what is allowed fits"):
        check_value(1, twice, "x")


# ---- pydantic itself ---------------------------------------------------------------------------


class Inner(pydantic.BaseModel):
    n: int


class Outer(pydantic.BaseModel):
    part: Inner


def test_unions_of_pydantics_classes_give_their_objects() -> None:
    def order(one: Outer | None = None, many: list[Outer | int] | None = None) -> Any:
        return one, many

    given = {"one": {"part": {"n": 1}}, "many": [{"part": {"n": 2}}, 3]}
    assert Tool.of(order)(given) == (
        Outer(part=Inner(n=1)),
        [Outer(part=Inner(n=2)), 3],
    )
    assert Tool.of(order)({"one": None}) == (None, None)


def test_notes_of_annotated_that_bound_values() -> None:
    def book(
        seats: Annotated[int, pydantic.Field(description="how many", ge=1, le=9)],
        name: Annotated[str, annotated_types.MinLen(2), {"not": "hashable"}] = "me",
        days: Annotated[list[int], pydantic.Field(max_length=2)] = [],  # noqa: B006 - a default
        code: Annotated[str, pydantic.Field(pattern="^[a-z]$")] = "a",
        even: Annotated[int, annotated_types.MultipleOf(2)] = 2,
    ) -> int:
        return seats

    tool = Tool.of(book)
    rules = tool.parameters["properties"]
    assert rules["seats"] == {
        "type": "integer",
        "description": "how many",
        "minimum": 1,
        "maximum": 9,
    }
    assert (rules["name"]["minLength"], rules["days"]["maxItems"]) == (2, 2)
    assert rules["code"]["pattern"] == "^[a-z]$" and tool({"seats": 9}) == 9
    for wrong, says in [
        ({"seats": 0}, "book.seats: 0, must be 1 to 9"),
        ({"seats": 1, "name": "x"}, "book.name: 1 characters, must be at least 2"),
        ({"seats": 1, "even": 3}, "book.even: 3, must be a multiple of 2"),
    ]:
        with pytest.raises(InvalidRequest, match=says):
            tool(wrong)

    def odd(a: Annotated[str | None, pydantic.Field(ge=1)]) -> None: ...

    with pytest.raises(InvalidRequest, match=r"odd\(a\): ge=1, allowed of \['integer', 'number'"):
        Tool.of(odd)


def test_bounds_of_a_union_are_those_of_its_members() -> None:
    def book(
        seats: Annotated[int | None, pydantic.Field(ge=1)],
        name: Annotated[Optional[str | list[int]], annotated_types.MaxLen(2)] = None,  # noqa: UP045
    ) -> Any:
        return seats, name

    tool = Tool.of(book)
    rules = tool.parameters["properties"]
    assert rules["seats"] == {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}
    assert tool({"seats": None, "name": [1, 2]}) == (None, [1, 2])
    for wrong in ({"seats": 0}, {"seats": 1, "name": "abc"}, {"seats": 1, "name": [1, 2, 3]}):
        with pytest.raises(InvalidRequest, match="none of what is allowed fits"):
            tool(wrong)


class Strict(pydantic.BaseModel, strict=True):
    day: datetime.date
    color: Color
    pair: tuple[int, str]


def test_strict_classes_of_pydantic_are_read_as_json() -> None:
    def book(one: Strict, more: list[Strict] | None = None) -> Any:
        return one, more

    given = {"day": "2026-05-31", "color": "red", "pair": [1, "ä"]}
    wanted = Strict(day=datetime.date(2026, 5, 31), color=Color.RED, pair=(1, "ä"))
    assert Tool.of(book)({"one": given, "more": [given]}) == (wanted, [wanted])
    with pytest.raises(pydantic.ValidationError, match="valid date"):
        Tool.of(book)({"one": {**given, "day": "31 May"}})


def test_integers_are_integers_however_json_writes_them() -> None:
    def count(n: int, more: list[int | None], ratio: float = 0.0) -> Any:
        return n, more, ratio

    found = Tool.of(count)({"n": 5.0, "more": [2.0, None], "ratio": 5.0})
    assert [*map(type, (found[0], *found[1], found[2]))] == [int, int, type(None), float]
    assert found == (5, [2, None], 5.0)


def test_objects_inside_of_values_are_json_too() -> None:
    assert text_of([Order("tea", Color.RED), Outer(part=Inner(n=1))]) == (
        '[{"item": "tea", "color": "red", "count": 1, "tags": []}, {"part": {"n": 1}}]'
    )
    with pytest.raises(InvalidRequest, match="parameters: got 5, allowed is a JSON schema"):
        Tool("a", "", 5, print)  # type: ignore[arg-type]
