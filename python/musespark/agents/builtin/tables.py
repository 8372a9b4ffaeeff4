"""Tables: questions in SQL to CSV and SQLite files, which are only read."""

from __future__ import annotations

import codecs
import csv
import functools
import io
import math
import os
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from musespark.agents.tools import Tool
from musespark.errors import InvalidRequest
from musespark.options import integer, real, text
from musespark.untrusted import checked_path, read_small_file

MAX_CSV_BYTES = 64 << 20
MAX_ROWS = 100  # of an answer
MAX_SECONDS = 10.0  # of a query
# Of a value in a query, as much as a CSV cell may have; and of what LIKE and GLOB look for. Within
# one function SQLite neither looks at the clock nor can be interrupted, and some take time with the
# product of two lengths: instr and LIKE then 0.1 s; SQLite's trim of given characters 3 s and more
# (of 10,900 of them), so here is another one. Python 3.10 sets no limits; SQLite's own are 1 GB and
# 50,000 bytes.
_CELL_BYTES = 1 << 17
_PATTERN_BYTES = 500
_ANSWER = 1 << 20  # characters of the cells of an answer, after which no more rows are read
_DELIMITERS = (",", ";", "\t", "|")  # the one that the first line has most of
_STEPS = 10_000  # of SQLite's machine between looks at the clock
_SQLITE = b"SQLite format 3\0"
# By SQLite's codes, which Python 3.10 does not tell, and by its texts, in which a query may stand.
_INTERRUPTED, _TOO_BIG, _REFUSED = 9, 18, 23
_CODES = {
    "interrupted": _INTERRUPTED,
    "string or blob too big": _TOO_BIG,
    "not authorized": _REFUSED,
}
_ALLOWED = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
_BARRED = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"}
# What is a number to every reader: 007 is a name, and so is what a number would not hold exactly.
_NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?")
_INT64 = 1 << 63
_UPPER = re.compile("[A-Z]+")
Connect = Callable[[], sqlite3.Connection]


def table_tools(
    files: Mapping[str, str | os.PathLike[str]],
    *,
    max_rows: int = MAX_ROWS,
    max_seconds: float = MAX_SECONDS,
    encoding: str = "utf-8",
) -> list[Tool]:
    """Tools to ask tables: ``describe_tables()`` and ``query_table(sql)``.

    ``files``: a CSV file by the name of its table (its first line has the columns; cells that are
    numbers are numbers, but for such as 007), or a SQLite file: one alone by any name, beside other
    files by that of a schema, so that its tables are ``name.table``. They are read at each query,
    so that a query sees what the file is then. ``encoding``: of the CSV files. Nothing but SELECT
    is allowed. InvalidRequest for files that are no such tables, and to the model for a query that
    is refused, wrong, too large or too slow.

    ``max_seconds``: of a query, looked at between its rows. From Python 3.11 on a query reads and
    makes no value of more than 131,072 bytes, so that what is done to one takes little of that; a
    column with longer ones may be counted and left out, not read.
    """
    if not isinstance(files, Mapping) or not files:
        raise InvalidRequest(f"files: got {files!r:.60}, allowed is a dict name: path")
    integer("max_rows", max_rows, 1)
    real("max_seconds", max_seconds, 0.001, 1e6, "a number of seconds > 0")
    connect = _opened(files, _checked_encoding(encoding))

    def describe_tables() -> str:
        """The tables that there are, their columns and how many rows they have."""
        with closing(connect()) as database:
            return "\n".join(_described(database, max_seconds))

    def query_table(sql: str) -> str:
        """Ask the tables a question in SQL (SQLite's). The answer's first line has the columns.

        Args:
            sql: one SELECT
        """
        with closing(connect()) as database:
            return _answer(database, sql, max_rows, max_seconds)

    with closing(connect()) as database:  # says at once what cannot be read
        for _ in _described(database, max_seconds):
            pass
    return [Tool.of(describe_tables), Tool.of(query_table)]


# ---- opening ------------------------------------------------------------------------------------


def _checked_encoding(encoding: str) -> str:
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=text("encoding", encoding))
    except (LookupError, ValueError):
        raise InvalidRequest(
            f"encoding: got {encoding!r:.60}, allowed is one that Python has, such as utf-8, cp1252"
        ) from None
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def _opened(files: Mapping[str, str | os.PathLike[str]], encoding: str) -> Connect:
    paths = {name: checked_path(path, f"files[{name!r:.40}]") for name, path in files.items()}
    for name, path in paths.items():
        if not isinstance(name, str) or not name:
            raise InvalidRequest(f"files: got the name {name!r:.40}, allowed is a table's, a str")
        if not path.is_file():
            what = "a folder" if path.is_dir() else "nothing"
            raise InvalidRequest(
                f"files[{name!r:.40}]: no file, {os.fspath(path)!r:.200} is {what}"
            )
    databases = {name: path for name, path in paths.items() if _is_sqlite(path)}
    if len(paths) == len(databases) == 1:
        return lambda: _with_trims(_sqlite(next(iter(paths.values()))))
    texts = {name: path for name, path in paths.items() if name not in databases}
    return lambda: _with_trims(_together(texts, databases, encoding))


def _is_sqlite(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def _read_only(path: Path) -> str:
    return f"{path.resolve().as_uri()}?mode=ro"


def _sqlite(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(_read_only(path), uri=True, isolation_level=None)


def _together(
    texts: Mapping[str, Path], databases: Mapping[str, Path], encoding: str
) -> sqlite3.Connection:
    """A database in memory with the tables of CSV files, and SQLite files attached to it."""
    database = sqlite3.connect("file::memory:", uri=True)
    try:
        for name, path in texts.items():
            _fill(database, name, path, encoding)
        for name, path in databases.items():
            try:
                database.execute(f"ATTACH ? AS {_quoted(name)}", (_read_only(path),))
            except sqlite3.Error as error:
                raise InvalidRequest(f"files[{name!r:.40}]: {error!s:.200}") from None
    except BaseException:
        database.close()
        raise
    return database


def _fill(database: sqlite3.Connection, name: str, path: Path, encoding: str) -> None:
    where = f"files[{name!r:.40}]"
    try:
        content = read_small_file(path, MAX_CSV_BYTES).decode(encoding)
    except UnicodeError as error:
        at, said = getattr(error, "start", 0), encoding.removesuffix("-sig")
        raise InvalidRequest(
            f"{where}: byte {at} is no {said.upper()}, allowed is text of the encoding= of "
            "table_tools, such as cp1252 where Windows wrote the file"
        ) from None
    first = content.partition("\n")[0]
    rows = csv.reader(io.StringIO(content), delimiter=max(_DELIMITERS, key=first.count))
    try:
        columns = _columns(rows, where)
        database.execute(f"CREATE TABLE {_quoted(name)} ({', '.join(map(_quoted, columns))})")
        places = ", ".join("?" * len(columns))
        database.executemany(
            f"INSERT INTO {_quoted(name)} VALUES ({places})", _cells(rows, len(columns), name)
        )
    except (sqlite3.Error, csv.Error) as error:
        raise InvalidRequest(f"{where}: {error!s:.200}") from None
    database.commit()


def _columns(rows: Iterator[list[str]], where: str) -> list[str]:
    """The first line's; InvalidRequest for none, and for two that SQLite has for one."""
    columns = next(rows, None)
    if not columns:
        what = "an empty file" if columns is None else "an empty first line"
        raise InvalidRequest(f"{where}: got {what}, allowed is a first line with the columns")
    seen: set[str] = set()
    for column in columns:
        folded = _UPPER.sub(lambda found: found[0].lower(), column)  # as SQLite does: ASCII alone
        if folded in seen:
            raise InvalidRequest(
                f"{where}: got the column {column!r:.60} twice in the first line {columns!r:.80}, "
                "allowed is each name once, upper and lower case alike"
            )
        seen.add(folded)
    return columns


def _cells(rows: Any, width: int, name: str) -> Iterator[list[Any]]:
    """Rows as wide as the first line; what is short is filled with nulls."""
    for row in rows:
        if any(row[width:]):
            raise InvalidRequest(
                f"files[{name!r:.40}]: line {rows.line_num} has {len(row)} cells, the first line "
                f"{width}"
            )
        if row:
            cells = [_cell(text) for text in row[:width]]
            yield cells + [None] * (width - len(cells))


def _cell(text: str) -> Any:
    bare = text.strip()
    if not bare:
        return None
    if len(bare) < 30 and _NUMBER.fullmatch(bare):
        whole = not any(c in bare for c in ".eE")
        number = int(bare) if whole else float(bare)
        if abs(number) < (_INT64 if whole else math.inf):
            return number
    return text


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# ---- asking -------------------------------------------------------------------------------------


def _described(database: sqlite3.Connection, seconds: float) -> Iterator[str]:
    with _limited(database, seconds, "files"):
        yield from _tables(database)


def _tables(database: sqlite3.Connection) -> Iterator[str]:
    for schema, name in _names(database):
        table = f"{_quoted(schema)}.{_quoted(name)}"
        columns = [
            row[1]
            for row in database.execute(f"PRAGMA {_quoted(schema)}.table_info({_quoted(name)})")
        ]
        (count,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()
        yield f"{_told(schema, name)} ({', '.join(columns)}): {count} rows"


def _names(database: sqlite3.Connection) -> list[tuple[str, str]]:
    """Schemas and names of the tables and views."""
    schemas = [row[1] for row in database.execute("PRAGMA database_list")]
    return [
        (schema, name)
        for schema in schemas
        for (name,) in database.execute(
            f"SELECT name FROM {_quoted(schema)}.sqlite_master WHERE type IN ('table', 'view') "
            "ORDER BY name"
        )
    ]


def _told(schema: str, name: str) -> str:
    return name if schema == "main" else f"{schema}.{name}"


def _answer(database: sqlite3.Connection, sql: str, most: int, seconds: float) -> str:
    with _limited(database, seconds, "files"):
        known = ", ".join(_told(*one) for one in _names(database))
    database.set_authorizer(_authorize)
    with _limited(database, seconds, "sql", known):
        cursor = database.execute(sql)
        if cursor.description is None:
            raise InvalidRequest(f"sql: got {sql!r:.80}, allowed is one SELECT")
        return _written(cursor, most)


@contextmanager
def _limited(
    database: sqlite3.Connection, seconds: float, where: str, tables: str = ""
) -> Iterator[None]:
    """Bounds what is asked in here; InvalidRequest for what SQLite says of it. ``tables``: names of
    those that there are."""
    end = time.monotonic() + seconds
    # The timer ends a statement at its next row, however long its rows take; it does nothing
    # between two statements, after which the handler does.
    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), database.interrupt)
    database.set_progress_handler(lambda: time.monotonic() > end, _STEPS)
    if sys.version_info >= (3, 11):
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _CELL_BYTES)
        database.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, _PATTERN_BYTES)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning, OverflowError) as error:
        raise InvalidRequest(f"{where}: {_said(error, seconds, tables)}") from None
    finally:
        timer.cancel()
        timer.join()  # it may be about to interrupt what is next closed


def _said(error: Exception, seconds: float, tables: str) -> str:
    text = str(error)
    code = getattr(error, "sqlite_errorcode", _CODES.get(text))
    if code == _INTERRUPTED:
        return f"it took more than {seconds:g} s"
    if code == _REFUSED:
        return "allowed is one SELECT"
    if code == _TOO_BIG:
        return f"a cell, or what is made of cells, has more than the {_CELL_BYTES} bytes allowed"
    if text.startswith("no such table: ") and tables:
        return f"{text:.200}; there are {tables:.300}"
    return f"{text:.200}"


def _authorize(action: int, first: str | None, second: str | None, *rest: Any) -> int:
    function = (second or "").lower() if action == sqlite3.SQLITE_FUNCTION else ""
    allowed = action in _ALLOWED and function not in _BARRED
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _written(rows: sqlite3.Cursor, most: int) -> str:
    """Columns and rows as CSV, and why there are no more of them."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column[0] for column in rows.description])
    for count, row in enumerate(rows):
        if count == most:
            out.write(f"[more than {most} rows; the first {most} are shown]\n")
            break
        if out.tell() > _ANSWER:
            out.write(f"[more rows, after {count} of {_ANSWER} characters]\n")
            break
        writer.writerow(row)
    return out.getvalue().rstrip("\n")


# ---- trim ---------------------------------------------------------------------------------------


def _with_trims(database: sqlite3.Connection) -> sqlite3.Connection:
    """A database whose trim, ltrim and rtrim of given characters take time with the text alone."""
    for name, sides in (("trim", (True, True)), ("ltrim", (True, False)), ("rtrim", (False, True))):
        trim = functools.partial(_trimmed, sides=sides)
        database.create_function(name, 2, trim, deterministic=True)
    return database


def _trimmed(value: Any, characters: Any, *, sides: tuple[bool, bool]) -> str | None:
    """SQLite's ``trim(value, characters)``."""
    if value is None or characters is None:
        return None
    text = _as_text(value)
    known = frozenset(_as_text(characters).partition("\0")[0])  # C's text ends there
    begin, end = 0, len(text)
    while sides[0] and begin < end and text[begin] in known:
        begin += 1
    while sides[1] and begin < end and text[end - 1] in known:
        end -= 1
    return text[begin:end]


def _as_text(value: Any) -> str:
    """A value as SQLite writes it; a blob's bytes are taken as text."""
    if isinstance(value, float):
        with closing(sqlite3.connect(":memory:")) as other:
            return other.execute("SELECT CAST(? AS TEXT)", (value,)).fetchone()[0]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
