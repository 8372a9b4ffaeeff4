"""Keeping what people typed apart from what a chat template wrote.

A rendered chat is one string; the markers in it must be those the template wrote, never those that
stand in a message, a tool description or a tool's output. Before rendering, in every string that
comes from the caller, characters that could take part in a marker are replaced one for one by
private-use stand-ins that occur nowhere in the input; after rendering, whatever still spells a
marker came from the template, and then the stand-ins are turned back. One for one, so that lengths,
trimming, slicing and concatenation in the template do the same as without it.

Two kinds of characters are replaced:

* the first and last character of any marker (``<`` and ``>``, mostly), so that no caller's text can
  begin or end one, also not in pieces spread over several fields (letters, quotes and backslashes
  excepted: those fall under the next rule, and JSON must go on escaping them);
* one character of words that a template could complete: where a template has ``'<' + key +
  '>'`` and ``<tool_call>`` is a marker, a key ``tool_call`` would spell it. Which words those are
  follows from the template's literals (:func:`fillings`).

Roles are not replaced where they are one of :data:`ROLES`: templates write ``'<|' + role + '|>'``.
A template that looks for such characters in a message (``'</think>' in content``) does not find
them; for assistant messages that carry their thought inside ``content`` the first pair of think
tags is left as it is, because the template is meant to take it apart.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from musespark.errors import InvalidRequest
from musespark.text.markers import MarkerFinder

ROLES = frozenset(
    [
        "system",
        "developer",
        "user",
        "assistant",
        "tool",
        "function",
        "ipython",
        "observation",
        "environment",
    ]
)
THINK_TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
)
_PRIVATE = re.compile("[\U000f0000-\U000ffffd]")
_ESCAPED = "\"'\\"  # what JSON or a template's quoting escapes
_FIRST, _LAST = 0xF0000, 0xFFFFD


def fillings(markers: Collection[str], literals: Collection[str], edges: set[str]) -> set[str]:
    """The inner parts of markers that a template could complete on both sides from its literals.

    A marker ``p + word + s`` counts where some literal ends with ``p`` and some literal begins with
    ``s`` (both may be empty) and the word has no character of ``edges``, which are replaced anyhow.
    """
    longest = max(map(len, markers), default=0)
    ends, starts = {""}, {""}
    for literal in literals:
        for text in (literal, literal.strip()):
            ends.update(text[-k:] for k in range(1, min(longest, len(text)) + 1))
            starts.update(text[:k] for k in range(1, min(longest, len(text)) + 1))
    found = set()
    for marker in markers:
        for i in range(len(marker)):
            if marker[:i] not in ends:
                continue
            for j in range(i + 1, len(marker) + 1):
                if marker[j - 1] in edges:
                    break
                if marker[j:] in starts:
                    found.add(marker[i:j])
    return found


@dataclass(frozen=True)
class Guard:
    """What to replace for one template and one set of markers; made by :meth:`build`."""

    finder: MarkerFinder
    edges: re.Pattern[str]  # characters that begin or end a marker
    words: re.Pattern[str]  # words the template could complete
    known: frozenset[str]  # strings the template's code names: its field names
    think: tuple[str, str] | None  # the think tags that the template takes apart

    @classmethod
    def build(
        cls, markers: Collection[str], literals: Collection[str], known: Collection[str]
    ) -> Guard:
        """``literals``: text and string constants of the template; ``known``: its field names."""
        bare = [m.strip() for m in markers if m.strip()]
        edges = {c for m in bare for c in (m[0], m[-1]) if not c.isalnum() and c not in _ESCAPED}
        words = fillings(bare, literals, edges)
        longest_first = sorted(map(re.escape, words), key=len, reverse=True)
        think = next((tags for tags in THINK_TAGS if tags[1] in known), None)
        return cls(
            MarkerFinder(markers),
            re.compile(f"[{''.join(map(re.escape, sorted(edges)))}]" if edges else r"(?!)"),
            re.compile(rf"(?<!\w)(?:{'|'.join(longest_first)})(?!\w)" if words else r"(?!)"),
            frozenset(known),
            think,
        )


class Disguise:
    """The stand-ins of one rendering."""

    def __init__(self, guard: Guard, inputs: Any):
        self._guard = guard
        self._used: set[str] = set()
        self._collect(inputs)
        self._next = _FIRST
        self._stand_in: dict[str, str] = {}
        self._original: dict[int, str] = {}

    def hide(self, text: str) -> str:
        """The text with stand-ins for what could take part in a marker."""
        text = self._guard.edges.sub(lambda m: self._standing(m[0]), text)
        return self._guard.words.sub(self._spoil, text)

    def _spoil(self, match: re.Match[str]) -> str:
        word = match[0]
        at = next((i for i, c in enumerate(word) if c not in _ESCAPED and not c.isspace()), None)
        return word if at is None else word[:at] + self._standing(word[at]) + word[at + 1 :]

    def hide_key(self, key: Any) -> Any:
        """As :meth:`hide` for the key of a mapping; a field that the template names stays."""
        return self.hide(key) if isinstance(key, str) and key not in self._guard.known else key

    def hide_assistant(self, text: str) -> str:
        """As :meth:`hide` for an assistant's content that may begin with its thought in tags."""
        tags = self._guard.think
        if tags is None or tags[1] not in text:
            return self.hide(text)
        thought, answer = text.split(tags[1], 1)
        bare = thought.lstrip()
        lead = thought[: len(thought) - len(bare)]
        if bare.startswith(tags[0]):
            lead, bare = lead + tags[0], bare[len(tags[0]) :]
        return lead + self.hide(bare) + tags[1] + self.hide(answer)

    def reveal(self, text: str) -> str:
        """The original characters again."""
        return text.translate(self._original) if self._original else text

    def pieces(self, rendered: str) -> list[tuple[str, bool]]:
        """A rendering as pieces ``(text, is_marker)``, the original characters restored."""
        split = self._guard.finder.split(rendered)
        return [(text if marker else self.reveal(text), marker) for text, marker in split]

    def _standing(self, char: str) -> str:
        made = self._stand_in.get(char)
        if made is None:
            while chr(self._next) in self._used:
                self._next += 1
            if self._next > _LAST:
                raise InvalidRequest(
                    "the conversation uses every private-use character of plane 15"
                )
            made = self._stand_in[char] = chr(self._next)
            self._original[self._next] = char
            self._next += 1
        return made

    def _collect(self, value: Any) -> None:
        if isinstance(value, str):
            if not value.isascii():
                self._used.update(_PRIVATE.findall(value))
        elif isinstance(value, dict):
            for key, item in value.items():
                self._collect(key)
                self._collect(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                self._collect(item)
