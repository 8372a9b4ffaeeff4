"""Small files that nobody vouches for: limits first, ``CorruptFile`` for everything.

The one reader of every JSON file a model folder or packed file carries, and of what is no array in
the metadata of a GGUF file.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from musespark.errors import CorruptFile, InvalidRequest

MAX_CONFIG_BYTES = 32 << 20
MAX_TOKENIZER_BYTES = 256 << 20
# Transformers writes int(1e30) for "no limit" into tokenizer_config.json.
_MAX_DIGITS = 64
_MAX_DEPTH = 32


def checked_path(given: Any, name: str, allowed: str = "a path") -> Path:
    """A path that a caller gave, ``~`` expanded; InvalidRequest, naming the argument, for none."""
    if not isinstance(given, (str, os.PathLike)) or not os.fspath(given):
        raise InvalidRequest(f"{name}: got {given!r:.60}, allowed is {allowed}")
    return Path(given).expanduser()


def open_regular(path: Path) -> int:
    """Opens a regular file for reading; a pipe, device or folder is refused without waiting."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        if not os.path.islink(path):
            raise
        raise CorruptFile(f"{path}: a link to {os.readlink(path)}, which is not there") from None
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise CorruptFile(f"{path}: not a regular file")
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_parts(path: str, parts: Sequence[str]) -> None:
    """InvalidRequest for a path whose parts may lead elsewhere than they say."""
    if "\0" in path:
        raise InvalidRequest(f"path: got {path!r:.80}, allowed is a path without null characters")
    if any(part in ("", ".", "..") for part in parts):
        raise InvalidRequest(
            f"path: got {path!r:.80}, allowed is a path without '.', '..' and empty parts"
        )


def open_below(folder: Path, parts: Sequence[str]) -> int:
    """Opens a file below a folder for reading, part by part from the folder's own descriptor, and
    through no link, not even one that is put there meanwhile. OSError; what it is is not looked at,
    and nothing is waited for."""
    into = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(folder, into)
    try:
        for part in parts[:-1]:
            below = os.open(part, into, dir_fd=handle)
            os.close(handle)
            handle = below
        read = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(parts[-1], read, dir_fd=handle)
    finally:
        os.close(handle)


def read_small_file(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes."""
    with open(open_regular(path), "rb") as file:
        # Room for what is there, not for the limit: read() makes it before it reads.
        data = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    if len(data) > limit:
        raise CorruptFile(f"{path}: more than {limit} bytes")
    return data


def refuse_stand_in(data: bytes | str, where: str) -> None:
    """CorruptFile where a file begins as what is often found in its place: what Git LFS puts there
    until it is fetched, a page instead of a download."""
    start = data[:64] if isinstance(data, str) else data[:64].decode("latin-1")
    if start.startswith("version "):
        raise CorruptFile(f"{where}: a Git LFS pointer, not the file itself; run: git lfs pull")
    if start.lstrip("\ufeff \t\r\n").lower().startswith(("<!doctype", "<html")):
        raise CorruptFile(
            f"{where}: a web page (HTML), not the file itself; the download was of the page that "
            "shows the file"
        )


def no_tokenizer(where: str) -> str:
    """What to say of a model without one."""
    return f"{where}: tokenizer.json is missing; other tokenizer files are not part of this version"


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


def _real(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _RefusedError(f"{digits:.40} is too large for a number")
    return value


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


def _brackets(data: bytes | str) -> int:
    if isinstance(data, str):
        return data.count("[") + data.count("{")
    return data.count(b"[") + data.count(b"{")


def parse_json(
    data: bytes | str, where: str, limit: int = MAX_CONFIG_BYTES, *, parts: int | None = None
) -> Any:
    """Parses UTF-8 JSON of at most ``limit`` bytes: no duplicate keys, NaN, infinities, integers of
    more than 64 digits or nesting beyond 32.

    ``parts``: objects and arrays at most, which take far more memory than bytes, and a parser that
    waits for nobody; those that texts seem to have are not told apart.
    ``where`` begins every message. ``CorruptFile`` for anything that is not such JSON.
    """
    if len(data) > limit:
        raise CorruptFile(f"{where}: {len(data)} bytes, more than the limit of {limit}")
    refuse_stand_in(data, where)
    if parts is not None and (found := _brackets(data)) > parts:
        raise CorruptFile(
            f"{where}: {found} of '[' and '{{', texts included, more than the limit of {parts}"
        )
    try:
        value = json.loads(
            data if isinstance(data, str) else data.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_real,
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


def parse_json_object(
    data: bytes | str, where: str, limit: int = MAX_CONFIG_BYTES
) -> dict[str, Any]:
    """:func:`parse_json` where an object is needed."""
    value = parse_json(data, where, limit)
    if not isinstance(value, dict):
        raise CorruptFile(f"{where}: a JSON object is needed, not {type(value).__name__}")
    return value


def read_json_object(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in a regular file of at most ``limit`` bytes."""
    return parse_json_object(read_small_file(path, limit), str(path), limit)


# ---- metadata -----------------------------------------------------------------------------------


class ArrayOf:
    """What is told of an array where a plain value is looked for: its length, for arrays of a file
    may be large and take long to decode."""

    def __init__(self, count: int):
        self.count = count

    def __repr__(self) -> str:
        return f"an array of {self.count}"


def array_length(metadata: Mapping[str, Any], key: str) -> int | None:
    """The number of items of a key's array, None where it is none. ``metadata`` may know it
    without decoding it (``length``)."""
    known = getattr(metadata, "length", None)
    if known is not None:
        return known(key)
    value = metadata.get(key)
    return len(value) if isinstance(value, list | tuple) or getattr(value, "ndim", 0) else None


def plain_value(metadata: Mapping[str, Any], key: str) -> Any:
    """A key's value, an :class:`ArrayOf` in place of an array, None where there is none."""
    count = array_length(metadata, key)
    return metadata.get(key) if count is None else ArrayOf(count)
