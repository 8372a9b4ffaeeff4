"""Dates: what day it is, and how dates lie to each other."""

from __future__ import annotations

import calendar
import datetime

from musespark.errors import InvalidRequest
from musespark.options import integer, text

_FURTHEST = 10**9  # days, months or years


def today() -> str:
    """Today's date, as this machine has it."""
    return datetime.date.today().isoformat()


def weekday(date: str) -> str:
    """The day of the week of a date.

    Args:
        date: as 2026-05-31
    """
    return calendar.day_name[_date(date, "date").weekday()]


def days_between(start: str, end: str) -> int:
    """How many days lie between two dates.

    Args:
        start: as 2026-05-31
        end: as 2026-06-30
    """
    return (_date(end, "end") - _date(start, "start")).days


def add_to_date(date: str, days: int = 0, months: int = 0, years: int = 0) -> str:
    """The date some days, months or years after another; before it where they are negative.

    Args:
        date: as 2026-05-31; a day that the month has not becomes its last
    """
    begin = _date(date, "date")
    days, months = _count("days", days), _count("months", months)
    years = _count("years", years)
    at = begin.year * 12 + begin.month - 1 + months + 12 * years
    year, month = divmod(at, 12)
    if not datetime.MINYEAR <= year <= datetime.MAXYEAR:
        raise InvalidRequest(f"years: the year {year}, allowed are 1 to {datetime.MAXYEAR}")
    day = min(begin.day, calendar.monthrange(year, month + 1)[1])
    try:
        found = datetime.date(year, month + 1, day) + datetime.timedelta(days=days)
    except OverflowError:
        raise InvalidRequest(f"days: got {days}, which leaves the calendar") from None
    return found.isoformat()


def _count(name: str, value: int) -> int:
    return integer(name, value, -_FURTHEST, _FURTHEST)


def _date(given: str, name: str) -> datetime.date:
    given = text(name, given)
    try:
        return datetime.date.fromisoformat(given.strip())
    except ValueError as error:
        raise InvalidRequest(
            f"{name}: got {given!r:.40}, allowed is YYYY-MM-DD ({error})"
        ) from None
