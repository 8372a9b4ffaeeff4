"""A whole turn as a grammar: thoughts and answers are free, calls are those of the tools given.

Source of the idea: structural tags (XGrammar, arXiv:2411.15100; llguidance's documentation of
special tokens in grammars).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from musespark.calls.forms import ATEM, BLOCKS, atem, bare_calls
from musespark.calls.lark import Lark
from musespark.calls.offer import Offer
from musespark.calls.values import Values
from musespark.errors import InvalidRequest
from musespark.grammar import Grammar, grammar_of_lark
from musespark.schema import check_multiples, schema_errors
from musespark.text import Tokenizer
from musespark.text.channels import ANSWER, THOUGHT, TOOL, opened_by
from musespark.text.protocols import Headers, Protocol, Tag

_TEXT = "(?s:.+)"
_FREE = "tool_choice=None leaves them free"
_BLANK = r"[ \n]{1,2}"
_BEGINS = {"json": "{", "list": r"\[", "fence": "`"}  # an answer that may be calls


def turn_grammar(
    protocol: Protocol,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    offer: Offer,
    answer: str = "",
) -> Grammar:
    """The turns after ``prompt`` whose calls are all of the ``offer``, parse and have the arguments
    of their schemas. ``answer``: the body of a rule, of which an answer is in place of any text; a
    turn is then calls or an answer, not one before the other.

    A value that may be a text or something else is free where the protocol writes texts without
    quotes. InvalidRequest where the offer requires a call and the prompt has begun the answer, and
    where the model's protocol has no calls that are known.
    """
    check_multiples([*offer.schemas.values()], "tools")
    names = {*protocol.markers}
    lark = Lark({name: tokenizer.markers[name] for name in names if name in tokenizer.markers})
    form = lark.rule(answer) if answer else ""
    opened = opened_by(protocol, tokenizer, prompt)[0]
    if opened == ANSWER and offer.mode == "required":
        raise InvalidRequest(
            "tool_choice: got a choice that requires a call, but the prompt has begun the answer "
            "(mode 'instant' does); allowed is mode 'auto' or 'thinking'"
        )
    with schema_errors("tools"):
        if protocol.headers:
            thought = _thought_header(lark, protocol.headers, tokenizer)
            start = _HeaderTurn(lark, protocol.headers, offer, thought, form).start(opened)
        else:
            start = _tag_turn(lark, protocol, offer, opened == THOUGHT, form)
    return grammar_of_lark("tools", lark.grammar(start))


def _thought_header(lark: Lark, headers: Headers, tokenizer: Tokenizer) -> str:
    """What opens a thought: as its tokens where each of its pieces is one, for spelled with others
    it would be a thought that no budget knows; else as text, whose tokens may begin a call too."""
    ids = tokenizer.encode_pieces(headers.open_thought)
    if len(ids) == len(headers.open_thought):
        return lark.tokens(ids)
    return lark.text("".join(text for text, _ in headers.open_thought))


class _HeaderTurn:
    """Muse's and harmony's channels."""

    def __init__(self, lark: Lark, headers: Headers, offer: Offer, thought: str, form: str):
        """``thought``: what opens one; ``form``: the rule of an answer, where it has one."""
        self._lark, self._headers, self._offer = lark, headers, offer
        self._text = f"{lark.terminal(_TEXT)}?"
        self._thought = f"{thought} {self._text}"
        # A call in the answer's channel would be nobody's: it is not to be spelled there.
        free = self._text if headers.channels else f"{lark.without(ATEM)}?"
        self._form, self._said = form, form or free
        self._next = lark.text(headers.end_channel + headers.start + headers.role)

    def start(self, opened: str | None) -> str:
        turn = self._turn()
        if opened == THOUGHT:
            return f"{self._text} {self._next} {turn}"
        if opened == ANSWER:
            more = "" if self._offer.mode == "none" else f"({self._next} {turn})?"
            if self._form and more:  # nothing is said before calls
                return f"{self._said} | {self._next} {turn}"
            return f"{self._said} {more}"
        return turn

    def _turn(self) -> str:
        pieces = self._headers
        header = self._lark.text("".join(text for text, _ in pieces.open_answer))
        answer = f"{header} {self._said}"
        free, last = [self._thought], [answer]
        if self._offer.mode != "none":
            last = [self._calls()]
        if self._offer.mode == "auto":
            last.append(answer)
            if not self._form:
                free.append(self._preamble() if pieces.channels else answer)
        before = self._lark.rule(" | ".join(f"{one} {self._next}" for one in free))
        return f"{before}* {self._lark.rule(' | '.join(last))}"

    def _preamble(self) -> str:
        marker, message = self._headers.fields[0], self._headers.message
        return f"{self._lark.text(f'{marker}commentary{message}')} {self._text}"

    def _calls(self) -> str:
        one = self._lark.rule(" | ".join(self._call(*tool) for tool in self._offer.schemas.items()))
        if self._headers.channels:  # harmony: a call ends the turn
            return one
        return self._offer.repeated(one, self._next)

    def _call(self, name: str, schema: Any) -> str:
        lark, message = self._lark, self._headers.message
        if not self._headers.channels:
            return f"{lark.text(f' to={name}{message}')} {atem(lark, name, schema)}"
        channel, constrain = self._headers.fields
        written = lark.text(f"{channel}commentary to=functions.{name} {constrain}json{message}")
        as_template = lark.text(f" to=functions.{name}{channel}commentary json{message}")
        arguments = Values(lark, schema, f"tools: {name}").arguments()
        return f"({written} | {as_template}) {arguments}"


def _tag_turn(lark: Lark, protocol: Protocol, offer: Offer, opened: bool, form: str) -> str:
    family = protocol.name.rpartition("+")[2]
    tag = next((tag for tag in protocol.tags if tag.kind == TOOL), None)
    if tag is None and not protocol.bare:
        raise InvalidRequest(
            f"tools: the model's chat protocol {protocol.name!r} has no calls that are known; "
            + ("json_schema beside tools needs them" if form else _FREE)
        )
    block = BLOCKS[family](lark, offer) if tag is not None else ""
    bare = bare_calls(lark, offer, protocol.bare) if protocol.bare else ""
    rest = _Rest(lark, protocol, tag, block, bare, form).of(offer)
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

    def __init__(
        self, lark: Lark, protocol: Protocol, tag: Tag | None, block: str, bare: str, form: str
    ):
        self._lark, self._protocol, self._tag, self._bare = lark, protocol, tag, bare
        self._block, self._form = block, form
        silent = [lark.text(m) for m in protocol.silent if lark.is_token(m)]
        self._silent = f"({lark.rule(' | '.join(silent))})*" if silent else ""
        self._blank = f"{lark.terminal(_BLANK)}?"

    def of(self, offer: Offer) -> str:
        ways = []
        if offer.mode != "none":
            ways += self._calls(offer)
        if offer.mode != "required":
            ways.append(self._answer())
        return self._lark.rule(" | ".join(ways))

    def _calls(self, offer: Offer) -> list[str]:
        alone = offer.mode == "required" or bool(self._form)
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
            more = f"({self._blank} {one})*" if offer.several else ""
            return [*ways, f"{self._blank} {first} {more} {self._blank}"]
        one = self._lark.rule(f"{self._lark.text(opening)} {body}")
        calls = offer.repeated(one, f"{self._blank} {self._silent}")
        many = f"{calls} {self._blank} {self._silent}"
        before = self._blank if alone else f"({self._answer()})?"
        return [*ways, f"{before} {self._silent} {many}"]

    def _spelled(self, opening: str) -> bool:
        return not self._lark.is_token(opening)

    def _answer(self) -> str:
        """Text that is no call, or what has the form of answers."""
        if self._form:
            return f"{self._silent} {self._blank} {self._form} {self._silent}"
        text = self._lark.terminal(_TEXT)
        if self._bare:
            begins = "".join(_BEGINS[kind] for kind in self._protocol.bare)
            text = self._lark.terminal(rf"\s*[^\s{begins}](?s:.*)")
        elif self._tag is not None and self._spelled(self._tag.open):
            text = self._lark.terminal(_TEXT)  # a token in it is none of the text's
            if not self._in_tokens(self._tag.open):
                text = self._lark.without(self._tag.open)
        silent = self._silent
        return f"{silent} {text}? {silent}" if silent else f"{text}?"

    def _in_tokens(self, opening: str) -> bool:
        written = self._lark.text(opening)
        return written.startswith('"') and "<[" in written
