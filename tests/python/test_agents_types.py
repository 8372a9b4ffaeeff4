"""Parameters of tools that JSON writes as texts of a format or as lists: what the model is told of
them, that calls are held to it in every family, and what the function gets."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import pytest

from musespark.agents.tools import Tool
from musespark.errors import InvalidRequest
from support.sampled_calls import STYLES, sampler, wrong_calls

UTC = datetime.timezone.utc
ID = "12345678-1234-5678-1234-567812345678"


@dataclass
class Stay:
    begin: datetime.date
    nights: int = 1


def book(
    day: datetime.date,
    at: datetime.time,
    made: datetime.datetime,
    number: UUID,
    names: set[str],
    place: tuple[float, float],
) -> None:
    """Books a table."""


def more(
    stays: list[Stay],
    until: datetime.date | None = None,
    when: datetime.date | str = "",
    kinds: frozenset[int] = frozenset(),
    file: Path = Path(),
    price: Annotated[Decimal, "in euros"] = Decimal(0),
) -> None:
    """Other types, inside others and with defaults."""


def test_what_the_model_is_told() -> None:
    assert Tool.of(book).parameters["properties"] == {
        "day": {"type": "string", "format": "date"},
        "at": {"type": "string", "format": "time"},
        "made": {"type": "string", "format": "date-time"},
        "number": {"type": "string", "format": "uuid"},
        "names": {"type": "array", "items": {"type": "string"}},
        "place": {
            "type": "array",
            "prefixItems": [{"type": "number"}, {"type": "number"}],
            "minItems": 2,
            "maxItems": 2,
        },
    }
    found = Tool.of(more).parameters
    assert found["required"] == ["stays"] and json.dumps(found)
    assert found["properties"]["price"] == {"type": "number", "description": "in euros"}


def read(function: Any, **given: Any) -> Any:
    tool = Tool.of(function)
    tool.check(given)
    assert tool.read is not None
    return tool.read(given)


def test_what_the_function_gets() -> None:
    given = {"day": "2026-05-31", "at": "14:30:00Z", "made": "2026-05-31T14:30:00.25+02:00"}
    found = read(book, **given, number=ID, names=["a", "b", "a"], place=[1, 2.5])
    assert found["day"] == datetime.date(2026, 5, 31)
    assert found["at"] == datetime.time(14, 30, tzinfo=UTC)
    zone = datetime.timezone(datetime.timedelta(hours=2))
    assert found["made"] == datetime.datetime(2026, 5, 31, 14, 30, 0, 250_000, zone)
    assert found["number"] == UUID(ID) and found["names"] == {"a", "b"}
    assert found["place"] == (1, 2.5)

    stays = [{"begin": "2026-01-02"}]
    found = read(more, stays=stays, until=None, when="soon", kinds=[1, 1], file="a/b", price=0.1)
    assert found["stays"] == [Stay(datetime.date(2026, 1, 2))]
    assert (found["until"], found["when"], found["kinds"]) == (None, "soon", frozenset({1}))
    assert (found["file"], found["price"]) == (Path("a/b"), Decimal("0.1"))
    found = read(more, stays=[], until="2026-01-02", when="2026-01-02")
    assert found["until"] == found["when"] == datetime.date(2026, 1, 2)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("14:30:00", "14:30:00"),
        ("14:30:00.1234567Z", "14:30:00.123456+00:00"),
        ("23:59:60.5-01:30", "23:59:59.500000-01:30"),
    ],
)
def test_times_as_they_may_be_written(text: str, time: str) -> None:
    def wake(at: datetime.time) -> None: ...

    assert read(wake, at=text)["at"].isoformat() == time


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"day": "2026-02-30"}, r"book\.day: got '2026-02-30', allowed is a date such as 2026-05"),
        ({"at": "noon"}, r"book\.at: got 'noon', allowed is a time such as"),
        ({"made": "today"}, r"book\.made: got 'today', allowed is a date and a time such as"),
        ({"number": "7"}, r"book\.number: got '7', allowed is a UUID"),
        ({"place": [1]}, r"book\.place: 1 items, must be 2 to 2"),
        ({"place": [1, "a"]}, r"book\.place\[1\]: 'a', must be number"),
    ],
)
def test_what_is_none_is_told(given: dict[str, Any], says: str) -> None:
    right = {"day": "2026-05-31", "at": "14:30:00Z", "made": "2026-05-31T14:30:00Z"}
    with pytest.raises(InvalidRequest, match=says):
        read(book, **{**right, "number": ID, "names": [], "place": [1, 2], **given})


def test_a_union_is_refused_by_the_type_that_it_looks_like() -> None:
    with pytest.raises(InvalidRequest, match="got '2026-02-30', allowed is a date"):
        read(more, stays=[], until="2026-02-30")


@pytest.mark.parametrize("style", STYLES)
def test_calls_are_held_to_formats_and_tuples(style: str, tmp_path: Path) -> None:
    """Families that write values between tags or in a notation of their own do so too."""

    def few(day: datetime.date, at: datetime.time, number: UUID, place: tuple[int, bool]) -> None:
        """Few and short ones."""

    tool = Tool.of(few)
    with sampler(style, tmp_path / "m") as samples:
        begun = [samples.begin([tool.to_openai()], seed) for seed in range(6)]
        calls = 0
        for handle in begun:
            result = handle.result()
            if result.reason == "length":
                continue
            parser = samples.read([tool.to_openai()], result.tokens)
            assert not wrong_calls(parser, [tool.to_openai()]), samples.text(result.tokens)
            for call in parser.turn.tool_calls:
                calls += 1
                try:
                    read(few, **call.arguments)
                except InvalidRequest as error:  # the 31st of February, the year 0
                    assert "few.day" in str(error) and "allowed is a date" in str(error)
        assert calls
