"""Tables in SQL beside what test_agents_builtin.py has: files of several kinds, what errors are
taken for, and what SQLite's functions may take."""

from __future__ import annotations

import random
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from musespark.agents.builtin import table_tools
from musespark.agents.builtin.tables import _sqlite, _with_trims
from musespark.errors import InvalidRequest


def database(path: Path, table: str, *values: Any) -> Path:
    with closing(sqlite3.connect(path)) as made, made:
        made.execute(f"CREATE TABLE {table} (a)")
        made.executemany(f"INSERT INTO {table} VALUES (?)", [(value,) for value in values])
    return path


def test_csv_and_sqlite_files_beside_each_other(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("a,b\n1,x\n2,y\n")
    first = database(tmp_path / "first.db", "t", 1, 2, 3)
    second = database(tmp_path / "odd name's.db", "t", 2)
    files = {"spend": tmp_path / "b.csv", "one": first, "my shop": second}
    before = first.read_bytes()
    describe, query = table_tools(files)
    assert describe({}).splitlines() == [
        "spend (a, b): 2 rows",
        "one.t (a): 3 rows",
        "my shop.t (a): 1 rows",
    ]
    sql = 'SELECT b FROM spend JOIN one.t USING (a) WHERE a IN (SELECT a FROM "my shop".t)'
    assert query({"sql": sql}) == "b\ny"
    for wrong in ("DELETE FROM one.t", "INSERT INTO spend VALUES (1, 2)", "DETACH one"):
        with pytest.raises(InvalidRequest, match="sql: allowed is one SELECT"):
            query({"sql": wrong})
    assert first.read_bytes() == before
    database(tmp_path / "second.db", "u", 5)
    both = table_tools({"one": first, "two": tmp_path / "second.db"})
    assert both[1]({"sql": "SELECT max(one.t.a), max(two.u.a) FROM one.t, two.u"}).endswith("3,5")
    for name in ("main", "temp"):
        with pytest.raises(InvalidRequest, match=rf"files\['{name}'\]: database {name} is already"):
            table_tools({"spend": tmp_path / "b.csv", name: first})


def test_a_table_that_is_none_is_told_those_that_are(tmp_path: Path) -> None:
    _, query = table_tools({"db": database(tmp_path / "x.db", "orders", 1)})
    with pytest.raises(InvalidRequest, match="sql: no such table: db; there are orders"):
        query({"sql": "SELECT * FROM db"})


def test_files_of_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("name;größe\nÄrger;1\n".encode("cp1252"))
    with pytest.raises(InvalidRequest, match=r"files\['a'\]: byte 7 is no UTF-8, .* encoding="):
        table_tools({"a": tmp_path / "a.csv"})
    _, query = table_tools({"a": tmp_path / "a.csv"}, encoding="cp1252")
    assert query({"sql": "SELECT * FROM a"}) == "name,größe\nÄrger,1"
    with pytest.raises(InvalidRequest, match=r"files\['a'\]: byte 18 is no UTF-16"):
        table_tools({"a": tmp_path / "a.csv"}, encoding="utf-16")
    for wrong in ("nonsense", "base64", "a\0", 5):
        with pytest.raises(InvalidRequest, match="encoding: got"):
            table_tools({"a": tmp_path / "a.csv"}, encoding=wrong)  # type: ignore[arg-type]


def test_first_lines_that_no_table_could_be_made_of(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{'a' * 131_073},b\n1,2\n")
    with pytest.raises(InvalidRequest, match=r"files\['a'\]: field larger than field limit"):
        table_tools({"a": tmp_path / "a.csv"})
    (tmp_path / "a.csv").write_text("Ä,ä\n1,2\n")  # two columns to SQLite
    assert table_tools({"a": tmp_path / "a.csv"})[0]({}) == "a (Ä, ä): 1 rows"


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT interrupted FROM t", "no such column: interrupted"),
        ('SELECT "too big" FROM "too big"', "no such table: too big"),
        ("SELECT a FROM t WHERE [not authorized] = 1", "no such column: not authorized"),
        ("PRAGMA user_version = 1", "allowed is one SELECT"),
        ("SELECT load_extension('x')", "not authorized to use function: load_extension"),
    ],
)
def test_what_a_query_says_is_not_what_an_error_is(tmp_path: Path, sql: str, says: str) -> None:
    _, query = table_tools({"db": database(tmp_path / "x.db", "t", 1)})
    with pytest.raises(InvalidRequest, match=f"sql: {says}"):
        query({"sql": sql})


# ---- trim ---------------------------------------------------------------------------------------


def test_trims_give_what_sqlites_own_give() -> None:
    values: list[Any] = [None, "", "  ab ", "xxaxx", "éaé", "😀a😀", b"xax", 7, -1.5, 1e300, 0.1]
    values += [1.0, 1e-7, "x\0x", "\0x"]
    random.seed(1)
    values += ["".join(random.choices("aé😀 x1.0", k=random.randrange(9))) for _ in range(60)]
    with (
        closing(sqlite3.connect(":memory:")) as own,
        closing(_with_trims(sqlite3.connect(":memory:"))) as ours,
    ):
        for name in ("trim", "ltrim", "rtrim"):
            for value in values:
                for characters in values:
                    sql, given = f"SELECT {name}(?, ?)", (value, characters)
                    found = ours.execute(sql, given).fetchone()
                    assert found == own.execute(sql, given).fetchone(), (name, given)
            assert ours.execute(f"SELECT {name}('  a  ')").fetchone()[0].strip() == "a"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="SQLite's limits cannot be set")
def test_a_trim_of_many_characters_takes_no_time(tmp_path: Path) -> None:
    """3.4 s, which neither the clock nor an interrupt ended."""
    _, query = table_tools({"db": database(tmp_path / "x.db", "t", 1)}, max_seconds=1)
    many = (
        "WITH RECURSIVE n(i, s) AS (SELECT 1, char(256) UNION ALL SELECT i+1, s || char(255 + i) "
    )
    many += "FROM n LIMIT 10900) SELECT max(s) FROM n"
    text = "replace(hex(zeroblob(32000)), '0', 'é')"
    sql = f"SELECT length(trim({text}, ({many}) || 'é')), length({text})"
    began = time.monotonic()
    assert query({"sql": sql}).splitlines()[1] == "0,64000"
    assert time.monotonic() - began < 1


def test_a_files_own_indexes_may_have_trims(tmp_path: Path) -> None:
    path = database(tmp_path / "x.db", "t", "xax")
    with closing(sqlite3.connect(path)) as made, made:
        made.execute("CREATE INDEX i ON t (trim(a, 'x'))")
        made.execute("CREATE VIEW v AS SELECT trim(a, 'x') AS b FROM t")
    with closing(_with_trims(_sqlite(path))) as opened:
        assert opened.execute("SELECT b FROM v").fetchall() == [("a",)]
        found = opened.execute("SELECT a FROM t WHERE trim(a, 'x') = 'a'").fetchall()
        assert found == [("xax",)]
