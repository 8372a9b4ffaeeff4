"""The licence that a model folder states: in the head of its README.md, else its LICENSE file."""

from __future__ import annotations

import re
from pathlib import Path

from musespark.errors import CorruptFile
from musespark.untrusted import read_small_file

_MAX_BYTES = 4 << 20
_KNOWN = (
    (r"Apache License\s+Version 2\.0", "apache-2.0"),
    (r"MIT License|Permission is hereby granted, free of charge", "mit"),
    (r"GNU AFFERO GENERAL PUBLIC LICENSE\s+Version 3", "agpl-3.0"),
    (r"GNU GENERAL PUBLIC LICENSE\s+Version 3", "gpl-3.0"),
    (r"Creative Commons Attribution 4\.0", "cc-by-4.0"),
)


def licence_of(folder: Path) -> str | None:
    """What a folder says of its licence and where, such as ``mit (README.md)``; None: nothing."""
    card = folder / "README.md"
    if card.is_file():
        found = _of_card(_text(card))
        if found:
            return f"{found} (README.md)"
    for name in ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE"):
        if (folder / name).is_file():
            text = _text(folder / name)
            for pattern, identifier in _KNOWN:
                if re.search(pattern, text[:20_000]):
                    return f"{identifier} ({name})"
            lines = [line.strip(" #*\t") for line in text.splitlines()]
            first = next((line for line in lines if line), "empty")
            return f"{first[:120]} ({name})"
    return None


def _text(path: Path) -> str:
    try:
        return read_small_file(path, _MAX_BYTES).decode("utf-8", "replace")
    except CorruptFile:  # of no importance for running the model
        return ""


def _of_card(text: str) -> str | None:
    """``license`` of a model card's head, or its name where it is "other"."""
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    if head is None:
        return None
    fields = dict(re.findall(r"^(license(?:_name)?):[ \t]*(\S.*)$", head[1], re.MULTILINE))
    listed = re.search(r"^license:[ \t]*\n((?:[ \t]*- .+\n?)+)", head[1], re.MULTILINE)
    if listed:
        return ", ".join(re.findall(r"- *(.+)", listed[1]))[:200]
    value = fields.get("license", "").strip(" '\"[]")
    if value == "other":
        value = fields.get("license_name", value).strip(" '\"")
    return value[:200] or None
