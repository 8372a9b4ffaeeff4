"""pydantic-ai: a loaded model for its agents.

from musespark.integrations.pydantic_ai import MuseSparkModel

agent = pydantic_ai.Agent(MuseSparkModel(musespark.load()), tools=[...])
agent.run_sync("What is 47 + 38?").output
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from musespark.errors import InvalidRequest
from musespark.integrations.shared import chat_options, checked_model, closed, missing, streamed

try:
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.models import (
        Model,
        ModelRequestParameters,
        StreamedResponse,
        check_allow_model_requests,
    )
    from pydantic_ai.profiles import ModelProfile, ModelProfileSpec
    from pydantic_ai.settings import ModelSettings
except ModuleNotFoundError as error:
    raise missing("pydantic-ai", error) from error

from musespark.integrations.pydantic_ai_messages import effort_of, plain_messages, tool_options
from musespark.integrations.pydantic_ai_results import PROVIDER, Streamed, response_of

_PROFILE = ModelProfile(
    supports_json_schema_output=True,
    supports_json_object_output=True,
    supports_thinking=True,
    supports_document_input=False,
    supports_audio_file_input=False,
    supports_video_input=False,
)
_SAME = ("temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty")
_SAME += ("max_tokens",)
# Settings of pydantic-ai's that have no part here, with what turns them off.
_UNFOLLOWED: dict[str, Any] = {"citations": False, "extra_body": {}}


class MuseSparkModelSettings(ModelSettings, total=False):
    """Settings of a request; ``thinking`` is the ``reasoning_effort``."""

    musespark_options: dict[str, Any]
    """Further options of :meth:`musespark.Model.chat`, such as ``thinking_token_budget``."""


class MuseSparkModel(Model):
    """A model for agents over a loaded one, in this process.

    ``model``: of :func:`musespark.load`. ``settings``: :class:`MuseSparkModelSettings`, for every
    request. Thoughts are a ``ThinkingPart``. Tool calls fit their schemas, which needs the extra
    ``grammar``; ``NativeOutput`` is decoded by its schema, beside tools too. Images are
    ``BinaryContent`` or data URLs: nothing is fetched. Errors are musespark's.

    Of pydantic-ai's own settings ``timeout``, ``max_retries``, ``extra_headers``, ``service_tier``
    and ``cache`` do nothing, for nothing is sent; ``citations=True`` and ``extra_body``, without
    which an answer would be another, are refused. What is none of its own is an option of
    :meth:`musespark.Model.chat`, which refuses those it does not know.
    """

    unsupported_settings = frozenset({"timeout", "max_retries", "extra_headers", "service_tier"})

    def __init__(
        self,
        model: Any,
        *,
        settings: MuseSparkModelSettings | None = None,
        profile: ModelProfileSpec | None = None,
    ):
        self.model = checked_model(model)
        super().__init__(settings=settings, profile=_PROFILE if profile is None else profile)

    @property
    def model_name(self) -> str:
        return self.model.info.name

    @property
    def system(self) -> str:
        return PROVIDER

    def _asked(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        parameters: ModelRequestParameters,
    ) -> dict[str, Any]:
        merged, parameters = self.prepare_request(model_settings, parameters)
        settings: dict[str, Any] = dict(merged or {})
        _refuse_unfollowed(settings)
        options = {name: settings.get(name) for name in _SAME}
        options["stop"] = settings.get("stop_sequences")
        if bias := settings.get("logit_bias"):
            options["logit_bias"] = {int(token): value for token, value in bias.items()}
        options |= effort_of(parameters.thinking) | tool_options(settings, parameters)
        if parameters.output_mode == "native" and parameters.output_object is not None:
            options["json_schema"] = closed(parameters.output_object.json_schema)
        own = MuseSparkModelSettings.__annotations__
        options |= {name: value for name, value in settings.items() if name not in own}
        options |= settings.get("musespark_options", {})
        _refuse_given(options)
        return {"messages": plain_messages(messages, parameters), **chat_options(options)}

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        check_allow_model_requests()
        asked = self._asked(messages, model_settings, model_request_parameters)
        return response_of(await self.model.achat(**asked), self.model_name)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: Any = None,
    ) -> AsyncGenerator[StreamedResponse]:
        check_allow_model_requests()
        asked = self._asked(messages, model_settings, model_request_parameters)
        async with await self.model.achat(**streamed(asked)) as stream:
            yield Streamed(model_request_parameters, stream, self.model_name)


def _refuse_unfollowed(settings: Mapping[str, Any]) -> None:
    """InvalidRequest for a setting of pydantic-ai's that the answer would not follow."""
    for name, without in _UNFOLLOWED.items():
        if settings.get(name) not in (None, without):
            raise InvalidRequest(
                f"{name}: got {settings[name]!r:.60}, allowed is {without!r}: it is not followed"
            )


def _refuse_given(options: Mapping[str, Any]) -> None:
    """InvalidRequest for arguments of chat that are the request's own to give."""
    for name in ("messages", "stream"):
        if name in options:
            raise InvalidRequest(f"{name}: got it as a setting, allowed is none: a request has it")
