"""What is asked of tools and agents wrongly: the errors name the field, what it got and what is
allowed."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest

import musespark
from musespark.agents import Tool, aact, act, events
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
