"""When two answers are the same: the key that they are counted by."""

from __future__ import annotations

import json
import re
from typing import Any

from musespark.results import ChatResult

_FENCED = re.compile(r"```[\w-]*\n(.*)\n?```", re.DOTALL)
_STATED = re.compile(
    r"(?:\banswer\b\s*(?:is\b:?|:|=)|^####)\s*(\S.*)", re.IGNORECASE | re.MULTILINE
)
_BOLD = re.compile(r"\*\*([^*]+)\*\*")
_NUMBER = re.compile(r"([-+]?)[$€£]?(\d{1,3}(?:,\d{3})+|\d*)(?:\.(\d*))?\s?%?")
_AROUND = " \t*_`$"  # emphasis of Markdown, and what opens and closes mathematics


def answer_key(result: ChatResult) -> str | None:
    r"""What a turn's answer is counted by; None where there is none.

    Tool calls: their names and arguments. Else of the text, the first of these that there is: JSON,
    its values in one order; the last ``\boxed{…}``; what follows the last "answer is", "answer:" or
    "####"; what alone is bold in the last line; the last line. Of these four the letter case,
    emphasis, folded white space, a final full stop, and of numbers the currency, per cent,
    thousands separators and idle zeros make no difference.
    """
    if result.tool_calls:
        return " ".join(_call(call["function"]) for call in result.tool_calls)
    text = result.content.strip()
    if not text:
        return None
    fenced = _FENCED.fullmatch(text)
    if (value := _json(fenced[1] if fenced else text)) is not None:
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    if (boxed := last_boxed(text)) is not None:
        return _normal(boxed)
    if stated := _STATED.findall(text):
        return _normal(stated[-1])
    last = text.splitlines()[-1]
    bold = _BOLD.findall(last)
    return _normal(bold[0] if len(bold) == 1 else last)


def last_boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{…}`` of a text, its braces balanced; None without one."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    start += len(r"\boxed{")
    depth = 1
    for end in range(start, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return text[start:end]
    return None


def _call(function: Any) -> str:
    """A call with each argument as the text a model writes, so that 5 and "5" are the same."""
    arguments = function["arguments"]
    if isinstance(arguments, dict):
        plain = {k: v if isinstance(v, str) else json.dumps(v) for k, v in arguments.items()}
        arguments = json.dumps(plain, sort_keys=True, ensure_ascii=False)
    return f"{function['name']}({arguments})"


def _json(text: str) -> Any:
    """An object or a list; None for any other text."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _normal(text: str) -> str:
    text = " ".join(text.split()).strip(_AROUND)
    if text.endswith(".") and len(text) > 1:
        text = text[:-1].strip(_AROUND)
    number = _NUMBER.fullmatch(text)
    if number is None or not (number[2] or number[3]):
        return text.casefold()
    whole, part = number[2].replace(",", "").lstrip("0") or "0", (number[3] or "").rstrip("0")
    value = f"{whole}.{part}" if part else whole
    return f"-{value}" if number[1] == "-" and value != "0" else value
