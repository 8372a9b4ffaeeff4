"""smolagents: a loaded model for its agents.

from musespark.integrations.smolagents import MuseSparkModel

agent = smolagents.ToolCallingAgent(tools=[...], model=MuseSparkModel(musespark.load()))
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from musespark.integrations.shared import (
    chat_options,
    checked_model,
    missing,
    streamed,
)
from musespark.messages import call_text, conversation, image_part
from musespark.results import ChatResult, Delta

try:
    from smolagents import models as sm
    from smolagents.monitoring import TokenUsage
except ModuleNotFoundError as error:
    raise missing("smolagents", error) from error


class MuseSparkModel(sm.Model):
    """A model for agents over a loaded one, in this process.

    ``model``: of :func:`musespark.load`. ``options``: of :meth:`musespark.Model.chat`, for every
    call; they come before those of a call. Tool calls are required where an agent gives tools, as
    smolagents has it, and fit their schemas, which needs the extra ``grammar``. ``raw`` of a
    message is the answer as OpenAI's protocol has it, with ``reasoning_content`` and all counts of
    tokens; streams leave the thought out, for which smolagents has no place.
    """

    def __init__(self, model: Any, **options: Any):
        super().__init__(model_id=checked_model(model).info.name, **options)
        self.model = model

    @property
    def supports_stop_parameter(self) -> bool:
        """True, whatever the model is called."""
        return True

    def _asked(self, messages: Sequence[Any], **given: Any) -> dict[str, Any]:
        asked = self._prepare_completion_kwargs(
            messages, convert_images_to_image_urls=True, **given
        )
        plain = [
            _plain(message, f"messages[{i}]") for i, message in enumerate(asked.pop("messages"))
        ]
        return {"messages": conversation(plain), **chat_options(asked)}

    def generate(
        self,
        messages: list[Any],
        stop_sequences: list[str] | None = None,
        response_format: dict[str, Any] | None = None,
        tools_to_call_from: list[Any] | None = None,
        **kwargs: Any,
    ) -> sm.ChatMessage:
        """The model's turn. Raises musespark's errors, which agents wrap in their own."""
        asked = self._asked(
            messages,
            stop_sequences=stop_sequences,
            response_format=response_format,
            tools_to_call_from=tools_to_call_from,
            **kwargs,
        )
        result = self.model.chat(**asked)
        return sm.ChatMessage(
            role=sm.MessageRole.ASSISTANT,
            content=result.content,
            tool_calls=list(result.tool_calls) or None,
            raw=result.to_openai(model=self.model_id),
            token_usage=_usage(result),
        )

    def generate_stream(
        self,
        messages: list[Any],
        stop_sequences: list[str] | None = None,
        response_format: dict[str, Any] | None = None,
        tools_to_call_from: list[Any] | None = None,
        **kwargs: Any,
    ) -> Generator[sm.ChatMessageStreamDelta]:
        """:meth:`generate` in pieces; a call comes when it is whole, the tokens at the end."""
        asked = self._asked(
            messages,
            stop_sequences=stop_sequences,
            response_format=response_format,
            tools_to_call_from=tools_to_call_from,
            **kwargs,
        )
        with self.model.chat(**streamed(asked)) as stream:
            for index, delta in enumerate(stream):
                if delta.tool_call is not None:
                    yield sm.ChatMessageStreamDelta(tool_calls=[_call(delta, index)])
                elif delta.channel == "content":
                    yield sm.ChatMessageStreamDelta(content=delta.text)
        yield sm.ChatMessageStreamDelta(content="", token_usage=_usage(stream.result))


def _plain(message: dict[str, Any], where: str) -> dict[str, Any]:
    """A message as :meth:`musespark.Model.chat` takes it. Calls and results are texts already."""
    role, content = sm.MessageRole(message["role"]).value, message["content"]
    if isinstance(content, list):
        content = [
            image_part(part["image_url"]["url"], f"{where}.content[{i}]")
            if part["type"] == "image_url"
            else part
            for i, part in enumerate(content)
        ]
        if role == "system" and all(part["type"] == "text" for part in content):
            content = "\n".join(part["text"] for part in content)
    return {"role": role, "content": content}


def _call(delta: Delta, index: int) -> sm.ChatMessageToolCallStreamDelta:
    call = call_text(delta.tool_call or {})
    function = sm.ChatMessageToolCallFunction(**call["function"])
    return sm.ChatMessageToolCallStreamDelta(index, call["id"], "function", function)


def _usage(result: ChatResult) -> TokenUsage:
    return TokenUsage(result.usage.prompt_tokens, result.usage.completion_tokens)
