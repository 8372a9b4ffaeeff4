"""What the wire protocols share: bodies that are checked, jobs, outcomes, events."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from musespark.calls import TOOL_CHOICES
from musespark.errors import InvalidRequest
from musespark.options import MAX_TOKENS
from musespark.results import Delta, TokenLogprob
from musespark.server import refusing
from musespark.text import Tokenizer

Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Seed = Annotated[int, Field(ge=0, le=2**64 - 1)]
# OpenAI's are of 64 bits with a sign: one below 0 is the number that has its bits without one.
_SignedSeed = Annotated[
    int, Field(ge=-(2**63), le=2**64 - 1), AfterValidator(lambda seed: seed % 2**64)
]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TopP = Annotated[float, Field(ge=0, le=1)]  # 0: greedy, :func:`nucleus`
Temperature = Annotated[float, Field(ge=0, le=2)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Alternatives = Annotated[int, Field(ge=0, le=20)]
Text = Annotated[str, Field(min_length=1)]
Schema = dict[str, Any]

_MOST_FIELDS = 100  # of an object, far more than any has
_MOST_ITEMS = 10_000  # of an array, far more than there may be of anything but token ids
_MOST_IDS = 1 << 22  # of a prompt, far more than are computed in any time
_MOST_ENTRIES = 1024  # of an object whose keys are the client's


def _at_most(most: int) -> Callable[[Any], Any]:
    """Refuses an object of more entries before any of them is looked at: pydantic collects an error
    for each that is wrong, which of a large body are a thousand times its size."""

    def check(value: Any) -> Any:
        if isinstance(value, Mapping) and len(value) > most:
            told = {"count": len(value), "most": most}
            raise PydanticCustomError(
                "too_many_entries", "of {count} entries, allowed are at most {most}", told
            )
        return value

    return check


_Item = TypeVar("_Item")
#: An array, of which the first item that is wrong is told, for the same reason; and no more are
#: looked at than there may be, for while they are, nobody else is served.
Several = Annotated[list[_Item], Field(fail_fast=True, max_length=_MOST_ITEMS)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, min_length=1, max_length=_MOST_IDS)]
#: An object whose keys are the client's.
Named = Annotated[dict[str, _Item], BeforeValidator(_at_most(_MOST_ENTRIES))]

_few = _at_most(_MOST_FIELDS)


class Body(BaseModel):
    """Part of a request: no unknown fields, no conversions, finite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        return _few(value) if cls.model_config["extra"] == "forbid" else value


class Sampling(Body):
    """What every protocol takes beyond its own: options of :meth:`musespark.Model.generate`;
    ``adapter`` and ``steering`` by the names that they have in the model."""

    seed: _SignedSeed | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    regex: Text | None = None
    grammar: Text | None = None
    adapter: Text | None = None
    steering: Text | None = None

    def sampling(self) -> dict[str, Any]:
        """Of :meth:`musespark.Model.generate`."""
        names = ("seed", "top_k", "min_p", "repetition_penalty", "regex", "grammar")
        names += ("adapter", "steering")
        return {name: getattr(self, name) for name in names} | {"min_new_tokens": self.min_tokens}


# ---- jobs ---------------------------------------------------------------------------------------


class Ask(NamedTuple):
    """One request to the model: a conversation or a prompt, and its options. ``echo``: the answer
    begins with the prompt."""

    is_chat: bool
    prompt: Any
    options: Mapping[str, Any]
    echo: bool = False


@dataclass(frozen=True)
class Job:
    """What a body asks of the model, in the terms of :class:`musespark.Model`.

    ``prompts``: one conversation (``is_chat``), or texts and lists of token ids. ``choices``:
    answers to each; the i-th has the seed of the options plus i. ``echo``: as of :class:`Ask`.
    """

    is_chat: bool
    prompts: tuple[Any, ...]
    options: Mapping[str, Any]
    choices: int = 1
    echo: bool = False

    def asks(self) -> list[Ask]:
        """One for each answer: those to the first prompt, then those to the second."""
        given = {name: value for name, value in self.options.items() if value is not None}
        out = []
        for prompt in self.prompts:
            for i in range(self.choices):
                options = dict(given)
                if i and "seed" in given:
                    options["seed"] = (given["seed"] + i) % 2**64
                out.append(Ask(self.is_chat, prompt, options, self.echo))
        return out


class Ended(NamedTuple):
    """An answer that is whole. ``logprobs``: of its text, without thoughts and markers; with
    ``echo``, the prompt that it begins with, of that and of what ended it too."""

    index: int
    result: Any
    logprobs: Sequence[TokenLogprob] = ()
    echo: str = ""


QUIET = b": wait\n\n"  # a comment of server-sent events


class Event(NamedTuple):
    """One of server-sent events; ``data``: JSON, or a text as it is."""

    data: Mapping[str, Any] | str
    name: str | None = None


# Made once: json.dumps makes an encoder for each call.
_encoded = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False
).encode
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\u0085\u2028\u2029"}


def to_json(value: Any) -> str:
    """A value as JSON on one line, for those too who end lines at every line end of Unicode, as
    decoders of server-sent events in Python do: nothing but a text can have one."""
    text = _encoded(value)
    return text if text.isascii() else text.translate(_LINE_ENDS)


def json_in_steps(value: Any) -> str:
    """:func:`to_json` of what is large, whose keys are texts: in small steps, for one call of the
    encoder lets no other thread run until its end."""
    return "".join(_steps(value))


_FEW, _STEP = 64, 16  # items of an array that are looked into; else so many are written at once


def _steps(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for at, (key, one) in enumerate(value.items()):
            yield f"{',' if at else '{'}{to_json(key)}:"
            yield from _steps(one)
        yield "}"
    elif isinstance(value, (list, tuple)) and value:
        step = 1 if len(value) <= _FEW else _STEP
        for at in range(0, len(value), step):
            yield "," if at else "["
            if step == 1:
                yield from _steps(value[at])
            else:
                yield to_json(value[at : at + step])[1:-1]
        yield "]"
    else:
        yield to_json(value)


class TextEvents:
    """Events that differ in one text alone, as nearly all of a stream do: the rest of their JSON is
    written once. ``make``: the event of a text and of what else it depends on."""

    def __init__(self, make: Callable[..., Event]):
        self._make = make
        self._around: dict[tuple[Any, ...], tuple[list[str], str | None]] = {}

    def of(self, text: str, *key: Any) -> Event:
        """``make(text, *key)``, as JSON."""
        found = self._around.get(key)
        if found is None:
            hole = new_id("text_")
            event = self._make(hole, *key)
            found = self._around[key] = (to_json(event.data).split(to_json(hole)), event.name)
        around, name = found
        return Event(to_json(text).join(around), name)


@dataclass(frozen=True)
class Failure:
    """What a client is told of an error. ``code``: a word for programs; ``param``: the field of
    the body that is wrong, where it is one."""

    status: int
    message: str
    code: str | None = None
    retry_after: int | None = None
    param: str | None = None


@dataclass(frozen=True)
class Served:
    """The model as clients see it. ``names``: it goes by each, the first is its own."""

    names: tuple[str, ...]
    tokenizer: Tokenizer
    created: int = field(default_factory=lambda: int(time.time()))

    def read(self, kind: type[Body], value: Any) -> Any:
        """A checked body (:func:`read_body`); :class:`UnknownModel` where it names another."""
        body: Any = read_body(kind, value)
        self.check_name(body.model)
        return body

    def check_name(self, name: str) -> None:
        """:class:`UnknownModel` for a name of another model."""
        if name not in self.names:
            raise UnknownModel(f"model: got {name!r:.80}, allowed is {self.names[0]!r}")


class UnknownModel(InvalidRequest):
    """A request names a model that is not served."""


class Exchange(Protocol):
    """One request of a protocol and what answers it."""

    job: Job
    streams: bool
    quiet: ClassVar[bytes]  # what a stream sends while it has nothing to say
    fields: ClassVar[Mapping[str, str]]  # by options of a model, for refusing.renamed

    def answer(self, ended: Sequence[Ended]) -> dict[str, Any]:
        """The body that answers a request that does not stream."""

    def begin(self, prompt_tokens: int) -> list[Event]: ...

    def piece(self, index: int, delta: Delta) -> list[Event]: ...

    def ended(self, one: Ended) -> list[Event]: ...

    def close(self, ended: Sequence[Ended]) -> list[Event]:
        """The last events, of the whole."""

    def failed(self, failure: Failure) -> list[Event]:
        """What stands in place of the rest."""


# ---- reading ------------------------------------------------------------------------------------


def nucleus(temperature: float | None, top_p: float | None) -> dict[str, Any]:
    """``temperature`` and ``top_p`` of :meth:`musespark.Model.generate`: a ``top_p`` of 0 leaves
    the likeliest token alone, as the temperature 0 does."""
    greedy = top_p == 0
    return {"temperature": 0.0 if greedy else temperature, "top_p": None if greedy else top_p}


def read_body(kind: type[Body], value: Any) -> Any:
    """A checked body; InvalidRequest naming the field, what it got and what is allowed."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise InvalidRequest(refusing.told(error, value)) from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None


_FIELD = re.compile(r"([a-z_]\w*(?:\.\w+|\[\d+\])*)(?:: | is missing)")


def field_of(message: str) -> str | None:
    """The field of a body that a message of :class:`InvalidRequest` names first."""
    named = _FIELD.match(message)
    return None if named is None else named[1]


def held_calls(
    tools: list[dict[str, Any]],
    choice: str | None,
    *,
    strict: bool = False,
    allowed: list[str] | None = None,
    parallel: bool | None = None,
) -> dict[str, Any]:
    """``tools`` and what goes with them of :meth:`musespark.Model.chat`.

    ``choice``: auto, none, required or a tool's name. ``allowed``: the tools that may be called.
    ``parallel``: whether a turn may have several calls. Calls that have to come, that are not of
    all tools or one at most, and those of a tool that is ``strict`` are held to the schemas; others
    are the model's own, so that a model whose way of writing calls is not known can have tools.
    """
    if choice == "none":
        return {"tools": None}
    if choice in (None, "auto"):
        choice = "auto" if strict else None
    one = False if tools and parallel is False else None
    given = {"tool_choice": choice, "allowed_tools": allowed, "parallel_tool_calls": one}
    return {"tools": tools or None, **given}


def named_choice(name: str) -> str:
    """The name of a tool that is to be called."""
    if name in TOOL_CHOICES:
        raise InvalidRequest(f"tool_choice: got the tool {name!r}, which cannot be asked for")
    return name


# ---- writing ------------------------------------------------------------------------------------


def new_id(prefix: str) -> str:
    """An id that no other object has."""
    return prefix + secrets.token_hex(12)


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())
