"""LlamaIndex's messages as a model takes them, and results as LlamaIndex's responses."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from llama_index.core.base.llms import types as li

from musespark.errors import InvalidRequest
from musespark.messages import arguments_of, image_part, tool_call
from musespark.results import ChatResult, Delta

_ROLES = {"developer": "system", "chatbot": "assistant", "model": "assistant", "function": "tool"}


def plain_message(message: li.ChatMessage, where: str) -> dict[str, Any]:
    """A message as :meth:`musespark.Model.chat` takes it; InvalidRequest for a block of a kind that
    no model here reads."""
    role = _ROLES.get(message.role.value, message.role.value)
    parts: list[dict[str, Any]] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(message.blocks):
        place = f"{where}.blocks[{index}]"
        if isinstance(block, li.TextBlock):
            parts.append({"type": "text", "text": block.text})
        elif isinstance(block, li.ImageBlock):
            parts.append(_image(block, f"{place}.url"))
        elif isinstance(block, li.ThinkingBlock):
            thoughts.append(block.content or "")
        elif isinstance(block, li.ToolCallBlock):
            given = block.tool_kwargs
            arguments = arguments_of(given, place) if isinstance(given, str) else given
            calls.append(tool_call(block.tool_call_id or "", block.tool_name, arguments))
        elif not isinstance(block, li.CachePoint):  # prefixes are always kept
            kind = block.block_type
            raise InvalidRequest(f"{place}: got the type {kind!r}, allowed are text and image")
    out: dict[str, Any] = {"role": role, "content": parts or ""}
    if role in ("system", "assistant") and all(part["type"] == "text" for part in parts):
        out["content"] = "\n".join(part["text"] for part in parts)
    if role == "tool":
        out["tool_call_id"] = message.additional_kwargs.get("tool_call_id", "")
    if thoughts:
        out["reasoning_content"] = "\n\n".join(thoughts)
    if calls:
        out["tool_calls"] = calls
    return out


def _image(block: li.ImageBlock, where: str) -> dict[str, Any]:
    if block.image is None and block.path is None:  # resolve_image would fetch a URL
        return image_part(str(block.url), where)
    held = block.path if block.image is None else block.resolve_image().read()
    return {"type": "image", "image": held}


class Turn:
    """A turn of ``model`` as far as it came."""

    def __init__(self, model: Any):
        self._model_name = model.info.name
        self._thought, self._text = "", ""
        self._calls: list[dict[str, Any]] = []

    def add(self, delta: Delta) -> li.ChatResponse:
        """The turn with a piece of a stream."""
        more: dict[str, Any] = {}
        text = delta.text if delta.channel == "content" else ""
        self._text += text
        if delta.channel == "reasoning":
            self._thought += delta.text
            more["thinking_delta"] = delta.text
        if delta.tool_call is not None:
            self._calls.append(delta.tool_call)
        return li.ChatResponse(message=self._message(), delta=text, additional_kwargs=more)

    def end(self, result: ChatResult) -> li.ChatResponse:
        """The turn when it is whole."""
        self._thought, self._text = result.reasoning, result.content
        self._calls = list(result.tool_calls)
        used = result.usage
        names = ("finish_reason", "seed", "thinking_stop_reason", "malformed_tool_calls")
        told = {name: getattr(result, name) for name in names}
        return li.ChatResponse(
            message=self._message(used.reasoning_tokens),
            delta="",
            raw=result.to_openai(model=self._model_name),
            additional_kwargs={**asdict(used), "total_tokens": used.total_tokens, **told},
        )

    def _message(self, thought_tokens: int | None = None) -> li.ChatMessage:
        blocks: list[Any] = []
        if self._thought:
            blocks.append(li.ThinkingBlock(content=self._thought, num_tokens=thought_tokens))
        if self._text or not self._calls:
            blocks.append(li.TextBlock(text=self._text))
        for call in self._calls:
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            blocks.append(
                li.ToolCallBlock(tool_call_id=call["id"], tool_name=name, tool_kwargs=arguments)
            )
        return li.ChatMessage(role=li.MessageRole.ASSISTANT, blocks=blocks)
