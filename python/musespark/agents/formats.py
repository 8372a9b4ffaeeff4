"""Types whose values JSON writes as texts of a format, or as numbers: dates, times, UUIDs, paths,
decimals."""

from __future__ import annotations

import datetime
import decimal
import pathlib
import re
import uuid
from collections.abc import Callable
from typing import Any

from musespark.errors import InvalidRequest

_FRACTION = re.compile(r"\.(\d+)")
_LEAP = re.compile(r"(?<=\d\d:\d\d:)60")


def _as_python(text: str) -> str:
    """A time as Python reads it: 3.10 no Z, nor fractions that have not 3 or 6 digits, and none a
    leap second, which the format has; that is the second before it."""
    text = _LEAP.sub("59", text)
    text = f"{text[:-1]}+00:00" if text[-1:] in ("Z", "z") else text
    return _FRACTION.sub(lambda found: f".{found[1]:0<6.6}", text)


def _time(text: str) -> datetime.time:
    return datetime.time.fromisoformat(_as_python(text))


def _datetime(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(_as_python(text))


def _decimal(value: float) -> decimal.Decimal:
    return decimal.Decimal(str(value))  # 0.1 is meant where 0.1 is written


_DATE = {"type": "string", "format": "date"}
# By type: its schema, what reads it, and what is allowed, for who wrote something else.
_FORMATS: dict[Any, tuple[dict[str, Any], Callable[[Any], Any], str]] = {
    datetime.date: (_DATE, datetime.date.fromisoformat, "a date such as 2026-05-31"),
    datetime.datetime: (
        {"type": "string", "format": "date-time"},
        _datetime,
        "a date and a time such as 2026-05-31T14:30:00Z",
    ),
    datetime.time: (
        {"type": "string", "format": "time"},
        _time,
        "a time such as 14:30:00Z",
    ),
    uuid.UUID: ({"type": "string", "format": "uuid"}, uuid.UUID, "a UUID"),
    pathlib.Path: ({"type": "string"}, pathlib.Path, "a path"),
    decimal.Decimal: ({"type": "number"}, _decimal, "a number"),
}


def format_of(hint: Any, where: str) -> tuple[dict[str, Any], Callable[[Any], Any]] | None:
    """The schema of such a type, and what reads its values, with InvalidRequest naming the place
    for a text that is none; None for other types."""
    try:
        found = _FORMATS.get(hint)
    except TypeError:  # a hint that cannot be hashed
        return None
    if found is None:
        return None
    schema, make, allowed = found

    def read(value: Any) -> Any:
        try:
            return make(value)
        except (ValueError, TypeError, ArithmeticError):
            raise InvalidRequest(f"{where}: got {value!r:.60}, allowed is {allowed}") from None

    return dict(schema), read
