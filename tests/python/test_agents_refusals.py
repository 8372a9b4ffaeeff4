"""What is asked of tools and agents wrongly: the errors name the field, what it got and what is
allowed."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
import pytest

import musespark
from musespark.agents import Tool, aact, act, events
from musespark.agents.builtin import (
    add_to_date,
    calculate,
    convert_units,
    days_between,
    file_tools,
    python_tool,
    table_tools,
    weekday,
)
from musespark.agents.tools import text_of
from musespark.errors import InvalidRequest
from musespark.options import unknown_argument
from support.scripted_chat import Script, call


def weather(city: str) -> str:
    """The weather of a city."""
    return f"{city}: rain"


@musespark.tool(effects=True)
def send_mail(to: str) -> str:
    """Send a mail."""
    return "ok"


@pytest.fixture(scope="module")
def nano() -> Any:
    with musespark.load(context=1024) as model:
        yield model


# ---- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"markers": 5}, "unknown argument 'markers'"),
        ({"sees": 5}, "unknown argument 'sees'"),
        ({"chat": 5}, "unknown argument 'chat'"),
        ({"max_stepps": 1}, "unknown argument 'max_stepps'; did you mean 'max_steps'"),
        ({"aprove": print}, "unknown argument 'aprove'; did you mean 'approve'"),
        ({"temprature": 1}, "unknown argument 'temprature'; did you mean 'temperature'"),
    ],
)
def test_options_that_act_does_not_have(nano: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        nano.act("?", [weather], **options)
    with pytest.raises(InvalidRequest, match=says):
        asyncio.run(nano.aact("?", [weather], **options))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tools": []}, "tools: look has its own"),
        ({"messages": []}, "messages: look makes them of the question and the images"),
        ({"stream": True}, "stream: look gives its result whole"),
        ({"max_steps": 2}, "max_steps: no option of look; calls says how many"),
        ({"model": 5}, "unknown argument 'model'"),
        ({"call": 2}, "unknown argument 'call'; did you mean 'calls'"),
        ({"conventions": "none"}, "unknown argument 'conventions'; did you mean 'convention'"),
    ],
)
def test_options_that_look_does_not_have(nano: Any, options: dict[str, Any], says: str) -> None:
    picture = Path(musespark.__file__).parent / "nano" / "examples" / "window.png"
    with pytest.raises(InvalidRequest, match=says):
        nano.look("?", [picture], **options)


def test_an_unknown_argument_crosses_processes() -> None:
    error = unknown_argument("temprature", ["temperature"])
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.known == ("temperature",)


def test_a_system_message_is_shown_its_place(nano: Any) -> None:
    """It said: did you mean 'stream'? And act refuses that."""
    says = r"unknown argument 'system'; a system message is the first one of messages: \[\{\"role"
    for ask in (lambda: nano.act("?", [weather], system="a"), lambda: nano.chat("?", system="a")):
        with pytest.raises(InvalidRequest, match=says):
            ask()


def test_bytes_are_no_conversation(nano: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"messages: got b'hi', allowed is a str or a list"):
        nano.act(b"hi", [weather])


def test_what_is_called_like_nothing_is_shown_how_to_be_named(nano: Any) -> None:
    with pytest.raises(
        InvalidRequest, match=r'dict of names .*, such as \{"get_weather": function\}'
    ):
        nano.act("?", [lambda city: city])
    with pytest.raises(InvalidRequest, match="a description with no function to run, allowed are"):
        nano.act("?", [Tool.of(weather).to_openai()])


# ---- approval ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_an_approval_that_is_a_coroutine_needs_an_event_loop() -> None:
    async def approve(one: events.ProposedCall) -> bool:
        return True

    mail = [call("send_mail", {"to": "Ann"})]
    for given, turns in ((approve, ()), (lambda one: approve(one), (mail,))):
        with pytest.raises(InvalidRequest, match=r"approve: got a coroutine .* use aact\(\)"):
            act(Script(*turns), "?", [send_mail], approve=given)
    found = asyncio.run(
        aact(Script(mail, "Ok.").asynchronous, "?", [send_mail], approve=lambda one: approve(one))
    )
    assert found.uses[0].status == "done"
    with pytest.raises(InvalidRequest, match="on_event: got a coroutine function, allowed is a"):
        asyncio.run(aact(Script(), "?", [weather], on_event=approve))


def test_what_approval_may_say() -> None:
    mail = [call("send_mail", {"to": "Ann"})]
    allowed = "allowed is True, False or a text that says to the model why not"
    with pytest.raises(InvalidRequest, match=f"approve: gave 1 for send_mail, {allowed}"):
        act(Script(mail), "?", [send_mail], approve=lambda one: 1)


# ---- functions ---------------------------------------------------------------------------------


class Desk:
    def book(self, seats: int) -> int:
        """Book seats."""
        return seats


def test_methods_are_tools_of_their_object() -> None:
    assert Tool.of(Desk().book)({"seats": 2}) == 2
    says = r"tools: book\(self\): a method without its object; give object\.book"
    with pytest.raises(InvalidRequest, match=says):
        Tool.of(Desk.book)


@dataclass
class Seats:
    count: int = "two"  # type: ignore[assignment]


def test_defaults_that_their_own_type_refuses() -> None:
    def number(a: int = "a") -> None: ...  # type: ignore[assignment]
    def bounded(a: Annotated[int, annotated_types.Ge(1)] = 0) -> None: ...
    def chosen(a: Literal["x", "y"] = "z") -> None: ...  # type: ignore[assignment]
    def inside(a: Seats) -> None: ...

    for function, says in [
        (number, r"tools: number\(a\): the default: 'a', must be integer"),
        (bounded, r"tools: bounded\(a\): the default: 0, must be at least 1"),
        (chosen, r"tools: chosen\(a\): the default: 'z', must be one of"),
        (inside, r"tools: inside\(a\)\.count: the default: 'two', must be integer"),
    ]:
        with pytest.raises(InvalidRequest, match=says):
            Tool.of(function)

    def fine(a: float = 1, b: str | None = None, c: Literal["x"] | int = 3) -> None: ...  # type: ignore

    assert Tool.of(fine).parameters["required"] == []


@dataclass
class Order:
    item: str


def test_a_wrong_field_inside_is_named_with_its_place() -> None:
    def order(one: Order, many: list[Order] | None = None) -> None: ...

    for wrong, place in [({"one": {"item": "a", "z": 1}}, "one"), ({"many": [{"z": 1}]}, "many")]:
        given = {"one": {"item": "a"}, **wrong}
        if place == "many":
            given["many"][0]["item"] = "b"
        with pytest.raises(InvalidRequest, match=rf"^order\.{place}: no argument 'z', it has"):
            Tool.of(order)(given)


def test_what_cannot_be_marked() -> None:
    for given in (5, "weather", print, Desk().book):
        with pytest.raises(InvalidRequest, match=r"tool: got .*(allowed is a func|give a Tool)"):
            musespark.tool(given)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="tool: got 5, allowed is a function"):
        musespark.tool(name="a")(5)


# ---- values ------------------------------------------------------------------------------------


class Silent:
    """Says no more of itself than where it lies."""


class Named:
    def __str__(self) -> str:
        return ""


@pytest.mark.parametrize(
    "value",
    [
        b"bytes",
        bytearray(b"a"),
        Silent(),
        {"a": [Silent()]},
        weather,
        Desk().book,
        (i for i in [b""]),
    ],
)
def test_values_that_no_text_has(value: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"gave a value of type .*, allowed are a str"):
        text_of(value)


def test_a_value_without_a_text_is_told_as_an_error() -> None:
    def photo() -> Any:
        return b"\xff\xd8"

    def lock() -> Any:
        return threading.Lock()

    found = act(Script([call("photo", {}), call("lock", {})], "Ok."), "?", [photo, lock])
    for use, kind in zip(found.uses, ("bytes", "lock"), strict=True):
        assert use.status == "error" and "0x" not in use.answer
        assert use.answer.startswith(f"error: the tool gave a value of type {kind}")


def test_objects_that_say_what_they_are() -> None:
    assert text_of([Named(), Path("a"), 1j]) == '["", "a", "1j"]'


# ---- the built-in tools ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: calculate(5), "expression: got 5, allowed is a str"),
        (lambda: weekday(5), "date: got 5, allowed is a str"),
        (lambda: days_between("2026-05-31", None), "end: got None, allowed is a str"),
        (lambda: add_to_date("2026-05-31", days="x"), "days: got 'x', allowed is an integer"),
        (lambda: add_to_date("2026-05-31", months=0.5), r"months: got 0\.5, allowed is an"),
        (lambda: convert_units("x", "mi", "km"), "value: got 'x', allowed is a finite number"),
        (lambda: convert_units(float("nan"), "mi", "km"), "value: got nan, allowed is a finite"),
        (lambda: convert_units(1e308, "km", "m"), r"value: got 1e\+308 km, which is too large for"),
        (lambda: convert_units(1, ["mi"], "km"), r"unit: got \['mi'\], allowed is a str"),
        (lambda: python_tool(5), "limits: got 5, allowed is a SandboxLimits"),
        (lambda: python_tool(0), "limits: got 0, allowed is a SandboxLimits"),
        (lambda: file_tools({5: "."}), "folders: got the name 5, allowed is a str without"),
        (lambda: file_tools({"a": __file__}), r"folders\['a'\]: no folder, '.*' is a file"),
        (lambda: table_tools({5: __file__}), "files: got the name 5, allowed is a table's, a str"),
        (lambda: table_tools({"a": "."}), r"files\['a'\]: no file, '\.' is a folder"),
    ],
)
def test_built_in_tools_name_what_they_cannot_take(ask: Callable[[], Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        ask()


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("", "got '', allowed is such as 2 * (3 + 4)"),
        ("1 +", "got '1 +', allowed is such as 2 * (3 + 4) (invalid syntax)"),
        ("1,000+1", "got '1,000+1', allowed are numbers without commas: 1000, not 1,000"),
        ("max(1,000)", "got 'max(1,000)', allowed are numbers without commas: 1000, not 1,000"),
        ("x + 1", "'x' is no arithmetic"),
    ],
)
def test_what_a_calculator_says_once(expression: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        calculate(expression)
    assert str(caught.value) == f"expression: {says}"


def test_what_a_calculator_says_of_powers() -> None:
    assert calculate("2^3") == calculate("2**3") == "8" and calculate("max(1,10,0.5)") == "10"
    rules = Tool.of(calculate).parameters["properties"]
    assert "(or ^: 2^3 is 8)" in rules["expression"]["description"]


def test_first_lines_that_are_none(tmp_path: Path) -> None:
    for text, says in [
        ("a,a\n1,2\n", "got the column 'a' twice in the first line"),
        ("", "got an empty file, allowed is a first line with the columns"),
        ("\na,b\n", "got an empty first line, allowed is a first line with the columns"),
    ]:
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(InvalidRequest, match=rf"files\['a'\]: {says}"):
            table_tools({"a": tmp_path / "a.csv"})


def test_paths_that_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "link").symlink_to("a.txt")
    (tmp_path / "way").symlink_to(".")
    _, read = file_tools({"f": tmp_path})
    for path, says in [
        ("f/link", "'f/link': it is a link; links are not followed"),
        ("f/way/a.txt", "a part of it is no folder, or a link; links are not followed"),
        ("f/a.txt\0", "allowed is a path without null characters"),
        ("f//a.txt", "allowed is a path without '.', '..' and empty parts"),
    ]:
        with pytest.raises(InvalidRequest, match=f"path: .*{says}"):
            read({"path": path})
