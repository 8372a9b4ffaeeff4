"""Generation options: one place that knows names, ranges, defaults and aliases."""

from __future__ import annotations

import difflib
import math
import operator
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from musespark.errors import CorruptFile, InvalidRequest

_ALIASES = {"max_tokens": "max_new_tokens"}
# Fields of transformers' generation_config.json that have no part here, with what turns them off.
_NOT_APPLIED: dict[str, Any] = {
    "num_beams": 1,
    "typical_p": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "bad_words_ids": [],
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "sequence_bias": {},
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
    "penalty_alpha": 0.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": None,
    "diversity_penalty": 0.0,
    "exponential_decay_length_penalty": None,
    "stop_strings": None,
    "max_time": None,
}
CHAT_OPTIONS = ("tools", "reasoning_effort", "mode", "continue_final_message")
TOTAL = "max_total_tokens"  # of thought, its frame and the answer together
CALL_OPTIONS = ("tool_choice", "allowed_tools", "parallel_tool_calls")  # musespark.calls
EFFORTS = ("low", "medium", "high", "xhigh")
MODES = ("auto", "instant", "thinking")  # of one turn
CONTEMPLATING = "contemplating"  # of several: musespark.contemplating, which has these options
AGGREGATES = ("vote", "confidence", "refine")
AGENT_OPTIONS = (
    *("n_agents", "rounds", "aggregate", "consensus", "weak_window", "answer_key"),
    *("workspace_tokens", "workspace", "calls"),
)
# Keywords that others have, and what says the same here.
_ELSEWHERE = {
    "system": '; a system message is the first one of messages: [{"role": "system", "content": '
    '"..."}, ...]',
}
SPECULATIONS = ("auto", "off")
MAX_LOGPROBS = 64
MAX_TOKENS = 2**31 - 1
MAX_STOP_STRINGS = 64


@dataclass(frozen=True)
class GenerationOptions:
    """Checked options of one request; with every field final.

    ``began``: when they were given, by ``time.monotonic``; the deadline counts from there.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int = 0
    logit_bias: Mapping[int, float] | None = None
    deadline: float | None = None
    speculation: str = "auto"
    began: float = field(default=0.0, compare=False)


OPTION_NAMES = tuple(f.name for f in fields(GenerationOptions) if f.name != "began")


def refused(name: str, value: object, allowed: str) -> InvalidRequest:
    """The error for a value that an option does not take."""
    try:
        got = f"{value!r:.80}"
    except ValueError:  # an integer of more digits than Python writes
        got = f"a huge {type(value).__name__}"
    return InvalidRequest(f"{name}: got {got}, allowed is {allowed}")


def check_stream(value: Any) -> None:
    if not isinstance(value, bool):
        raise refused("stream", value, "True or False")


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """A whole number of a range; InvalidRequest naming both."""
    allowed = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool):
        raise refused(name, value, allowed)
    try:
        number = operator.index(value)
    except TypeError:
        raise refused(name, value, allowed) from None
    if number < low or (high is not None and number > high):
        raise refused(name, value, allowed)
    return number


def real(name: str, value: Any, low: float, high: float, allowed: str) -> float:
    """A finite number of a range; InvalidRequest saying what is ``allowed``."""
    if isinstance(value, (bool, str, bytes)):
        raise refused(name, value, allowed)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise refused(name, value, allowed) from None
    if not math.isfinite(number) or not low <= number <= high:
        raise refused(name, value, allowed)
    return number


def _stop(value: Any) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, Sequence) or not all(isinstance(s, str) and s for s in items):
        raise refused("stop", value, "a non-empty string or a sequence of them")
    if any("\ud800" <= char <= "\udfff" for text in items for char in text):
        raise refused("stop", value, "text; no text has a lone surrogate")
    if len(items) > MAX_STOP_STRINGS:
        raise refused("stop", f"{len(items)} strings", f"at most {MAX_STOP_STRINGS}")
    return tuple(items)


def _logit_bias(value: Any, vocab: int) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise refused("logit_bias", value, "a mapping of token id to a number")
    out = {}
    for key, bias in value.items():
        token = integer("logit_bias token id", key, 0, vocab - 1)
        out[token] = real(f"logit_bias[{token}]", bias, -1e9, 1e9, "a finite number")
    return out


def _check(name: str, value: Any, vocab: int) -> Any:
    if name == "max_new_tokens":
        return integer(name, value, 1, MAX_TOKENS)
    if name in ("min_new_tokens", "top_k"):
        return integer(name, value, 0, MAX_TOKENS)
    if name == "logprobs":
        return integer(name, value, 0, min(MAX_LOGPROBS, vocab))
    if name == "seed":
        return integer(name, value, 0, 2**64 - 1)
    if name == "temperature":
        return real(name, value, 0.0, 1e4, "a number from 0 (greedy) to 10000")
    if name == "top_p":
        number = real(name, value, 0.0, 1.0, "a number in (0, 1]")
        if number == 0.0:
            raise refused(name, value, "a number in (0, 1]")
        return number
    if name == "min_p":
        return real(name, value, 0.0, 1.0, "a number from 0 to 1")
    if name == "repetition_penalty":
        return real(name, value, 1e-2, 1e2, "a number from 0.01 to 100")
    if name in ("presence_penalty", "frequency_penalty"):
        return real(name, value, -100.0, 100.0, "a number from -100 to 100")
    if name == "deadline":
        return real(name, value, 0.0, 1e9, "seconds from now, >= 0")
    if name == "stop":
        return _stop(value)
    if name == "speculation":
        if value not in SPECULATIONS:
            raise refused(name, value, f"one of {list(SPECULATIONS)}")
        return value
    return _logit_bias(value, vocab)


def text(name: str, value: Any) -> str:
    """A str; InvalidRequest for anything else."""
    if not isinstance(value, str):
        raise refused(name, value, "a str")
    return value


class UnknownArgument(InvalidRequest):
    """A keyword nobody knows. ``name``: that; ``known``: those that could have been meant."""

    def __init__(self, message: str, *, name: str = "", known: Sequence[str] = ()):
        super().__init__(message)
        self.name, self.known = name, tuple(known)

    def beside(self, own: Sequence[str]) -> UnknownArgument:
        """The same error of a call that has options of its ``own`` too, and passes others on."""
        return unknown_argument(self.name, [*own, *self.known])


def unknown_argument(name: str, known: Sequence[str]) -> UnknownArgument:
    """The error for a keyword nobody knows, with the nearest name."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    hint = _ELSEWHERE.get(name, hint)
    return UnknownArgument(f"unknown argument {name!r}{hint}", name=name, known=known)


def refuse_unknown(given: Iterable[str], known: Sequence[str]) -> None:
    """:func:`unknown_argument` for the first of the keywords that were given beyond ``known``."""
    for name in given:
        raise unknown_argument(name, known)


def model_defaults(generation_config: Mapping[str, Any], vocab: int) -> GenerationOptions:
    """Defaults from a ``generation_config.json``; greedy unless it says ``do_sample``.

    Values there that no sampler could use raise CorruptFile, naming the field.
    """
    names = ["repetition_penalty", "max_new_tokens", "min_new_tokens"]
    values: dict[str, Any] = {}
    if generation_config.get("do_sample"):
        names += ["temperature", "top_k", "top_p", "min_p"]
        values["temperature"] = 1.0
    for name in names:
        value = generation_config.get(name)
        if value is None:
            continue
        try:
            values[name] = _check(name, value, vocab)
        except InvalidRequest as error:
            raise CorruptFile(f"generation_config.json: {error}") from None
    return GenerationOptions(**values)


def unused_defaults(generation_config: Mapping[str, Any]) -> list[str]:
    """Fields of a ``generation_config.json`` that would change the output and are not applied."""
    return [
        name
        for name, neutral in _NOT_APPLIED.items()
        if generation_config.get(name) not in (None, neutral)
    ]


def resolve(
    given: Mapping[str, Any],
    defaults: GenerationOptions,
    vocab: int,
    *,
    also_known: Sequence[str] = (),
) -> GenerationOptions:
    """Checked options from keyword arguments; None means the model's default.

    A missing seed is drawn from the operating system when the request samples, so that the
    result can name it. Raises :class:`InvalidRequest` naming field, value and what is allowed.
    """
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = _ALIASES.get(key, key)
        if name not in OPTION_NAMES:
            raise unknown_argument(key, [*OPTION_NAMES, *_ALIASES, *also_known])
        if value is None:
            continue
        if name in values:
            alias = next(a for a, of in _ALIASES.items() if of == name)
            raise InvalidRequest(f"{alias} and {name} are the same option; give one of them")
        values[name] = _check(name, value, vocab)
    options = replace(defaults, began=time.monotonic(), **values)
    most = options.max_new_tokens
    if most is not None and options.min_new_tokens > most:
        if "min_new_tokens" not in values:  # the model's own yields to what is asked for
            return resolve({**given, "min_new_tokens": most}, defaults, vocab)
        whose = "" if "max_new_tokens" in values else " (from the model's generation_config.json)"
        raise InvalidRequest(
            f"min_new_tokens: got {options.min_new_tokens}, "
            f"more than max_new_tokens = {most}{whose}"
        )
    if "seed" not in values and options.temperature > 0:
        options = replace(options, seed=int.from_bytes(os.urandom(4), "little"))
    return options


def within(options: GenerationOptions, given: Mapping[str, Any], room: int) -> GenerationOptions:
    """The options where ``room`` tokens are left of the context: the model's own lengths are cut
    to it; what the caller asked for stays, and overflows. The deadline is what is left of it."""
    asked = {_ALIASES.get(name, name) for name, value in given.items() if value is not None}
    if "max_new_tokens" not in asked and (options.max_new_tokens or 0) > room:
        options = replace(options, max_new_tokens=None)  # up to the context
    if "min_new_tokens" not in asked and options.min_new_tokens > room:
        options = replace(options, min_new_tokens=max(0, room))
    if options.deadline is not None:
        left = options.deadline - (time.monotonic() - options.began)
        options = replace(options, deadline=max(0.0, left))
    return options


def under_total(
    options: GenerationOptions, given: Mapping[str, Any]
) -> tuple[GenerationOptions, int | None]:
    """The options beside ``max_total_tokens``, and that: the model's own lengths yield to it, a
    ``min_new_tokens`` of the caller's that is more is refused."""
    total = given.get(TOTAL)
    if total is None:
        return options, None
    total = integer(TOTAL, total, 1, MAX_TOKENS)
    asked = {_ALIASES.get(name, name) for name, value in given.items() if value is not None}
    least = options.min_new_tokens
    if least > total and "min_new_tokens" in asked:
        raise InvalidRequest(f"min_new_tokens: got {least}, more than {TOTAL} = {total}")
    most = options.max_new_tokens if "max_new_tokens" in asked else None
    return replace(options, max_new_tokens=most, min_new_tokens=min(least, total)), total


def split_seeds(seed: Any, rows: int) -> list[Any]:
    """One seed for each row of a batch: an int (or None) serves all rows, a list names each."""
    if seed is None or isinstance(seed, int):
        return [seed] * rows
    try:
        return [operator.index(seed)] * rows
    except TypeError:
        pass  # not one integer
    if isinstance(seed, (str, bytes)) or not hasattr(seed, "__len__") or len(seed) != rows:
        got = repr(seed) if not hasattr(seed, "__len__") else f"{len(seed)} of them"
        raise InvalidRequest(f"seed: got {got}, allowed is one int or a list of {rows}")
    return list(seed)
