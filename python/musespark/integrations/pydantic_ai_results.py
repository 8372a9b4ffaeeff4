"""Results and streams as pydantic-ai's responses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from pydantic_ai import messages as pa
from pydantic_ai.models import StreamedResponse
from pydantic_ai.usage import RequestUsage

from musespark.results import ChatResult

PROVIDER = "musespark"
_REASONS: dict[str, pa.FinishReason] = {"length": "length", "tool_calls": "tool_call"}
_REASONS |= {"deadline": "length"}


def response_of(result: ChatResult, model_name: str) -> pa.ModelResponse:
    """A whole turn: its thought, answer and calls."""
    return pa.ModelResponse(
        parts=_parts(result),
        usage=_usage(result),
        model_name=model_name,
        provider_name=PROVIDER,
        finish_reason=_reason(result),
        provider_details=_told(result),
    )


def _parts(result: ChatResult) -> list[pa.ModelResponsePart]:
    parts: list[pa.ModelResponsePart] = []
    if result.reasoning:
        parts.append(pa.ThinkingPart(result.reasoning))
    if result.content:
        parts.append(pa.TextPart(result.content))
    for call in result.tool_calls:
        function = call["function"]
        parts.append(
            pa.ToolCallPart(function["name"], function["arguments"], tool_call_id=call["id"])
        )
    return parts


def _usage(result: ChatResult) -> RequestUsage:
    """Token counts; those of thoughts, images and probes are details."""
    used = result.usage
    names = ("reasoning_tokens", "image_tokens", "probe_tokens")
    return RequestUsage(
        input_tokens=used.prompt_tokens,
        cache_read_tokens=used.cached_tokens,
        output_tokens=used.completion_tokens,
        details={name: getattr(used, name) for name in names if getattr(used, name)},
    )


def _reason(result: ChatResult) -> pa.FinishReason:
    return _REASONS.get(result.finish_reason, "stop")


def _told(result: ChatResult) -> dict[str, Any]:
    """What pydantic-ai has no field for."""
    names = ("finish_reason", "seed", "thinking_stop_reason", "malformed_tool_calls")
    return {name: getattr(result, name) for name in names}


@dataclass
class Streamed(StreamedResponse):
    """A turn as it comes. ``stream``: of :meth:`musespark.Model.achat`."""

    stream: Any
    name: str
    began: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    async def _get_event_iterator(self) -> AsyncIterator[pa.ModelResponseStreamEvent]:
        parts = self._parts_manager
        async for delta in self.stream:
            if delta.tool_call is not None:
                id, function = delta.tool_call["id"], delta.tool_call["function"]
                name, args = function["name"], function["arguments"]
                yield parts.handle_tool_call_part(
                    vendor_part_id=id, tool_name=name, args=args, tool_call_id=id
                )
            elif delta.channel != "tool":
                of_text = delta.channel == "content"
                handle = parts.handle_text_delta if of_text else parts.handle_thinking_delta
                for event in handle(vendor_part_id=delta.channel, content=delta.text):
                    yield event
        result = self.stream.result
        self._usage = _usage(result)
        self.finish_reason, self.provider_details = _reason(result), _told(result)

    async def close_stream(self) -> None:
        await self.stream.aclose()

    @property
    def model_name(self) -> str:
        return self.name

    @property
    def provider_name(self) -> str:
        return PROVIDER

    @property
    def provider_url(self) -> None:
        return None

    @property
    def timestamp(self) -> datetime:
        return self.began
