"""Turns in which thoughts and calls stand between tags; the rest is the answer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from musespark.text.events import ANSWER, THOUGHT, TOOL, ChannelEnd, ChannelStart, Text
from musespark.text.machine import MOST_HELD, Machine
from musespark.text.protocols import Tag
from musespark.text.syntaxes import may_be_calls

_BARE_HEAD = 64  # so many characters tell whether an answer may be a call


class TagMachine(Machine):
    """No tags at all: everything is the answer.

    Where the think tags are spelled, one pair counts, at the beginning of the turn; where the tags
    of calls are, they count outside thoughts and if the request offers tools. ``opened``: the kind
    of the channel that the prompt left open.
    """

    def __init__(self, opened: str | None, *args: Any):
        super().__init__(*args)
        tags = self.protocol.tags
        self._by_open = {tag.open: tag for tag in tags}
        self._closing = {tag.close for tag in tags if tag.close}
        self._thought = next((tag for tag in tags if tag.kind == THOUGHT), None)
        spelled = self._thought is not None and self._thought.close in self._spelled
        self._spelled_thought = spelled  # may it still come?
        self._start = True  # nothing but white space came
        self._tag: Tag | None = None
        self._lead = ""  # text after an opening tag that belongs to it
        self._lead_seen = ""
        self._after_thought = False
        self._blank: list[str] = []  # separators that came where no channel is open
        self._blank_length = 0
        self._bare: list[str] | None = None  # an answer that may be calls without tags
        self._bare_checked = 0
        self._may_bare = bool(self.protocol.bare) and self._calls.offered
        if opened == ANSWER:
            self._start = self._may_bare = False
            self.open(ANSWER)
        elif opened:
            self._start, self._tag = False, self._thought
            self.open(opened, trim_start=True)

    # ---- spelled markers ----------------------------------------------------------------------

    def awaited(self, text: str) -> Collection[str]:
        if self.kind == THOUGHT:
            thought = self._thought
            return {thought.close} if self._spelled_thought and thought else ()
        if self.kind == TOOL and self._tag is not None:
            # A tag that does not close ends where another call begins.
            return self._spelled & {self._tag.close or self._tag.open}
        names: set[str] = set()
        if self._calls.offered:
            names = {t.open for t in self.protocol.tags if t.kind == TOOL}
            names |= set(self.protocol.silent)
        names &= self._spelled
        opening = self._thought.open if self._thought and self._spelled_thought else None
        if self._start and opening and text.lstrip().startswith(opening) and self._may_lead(text):
            names.add(opening)
        return names

    def undecided(self, text: str) -> bool:
        if not (self._start and self._spelled_thought and self._thought and self.kind is None):
            return False
        bare, opening = text.lstrip(), self._thought.open
        return self._may_lead(text) and bare != opening and opening.startswith(bare)

    def _may_lead(self, text: str) -> bool:
        """Whether the white space that a turn begins with is little enough to await a tag."""
        return len(text) - len(text.lstrip()) <= MOST_HELD

    def leads(self, text: str, marker: str) -> bool:
        return self._thought is not None and marker == self._thought.open and not text.strip()

    # ---- text and markers ---------------------------------------------------------------------

    def text(self, text: str) -> None:
        if self._lead:
            text = self._without_lead(text)
        self._start = self._start and not text.strip() and self._may_lead(text)
        if self.kind is not None:
            self.write(text)
            return
        if self._bare is not None:
            self._hold(text)
            return
        text = self._with_separators(text)
        if not text:
            return
        if self._may_bare:
            self._hold(text)
        else:
            self._answer(text)

    def _with_separators(self, text: str) -> str:
        """Text where no channel is open, after the separators before it; empty where no more than
        these came: they are of the answer, if one follows, else of nothing."""
        bare = text.lstrip(self.protocol.trim)
        if self._after_thought or self._after_tool:
            return bare
        self._blank.append(text)
        self._blank_length += len(text) - len(bare)
        if self._blank_length > MOST_HELD:
            self._may_bare = False  # the turn is an answer
        return self._take_blank() if bare or self._blank_length > MOST_HELD else ""

    def _take_blank(self) -> str:
        blank, self._blank, self._blank_length = "".join(self._blank), [], 0
        return blank

    def marker(self, marker: str) -> None:
        tag = self._by_open.get(marker)
        if self.kind == TOOL and marker in self.inner():
            self.write_mark(marker)
        elif marker in self.protocol.as_text:
            self.take(marker)
        elif marker in self.protocol.silent:
            self._settle()
            self._start = False
            self._take_blank()
        elif tag is not None:
            self._settle()
            self._start = False
            self._take_blank()
            if self.kind == THOUGHT and self._fresh and tag.kind == THOUGHT:
                return  # the prompt opened the thought and the model did it again
            self.close()
            self._tag, self._lead, self._syntax = tag, tag.lead, tag.syntax
            self.open(tag.kind, trim_start=True)
        elif self._tag is not None and self.kind == self._tag.kind and marker == self._tag.close:
            self._settle()
            if self.kind == THOUGHT:
                self._after_thought, self._spelled_thought = True, False
            self.close(closed=True)
        elif marker in self._closing:
            self._settle()
            self.error(marker, "closes a channel that is not open")
        else:
            self.text(marker)  # a word of the tools' syntax outside a call

    def leave(self, *, cut: bool = False) -> None:
        self._settle()
        blank = self._take_blank()
        if blank and not self._after_thought and not self._after_tool:
            self._answer(blank)
        self.close(cut=cut)

    def inner(self) -> frozenset[str]:
        return frozenset(self._tag.inner) if self._tag else frozenset()

    def _without_lead(self, text: str) -> str:
        """The text after a tag's lead, empty until that is certain; without the lead, all of it."""
        seen = self._lead_seen + text
        if self._lead.startswith(seen) and seen != self._lead:
            self._lead_seen = seen
            return ""
        text = seen.removeprefix(self._lead)
        self._lead = self._lead_seen = ""
        return text

    def _hold(self, text: str) -> None:
        """Keeps the text of an answer back for as long as it may be calls."""
        if self._bare is None:
            self._bare = []
        self._bare.append(text)
        if self._bare_checked < _BARE_HEAD:
            head = "".join(self._bare)
            self._bare_checked = len(head)
            if not may_be_calls(head[:_BARE_HEAD], self.protocol.bare):
                self._settle(calls=False)

    def _settle(self, *, calls: bool = True) -> None:
        """What was kept back is over: a beginning of a lead is text, an answer that may be calls is
        calls if it reads as such."""
        if self._lead:
            text, self._lead, self._lead_seen = self._lead_seen, "", ""
            self.write(text)
        if self._bare is None:
            return
        text, self._bare, self._may_bare = "".join(self._bare), None, False
        found = self._calls.read_bare(text) if calls and text.strip() else ()
        if found:
            self.out += [ChannelStart(TOOL), Text(TOOL, text), *found, ChannelEnd(TOOL)]
            self._after_tool = True
        elif text:
            self._answer(text)

    def _answer(self, text: str) -> None:
        """Text outside tags; separators after a thought or call belong to nothing."""
        if self._after_thought or self._after_tool:
            text = text.lstrip(self.protocol.trim)
        if text:
            self.open(ANSWER)
            self.write(text)
