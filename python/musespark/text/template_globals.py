"""What transformers gives chat templates beside jinja2's own: functions, filter, classes and tag.

Source: ``_cached_compile_jinja_template`` in ``utils/chat_template_utils.py`` of
https://github.com/huggingface/transformers (5.23).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.utils
from jinja2 import nodes

from musespark.errors import InvalidRequest


def raise_exception(message: Any) -> None:
    raise jinja2.TemplateError(str(message))


def strftime_now(form: str) -> str:
    if len(form) > 256:
        raise InvalidRequest("chat template: strftime_now format of more than 256 characters")
    return datetime.now().strftime(form)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """json.dumps without jinja2's HTML escapes. Private-use characters of plane 15 stay as they
    are even with ``ensure_ascii``: they stand for characters of the input (see guard.py)."""
    text = json.dumps(
        value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if ensure_ascii and not text.isascii():
        text = re.sub(r"[^\x00-\x7f\U000F0000-\U000FFFFD]+", lambda m: json.dumps(m[0])[1:-1], text)
    return text


class TemplateDict:
    """``dict`` for templates: callable, with ``fromkeys``, and nothing else of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class TemplateNamespace(jinja2.utils.Namespace):
    """A namespace that refuses attributes beginning with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_attribute(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have the attribute {name!r}")


class GenerationTag(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}``: marks assistant text for training; renders it."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own form

    def parse(self, parser: Any) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()
