"""What a model is told of what a tool gave: as much as it may be, and as the context has room for.

The room is a matter of the conversation alone: what its last turn took of the context, by the
tokens that the result counts, so that the same conversation is told the same everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from musespark.agents.events import ToolUse
from musespark.agents.flags import flags_of
from musespark.agents.running import Ran
from musespark.agents.tools import Content, Tool, Written, text_of
from musespark.errors import Error
from musespark.options import TOTAL
from musespark.text import Tokenizer
from musespark.text.toolcalls import skip_space

MAX_RESULT = 16_384  # characters of a tool's answer that a model is told
# This is done on an event loop, where others wait: 30 ms and 60 ms at the most.
_MOST_SEARCHED = 1 << 17  # characters in which flags are looked for
_MOST_COUNTED = 1 << 21  # characters of a list whose items are counted
_LEAST = 80  # characters that are told however little room there is
_SHOWN = 300  # characters of an error
_FRAME = 32  # tokens of a message around its text
_SHORTEST = 32  # tokens of an answer that images leave room for


class Reader(Protocol):
    """What is known of the model that is told: :class:`musespark.requests.Requests`."""

    tokenizer: Tokenizer

    @property
    def context(self) -> int: ...

    @property
    def image_tokens(self) -> Callable[[Sequence[Mapping[str, Any]]], int] | None: ...


class Room:
    """The context of a model: of how many tokens, how many a text has, and how many the images
    among a message's parts; None where it sees none."""

    def __init__(
        self,
        context: int,
        count: Callable[[str], int],
        images: Callable[[Sequence[Mapping[str, Any]]], int] | None = None,
    ):
        self._context, self.count, self.images = context, count, images

    @classmethod
    def of(cls, model: Reader) -> Room:
        tokenizer = model.tokenizer
        return cls(model.context, lambda text: len(tokenizer.encode(text)), model.image_tokens)

    def after(self, result: Any, options: Mapping[str, Any], calls: int) -> Share:
        """What the answers to the calls of a turn may have: half of what the context has left, and
        no more than leaves the tokens that the ``options`` give the next turn's answer. Its thought
        and a limit of both together yield to the room there is: half stays for them."""
        agents = getattr(result, "agents", ())  # several, whose usage is that of all together
        asked = agents[0].usage.prompt_tokens if agents else result.usage.prompt_tokens
        written = len(result.tokens) if agents else result.usage.completion_tokens
        left = self._context - asked - written
        answer = options.get("max_tokens") or options.get("max_new_tokens") or 0
        total = options.get(TOTAL)
        if total is not None:
            answer = min(answer, total)
        return Share(left, answer, calls, self.count)


class Share:
    """Tokens that the answers of one step have together, of the ``left`` ones of the context: the
    text of each the same part of what those before it have left of half; images, which cannot be
    cut, all but what the next turn's answer has to have."""

    def __init__(self, left: int, answer: int, calls: int, count: Callable[[str], int]):
        self._left, self._whole = min(left // 2, left - answer), left - max(answer, _SHORTEST)
        self._calls, self.count = calls, count

    @property
    def tokens(self) -> int:
        """Of the next answer."""
        return max(0, self._left // max(1, self._calls) - _FRAME)

    def take(self, answer: str) -> None:
        self._take(self.count(answer) + _FRAME)
        self._calls -= 1

    def take_images(self, tokens: int) -> bool:
        """Whether images have room; they are taken then."""
        fits = tokens == 0 or tokens <= self._whole - _FRAME
        self._take(tokens if fits else 0)
        return fits

    def _take(self, tokens: int) -> None:
        self._left, self._whole = self._left - tokens, self._whole - tokens


def told(error: BaseException) -> str:
    """What a model is told of an error: of ours the message, of a function's its name too."""
    try:
        what = str(error) if isinstance(error, Error) else f"{type(error).__name__}: {error}"
    except Exception:  # it cannot say what it is
        what = type(error).__name__
    return text_of(f"error: {what:.{_SHOWN}}")


def told_call(
    seen: tuple[int, str, str, Any],
    ran: Ran,
    tools: Mapping[str, Tool],
    markers: Collection[str] = (),
    most: int = MAX_RESULT,
    share: Share | None = None,
    *,
    sees: bool = True,
) -> tuple[ToolUse, Any]:
    """A call that was made, and the content of the message that answers it. ``sees``: whether the
    model takes images; else it is told how many there are. Others: of :func:`_told_use`."""
    limits = (tools, markers, most, share)
    if ran.error is not None:
        use = _told_use(seen, Written(told(ran.error)), "error", ran.seconds, *limits)
        return use, use.answer
    hidden = ""
    if not sees:
        hidden = "which this model cannot see"
    elif share is not None and not share.take_images(ran.images):
        hidden = "for which the context has no room"
    return _with_images(ran.value, _told_use(seen, ran.text, "done", ran.seconds, *limits), hidden)


def _told_use(
    seen: tuple[int, str, str, Any],
    written: Written,
    status: str,
    seconds: float,
    tools: Mapping[str, Tool],
    markers: Collection[str] = (),
    most: int = MAX_RESULT,
    share: Share | None = None,
) -> ToolUse:
    """A use (``seen``: its turn, id, name and arguments) with what is told of a text, cut where it
    is too long, and with its flags: of what is told, and of what comes next. ``most``: characters;
    ``share``: what the context has for it."""
    text = written.text
    flags = flags_of(text[:_MOST_SEARCHED], tools, markers)
    whole, cut = ToolUse(*seen, text, status, seconds, flags), _Cut(written)
    found = whole if len(text) <= most else cut.at(whole, most)
    most = min(most, len(text))
    while share is not None and most > _LEAST:
        tokens, cost = share.tokens, share.count(found.answer)
        if cost <= tokens:
            break
        most = max(_LEAST, most * tokens // cost)
        found = cut.at(whole, most)
    return found


class _Cut:
    """A text to be cut, perhaps several times."""

    def __init__(self, written: Written):
        self._text, self._least = written.text, "at least " if written.more else ""
        self._items: int | None = None
        self._looked = False

    def at(self, use: ToolUse, most: int) -> ToolUse:
        """The use with so many characters of the text, and a note of what was left out."""
        end, items = self._end(most)
        left_out = len(self._text) - end
        note = f"{self._least}{left_out} more characters were left out"
        if items is not None:
            note = f"{items[0]} of {self._least}{items[1]} items are shown; {note}"
        answer = f"{self._text[:end]}\n[{note}]"
        seen = (use.turn, use.id, use.name, use.arguments, answer, use.status, use.seconds)
        return ToolUse(*seen, use.flags, left_out, items)

    def _end(self, most: int) -> tuple[int, tuple[int, int] | None]:
        """Where to cut. A list in JSON: after its last whole item; and how many of how many items
        that are. A list that would take long to count is cut as a text."""
        total = self._total()
        if total is None:
            return most, None
        decoder, at, end, shown = json.JSONDecoder(), skip_space(self._text, 1), 0, 0
        while shown < total:
            _, at = decoder.raw_decode(self._text, at)
            if at > most:
                break
            end, shown = at, shown + 1
            at = skip_space(self._text, skip_space(self._text, at) + 1)  # behind the comma
        return (end, (shown, total)) if shown else (most, None)

    def _total(self) -> int | None:
        """The items of a list; None for what is none, or is too long."""
        if not self._looked:
            self._looked = True
            if self._text.startswith("[") and len(self._text) <= _MOST_COUNTED:
                try:
                    self._items = len(json.loads(self._text))
                except (ValueError, RecursionError):  # a text that only begins so
                    self._items = None
        return self._items


def _with_images(value: Any, use: ToolUse, hidden: str) -> tuple[ToolUse, Any]:
    """The use of a tool that gave ``value``, and what is told of its texts and images. ``hidden``:
    why the model does not get the images, which is told too; empty: it does."""
    if not isinstance(value, Content):
        return use, use.answer
    if value.media and hidden:
        answer = f"{use.answer}\n[images, {hidden}: {len(value.media)}]".strip()
        return replace(use, answer=answer), answer
    if use.left_out:
        return use, [*value.media, {"type": "text", "text": use.answer}]
    return use, list(value.parts)
