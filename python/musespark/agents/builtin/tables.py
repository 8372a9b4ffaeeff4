"""Tables: questions in SQL to CSV and SQLite files, which are only read."""

from __future__ import annotations

import csv
import io
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from musespark.agents.tools import Tool
from musespark.errors import InvalidRequest
from musespark.untrusted import checked_path, read_small_file

MAX_CSV_BYTES = 64 << 20
MAX_ROWS = 100  # of an answer
MAX_SECONDS = 10.0  # of a query
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
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
Connect = Callable[[], sqlite3.Connection]


def table_tools(
    files: Mapping[str, str | os.PathLike[str]],
    *,
    max_rows: int = MAX_ROWS,
    max_seconds: float = MAX_SECONDS,
) -> list[Tool]:
    """Tools to ask tables: ``describe_tables()`` and ``query_table(sql)``.

    ``files``: a CSV file by the name of its table (its first line has the columns; cells that are
    numbers are numbers), or one SQLite file alone, by any name. They are read at each query, so
    that a query sees what the file is then. Nothing but SELECT is allowed. InvalidRequest for files
    that are no such tables, and to the model for a query that is refused, wrong, or too slow.
    """
    if not isinstance(files, Mapping) or not files:
        raise InvalidRequest(f"files: got {files!r:.60}, allowed is a dict name: path")
    connect = _opened(files)

    def describe_tables() -> str:
        """The tables that there are, their columns and how many rows they have."""
        with closing(connect()) as database:
            return "\n".join(_described(database))

    def query_table(sql: str) -> str:
        """Ask the tables a question in SQL (SQLite's). The answer's first line has the columns.

        Args:
            sql: one SELECT
        """
        with closing(connect()) as database:
            return _answer(database, sql, max_rows, max_seconds)

    with closing(connect()) as database:  # says at once what cannot be read
        list(_described(database))
    return [Tool.of(describe_tables), Tool.of(query_table)]


# ---- opening ------------------------------------------------------------------------------------


def _opened(files: Mapping[str, str | os.PathLike[str]]) -> Connect:
    paths = {name: checked_path(path, f"files[{name!r:.40}]") for name, path in files.items()}
    for name, path in paths.items():
        if not path.is_file():
            raise InvalidRequest(f"files[{name!r:.40}]: no file {os.fspath(path)!r:.200}")
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
    text = read_small_file(path, MAX_CSV_BYTES).decode("utf-8-sig", errors="replace")
    first = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text), delimiter=max(_DELIMITERS, key=first.count))
    columns = next(rows, None)
    if not columns or len(set(map(str.lower, columns))) < len(columns):
        raise InvalidRequest(
            f"files[{name!r:.40}]: its first line {columns!r:.80} names no columns"
        )
    try:
        database.execute(f"CREATE TABLE {_quoted(name)} ({', '.join(map(_quoted, columns))})")
        places = ", ".join("?" * len(columns))
        database.executemany(
            f"INSERT INTO {_quoted(name)} VALUES ({places})", _cells(rows, len(columns))
        )
    except (sqlite3.Error, csv.Error) as error:
        raise InvalidRequest(f"files[{name!r:.40}]: {error!s:.200}") from None
    database.commit()


def _cells(rows: Iterator[list[str]], width: int) -> Iterator[list[Any]]:
    """Rows as wide as the first line; what is short is filled with nulls, what is over is left."""
    for row in rows:
        if row:
            cells = [_cell(text) for text in row[:width]]
            yield cells + [None] * (width - len(cells))


def _cell(text: str) -> Any:
    bare = text.strip()
    if not bare:
        return None
    if len(bare) < 30 and _NUMBER.fullmatch(bare):
        return float(bare) if any(c in bare for c in ".eE") or len(bare) > 18 else int(bare)
    return text


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# ---- asking -------------------------------------------------------------------------------------


def _described(database: sqlite3.Connection) -> Iterator[str]:
    names = database.execute(
        "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name"
    ).fetchall()
    for (name,) in names:
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({_quoted(name)})")]
        (count,) = database.execute(f"SELECT count(*) FROM {_quoted(name)}").fetchone()
        yield f"{name} ({', '.join(columns)}): {count} rows"


def _answer(database: sqlite3.Connection, sql: str, most: int, seconds: float) -> str:
    end = time.monotonic() + seconds
    database.set_authorizer(_authorize)
    database.set_progress_handler(lambda: time.monotonic() > end, _STEPS)
    try:
        cursor = database.execute(sql)
        if cursor.description is None:
            raise InvalidRequest(f"sql: got {sql!r:.80}, allowed is one SELECT")
        rows = cursor.fetchmany(most + 1)
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error):
            raise InvalidRequest(f"sql: it took more than {seconds:g} s") from None
        raise InvalidRequest(f"sql: {error!s:.200}") from None
    except (sqlite3.Error, sqlite3.Warning, OverflowError) as error:
        what = "allowed is one SELECT" if "not authorized" in str(error) else str(error)
        raise InvalidRequest(f"sql: {what:.200}") from None
    return _written([column[0] for column in cursor.description], rows, most)


def _authorize(action: int, first: str | None, second: str | None, *rest: Any) -> int:
    function = (second or "").lower() if action == sqlite3.SQLITE_FUNCTION else ""
    allowed = action in _ALLOWED and function not in _BARRED
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _written(columns: Sequence[str], rows: Sequence[Sequence[Any]], most: int) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows[:most])
    if len(rows) > most:
        out.write(f"[more than {most} rows; the first {most} are shown]\n")
    return out.getvalue().rstrip("\n")
