"""Files in folders that were allowed, and nowhere else.

Every path is opened part by part from the folder's own descriptor, and no link is followed: neither
``..`` nor a link, not even one that is put there meanwhile, leads out.
"""

from __future__ import annotations

import errno
import fnmatch
import itertools
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from musespark.agents.tools import Tool
from musespark.errors import InvalidRequest
from musespark.untrusted import check_parts, checked_path, open_below

MAX_FILE_BYTES = 8 << 20  # that are searched or read
MAX_FOUND = 50  # lines of an answer
MAX_FILES = 20_000  # that a search looks at
MAX_SECONDS = 10.0  # of a search
_LINE = 200  # characters of a line that is shown
_LINES = 200  # of a file that is read at once
# What is said of errors that opening no links has.
_LINKS = {
    errno.ELOOP: "it is a link; links are not followed",
    errno.ENOTDIR: "a part of it is no folder, or a link; links are not followed",
}


def file_tools(folders: Mapping[str, str | os.PathLike[str]]) -> list[Tool]:
    """Tools to look into folders: ``search_files(text, names)`` and ``read_file(path, line)``.

    ``folders``: a folder by the name that paths begin with. Only regular files of UTF-8 text are
    read; links are not followed. InvalidRequest for what is no folder, and to the model for a path
    that leads out or is no such file.
    """
    if not isinstance(folders, Mapping) or not folders:
        raise InvalidRequest(f"folders: got {folders!r:.60}, allowed is a dict name: path")
    roots: dict[str, Path] = {}
    for name, given in folders.items():
        path = checked_path(given, f"folders[{name!r:.40}]")
        if not isinstance(name, str) or not name or "/" in name or name in (".", ".."):
            raise InvalidRequest(
                f"folders: got the name {name!r:.40}, allowed is a str without '/', not '.' or '..'"
            )
        if not path.is_dir():
            what = "a file" if path.exists() else "nothing"
            raise InvalidRequest(
                f"folders[{name!r:.40}]: no folder, {os.fspath(path)!r:.200} is {what}"
            )
        roots[name] = path.resolve()

    def search_files(text: str, names: str = "*") -> str:
        """Lines of files that have a text in them, upper and lower case alike.

        Args:
            text: what to look for
            names: of files, such as *.md
        """
        return _searched(roots, text, names)

    def read_file(path: str, line: int = 1) -> str:
        """A file's lines.

        Args:
            path: as search_files gives it
            line: the first, from 1
        """
        return _read(roots, path, line)

    return [Tool.of(search_files), Tool.of(read_file)]


def _searched(roots: Mapping[str, Path], text: str, names: str) -> str:
    if not text:
        raise InvalidRequest("text: got '', allowed is a text that is not empty")
    search = _Search(text)
    for path, content in _texts(roots, names, search):
        search.look(path, content)
    return search.told()


class _Search:
    """A search for a text: what it found, and whether it has looked enough."""

    def __init__(self, text: str):
        self._wanted, self._found = text.casefold(), list[str]()
        self._searched = self._left_out = 0
        self._end = time.monotonic() + MAX_SECONDS

    @property
    def over(self) -> bool:
        seen = self._searched + self._left_out
        many = len(self._found) > MAX_FOUND or seen >= MAX_FILES
        return many or time.monotonic() > self._end

    def look(self, path: str, content: str | None) -> None:
        """Looks into a file; None: it is large, or no text."""
        if content is None:
            self._left_out += 1
            return
        self._searched += 1
        found = (
            f"{path}:{number}: {line.strip():.{_LINE}}"
            for number, line in enumerate(content.splitlines(), 1)
            if self._wanted in line.casefold()
        )
        self._found += itertools.islice(found, MAX_FOUND + 1 - len(self._found))

    def told(self) -> str:
        shown = self._found[:MAX_FOUND] or [f"nothing found in {self._searched} files"]
        if self._left_out:
            shown.append(f"[not searched, large or no text: {self._left_out}]")
        if self.over:
            shown.append(f"[the search ended here; searched: {self._searched}; ask for less]")
        return "\n".join(shown)


def _texts(
    roots: Mapping[str, Path], names: str, search: _Search
) -> Iterator[tuple[str, str | None]]:
    """Paths and texts of the files with such names, in order, until the search is over."""
    for name, root in roots.items():
        for folder, inside, files, handle in os.fwalk(root, follow_symlinks=False):
            inside.sort()
            below = Path(folder).relative_to(root)
            for file in sorted(fnmatch.filter(files, names)):
                if search.over:
                    return
                try:
                    text = _text(os.open(file, _READ, dir_fd=handle))
                except OSError:  # gone, a link, or not to be read: not searched
                    continue
                yield (Path(name) / below / file).as_posix(), text
            if search.over:
                return


_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def _text(handle: int) -> str | None:
    """A descriptor's text, which is then closed; None for what is no regular file of text."""
    with open(handle, "rb") as file:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_FILE_BYTES:
            return None
        data = file.read(MAX_FILE_BYTES + 1)
    try:
        return data.decode() if b"\0" not in data and len(data) <= MAX_FILE_BYTES else None
    except UnicodeDecodeError:
        return None


def _read(roots: Mapping[str, Path], path: str, line: int) -> str:
    name, *parts = path.split("/")
    if name not in roots or not parts:
        raise InvalidRequest(f"path: got {path!r:.80}, allowed are files in {[*roots]}")
    check_parts(path, parts)
    try:
        text = _text(open_below(roots[name], parts))
    except OSError as error:
        why = _LINKS.get(error.errno, error.strerror)
        raise InvalidRequest(f"path: {path!r:.80}: {why}") from None
    if text is None:
        raise InvalidRequest(
            f"path: {path!r:.80} is no file of text of at most {MAX_FILE_BYTES} bytes"
        )
    lines = text.splitlines()
    if not 1 <= line <= max(1, len(lines)):
        raise InvalidRequest(f"line: got {line}, allowed is 1 to {len(lines)}")
    shown, left = lines[line - 1 : line - 1 + _LINES], len(lines) - (line - 1) - _LINES
    return "\n".join([*shown, *([f"[{left} more lines]"] if left > 0 else [])])
