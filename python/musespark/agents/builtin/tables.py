"""Tables: questions in SQL to CSV and SQLite files, which are only read."""

from __future__ import annotations

import csv
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
from musespark.options import integer, real
from musespark.untrusted import checked_path, read_small_file

MAX_CSV_BYTES = 64 << 20
MAX_ROWS = 100  # of an answer
MAX_SECONDS = 10.0  # of a query
# Of a value in a query, as much as a CSV cell may have; and of what LIKE and GLOB look for. Within
# one function SQLite neither looks at the clock nor can be interrupted, and some take time with the
# product of two lengths: instr and LIKE then 0.1 s, trim of 5,000 characters 3 s. Python 3.10 sets
# no limits; SQLite's own are 1 GB and 50,000 bytes.
_CELL_BYTES = 1 << 17
_PATTERN_BYTES = 500
_ANSWER = 1 << 20  # characters of the cells of an answer, after which no more rows are read
_DELIMITERS = (",", ";", "\t", "|")  # the one that the first line has most of
_STEPS = 10_000  # of SQLite's machine between looks at the clock
_SQLITE = b"SQLite format 3\0"
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
Connect = Callable[[], sqlite3.Connection]


def table_tools(
    files: Mapping[str, str | os.PathLike[str]],
    *,
    max_rows: int = MAX_ROWS,
    max_seconds: float = MAX_SECONDS,
) -> list[Tool]:
    """Tools to ask tables: ``describe_tables()`` and ``query_table(sql)``.

    ``files``: a CSV file of UTF-8 text by the name of its table (its first line has the columns;
    cells that are numbers are numbers, but for such as 007), or one SQLite file alone, by any name.
    They are read at each query, so that a query sees what the file is then. Nothing but SELECT is
    allowed. InvalidRequest for files that are no such tables, and to the model for a query that is
    refused, wrong, too large or too slow.

    ``max_seconds``: of a query, looked at between its rows. From Python 3.11 on a query reads and
    makes no value of more than 131,072 bytes, so that what is done to one takes little of that; a
    column with longer ones may be counted and left out, not read.
    """
    if not isinstance(files, Mapping) or not files:
        raise InvalidRequest(f"files: got {files!r:.60}, allowed is a dict name: path")
    integer("max_rows", max_rows, 1)
    real("max_seconds", max_seconds, 0.001, 1e6, "a number of seconds > 0")
    connect = _opened(files)

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


def _opened(files: Mapping[str, str | os.PathLike[str]]) -> Connect:
    paths = {name: checked_path(path, f"files[{name!r:.40}]") for name, path in files.items()}
    for name, path in paths.items():
        if not isinstance(name, str) or not name:
            raise InvalidRequest(f"files: got the name {name!r:.40}, allowed is a table's, a str")
        if not path.is_file():
            what = "a folder" if path.is_dir() else "nothing"
            raise InvalidRequest(
                f"files[{name!r:.40}]: no file, {os.fspath(path)!r:.200} is {what}"
            )
    if any(map(_is_sqlite, paths.values())):
        if len(paths) > 1:
            raise InvalidRequest(
                f"files: got a SQLite file among {len(paths)} files, allowed is one alone"
            )
        return lambda: _sqlite(next(iter(paths.values())))
    return lambda: _csv_tables(paths)


def _is_sqlite(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def _sqlite(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)


def _csv_tables(paths: Mapping[str, Path]) -> sqlite3.Connection:
    database = sqlite3.connect(":memory:")
    try:
        for name, path in paths.items():
            _fill(database, name, path)
    except BaseException:
        database.close()
        raise
    return database


def _fill(database: sqlite3.Connection, name: str, path: Path) -> None:
    try:
        text = read_small_file(path, MAX_CSV_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"files[{name!r:.40}]: byte {error.start} is no UTF-8") from None
    first = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text), delimiter=max(_DELIMITERS, key=first.count))
    columns = _columns(rows, f"files[{name!r:.40}]")
    try:
        database.execute(f"CREATE TABLE {_quoted(name)} ({', '.join(map(_quoted, columns))})")
        places = ", ".join("?" * len(columns))
        database.executemany(
            f"INSERT INTO {_quoted(name)} VALUES ({places})", _cells(rows, len(columns), name)
        )
    except (sqlite3.Error, csv.Error) as error:
        raise InvalidRequest(f"files[{name!r:.40}]: {error!s:.200}") from None
    database.commit()


def _columns(rows: Iterator[list[str]], where: str) -> list[str]:
    """The first line's; InvalidRequest for none, and for two that SQLite has for one."""
    columns = next(rows, None)
    if not columns:
        what = "an empty file" if columns is None else "an empty first line"
        raise InvalidRequest(f"{where}: got {what}, allowed is a first line with the columns")
    seen: set[str] = set()
    for column in columns:
        if column.lower() in seen:
            raise InvalidRequest(
                f"{where}: got the column {column!r:.60} twice in the first line {columns!r:.80}, "
                "allowed is each name once, upper and lower case alike"
            )
        seen.add(column.lower())
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
    names = database.execute(
        "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name"
    ).fetchall()
    for (name,) in names:
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({_quoted(name)})")]
        (count,) = database.execute(f"SELECT count(*) FROM {_quoted(name)}").fetchone()
        yield f"{name} ({', '.join(columns)}): {count} rows"


def _answer(database: sqlite3.Connection, sql: str, most: int, seconds: float) -> str:
    database.set_authorizer(_authorize)
    with _limited(database, seconds, "sql"):
        cursor = database.execute(sql)
        if cursor.description is None:
            raise InvalidRequest(f"sql: got {sql!r:.80}, allowed is one SELECT")
        return _written(cursor, most)


@contextmanager
def _limited(database: sqlite3.Connection, seconds: float, where: str) -> Iterator[None]:
    """Bounds what is asked in here; InvalidRequest for what SQLite says of it."""
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
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error):
            raise InvalidRequest(f"{where}: it took more than {seconds:g} s") from None
        raise InvalidRequest(f"{where}: {error!s:.200}") from None
    except (sqlite3.Error, sqlite3.Warning, OverflowError) as error:
        raise InvalidRequest(f"{where}: {_said(error):.200}") from None
    finally:
        timer.cancel()
        timer.join()  # it may be about to interrupt what is next closed


def _said(error: Exception) -> str:
    if "not authorized" in str(error):
        return "allowed is one SELECT"
    if "too big" in str(error):
        return f"a cell, or what is made of cells, has more than the {_CELL_BYTES} bytes allowed"
    return str(error)


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
