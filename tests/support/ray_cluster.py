"""A Ray cluster of several processes on this machine, and what runs in it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from support.serving import within


@contextlib.contextmanager
def local_cluster(cpus: int) -> Iterator[None]:
    """A cluster of its own, which talks to nobody; at the end none of its processes is left."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets have short names
    (folder / "token").write_text(secrets.token_hex(32))
    told = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        # A replica that does not say within a tenth of a second how many wait there is passed
        # over, and it is asked again after ten: on busy cores that is chance, and a router's tests
        # are about its choice.
        "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "120",
        "RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S": "600",
    }
    before = {name: os.environ.get(name) for name in told}
    others = descendants()  # what earlier tests left running: a resource tracker, say
    os.environ.update(told)
    try:
        import ray

        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=100 << 20,
            logging_level="error",
            _temp_dir=str(folder),
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            yield
        finally:
            processes = {pid: begun(pid) for pid in descendants().keys() - others.keys()}
            ray.shutdown()
            end(processes, 60)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        shutil.rmtree(folder, ignore_errors=True)


def end(processes: dict[int, str | None], seconds: float) -> None:
    """Waits until these, by id and when they began, have ended; kills what has not by then, and
    warns: on busy cores Ray's own parts take long to see that the others are gone."""

    def left() -> list[int]:
        return [pid for pid, began in processes.items() if began and begun(pid) == began]

    with contextlib.suppress(AssertionError):
        within(lambda: not left(), "some are left", seconds)
    for pid in left():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            name = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            os.kill(pid, signal.SIGKILL)
            warnings.warn(f"Ray left a process, which was killed: {name:.200}", stacklevel=1)
    within(lambda: not left(), f"cannot be killed: {left()}")


def begun(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def actors(name: str) -> list[int]:
    """The process ids of this test's actors whose class has a name."""
    title = f"ray::{name}".encode()
    return sorted(pid for pid, command in descendants().items() if command.startswith(title))


def descendants() -> dict[int, bytes]:
    """The processes that this one started, and those that they did: id to command line."""
    parents, commands = {}, {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(folder.name)] = int(parent)
                commands[int(folder.name)] = (folder / "cmdline").read_bytes()
    found, new = set(), {os.getpid()}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new}
        found |= new
    return {pid: commands[pid] for pid in found}
