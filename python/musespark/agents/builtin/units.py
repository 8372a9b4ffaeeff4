"""Units: a quantity in another one of its kind.

Factors are exact by definition (SI brochure, 9th edition; the international yard and pound of
1959), but for none of them is more than double precision kept.
"""

from __future__ import annotations

import math
import sys

from musespark.agents.builtin.unit_names import NAMES
from musespark.errors import InvalidRequest
from musespark.options import real, text

_LARGEST = sys.float_info.max

_KINDS: dict[str, dict[str, float]] = {
    "length": {
        "nm": 1e-9,
        "um": 1e-6,
        "mm": 1e-3,
        "cm": 1e-2,
        "dm": 0.1,
        "m": 1.0,
        "km": 1e3,
        "in": 0.0254,
        "ft": 0.3048,
        "yd": 0.9144,
        "mi": 1609.344,
        "nmi": 1852.0,
    },
    "mass": {
        "ug": 1e-9,
        "mg": 1e-6,
        "g": 1e-3,
        "kg": 1.0,
        "t": 1e3,
        "oz": 0.028349523125,
        "lb": 0.45359237,
        "st": 6.35029318,
    },
    "time": {
        "ms": 1e-3,
        "s": 1.0,
        "min": 60.0,
        "h": 3600.0,
        "day": 86400.0,
        "week": 604800.0,
    },
    "volume": {
        "ml": 1e-6,
        "cl": 1e-5,
        "l": 1e-3,
        "m3": 1.0,
        "tsp": 4.92892159375e-6,
        "tbsp": 1.478676478125e-5,
        "cup": 2.365882365e-4,
        "pt": 4.73176473e-4,
        "qt": 9.46352946e-4,
        "gal": 3.785411784e-3,
    },
    "area": {
        "cm2": 1e-4,
        "m2": 1.0,
        "ha": 1e4,
        "km2": 1e6,
        "sqft": 0.09290304,
        "acre": 4046.8564224,
    },
    "speed": {"m/s": 1.0, "km/h": 1 / 3.6, "mph": 0.44704, "kn": 1852 / 3600},
    "data": {
        "bit": 0.125,
        "B": 1.0,
        "kB": 1e3,
        "MB": 1e6,
        "GB": 1e9,
        "TB": 1e12,
        "KiB": 1024.0,
        "MiB": 2.0**20,
        "GiB": 2.0**30,
        "TiB": 2.0**40,
    },
    "energy": {"J": 1.0, "kJ": 1e3, "cal": 4.184, "kcal": 4184.0, "Wh": 3600.0, "kWh": 3.6e6},
    "pressure": {
        "Pa": 1.0,
        "hPa": 100.0,
        "mbar": 100.0,
        "kPa": 1e3,
        "bar": 1e5,
        "atm": 101325.0,
    },
}
# In kelvin: (factor, the zero point).
_TEMPERATURES = {"K": (1.0, 0.0), "C": (1.0, 273.15), "F": (5 / 9, 459.67 * 5 / 9)}
_KIND_OF = {unit: kind for kind, units in _KINDS.items() for unit in units}
# In other letters these may be others: Mm and ML are a million, NM is a nautical mile, Cal a kcal,
# Mb are bits.
_EXACT = {"mm", "mg", "ml", "ms", "nm", "mbar", "cal", *_KINDS["data"]}
_FOLDED = {unit.lower(): unit for unit in (*_KIND_OF, *_TEMPERATURES) if unit not in _EXACT}
_SIGNS = str.maketrans({"µ": "u", "μ": "u", "²": "2", "³": "3", "°": None, "º": None, "^": None})


def convert_units(value: float, unit: str, to: str) -> float:
    """Convert a quantity to another unit.

    Args:
        unit: such as km, lb, h, l, m2, km/h, GiB, kWh, hPa, C
        to: a unit of the same kind
    """
    unit, to = unit_named(text("unit", unit)), unit_named(text("to", to))
    value = real("value", value, -_LARGEST, _LARGEST, "a finite number")
    found = _converted(value, unit, to)
    if not math.isfinite(found):
        raise InvalidRequest(
            f"value: got {value:g} {unit}, which is too large for {to}; allowed are numbers up to "
            "1.8e308"
        )
    return float(f"{found:.12g}")  # what the factors' own rounding adds says nothing


def unit_named(given: str) -> str:
    """The unit that a text names: by its sign, by its name, by either in other letters where they
    can be no other's; the text itself where there is none."""
    bare = " ".join(given.translate(_SIGNS).rstrip(". ").split())
    if bare in _KIND_OF or bare in _TEMPERATURES:
        return bare
    name = bare.lower().removeprefix("degrees ").removeprefix("degree ").removeprefix("deg ")
    return NAMES.get(name) or NAMES.get(name.removesuffix("s")) or _FOLDED.get(name, given)


def _converted(value: float, unit: str, to: str) -> float:
    if unit in _TEMPERATURES and to in _TEMPERATURES:
        (factor, zero), (other, other_zero) = _TEMPERATURES[unit], _TEMPERATURES[to]
        return (value * factor + zero - other_zero) / other
    for name, given in (("unit", unit), ("to", to)):
        if given not in _KIND_OF and given not in _TEMPERATURES:
            known = ", ".join([*_KIND_OF, *_TEMPERATURES])
            raise InvalidRequest(f"{name}: got {given!r:.40}, allowed are {known}")
    kinds = [_KIND_OF.get(one, "temperature") for one in (unit, to)]
    if kinds[0] != kinds[1]:
        raise InvalidRequest(f"to: got {to!r}, a {kinds[1]}, allowed is a unit of {kinds[0]}")
    factors = _KINDS[kinds[0]]
    return value * factors[unit] / factors[to]
