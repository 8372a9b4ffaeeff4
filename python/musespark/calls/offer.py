"""What a turn may call: which of the tools, whether it has to, and how often."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from musespark.errors import InvalidRequest
from musespark.options import refused
from musespark.text.toolcalls import schemas_of

TOOL_CHOICES = ("auto", "required", "none")


@dataclass(frozen=True)
class Offer:
    """``schemas``: name -> JSON schema of the parameters, of the tools that may be called.
    ``mode``: ``auto`` (calls or an answer), ``required`` (calls) or ``none`` (an answer).
    ``several``: whether a turn may have more than one call."""

    schemas: Mapping[str, Mapping[str, Any]]
    mode: str = "auto"
    several: bool = True

    def repeated(self, call: str, between: str = "") -> str:
        """A call, as an expression, and further ones where there may be several."""
        return f"{call} ({between} {call})*" if self.several else call


def offer_of(
    tools: Iterable[Mapping[str, Any]] | None,
    tool_choice: str | None = None,
    allowed_tools: Sequence[str] | None = None,
    parallel_tool_calls: bool | None = None,
) -> Offer | None:
    """What options of :meth:`musespark.Model.chat` offer to a turn; None where calls are free.

    ``tools``: OpenAI-shaped. InvalidRequest for a choice that is none and no allowed tool's name,
    for allowed tools that there are not, and for options of calls where there are no tools.
    """
    if parallel_tool_calls is not None and not isinstance(parallel_tool_calls, bool):
        raise refused("parallel_tool_calls", parallel_tool_calls, "True or False")
    given = {"tool_choice": tool_choice, "allowed_tools": allowed_tools}
    given["parallel_tool_calls"] = False if parallel_tool_calls is False else None
    asked = {name: value for name, value in given.items() if value is not None}
    if not asked:
        return None
    known = _allowed(schemas_of(tools), allowed_tools)
    choice = "auto" if tool_choice is None else tool_choice
    if not isinstance(choice, str) or choice not in (*TOOL_CHOICES, *known):
        raise InvalidRequest(
            f"tool_choice: got {choice!r:.60}, allowed is one of {[*TOOL_CHOICES, *known]}"
        )
    if not known:
        name, value = next(iter(asked.items()))
        raise InvalidRequest(f"{name}: got {value!r:.60} without tools, allowed is None")
    several = parallel_tool_calls is not False
    if choice in TOOL_CHOICES:
        return Offer(known, choice, several)
    return Offer({choice: known[choice]}, "required", several)


def _allowed(
    known: Mapping[str, Mapping[str, Any]], names: Sequence[str] | None
) -> Mapping[str, Mapping[str, Any]]:
    if names is None or not known:
        return known
    texts = not isinstance(names, str) and isinstance(names, Sequence)
    if not texts or not names or not all(isinstance(name, str) for name in names):
        raise refused("allowed_tools", names, "a list of names of tools, at least one")
    for name in names:
        if name not in known:
            raise refused("allowed_tools", name, f"some of {[*known]}")
    return {name: schema for name, schema in known.items() if name in names}
