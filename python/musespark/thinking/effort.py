"""Effort: by the template where the model knows it, else by a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from musespark.errors import InvalidRequest
from musespark.options import EFFORTS
from musespark.thinking.policy import BUDGET, EFFORT_BUDGETS, EXITS, Thinking

ALL_EFFORTS = ("none", "minimal", *EFFORTS)


def by_effort(
    chat: Mapping[str, Any], thinking: Thinking, *, written: bool, marked: bool, chosen: bool
) -> tuple[dict[str, Any], Thinking]:
    """Options of the prompt and of decoding for a ``reasoning_effort``.

    ``written``: the template writes one. ``chosen``: it can leave thoughts out. ``marked``: tokens
    mark the model's thoughts. ``none`` is mode instant, or the template's lowest with an empty
    thought; ``minimal`` the lowest with a budget.
    The others are the template's, or where it knows none a budget, unless the caller gives one.
    """
    effort, mode, chat = chat.get("reasoning_effort"), chat.get("mode"), dict(chat)
    if mode == "instant":
        _refuse_limits(thinking, "mode 'instant'")
    if effort is None:
        return chat, thinking
    if not isinstance(effort, str) or effort not in ALL_EFFORTS:
        raise InvalidRequest(
            f"reasoning_effort: got {effort!r:.60}, allowed is one of {list(ALL_EFFORTS)}"
        )
    if effort == "none":
        if mode == "thinking":
            raise InvalidRequest("mode 'thinking' contradicts reasoning_effort 'none'")
        _refuse_limits(thinking, "reasoning_effort 'none'")
        if mode == "instant":  # the same said twice
            return {**chat, "reasoning_effort": None}, thinking
        if marked and not chosen:
            lowest = "low" if written else None
            return {**chat, "reasoning_effort": lowest}, replace(thinking, budget=0)
        return {**chat, "reasoning_effort": None, "mode": "instant"}, thinking
    if mode == "instant":
        raise InvalidRequest(f"mode 'instant' (no thought) contradicts reasoning_effort {effort!r}")
    if written:
        chat["reasoning_effort"] = "low" if effort == "minimal" else effort
    elif marked:
        chat["reasoning_effort"] = None
    if (not written or effort == "minimal") and marked and thinking.budget is None:
        thinking = replace(thinking, budget=EFFORT_BUDGETS[effort])
    return chat, thinking


def _refuse_limits(thinking: Thinking, without: str) -> None:
    """InvalidRequest for what is said of a thought where none is written."""
    for name, value in ((BUDGET, thinking.budget or None), (EXITS, thinking.exits)):
        if value is not None:
            raise InvalidRequest(f"{name}: got {value}, which contradicts {without}")
