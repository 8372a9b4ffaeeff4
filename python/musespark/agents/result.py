"""What acting returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from musespark.agents.events import ToolUse
from musespark.agents.flags import Flag
from musespark.results import ChatResult, Usage


@dataclass(frozen=True)
class Step:
    """One turn of the model, and what became of its calls, in order."""

    result: ChatResult = field(repr=False)
    uses: tuple[ToolUse, ...] = ()


@dataclass(frozen=True)
class ActResult:
    """``result``: of the last turn; ``messages``: the whole conversation, to be gone on with;
    ``steps``: the model's turns and their calls; ``usage``: of all turns together; ``seconds``:
    wall clock.

    ``ended``: ``answer``, or the limit that was reached: ``max_steps``, ``max_seconds``,
    ``max_output_tokens``, ``length`` and ``deadline`` (of a turn), ``context``, ``cancelled``.
    Calls of a turn in which a limit was reached are not run, and ``messages`` say so of each.
    ``malformed``: raw texts of calls that could not be read (``tool_choice=None`` alone has such),
    of which the model was told.
    """

    result: ChatResult
    messages: list[dict[str, Any]] = field(repr=False)
    steps: tuple[Step, ...] = field(repr=False)
    usage: Usage
    ended: str
    seconds: float = 0.0
    malformed: tuple[str, ...] = ()

    @property
    def content(self) -> str:
        """The answer; empty where it ended otherwise."""
        return self.result.content if self.complete else ""

    @property
    def parsed(self) -> Any:
        """The value of an answer by ``json_schema``; None where there is none."""
        return self.result.parsed if self.complete else None

    @property
    def complete(self) -> bool:
        """Whether it ended with an answer."""
        return self.ended == "answer"

    @property
    def uses(self) -> tuple[ToolUse, ...]:
        """Every call, in order."""
        return tuple(use for step in self.steps for use in step.uses)

    @property
    def flags(self) -> tuple[Flag, ...]:
        """What looked like an instruction in what tools gave."""
        return tuple(flag for use in self.uses for flag in use.flags)

    def __str__(self) -> str:
        return self.content
