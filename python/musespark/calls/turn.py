"""A whole turn as a grammar: thoughts and answers are free, calls are those of the tools given.

Source of the idea: structural tags (XGrammar, arXiv:2411.15100; llguidance's documentation of
special tokens in grammars).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from musespark.calls.forms import BLOCKS, Tools, atem, bare_calls
from musespark.calls.lark import Lark
from musespark.calls.values import Values
from musespark.errors import InvalidRequest
from musespark.grammar import Grammar, grammar_of_lark, slashed
from musespark.text import Tokenizer
from musespark.text.channels import ANSWER, THOUGHT, TOOL, opened_by
from musespark.text.protocols import Headers, Protocol, Tag
from musespark.text.toolcalls import schemas_of

TOOL_CHOICES = ("auto", "required", "none")
_TEXT = "(?s:.+)"
_BLANK = r"[ \n]{1,2}"
_BEGINS = {"json": "{", "list": r"\[", "fence": "`"}  # an answer that may be calls


def check_choice(choice: Any, tools: Iterable[Mapping[str, Any]] | None) -> None:
    """InvalidRequest where ``tool_choice`` is none of the choices and no tool's name."""
    known = schemas_of(tools)
    if not isinstance(choice, str) or choice not in (*TOOL_CHOICES, *known):
        raise InvalidRequest(
            f"tool_choice: got {choice!r:.60}, allowed is one of {[*TOOL_CHOICES, *known]}"
        )
    if not known:
        raise InvalidRequest(f"tool_choice: got {choice!r:.60} without tools, allowed is None")


def turn_grammar(
    protocol: Protocol,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    tools: Iterable[Mapping[str, Any]],
    choice: str,
) -> Grammar:
    """The turns after ``prompt`` whose calls are all calls of ``tools`` (OpenAI-shaped) that parse
    and have the arguments of their schemas.

    ``choice``: ``auto`` (calls or an answer), ``required`` (calls), ``none`` (an answer), or the
    name of the tool to call. A value that may be a text or something else is free where the
    protocol writes texts without quotes. InvalidRequest for a choice that is none, and where the
    model's protocol has no calls that are known.
    """
    check_choice(choice, tools)
    known: Tools = schemas_of(tools)
    if choice not in TOOL_CHOICES:
        known, choice = {choice: known[choice]}, "required"
    names = {*protocol.markers}
    lark = Lark({name: tokenizer.markers[name] for name in names if name in tokenizer.markers})
    opened = opened_by(protocol, tokenizer, prompt)[0]
    if opened == ANSWER and choice == "required":
        raise InvalidRequest(
            "tool_choice: got a choice that requires a call, but the prompt has begun the answer "
            "(mode 'instant' does); allowed is mode 'auto' or 'thinking'"
        )
    if protocol.headers:
        start = _HeaderTurn(lark, protocol.headers, known, choice).start(opened)
    else:
        start = _tag_turn(lark, protocol, known, choice, opened == THOUGHT)
    return grammar_of_lark("tools", lark.grammar(start))


class _HeaderTurn:
    """Muse's and harmony's channels."""

    def __init__(self, lark: Lark, headers: Headers, tools: Tools, choice: str):
        self._lark, self._headers, self._choice = lark, headers, choice
        self._text = f"{lark.terminal(_TEXT)}?"
        self._next = lark.text(headers.end_channel + headers.start + headers.role)
        self._tools = tools

    def start(self, opened: str | None) -> str:
        turn = self._turn()
        if opened == THOUGHT:
            return f"{self._text} {self._next} {turn}"
        if opened == ANSWER:
            more = "" if self._choice == "none" else f"({self._next} {turn})?"
            return f"{self._text} {more}"
        return turn

    def _turn(self) -> str:
        pieces = self._headers
        thought = self._channel(pieces.open_thought)
        answer = self._channel(pieces.open_answer)
        free, last = [thought], [answer]
        if self._choice != "none":
            last = [self._calls()]
        if self._choice == "auto":
            free.append(self._preamble() if pieces.channels else answer)
            last.append(answer)
        before = self._lark.rule(" | ".join(f"{one} {self._next}" for one in free))
        return f"{before}* {self._lark.rule(' | '.join(last))}"

    def _channel(self, pieces: Iterable[tuple[str, bool]]) -> str:
        return f"{self._lark.text(''.join(text for text, _ in pieces))} {self._text}"

    def _preamble(self) -> str:
        marker, message = self._headers.fields[0], self._headers.message
        return f"{self._lark.text(f'{marker}commentary{message}')} {self._text}"

    def _calls(self) -> str:
        one = self._lark.rule(" | ".join(self._call(*tool) for tool in self._tools.items()))
        if self._headers.channels:  # harmony: a call ends the turn
            return one
        return f"{one} ({self._next} {one})*"

    def _call(self, name: str, schema: Any) -> str:
        lark, message = self._lark, self._headers.message
        if not self._headers.channels:
            return f"{lark.text(f' to={name}{message}')} {atem(lark, name, schema)}"
        channel, constrain = self._headers.fields
        written = lark.text(f"{channel}commentary to=functions.{name} {constrain}json{message}")
        as_template = lark.text(f" to=functions.{name}{channel}commentary json{message}")
        arguments = Values(lark, schema, f"tools: {name}").object(schema)
        return f"({written} | {as_template}) {arguments}"


def _tag_turn(lark: Lark, protocol: Protocol, tools: Tools, choice: str, opened: bool) -> str:
    family = protocol.name.rpartition("+")[2]
    tag = next((tag for tag in protocol.tags if tag.kind == TOOL), None)
    if tag is None and not protocol.bare:
        raise InvalidRequest(
            f"tools: the model's chat protocol {protocol.name!r} has no calls that are known; "
            "tool_choice=None leaves them free"
        )
    block = BLOCKS[family](lark, tools) if tag is not None else ""
    bare = bare_calls(lark, tools, protocol.bare) if protocol.bare else ""
    rest = _Rest(lark, protocol, tag, block, bare).of(choice)
    thought = _thought(lark, protocol, opened)
    return f"{thought} {rest}" if thought else rest


def _thought(lark: Lark, protocol: Protocol, opened: bool) -> str:
    """A thought at the beginning; nothing where its tags are no tokens, for then it is text."""
    tag = next((tag for tag in protocol.tags if tag.kind == THOUGHT), None)
    if tag is None or not (lark.is_token(tag.open) and lark.is_token(tag.close)):
        return ""
    body = f"{lark.terminal(_TEXT)}? {lark.text(tag.close)}"
    return body if opened else f"({lark.text(tag.open)} {body})?"


class _Rest:
    """What follows the thought, of protocols with tags."""

    def __init__(self, lark: Lark, protocol: Protocol, tag: Tag | None, block: str, bare: str):
        self._lark, self._protocol, self._tag, self._bare = lark, protocol, tag, bare
        self._block = block
        silent = [lark.text(m) for m in protocol.silent if lark.is_token(m)]
        self._silent = f"({lark.rule(' | '.join(silent))})*" if silent else ""
        self._blank = f"{lark.terminal(_BLANK)}?"

    def of(self, choice: str) -> str:
        ways = []
        if choice != "none":
            ways += self._calls(choice == "required")
        if choice != "required":
            ways.append(self._answer())
        return self._lark.rule(" | ".join(ways))

    def _calls(self, alone: bool) -> list[str]:
        ways = [f"{self._blank} {self._bare}"] if self._bare else []
        if self._tag is None:
            return ways
        opening, closing = self._tag.open, self._tag.close
        close = self._lark.text(closing) if closing else ""
        body = f"{self._block} {close}"
        if self._spelled(opening):
            lead = self._lark.until("(?s:.*)", opening)
            one = self._lark.rule(f"{self._lark.text(opening)} {body}")
            first = one if alone else self._lark.rule(f"{lead} {body}")
            return [*ways, f"{self._blank} {first} ({self._blank} {one})* {self._blank}"]
        one = self._lark.rule(f"{self._lark.text(opening)} {body}")
        many = f"{one} ({self._blank} {self._silent} {one})* {self._blank} {self._silent}"
        before = self._blank if alone else f"({self._answer()})?"
        return [*ways, f"{before} {self._silent} {many}"]

    def _spelled(self, opening: str) -> bool:
        return not self._lark.is_token(opening)

    def _answer(self) -> str:
        """Text that is no call."""
        text = self._lark.terminal(_TEXT)
        if self._bare:
            begins = "".join(_BEGINS[kind] for kind in self._protocol.bare)
            text = self._lark.terminal(rf"\s*[^\s{begins}](?s:.*)")
        elif self._tag is not None and self._spelled(self._tag.open):
            text = self._without(self._tag.open)
        silent = self._silent
        return f"{silent} {text}? {silent}" if silent else f"{text}?"

    def _without(self, opening: str) -> str:
        """Text in which a tag that is no token is not spelled."""
        if self._lark.text(opening).startswith('"') and "<[" in self._lark.text(opening):
            return self._lark.terminal(_TEXT)  # a token in it is none of the text's
        tag = slashed(f"(?s:.*){opening}(?s:.*)")
        return self._lark.rule(f"{slashed(_TEXT)} & ~{tag}", "")
