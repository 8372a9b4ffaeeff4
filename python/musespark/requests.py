"""What callers ask of one model, as requests to its engine and what collects their results."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from musespark import prompts
from musespark.adapters import ADDITIONS, Adapters
from musespark.agents.described import described
from musespark.calls import Offer, offer_of, turn_grammar
from musespark.collectors import ChatCollector, CompletionCollector
from musespark.errors import InvalidRequest
from musespark.events import GivenRows, Request
from musespark.explaining import Asked
from musespark.grammar import GRAMMAR_OPTIONS, Grammar, Grammars, chosen_grammar
from musespark.images import PromptImages, image_tokens, without_images
from musespark.options import (
    AGENT_OPTIONS,
    CALL_OPTIONS,
    CHAT_OPTIONS,
    CONTEMPLATING,
    OPTION_NAMES,
    TOTAL,
    GenerationOptions,
    resolve,
    under_total,
    within,
)
from musespark.text import ChatTemplate, Tokenizer, refuse_early
from musespark.text.channels import ChannelParser
from musespark.text.detection import detect_protocol
from musespark.text.given import known_calls
from musespark.text.protocols import Protocol
from musespark.text.toolcalls import schemas_of
from musespark.thinking.effort import by_effort
from musespark.thinking.policy import (
    NO_POLICY,
    OFF,
    SIGNALS,
    THINKING_OPTIONS,
    Thinking,
    checked_signals,
    checked_thinking,
)
from musespark.thinking.request import Thoughts, with_budget
from musespark.thinking.thresholds import Found, calibrated
from musespark.thought_cache import THOUGHT_OPTIONS, request_thoughts, thought_marks
from musespark.tracing import question_of, tracer
from musespark.turn_start import Constraint, turn_start

if TYPE_CHECKING:
    from musespark.families.spec import ModelSpec
    from musespark.results import ModelInfo
    from musespark.vision.eyes import Eyes


_DRAFT = 16  # the most that csrc/decode/speculation.h allows


class Requests:
    """The tokenizer, the chat template and the defaults of a model. ``eyes``: of one that sees;
    ``blind``: why it does not. ``calibrated``: what was, for its thoughts (musespark.thinking)."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        spec: ModelSpec,
        info: ModelInfo,
        adapters: Adapters,
        defaults: GenerationOptions,
        eyes: Eyes | None,
        blind: str,
        calibrated: Found,
    ):
        self.tokenizer, self.defaults, self.eyes, self.blind = tokenizer, defaults, eyes, blind
        self._spec, self._info, self._adapters = spec, info, adapters
        self.calibrated = calibrated
        self._template: ChatTemplate | None = None
        self.protocol: Protocol = detect_protocol(tokenizer, None)
        self.stop_ids: frozenset[int] = frozenset()
        self._grammars = self._turns = Grammars(tokenizer, spec.vocab, ())
        self._thoughts: Thoughts | None = None

    @property
    def template(self) -> ChatTemplate | None:
        """See :attr:`musespark.Model.template`."""
        return self._template

    @template.setter
    def template(self, given: ChatTemplate | str | os.PathLike[str] | None) -> None:
        if given is not None and not isinstance(given, ChatTemplate):
            if not isinstance(given, (str, os.PathLike)):
                raise InvalidRequest(
                    f"template: got {given!r:.60}, allowed is a ChatTemplate, its text or a path"
                )
            given = ChatTemplate(given)
        protocol = detect_protocol(self.tokenizer, given)
        self.stop_ids = prompts.stop_ids(self.tokenizer, given, protocol, self._spec.vocab)
        self._template, self.protocol = given, protocol
        given_to = (self.tokenizer, self._spec.vocab, self.stop_ids)
        self._grammars, self._turns = Grammars(*given_to), Grammars(*given_to, protocol.markers)

    @property
    def thoughts(self) -> Thoughts:
        """How the protocol's thoughts are marked and watched."""
        if self._thoughts is None or self._thoughts.protocol is not self.protocol:
            marks = thought_marks(self.protocol, self.tokenizer)
            self._thoughts = Thoughts(self.protocol, self.tokenizer, marks, self._spec.vocab)
        return self._thoughts

    def ids(self, prompt: str | Sequence[int], name: str, *, most: int | None = None) -> np.ndarray:
        """int32 [n], at least one: a text's (the tokenizer adds what it adds around one), or the
        ids given."""
        if isinstance(prompt, str):
            refuse_early(self.tokenizer, len(prompt), most)
            ids = self.tokenizer.encode(prompt, add_special=True)
        else:
            ids = prompts.token_ids(prompt, name)
        if len(ids) == 0:
            raise InvalidRequest(f"{name}: no tokens; the model needs at least one")
        return np.asarray(ids, np.int32)

    def text(
        self, prompt: str | Sequence[int], given: Mapping[str, Any]
    ) -> tuple[Request, CompletionCollector]:
        """Of :meth:`musespark.Model.generate`."""
        apart = (*ADDITIONS, SIGNALS, *GRAMMAR_OPTIONS)
        rest = {name: value for name, value in given.items() if name not in apart}
        vocab = self._spec.vocab
        options = resolve(rest, self.defaults, vocab, also_known=("stream", *apart))
        grammar = chosen_grammar(described(given))
        adapter = self._adapters.chosen(given)
        ids = self.ids(prompt, "prompt", most=self._info.context)
        options = within(options, rest, self._info.context - len(ids))
        options = _without_least(options, rest, grammar)
        constraint = grammar and Constraint(self._grammars, grammar)
        more: dict[str, Any] = {"adapter": adapter, "constraint": constraint}
        signals = checked_signals(given)
        if signals:
            more |= self._thought_fields({}, Thinking(policy=OFF, signals=True))
        request = self.request(ids, options, **more)
        decoder = self.tokenizer.stream(skip_special=True, continuing=True)
        return request, CompletionCollector(
            decoder,
            self.stop_ids,
            options,
            self._info.kv,
            parse=None if grammar is None else grammar.parse,
            signals=self.thoughts.signals if signals else None,
        )

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        given: Mapping[str, Any],
        *,
        retain: bool = False,
    ) -> tuple[Request, ChatCollector]:
        """Of :meth:`musespark.Model.chat`."""
        return self.prepared(messages, given, retain=retain).ask()

    def prepared(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        given: Mapping[str, Any],
        *,
        retain: bool = False,
    ) -> PreparedChat:
        """A conversation for :meth:`musespark.Model.chat`, read and checked: to be asked once, or
        with several seeds."""
        _refuse_agents(given)
        given = described(given)
        chat, thinking = self._chat_options(given)
        named = (*CHAT_OPTIONS, *CALL_OPTIONS, *THOUGHT_OPTIONS, *THINKING_OPTIONS)
        named = (*named, *GRAMMAR_OPTIONS, *ADDITIONS)
        rest = {name: value for name, value in given.items() if name not in named}
        known = (*named, *AGENT_OPTIONS, "stream")
        own = self.defaults
        if given.get(TOTAL) is not None:  # to which the model's own length yields
            own = replace(own, max_new_tokens=None)
        options = resolve(rest, own, self._spec.vocab, also_known=known)
        options, total = under_total(options, given)
        grammar = _chat_grammar(given)
        adapter, limit = self._adapters.chosen(given), self._info.context
        messages, sources = without_images(messages)
        images = PromptImages(self.eyes, sources, self.blind)
        prompt = self._chat_ids(messages, images, **chat)
        ids, rows = images.placed(prompt, self.tokenizer, self._spec.hidden)
        room = limit - len(ids)
        options = within(options, rest, room)
        turn = self._turn_grammar(given, prompt, grammar)
        options = _without_least(options, rest, grammar or turn)
        budget = thinking.budget
        if budget is None and options.max_new_tokens is None and self.thoughts.marks is not None:
            # What a limit of all together, or the context, leaves a thought beside its answer.
            budget = total if total is not None or thinking.policy == OFF else max(0, room)
        options, budget, answer = with_budget(
            options, budget, room, self.thoughts.frame_tokens, total
        )
        more = self._thought_fields(given, replace(thinking, budget=budget))
        more |= {"retain": retain, "adapter": adapter, "given": rows, "max_answer_tokens": answer}
        return PreparedChat(
            requests=self,
            asked=self._asked(messages, prompt, images, given),
            options=options,
            prompt=prompt,
            ids=np.asarray(ids, np.int32),
            messages=messages,
            images=images,
            prompt_options=chat,
            grammar=grammar,
            turn=turn,
            thinking=thinking,
            fields=more,
        )

    @property
    def context(self) -> int:
        """In tokens."""
        return self._info.context

    @property
    def image_tokens(self) -> Callable[[Sequence[Mapping[str, Any]]], int] | None:
        """:func:`musespark.images.image_tokens` of this model; None where it sees none."""
        return None if self.eyes is None else partial(image_tokens, self.eyes)

    def collector(self, chat: PreparedChat, options: GenerationOptions) -> ChatCollector:
        """What collects the answer to one request of ``chat``."""
        continued = chat.prompt_options.get("continue_final_message", False)
        parser = ChannelParser.for_prompt(
            self.protocol,
            self.tokenizer,
            chat.prompt,
            tools=chat.prompt_options.get("tools"),
            known_calls=known_calls(chat.messages),
            ends=self.stop_ids,
            continuing=continued,
        )
        thoughts = chat.fields["thoughts"]
        trace = tracer(
            self.eyes,
            chat.images.pictures,
            chat.messages,
            self.tokenizer,
            self._info.source,
            continued=continued,
        )
        return ChatCollector(
            parser,
            options,
            self._info.kv,
            thoughts and thoughts["cache"],
            chat.images.use,
            trace,
            parse=None if chat.grammar is None else chat.grammar.parse,
            decode=self.tokenizer.decode,
            asked=chat.asked,
            signals=self.thoughts.signals if chat.thinking.signals else None,
            thinking_policy=chat.thinking.chosen if self.thoughts.marks else NO_POLICY,
        )

    def _asked(
        self, messages: Any, ids: Sequence[int], images: PromptImages, given: Mapping[str, Any]
    ) -> Asked:
        return Asked(
            question=question_of(messages),
            ids=np.asarray(ids, np.int32),
            images=images.sources,
            protocol=self.protocol,
            stop_ids=self.stop_ids,
            adapter=self._adapters.chosen(given),
            tools=bool(given.get("tools")),
            thought_cache=given.get("thought_cache"),
        )

    def _chat_options(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], Thinking]:
        """Options of the prompt, and of thinking."""
        chat = {name: given[name] for name in CHAT_OPTIONS if name in given}
        written = self._template is not None and prompts.writes_effort(self._template)
        chosen = self._template is not None and prompts.chooses_thinking(self._template)
        how = {"written": written, "chosen": chosen, "marked": self.thoughts.marks is not None}
        chat, thinking = by_effort(chat, checked_thinking(given), **how)
        if self.thoughts.marks is not None:
            adapted = self._adapters.chosen(given) is not None
            usable = not adapted and given.get("thought_cache_tokens") is None
            instant = chat.get("mode") == "instant"
            effort = "none" if instant else given.get("reasoning_effort")
            thinking = calibrated(thinking, self.calibrated, usable=usable, effort=effort)
        self.thoughts.refuse_unwritten(thinking)
        free = chat.get("mode") in (None, "auto") and not chat.get("continue_final_message")
        if thinking.budget == 0 and self.protocol.headers and free:
            chat["mode"] = "thinking"  # opened by the prompt and closed at once
        return chat, thinking

    def _thought_fields(self, given: Mapping[str, Any], thinking: Thinking) -> dict[str, Any]:
        formats, tools = self._info.kv_formats, bool(given.get("tools"))
        marks = self.thoughts.marks
        return {
            "thoughts": request_thoughts(given, self.protocol, marks, self._spec, formats),
            "thinking": self.thoughts.asked(thinking, tools=tools),
            "trials": self.thoughts.trials(thinking, tools=tools),
        }

    def answer(
        self, messages: Sequence[Mapping[str, Any]], answer: str, given: Mapping[str, Any]
    ) -> tuple[Request, PromptImages]:
        """Of :meth:`musespark.Model.answer_logprob`; and the images in its prompt."""
        for name in given:
            if name not in ("tools", *ADDITIONS):
                raise InvalidRequest(f"{name}: allowed here are tools, {' and '.join(ADDITIONS)}")
        if not isinstance(answer, str) or not answer:
            raise InvalidRequest(f"answer: got {answer!r:.60}, allowed is a text that is not empty")
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        messages, sources = without_images(messages)
        images, tools = PromptImages(self.eyes, sources, self.blind), described(given).get("tools")

        def placed(turns: Any, **more: Any) -> tuple[list[int], list[GivenRows]]:
            ids = self._chat_ids(turns, images, tools=tools, **more)
            return images.placed(ids, self.tokenizer, self._spec.hidden)

        asked, _ = placed(messages)
        turns = [*messages, {"role": "assistant", "content": answer}]
        ids, rows = placed(turns, continue_final_message=True)
        known = len(prompts.common(asked, ids))
        if known == len(ids):
            raise InvalidRequest(f"answer: {answer!r:.60} adds no token to the prompt")
        request = Request(
            tokens=np.asarray(ids, np.int32),
            logits="score",
            logits_from=known - 1,
            given=rows,
            adapter=self._adapters.chosen(given),
        )
        return request, images

    def _chat_ids(self, messages: Any, images: PromptImages, **chat: Any) -> list[int]:
        return prompts.chat_ids(
            self.tokenizer,
            self._template,
            self.protocol,
            messages,
            context=self._info.context,
            images=images,
            **chat,
        )

    def constraint(self, grammar: Grammar, prompt: Sequence[int], mode: str | None) -> Constraint:
        """What an answer to ``prompt`` may be, of one request."""
        start = turn_start(
            self.protocol,
            self._grammars,
            prompt,
            option=grammar.option,
            thinks=mode != "instant",
        )
        return Constraint(self._grammars, grammar, start)

    def _turn_grammar(
        self, given: Mapping[str, Any], prompt: Sequence[int], answer: Grammar | None
    ) -> Grammar | None:
        """Of the whole turn, where its calls are to parse: beside a grammar of the ``answer`` they
        are, for a call that is free is no different from a text."""
        chosen = {name: given.get(name) for name in CALL_OPTIONS}
        if answer is not None and given.get("tools") and chosen["tool_choice"] is None:
            chosen["tool_choice"] = "auto"
        offer = offer_of(given.get("tools"), **chosen)
        if offer is None:
            return None
        if given.get("continue_final_message"):
            name = next(name for name, value in chosen.items() if value is not None)
            raise InvalidRequest(f"{name} contradicts continue_final_message")
        form = "" if answer is None else answer.rule
        return turn_grammar(self.protocol, self.tokenizer, prompt, offer, form)

    def turn_constraint(
        self,
        grammar: Grammar,
        tools: Sequence[Mapping[str, Any]],
        prompt: Sequence[int],
        answer: Grammar | None,
    ) -> Constraint:
        """What a turn of :func:`turn_grammar` may be, of one request; InvalidRequest naming the
        tool, or the schema of the ``answer``, that no grammar follows."""
        try:
            return Constraint(self._turns, grammar)
        except InvalidRequest:
            if answer is not None:
                Constraint(self._turns, answer)
            for tool in tools:
                self._check_alone(tool, prompt)
            raise

    def _check_alone(self, tool: Mapping[str, Any], prompt: Sequence[int]) -> None:
        try:
            offer = Offer(schemas_of([tool]))
            alone = turn_grammar(self.protocol, self.tokenizer, prompt, offer)
            Constraint(self._turns, alone)
        except InvalidRequest as error:
            name, why = tool["function"]["name"], str(error).removeprefix("tools: ")
            raise InvalidRequest(
                f"tools: {name}: {why}; tool_choice=None leaves calls free"
            ) from None

    def request(self, ids: np.ndarray, options: GenerationOptions, **more: Any) -> Request:
        """One to the engine; ``more`` are its fields that are no options."""
        given = {name: getattr(options, name) for name in OPTION_NAMES if name != "stop"}
        given["draft_tokens"] = 0 if given.pop("speculation") == "off" else _DRAFT
        return Request(tokens=ids, stop_ids=sorted(self.stop_ids), **more, **given)


@dataclass(frozen=True)
class PreparedChat:
    """A conversation that has been read: the work that requests with different seeds share.

    ``prompt``: its ids, each run of image rows still one of them; ``ids``: int32 [n] as the engine
    takes them. ``asked``: for results. ``grammar``: of the answer; ``turn``: of the whole turn,
    with the answer's in it.
    ``fields``: those of the request that are no options.
    """

    requests: Requests
    asked: Asked
    options: GenerationOptions
    prompt: Sequence[int]
    ids: np.ndarray
    messages: Any
    images: PromptImages
    prompt_options: Mapping[str, Any]
    grammar: Grammar | None
    turn: Grammar | None
    thinking: Thinking
    fields: Mapping[str, Any]

    def ask(self, seed: int | None = None) -> tuple[Request, ChatCollector]:
        """A request, and what collects its answer; ``seed`` in place of the options' own."""
        options = self.options if seed is None else replace(self.options, seed=seed)
        constraint = None
        if self.turn is not None:
            tools = self.prompt_options.get("tools") or ()
            held = (self.turn, tools, self.prompt, self.grammar)
            constraint = self.requests.turn_constraint(*held)
        elif self.grammar is not None:
            mode = self.prompt_options.get("mode")
            constraint = self.requests.constraint(self.grammar, self.prompt, mode)
        request = self.requests.request(self.ids, options, constraint=constraint, **self.fields)
        return request, self.requests.collector(self, options)


def _refuse_agents(given: Mapping[str, Any]) -> None:
    """InvalidRequest for an option, or the mode, that one turn does not have."""
    if given.get("mode") == CONTEMPLATING:
        prompts.check_mode(CONTEMPLATING)
    for name in AGENT_OPTIONS:
        if given.get(name) is not None:
            raise InvalidRequest(
                f"{name}: got {given[name]!r:.60}, allowed is none without mode={CONTEMPLATING!r}"
            )


def _chat_grammar(given: Mapping[str, Any]) -> Grammar | None:
    """The grammar of an answer; InvalidRequest beside what it contradicts."""
    grammar = chosen_grammar(given)
    if grammar is None:
        return None
    names = ("continue_final_message",) if grammar.rule else ("tools", "continue_final_message")
    for name in names:
        if given.get(name):
            raise InvalidRequest(
                f"{grammar.option} contradicts {name}: it is the whole answer that has its form"
            )
    return grammar


def _without_least(
    options: GenerationOptions, given: Mapping[str, Any], grammar: Grammar | None
) -> GenerationOptions:
    """The options where a grammar says how short an answer may be."""
    if grammar is None or not options.min_new_tokens:
        return options
    if given.get("min_new_tokens"):
        raise InvalidRequest(
            f"min_new_tokens contradicts {grammar.option}, which says where the text may end"
        )
    return replace(options, min_new_tokens=0)
