"""Hub ids: what names a model on a hub, and what looks like a path and never goes to a network.

    org/name            org/name@revision            org/name:Q4_K_M            org/name/file.gguf

A revision is a branch, tag or commit and may follow each of them; ``hf://`` may stand before.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from musespark.errors import InvalidRequest

SCHEME = "hf://"
GRAMMAR = "org/name, org/name@revision, org/name:QUANTIZATION or org/name/file.gguf"
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_ID = re.compile(
    rf"(?P<repo>{_PART}/{_PART})"
    r"(?:/(?P<file>[A-Za-z0-9_][A-Za-z0-9._+-]{0,254}\.[Gg][Gg][Uu][Ff]))?"
    r"(?::(?P<early>[^@:/]*))?"
    r"(?:@(?P<revision>[^@:]*)(?::(?P<late>[^@:/]*))?)?"
)
_REVISION = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._/+-]{0,198}[A-Za-z0-9_+-])?")
_QUANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# `folder/model.safetensors` that is not there is a mistyped path, not a repository of that name.
_FILE_LIKE = re.compile(
    r"\.(safetensors|gguf|ggml|json|bin|pt|pth|ckpt|onnx|npz|jinja|txt|md|py|zip|tar|gz)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class HubId:
    """A model on a hub. ``quant`` or ``file`` choose among GGUF files; at most one of them is set.

    ``revision`` None is the default branch.
    """

    repo: str
    revision: str | None = None
    quant: str | None = None
    file: str | None = None

    @property
    def branch(self) -> str:
        """The revision by name, ``main`` where none was given."""
        return self.revision or "main"

    def __str__(self) -> str:
        return self.at(self.revision)

    def at(self, revision: str | None) -> str:
        """This id with another revision: what :func:`parse_hub_id` reads."""
        choice = f"/{self.file}" if self.file else f":{self.quant}" if self.quant else ""
        return f"{self.repo}{choice}" + (f"@{revision}" if revision else "")


def parse_hub_id(source: str) -> HubId | None:
    """The hub id that `source` is; None where it can only be a path.

    None for whatever begins like a path (``/ ./ ../ ~ \\``), has more slashes than an id, ends as a
    model file does, or lies under a folder that is here: those are mistyped paths. With ``hf://``
    in front nothing of this is asked, and what is no id raises InvalidRequest.
    """
    named = source.startswith(SCHEME)
    text = source.removeprefix(SCHEME)
    match = _ID.fullmatch(text)
    parts = match.groupdict() if match else {}
    wrong = _complaint(parts) if match else f"the form is {GRAMMAR}"
    if named and wrong:
        raise InvalidRequest(f"source {source!r:.300} is no hub id: {wrong}")
    if match is None or ".." in parts["repo"] or "--" in parts["repo"]:
        return None
    repo = parts["repo"]
    if not named and (_FILE_LIKE.search(repo[-12:]) and _looks_like_file(repo)):
        return None
    if not named and os.path.isdir(repo.split("/")[0]):
        return None
    if wrong:
        raise InvalidRequest(f"source {source!r:.300} is no hub id: {wrong}")
    quant = parts["early"] if parts["early"] is not None else parts["late"]
    return HubId(repo, parts["revision"], quant, parts["file"])


def _looks_like_file(repo: str) -> bool:
    return _FILE_LIKE.fullmatch(os.path.splitext(repo)[1]) is not None


def _complaint(parts: dict[str, str | None]) -> str:
    """What is wrong with the parts of an id, "" for nothing."""
    repo, revision = parts["repo"] or "", parts["revision"]
    if ".." in repo or "--" in repo:
        return "names of organizations and models have no .. and no --"
    if revision is not None and (not _REVISION.fullmatch(revision) or _odd(revision)):
        return f"revision is {revision!r:.80}"
    chosen = [p for p in (parts["early"], parts["late"]) if p is not None]
    for quant in chosen:
        if not _QUANT.fullmatch(quant):
            return f"the quantization after ':' is {quant!r:.80}"
    if len(chosen) + (parts["file"] is not None) > 1:
        return "the GGUF file is chosen twice"
    return ""


def _odd(revision: str) -> bool:
    return ".." in revision or "//" in revision
