"""The events of a model's turn, and the turn that they add up to."""

from __future__ import annotations

from dataclasses import dataclass, field

from musespark.text.toolcalls import ToolCall, ToolCallError

THOUGHT, ANSWER, TOOL = "thought", "answer", "tool"
SEPARATOR = "\n\n"  # between two channels of one kind


@dataclass(frozen=True)
class ChannelStart:
    """A channel begins: ``kind`` is thought, answer or tool; ``recipient`` as the header has it."""

    kind: str
    recipient: str | None = None


@dataclass(frozen=True)
class Text:
    """Text of the open channel. For each kind, all of it concatenated is the turn's field."""

    kind: str
    text: str


@dataclass(frozen=True)
class ChannelEnd:
    kind: str


@dataclass(frozen=True)
class TurnEnd:
    """The model ended its turn (it was not cut)."""


@dataclass(frozen=True)
class ProtocolError:
    """Output that has no place in the protocol: ``raw`` is all of it, ``reason`` says why."""

    raw: str
    reason: str


Event = ChannelStart | Text | ChannelEnd | TurnEnd | ToolCall | ToolCallError | ProtocolError


@dataclass
class Turn:
    """What a turn held. ``ended``: the model ended it; ``open_kind``: the channel it was cut in.

    ``reasoning_tokens`` counts the tokens of thought channels, their markers and headers included.
    """

    parts: dict[str, list[str]] = field(default_factory=lambda: {THOUGHT: [], ANSWER: [], TOOL: []})
    tool_calls: list[ToolCall] = field(default_factory=list)
    errors: list[ToolCallError | ProtocolError] = field(default_factory=list)
    ended: bool = False
    open_kind: str | None = None
    reasoning_tokens: int = 0

    @property
    def content(self) -> str:
        """The answer to the user."""
        return self._joined(ANSWER)

    @property
    def reasoning(self) -> str:
        """The thought text."""
        return self._joined(THOUGHT)

    def _joined(self, kind: str) -> str:
        self.parts[kind] = ["".join(self.parts[kind])]
        return self.parts[kind][0]

    @property
    def finish_hint(self) -> str | None:
        """``tool_calls`` or ``stop`` where the model ended its turn, None where it was cut."""
        if not self.ended:
            return None
        return "tool_calls" if self.tool_calls else "stop"

    def add(self, event: Event) -> None:
        """Takes an event into account."""
        if isinstance(event, Text):
            self.parts[event.kind].append(event.text)
        elif isinstance(event, ToolCall):
            self.tool_calls.append(event)
        elif isinstance(event, (ToolCallError, ProtocolError)):
            self.errors.append(event)
        elif isinstance(event, TurnEnd):
            self.ended = True

    @property
    def protocol_errors(self) -> list[tuple[str, str]]:
        """(reason, raw text) of what has no place in the protocol."""
        return [(e.reason, e.raw) for e in self.errors if isinstance(e, ProtocolError)]

    @property
    def malformed_tool_calls(self) -> list[str]:
        return [error.raw for error in self.errors if isinstance(error, ToolCallError)]
