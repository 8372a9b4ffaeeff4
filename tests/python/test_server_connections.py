"""The sockets of the server: headers that do not end, clients that say or take nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from uvicorn.server import ServerState

import musespark
from musespark.server import Limits, create_app
from musespark.server.connections import Connection, Door, config_of
from support.serving import serve_process, served, within

MODEL = "spark-nano"
LONG = {"model": MODEL, "prompt": "The fox", "max_tokens": 1900, "min_tokens": 1900}


@pytest.fixture(scope="module")
def model() -> Iterator[musespark.Model]:
    with musespark.load(threads=1) as loaded:
        yield loaded


def connected(url: str, buffer: int | None = None) -> socket.socket:
    """A connection; ``buffer``: bytes that the system takes for its client, about."""
    one = socket.socket()
    one.settimeout(20)
    if buffer is not None:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    host, _, port = urlsplit(url).netloc.partition(":")
    one.connect((host, int(port)))
    return one


def ended(one: socket.socket) -> bool:
    """Whether the server has closed a connection, within a moment."""
    one.settimeout(0.05)
    try:
        return one.recv(1 << 16) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def post(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def test_headers_are_bounded(model) -> None:
    lines = b"".join(b"h%05d: x\r\n" % index for index in range(1000))
    with served(create_app(model)) as url, contextlib.closing(connected(url)) as one:
        sent = 0
        with contextlib.suppress(ConnectionError):
            one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
            while sent < 16 << 20:
                one.sendall(lines)
                sent += len(lines)
        assert sent < 16 << 20, "it takes them all"
        assert httpx.get(f"{url}/health", headers={"x": "a" * 30_000}).status_code == 200


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /health HTTP/1.1\r\nHost: loc",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /he",
    ],
)
def test_headers_that_do_not_come_are_not_waited_for(model, said: bytes) -> None:
    limits = Limits(read_seconds=0.3)
    app = create_app(model, limits=limits)
    with served(app, limits) as url, contextlib.closing(connected(url)) as one:
        one.sendall(said)
        for _ in range(40):  # a byte now and then is not enough
            if ended(one):
                break
            with contextlib.suppress(ConnectionError):
                one.sendall(b"a")
        else:
            pytest.fail("it stays open")


def test_a_request_may_take_longer_than_its_headers(model) -> None:
    limits = Limits(read_seconds=0.1)
    with served(create_app(model, limits=limits), limits) as url:
        body = {**LONG, "n": 16}
        begun = time.monotonic()
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200
        assert time.monotonic() - begun > 0.2, "it was too short for the test to tell"


def test_idle_connections_make_room_for_others(model, monkeypatch) -> None:
    monkeypatch.setattr(Door.__init__, "__defaults__", (8,))
    with served(create_app(model)) as url, contextlib.ExitStack() as opened:
        body = {**LONG, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            idle = [opened.enter_context(contextlib.closing(connected(url))) for _ in range(30)]
            for _ in range(3):
                assert httpx.get(f"{url}/health").status_code == 200
            assert ended(idle[0]) and not ended(idle[-1]), "the longest idle one goes"
            assert sum(not ended(one) for one in idle) <= 8
            assert [line for line in lines if line][-1] == "data: [DONE]", "what runs goes on"


class Idle:
    """A connection that nobody asks anything on, since a moment. ``gone``: told when it goes."""

    def __init__(self, who: str, since: float, gone: list[float], idle: bool = True):
        self.who, self.idle_since, self.idle = who, since, idle
        self.loop = SimpleNamespace(time=lambda: since, call_later=lambda *given: None)
        self.transport = SimpleNamespace(abort=lambda: gone.append(since))
        self.stuck_for = lambda now: 0.0


def test_who_has_the_most_idle_connections_loses_one() -> None:
    gone: list[float] = []
    door = Door(Limits(), most=4)
    for since, who in enumerate(["modest", "greedy", "greedy", "greedy", "greedy", "other"]):
        door.enter(Idle(who, float(since), gone))
    assert gone == [1.0, 2.0]


def test_what_has_a_request_under_way_stays_and_the_newcomer_goes() -> None:
    gone: list[float] = []
    door = Door(Limits(), most=2)
    for since in range(3):
        door.enter(Idle("a", float(since), gone, idle=False))
    assert gone == [2.0]


def test_connections_leave_files_for_what_else_is_opened(monkeypatch) -> None:
    for files, most in ((400, 300), (1 << 20, 1024), (resource.RLIM_INFINITY, 1024)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert Door(Limits()).most == most


def test_too_many_requests_are_told_so(model, monkeypatch) -> None:
    monkeypatch.setattr(Door.__init__, "__defaults__", (2,))  # so that one request may run
    with served(create_app(model), unread=4096) as url:
        body = {**LONG, "stream": True, "n": 4, "logprobs": 5}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()  # held, or the stream is closed
            next(lines)
            full = httpx.post(f"{url}/v1/messages", json=body)
            assert (full.status_code, full.headers["retry-after"]) == (503, "1")
            assert full.json()["error"]["type"] == "overloaded_error"


def test_the_end_does_not_wait_for_a_client_that_takes_nothing() -> None:
    many = {**LONG, "n": 16, "logprobs": 5, "stream": True}  # more than the system keeps
    with serve_process("--threads", "1", "--drain", "1") as (process, url):
        with contextlib.closing(connected(url, 4096)) as one:
            one.sendall(post("/v1/completions", many))
            within(lambda: 'completion"} 30400' in written(url), "it did not end")
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 143
        assert time.monotonic() - begun < 20, "it waits for write_seconds"


def written(url: str) -> str:
    return httpx.get(f"{url}/metrics").text


def test_a_slow_reader_holds_up_nobody(model, monkeypatch) -> None:
    """Neither the engine nor others: rows end, whoever does not read what they wrote."""
    stuck: list[Connection] = []
    pause = Connection.pause_writing
    monkeypatch.setattr(Connection, "pause_writing", lambda one: (stuck.append(one), pause(one)))
    app = create_app(model, limits=Limits(running=4, waiting=8))
    with served(app, unread=4096) as url, contextlib.ExitStack() as opened:
        for _ in range(4):  # as many as may run
            one = opened.enter_context(contextlib.closing(connected(url, 4096)))
            one.sendall(post("/v1/completions", {**LONG, "stream": True, "logprobs": 5}))
        within(lambda: len({*stuck}) == 4, "nobody is slow, so the test cannot tell")
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "What is 47 + 38?"}]}
        answer = httpx.post(f"{url}/v1/chat/completions", json=asked)
        assert answer.json()["choices"][0]["message"]["content"] == "85"
        within(lambda: model._engine.stats()["running"] == 0, "rows wait for who reads them")
        assert all(one.flow.write_paused for one in stuck), "they were read"


@pytest.mark.parametrize("path", ["/v1/completions", "/page/main.js"])
def test_a_client_that_takes_nothing_loses_its_connection(model, path: str, capfd) -> None:
    limits = Limits(write_seconds=0.5)
    many = {**LONG, "n": 4, "logprobs": 5, "stream": True}
    get = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    app = create_app(model, limits=limits)
    with (
        served(app, limits, unread=4096) as url,
        contextlib.closing(connected(url, 4096)) as one,
    ):
        if path.startswith("/v1"):
            one.sendall(post(path, many))
            within(lambda: model._engine.stats()["running"] == 4, "it did not begin")
        else:
            one.sendall(get * 40)
        within(lambda: not held(url, one), "the socket is still there")
        within(lambda: model._engine.stats()["running"] == 0, "its rows are still there")
    assert "without completing" not in capfd.readouterr().err


class Written:
    """A connection with a transport and a clock of the test. ``unsent``: bytes that its client has
    not taken; ``seconds``: what the clock says; ``sock``: what the system knows it by."""

    def __init__(self, limits: Limits, sock: socket.socket | None = None):
        self.sock = sock
        self.unsent, self.seconds, self.aborted, self.closing = 0, 0.0, False, False
        loop = SimpleNamespace(time=lambda: self.seconds, call_later=lambda *given: None)
        config, self.door = config_of(None, limits), Door(limits)
        given = {"config": config, "server_state": ServerState(), "app_state": {}, "_loop": loop}
        self.connection, self._loop = Connection(self.door, **given), loop
        self.connection.connection_made(self)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str) -> Any:
        return self.sock if name == "socket" else None

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.aborted = True

    def later(self, seconds: float, unsent: int) -> bool:
        """Whether the connection is cut off after a while in which its client took something."""
        self.seconds, self.unsent = self.seconds + seconds, unsent
        self.door._sweep(self._loop)
        return self.aborted


@pytest.mark.parametrize("closes", [False, True])
def test_who_is_slow_is_not_cut_off_and_who_takes_next_to_nothing_is(closes: bool) -> None:
    """Neither while an answer is written nor when the last one has been: a KiB a second."""
    one = Written(Limits(write_seconds=60, read_seconds=1e6))
    left = one.unsent = 4 << 20
    one.closing = closes
    if not closes:
        one.connection.pause_writing()
    assert not one.later(1, left)
    for _ in range(50):
        left -= 30 << 10
        assert not one.later(30, left)
    for _ in range(6):
        left -= 1
        assert not one.later(9, left)
    assert one.later(7, left - 1), "it took some bytes in a minute"


def test_who_takes_the_last_of_it_is_not_cut_off() -> None:
    one = Written(Limits(write_seconds=60, read_seconds=1e6))
    one.unsent = 100
    one.connection.pause_writing()
    assert not one.later(1, 100)
    assert not one.later(58, 0)
    assert not one.later(58, 0)
    assert one.later(3, 0)


def test_who_takes_what_the_system_keeps_is_not_cut_off() -> None:
    """Megabytes, before the server could write more."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as client,
        listening.accept()[0] as sock,
    ):
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(bytes(1 << 16))
        client.settimeout(1)
        one = Written(Limits(write_seconds=60, read_seconds=1e6), sock)
        one.unsent = 1000
        one.connection.pause_writing()
        for _ in range(3):
            before = one.connection.unsent()
            while one.connection.unsent() == before:
                client.recv(1 << 16)
            assert not one.later(50, 1000)
        assert one.later(61, 1000)


@pytest.mark.parametrize("more", [b"", b"\r\n", b"GET /health HTTP/1.1\r\n", b"x" * 5000])
def test_a_client_that_says_more_and_goes_away_is_noticed(more: bytes) -> None:
    asked, gone = threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            asked.set()
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

    with served(app) as url, contextlib.closing(connected(url)) as one:
        one.sendall(post("/", {}))
        assert asked.wait(10)
        one.sendall(more)
        assert not gone.wait(0.1)
        one.close()
        assert gone.wait(10), "nobody noticed"


def test_of_who_says_much_more_no_more_is_read_before_its_answer(monkeypatch) -> None:
    asked, go_on, read = threading.Event(), threading.Event(), list[int]()
    take = Connection.data_received
    noted = lambda one, data: (read.append(len(data)), take(one, data))  # noqa: E731
    monkeypatch.setattr(Connection, "data_received", noted)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            asked.set()
            await asyncio.to_thread(go_on.wait, 30)
            while (await receive()).get("more_body"):
                pass
            said = scope["path"].encode()
            length = (b"content-length", b"%d" % len(said))
            await send({"type": "http.response.start", "status": 200, "headers": [length]})
            await send({"type": "http.response.body", "body": said})

    with served(app) as url, contextlib.closing(connected(url)) as one:
        one.sendall(post("/first", {}))
        assert asked.wait(10)
        more = threading.Thread(target=one.sendall, args=[post("/second", {"a": "b" * (1 << 23)})])
        more.start()
        within(lambda: sum(read) > 1 << 16, "nothing came early")
        time.sleep(0.1)
        assert sum(read) < 1 << 20, "all of it was taken"
        go_on.set()
        told = b""
        while b"/second" not in told:
            piece = one.recv(1 << 16)
            assert piece, f"the connection was ended after {told!r}"
            told += piece
        assert told.index(b"/first") < told.index(b"/second")
        more.join(10)


def test_what_is_asked_early_is_answered_in_order() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            while (await receive()).get("more_body"):
                pass
            said = scope["path"].encode()
            length = (b"content-length", b"%d" % len(said))
            await send({"type": "http.response.start", "status": 200, "headers": [length]})
            await asyncio.sleep(0.01)
            await send({"type": "http.response.body", "body": said})

    with served(app) as url, contextlib.closing(connected(url)) as one:
        asked = b"".join(post(f"/{index}-th-of-them", {"a": "b" * 5000}) for index in range(10))
        one.sendall(asked[:30_000])
        one.sendall(asked[30_000:])
        told = b""
        while told.count(b"-th-of-them") < 10:
            told += one.recv(1 << 16)
        places = [told.index(b"/%d-th-of-them" % index) for index in range(10)]
        assert places == sorted(places)


def held(url: str, one: socket.socket) -> bool:
    """Whether the server's end of a connection is open, by the table of the system."""
    ours, port = urlsplit(url).port, one.getsockname()[1]
    ends = f":{ours:04X}", f":{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if local.endswith(ends[0]) and remote.endswith(ends[1]):
            return state == "01"  # established
    return False
