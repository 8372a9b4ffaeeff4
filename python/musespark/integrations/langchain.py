"""LangChain: a loaded model as a chat model.

from musespark.integrations.langchain import ChatMuseSpark

llm = ChatMuseSpark(model=musespark.load(), reasoning_effort="high")
llm.invoke("What is 47 + 38?").content_blocks  # its thought and its answer
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from musespark.errors import InvalidRequest
from musespark.integrations.shared import chat_options, checked_model, missing, streamed
from musespark.messages import conversation

try:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.outputs import ChatGenerationChunk, ChatResult
    from langchain_core.runnables import Runnable
    from langchain_core.utils.function_calling import convert_to_openai_tool
    from pydantic import ConfigDict, Field
except ModuleNotFoundError as error:
    raise missing("langchain", error) from error

from musespark.integrations.langchain_messages import (
    langchain_errors,
    last_piece,
    piece,
    plain_message,
    whole,
)
from musespark.integrations.langchain_output import structured

_OPTIONS = ("temperature", "max_tokens", "stop", "seed", "reasoning_effort")


class ChatMuseSpark(BaseChatModel):
    """A chat model over a loaded model, in this process.

    ``model``: of :func:`musespark.load`. Every other keyword, here or of a call, is an option of
    :meth:`musespark.Model.chat`. Thoughts are ``additional_kwargs["reasoning_content"]``, and
    blocks of the type ``reasoning`` in ``content_blocks``. Tool calls fit their schemas, which
    needs the extra ``grammar``. Images are base64 or data URLs: nothing is fetched. Errors are
    musespark's and LangChain's at once (``ContextOverflowError``, ``ModelInvalidRequestError``).
    """

    model_config = ConfigDict(extra="allow")
    model: Any = Field(exclude=True, repr=False)
    temperature: float | None = None
    max_tokens: int | None = None
    stop: list[str] | None = None
    seed: int | None = None
    reasoning_effort: str | None = None
    streaming: bool = False

    def __init__(self, **given: Any):
        checked_model(given.get("model"))
        super().__init__(**given)

    @property
    def model_name(self) -> str:
        """What was loaded."""
        return self.model.info.name

    @property
    def _llm_type(self) -> str:
        return "musespark"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in _OPTIONS}
        return {"model_name": self.model_name, **own, **(self.model_extra or {})}

    def get_token_ids(self, text: str) -> list[int]:
        """Of the model's own tokenizer."""
        return self.model.tokenizer.encode(text)

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: Any = None, **kw: Any) -> Runnable:
        """``tool_choice``: auto, any (or required), none, a tool's name. ``strict`` is taken and
        changes nothing: calls always fit their schemas."""
        kw.pop("strict", None)
        described = [convert_to_openai_tool(tool) for tool in tools]
        return self.bind(tools=described, tool_choice=tool_choice, **kw)

    def with_structured_output(
        self,
        schema: Any,
        *,
        include_raw: bool = False,
        method: str = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable:
        """``method``: json_schema (the answer is decoded by it), function_calling or json_mode (any
        object). ``strict=False``: objects may have more than the schema's properties."""
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        if method not in ("json_schema", "json_mode"):
            raise InvalidRequest(
                f"method: got {method!r:.40}, allowed is json_schema, function_calling or json_mode"
            )
        how = {"include_raw": include_raw, "method": method, "strict": strict}
        return structured(self, schema, **how, **kwargs)

    def _asked(self, messages: Sequence[Any], stop: Any, given: dict[str, Any]) -> dict[str, Any]:
        options = {**self._identifying_params, **given} | ({} if stop is None else {"stop": stop})
        del options["model_name"]
        plain = [plain_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
        return {"messages": conversation(plain), **chat_options(options)}

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **given: Any
    ) -> ChatResult:
        with langchain_errors():
            result = self.model.chat(**self._asked(messages, stop, given))
        return whole(result, self.model_name)

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **given: Any
    ) -> ChatResult:
        with langchain_errors():
            result = await self.model.achat(**self._asked(messages, stop, given))
        return whole(result, self.model_name)

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **given: Any
    ) -> Iterator[ChatGenerationChunk]:
        with langchain_errors():
            with self.model.chat(**streamed(self._asked(messages, stop, given))) as stream:
                for index, delta in enumerate(stream):
                    yield piece(delta, index)
            yield last_piece(stream.result, self.model_name)

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **given: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        with langchain_errors():
            index, asked = 0, streamed(self._asked(messages, stop, given))
            async with await self.model.achat(**asked) as stream:
                async for delta in stream:
                    yield piece(delta, index)
                    index += 1
            yield last_piece(stream.result, self.model_name)
