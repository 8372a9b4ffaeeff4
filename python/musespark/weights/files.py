"""Large files: mapping them, and writing so that nothing half-done remains."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import mmap
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from musespark.errors import CorruptFile, Error, MemoryBudgetExceeded
from musespark.untrusted import open_regular

_HUGE_PAGE = 2 << 20


class WriteFailed(Error, OSError):  # noqa: N818 - named as the other public errors
    """A file could not be written whole (disk full, quota, permission); nothing is left of it."""


class MappedFile:
    """A regular file to be mapped read-only.

    The map shows the file as it is: who truncates it while it is mapped makes later reads of the
    lost part fail with SIGBUS, as with every mapped model file. Replace such files by renaming
    (which this package always does); the map then keeps the old content.
    """

    def __init__(self, path: Path):
        self.path = path
        self._map: mmap.mmap | None = None
        self._bytes: np.ndarray | None = None
        self._mapping = threading.Lock()
        self._fd = open_regular(path)
        try:
            self.stat = os.fstat(self._fd)
            if self.stat.st_size == 0:
                raise CorruptFile(f"{path}: the file is empty")
        except BaseException:
            self.close()
            raise

    @property
    def bytes(self) -> np.ndarray:
        """uint8 over the whole file, mapped when first asked for."""
        with self._mapping:
            if self._bytes is None:
                self._map = self._mapped()
                self._bytes = np.frombuffer(self._map, dtype=np.uint8)
                self._let_go()
            return self._bytes

    def _mapped(self) -> mmap.mmap:
        size = self.stat.st_size
        try:
            return mmap.mmap(self._fd, size, access=mmap.ACCESS_READ)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            raise MemoryBudgetExceeded(
                f"{self.path}: no address space to map {size} bytes; a limit is set (ulimit -v)"
            ) from error
        except ValueError as error:  # shorter than it was a moment ago
            raise CorruptFile(f"{self.path}: {error}") from error

    def read(self, begin: int, end: int) -> bytes:
        """The bytes begin … end, read without mapping anything; CorruptFile where there are less.
        Only until the file is mapped."""
        parts = []
        while begin < end and (part := os.pread(self._fd, end - begin, begin)):
            parts.append(part)
            begin += len(part)
        if begin < end:
            raise CorruptFile(f"{self.path}: the file ends at byte {begin}, {end} are needed")
        return b"".join(parts)

    def read_into(self, begin: int, out: np.ndarray) -> None:
        """Fills `out` (uint8) from `begin` on, as :meth:`read`; any number of threads may."""
        done = 0
        while done < out.nbytes:
            read = os.preadv(self._fd, [memoryview(out)[done:]], begin + done)
            if read == 0:
                raise CorruptFile(
                    f"{self.path}: the file ends at byte {begin + done}, "
                    f"{begin + out.nbytes} are needed"
                )
            done += read

    def _let_go(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self._let_go()

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
        self._bytes, self._map = np.empty(0, np.uint8), None
        self._let_go()


class AsideFile:
    """A file written aside, as ``.<name>.<random>.partial``, until :meth:`commit` renames it."""

    def __init__(self, path: Path):
        self.path = path
        self.aside = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(self.aside, flags, 0o666)
        # Held as long as this process lives: a partial file that can be locked was left behind.
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.position = 0
        self._tail = bytearray()  # appended, not yet written: the bytes before `position`

    def write(self, data: bytes | memoryview | np.ndarray) -> None:
        """Appends all of `data`; readers see it after the next write_at or commit.

        What is written a whole huge page at a time lies in huge pages of the page cache where the
        file system has them (ext4 of Linux 6.18), and is read faster through a map.
        """
        view = memoryview(data).cast("B")
        if self._tail:
            first = min(view.nbytes, -self.position % _HUGE_PAGE)
            self._tail += view[:first]
            self.position += first
            view = view[first:]
            if self.position % _HUGE_PAGE == 0:
                self.flush()
        whole = view.nbytes - (self.position + view.nbytes) % _HUGE_PAGE
        if whole > 0:
            self._write_all(self.position, view[:whole])
            self.position += whole
            view = view[whole:]
        self._tail += view
        self.position += view.nbytes

    def write_at(self, offset: int, data: bytes | memoryview | np.ndarray) -> None:
        """Writes all of `data` at `offset`, before or after what was appended."""
        self.flush()
        self._write_all(offset, memoryview(data).cast("B"))

    def flush(self) -> None:
        """Hands what was appended to the system."""
        self._write_all(self.position - len(self._tail), memoryview(bytes(self._tail)))
        self._tail.clear()

    def _write_all(self, offset: int, view: memoryview) -> None:
        while view.nbytes:
            written = os.pwrite(self._fd, view[: 64 << 20], offset)
            view, offset = view[written:], offset + written

    def commit(self) -> None:
        """Makes the content durable, then visible under its name in one step."""
        self.flush()
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


def check_disk(path: Path, needed: int) -> None:
    """WriteFailed where the disk of `path` has no room for `needed` bytes."""
    remove_left_behind(path)
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return  # writing says what is wrong
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        text = f"no room: {needed} bytes are needed, {free} are free"
        raise WriteFailed(errno.ENOSPC, text, str(path))


def remove_left_behind(path: Path) -> None:
    """Removes the partial files of `path` whose writers were killed."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(OSError):  # a lock that is held, or another who cleans up
            fd = os.open(partial, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(partial)
            finally:
                os.close(fd)


def _refuse_special(path: Path) -> None:
    """WriteFailed where a rename would put a file in the place of a device or a pipe."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise WriteFailed(errno.EINVAL, "not a regular file", str(path))


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file aside and renames it; what is no regular file (a pipe, standard output) is
    written to. Raises as :func:`write_aside`."""
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(data)
        return
    with write_aside(path) as file:
        file.write(data)


@contextlib.contextmanager
def write_aside(path: Path, *, use: Callable[[Path], None] | None = None) -> Iterator[AsideFile]:
    """Yields an :class:`AsideFile`; commits at the end of the block, discards on any exception.
    What a killed process left of the same file is removed first. ``use``: instead of the commit,
    is given the name under which the file lies aside; what it has not opened then is gone.

    System errors (disk full above all) come out as :class:`WriteFailed`, with errno and path.
    """
    aside: AsideFile | None = None
    try:
        _refuse_special(path)
        remove_left_behind(path)
        aside = AsideFile(path)
        yield aside
        if use is None:
            aside.commit()
        else:
            aside.flush()
            use(aside.aside)
    except OSError as error:
        if isinstance(error, Error):
            raise
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise WriteFailed(error.errno or 0, f"writing failed: {reason}", str(path)) from error
    finally:
        if aside is not None:
            aside.discard()
