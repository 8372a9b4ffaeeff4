"""What the lab's commands check of their arguments."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest


def chosen_of(
    text: str, allowed: Sequence[str], option: str, every: Sequence[str] | None = None
) -> list[str]:
    """The names of a list between commas, or ``every`` (all that are ``allowed``) for ``all``.
    InvalidRequest for others, and for one that is given twice."""
    if text == "all":
        return list(every or allowed)
    chosen = text.split(",")
    for at, one in enumerate(chosen):
        if one not in allowed:
            raise InvalidRequest(f"{option}: got {one!r:.60}, allowed are {', '.join(allowed)}")
        if one in chosen[:at]:
            raise InvalidRequest(f"{option}: {one!r} is given twice")
    return chosen


def at_least(least: int, value: int, option: str) -> None:
    """InvalidRequest for a number below the least allowed."""
    if value < least:
        raise InvalidRequest(f"{option}: got {value}, allowed is {least} or more")


def filled(args: Namespace, generated: Mapping[str, Any]) -> None:
    """Options of the generated tasks that were not given get their values; InvalidRequest for one
    that was, beside ``--items``."""
    for name, value in generated.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
        elif args.items:
            raise InvalidRequest(f"--{name}: has no effect with --items")


def check_targets(files: dict[str, str | None], read: dict[str, str | None] | None = None) -> None:
    """Of each option and the file it names: InvalidRequest where none can be written, or where two
    options name one. ``read``: options of files that are read, and kept."""
    taken = {Path(name).resolve(): option for option, name in (read or {}).items() if name}
    for option, name in files.items():
        if not name:
            continue
        path = Path(name)
        if not path.parent.is_dir():
            raise InvalidRequest(f"{option}: there is no folder {path.parent}")
        if path.is_dir():
            raise InvalidRequest(f"{option}: {path} is a folder")
        if path.exists() and not path.is_file():
            continue  # a pipe or a terminal takes several
        if (other := taken.setdefault(path.resolve(), option)) != option:
            raise InvalidRequest(f"{option}: {path} is the file of {other} too")
