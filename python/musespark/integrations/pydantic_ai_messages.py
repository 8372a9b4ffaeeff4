"""pydantic-ai's messages and tools as a model takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_ai import messages as pa
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.settings import ToolOrOutput

from musespark.errors import InvalidRequest
from musespark.messages import conversation, image_part, tool_call


def plain_messages(
    messages: Sequence[pa.ModelMessage], parameters: ModelRequestParameters
) -> list[dict[str, Any]]:
    """Messages as :meth:`musespark.Model.chat` takes them; InvalidRequest for what no model here
    reads. Instructions follow the system prompts."""
    plain: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if isinstance(message, pa.ModelResponse):
            plain.append(_of_response(message, where))
        else:
            plain += _of_request(message, where)
    systems = next((i for i, one in enumerate(plain) if one["role"] != "system"), len(plain))
    told = [{"role": "system", "content": text} for text in _instructions(messages, parameters)]
    return conversation([*plain[:systems], *told, *plain[systems:]])


def _instructions(
    messages: Sequence[pa.ModelMessage], parameters: ModelRequestParameters
) -> list[str]:
    if parameters.instruction_parts is not None:
        return [part.content for part in parameters.instruction_parts]
    requests = [message for message in messages if isinstance(message, pa.ModelRequest)]
    return [requests[-1].instructions] if requests and requests[-1].instructions else []


def _of_request(message: pa.ModelRequest, where: str) -> Iterator[dict[str, Any]]:
    beside: list[pa.UserContent] = []  # files of results, which follow them
    for index, part in enumerate(message.parts):
        place = f"{where}.parts[{index}]"
        if isinstance(part, pa.SystemPromptPart):
            yield {"role": "system", "content": part.content}
        elif isinstance(part, pa.UserPromptPart):
            yield {"role": "user", "content": _content(part.content, place)}
        elif isinstance(part, pa.ToolReturnPart):
            text, files = part.model_response_str_and_user_content()
            beside += files
            yield {"role": "tool", "content": text, "tool_call_id": part.tool_call_id}
        else:
            raise InvalidRequest(
                f"{place}: got a {type(part).__name__}, allowed are prompts and tool returns; "
                "prepare_messages() makes these of others, as Agent does"
            )
    if beside:
        yield {"role": "user", "content": _content(beside, where)}


def _content(content: str | Sequence[pa.UserContent], where: str) -> Any:
    if isinstance(content, str):
        return content
    parts: list[dict[str, Any]] = []
    for index, item in enumerate(content):
        if isinstance(item, (str, pa.TextContent)):
            text = item if isinstance(item, str) else item.content
            parts.append({"type": "text", "text": text})
        elif isinstance(item, pa.BinaryContent) and item.is_image:
            parts.append({"type": "image", "image": item.data})
        elif isinstance(item, pa.ImageUrl):
            parts.append(image_part(item.url, f"{where}.content[{index}].url"))
        elif not isinstance(item, pa.CachePoint):  # prefixes are always kept
            kind = type(item).__name__
            raise InvalidRequest(
                f"{where}.content[{index}]: got a {kind}, allowed are text and images"
            )
    return parts


def _of_response(message: pa.ModelResponse, where: str) -> dict[str, Any]:
    texts, thoughts, calls = [], [], []
    for index, part in enumerate(message.parts):
        if isinstance(part, pa.TextPart):
            texts.append(part.content)
        elif isinstance(part, pa.ThinkingPart):
            thoughts.append(part.content)
        elif isinstance(part, pa.ToolCallPart):
            calls.append(tool_call(part.tool_call_id, part.tool_name, part.args_as_dict()))
        else:
            raise InvalidRequest(
                f"{where}.parts[{index}]: got a {type(part).__name__}, allowed are text, thinking "
                "and tool calls"
            )
    out: dict[str, Any] = {"role": "assistant", "content": "\n\n".join(texts)}
    if thoughts:
        out["reasoning_content"] = "\n\n".join(thoughts)
    if calls:
        out["tool_calls"] = calls
    return out


def tool_options(settings: Mapping[str, Any], parameters: ModelRequestParameters) -> dict[str, Any]:
    """``tools`` of a request, and what it says of calls. Tools that its ``tool_choice`` does not
    allow are left out."""
    tools, choice = parameters.declared_tool_defs, settings.get("tool_choice")
    output = {tool.name for tool in parameters.output_tools}
    allowed, mode = {*tools}, "auto" if parameters.allow_text_output else "required"
    if isinstance(choice, ToolOrOutput):
        allowed = {*choice.function_tools, *output}
    elif choice in ("none", []):
        allowed, mode = (output, mode) if output else (allowed, "none")
    elif choice == "required" or isinstance(choice, list):
        allowed, mode = allowed if choice == "required" else {*choice}, "required"
    described = [
        {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters_json_schema,
        }
        for tool in tools.values()
        if tool.name in allowed
    ]
    if not described:
        return {}
    said = {"tool_choice": mode, "parallel_tool_calls": settings.get("parallel_tool_calls")}
    return {"tools": [{"type": "function", "function": f} for f in described], **said}


def effort_of(thinking: Any) -> dict[str, Any]:
    """pydantic-ai's ``thinking`` as an option."""
    if thinking is None or thinking is True:
        return {"mode": None if thinking is None else "thinking"}
    return {"reasoning_effort": {False: "none", "max": "xhigh"}.get(thinking, thinking)}
