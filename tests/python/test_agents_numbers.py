"""The calculator, dates and units: values, what people write, and what is told of what is none."""

from __future__ import annotations

from typing import Any

import pytest

from musespark.agents.builtin import (
    add_to_date,
    calculate,
    convert_units,
    days_between,
    today,
    weekday,
)
from musespark.agents.builtin.unit_names import NAMES
from musespark.agents.builtin.units import unit_named
from musespark.errors import InvalidRequest


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12*34", "408"),
        ("2 * (3 + 4) ^ 2", "98"),
        ("-7 // 2 + 7 % 4", "-1"),
        ("sqrt(2) * pi", repr(2**0.5 * 3.141592653589793)),
        ("max(1, 2.5, min(9, 3))", "3"),
        ("1e3 / 8", "125.0"),
        ("6 × 7 ÷ 2 − 1", "20.0"),
        ("3·4⋅5", "60"),
        ("5!", "120"),
        ("2^3! - (1 + 2)!", "58"),
        ("sqrt(9)! + max(2, 3)!/2 !", "9.0"),
        ("(3!)!", "720"),
        ("√9", "3.0"),
        ("√(9 + 7) + √ 4 * √√16", "8.0"),
        ("√sqrt(16)", "2.0"),
        ("5² + 2³ - 10⁻¹", "32.9"),
        ("-3!", "-6"),
        ("2 * π", repr(2 * 3.141592653589793)),
    ],
)
def test_values_of_expressions(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("9**9**9", "too large"),
        ("1e400", "too large"),
        ("1e400 - 1e400", "too large"),
        ("1e308 * 10", "too large"),
        ("10**1000 * 10**1000", "more than 4096 bits"),
        ("__import__('os').getcwd()", "is no arithmetic"),
        ("(1).real", "is no arithmetic"),
        ("'a' * 9", "is no arithmetic"),
        ("[1][0]", "is no arithmetic"),
        ("(-8) ** 0.5", "no real number"),
        ("1 / 0", "division by zero"),
        ("sqrt()", "sqrt"),
        ("(" * 300, "allowed is such as"),
        ("1 +", "allowed is such as"),
        ("3!!", "got '3!!', allowed is"),
        ("(1/2)!", "the factorial of 0.5, allowed is of 0, 1, 2"),
        ("(0-3)!", "the factorial of -3, allowed"),
        ("601!", "601! is too large"),
        ("550!", "more than 4096 bits"),
        ("1e300!", "is too large"),
        ("2 != 3", "is no arithmetic"),
        ("!", "allowed is such as"),
        ("√", "sqrt"),
        ("√(", "allowed is such as"),
        (")!", "allowed is such as"),
        ("!" + "1!" * 200, "allowed is such as"),
        ("1" * 501, "got 501 characters, allowed are at most 500"),
    ],
)
def test_what_is_no_arithmetic(expression: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=f"expression: .*{says}"):
        calculate(expression)


def test_dates() -> None:
    assert weekday("2026-05-31") == "Sunday" and len(today()) == 10
    assert days_between("2026-05-31", "2026-06-30") == 30
    assert add_to_date("2026-01-31", months=1) == "2026-02-28"
    assert add_to_date("2024-02-29", years=-1, days=1) == "2023-03-01"
    with pytest.raises(InvalidRequest, match="date: got 'May 31', allowed is YYYY-MM-DD"):
        weekday("May 31")
    for more in ({"years": 9000}, {"months": -99999}, {"days": 10**9}):
        with pytest.raises(InvalidRequest, match=r"years: the year|days: got 1000000000"):
            add_to_date("2026-01-31", **more)


def test_units() -> None:
    assert (
        convert_units(1, "mi", "km") == 1.609344 and convert_units(100, "F", "C") == 37.7777777778
    )
    assert convert_units(-40, "C", "F") == -40 and convert_units(36, "km/h", "m/s") == 10
    for given, says in [
        ((1, "mi", "kg"), "to: got 'kg', a mass, allowed is a unit of length"),
        ((1, "K", "kg"), "to: got 'kg', a mass, allowed is a unit of temperature"),
        ((1, "league", "km"), "unit: got 'league', allowed are nm, um"),
    ]:
        with pytest.raises(InvalidRequest, match=says):
            convert_units(*given)


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ((1, "mile", "Kilometers"), 1.609344),
        ((2, "hours", "min"), 120),
        ((2, "hrs", "Minutes"), 120),
        ((1, "KM", "m"), 1000),
        ((1, "Kg", "lbs."), 2.20462262185),
        ((100, "°C", "degrees Fahrenheit"), 212),
        ((32, "f", "celsius"), 0),
        ((10, "ft2", "m²"), 0.9290304),
        ((1, "square foot", "sqft"), 1),
        ((1, "m^3", "liters"), 1000),
        ((1, "µm", "nanometres"), 1000),
        ((1, "kwh", "kJ"), 3600),
        ((1, "gigabytes", "bytes"), 1e9),
        ((90, "kph", "m/s"), 25),
        ((12, "inches", "feet"), 1),
        ((3, "days", "h"), 72),
        ((1, "nautical miles", "nmi"), 1),
    ],
)
def test_units_as_people_write_them(given: Any, value: float) -> None:
    assert convert_units(*given) == value


@pytest.mark.parametrize("unit", ["Mm", "ML", "Mg", "NM", "Cal", "Mb", "kb", "KB", "ton", "Mbar"])
def test_units_that_may_be_others_are_refused(unit: str) -> None:
    with pytest.raises(InvalidRequest, match=f"unit: got '{unit}', allowed are nm"):
        convert_units(1, unit, unit)


def test_every_name_is_of_a_unit() -> None:
    for name, unit in NAMES.items():
        assert name == name.lower() and unit_named(name.upper()) == unit
        assert convert_units(1, name, unit) == 1
