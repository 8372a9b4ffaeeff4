"""Functions and types where a request wants descriptions: tools of ``chat`` and forms of answers;
partials and objects as tools."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypedDict

import pydantic
import pytest

import musespark
from musespark.agents import Tool, act
from musespark.agents.tools import tools_by_name
from musespark.errors import InvalidRequest
from support.scripted_chat import Script, call


def weather(city: str, unit: str = "C") -> str:
    """The weather of a city."""
    return f"{city}: 21 {unit}"


@musespark.tool(effects=True)
def send_mail(to: str, text: str) -> str:
    """Send a mail."""
    return f"{to}: {text}"


@pytest.fixture(scope="module")
def nano() -> Iterator[musespark.Model]:
    with musespark.load(threads=1) as model:
        yield model


# ---- tools -------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [[weather], (Tool.of(weather),), {"weather": weather}])
def test_chat_tells_of_functions_and_runs_none(nano: Any, given: Any) -> None:
    """They were refused, though contemplating agents took them."""
    options = {"tool_choice": "required", "seed": 1, "max_new_tokens": 60}
    same = nano.chat("Weather in Bergen?", tools=[Tool.of(weather).to_openai()], **options)
    found = nano.chat("Weather in Bergen?", tools=given, **options)
    assert found.tokens == same.tokens and found.usage == same.usage
    assert found.tool_calls[0]["function"]["name"] == "weather"
    batch = nano.chat_batch(["Weather in Bergen?"], tools=given, **options)
    assert batch[0].tokens == same.tokens
    with pytest.raises(InvalidRequest, match="tools: got a value of type dict"):
        nano.chat("?", tools=Tool.of(weather).to_openai())


def test_partials_are_tools_of_what_is_not_given_yet() -> None:
    mine = functools.partial(functools.partial(weather, unit="F"))
    found = tools_by_name({"mine": mine})["mine"]
    assert found.description == "The weather of a city."
    assert [*found.parameters["properties"]] == ["city"]
    assert act(Script([call("mine", {"city": "a"})], "Ok."), "?", {"mine": mine}).uses[
        0
    ].answer == ("a: 21 F")
    with pytest.raises(InvalidRequest, match="mine: no argument 'unit'"):
        found({"city": "a", "unit": "C"})
    first = tools_by_name({"mine": functools.partial(weather, "Bergen")})["mine"]
    assert [*first.parameters["properties"]] == ["unit"] and first({}) == "Bergen: 21 C"


def test_a_partial_has_the_effects_of_its_function() -> None:
    found = tools_by_name({"mail": functools.partial(send_mail, to="a")})["mail"]
    assert found.effects and found({"text": "b"}) == "a: b"


def test_objects_are_tools_by_their_call() -> None:
    class Shop:
        """A shop."""

        price: int = 3

        def __call__(self, count: int) -> int:
            """What so many cost."""
            return count * self.price

    class Quiet(Shop):
        """Says it for its call."""

        def __call__(self, count: int) -> int:
            return 0

    found = tools_by_name({"cost": Shop(), "quiet": Quiet()})
    assert found["cost"].description == "What so many cost." and found["cost"]({"count": 2}) == 6
    assert found["cost"].parameters["properties"] == {"count": {"type": "integer"}}

    @functools.lru_cache
    def cached(a: int) -> int:
        """Kept."""
        return a

    assert Tool.of(cached).parameters["properties"] == {"a": {"type": "integer"}}


# ---- answers -----------------------------------------------------------------------------------


class Size(Enum):
    small = "s"
    large = "l"


@dataclass
class Trip:
    size: Size
    day: datetime.date


class Pair(TypedDict):
    a: bool
    b: Size


class Spend(pydantic.BaseModel, extra="forbid"):
    size: Size
    big: bool


@pytest.mark.parametrize(
    ("form", "fits"),
    [
        (Trip, lambda value: isinstance(value, Trip) and isinstance(value.day, datetime.date)),
        (Pair, lambda value: isinstance(value, dict) and isinstance(value["b"], Size)),
        (tuple[bool, Size], lambda value: isinstance(value, tuple) and isinstance(value[1], Size)),
        (Spend | bool, lambda value: isinstance(value, (Spend, bool))),
        (tuple[Spend, Spend], lambda value: all(isinstance(one, Spend) for one in value)),
        (Size, lambda value: isinstance(value, Size)),
        (pydantic.TypeAdapter(tuple[Spend, bool]), lambda value: isinstance(value[0], Spend)),
        (Spend, lambda value: isinstance(value, Spend)),
    ],
)
def test_answers_by_types(nano: Any, form: Any, fits: Any) -> None:
    """A dataclass was refused: only classes of pydantic had a schema."""
    for seed in range(4):
        found = nano.chat("Plan.", json_schema=form, seed=seed, temperature=2.0, max_new_tokens=200)
        if found.parsed is None:  # such as the 30th of February
            assert "allowed is a date" in found.parse_error, found
        else:
            assert fits(found.parsed), found.parsed
    assert nano.generate("1", json_schema=bool, max_new_tokens=20).parsed in (True, False)


def test_lists_of_classes_are_forms_of_answers(nano: Any) -> None:
    found = nano.chat("Plan.", json_schema=list[Trip], max_new_tokens=400)
    assert found.parsed is None or all(isinstance(one, Trip) for one in found.parsed)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (Spend(size="s", big=True), "json_schema: got an object of Spend, allowed is the class"),
        (5, "json_schema: got 5, allowed is a schema .* or a type: a class with"),
        (complex, "json_schema: no JSON has the type <class 'complex'>; allowed is a schema"),
        (weather, "json_schema: got <function weather .*>, allowed is a schema"),
    ],
)
def test_what_is_no_form_of_an_answer(nano: Any, form: Any, says: str) -> None:
    for ask in (nano.chat, nano.generate):
        with pytest.raises(InvalidRequest, match=says):
            ask("?", json_schema=form)
