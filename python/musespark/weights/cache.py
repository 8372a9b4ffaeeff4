"""The packing cache: what was packed once is found again by the identity of its source.

A file's name is a hash of the source (folder path; name, size, modification time of every file;
content of the small ones; header of the weight files), the recipe and the versions of container,
arithmetic and recipes. Files appear whole or not at all, and one process packs while others wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from musespark import _core
from musespark.weights.packed import VERSION
from musespark.weights.safetensors import Checkpoint

RECIPE_VERSION = 1  # bumped whenever pack.py would write other bytes for the same source


def cache_folder() -> Path:
    """``$MUSESPARK_CACHE``, else ``$XDG_CACHE_HOME/musespark``, else ``~/.cache/musespark``."""
    own = os.environ.get("MUSESPARK_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "musespark"


def source_key(
    folder: Path, checkpoint: Checkpoint, assets: dict[str, bytes], quantize: str
) -> str:
    """64 hexadecimal digits that change whenever the packed file would."""
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
            digest.update(len(data).to_bytes(8, "little") + data)

    add(VERSION, _core.arithmetic_version, RECIPE_VERSION, quantize, folder.resolve())
    for file in sorted(checkpoint.files, key=lambda f: f.path.name):
        stat = file.mapped.stat
        add(file.path.name, stat.st_size, stat.st_mtime_ns, stat.st_ino, file.header)
    for name in sorted(assets):
        add(name, assets[name])
    return digest.hexdigest()


def cached_path(key: str) -> Path:
    """Where the packed file of `key` is or will be."""
    return cache_folder() / "packed" / f"{key[:40]}.safetensors"


@contextlib.contextmanager
def packing_lock(path: Path) -> Iterator[None]:
    """Holds the right to write `path`, among processes and threads; creates its folder.

    Left-over partial files of `path`, from a process that was killed, are removed: the holder of
    the lock is the only one who writes there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        for partial in path.parent.glob(f".{path.name}.*.partial"):
            partial.unlink(missing_ok=True)
        yield
    finally:
        os.close(fd)
