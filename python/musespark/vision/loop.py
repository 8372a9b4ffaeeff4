"""Thinking with images: the model looks, asks a tool, sees what it made, and goes on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from musespark.calling import NO_CALLS_LEFT, Calling, choice_after, no_such_tool
from musespark.errors import InvalidRequest
from musespark.parts import with_media
from musespark.vision.conventions import Convention, convention_named
from musespark.vision.tools import TOOLS, Answer, Desk, ToolLimits, VisionTool
from musespark.vision.trace import Album, TraceBuilder, VisualTrace
from musespark.vision.trace.album import Fit


class Chat(Protocol):
    """What continues a conversation: :meth:`Model.chat`, or anything that answers like it."""

    def __call__(
        self, messages: list[dict[str, Any]], *, tools: list[dict[str, Any]], **options: Any
    ) -> Any: ...


@dataclass(frozen=True)
class Looked:
    """``result``: of the last turn; ``messages``: the whole conversation, pixels in it, ready to be
    gone on with."""

    result: Any
    messages: list[dict[str, Any]] = field(repr=False)
    trace: VisualTrace = field(repr=False)

    @property
    def content(self) -> str:
        return self.result.content

    def _repr_html_(self) -> str:
        return self.trace._repr_html_()


class VisualLoop:
    """Runs a question about images to its answer, tools and all.

    ``convention``: how the model writes coordinates. ``fit``: to what size an image is resized for
    it, (height, width) to the same, where coordinates are pixels. ``calls``: how many tool calls
    are answered; after those the model is told to answer, once. Wrong arguments go back to the
    model as the tool's error.
    """

    def __init__(
        self,
        chat: Chat,
        convention: str | Convention,
        *,
        tools: Iterable[VisionTool] = TOOLS,
        calls: int = 8,
        limits: ToolLimits | None = None,
        fit: Fit | None = None,
        tokenizer: Any = None,
        model: str = "",
    ):
        if calls < 0:
            raise InvalidRequest(f"calls: {calls}, must be 0 or more")
        self._chat, self._convention = chat, convention_named(convention)
        self._tools = {tool.name: tool for tool in tools}
        self._calls, self._limits, self._fit = calls, limits or ToolLimits(), fit
        self._tokenizer, self._model = tokenizer, model

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The tools as the model is told of them."""
        return [tool.schema(self._convention) for tool in self._tools.values()]

    def run(self, question: str, images: Sequence[Any], **options: Any) -> Looked:
        """Asks about the images; ``options`` go to each call of the model."""
        album = Album(images, fit=self._fit)
        builder = TraceBuilder(
            album,
            self._convention,
            question=question,
            model=self._model,
            tokenizer=self._tokenizer,
        )
        run = _Run(Desk(album, self._convention, self._limits), builder, self._tools, self._calls)
        run.ask(question)
        while True:
            result = self._chat(run.messages, tools=self.schemas, **options)
            if "tool_choice" in options:
                called = bool(result.tool_calls)
                options["tool_choice"] = choice_after(options["tool_choice"], called=called)
            if not run.take(result):
                return Looked(result, run.messages, builder.finish(run.outline()))


class _Run(Calling):
    """One conversation under way, its calls answered at the desk."""

    def __init__(
        self, desk: Desk, builder: TraceBuilder, tools: Mapping[str, VisionTool], calls: int
    ):
        super().__init__([], calls)
        self._desk, self._builder, self._tools = desk, builder, tools
        self._steps: list[int] = []

    def ask(self, question: str) -> None:
        parts = [self._part(index) for index in range(len(self._desk.album))]
        content = [*parts, {"type": "text", "text": question}]
        self.messages.append({"role": "user", "content": content})

    def take(self, result: Any) -> bool:
        self._steps = self._builder.turn(result)
        goes_on = super().take(result)
        if not self.complete and result.finish_reason in ("stop", "tool_calls"):
            self._builder.warnings.append("stopped: the model went on calling tools")
        return goes_on

    def answer(self, index: int, call: Mapping[str, Any], *, allowed: bool) -> Any:
        step, began = self._steps[index], time.perf_counter()
        try:
            answer = self._run(call["function"], allowed)
        except InvalidRequest as error:
            self._builder.tool_answer(step, f"error: {error}", warnings=("refused",))
            return f"error: {error}"
        made = self._desk.album.images[answer.made] if answer.made is not None else None
        cost = {"seconds": time.perf_counter() - began}
        if made is not None:
            cost["pixels"] = made.size[0] * made.size[1]
        self._builder.tool_answer(
            step, answer.text, regions=answer.regions, crop=made.id if made else "", cost=cost
        )
        text = {"type": "text", "text": answer.text}
        return answer.text if answer.made is None else [self._part(answer.made), text]

    def _run(self, function: Mapping[str, Any], allowed: bool) -> Answer:
        name = function["name"]
        if not allowed:
            raise InvalidRequest(NO_CALLS_LEFT)
        if name not in self._tools:
            raise InvalidRequest(no_such_tool(name, [*self._tools]))
        return self._tools[name](self._desk, function["arguments"])

    def _part(self, index: int) -> dict[str, Any]:
        return {"type": "image", "image": self._desk.album.pictures[index]}

    def outline(self) -> list[dict[str, Any]]:
        """The messages with ids in place of pixels."""
        ids = {id(picture): image.id for image, picture in self._pairs()}

        def part(one: Mapping[str, Any], where: str) -> Mapping[str, Any]:
            return {"type": "image", "id": ids[id(one["image"])]}

        return with_media(self.messages, part)

    def _pairs(self) -> Iterable[tuple[Any, Any]]:
        return zip(self._desk.album.images, self._desk.album.pictures, strict=True)
