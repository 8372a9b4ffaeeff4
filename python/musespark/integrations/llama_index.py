"""LlamaIndex: a loaded model as a function calling LLM.

from musespark.integrations.llama_index import MuseSparkLLM

llm = MuseSparkLLM(model=musespark.load(), reasoning_effort="high")
llm.chat([ChatMessage("What is 47 + 38?")]).message.blocks  # its thought and its answer
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from musespark.integrations.shared import chat_options, checked_model, missing, streamed
from musespark.messages import conversation

try:
    from llama_index.core.base.llms import generic_utils as completions
    from llama_index.core.base.llms import types as li
    from llama_index.core.bridge.pydantic import ConfigDict, Field
    from llama_index.core.constants import DEFAULT_NUM_OUTPUTS
    from llama_index.core.llms.callbacks import llm_chat_callback
    from llama_index.core.llms.function_calling import FunctionCallingLLM
    from llama_index.core.llms.llm import ToolSelection
except ModuleNotFoundError as error:
    raise missing("llama-index", error) from error

from musespark.integrations.llama_index_messages import Turn, plain_message


class MuseSparkLLM(FunctionCallingLLM):
    """An LLM over a loaded model, in this process.

    ``model``: of :func:`musespark.load`. Every other keyword, here or of a call, is an option of
    :meth:`musespark.Model.chat`. A message has a ``ThinkingBlock``, a text and ``ToolCallBlock``s;
    ``additional_kwargs`` of a response its token counts. Tool calls fit their schemas, which needs
    the extra ``grammar``. Images are bytes, files or data URLs: nothing is fetched.
    """

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)
    model: Any = Field(exclude=True, repr=False)

    def __init__(self, **given: Any):
        checked_model(given.get("model"))
        super().__init__(**given)

    @classmethod
    def class_name(cls) -> str:
        return "MuseSparkLLM"

    @property
    def metadata(self) -> li.LLMMetadata:
        info, own = self.model.info, self.model_extra or {}
        return li.LLMMetadata(
            context_window=info.context,
            num_output=own.get("max_tokens") or own.get("max_new_tokens") or DEFAULT_NUM_OUTPUTS,
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=info.name,
        )

    def _asked(self, messages: Sequence[li.ChatMessage], given: dict[str, Any]) -> dict[str, Any]:
        plain = [plain_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
        options = chat_options({**(self.model_extra or {}), **given})
        return {"messages": conversation(plain), **options}

    @llm_chat_callback()
    def chat(self, messages: Sequence[li.ChatMessage], **kwargs: Any) -> li.ChatResponse:
        return Turn(self.model).end(self.model.chat(**self._asked(messages, kwargs)))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[li.ChatMessage], **kwargs: Any) -> li.ChatResponse:
        return Turn(self.model).end(await self.model.achat(**self._asked(messages, kwargs)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[li.ChatMessage], **kwargs: Any) -> li.ChatResponseGen:
        asked, turn = streamed(self._asked(messages, kwargs)), Turn(self.model)

        def pieces() -> li.ChatResponseGen:
            with self.model.chat(**asked) as stream:
                for delta in stream:
                    yield turn.add(delta)
            yield turn.end(stream.result)

        return pieces()

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[li.ChatMessage], **kwargs: Any
    ) -> li.ChatResponseAsyncGen:
        asked, turn = streamed(self._asked(messages, kwargs)), Turn(self.model)

        async def pieces() -> li.ChatResponseAsyncGen:
            async with await self.model.achat(**asked) as stream:
                async for delta in stream:
                    yield turn.add(delta)
            yield turn.end(stream.result)

        return pieces()

    # Completions are chats, which tell callbacks of themselves.

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return completions.chat_to_completion_decorator(self.chat)(prompt, **kwargs)

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return await completions.achat_to_completion_decorator(self.achat)(prompt, **kwargs)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return completions.stream_chat_to_completion_decorator(self.stream_chat)(prompt, **kwargs)

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        complete = completions.astream_chat_to_completion_decorator(self.astream_chat)
        return await complete(prompt, **kwargs)

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[Any],
        user_msg: str | li.ChatMessage | None = None,
        chat_history: list[li.ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        asked = li.ChatMessage(user_msg) if isinstance(user_msg, str) else user_msg
        messages = [*(chat_history or ()), *([asked] if asked else ())]
        if not tools:
            return {"messages": messages, **kwargs}
        described = [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]
        choice = tool_choice or ("required" if tool_required else "auto")
        said = {"tool_choice": choice, "parallel_tool_calls": allow_parallel_tool_calls}
        return {"messages": messages, "tools": described, **said, **kwargs}

    def get_tool_calls_from_response(
        self, response: li.ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        calls = [b for b in response.message.blocks if isinstance(b, li.ToolCallBlock)]
        if not calls and error_on_no_tool_call:
            raise ValueError(f"the model called no tool, it said {response.message.content!r:.80}")
        return [
            ToolSelection(tool_id=b.tool_call_id, tool_name=b.tool_name, tool_kwargs=b.tool_kwargs)
            for b in calls
        ]
