"""Large files: mapping them, and writing so that nothing half-done remains."""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from musespark.errors import CorruptFile, Error
from musespark.untrusted import open_regular


class WriteFailed(Error, OSError):  # noqa: N818 - named as the other public errors
    """A file could not be written whole (disk full, quota, permission); nothing is left of it."""


class MappedFile:
    """A regular file mapped read-only; ``bytes`` is uint8 over all of it.

    The map shows the file as it is: who truncates it while it is mapped makes later reads of the
    lost part fail with SIGBUS, as with every mapped model file. Replace such files by renaming
    (which this package always does); the map then keeps the old content.
    """

    def __init__(self, path: Path):
        self.path = path
        fd = open_regular(path)
        try:
            self.stat = os.fstat(fd)
            size = self.stat.st_size
            if size == 0:
                raise CorruptFile(f"{path}: the file is empty")
            self._map: mmap.mmap | None = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)
        self.bytes: np.ndarray = np.frombuffer(self._map, dtype=np.uint8)

    @property
    def nbytes(self) -> int:
        """Length of the file when it was mapped."""
        return self.stat.st_size

    def forget(self, begin: int, end: int) -> None:
        """Tells the kernel that bytes begin … end are not needed again soon (drops clean pages)."""
        page = mmap.PAGESIZE
        first, last = -(-begin // page) * page, end // page * page
        if self._map is not None and last > first and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        """Drops this object's hold; the map itself goes when the last view of it is gone."""
        self.bytes = np.empty(0, np.uint8)
        self._map = None


class AsideFile:
    """A file written aside, as ``.<name>.<random>.partial``, until :meth:`commit` renames it."""

    def __init__(self, path: Path):
        self.path = path
        self.aside = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(self.aside, flags, 0o666)
        self.position = 0

    def write(self, data: bytes | memoryview | np.ndarray) -> None:
        """Appends all of `data`."""
        self.write_at(self.position, data)
        self.position += memoryview(data).nbytes

    def write_at(self, offset: int, data: bytes | memoryview | np.ndarray) -> None:
        """Writes all of `data` at `offset`."""
        view = memoryview(data).cast("B")
        while view.nbytes:
            written = os.pwrite(self._fd, view[: 64 << 20], offset)
            view, offset = view[written:], offset + written

    def commit(self) -> None:
        """Makes the content durable, then visible under its name in one step."""
        os.fsync(self._fd)
        os.close(self._fd)
        self._fd = -1
        os.replace(self.aside, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self) -> None:
        """Removes what was written, where it was not committed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.aside)


@contextlib.contextmanager
def write_aside(path: Path) -> Iterator[AsideFile]:
    """Yields an :class:`AsideFile`; commits at the end of the block, discards on any exception.

    System errors (disk full above all) come out as :class:`WriteFailed`, with errno and path.
    """
    aside: AsideFile | None = None
    try:
        aside = AsideFile(path)
        yield aside
        aside.commit()
    except OSError as error:
        if isinstance(error, Error):
            raise
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise WriteFailed(error.errno or 0, f"writing failed: {reason}", str(path)) from error
    finally:
        if aside is not None:
            aside.discard()
