"""What a caller of :func:`musespark.agents.act` asks for beside the conversation: its options."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from musespark.agents.events import ActEvent, ProposedCall
from musespark.agents.telling import MAX_RESULT, Reader, Room
from musespark.agents.tools import Tool
from musespark.errors import InvalidRequest
from musespark.options import MAX_TOKENS, TOTAL, integer, real, refuse_unknown

MAX_STEPS = 10
Approve = Callable[[ProposedCall], "bool | str | Awaitable[bool | str]"]
OnEvent = Callable[[ActEvent], Any]
OF_A_MODEL = ("markers", "sees", "room")  # options that it knows itself


@dataclass(frozen=True)
class Asked:
    """What a caller of :func:`act` asks for beside the conversation. InvalidRequest for what it
    cannot."""

    approve: Approve | None = None
    on_event: OnEvent | None = None
    max_steps: int = MAX_STEPS
    max_seconds: float | None = None
    max_output_tokens: int | None = None
    max_result_characters: int = MAX_RESULT
    dry_run: bool = False
    markers: Collection[str] = ()
    sees: bool = True
    room: Room | None = None

    def __post_init__(self) -> None:
        for name in ("max_steps", "max_result_characters"):
            integer(name, getattr(self, name), 1)
        if self.max_output_tokens is not None:
            integer("max_output_tokens", self.max_output_tokens, 1, MAX_TOKENS)
        if self.max_seconds is not None:
            real("max_seconds", self.max_seconds, math.ulp(0.0), 1e9, "a number of seconds > 0")
        for name in ("approve", "on_event"):
            given = getattr(self, name)
            if given is not None and not callable(given):
                raise InvalidRequest(f"{name}: got {given!r:.60}, allowed is a function")
        if inspect.iscoroutinefunction(self.on_event):
            raise InvalidRequest("on_event: got a coroutine function, allowed is a plain one")
        if not isinstance(self.dry_run, bool):
            raise InvalidRequest(f"dry_run: got {self.dry_run!r:.60}, allowed is True or False")

    def check_lengths(self, options: Mapping[str, Any]) -> None:
        """InvalidRequest for lengths of a turn that do not go with that of all turns."""
        most, total = self.max_output_tokens, options.get(TOTAL)
        if most is None:
            return
        if total is not None:
            integer(TOTAL, total, 1, MAX_TOKENS)
        least = integer("min_new_tokens", options.get("min_new_tokens") or 0, 0, MAX_TOKENS)
        if least > most:
            raise InvalidRequest(
                f"min_new_tokens: got {least}, more than max_output_tokens = {most}"
            )

    def check_approval(self, tools: Mapping[str, Tool]) -> None:
        """InvalidRequest where nobody could approve of calls of these."""
        effects = [name for name, one in tools.items() if one.effects]
        if effects and self.approve is None and not self.dry_run:
            raise InvalidRequest(
                f"approve: got None, but {', '.join(effects)} has effects; give a function that is "
                "asked before each call, or dry_run=True"
            )


OWN = tuple(one.name for one in fields(Asked) if one.name not in OF_A_MODEL)


def acting(given: Mapping[str, Any], model: Reader) -> dict[str, Any]:
    """The options of :meth:`Model.act`, with what the model knows itself. InvalidRequest for those
    that it does not take."""
    refuse_unknown([name for name in given if name in ("chat", *OF_A_MODEL)], OWN)
    room = Room.of(model)
    sees = room.images is not None
    return {"markers": model.tokenizer.markers, "sees": sees, "room": room, **given}
