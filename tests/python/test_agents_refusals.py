"""What is asked of tools and agents wrongly: the errors name the field, what it got and what is
allowed."""

from __future__ import annotations

import asyncio
import pickle
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
import pytest

import musespark
from musespark.agents import Tool, aact, act, events
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


def test_functions_as_tools_of_chat_are_shown_the_way(nano: Any) -> None:
    for given in (weather, Tool.of(weather)):
        with pytest.raises(InvalidRequest, match=r"tools\[0\]: got .*\.to_openai\(\).*; act\(\)"):
            nano.chat("?", tools=[given])


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
