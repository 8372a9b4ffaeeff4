"""Ids of tool calls as clients see them: no two answers share one.

A model numbers the calls of each conversation from 1, and some templates write these ids into
prompts. So clients are told an id with the answer's own behind it, and what they send back is read
without that: the prompt, what is cached of it and what follows are as in Python.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

_DIGITS = 24  # of an answer's id (wire.new_id)
_TOLD = re.compile(rf"(.+)_[0-9a-f]{{{_DIGITS + 2}}}", re.DOTALL)


def told_id(id: str, answer: str, index: int = 0) -> str:
    """A call's id for clients. ``answer``: the id of the answer that it is in; ``index``: of the
    choice, of which one answer may have several."""
    return f"{id}_{answer[-_DIGITS:]}{index:02x}"


def with_own_ids(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, their calls and results with the ids that the model gave. Two calls that would
    have one id, as those of several conversations in one have, keep what the client sent."""
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    own = {call["id"]: _own(call["id"]) for call in calls}
    shared = {id for id, count in Counter(own.values()).items() if count > 1}
    for call in calls:
        call["id"] = _unless(shared, own, call["id"])
    for message in messages:
        if message["role"] == "tool":
            message["tool_call_id"] = _unless(shared, own, message["tool_call_id"])
    return messages


def _own(id: str) -> str:
    told = _TOLD.fullmatch(id)
    return id if told is None else told[1]


def _unless(shared: set[str], own: dict[str, str], id: str) -> str:
    """The id that the model gave, where it is known and one call's alone."""
    found = own.get(id, id)
    return id if found in shared else found
