"""A server on a free port of loopback, in a thread of the test or as a process of its own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from musespark.server import Limits
from musespark.server.connections import config_of


@contextlib.contextmanager
def served(app: Any, limits: Limits | None = None, unread: int | None = None) -> Iterator[str]:
    """The URL of an ASGI application that runs in a thread. ``unread``: bytes that the system keeps
    of what a client does not read, about."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        if unread is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, unread)
        config = config_of(app, limits or Limits(), timeout_graceful_shutdown=5)
        config.lifespan = "auto"  # of applications that are not ours
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive(), "the server did not end"


@contextlib.contextmanager
def serve_process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``musespark serve`` on a free port, and its URL."""
    command = [sys.executable, "-m", "musespark", "serve", "--port", "0", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "http://" in line, process.stderr.read() if process.stderr else line
            yield process, "http" + line.rpartition(": http")[2].strip().removesuffix("/v1")
        finally:
            process.kill()


def within(condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
    """Waits for a condition; AssertionError where it does not come, however busy the machine is."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)
