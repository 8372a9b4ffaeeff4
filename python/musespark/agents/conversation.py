"""A conversation whose calls are answered by functions, for agents that are driven from outside."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from musespark.agents.events import ToolUse
from musespark.agents.flags import Flag, flags_of
from musespark.agents.tools import Content, Tool, text_of
from musespark.calling import NO_CALLS_LEFT, Calling, no_such_tool
from musespark.errors import Error, InvalidRequest
from musespark.parts import is_media
from musespark.text.toolcalls import skip_space

MAX_RESULT = 16_384  # characters of a tool's answer that a model is told
_SHOWN = 300  # of an error
# This is done on an event loop, where others wait: 30 ms and 60 ms at the most.
_MOST_SEARCHED = 1 << 17  # characters in which flags are looked for
_MOST_COUNTED = 1 << 21  # characters of a list whose items are counted


def told(error: BaseException) -> str:
    """What a model is told of an error: of ours the message, of a function's its name too."""
    try:
        what = str(error) if isinstance(error, Error) else f"{type(error).__name__}: {error}"
    except Exception:  # it cannot say what it is
        what = type(error).__name__
    return text_of(f"error: {what:.{_SHOWN}}")


def told_use(
    seen: tuple[int, str, str, Any],
    text: str,
    status: str,
    seconds: float,
    tools: Mapping[str, Tool],
    markers: Collection[str] = (),
) -> ToolUse:
    """A use (``seen``: its turn, id, name and arguments) with what is told of a text, cut where it
    is too long, and with its flags: of what is told, and of what comes next."""
    flags = flags_of(text[:_MOST_SEARCHED], tools, markers)
    if len(text) <= MAX_RESULT:
        return ToolUse(*seen, text, status, seconds, flags)
    end, items = _shown_items(text, MAX_RESULT)
    left_out = len(text) - end
    note = f"{left_out} more characters were left out"
    if items is not None:
        note = f"{items[0]} of {items[1]} items are shown; {note}"
    return ToolUse(*seen, f"{text[:end]}\n[{note}]", status, seconds, flags, left_out, items)


def content_of(value: Any, use: ToolUse, sees: bool = True) -> Any:
    """The content of the message that answers a call: what the model is told of texts and images.
    ``sees``: whether it takes images."""
    if not isinstance(value, Content):
        return use.answer
    images = [part for part in value.parts if is_media(part)]
    if images and not sees:
        return f"{use.answer}\n[images, which this model cannot see: {len(images)}]".strip()
    if use.left_out:
        return [*images, {"type": "text", "text": use.answer}]
    return list(value.parts)


def _shown_items(text: str, most: int) -> tuple[int, tuple[int, int] | None]:
    """Where to cut a text of more than ``most`` characters. One that is a list in JSON: after its
    last whole item; and how many of how many items that are. A list that would take long to count
    is cut as a text."""
    if not text.startswith("[") or len(text) > _MOST_COUNTED:
        return most, None
    try:
        total = len(json.loads(text))
    except (ValueError, RecursionError):  # a text that only begins so
        return most, None
    decoder, at, end, shown = json.JSONDecoder(), skip_space(text, 1), 0, 0
    while shown < total:
        _, at = decoder.raw_decode(text, at)
        if at > most:
            break
        end, shown = at, shown + 1
        at = skip_space(text, skip_space(text, at) + 1)  # behind the comma
    return (end, (shown, total)) if shown else (most, None)


def first_messages(messages: str | Sequence[Mapping[str, Any]]) -> list[Any]:
    """A copy of a conversation; InvalidRequest for what is none."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence):
        raise InvalidRequest(f"messages: got {messages!r:.60}, allowed is a str or a list")
    return list(messages)


def flags_of_results(
    messages: Sequence[Any], tools: Mapping[str, Tool], markers: Collection[str]
) -> tuple[Flag, ...]:
    """What looks like an instruction in the answers of tools that a conversation has already."""
    found: list[Flag] = []
    for message in messages:
        if isinstance(message, Mapping) and message.get("role") == "tool":
            found += flags_of(_text_in(message.get("content")), tools, markers)
    return tuple(found)


def _text_in(content: Any) -> str:
    """The text of a message's content, which nobody has checked yet."""
    parts = content if isinstance(content, Sequence) and not isinstance(content, str) else ()
    texts = (part.get("text") for part in parts if isinstance(part, Mapping))
    return "\n".join(filter(lambda text: isinstance(text, str), [content, *texts]))


def check_calls(calls: Any) -> None:
    """InvalidRequest where ``calls`` is no number of calls."""
    if isinstance(calls, bool) or not isinstance(calls, int) or calls < 0:
        raise InvalidRequest(f"calls: got {calls!r:.60}, allowed is an integer >= 0")


def refuse_effects(tools: Mapping[str, Tool], where: str) -> None:
    """InvalidRequest for tools whose calls nobody would approve."""
    for name, tool in tools.items():
        if tool.effects:
            raise InvalidRequest(
                f"tools: {name} has effects, which {where} cannot ask about; allowed are tools "
                "without, or act(), which asks"
            )


class ToolConversation(Calling):
    """One conversation under way, its calls answered by functions. ``messages``: as for
    :meth:`Model.chat`; they are copied, and the copy grows. ``calls``: how many are answered; after
    those the model is told to answer, once."""

    def __init__(
        self, tools: Mapping[str, Tool], messages: str | Sequence[Mapping[str, Any]], calls: int
    ):
        super().__init__(first_messages(messages), calls)
        self._tools, self.uses = tools, list[ToolUse]()

    def answer(self, index: int, call: Mapping[str, Any], *, allowed: bool) -> Any:
        use, content = self._use(call, allowed)
        self.uses.append(use)
        return content

    def _use(self, call: Mapping[str, Any], allowed: bool) -> tuple[ToolUse, Any]:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        seen = (self.turns - 1, call.get("id", ""), name, arguments)
        tool = self._tools.get(name)
        if not allowed or tool is None:
            why = no_such_tool(name, [*self._tools]) if allowed else NO_CALLS_LEFT
            return ToolUse(*seen, answer=f"error: {why}", status="error"), f"error: {why}"
        began, status, value = time.perf_counter(), "done", None
        try:
            value = tool(arguments)
            answer = text_of(value)
        except Exception as error:  # the function's too: the model may try something else
            answer, status, value = told(error), "error", None
        seconds = time.perf_counter() - began
        use = told_use(seen, answer, status, seconds, self._tools)
        return use, content_of(value, use)
