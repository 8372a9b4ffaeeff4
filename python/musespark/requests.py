"""What callers ask of one model, as requests to its engine and what collects their results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from musespark import prompts
from musespark.errors import InvalidRequest
from musespark.events import GivenRows, Request
from musespark.generation import ChatCollector, CompletionCollector
from musespark.images import PromptImages, without_images
from musespark.options import (
    CHAT_OPTIONS,
    OPTION_NAMES,
    GenerationOptions,
    resolve,
    within,
)
from musespark.text import ChatTemplate, Tokenizer, refuse_early
from musespark.text.channels import ChannelParser
from musespark.text.detection import detect_protocol
from musespark.text.protocols import Protocol
from musespark.thought_cache import THOUGHT_OPTIONS, request_thoughts
from musespark.tracing import tracer

if TYPE_CHECKING:
    from musespark.adapters import Adapters
    from musespark.families.spec import ModelSpec
    from musespark.results import ModelInfo
    from musespark.vision.eyes import Eyes


class Requests:
    """The tokenizer, the chat template and the defaults of a model. ``eyes``: of one that sees;
    ``blind``: why it does not."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        spec: ModelSpec,
        info: ModelInfo,
        adapters: Adapters,
        defaults: GenerationOptions,
        eyes: Eyes | None,
        blind: str,
    ):
        self.tokenizer, self.defaults, self.eyes, self.blind = tokenizer, defaults, eyes, blind
        self._spec, self._info, self._adapters = spec, info, adapters
        self._template: ChatTemplate | None = None
        self.protocol: Protocol = detect_protocol(tokenizer, None)
        self.stop_ids: frozenset[int] = frozenset()

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
        rest = {name: value for name, value in given.items() if name != "adapter"}
        vocab = self._spec.vocab
        options = resolve(rest, self.defaults, vocab, also_known=("stream", "adapter"))
        adapter = self._adapters.id_of(given.get("adapter"))
        ids = self.ids(prompt, "prompt", most=self._info.context)
        options = within(options, rest, self._info.context - len(ids))
        request = self._request(ids, options, adapter=adapter)
        decoder = self.tokenizer.stream(skip_special=True, continuing=True)
        return request, CompletionCollector(decoder, self.stop_ids, options, self._info.kv)

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        given: Mapping[str, Any],
        *,
        retain: bool = False,
    ) -> tuple[Request, ChatCollector]:
        """Of :meth:`musespark.Model.chat`."""
        chat = {name: given[name] for name in CHAT_OPTIONS if name in given}
        apart = {*chat, *THOUGHT_OPTIONS, "adapter"}
        rest = {name: value for name, value in given.items() if name not in apart}
        known = (*CHAT_OPTIONS, *THOUGHT_OPTIONS, "stream", "adapter")
        options = resolve(rest, self.defaults, self._spec.vocab, also_known=known)
        adapter, limit = self._adapters.id_of(given.get("adapter")), self._info.context
        messages, sources = without_images(messages)
        images = PromptImages(self.eyes, sources, self.blind)
        ids = self._chat_ids(messages, images, **chat)
        parser = ChannelParser.for_prompt(
            self.protocol,
            self.tokenizer,
            ids,
            tools=chat.get("tools"),
            first_call=prompts.calls_so_far(messages) + 1,
            ends=self.stop_ids,
            continuing=chat.get("continue_final_message", False),
        )
        ids, rows = images.placed(ids, self.tokenizer, self._spec.hidden)
        options = within(options, rest, limit - len(ids))
        formats = self._info.kv_formats
        thoughts = request_thoughts(given, self.protocol, self.tokenizer, self._spec, formats)
        more = {"retain": retain, "adapter": adapter, "thoughts": thoughts, "given": rows}
        request = self._request(np.asarray(ids, np.int32), options, **more)
        policy = thoughts and thoughts["cache"]
        trace = tracer(self.eyes, images.pictures, messages, self.tokenizer, self._info.source)
        return request, ChatCollector(parser, options, self._info.kv, policy, images.use, trace)

    def answer(
        self, messages: Sequence[Mapping[str, Any]], answer: str, given: Mapping[str, Any]
    ) -> tuple[Request, PromptImages]:
        """Of :meth:`musespark.Model.answer_logprob`; and the images in its prompt."""
        for name in given:
            if name not in ("tools", "adapter"):
                raise InvalidRequest(f"{name}: allowed here are tools and adapter")
        if not isinstance(answer, str) or not answer:
            raise InvalidRequest(f"answer: got {answer!r:.60}, allowed is a text that is not empty")
        messages, sources = without_images(messages)
        images, tools = PromptImages(self.eyes, sources, self.blind), given.get("tools")

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
            adapter=self._adapters.id_of(given.get("adapter")),
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

    def _request(self, ids: np.ndarray, options: GenerationOptions, **more: Any) -> Request:
        given = {name: getattr(options, name) for name in OPTION_NAMES if name != "stop"}
        return Request(tokens=ids, stop_ids=sorted(self.stop_ids), **more, **given)
