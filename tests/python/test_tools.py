"""Functions as tools, and the loop that runs them, with scripted answers and with Spark Nano."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from musespark.tools import Tool, run_tools, tools_by_name

import musespark
from musespark.calling import NO_CALLS_LEFT
from musespark.errors import InvalidRequest
from musespark.results import ChatResult
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


def broken(reason: str) -> None:
    raise RuntimeError(f"no {reason}")


def call(name: str, arguments: Any, number: int = 1) -> dict[str, Any]:
    return {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


class Script:
    """Answers like a chat: each turn a list of calls, an answer, or a result."""

    def __init__(self, *turns: Any):
        self.turns, self.seen = list(turns), list[Any]()

    def __call__(self, messages: list[Any], *, tools: list[Any], **options: Any) -> ChatResult:
        self.seen.append(([dict(m) for m in messages], tools, options))
        turn = self.turns.pop(0)
        if isinstance(turn, ChatResult):
            return turn
        given = {"tool_calls": tuple(turn)} if isinstance(turn, list) else {"content": turn}
        reason = "tool_calls" if isinstance(turn, list) else "stop"
        return ChatResult(text="", tokens=(), seed=0, finish_reason=reason, **given)


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
                    "days": {"type": "integer", "description": "how many"},
                    "unit": {"enum": ["C", "F"]},
                },
                "required": ["city"],
                "additionalProperties": False,
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


# ---- values against schemas --------------------------------------------------------------------


def test_values_are_judged_as_jsonschema_judges_them() -> None:
    """Random values against random schemas of every keyword that is checked."""
    rng = random.Random(3)
    schemas = [
        {"type": "integer", "minimum": 0, "maximum": 2},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 2},
        {"type": ["string", "null"], "minLength": 1, "maxLength": 2},
        {"type": "boolean"},
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


# ---- the loop ----------------------------------------------------------------------------------


def test_calls_are_run_and_told() -> None:
    chat = Script([call("weather", {"city": "Bergen", "days": 2})], "It will rain.")
    run = run_tools(chat, "Rain?", [weather], temperature=0.5)
    assert run.content == str(run) == "It will rain." and run.complete and run.turns == 2
    (use,) = run.uses
    assert (use.turn, use.id, use.name, use.error) == (0, "call_1", "weather", False)
    assert use.arguments == {"city": "Bergen", "days": 2}
    assert use.answer == "Bergen: rain for 2 days in C"
    assert [m["role"] for m in run.messages] == ["user", "assistant", "tool", "assistant"]
    assert run.messages[2]["content"] == use.answer and run.messages[2]["tool_call_id"] == "call_1"
    messages, tools, options = chat.seen[1]
    assert len(messages) == 3 and tools == [Tool.of(weather).to_openai()]
    assert options == {"temperature": 0.5}


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("weather", {}, "error: weather: city is missing"),
        ("weather", {"city": 3}, "error: weather.city: 3, must be string"),
        (
            "weather",
            {"city": "a", "unit": "K"},
            "error: weather.unit: 'K', must be one of 'C', 'F'",
        ),
        ("weather", {"city": "a", "b": 1}, "error: weather: no argument 'b'"),
        ("weather", [1], "error: weather: arguments must be an object"),
        ("wether", {"city": "a"}, "error: no tool 'wether', there are weather, broken"),
        ("broken", {"reason": "time"}, "error: RuntimeError: no time"),
    ],
)
def test_what_is_wrong_is_told_to_the_model(name: str, arguments: Any, answer: str) -> None:
    run = run_tools(Script([call(name, arguments)], "Sorry."), "Rain?", [weather, broken])
    (use,) = run.uses
    assert use.error and use.answer.startswith(answer)
    assert run.messages[2]["content"] == use.answer and run.content == "Sorry."


def test_after_the_last_call_the_model_is_told_to_answer_once() -> None:
    one = [call("weather", {"city": "a"})]
    run = run_tools(Script(one, one, "Rain."), "Rain?", [weather], calls=1)
    assert [use.error for use in run.uses] == [False, True]
    assert (
        run.uses[1].answer == f"error: {NO_CALLS_LEFT}" and run.complete and run.content == "Rain."
    )
    run = run_tools(Script(one, one, one), "Rain?", [weather], calls=1)
    assert not run.complete and run.turns == 3 and len(run.uses) == 2


def test_a_turn_that_is_cut_or_no_call_at_all() -> None:
    blank = {"text": "", "tokens": (), "seed": 0}
    cut = ChatResult(**blank, finish_reason="length", tool_calls=(call("weather", {"city": "a"}),))
    run = run_tools(Script(cut), "Rain?", [weather])
    assert not run.complete and run.uses == () and run.turns == 1
    bad = ChatResult(**blank, finish_reason="stop", malformed_tool_calls=("{",))
    run = run_tools(Script(bad, "Rain."), "Rain?", [weather])
    assert run.complete and run.turns == 2 and run.messages[2]["role"] == "user"
    assert run.malformed == ("{",)
    run = run_tools(Script(bad, bad, bad, bad), "Rain?", [weather], calls=2)
    assert not run.complete and run.turns == 4


def test_values_become_json_and_ctrl_c_is_not_held() -> None:
    def table(rows: int) -> dict[str, Any]:
        return {"größe": [1.5] * rows, "when": Ellipsis}

    def leave() -> None:
        raise KeyboardInterrupt

    run = run_tools(Script([call("table", {"rows": 2})], "ok"), "?", [table])
    assert json.loads(run.uses[0].answer) == {"größe": [1.5, 1.5], "when": "Ellipsis"}
    with pytest.raises(KeyboardInterrupt):
        run_tools(Script([call("leave", {})]), "?", [leave])


def test_refusals() -> None:
    for more, says in [
        ({"calls": -1}, "calls: got -1"),
        ({"calls": True}, "calls: got True"),
        ({"stream": True}, "stream: got True"),
    ]:
        with pytest.raises(InvalidRequest, match=says):
            run_tools(Script(), "a", [weather], **more)
    with pytest.raises(InvalidRequest, match="messages: got 5"):
        run_tools(Script(), 5, [weather])  # type: ignore[arg-type]


def test_the_callers_messages_stay_as_they_are() -> None:
    given: list[Mapping[str, Any]] = [{"role": "user", "content": "Rain?"}]
    run_tools(Script([call("weather", {"city": "a"})], "ok"), given, [weather])
    assert len(given) == 1


def test_spark_nano_calls_a_function() -> None:
    """A whole round with the embedded model, whatever it makes of the answer."""
    asked: list[dict[str, Any]] = []

    def get_weather(city: str) -> str:
        """Get the weather of a city.

        Args:
            city: name of the city
        """
        asked.append({"city": city})
        return "sunny, 21 degrees"

    with musespark.load(context=1024) as model:
        run = model.run_tools("What is the weather in Paris?", [get_weather], temperature=0)
    assert run.turns >= 1 and run.complete
    assert len(asked) == len([use for use in run.uses if not use.error])
    assert asked, "Nano was trained to call tools"
