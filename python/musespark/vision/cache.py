"""Embeddings of images seen before, in memory and, where a folder is given, on disk.

    <folder>/<first two digits of the key>/<key>.rows

The key is an outline's (embedding.py): the pixels, how they are processed, and the model. A file:

    80 bytes    _HEAD: magic, version, arithmetic version, rows, columns, taps, a checksum, the key
    float32     [1 + taps, rows, columns]: the rows, then each tap

Little endian. The checksum (weights/packed.py: it finds damage, not forgery) covers the whole
file, with itself as zero. Files are written aside and renamed, as those of prefix_folder.py, and
the least recently used go first.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import threading
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np

from musespark.errors import CorruptFile
from musespark.vision.embedding import ImageEmbedding, ImageOutline
from musespark.weights.files import MappedFile
from musespark.weights.packed import Checksum

MAGIC, VERSION = b"MUSEROWS", 1
_HEAD = struct.Struct("<8sIIIIIIQ32s8x")
_TRIM_TO = 0.9  # of the limit
_STALE_S = 3600  # after which a partial file is nobody's


class EmbeddingCache:
    """Rows and taps by key, at most ``limit`` bytes of them in memory, the least recently used go
    first; with a folder on disk too. Thread-safe."""

    def __init__(self, limit: int, folder: EmbeddingFolder | None = None):
        self.limit, self.folder = limit, folder
        self.bytes = 0
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, ImageEmbedding] = OrderedDict()

    def get(self, outline: ImageOutline, width: int) -> tuple[ImageEmbedding | None, str]:
        """What is known of an image, and where it was: ``memory``, ``disk`` or nowhere."""
        with self._lock:
            if (known := self._known.get(outline.key)) is not None:
                self._known.move_to_end(outline.key)
                return known, "memory"
        if self.folder is None or (read := self.folder.read(outline, width)) is None:
            return None, ""
        self._remember(read)
        return read, "disk"

    def put(self, embedding: ImageEmbedding) -> None:
        """Takes one in that was just made."""
        self._remember(embedding)
        if self.folder is not None:
            self.folder.write(embedding)

    def _remember(self, embedding: ImageEmbedding) -> None:
        key = embedding.outline.key
        with self._lock:
            if embedding.nbytes > self.limit or key in self._known:
                return
            self._known[key] = embedding
            self.bytes += embedding.nbytes
            while self.bytes > self.limit:
                _, gone = self._known.popitem(last=False)
                self.bytes -= gone.nbytes

    def __len__(self) -> int:
        return len(self._known)


class EmbeddingFolder:
    """The files of one folder, at most ``limit`` bytes. Any number of threads and processes.

    What cannot be read or written is no error: the image is encoded again. ``notes`` says what was.
    """

    def __init__(self, path: Path, limit: int, arithmetic: int):
        self.path, self.limit = path, limit
        self.notes: list[str] = []
        self._arithmetic = arithmetic
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def file(self, key: bytes) -> Path:
        name = key.hex()
        return self.path / name[:2] / f"{name}.rows"

    def read(self, outline: ImageOutline, width: int) -> ImageEmbedding | None:
        """The embedding of an image, None where there is no good file of it; a damaged one goes."""
        path = self.file(outline.key)
        try:
            found = self._read(path, outline, width)
        except FileNotFoundError:
            return None
        except CorruptFile as error:
            self._note(str(error))
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        except OSError as error:
            self._note(f"{path}: not read: {error}")
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return found

    def _read(self, path: Path, outline: ImageOutline, width: int) -> ImageEmbedding:
        file = MappedFile(path)
        try:
            if file.nbytes < _HEAD.size:
                raise CorruptFile(f"{path}: {file.nbytes} bytes, the head has {_HEAD.size}")
            head = file.read(0, _HEAD.size)
            magic, version, arithmetic, rows, columns, taps, _, said, key = _HEAD.unpack(head)
            wanted = {
                "magic": (magic, MAGIC),
                "version": (version, VERSION),
                "arithmetic": (arithmetic, self._arithmetic),
                "rows": (rows, outline.tokens),
                "columns": (columns, width),
                "key": (key, outline.key),
                "bytes": (file.nbytes, _HEAD.size + 4 * (1 + taps) * rows * columns),
            }
            for name, (found, needed) in wanted.items():
                if found != needed:
                    raise CorruptFile(f"{path}: {name} is {found!r:.80}, not {needed!r:.80}")
            arrays = np.empty((1 + taps, rows, columns), np.float32)
            file.read_into(_HEAD.size, arrays.reshape(-1).view(np.uint8))
        finally:
            file.close()
        if (found := self._checksum(outline.key, arrays)) != said:
            raise CorruptFile(f"{path}: the checksum is {found:016x}, the head says {said:016x}")
        return ImageEmbedding(outline, arrays[0], tuple(arrays[1:]))

    def write(self, embedding: ImageEmbedding) -> None:
        """Writes a file, in place of one of that key, and removes old ones beyond the limit."""
        arrays = np.stack([embedding.array, *embedding.taps])
        key = embedding.outline.key
        head = self._head(key, arrays, self._checksum(key, arrays))
        if _HEAD.size + arrays.nbytes > self.limit:
            return
        path = self.file(key)
        aside = path.parent / f".{os.getpid()}.{secrets.token_hex(8)}.partial"
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(head)
                file.write(arrays.data)
            os.replace(aside, path)
            self._trim()
        except OSError as error:
            self._note(f"{path}: not written: {error}")
            with contextlib.suppress(OSError):
                aside.unlink()

    def _head(self, key: bytes, arrays: np.ndarray, checksum: int) -> bytes:
        taps, rows, columns = len(arrays) - 1, arrays.shape[1], arrays.shape[2]
        sizes = (rows, columns, taps, 0)
        return _HEAD.pack(MAGIC, VERSION, self._arithmetic, *sizes, checksum, key)

    def _checksum(self, key: bytes, arrays: np.ndarray) -> int:
        found = Checksum()
        found.update(self._head(key, arrays, 0))
        found.update(arrays.reshape(-1).view(np.uint8))
        return int(found.hex(), 16)

    def _trim(self) -> None:
        files, total, old = [], 0, time.time() - _STALE_S
        for path in self.path.glob("??/*"):
            with contextlib.suppress(OSError):  # another process removed it
                stat = path.stat()
                if path.suffix == ".rows":
                    files.append((stat.st_mtime_ns, stat.st_size, path))
                    total += stat.st_size
                elif path.suffix == ".partial" and stat.st_mtime < old:
                    path.unlink()
        if total <= self.limit:
            return
        for _, size, path in sorted(files):
            if total <= self.limit * _TRIM_TO:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size

    def _note(self, text: str) -> None:
        if len(self.notes) < 100:
            self.notes.append(text)
