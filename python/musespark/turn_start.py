"""Where a grammar begins in a turn: after thoughts and headers, which it leaves free.

Everything here is a function of the ids written so far, as the engine's one result demands.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from musespark.errors import InvalidRequest
from musespark.grammar import Grammar, Grammars, refuse
from musespark.text.channels import ANSWER, THOUGHT, opened_by
from musespark.text.protocols import Protocol, Tag

Path = tuple[int, ...]
_SEPARATORS = 2  # tokens of separators between a thought and the content
_FULL = "too many states"  # in the library's words: its lexer has met _MOST_STATES
_REASONS = {
    "NoExtensionBias": "no token of the model's vocabulary can continue the text",
    "ParserTooComplex": "it is too complex to be followed any further",
    "LexerTooComplex": "it is too complex to be followed any further",
}


@dataclass(frozen=True)
class TurnStart:
    """What of a turn may come before its content, in ids.

    ``paths``: what may be written at the beginning, each to the state after it, ``thought`` or
    ``answer``; ``direct``: the content may begin there too. ``begin``: the state at the beginning,
    ``thought`` or ``answer`` where the prompt has opened one, else ``paths``. ``closes``: ids that
    end a thought; ``barred``: ids that none may have. ``more``: the paths after a thought, none
    where the content follows at once, after ``separators`` perhaps.
    """

    begin: str = ANSWER
    paths: Mapping[Path, str] = field(default_factory=dict)
    direct: bool = False
    closes: frozenset[int] = frozenset()
    barred: frozenset[int] = frozenset()
    more: Mapping[Path, str] = field(default_factory=dict)
    separators: frozenset[int] = frozenset()


def turn_start(
    protocol: Protocol,
    grammars: Grammars,
    prompt: Sequence[int],
    *,
    option: str,
    thinks: bool = True,
) -> TurnStart:
    """Of a turn after this prompt. ``thinks``: whether the model may open a thought by itself;
    ``option``: what to name in errors."""
    tokenizer = grammars.tokenizer
    opened, header = opened_by(protocol, tokenizer, prompt)
    if protocol.headers:
        return _with_headers(protocol, grammars, opened, header, option)
    tag = next((tag for tag in protocol.tags if tag.kind == THOUGHT), None)
    if tag is None:
        return TurnStart()
    return _with_tags(protocol, grammars, tag, opened == THOUGHT, option, thinks)


def _with_headers(
    protocol: Protocol, grammars: Grammars, opened: str | None, header: str | None, option: str
) -> TurnStart:
    names, tokenizer = protocol.headers, grammars.tokenizer
    assert names is not None
    known = tokenizer.markers
    between = [(names.start, True), (names.role, False)]
    kinds = {THOUGHT: names.open_thought, ANSWER: names.open_answer}
    first = {tuple(tokenizer.encode_pieces(p)): kind for kind, p in kinds.items()}
    more = {tuple(tokenizer.encode_pieces([*between, *p])): kind for kind, p in kinds.items()}
    begin = "paths" if opened is None else opened
    if begin not in ("paths", THOUGHT, ANSWER) or (header or names.role).strip() != names.role:
        raise InvalidRequest(
            f"{option}: the prompt ends with {opened or header!r:.80}, where no answer can begin"
        )
    closes = frozenset([known[names.end_channel]])
    barred = {known[name] for name in names.markers if name in known} | grammars.ends
    return TurnStart(begin, first, False, closes, frozenset(barred) - closes, more)


def _with_tags(
    protocol: Protocol, grammars: Grammars, tag: Tag, opened: bool, option: str, thinks: bool
) -> TurnStart:
    known = grammars.tokenizer.markers
    if tag.open not in known or tag.close not in known:
        raise InvalidRequest(
            f"{option}: the model's thoughts stand between {tag.open} and {tag.close}, which are "
            "no tokens of its vocabulary: where its answer begins is not known in time"
        )
    closes = frozenset([known[tag.close]])
    barred = {known[name] for name in protocol.markers if name in known} | grammars.ends
    separators = grammars.blank(protocol.trim.encode())
    paths = {(known[tag.open],): THOUGHT} if thinks and not opened else {}
    begin = THOUGHT if opened else "paths"
    return TurnStart(begin, paths, True, closes, frozenset(barred) - closes, {}, separators)


class Constraint:
    """What one request may write; called by the engine with the tokens since the last call, and
    answers as csrc/bindings/constraint_from_python.h says."""

    def __init__(self, grammars: Grammars, grammar: Grammar, start: TurnStart | None = None):
        self._grammars, self._grammar = grammars, grammar
        self._start = start or TurnStart()
        self._matcher = grammars.matcher(grammar)
        self._taken: list[int] = []  # by the matcher
        self._state, self._begun = self._start.begin, False
        self._paths, self._direct = self._start.paths, self._start.direct
        self._written: Path = ()
        self._separators = 0
        self._free: bytes | None = None

    def __call__(self, tokens: list[int]) -> bytes | None:
        for token in tokens:
            self._take(token)
        if self._state == THOUGHT:
            if self._free is None:
                self._free = _without(self._grammars.vocab, self._start.barred)
            return self._free
        if self._state == "paths":
            return self._first_tokens()
        return self._content()

    # ---- what was written ---------------------------------------------------------------------

    def _take(self, token: int) -> None:
        if self._state == THOUGHT:
            if token in self._start.closes:
                self._after_thought()
            return
        if self._state == "paths" and self._follows(token):
            return
        self._state = ANSWER
        self._taken.append(token)
        if not self._matcher.consume_token(token) and not self._begins_anew():
            self._fail()

    def _after_thought(self) -> None:
        start = self._start
        self._state, self._written = "paths", ()
        self._paths, self._direct = start.more, not start.more
        self._separators = _SEPARATORS if start.separators else 0

    def _follows(self, token: int) -> bool:
        """Whether a token belongs to what comes before the content."""
        written = (*self._written, token)
        if written in self._paths:
            self._state, self._written = self._paths[written], ()
            return True
        if any(path[: len(written)] == written for path in self._paths):
            self._written = written
            return True
        if not self._written and self._separators and token in self._start.separators:
            self._separators -= 1
            return True
        return False

    # ---- what may follow ----------------------------------------------------------------------

    def _first_tokens(self) -> bytes:
        at = len(self._written)
        ids = {path[at] for path in self._paths if path[:at] == self._written}
        if at or not self._direct:
            return _only(self._grammars.vocab, ids)
        if self._separators:
            ids |= self._start.separators
        bits = bytearray(self._content())
        for token in ids:
            bits[token >> 3] |= 1 << (token & 7)
        return bytes(bits)

    def _content(self) -> bytes:
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error() and self._begins_anew():
            mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            self._fail()
        ends_here = self._matcher.is_stopped() and not self._grammars.ends
        return b"" if ends_here else mask

    def _begins_anew(self) -> bool:
        """Whether a matcher with an empty lexer can go on, where that of this one is full: what
        others that share it have seen, and masks of earlier places, are no part of a request's
        fate. It ends where the lexer is full of its own text and one mask."""
        if _FULL not in self._matcher.get_error():
            return False
        self._matcher = self._grammars.alone(self._grammar)
        # Without the masks between, which take milliseconds each: a whole step waits.
        return self._matcher.consume_tokens(self._taken)

    def _fail(self) -> None:
        said = self._matcher.get_error().splitlines()
        reason = said[0] if said else self._matcher.stop_reason()
        told = _REASONS.get(reason, f"it cannot be followed any further ({reason})")
        refuse(self._grammar, told)


def _only(vocab: int, ids: Iterable[int]) -> bytes:
    bits = bytearray((vocab + 7) // 8)
    for token in ids:
        bits[token >> 3] |= 1 << (token & 7)
    return bytes(bits)


def _without(vocab: int, ids: Collection[int]) -> bytes:
    bits = bytearray(b"\xff" * ((vocab + 7) // 8))
    for token in ids:
        bits[token >> 3] &= ~(1 << (token & 7)) & 0xFF
    return bytes(bits)
