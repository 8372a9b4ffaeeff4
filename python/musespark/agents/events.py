"""What happens while a model acts, as small dataclasses: for ``on_event`` and in results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from musespark.agents.flags import Flag


@dataclass(frozen=True)
class ToolUse:
    """One call. ``turn``: which of the model's turns made it, from 0; ``answer``: what the model
    was told. ``status``: ``done``, ``error`` (of the arguments or the function), ``refused`` or
    ``dry_run`` (it was not run), ``limit`` (``max_seconds`` were over before it had run, or ended
    it: what it had done is not known). ``seconds``: in the function. ``flags``: what looks like an
    instruction in the first 131,072 characters that the function gave. ``left_out``: characters
    that the model was not told; ``items``: where it was a list that was cut, how many of how many
    items were told (of a list of 2,097,152 characters or fewer). Of a generator, which is read no
    further than it is told, both are what was read: there may be more."""

    turn: int
    id: str
    name: str
    arguments: Any
    answer: str
    status: str = "done"
    seconds: float = 0.0
    flags: tuple[Flag, ...] = ()
    left_out: int = 0
    items: tuple[int, int] | None = None

    @property
    def error(self) -> bool:
        """Whether the model was told of an error."""
        return self.status in ("error", "refused", "limit")


@dataclass(frozen=True)
class ProposedCall:
    """A call that the model wants: of a tool that exists, with arguments that its schema allows.
    ``effects``: whether it changes something; ``flags``: what looked like an instruction in what
    tools gave before it, in the messages that the conversation began with too."""

    turn: int
    id: str
    name: str
    arguments: dict[str, Any]
    effects: bool = False
    flags: tuple[Flag, ...] = ()


@dataclass(frozen=True)
class ActEvent:
    """Base of all events. ``turn``: which of the model's turns, from 0."""

    turn: int


@dataclass(frozen=True)
class ThoughtText(ActEvent):
    """A piece of a thought."""

    text: str


@dataclass(frozen=True)
class AnswerText(ActEvent):
    """A piece of what the model says to the user."""

    text: str


@dataclass(frozen=True)
class CallProposed(ActEvent):
    """A call that could be made; one with effects is next asked about."""

    call: ProposedCall


@dataclass(frozen=True)
class CallApproved(ActEvent):
    """The call was approved, and is next made."""

    call: ProposedCall


@dataclass(frozen=True)
class CallRefused(ActEvent):
    """The call is not made: it was not approved, or this is a dry run."""

    call: ProposedCall
    reason: str


@dataclass(frozen=True)
class CallResult(ActEvent):
    """What a function gave."""

    use: ToolUse


@dataclass(frozen=True)
class CallError(ActEvent):
    """A call that failed: no such tool, arguments that are not allowed, a function that raised."""

    use: ToolUse


@dataclass(frozen=True)
class InstructionFlagged(ActEvent):
    """What a function gave has something in it that looks like an instruction."""

    use: ToolUse


@dataclass(frozen=True)
class Answer(ActEvent):
    """The end, with an answer."""

    content: str
