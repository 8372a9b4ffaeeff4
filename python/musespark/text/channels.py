"""A model's turn as a stream of events: thoughts, answers, tool calls.

    parser = ChannelParser.for_prompt(protocol, tokenizer, prompt_ids, tools=tools)
    for token_id in generated:
        for event in parser.push(token_id): ...
    for event in parser.finish(): ...
    parser.turn.content, parser.turn.reasoning, parser.turn.tool_calls

Markers are recognised by token id; text that merely spells one stays text. Only where a family's
think tags are no tokens of the vocabulary are they looked for in the text, and then only one pair
at the beginning of the turn. The events depend on the sequence of ids (or of characters) alone, not
on how it was cut into calls. Truncation anywhere keeps what was there; what does not follow the
protocol becomes a :class:`ProtocolError` or :class:`ToolCallError` event with the raw text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from musespark.text.protocols import Headers, Protocol, Tag
from musespark.text.tokenizer import Tokenizer
from musespark.text.toolcalls import SYNTAXES, ToolCall, ToolCallError, schemas_of

THOUGHT, ANSWER, TOOL = "thought", "answer", "tool"
_FOREIGN = "foreign"  # a channel of a role that is not the assistant's
_HEADER_LIMIT = 1024
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

    @property
    def malformed_tool_calls(self) -> list[str]:
        return [error.raw for error in self.errors if isinstance(error, ToolCallError)]


class _Machine:
    """The open channel and the events it gives; the two protocols below drive it."""

    def __init__(self, protocol: Protocol, schemas: Mapping[str, Any], first_call: int):
        self.protocol, self._schemas = protocol, schemas
        self._parse = SYNTAXES[protocol.tool_syntax]
        self._next_call = first_call
        self.out: list[Event] = []
        self.kind: str | None = None
        self._recipient: str | None = None
        self._after_tool = False  # a tool channel of this turn was closed
        self._raw: list[str] = []  # of a tool or foreign channel
        self._written = {THOUGHT: False, ANSWER: False}  # has a channel of this kind had text?
        self._fresh = self._trim_start = False
        self._held = ""  # trailing separators of a thought

    def open(self, kind: str, recipient: str | None = None, *, trim_start: bool = False) -> None:
        self.kind, self._recipient = kind, recipient
        self._fresh, self._trim_start = True, trim_start
        if kind != _FOREIGN:
            self.out.append(ChannelStart(kind, recipient))

    def write(self, text: str) -> None:
        if self.kind in (TOOL, _FOREIGN):
            self._raw.append(text)
            if text and self.kind == TOOL:
                self.out.append(Text(TOOL, text))
            return
        trim = self.protocol.trim
        if self._trim_start:
            text = text.lstrip(trim)
            self._trim_start = not text
        if self.kind == THOUGHT and trim:
            text = self._held + text
            kept = text.rstrip(trim)
            text, self._held = kept, text[len(kept) :]
        if not text:
            return
        if self._fresh and self._written[self.kind]:
            text = SEPARATOR + text
        self._fresh, self._written[self.kind] = False, True
        self.out.append(Text(self.kind, text))

    def close(self, *, cut: bool = False) -> None:
        """End the open channel, if any; a cut one keeps its trailing separators."""
        kind, raw = self.kind, "".join(self._raw)
        if kind is None:
            return
        if kind == TOOL:
            self._after_tool = True
            self._calls(raw)
        elif kind == _FOREIGN:
            self.error(raw, "text of another role")
        elif cut and self._held:
            self.out.append(Text(kind, self._held))
        self._held, self._raw, self.kind = "", [], None
        if kind != _FOREIGN:
            self.out.append(ChannelEnd(kind))

    def error(self, raw: str, reason: str) -> None:
        self.out.append(ProtocolError(raw, reason))

    def _calls(self, raw: str) -> None:
        for call in self._parse(raw, self._schemas, self._recipient):
            if isinstance(call, ToolCall):
                call = replace(call, id=f"call_{self._next_call}")
                self._next_call += 1
            self.out.append(call)

    # What a protocol adds.

    def marker(self, marker: str) -> None:
        raise NotImplementedError

    def text(self, text: str) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        raise NotImplementedError

    def end_turn(self) -> None:
        self.finish()
        self.out.append(TurnEnd())


class _HeaderMachine(_Machine):
    """Channels with headers. States: in a header, in a channel's body, between channels."""

    def __init__(self, headers: Headers, opened: str | None, header: str, *args: Any):
        super().__init__(*args)
        self._headers, self._prompted = headers, header
        self._header: str | None = None if opened else header
        self._between: list[str] = []
        if opened:
            self.open(opened)

    def text(self, text: str) -> None:
        if self.kind is not None:
            self.write(text)
        elif self._header is not None:
            self._header += text
            if len(self._header) > _HEADER_LIMIT:
                text, self._header = self._header.removeprefix(self._prompted), None
                self.error("", f"a header of more than {_HEADER_LIMIT} characters, taken as answer")
                self.open(ANSWER)
                self.write(text)
        else:
            self._between.append(text)

    def marker(self, marker: str) -> None:
        names = self._headers
        if marker == names.start:
            self._leave()
            self._header, self._prompted = "", ""
        elif marker == names.message and self._header is not None:
            self._enter(self._header)
            self._header = None
        elif marker == names.message:
            self.error(marker, "a message begins without a header")
        elif marker == names.end_channel:
            if self.kind is None and self._header is None:
                self.error(marker, "no channel is open")
            self._leave()
        elif marker == names.end_turn:
            self.end_turn()

    def finish(self) -> None:
        self._leave(cut=True)

    def end_turn(self) -> None:
        self._leave()
        self.out.append(TurnEnd())

    def _leave(self, *, cut: bool = False) -> None:
        """Whatever is open ends."""
        self.close(cut=cut)
        if self._header is not None and self._header != self._prompted:
            self.error(self._header, "a header without a message")
        between = "".join(self._between)
        if between.strip():
            self.error(between, "text between channels")
        self._header, self._between = None, []

    def _enter(self, header: str) -> None:
        kind, recipient = read_header(self._headers, header)
        if kind == _FOREIGN:
            self.error(header, "a channel of another role")
        elif len(header.split()) > header.lstrip().startswith(self._headers.role) + (
            recipient is not None
        ):
            self.error(header, "more in a header than role and recipient")
        self.open(kind, recipient)


class _TagMachine(_Machine):
    """Channels between tags; the rest is the answer. No tags at all: everything is the answer."""

    def __init__(self, tags: Sequence[Tag], spelled: Tag | None, opened: str | None, *args: Any):
        super().__init__(*args)
        self._by_open = {tag.open: tag for tag in tags}
        self._by_close = {tag.close: tag for tag in tags}
        self._spelled = spelled  # the think tag, where it is text
        self._pending = ""  # text that may turn out to be a spelled tag
        self._after_thought = False
        if opened:
            self.open(opened, trim_start=True)

    def text(self, text: str) -> None:
        tag = self._spelled
        if tag is None:
            self._body(text)
            return
        self._pending += text
        if self.kind is None:  # the beginning of the turn
            bare = self._pending.lstrip()
            if bare.startswith(tag.open):
                text, self._pending = bare[len(tag.open) :], ""
                self.open(THOUGHT, trim_start=True)
                self.text(text)
            elif not tag.open.startswith(bare):
                self._release()
        elif tag.close in self._pending:
            thought, answer = self._pending.split(tag.close, 1)
            self._pending, self._spelled, self._after_thought = "", None, True
            self.write(thought)
            self.close()
            self._body(answer)
        else:
            keep = _overlap(self._pending, tag.close)
            split = len(self._pending) - keep
            text, self._pending = self._pending[:split], self._pending[split:]
            self.write(text)

    def marker(self, marker: str) -> None:
        if marker in self._by_open:
            if self.kind == THOUGHT and self._fresh and self._by_open[marker].kind == THOUGHT:
                return  # the prompt opened the thought and the model did it again
            self.close()
            self.open(self._by_open[marker].kind, trim_start=True)
        elif self.kind == self._by_close[marker].kind:
            self._after_thought |= self.kind == THOUGHT
            self.close()
        else:
            self.error(marker, "closes a channel that is not open")

    def finish(self) -> None:
        if self._pending:
            self._release()
        self.close(cut=True)

    def _release(self) -> None:
        """What was held back is no tag."""
        text, self._pending = self._pending, ""
        if self.kind is None:
            self._spelled = None
        self._body(text)

    def _body(self, text: str) -> None:
        if self.kind is None:
            if self._after_thought or self.out_of_tool:
                text = text.lstrip(self.protocol.trim)
            if not text:
                return
            self.open(ANSWER)
        self.write(text)

    @property
    def out_of_tool(self) -> bool:
        """Whether a tool call came before: separators after it belong to nothing."""
        return self._after_tool and self.kind is None


def read_header(headers: Headers, header: str) -> tuple[str, str | None]:
    """Kind and recipient of a channel, from the text between its start and its message marker."""
    words = header.split()
    if words and words[0] != headers.role and not words[0].startswith("to="):
        return _FOREIGN, None
    recipient = next((w[len("to=") :] for w in words if w.startswith("to=")), None)
    if recipient == headers.thought:
        return THOUGHT, recipient
    if recipient is None or recipient == headers.answer:
        return ANSWER, recipient
    return TOOL, recipient


def _overlap(text: str, tag: str) -> int:
    """The length of the longest end of ``text`` that begins ``tag``."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(tag[:n])), 0)


class ChannelParser:
    """Generated ids (or plain text) in, events out; see the module's docstring.

    ``opened``: the kind of the channel that the prompt left open, if any; ``header``: the header
    text after the prompt's last start marker (protocols with headers). ``first_call``: the number
    of the first tool call's id (``call_<n>``), so that ids stay unique in a conversation.
    """

    def __init__(
        self,
        protocol: Protocol,
        tokenizer: Tokenizer,
        *,
        tools: Iterable[Mapping[str, Any]] | None = None,
        opened: str | None = None,
        header: str | None = None,
        first_call: int = 1,
    ):
        self.protocol, self.turn = protocol, Turn()
        self._decoder = tokenizer.stream(continuing=True)
        self._token = tokenizer.token
        rest = (protocol, schemas_of(tools), first_call)
        names, spelled = _marker_names(protocol), None
        if protocol.headers:
            header = protocol.headers.role if header is None else header
            self._machine: _Machine = _HeaderMachine(protocol.headers, opened, header, *rest)
        else:
            thought = next((tag for tag in protocol.tags if tag.kind == THOUGHT), None)
            if thought and not {thought.open, thought.close} <= tokenizer.markers.keys():
                spelled = thought
                names -= {thought.open, thought.close}
            tags = [tag for tag in protocol.tags if tag is not spelled]
            self._machine = _TagMachine(tags, spelled, opened, *rest)
        self._names = {tokenizer.markers[n]: n for n in names if n in tokenizer.markers}
        self._ends = frozenset(tokenizer.eos_ids) - self._names.keys()
        self._special = tokenizer.special_ids
        self._pending_tokens = 0

    @classmethod
    def for_prompt(
        cls,
        protocol: Protocol,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        tools: Iterable[Mapping[str, Any]] | None = None,
        first_call: int = 1,
    ) -> ChannelParser:
        """A parser for what follows these prompt ids: an open thought or header is continued."""
        opened, header = opened_by(protocol, tokenizer, prompt)
        return cls(
            protocol, tokenizer, tools=tools, opened=opened, header=header, first_call=first_call
        )

    def push(self, token_id: int) -> list[Event]:
        """The events of one generated id. Raises InvalidRequest for an id out of range."""
        name = self._names.get(token_id)
        if name is None and token_id not in self._ends and token_id not in self._special:
            text = self._decoder.push(token_id)
            if text:
                self._machine.text(text)
            return self._drain(1)
        rest = self._decoder.flush()
        if rest:
            self._machine.text(rest)
        if name is not None:
            self._machine.marker(name)
        elif token_id in self._ends:
            self._machine.end_turn()
        else:
            self._machine.error(self._token(token_id), "a special token without a meaning here")
        return self._drain(1)

    def push_text(self, text: str) -> list[Event]:
        """The events of text that came without ids; it never contains markers."""
        self._machine.text(text)
        return self._drain(0)

    def finish(self) -> list[Event]:
        """The last events, of a turn that ends here: cut, unless the model ended it."""
        rest = self._decoder.flush()
        if rest:
            self._machine.text(rest)
        self.turn.open_kind = self._machine.kind or self.turn.open_kind
        self._machine.finish()
        return self._drain(0)

    def _drain(self, tokens: int) -> list[Event]:
        machine, turn = self._machine, self.turn
        events, machine.out = machine.out, []
        was_thought = machine.kind == THOUGHT
        for event in events:
            if isinstance(event, Text):
                turn.parts[event.kind].append(event.text)
            elif isinstance(event, ToolCall):
                turn.tool_calls.append(event)
            elif isinstance(event, (ToolCallError, ProtocolError)):
                turn.errors.append(event)
            elif isinstance(event, ChannelEnd):
                was_thought |= event.kind == THOUGHT
            elif isinstance(event, TurnEnd):
                turn.ended = True
        self._pending_tokens += tokens
        if was_thought:
            turn.reasoning_tokens += self._pending_tokens
        if was_thought or machine.kind is not None:
            self._pending_tokens = 0
        return events


def _marker_names(protocol: Protocol) -> set[str]:
    if protocol.headers:
        h = protocol.headers
        return {h.start, h.message, h.end_channel, h.end_turn}
    return {name for tag in protocol.tags for name in (tag.open, tag.close)}


def opened_by(
    protocol: Protocol, tokenizer: Tokenizer, prompt: Sequence[int]
) -> tuple[str | None, str | None]:
    """What a prompt leaves open: (kind of the open channel or None, open header or None)."""
    if protocol.headers:
        start, message = (
            tokenizer.markers[m] for m in (protocol.headers.start, protocol.headers.message)
        )
        ids = list(prompt)
        if start not in ids:
            return None, None
        tail = ids[len(ids) - ids[::-1].index(start) :]
        if message not in tail:
            return None, tokenizer.decode(tail)
        kind, _ = read_header(protocol.headers, tokenizer.decode(tail[: tail.index(message)]))
        return kind, None
    for tag in protocol.tags:
        if tag.kind == THOUGHT:
            tail = tokenizer.decode(prompt[-2 * len(tag.open) - 8 :], continuing=True)
            if tail.rstrip().endswith(tag.open):
                return THOUGHT, None
    return None, None
