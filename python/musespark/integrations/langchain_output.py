"""Structured output in LangChain: answers decoded by a schema, and what reads them."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGeneration
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass

from musespark.integrations.shared import closed


class _Whole:
    """LangChain's parsers complete a JSON that was cut; a number cut in two would be another."""

    def parse_result(self, result: list[ChatGeneration], *, partial: bool = False) -> Any:
        message = result[0].message
        reason = message.response_metadata.get("finish_reason", "stop")
        if not partial and reason != "stop":
            raise OutputParserException(
                f"the answer is not whole, it ended by {reason!r}", llm_output=message.text
            )
        return super().parse_result(result, partial=partial)  # type: ignore[misc]


class WholeJson(_Whole, JsonOutputParser):
    """A value; of a stream, as far as it came."""


class WholeObject(_Whole, PydanticOutputParser):
    """An object of a class."""


def structured(
    llm: BaseChatModel,
    schema: Any,
    *,
    include_raw: bool,
    method: str,
    strict: bool | None,
    **options: Any,
) -> Runnable:
    """``llm`` with answers of a schema (``method`` json_schema) or of any object (json_mode)."""
    form = {"type": "object"} if method == "json_mode" else convert_to_json_schema(schema)
    form = form if strict is False else closed(form)
    traced = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
    asked = llm.bind(json_schema=form, ls_structured_output_format=traced, **options)
    of_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    parser = WholeObject(pydantic_object=schema) if of_class else WholeJson()
    if not include_raw:
        return asked | parser
    read = itemgetter("raw") | parser
    both = RunnablePassthrough.assign(parsed=read, parsing_error=lambda _: None)
    none = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=asked) | both.with_fallbacks([none], exception_key="parsing_error")
