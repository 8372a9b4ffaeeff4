"""A folder of keys and values of what prompts began with: one file for 64 tokens of a page class.

    <folder>/<first two digits of the key>/<key>.<class>.page

A page's key is a hash (BLAKE2b, 256 bits) of the key of the page before it and its 64 tokens; the
first page's, of a root: everything else that keys and values depend on. So a file holds what
exactly these tokens from position 0 on gave, whoever wrote it, and any prompt that begins with them
can go on from it. Little endian:

    80 bytes    _HEAD: magic, version, arithmetic version, class, 0, bytes of the page, checksum,
                the key
    256 bytes   the tokens, int32; then zeros up to 384
    page        see csrc/cache/saved_pages.h

The checksum (weights/packed.py: it finds damage, not forgery) covers the whole file, with itself as
zero. Files are written aside and renamed, so any number of processes may share a folder; two that
write the same page write the same bytes. Nothing is flushed: what a power cut tears is damaged, and
found. Time stamps are of the last use, those of a prompt's first pages later than those of its
last: the least recently used go first, a path's end before its beginning.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from musespark.errors import CorruptFile
from musespark.weights.files import MappedFile
from musespark.weights.packed import Checksum

MAGIC, VERSION = b"MUSEPAGE", 1
PAGE_TOKENS = 64
_HEAD = struct.Struct("<8sIIIIQQ32s8x")
_SUM_AT = 32
_BEGIN = 384  # of the page
_TRIM_TO = 0.9  # of the limit
_STALE_S = 3600  # after which a partial file is nobody's
_STEP_NS = 1000  # between the time stamps of a path's pages


def page_keys(root: bytes, tokens: np.ndarray) -> list[bytes]:
    """The keys of the whole pages of ``tokens``, from position 0 on."""
    data = np.ascontiguousarray(tokens, "<i4").tobytes()
    keys, key, size = [], root, 4 * PAGE_TOKENS
    for begin in range(0, len(data) - size + 1, size):
        key = hashlib.blake2b(key + data[begin : begin + size], digest_size=32).digest()
        keys.append(key)
    return keys


class PrefixFolder:
    """The files of one folder, at most ``limit`` bytes of them. Any number of threads."""

    def __init__(self, path: Path, limit: int, arithmetic: int):
        self.path, self.limit = path, limit
        self._arithmetic = arithmetic
        self._left = 0  # bytes that may be written before the files are counted again
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def file(self, key: bytes, page_class: int) -> Path:
        name = key.hex()
        return self.path / name[:2] / f"{name}.{page_class}.page"

    def has(self, key: bytes, page_class: int) -> bool:
        return self.file(key, page_class).exists()

    def read(self, key: bytes, page_class: int, tokens: np.ndarray, out: np.ndarray) -> None:
        """A page of these tokens into ``out``, uint8 of its size; FileNotFoundError, and
        CorruptFile naming what is wrong."""
        path = self.file(key, page_class)
        file = MappedFile(path)
        try:
            if file.nbytes != _BEGIN + out.nbytes:
                raise CorruptFile(f"{path}: {file.nbytes} bytes, {_BEGIN + out.nbytes} are needed")
            front = file.read(0, _BEGIN)
            file.read_into(_BEGIN, out)
        finally:
            file.close()
        wanted = self._front(key, page_class, tokens, out)
        if front == wanted:
            return
        for name, at, size in _FIELDS:
            found, needed = front[at : at + size], wanted[at : at + size]
            if found != needed:
                raise CorruptFile(f"{path}: {name} is {found.hex():.64}, not {needed.hex():.64}")

    def write(self, key: bytes, page_class: int, tokens: np.ndarray, page: np.ndarray) -> None:
        """Writes a page; OSError where that fails, and nothing is left of it."""
        path = self.file(key, page_class)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        aside = path.parent / f".{os.getpid()}.{secrets.token_hex(8)}.partial"
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb", buffering=0) as file:
                for part in (self._front(key, page_class, tokens, page), page):
                    view = memoryview(part)
                    while view.nbytes:
                        view = view[file.write(view) :]
            os.replace(aside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise
        self._left -= _BEGIN + page.nbytes

    def _front(self, key: bytes, page_class: int, tokens: np.ndarray, page: np.ndarray) -> bytes:
        """What stands before a page."""

        def head(checksum: int) -> bytes:
            fields = (MAGIC, VERSION, self._arithmetic, page_class, 0, page.nbytes, checksum, key)
            return _HEAD.pack(*fields)

        rest = np.ascontiguousarray(tokens, "<i4").tobytes().ljust(_BEGIN - _HEAD.size, b"\0")
        found = Checksum()
        found.update(head(0) + rest)
        found.update(page)
        return head(int(found.hex(), 16)) + rest

    def used(self, keys: Sequence[bytes], classes: int) -> None:
        """Notes that a path's pages were used now."""
        now = time.time_ns()
        for i, key in enumerate(keys):
            for page_class in range(classes):
                with contextlib.suppress(OSError):  # others may have removed it, or own it
                    stamp = now - i * _STEP_NS
                    os.utime(self.file(key, page_class), ns=(stamp, stamp))

    def remove(self, key: bytes, page_class: int) -> None:
        """Removes a page, if it is there and may be removed."""
        with contextlib.suppress(OSError):
            self.file(key, page_class).unlink()

    def trim(self) -> int:
        """Removes the least recently used where there are more bytes than the limit; how many files
        went. One process at a time, the others leave it to that one."""
        if self._left > 0:
            return 0
        with _locked(self.path / ".lock") as mine:
            if not mine:
                return 0
            files = sorted(self._files())
            total, gone = sum(size for _, size, _ in files), 0
            if total > self.limit:
                for _, size, path in files:
                    if total <= self.limit * _TRIM_TO:
                        break
                    with contextlib.suppress(OSError):
                        os.unlink(path)
                        gone += 1
                    total -= size
            self._left = max(self.limit - total, 0) // 4
        return gone

    def usage(self) -> tuple[int, int]:
        """Files and their bytes now, those of other models too."""
        sizes = [size for _, size, _ in self._files()]
        return len(sizes), sum(sizes)

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """(last use in ns, bytes, path) of each page; removes what killed writers left."""
        old = time.time() - _STALE_S
        with os.scandir(self.path) as folders:
            inner = [f.path for f in folders if len(f.name) == 2 and f.is_dir()]
        for folder in inner:
            with os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):  # another process removed it
                        stat = entry.stat(follow_symlinks=False)
                        if entry.name.endswith(".page"):
                            yield stat.st_mtime_ns, stat.st_size, entry.path
                        elif entry.name.endswith(".partial") and stat.st_mtime < old:
                            os.unlink(entry.path)


# What an error names, where a file's front is not what it should be: name, offset, bytes.
_FIELDS = (
    ("magic", 0, 8),
    ("version", 8, 4),
    ("arithmetic", 12, 4),
    ("class", 16, 4),
    ("bytes", 24, 8),
    ("key", 40, 32),
    ("tokens", _HEAD.size, 4 * PAGE_TOKENS),
    ("checksum", _SUM_AT, 8),
    ("padding", 0, _BEGIN),
)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether the lock file could be locked; it is let go at the end."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)
