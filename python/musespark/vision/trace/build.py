"""From what a model wrote to a trace, turn by turn."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from musespark.errors import CorruptFile, InvalidRequest
from musespark.untrusted import parse_json
from musespark.vision.conventions import Convention, convention_named, scan_json
from musespark.vision.regions import MAX_REGIONS, Region, Regions, find_regions
from musespark.vision.trace.album import Album
from musespark.vision.trace.data import Step, VisualTrace
from musespark.vision.trace.thoughts import sentences
from musespark.vision.trace.tokens import TokenText

_DIGITS = re.compile(r"\d[\d.]*")
_NAMED = re.compile(r"\b(img_idx|image|picture|photo)\b\W{0,4}(\d{1,4})\b", re.IGNORECASE)


class Streams(Protocol):
    """The part of :class:`musespark.Tokenizer` that is needed here."""

    def stream(self) -> Any: ...


class TraceBuilder:
    """Takes the turns of one question as they come; :meth:`finish` gives the trace.

    ``convention``: the name of how the model writes coordinates (see conventions.py).
    ``tokenizer``: the model's; without it steps have no token spans and regions no confidence.
    """

    def __init__(
        self,
        album: Album,
        convention: str | Convention,
        *,
        question: str = "",
        model: str = "",
        tokenizer: Streams | None = None,
    ):
        if not len(album):
            raise InvalidRequest("images: a trace needs one at least")
        self.album, self.convention = album, convention_named(convention)
        self.question, self.model, self._tokenizer = question, model, tokenizer
        self.steps: list[Step] = []
        self.warnings: list[str] = []
        self._answer, self._turn = "", -1
        self._timings: dict[str, float] = {}
        pixels = self.convention.full is None
        if pixels and any(image.shown is None for image in album.images):
            self.warnings.append(
                f"{self.convention.name} writes pixels of the image as it is resized for the "
                "model; that size is not known here, they are taken as the image's own"
            )

    def turn(self, result: Any) -> list[int]:
        """The steps of a :class:`ChatResult`; the places of its tool calls among them."""
        self._turn += 1
        stream = self._tokenizer.stream() if self._tokenizer else None
        tokens = TokenText(result.tokens, stream, result.logprobs)
        self._thoughts(result.reasoning, tokens)
        if result.content:
            self._conclusion(result.content, tokens)
        calls = [self._call(call) for call in result.tool_calls]
        for raw in result.malformed_tool_calls:
            self._add(kind="tool", text=raw, channel="tool", warnings=("no valid tool call",))
        for reason, raw in result.protocol_errors:
            self.warnings.append(f"turn {self._turn}: {reason}: {raw[:200]}")
        for name in ("prefill_s", "decode_s"):
            seconds = self._timings.get(name, 0.0) + getattr(result.timings, name)
            self._timings[name] = seconds
        self._answer = result.content
        return calls

    def tool_answer(self, call: int, text: str, **fields: Any) -> int:
        """What a tool answered to the call that is step ``call``. ``fields``: of :class:`Step`."""
        made = self.steps[call]
        return self._add(
            **{
                "kind": made.kind,
                "tool": made.tool,
                "image": made.image,
                **fields,
                "text": text,
                "source": "tool",
                "channel": "tool",
                "parent": call,
            }
        )

    def measured(self, kind: str, text: str, **fields: Any) -> int:
        """What the engine measured."""
        return self._add(**{**fields, "kind": kind, "text": text, "source": "engine"})

    def finish(self, messages: Iterable[Mapping[str, Any]] = ()) -> VisualTrace:
        """The trace. ``messages``: the conversation, an image as ``{"type": "image", "id": …}``."""
        pictures = zip(self.album.images, self.album.pictures, strict=True)
        return VisualTrace(
            images=tuple(self.album.images),
            steps=tuple(self.steps),
            question=self.question,
            answer=self._answer,
            model=self.model,
            convention=self.convention.name,
            messages=tuple(messages),
            timings=self._timings,
            warnings=tuple(self.warnings),
            pictures={image.id: picture for image, picture in pictures},
        )

    def _add(self, **fields: Any) -> int:
        self.steps.append(Step(turn=max(self._turn, 0), exact=fields.pop("exact", True), **fields))
        return len(self.steps) - 1

    # ---- what the model wrote ----

    def _thoughts(self, text: str, tokens: TokenText) -> None:
        everywhere = find_regions(text, self.album.view(-1, self.convention), self.convention)
        spans = [region.span for region in everywhere.regions]
        for sentence in sentences(text, spans):
            piece = text[sentence.start : sentence.end]
            self._said(sentence.kind, piece, "reasoning", tokens, exact=False)

    def _conclusion(self, text: str, tokens: TokenText) -> None:
        self._said("conclude", text, "content", tokens, exact=True)

    def _said(self, kind: str, text: str, channel: str, tokens: TokenText, *, exact: bool) -> None:
        index, warnings = self._image_of(text)
        found = find_regions(text, self.album.view(index, self.convention), self.convention)
        at = tokens.find(text)
        span = tokens.span(at, at + len(text)) if at is not None else None
        if found.regions and len(self.album) > 1 and not _NAMED.search(text):
            warnings.append(f"which image is meant is not said; taken as image {index}, the last")
        if not found.complete:
            warnings.append(f"more than {MAX_REGIONS} regions; those after them are left out")
        self._add(
            kind=kind,
            text=text,
            channel=channel,
            exact=exact,
            tokens=span,
            image=self.album.images[index].id,
            regions=_with_confidence(found, text, at, tokens),
            cost={"tokens": span[1] - span[0]} if span else {},
            warnings=tuple(warnings),
        )

    def _image_of(self, text: str) -> tuple[int, list[str]]:
        """The image a text is about: the one it names, else the last. Prose counts from 1,
        ``img_idx`` from 0."""
        last = len(self.album) - 1
        match = _NAMED.search(text)
        if match is None:
            return last, []
        index = int(match[2]) - (match[1].lower() != "img_idx")
        if 0 <= index <= last:
            return index, []
        return last, [f"{match[0]} is named, there are {last + 1} images; taken as the last"]

    def _call(self, call: Mapping[str, Any]) -> int:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        written = json.dumps(arguments, ensure_ascii=False)
        index, warnings = self._index(arguments)
        view = self.album.view(index, self.convention)
        regions = find_regions(written, view, _in_calls(self.convention)).regions
        label = arguments.get("label") if isinstance(arguments, Mapping) else None
        if isinstance(label, str) and regions:
            regions = tuple(replace(region, label=label) for region in regions)
        return self._add(
            kind="zoom" if name.startswith("image_zoom") else "tool",
            text=f"{name} {written}",
            channel="tool",
            tool=name,
            arguments=_storable(arguments),
            image=self.album.images[index].id,
            regions=regions,
            warnings=tuple(warnings),
        )

    def _index(self, arguments: Any) -> tuple[int, list[str]]:
        index = arguments.get("img_idx") if isinstance(arguments, Mapping) else None
        last = len(self.album) - 1
        if index is None or (type(index) is int and 0 <= index <= last):
            return last if index is None else index, []
        return last, [f"img_idx {index!r:.60}, there are images 0 to {last}"]


def _in_calls(convention: Convention) -> Convention:
    """The same units in the arguments of a tool, which have names and x first."""
    return replace(convention, scanners=(scan_json,), y_first=False)


def _storable(arguments: Any) -> dict[str, Any]:
    """Arguments as a trace's file takes them, else their text."""
    try:
        text = json.dumps(arguments, allow_nan=False)
        value = parse_json(f"[[[[[{text}]]]]]", "arguments")[0][0][0][0][0]
    except (CorruptFile, ValueError, TypeError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"raw": repr(arguments)[:2000]}


def _with_confidence(
    found: Regions, text: str, at: int | None, tokens: TokenText
) -> tuple[Region, ...]:
    if at is None or tokens.probabilities is None:
        return found.regions
    out = []
    for region, (first, last) in zip(found.regions, found.coordinates, strict=True):
        digits = [
            (at + match.start(), at + match.end()) for match in _DIGITS.finditer(text, first, last)
        ]
        out.append(replace(region, confidence=tokens.probability(digits)))
    return tuple(out)


def trace_of(
    result: Any,
    images: Album | Iterable[Any],
    convention: str | Convention,
    *,
    question: str = "",
    model: str = "",
    tokenizer: Streams | None = None,
) -> VisualTrace:
    """The trace of one finished :class:`ChatResult` about these images.

    ``images``: whatever :func:`open_picture` takes, in the order of the conversation, or an
    :class:`Album` that knows to what size they were resized. Thoughts are cut into steps at the
    ends of sentences; the answer and tool calls are steps of their own. With log-probabilities
    (``logprobs=1``) and ``tokenizer``, regions carry a confidence, uncalibrated.
    """
    album = images if isinstance(images, Album) else Album(images)
    builder = TraceBuilder(album, convention, question=question, model=model, tokenizer=tokenizer)
    builder.turn(result)
    return builder.finish()
