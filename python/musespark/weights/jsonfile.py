"""Reading JSON from files that nobody vouches for: limits first, ``CorruptFile`` for everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from musespark.errors import CorruptFile
from musespark.weights.files import read_small_file

MAX_CONFIG_BYTES = 16 << 20
_MAX_DIGITS = 20
_MAX_DEPTH = 32


class _RefusedError(ValueError):
    """Raised inside the parser's hooks; the message says what was found."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError(f"key {key!r:.80} stands twice")
            seen.add(key)
    return built


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise _RefusedError(f"a number of {len(digits)} digits")
    return int(digits)


def _no_constant(name: str) -> float:
    raise _RefusedError(f"{name} is not JSON")


def _check_depth(value: Any, where: str) -> None:
    """Refuses what nests deeper than 32, so that nobody after this need think of recursion."""
    level, depth = [value], 0
    while level:
        if depth > _MAX_DEPTH:
            raise CorruptFile(f"{where}: JSON is nested more than {_MAX_DEPTH} deep")
        depth += 1
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner.extend(v for v in one.values() if isinstance(v, dict | list))
            elif isinstance(one, list):
                inner.extend(v for v in one if isinstance(v, dict | list))
        level = inner


def parse_json(data: bytes, where: str) -> Any:
    """Parses UTF-8 JSON without duplicate keys, NaN, huge integers or nesting beyond 32.

    `where` begins every message. ``CorruptFile`` for anything that is not such JSON.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_constant=_no_constant,
        )
    except UnicodeDecodeError as error:
        raise CorruptFile(f"{where}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise CorruptFile(f"{where}: not JSON at character {error.pos}: {error.msg}") from None
    except _RefusedError as error:
        raise CorruptFile(f"{where}: {error}") from None
    except RecursionError:
        raise CorruptFile(f"{where}: JSON is nested more than {_MAX_DEPTH} deep") from None
    _check_depth(value, where)
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of at most 16 MiB."""
    value = parse_json(read_small_file(path, MAX_CONFIG_BYTES), str(path))
    if not isinstance(value, dict):
        raise CorruptFile(f"{path}: a JSON object is needed, not {type(value).__name__}")
    return value
