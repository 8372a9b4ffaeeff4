"""LangChain's messages as a model takes them, and results as LangChain's messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from langchain_core.exceptions import ContextOverflowError, ModelInvalidRequestError
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    InvalidToolCall,
    ToolCall,
    ToolCallChunk,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk
from langchain_core.outputs import ChatResult as Generations

from musespark.errors import ContextOverflow, InvalidRequest
from musespark.messages import call_text, image_part, tool_call
from musespark.results import ChatResult, Delta

_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}
_CALLS = ("tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use")


class MuseSparkInvalidRequestError(InvalidRequest, ModelInvalidRequestError):
    """:class:`musespark.InvalidRequest`, in LangChain's hierarchy too."""


class MuseSparkContextOverflowError(ContextOverflow, ContextOverflowError):
    """:class:`musespark.ContextOverflow`, in LangChain's hierarchy too."""


@contextmanager
def langchain_errors() -> Iterator[None]:
    """What the model raises, as errors that are LangChain's too."""
    try:
        yield
    except ContextOverflow as error:
        raise MuseSparkContextOverflowError(
            str(error), needed=error.needed, limit=error.limit
        ) from error
    except InvalidRequest as error:
        raise MuseSparkInvalidRequestError(str(error)) from error


def plain_message(message: BaseMessage, where: str) -> dict[str, Any]:
    """A message as :meth:`musespark.Model.chat` takes it; InvalidRequest for a block of a kind that
    no model here reads."""
    role = _ROLES.get(message.type) or getattr(message, "role", message.type)
    parts: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for index, block in enumerate(message.content_blocks):
        kind, place = block["type"], f"{where}.content[{index}]"
        if kind == "non_standard":
            block = block["value"]
            kind = block.get("type")
        if kind == "text":
            parts.append({"type": "text", "text": block["text"]})
        elif kind == "image":
            encoded = f"data:{block.get('mime_type', 'image/png')};base64,{block.get('base64')}"
            parts.append(image_part(encoded if "base64" in block else str(block.get("url")), place))
        elif kind in ("reasoning", "thinking"):
            thoughts.append(block.get("reasoning") or block.get("thinking") or "")
        elif kind not in _CALLS:  # those are in tool_calls
            raise InvalidRequest(f"{place}: got the type {kind!r:.60}, allowed are text and image")
    out: dict[str, Any] = {"role": role, "content": parts or ""}
    if all(part["type"] == "text" for part in parts) and role in ("system", "assistant"):
        out["content"] = "".join(part["text"] for part in parts)
    if role == "tool":
        out["tool_call_id"] = message.tool_call_id
    if thoughts and role == "assistant":
        out["reasoning_content"] = "\n\n".join(thoughts)
    if calls := getattr(message, "tool_calls", None):
        out["tool_calls"] = [tool_call(call["id"], call["name"], call["args"]) for call in calls]
    return out


def whole(result: ChatResult, model_name: str) -> Generations:
    """A turn that is whole."""
    thought = {"reasoning_content": result.reasoning} if result.reasoning else {}
    functions = [(call["id"], call["function"]) for call in result.tool_calls]
    message = AIMessage(
        result.content,
        additional_kwargs=thought,
        tool_calls=[ToolCall(id=id, name=f["name"], args=f["arguments"]) for id, f in functions],
        **_told(result, model_name),
    )
    return Generations(generations=[ChatGeneration(message=message)])


def piece(delta: Delta, index: int) -> ChatGenerationChunk:
    """The ``index``-th piece of a stream."""
    chunk = AIMessageChunk("")
    if delta.tool_call is not None:  # a call comes when it is whole
        id, function = delta.tool_call["id"], call_text(delta.tool_call)["function"]
        call = ToolCallChunk(id=id, index=index, name=function["name"], args=function["arguments"])
        chunk = AIMessageChunk("", tool_call_chunks=[call])
    elif delta.channel == "reasoning":
        chunk = AIMessageChunk("", additional_kwargs={"reasoning_content": delta.text})
    elif delta.channel == "content":
        chunk = AIMessageChunk(delta.text)
    return ChatGenerationChunk(message=chunk)


def last_piece(result: ChatResult, model_name: str) -> ChatGenerationChunk:
    """What a stream says at its end."""
    last = AIMessageChunk("", chunk_position="last", **_told(result, model_name))
    return ChatGenerationChunk(message=last)


def _told(result: ChatResult, model_name: str) -> dict[str, Any]:
    """What a message says of itself."""
    used, names = result.usage, ("finish_reason", "seed", "thinking_stop_reason")
    unread = [
        InvalidToolCall(id=None, name=None, args=text, error="no tool call")
        for text in result.malformed_tool_calls
    ]
    return {
        "invalid_tool_calls": unread,
        "response_metadata": {"model_name": model_name}
        | {name: getattr(result, name) for name in names},
        "usage_metadata": {
            "input_tokens": used.prompt_tokens,
            "output_tokens": used.completion_tokens,
            "total_tokens": used.total_tokens,
            "input_token_details": {"cache_read": used.cached_tokens},
            "output_token_details": {"reasoning": used.reasoning_tokens},
        },
    }
