"""A conversation whose calls are answered by functions, for agents that are driven from outside."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from musespark.agents.events import ToolUse
from musespark.agents.flags import Flag, flags_of
from musespark.agents.running import Ran, Run, run_all
from musespark.agents.telling import MAX_RESULT, Room, Share, told_call
from musespark.agents.tools import Tool
from musespark.calling import NO_CALLS_LEFT, Calling, no_such_tool
from musespark.errors import InvalidRequest


def first_messages(messages: str | Sequence[Mapping[str, Any]]) -> list[Any]:
    """A copy of a conversation; InvalidRequest for what is none."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence) or isinstance(messages, (bytes, bytearray)):
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
    those the model is told to answer, once. ``room``: in the model's context, and ``options``: of
    each turn."""

    def __init__(
        self,
        tools: Mapping[str, Tool],
        messages: str | Sequence[Mapping[str, Any]],
        calls: int,
        room: Room | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        super().__init__(first_messages(messages), calls)
        self._tools, self.uses = tools, list[ToolUse]()
        self._room, self._options = room, options or {}
        self._share: Share | None = None

    def take(self, result: Any) -> bool:
        if self._room is not None:
            self._share = self._room.after(result, self._options, len(result.tool_calls))
        return super().take(result)

    def answer(self, index: int, call: Mapping[str, Any], *, allowed: bool) -> Any:
        use, content = self._use(call, allowed)
        self.uses.append(use)
        if self._share is not None:
            self._share.take(use.answer)
        return content

    def _use(self, call: Mapping[str, Any], allowed: bool) -> tuple[ToolUse, Any]:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        seen = (self.turns - 1, call.get("id", ""), name, arguments)
        tool = self._tools.get(name)
        if not allowed or tool is None:
            why = no_such_tool(name, [*self._tools]) if allowed else NO_CALLS_LEFT
            return ToolUse(*seen, answer=f"error: {why}", status="error"), f"error: {why}"
        images = None if self._room is None else self._room.images
        try:
            (ran,) = run_all(Run(((tool, arguments),), most=MAX_RESULT, images=images))
        except InvalidRequest as error:  # it is to be awaited: the model may try something else
            ran = Ran(error=error)
        sees = self._room is None or images is not None
        return told_call(seen, ran, self._tools, share=self._share, sees=sees)
