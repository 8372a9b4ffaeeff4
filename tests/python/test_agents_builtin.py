"""Tools to choose from: what they answer, and what they keep to."""

from __future__ import annotations

import os
import sqlite3
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musespark.agents import act
from musespark.agents.builtin import (
    file_tools,
    python_tool,
    table_tools,
    visual_tools,
)
from musespark.agents.builtin import files as file_code
from musespark.agents.builtin import python as python_code
from musespark.agents.builtin.python import SandboxLimits
from musespark.agents.tools import Content, Tool
from musespark.errors import InvalidRequest, SandboxUnavailable
from support.scripted_chat import Script, call

# ---- tables ------------------------------------------------------------------------------------


def tables(folder: Path, **more: Any) -> tuple[Tool, Tool]:
    (folder / "spend.csv").write_text("month;spend\nApril;502\nMay;912.5\nJune;\n\nJuly;12;\n")
    describe, query = table_tools({"spend": folder / "spend.csv"}, **more)
    return describe, query


def test_csv_files_in_sql(tmp_path: Path) -> None:
    describe, query = tables(tmp_path)
    assert describe({}) == "spend (month, spend): 4 rows"
    ordered = "SELECT month, spend FROM spend ORDER BY spend DESC"
    assert query({"sql": ordered}) == "month,spend\nMay,912.5\nApril,502\nJuly,12\nJune,"
    (tmp_path / "spend.csv").write_text("month;spend\nMay;1\n")  # read at each query
    assert query({"sql": "SELECT count(*) AS n FROM spend"}) == "n\n1"
    _, short = table_tools({"spend": tmp_path / "spend.csv"}, max_rows=2)
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 9) SELECT * FROM n"
    assert short({"sql": many}).endswith("[more than 2 rows; the first 2 are shown]")


def test_cells_are_numbers_where_nothing_is_lost(tmp_path: Path) -> None:
    cells = ["007", "0", "-0.5", "12345678901234567890", "9223372036854775807", "1e999", "1e3"]
    (tmp_path / "a.csv").write_text("\n".join(["cell", *cells]))
    _, query = table_tools({"a": tmp_path / "a.csv"})
    found = query({"sql": "SELECT cell, typeof(cell) FROM a"}).splitlines()[1:]
    assert found == [
        *("007,text", "0,integer", "-0.5,real", "12345678901234567890,text"),
        *("9223372036854775807,integer", "1e999,text", "1000.0,real"),
    ]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="SQLite's limit cannot be set")
def test_queries_that_would_fill_the_memory(tmp_path: Path) -> None:
    _, query = tables(tmp_path)
    double = "WITH RECURSIVE d(x) AS (SELECT 'ab' UNION ALL SELECT x || x FROM d) SELECT 1 FROM d"
    for sql in ("SELECT hex(zeroblob(100000000))", f"{double} LIMIT 40 OFFSET 39"):
        with pytest.raises(InvalidRequest, match="sql: a cell, or what is made of cells, has more"):
            query({"sql": sql})
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 29) "
    told = query({"sql": many + "SELECT hex(zeroblob(60000)) FROM n"})
    assert told.endswith("[more rows, after 9 of 1048576 characters]") and len(told) < 2_000_000


@pytest.mark.skipif(sys.version_info < (3, 11), reason="SQLite's limits cannot be set")
def test_what_takes_time_within_one_function_is_short(tmp_path: Path) -> None:
    """SQLite does not look at the clock in there: this took 20 s and more."""
    _, query = tables(tmp_path)
    for sql, says in (
        ("SELECT instr(hex(zeroblob(4000000)), hex(zeroblob(2000000)) || '1')", "131072 bytes"),
        ("SELECT replace(hex(zeroblob(65537)), '00', '1')", "has more than the 131072 bytes"),
        (
            "SELECT hex(zeroblob(60000)) LIKE '%' || hex(zeroblob(250)) || '1'",
            "pattern too complex",
        ),
        (
            "SELECT hex(zeroblob(60000)) GLOB '*' || hex(zeroblob(250)) || '1'",
            "pattern too complex",
        ),
    ):
        with pytest.raises(InvalidRequest, match=f"sql: .*{says}"):
            query({"sql": sql})
    found = query({"sql": "SELECT instr(hex(zeroblob(65535)), '1'), 'May' LIKE '%a_' AS b"})
    assert found.splitlines()[1] == "0,1"


def test_rows_that_take_long_are_ended_at_the_next_one(tmp_path: Path) -> None:
    """There are too few for a look at the clock by SQLite's steps."""
    _, query = tables(tmp_path, max_seconds=0.05)
    rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 99) "
    slow = "SELECT sum(instr(hex(zeroblob(65000)), hex(zeroblob(30000 + i)) || '1')) FROM n"
    with pytest.raises(InvalidRequest, match=r"sql: it took more than 0\.05 s"):
        query({"sql": rows + slow})


@pytest.mark.skipif(sys.version_info < (3, 11), reason="SQLite's limits cannot be set")
def test_cells_that_are_longer_than_a_query_reads(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute("CREATE TABLE t (name, photo)")
        sizes = {"b": 131_000, "a": 3_000_000}
        for name, size in sizes.items():
            database.execute("INSERT INTO t VALUES (?, zeroblob(?))", (name, size))
    (tmp_path / "a.csv").write_text(f"name,said\na,{'é' * 131_000}\nb,{'e' * 131_000}\n")
    for path, column in (("a.db", "photo"), ("a.csv", "said")):
        describe, query = table_tools({"t": tmp_path / path})
        assert describe({}) == f"t (name, {column}): 2 rows"
        assert query({"sql": f"SELECT name, typeof({column}) IS NULL FROM t ORDER BY name"})
        assert query({"sql": f"SELECT length({column}) FROM t WHERE name = 'b'"}).endswith("131000")
        with pytest.raises(InvalidRequest, match=r"sql: a cell, or .* more than the 131072 bytes"):
            query({"sql": f"SELECT {column} FROM t"})


def test_views_that_do_not_end(tmp_path: Path) -> None:
    forever = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT i FROM n"
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute(f"CREATE VIEW v AS {forever}")
    with pytest.raises(InvalidRequest, match=r"files: it took more than 0\.05 s"):
        table_tools({"a": tmp_path / "a.db"}, max_seconds=0.05)


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM t",
        "UPDATE t SET a = 1",
        "INSERT INTO t VALUES (1)",
        "DROP TABLE t",
        "CREATE TABLE u (a)",
        "ATTACH DATABASE 'other.db' AS o",
        "PRAGMA writable_schema = 1",
        "SELECT load_extension('x')",
        "SELECT * FROM pragma_database_list",
        "VACUUM INTO 'copy.db'",
        "SELECT 1; SELECT 2",
        "",
    ],
)
def test_tables_are_only_read(tmp_path: Path, sql: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with sqlite3.connect("a.db") as database:
        database.execute("CREATE TABLE t (a)")
        database.execute("INSERT INTO t VALUES (7)")
    before = (tmp_path / "a.db").read_bytes()
    describe, query = table_tools({"any": "a.db"})
    assert describe({}) == "t (a): 1 rows" and query({"sql": "SELECT a FROM t"}) == "a\n7"
    with pytest.raises(InvalidRequest, match="sql: "):
        query({"sql": sql})
    assert (tmp_path / "a.db").read_bytes() == before and os.listdir(tmp_path) == ["a.db"]


def test_tables_that_are_none_and_queries_that_do_not_end(tmp_path: Path) -> None:
    _, query = tables(tmp_path, max_seconds=0.05)
    forever = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT max(i) FROM n"
    with pytest.raises(InvalidRequest, match=r"sql: it took more than 0\.05 s"):
        query({"sql": forever})
    with pytest.raises(InvalidRequest, match="sql: no such column: cost"):
        query({"sql": "SELECT cost FROM spend"})
    (tmp_path / "bad.csv").write_text("a,A\n1,2\n")
    (tmp_path / "wide.csv").write_text("a,b\n1,2\n1,2,3\n")
    (tmp_path / "latin.csv").write_bytes(b"a,b\ncaf\xe9,1\n")
    for files, says in [
        ({}, "files: got {}, allowed is a dict name: path"),
        ({"a": tmp_path / "none.csv"}, r"files\['a'\]: no file"),
        ({"a": tmp_path / "wide.csv"}, r"files\['a'\]: line 3 has 3 cells, the first line 2"),
        ({"a": tmp_path / "latin.csv"}, r"files\['a'\]: byte 7 is no UTF-8"),
        ({"a": tmp_path / "bad.csv"}, r"files\['a'\]: got the column 'A' twice in .*\['a', 'A'\]"),
    ]:
        with pytest.raises(InvalidRequest, match=says):
            table_tools(files)
    for name in ("max_rows", "max_seconds"):
        with pytest.raises(InvalidRequest, match=f"{name}: got 0"):
            tables(tmp_path, **{name: 0})


# ---- files -------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Tool, Tool]:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "deep").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret.txt").write_text("the secret word")
    (inside / "a.txt").write_text("one\nThe word is here\nthree\n")
    (inside / "deep" / "b.md").write_text("another WORD\n")
    (inside / "image.bin").write_bytes(b"word\0\xff")
    (inside / "link.txt").symlink_to(outside / "secret.txt")
    (inside / "way").symlink_to(outside)
    os.mkfifo(inside / "pipe.txt")
    search, read = file_tools({"docs": inside})
    return search, read


def test_files_are_found_and_read(folders: tuple[Tool, Tool]) -> None:
    search, read = folders
    found = search({"text": "word"})
    assert found.splitlines() == [
        *("docs/a.txt:2: The word is here", "docs/deep/b.md:1: another WORD"),
        "[not searched, large or no text: 2]",
    ]
    assert search({"text": "word", "names": "*.md"}) == "docs/deep/b.md:1: another WORD"
    assert search({"text": "nowhere"}).startswith("nothing found in 2 files")
    assert read({"path": "docs/a.txt", "line": 2}) == "The word is here\nthree"


def test_searches_say_what_they_left_out(
    folders: tuple[Tool, Tool], tmp_path: Path, monkeypatch: Any
) -> None:
    search, _ = folders
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "lines.txt").write_text("word\n" * 500)
    (tmp_path / "many" / "data.bin").write_bytes(b"word\0")
    many, _ = file_tools({"many": tmp_path / "many"})
    lines = many({"text": "word"}).splitlines()
    assert len(lines) == file_code.MAX_FOUND + 2
    assert lines[-2:] == [
        "[not searched, large or no text: 1]",
        "[the search ended here; searched: 1; ask for less]",
    ]
    ended = "nothing found in {0} files\n[the search ended here; searched: {0}; ask for less]"
    monkeypatch.setattr(file_code, "MAX_FILES", 1)
    assert search({"text": "nowhere"}) == ended.format(1)
    monkeypatch.setattr(file_code, "MAX_SECONDS", -1.0)
    assert search({"text": "nowhere"}) == ended.format(0)


@pytest.mark.parametrize(
    "path",
    [
        "docs/../outside/secret.txt",
        "docs/link.txt",
        "docs/way/secret.txt",
        "docs/./a.txt",
        "docs//a.txt",
        "docs/pipe.txt",
        "docs/image.bin",
        "docs/deep",
        "docs/none.txt",
        "docs",
        "/etc/passwd",
        "outside/secret.txt",
        "docs/a.txt\0",
    ],
)
def test_no_path_leads_out(folders: tuple[Tool, Tool], path: str) -> None:
    search, read = folders
    with pytest.raises(InvalidRequest, match="path: "):
        read({"path": path})
    assert "secret" not in search({"text": "secret"})


def test_what_is_no_folder(tmp_path: Path) -> None:
    for given, says in [
        ({}, "folders: got {}"),
        ({"a/b": tmp_path}, "folders: got the name 'a/b'"),
        ({"a": tmp_path / "none"}, r"folders\['a'\]: no folder"),
    ]:
        with pytest.raises(InvalidRequest, match=says):
            file_tools(given)


# ---- Python ------------------------------------------------------------------------------------


SHARED = "import ctypes\nshared = ctypes.CDLL(None).shmget"  # memory that no limit counts


@pytest.fixture(scope="module")
def run_python() -> Tool:
    limits = SandboxLimits(seconds=2, memory=256 << 20, files=1 << 20, output=4096)
    try:
        return python_tool(limits)
    except SandboxUnavailable as error:
        pytest.skip(str(error))


def test_programs_print(run_python: Tool) -> None:
    code = "import statistics\nprint(statistics.mean([1, 2]))\nopen('a', 'w').write('b')"
    assert run_python({"code": code}) == str(statistics.mean([1, 2]))
    listed = run_python({"code": "import os\nprint(os.getcwd(), os.listdir('.'))"})
    assert listed == "/work []"  # nothing is kept
    pair = "import socket\na, b = socket.socketpair()\na.send(b'x')\nprint(b.recv(9))"
    assert run_python({"code": f"{pair}\nsocket.socket(socket.AF_INET6).close()"}) == "b'x'"
    failed = run_python({"code": "print(1)\n1/0"})
    assert failed.startswith("1\n") and failed.endswith("[ended with status 1]")
    assert run_python({"code": "import sys; sys.exit(124)"}) == "[ended with status 124]"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import socket\nsocket.create_connection(('127.0.0.1', 80), 1)", "unreachable"),
        ("import socket\nsocket.socket(socket.AF_VSOCK)", "Operation not permitted"),
        ("import socket\nsocket.socket(socket.AF_NETLINK, 3)", "Operation not permitted"),
        ("import socket\nsocket.socket(socket.AF_PACKET, 3)", "Operation not permitted"),
        ("import socket\nsocket.socketpair(socket.AF_VSOCK)", "Operation not permitted"),
        ("print(open('/etc/passwd').read())", "No such file"),
        (f"print(open({str(Path(__file__))!r}).read())", "No such file"),
        ("open('/usr/x', 'w')", "Read-only file system"),
        ("open('/x', 'w')", "Read-only file system"),
        ("open('a', 'w').write('x' * (2 << 20))", "File too large"),
        (
            "for i in range(3): open(str(i), 'w').write('x' * (1 << 19))",
            "No space left on device",
        ),
        ("x = 'a' * (1 << 30)", "MemoryError"),
        ("import os\nos.memfd_create('a')", "Operation not permitted"),
        (f"{SHARED}\nassert shared(0, 4096, 0o1600) >= 0", "AssertionError"),
        ("import os\nos.fork()", "Operation not permitted"),
        ("import threading\nthreading.Thread(target=print).start()", "can't start new thread"),
        ("import ctypes as c\nl = c.CDLL(None)\nassert l.unshare(0x10000000) == 0", "Assertion"),
        ("import os\nos.kill(1, 9)\nassert os.getpid() < 9\nos.setuid(0)", "not permitted|Invalid"),
    ],
)
def test_programs_are_shut_in(run_python: Tool, code: str, says: str) -> None:
    said = run_python({"code": code})
    assert "[ended with status" in said
    assert any(one in said for one in says.split("|")), said


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("while True: pass", "took more than 2 s"),
        ("import time; time.sleep(60)", "took more than 2 s"),
        ("a" * 70_000, "got 70000 bytes"),
        ("ä" * 40_000, "got 80000 bytes"),
        ("'\ud800'", "a lone surrogate at index 1"),
        ("\0", "a null character"),
    ],
)
def test_programs_that_go_too_far(run_python: Tool, code: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=f"code: .*{says}"):
        run_python({"code": code})


def test_what_is_printed_is_cut_and_nothing_is_told(run_python: Tool) -> None:
    """All that was printed was lost with what was too much; of nothing the model was told ''."""
    note = "\n[ended here: it printed more than 4096 bytes]"
    assert run_python({"code": "while True: print('a' * 99, end='')"}) == "a" * 4096 + note
    said = run_python({"code": "while True: print('é' * 99, end='ab')"})
    assert said.endswith(note) and said.startswith("é" * 99 + "ab") and "\ufffd" not in said
    assert run_python({"code": "2 + 2"}) == "[nothing was printed; print what you want to see]"


def test_programs_may_be_several(run_python: Tool) -> None:
    code = (
        "import os\nif os.fork() == 0: os._exit(7)\nprint(os.waitstatus_to_exitcode(os.wait()[1]))"
    )
    assert python_tool(SandboxLimits(processes=3))({"code": code}) == "7"


def test_without_a_sandbox_nothing_runs(tmp_path: Path, monkeypatch: Any) -> None:
    broken = tmp_path / "sandbox.py"
    text = python_code._CHILD.read_text()
    broken.write_text(text.replace("libc.unshare(spaces)", "-1"))
    monkeypatch.setattr(python_code, "_CHILD", broken)
    with pytest.raises(SandboxUnavailable, match=r"new namespaces \(unshare\).*nothing is run"):
        python_tool()
    monkeypatch.setattr(python_code.platform, "system", lambda: "Plan9")
    with pytest.raises(SandboxUnavailable, match="needs Linux, this is Plan9"):
        python_tool()
    for more, says in [({"seconds": 0}, "seconds: got 0"), ({"memory": 5}, "memory: got 5")]:
        with pytest.raises(InvalidRequest, match=says):
            SandboxLimits(**more)


# ---- pictures ----------------------------------------------------------------------------------


def test_a_crop_comes_back_as_a_picture() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[:50] = 255
    tools = visual_tools([image])
    zoom = next(one for one in tools if "zoom" in one.name)
    assert all("0 to 1000" in one.description for one in tools)
    place = {"bbox_2d": [0, 0, 500, 500], "label": "corner", "img_idx": 0}
    found = act(Script([call(zoom.name, place)], "White."), "What colour?", tools)
    picture, text = found.messages[2]["content"]
    assert picture["type"] == "image" and text["text"] == found.uses[0].answer
    assert isinstance(zoom(place), Content) and found.uses[0].status == "done"
    place |= {"img_idx": 7}
    wrong = act(Script([call(zoom.name, place)], "?"), "?", tools)
    assert wrong.uses[0].answer == "error: img_idx: 7, there are images 0 to 2"
