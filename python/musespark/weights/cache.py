"""The packing cache: what was packed once is found again by the identity of its source.

A file's name is a hash of the source (folder path; name, size, modification time of every file;
content of the small ones; header of the weight files), the recipe and the versions of container,
arithmetic and recipes. Files appear whole or not at all, and one process packs while others wait.
Nothing is removed unless asked for (``musespark cache``).
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import os
import pwd
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from musespark import _core
from musespark.errors import Error, InvalidRequest
from musespark.weights.pack import TensorSource
from musespark.weights.packed import SOURCE_KEY, VERSION
from musespark.weights.safetensors import SafetensorsFile

_POLL_S = 0.1  # how often a waiting process looks whether the other is done
RECIPE_VERSION = 7  # bumped whenever pack.py would write other bytes for the same source


def cache_folder() -> Path:
    """``$MUSESPARK_CACHE``, else ``$XDG_CACHE_HOME/musespark``, else ``~/.cache/musespark``."""
    own = os.environ.get("MUSESPARK_CACHE")
    if own:
        return Path(own)
    home = os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir  # an empty HOME is none
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    return Path(base) / "musespark"


def source_key(
    folder: Path,
    checkpoint: TensorSource,
    assets: dict[str, bytes],
    quantize: str,
    measured: tuple[bool, bool],
) -> str:
    """64 hexadecimal digits that change whenever the packed file would.

    `measured`: whether it records formats of keys and values, and of a tower's layers.
    """
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
            digest.update(len(data).to_bytes(8, "little") + data)

    add(VERSION, _core.arithmetic_version, RECIPE_VERSION, quantize, measured, folder.resolve())
    for file in sorted(checkpoint.files, key=lambda f: f.path.name):
        stat = file.mapped.stat
        add(file.path.name, stat.st_size, stat.st_mtime_ns, stat.st_ino, file.header)
    for name in sorted(assets):
        add(name, assets[name])
    return digest.hexdigest()


def packed_folder() -> Path:
    """Where the packed files lie."""
    return cache_folder() / "packed"


def cached_path(key: str, folder: Path, quantize: str) -> Path:
    """Where the packed file of `key` is or will be; its name says of what it was made, and how."""
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name)[:60].strip("-.") or "model"
    return packed_folder() / f"{label}-{quantize}-{key[:24]}.safetensors"


def mark_used(path: Path) -> None:
    """Sets the time of last use that :func:`entries` reports, where the folder lets us."""
    with contextlib.suppress(OSError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


# ---- one process packs, the others wait --------------------------------------------------------


@contextlib.contextmanager
def packing_lock(path: Path, waiting: Callable[[int], None] = lambda done: None) -> Iterator[bool]:
    """Holds the right to write `path`, among processes and threads; creates its folder.

    `waiting` is called now and then while another holds it, with the bytes that one has written.
    Left-over partial files of `path`, from a process that was killed, are removed: the holder of
    the lock is the only one who writes there. Yields whether it had to wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    waited = False
    while (lock := _try_lock(path)) is None:
        waited = True
        waiting(max(map(_size, _partials(path)), default=0))
        time.sleep(_POLL_S)
    with _held(lock, path):
        for partial in _partials(path):
            partial.unlink(missing_ok=True)
        yield waited


def _lock_path(path: Path) -> Path:
    return path.with_suffix(".lock")


def _partials(path: Path) -> list[Path]:
    return list(path.parent.glob(f".{glob.escape(path.name)}.*.partial"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # renamed or removed meanwhile
        return 0


def _try_lock(path: Path) -> IO[bytes] | None:
    """The open and locked lock file of `path`, None where another holds it."""
    while True:
        lock = _lock_path(path).open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        # The holder removes the name before it lets go. Who locked the nameless file holds
        # nothing, for the next comer makes a new one: try that.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), _lock_path(path).stat()):
                return lock
        lock.close()


@contextlib.contextmanager
def _held(lock: IO[bytes], path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        _lock_path(path).unlink(missing_ok=True)
        lock.close()


# ---- what is in the cache ----------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A packed file, or what a process that was killed left of one (``whole`` is false).

    ``source``: the folder or file it was made from; None where the file does not say.
    """

    name: str
    path: Path
    bytes: int
    used: float  # seconds since the epoch
    whole: bool
    source: str | None = None

    @property
    def stale(self) -> bool:
        """Whether what it was made from is gone: nothing will ask for it again."""
        return self.source is not None and not os.path.lexists(self.source)


def _source(path: Path) -> str | None:
    try:
        file = SafetensorsFile(path)
    except (Error, OSError):  # damaged or removed; loading tells
        return None
    file.close()
    return file.metadata.get(SOURCE_KEY)


def entries() -> list[Entry]:
    """Everything in the cache, last used first; [] where there is no cache."""
    found = []
    for path in packed_folder().glob("*"):
        whole = path.suffix == ".safetensors"
        if path.suffix not in (".safetensors", ".partial", ".lock"):
            continue
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            stat = path.stat()
            used = max(stat.st_atime, stat.st_mtime)
            name = path.stem if whole else path.name
            source = _source(path) if whole else None
            found.append(Entry(name, path, stat.st_size, used, whole, source))
    return sorted(found, key=lambda entry: (not entry.whole, -entry.used, entry.name))


def find(name: str) -> Entry:
    """The entry of that name, or the only one whose name begins so; InvalidRequest otherwise."""
    if not name:
        raise InvalidRequest("cache: got an empty name, allowed is a name or its beginning")
    found = [entry for entry in entries() if entry.whole and entry.name.startswith(name)]
    exact = [entry for entry in found if entry.name == name]
    if len(exact or found) != 1:
        many = f"{len(found)} names begin so" if found else "nothing of that name"
        raise InvalidRequest(f"cache: {name!r}: {many} in {packed_folder()}")
    return (exact or found)[0]


def remove(entry: Entry) -> bool:
    """Removes an entry; False where another process is packing it.

    A process that runs the model keeps it: a mapped file stays until its last user is gone.
    """
    packed = entry.path
    if not entry.whole:
        stem = re.sub(r"(\.\d+\.[0-9a-f]+\.partial|\.lock)$", "", entry.name).removeprefix(".")
        packed = entry.path.parent / f"{stem.removesuffix('.safetensors')}.safetensors"
    lock = _try_lock(packed)
    if lock is None:
        return False
    with _held(lock, packed):
        entry.path.unlink(missing_ok=True)
    return True
