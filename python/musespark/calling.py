"""A conversation in which a model calls tools, until it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NO_CALLS_LEFT = "no tool calls are left; answer now with what you know"
NO_VALID_CALL = "That was no valid tool call. Call a tool again, or answer."


def choice_after(choice: str | None, *, called: bool) -> str | None:
    """The ``tool_choice`` of the next turn: one that requires a call is met once there is one."""
    return choice if not called or choice in ("auto", "none", None) else "auto"


class Calling:
    """Takes a model's turns in and answers its calls, ``calls`` of them; after those it is told to
    answer, once. Who uses it says in :meth:`answer` what a call is answered with.

    ``messages``: the conversation, which grows. ``turns``: how often the model spoke.
    ``complete``: whether it ended with an answer, not within its limits nor with more calls.
    ``malformed``: raw texts of calls that could not be read.
    """

    def __init__(self, messages: list[Any], calls: int):
        self.messages, self._left, self._last = messages, calls, False
        self.turns, self.complete = 0, True
        self.malformed: list[str] = []

    def take(self, result: Any) -> bool:
        """Takes a turn in; whether the conversation goes on."""
        self.turns += 1
        self.malformed += result.malformed_tool_calls
        self.messages.append(dict(result.message))
        asked = bool(result.tool_calls or result.malformed_tool_calls)
        cut = result.finish_reason in ("length", "cancelled", "deadline")
        self.complete = not cut and not (asked and self._last)
        if not asked or not self.complete:
            return False
        self._last = self._left <= 0  # the next turn is to be the answer
        for index, call in enumerate(result.tool_calls):
            allowed = self._left > 0
            self._left -= allowed
            content = self.answer(index, call, allowed=allowed)
            told = {"name": call["function"]["name"], "tool_call_id": call.get("id", "")}
            self.messages.append({"role": "tool", **told, "content": content})
        if not result.tool_calls:  # there is no call that a tool could answer
            self._left -= 1
            self.messages.append({"role": "user", "content": NO_VALID_CALL})
        return True

    def answer(self, index: int, call: Mapping[str, Any], *, allowed: bool) -> Any:
        """The content of the tool's message for call ``index`` of the turn; not ``allowed``: no
        calls are left."""
        raise NotImplementedError


def no_such_tool(name: str, known: Sequence[str]) -> str:
    """What a model is told that calls what there is not."""
    return f"no tool {name!r:.60}, there are {', '.join(known)}"
