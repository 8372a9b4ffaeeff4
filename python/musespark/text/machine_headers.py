"""Turns made of channels with headers: Muse's and harmony's."""

from __future__ import annotations

from typing import Any

from musespark.text.events import ANSWER, THOUGHT, TOOL
from musespark.text.machine import FOREIGN, Machine
from musespark.text.protocols import Headers

_HEADER_LIMIT = 1024


class HeaderMachine(Machine):
    """States: in a header, in a channel's body, between channels.

    ``opened``: the kind of the channel that the prompt left open; else ``header``, the text of the
    header that it left open.
    """

    def __init__(self, headers: Headers, opened: str | None, header: str, *args: Any):
        super().__init__(*args)
        self._headers, self._prompted = headers, header
        self._header: str | None = None if opened else header
        self._between: list[str] = []
        if opened:
            self.open(opened)

    def text(self, text: str) -> None:
        if self.kind is not None:
            self.write(text)
        elif self._header is not None:
            self._header += text
            if len(self._header) > _HEADER_LIMIT:
                text, self._header = self._header.removeprefix(self._prompted), None
                self.error("", f"a header of more than {_HEADER_LIMIT} characters, taken as answer")
                self.open(ANSWER)
                self.write(text)
        else:
            self._between.append(text)

    def marker(self, marker: str) -> None:
        names = self._headers
        if marker == names.start:
            self.leave()
            self._header, self._prompted = "", ""
        elif marker == names.message and self._header is not None:
            self._enter(self._header)
            self._header = None
        elif marker == names.message:
            self.error(marker, "a message begins without a header")
        elif marker in names.fields:
            self._field(marker)
        elif marker == names.end_channel:
            if self.kind is None and self._header is None:
                self.error(marker, "no channel is open")
            self.leave()
        elif marker in names.end_turn:
            self.end_turn()

    def _field(self, marker: str) -> None:
        """A marker that belongs into a header."""
        if self._header is None and self.kind is None:
            self.leave()
            self._header = self._prompted = self._headers.role
        if self._header is not None:
            self._header += marker
        else:
            self.error(marker, "a marker of a header inside a message")

    def leave(self, *, cut: bool = False) -> None:
        self.close(cut=cut)
        if self._header is not None and self._header != self._prompted:
            self.error(self._header, "a header without a message")
        between = "".join(self._between)
        if between.strip():
            self.error(between, "text between channels")
        self._header, self._between = None, []

    def _enter(self, header: str) -> None:
        kind, recipient, extra = read_header(self._headers, header)
        if kind == FOREIGN:
            self.error(header, "a channel of another role")
        elif extra:
            self.error(header, "more in a header than role and recipient")
        self.open(kind, recipient)


def read_header(headers: Headers, header: str) -> tuple[str, str | None, bool]:
    """Kind and recipient of a channel, from the text between its start and its message marker, and
    whether there is more in it than these."""
    for field in headers.fields:
        header = header.replace(field, f" {field}")
    words = header.split()
    if words and words[0] != headers.role and not words[0].startswith(("to=", *headers.fields)):
        return FOREIGN, None, False
    to = [w[len("to=") :] for w in words if w.startswith("to=")]
    recipient = to[-1] if to else None  # as the core reads it, by the header's end
    if headers.channels:
        return _of_channel(headers, words, recipient), recipient, False
    extra = len(words) > (words[:1] == [headers.role]) + (recipient is not None)
    if recipient == headers.thought:
        return THOUGHT, recipient, extra
    if recipient is None or recipient == headers.answer:
        return ANSWER, recipient, extra
    return TOOL, recipient, extra


def _of_channel(headers: Headers, words: list[str], recipient: str | None) -> str:
    """Harmony: the channel is named after its marker; one with a recipient is a call, and
    commentary without one is said to the user."""
    if recipient is not None and recipient != headers.answer:
        return TOOL
    marker = headers.fields[0]
    channel = next((w[len(marker) :] for w in words if w.startswith(marker)), None)
    return THOUGHT if channel == headers.thought else ANSWER
