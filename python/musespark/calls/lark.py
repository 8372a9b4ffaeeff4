"""A grammar in Lark's syntax, written rule by rule, in which markers are token ids."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from musespark.errors import InvalidRequest
from musespark.grammar import MAX_CHARACTERS, slashed


class Lark:
    """Rules under construction. ``markers``: marker -> id, of those that are tokens: in a text they
    stand for their ids, for a marker that is spelled in letters is none. InvalidRequest for rules
    that are too long together: each may have all definitions of a schema in it."""

    def __init__(self, markers: Mapping[str, int]):
        self._ids = dict(markers)
        longest = sorted(filter(None, markers), key=len, reverse=True)
        self._split = re.compile("|".join(map(re.escape, longest))) if longest else None
        self._rules: dict[str, str] = {}
        self._defined: dict[str, str] = {}
        self._length = 0

    def rule(self, body: str, attribute: str = "") -> str:
        """The name of a rule with this body; the same for the same body."""
        return self._named(f"r{{}}{attribute}", body)

    def declared(self) -> str:
        """The name of a rule whose body :meth:`define` says later, and which may be in it."""
        name = f"d{len(self._defined)}"
        self._defined[name] = ""
        return name

    def define(self, name: str, body: str) -> None:
        self._count(body)
        self._defined[name] = body

    def terminal(self, regex: str) -> str:
        """The name of a terminal, which takes all that it can."""
        return self._named("T{}", slashed(regex))

    def without(self, text: str) -> str:
        """The name of a terminal, any text but one in which ``text`` (of no token) is spelled."""
        spelled = slashed(f"(?s:.*){re.escape(text)}(?s:.*)")
        return self._named("T{}", f"{slashed('(?s:.+)')} & ~{spelled}")

    def _named(self, form: str, body: str) -> str:
        key = f"{form}: {body}"
        if key not in self._rules:
            self._count(body)
            self._rules[key] = form.format(len(self._rules))
        return self._rules[key].partition("[")[0]

    def _count(self, body: str) -> None:
        self._length += len(body)
        if self._length > MAX_CHARACTERS:
            raise InvalidRequest(
                f"tools: got more than {MAX_CHARACTERS} characters as a grammar, allowed are as "
                "many; tool_choice=None leaves calls free"
            )

    def text(self, text: str) -> str:
        """A text to be written as it is."""
        out, at = [], 0
        for match in self._split.finditer(text) if self._split else ():
            out += [_quoted(text[at : match.start()]), f"<[{self._ids[match[0]]}]>"]
            at = match.end()
        out.append(_quoted(text[at:]))
        return " ".join(filter(None, out)) or '""'

    @staticmethod
    def tokens(ids: Iterable[int]) -> str:
        """These tokens, and no others that are read alike."""
        return " ".join(f"<[{i}]>" for i in ids)

    def is_token(self, marker: str) -> bool:
        return marker in self._ids

    def until(self, regex: str, close: str, least: int = 0) -> str:
        """What ``regex`` matches, of ``least`` characters or more, up to the first ``close``."""
        marker = self._split.search(close) if self._split else None
        if marker is None:
            return self.rule(slashed(f"(?:{regex}){re.escape(close)}"), "[lazy]")
        prefix = close[: marker.start()]
        if prefix:
            head = self.terminal(f"(?:{regex}){re.escape(prefix)}")
        else:
            head = self.terminal(f"(?:{regex})") if least else f"{self.terminal(_some(regex))}?"
        return f"{head} {self.text(close[marker.start() :])}"

    def grammar(self, start: str) -> str:
        """All of it, beginning with the expression ``start``."""
        lines = [f"start: {start}"]
        lines += [f"{head}: {key.partition(': ')[2]}" for key, head in self._rules.items()]
        lines += [f"{name}: {body}" for name, body in self._defined.items()]
        return "\n".join(lines)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _some(regex: str) -> str:
    """A regular expression of ours that may be empty, as one that is not."""
    return regex.replace(".*", ".+").replace(".{0,", ".{1,")
