"""Output that always parses: a JSON schema, a regular expression or a grammar as masks over tokens.

The work is llguidance's (``musespark[grammar]``), imported when it is first asked for: it follows a
grammar byte by byte and says which tokens of a vocabulary may come next. Here are what callers may
give, the vocabulary as bytes, and what is kept between requests. Where in a turn the grammar begins
is in turn_start.py.

A token is allowed if, and only if, the bytes so far with its own can still become a text of the
grammar. No spelling is forced: which tokens make up the text is the model's choice. Markers are not
text, so none is ever allowed inside it.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from musespark.errors import InvalidRequest, MissingLibrary
from musespark.schema import check_multiples
from musespark.text import Tokenizer
from musespark.text.given import checked_json

if TYPE_CHECKING:
    import llguidance

GRAMMAR_OPTIONS = ("json_schema", "regex", "grammar")
MAX_CHARACTERS = 1 << 20  # of a schema as JSON, a regular expression or a grammar
MAX_VALUES = 20_000  # in a schema
# JSON as Python writes it. White space of its own choice is where a weak model stays for ever.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Options of llguidance inside a schema, which are set here.
_OWN_KEY = "x-guidance"
_DIRECTIVE = re.compile(r"^\s*%llguidance\b", re.MULTILINE)
_EXACT = '%llguidance {"no_forcing": true}\n'
_KEPT = 16  # compiled grammars
_NO_TEXT = (
    0xFF  # a byte that UTF-8 has nowhere; the library spells a marker with id 7 as b"\xff[7]"
)
# Parser items of one mask: a tenth of a second of the worst grammars, for which a whole step waits.
_MOST_WORK = 5_000
# Of the lexer of one grammar, which keeps what it has seen: about 16 MB, for all that share it.
_MOST_STATES = 50_000
# In the library's messages: lines of the grammar, and places in it.
_QUOTED = re.compile(r"\d+ \||\^")
_PLACE = re.compile(r"^at \d+\(\d+\): ")


@dataclass(frozen=True)
class Grammar:
    """A checked grammar. ``option``: the name it was given by; ``text``: as llguidance reads it;
    ``validate``: what makes an object of a text, where the schema was a class's that does so.
    ``rule``: a schema's as the body of a rule, for grammars that have more."""

    option: str
    text: str
    validate: Callable[[str], Any] | None = field(default=None, compare=False)
    rule: str = ""

    @property
    def parse(self) -> Callable[[str], tuple[Any, str]] | None:
        """What parses a text of this grammar; None where it is no schema's."""
        return self._parsed if self.option == "json_schema" else None

    def _parsed(self, text: str) -> tuple[Any, str]:
        """The value of a text, and why there is none: a stop string cut it, or it is beyond what
        Python reads (nested thousands deep, an integer of thousands of digits), or the class's own
        validators refuse it."""
        try:
            return json.loads(text) if self.validate is None else self.validate(text), ""
        except ValueError as error:  # pydantic's ValidationError is one
            return None, str(error) or type(error).__name__
        except Exception as error:  # of a validator: the answer that it refuses is kept
            return None, f"{type(error).__name__}: {error}"


def chosen_grammar(given: Mapping[str, Any]) -> Grammar | None:
    """The grammar among a request's options, None for none.

    InvalidRequest for more than one, for what is none, too large or nested too deeply, naming the
    place. What the library makes of it is seen when it is compiled.
    """
    options = {name: given[name] for name in GRAMMAR_OPTIONS if given.get(name) is not None}
    if not options:
        return None
    if len(options) > 1:
        raise InvalidRequest(f"{' and '.join(options)}: allowed is one of them")
    ((option, value),) = options.items()
    if option == "json_schema":
        rule = json_rule(_schema(value))
        _check_length(option, rule)
        return Grammar(option, f"{_EXACT}start: {rule}", _validator(value), rule)
    if not isinstance(value, str) or not value:
        what = "a regular expression" if option == "regex" else "a grammar in Lark's syntax"
        raise InvalidRequest(f"{option}: got {value!r:.60}, allowed is {what}, a str")
    _check_length(option, value)
    if option == "regex":
        return Grammar(option, _lark_of_regex(value))
    if _DIRECTIVE.search(value):
        raise InvalidRequest("grammar: got a %llguidance directive; its options are set here")
    return Grammar(option, _EXACT + value)


def _validator(given: Any) -> Callable[[str], Any] | None:
    """What makes an object of a text, of a class of pydantic: strict ones read dates, enums and
    tuples from JSON alone."""
    from_value = getattr(given, "model_validate", None)
    if from_value is None:
        return None
    return getattr(given, "model_validate_json", None) or (
        lambda text: from_value(json.loads(text))
    )


def _check_length(option: str, text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequest(
            f"{option}: got {len(text)} characters, allowed are at most {MAX_CHARACTERS}"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{option}: a lone surrogate at index {error.start}, which no text has"
        ) from None


def _schema(value: Any) -> dict[str, Any]:
    """A schema as plain data: from a dict, JSON text, or a class of pydantic."""
    if callable(getattr(value, "model_json_schema", None)):
        value = value.model_json_schema()
    if isinstance(value, str):
        _check_length("json_schema", value)
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"json_schema: the text is no JSON: {error!s:.200}") from None
    if not isinstance(value, Mapping):
        raise InvalidRequest(
            f"json_schema: got {value!r:.60}, allowed is a schema: a dict, its JSON as a str, or a "
            "class with model_json_schema()"
        )
    schema = checked_json(value, "json_schema")
    pending, count = [("json_schema", schema)], 0
    while pending:
        where, node = pending.pop()
        count += 1
        if count > MAX_VALUES:
            raise InvalidRequest(f"json_schema: more than {MAX_VALUES} values")
        if isinstance(node, dict):
            if _OWN_KEY in node:
                raise InvalidRequest(f"{where}.{_OWN_KEY}: its options are set here")
            pending += [(f"{where}.{key}", item) for key, item in node.items()]
        elif isinstance(node, list):
            pending += [(f"{where}[{index}]", item) for index, item in enumerate(node)]
    check_multiples(schema, "json_schema")
    return schema


def json_rule(schema: Mapping[str, Any]) -> str:
    """A checked schema as the body of a rule."""
    return f"%json {json.dumps({**schema, _OWN_KEY: {**_SPACING, 'lenient': False}})}"


def grammar_of_lark(option: str, text: str) -> Grammar:
    """A grammar that was written here; ``option``: what errors name."""
    _check_length(option, text)
    return Grammar(option, _EXACT + text)


_IN_SLASHES = {"/": r"\/", "\n": r"\n", "\r": r"\r"}
_UNWRITABLE = re.compile(r"\\?[/\n\r]|\\.", re.DOTALL)


def slashed(regex: str) -> str:
    """Between slashes: a slash and a line's end are escaped, if they are not already."""
    return f"/{_UNWRITABLE.sub(lambda match: _IN_SLASHES.get(match[0][-1], match[0]), regex)}/"


def _lark_of_regex(regex: str) -> str:
    return f"{_EXACT}start: {slashed(regex)}"


# ---- what is kept of a model -------------------------------------------------------------------


class Grammars:
    """Grammars over the vocabulary of one model. Thread-safe.

    ``vocab``: ids of the model, which may be more than the tokenizer has. ``ends``: ids that end a
    text or turn; with none, a text that is complete ends by itself. ``markers``: those that are not
    text, where the others are that are not special; None: none of them is.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab: int,
        ends: Collection[int],
        markers: Collection[str] | None = None,
    ):
        self.tokenizer, self.vocab, self.ends = tokenizer, vocab, frozenset(ends)
        self._markers = tokenizer.markers.keys() if markers is None else markers
        self._lock = threading.Lock()
        self._trie: llguidance.LLTokenizer | None = None
        # What is copied for each request; None where each has its own.
        self._compiled: OrderedDict[str, llguidance.LLMatcher | None] = OrderedDict()
        self._pieces: list[bytes] | None = None
        self._blank: dict[bytes, frozenset[int]] = {}

    @property
    def pieces(self) -> list[bytes]:
        """The bytes of each id [vocab]; none of markers and of ids that are in no text."""
        if self._pieces is None:
            named = {i for name, i in self.tokenizer.markers.items() if name in self._markers}
            markers = {*named, *self.tokenizer.special_ids, *self.ends}
            known = self.tokenizer.all_bytes()
            if known is None:
                raise InvalidRequest(
                    f"a grammar needs the bytes of each token; {self.tokenizer!r} decodes whole "
                    "texts only"
                )
            known = known[: self.vocab] + [b""] * (self.vocab - len(known))
            self._pieces = [
                b"" if i in markers or _NO_TEXT in piece else piece for i, piece in enumerate(known)
            ]
        return self._pieces

    def blank(self, characters: bytes) -> frozenset[int]:
        """The ids whose text is nothing but these characters."""
        found = self._blank.get(characters)
        if found is None:
            pieces = enumerate(self.pieces)
            found = frozenset(i for i, p in pieces if p and not p.strip(characters))
            self._blank[characters] = found
        return found

    def matcher(self, grammar: Grammar) -> llguidance.LLMatcher:
        """A new matcher at the beginning of the grammar. It may share with others what its lexer
        has seen, which makes masks cheap, and the limit of that.

        InvalidRequest where the library refuses it, with what it says; MissingLibrary.
        """
        library = _library()
        with self._lock:
            if self._trie is None:
                self._trie = self._built(library)
        fresh = None  # compiled without the lock: alone() takes it while a whole step waits
        while True:
            with self._lock:
                if fresh is not None or grammar.text in self._compiled:
                    shared = self._compiled.pop(grammar.text, fresh)
                    self._keep(grammar, shared)
                    if shared is not None:
                        return shared.deep_copy()
                    break
            fresh = _compiled(library, self._trie, grammar)
        return fresh or _compiled(library, self._trie, grammar)

    def alone(self, grammar: Grammar) -> llguidance.LLMatcher:
        """The same for a request that has met the limit, sharing nothing. Nor do later ones share,
        of a grammar whose lexer sees so much."""
        with self._lock:
            self._keep(grammar, None)
        return _compiled(_library(), self._trie, grammar)

    def _keep(self, grammar: Grammar, shared: llguidance.LLMatcher | None) -> None:
        self._compiled[grammar.text] = shared
        while len(self._compiled) > _KEPT:
            self._compiled.popitem(last=False)

    def _built(self, library: Any) -> llguidance.LLTokenizer:
        # Without ends of its own the model gets one that it cannot write.
        ends = sorted(self.ends) or [self.vocab]
        tokens = [*self.pieces, b""]
        for end in ends:
            tokens[end] = b"<end %d>" % end  # a name that no grammar can spell
        wrapped = library.TokenizerWrapper(_Vocabulary(tokens, ends))
        return library.LLTokenizer(wrapped, n_vocab=self.vocab + 1, eos_token=ends)


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], ends: list[int]):
        self.tokens, self.eos_token_id = tokens, ends[0]
        self.special_token_ids = ends

    def __call__(self, text: bytes) -> list[int]:
        """How a text is spelled; never needed, for no text is forced."""
        return []


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingLibrary(
            "output by a schema or grammar, and calls that always parse (tool_choice), need "
            "llguidance: pip install 'musespark[grammar]' (tool_choice=None leaves calls free)"
        ) from error
    return llguidance


def _compiled(library: Any, trie: Any, grammar: Grammar) -> llguidance.LLMatcher:
    limits = library.LLParserLimits(
        verbose_errors=False, step_max_items=_MOST_WORK, max_lexer_states=_MOST_STATES
    )
    matcher = library.LLMatcher(trie, grammar.text, log_level=0, limits=limits)
    if matcher.is_error():
        refuse(grammar, matcher.get_error())
    return matcher


def refuse(grammar: Grammar, said: str) -> NoReturn:
    """InvalidRequest with the library's words, without what it quotes of our own text."""
    lines = [line.strip() for line in said.partition("<backtrace>")[0].splitlines()]
    text = " ".join(line for line in lines if line and not _QUOTED.match(line))
    if grammar.option != "grammar":
        text = _PLACE.sub("", text)
    raise InvalidRequest(f"{grammar.option}: {text:.500}")
