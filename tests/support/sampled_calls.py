"""Turns of a tiny random model that is held to calls, in each family's way of writing them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

import musespark
from musespark.calls import offer_of, turn_grammar
from musespark.errors import InvalidRequest
from musespark.events import Request
from musespark.grammar import Grammars
from musespark.schema import check_value
from musespark.text import PROTOCOLS
from musespark.text.channels import ChannelParser
from musespark.turn_start import Constraint
from support.chat_folder import random_folder
from support.turns import END, TOOLS, writer, writer_json

# Each way to write calls, by the protocol's name, some after thoughts.
STYLES = (
    *("muse", "harmony", "hermes", "think+hermes", "xml", "think+xml", "glm", "seed", "mistral"),
    *("deepseek", "think+dsml", "dsml-4", "kimi", "command", "phi4", "granite", "lfm2", "apertus"),
    *("gemma-4", "function-gemma", "llama-3", "llama-4", "gemma"),
)
_LONGEST = 3000  # tokens of a turn


class Sampler:
    """Turns of one style. ``model``: its tokenizer is :func:`support.turns.writer`'s."""

    def __init__(self, style: str, model: musespark.Model):
        self._protocol, self._model = PROTOCOLS[style], model
        self._tokenizer = writer(self._protocol)
        known = self._tokenizer.markers
        self.ends = {*self._tokenizer.eos_ids}
        self.ends |= {known[m] for m in self._protocol.ends if m in known}
        vocab, markers = self._tokenizer.vocab_size, self._protocol.markers
        self._grammars = Grammars(self._tokenizer, vocab, self.ends, markers)
        begun = "<|start|>assistant" if self._protocol.headers else "Hi"
        self._prompt = self._tokenizer.encode(begun, parse_special=True)

    def begin(
        self, tools: Sequence[Mapping[str, Any]], seed: int, choice: str = "required", **more: Any
    ) -> Any:
        """A turn at temperature 2 under way; ``more``: of :func:`musespark.calls.offer_of`."""
        offer = offer_of(tools, choice, **more)
        given = (self._protocol, self._tokenizer, self._prompt, offer)
        request = Request(
            tokens=self._prompt,
            max_new_tokens=_LONGEST,
            temperature=2.0,
            seed=seed,
            stop_ids=sorted(self.ends),
            constraint=Constraint(self._grammars, turn_grammar(*given)),
        )
        return self._model._engine.submit(request)

    def compiles(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """InvalidRequest where the grammar of a turn is none."""
        given = (self._protocol, self._tokenizer, self._prompt, offer_of(tools, "auto"))
        Constraint(self._grammars, turn_grammar(*given))([])

    def read(self, tools: Sequence[Mapping[str, Any]], tokens: Sequence[int]) -> ChannelParser:
        """The turn that the tokens are."""
        given = {"tools": tools, "ends": self.ends}
        parser = ChannelParser.for_prompt(self._protocol, self._tokenizer, self._prompt, **given)
        for token in tokens:
            parser.push(token)
        parser.finish()
        return parser

    def text(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens)


@contextmanager
def sampler(style: str, folder: Path) -> Iterator[Sampler]:
    """A sampler with a model of its own."""
    tokenizer = tokenizers.Tokenizer.from_str(writer_json(PROTOCOLS[style]))
    random_folder(folder, tokenizer, END, context=_LONGEST + 64)
    with musespark.load(folder, quantize="none", threads=1, context=_LONGEST + 64) as model:
        yield Sampler(style, model)


def wrong_calls(found: ChannelParser, tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the calls of a turn; nothing where all parse and fit their schemas."""
    turn, wrong = found.turn, []
    wrong += [f"malformed: {raw}" for raw in turn.malformed_tool_calls]
    wrong += [f"protocol: {error}" for error in turn.protocol_errors]
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    for one in turn.tool_calls:
        try:
            check_value(one.arguments, schemas[one.name], one.name)
        except (InvalidRequest, KeyError) as error:
            wrong.append(repr(error))
    return wrong or ([] if turn.tool_calls else ["no call"])


def fits(
    style: str,
    text: str,
    choice: str | None = "auto",
    tools: Any = TOOLS,
    form: str = "",
    begun: str = "",
    **more: Any,
) -> bool:
    """Whether a turn may be this text, to its end. ``form``: of answers, a rule's body; ``begun``:
    what the prompt ends with; ``more``: of :func:`musespark.calls.offer_of`."""
    protocol = PROTOCOLS[style]
    tokenizer = writer(protocol)
    ends = {*tokenizer.eos_ids}
    grammars = Grammars(tokenizer, tokenizer.vocab_size, ends, protocol.markers)
    begun = begun or ("<|start|>assistant" if protocol.headers else "Hi")
    prompt = tokenizer.encode(begun, parse_special=True)
    offer = offer_of(tools, choice, **more)
    assert offer is not None
    constraint = Constraint(grammars, turn_grammar(protocol, tokenizer, prompt, offer, form))
    new: list[int] = []
    for token in [*tokenizer.encode(text, parse_special=True), *ends]:
        mask = constraint(new)
        if not mask[token >> 3] >> (token & 7) & 1:
            return False
        new = [token]
    return True
