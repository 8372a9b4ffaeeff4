"""Items as token ids with a loss mask: the twin, in Python, of nano/chat_template.jinja.

Written out here because training renders thousands of items a second; a test holds it to the
template.
Only what the model itself writes is trained: thoughts (but for wrong steps), answers and calls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby

from tokenizers import Tokenizer

from . import tokenizer as tok
from .item import WRONG_CLOSE, WRONG_OPEN, Item
from .raster import CELL, Picture

#: A piece is a marker id or a text, and whether the loss counts it.
Piece = tuple[int | str, bool]


def system_text(system: str, effort: str, tools: list[dict] | None) -> str:
    """The system message: the caller's text, the effort, the tools, who may be written to."""
    lines = [system] if system else []
    lines.append(f"Reasoning strength: {effort}.")
    functions = [t.get("function", t) for t in tools or []]
    if functions:
        lines.append("# Tools")
        lines += [
            json.dumps({k: f[k] for k in ("name", "description", "parameters")}, ensure_ascii=False)
            for f in functions
        ]
    spaces = list(dict.fromkeys(f["name"].split(".")[0] for f in functions))
    recipients = ", ".join(['"self"', *(f'"{s}.*"' for s in spaces), '"user"'])
    return "\n".join([*lines, f"# Valid recipients: {recipients}."])


def call_text(call: dict) -> str:
    """One call in ATEM form."""
    lines = ["<atem:function_calls>", f'<atem:invoke name="{call["name"]}">']
    for key, value in call["arguments"].items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(f'<atem:parameter name="{key}">{shown}</atem:parameter>')
    return "\n".join([*lines, "</atem:invoke>", "</atem:function_calls>"])


def prompt_pieces(
    messages: list[dict],
    effort: str,
    tools: list[dict] | None,
    pictures: list[Picture] | None = None,
) -> list[Piece]:
    """Everything up to and with the generation prompt ``<|start|>assistant``.

    ``pictures`` are those of the messages' image parts, in order. An assistant turn with
    ``"trained": True`` is what the model is to write too (a call it makes before the item's end).
    """
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    pieces: list[Piece] = [(tok.BOS, False), *_turn("system", system_text(system, effort, tools))]
    shown = iter(pictures or [])
    last = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            pieces += [(tok.START, False), ("assistant", False)]
            thought = message.get("reasoning_content") if i > last else None
            calls = [c["function"] for c in message.get("tool_calls") or []]
            written = written_pieces(thought or None, message["content"], calls)
            pieces += written if message.get("trained") else [(p, False) for p, _ in written]
        elif message["role"] == "tool":
            name = message["name"]
            content = _content_pieces(message["content"], shown)
            before, after = f'<tool_output name="{name}">\n', "\n</tool_output>"
            pieces += _turn(f"tool {name}", [(before, False), *content, (after, False)])
        elif message["role"] == "user":
            pieces += _turn("user", _content_pieces(message["content"], shown))
    return [*pieces, (tok.START, False), ("assistant", False)]


def _content_pieces(content: str | list[dict], shown: Iterator[Picture]) -> list[Piece]:
    """Text, and each image part as the run of patches that stands for its picture."""
    if isinstance(content, str):
        return [(content, False)]
    pieces: list[Piece] = []
    for part in content:
        if part["type"] == "text":
            pieces.append((part["text"], False))
        else:
            height, width = next(shown).pixels.shape[:2]
            count = (height // CELL) * (width // CELL)
            pieces += [(i, False) for i in (tok.IMAGE_START, *[tok.PATCH] * count, tok.IMAGE_END)]
    return pieces


def _turn(header: str, content: str | list[Piece]) -> list[Piece]:
    body = [(content, False)] if isinstance(content, str) else content
    return [(tok.START, False), (header, False), (tok.MESSAGE, False), *body, (tok.EOT, False)]


def reply_pieces(item: Item) -> list[Piece]:
    """What the model is to write: an optional thought, then calls or an answer."""
    return written_pieces(item.thought, item.answer, item.calls or [], forced=item.forced)


def written_pieces(
    thought: str | None, answer: str, calls: list[dict], *, forced: bool = False
) -> list[Piece]:
    """An assistant turn after its ``<|start|>assistant``, trained but for wrong steps; where it is
    ``forced`` but for the thought and what ends it, or for the header of an answer without one."""
    pieces: list[Piece] = []
    if thought is None and forced:
        return [(" to=user", False), (tok.MESSAGE, False), (answer, True), (tok.EOT, True)]
    if thought is not None:
        told = [(thought, False)] if forced else _masked(thought)
        pieces += [(" to=self", True), (tok.MESSAGE, True), *told, (tok.EOM, not forced)]
        pieces += [(tok.START, True), ("assistant", True)]
    for i, call in enumerate(calls):
        pieces += [(tok.EOM, True), (tok.START, True), ("assistant", True)] if i else []
        pieces += [(f" to={call['name']}", True), (tok.MESSAGE, True), (call_text(call), True)]
    if not calls:
        pieces += [(" to=user", True), (tok.MESSAGE, True), (answer, True)]
    return [*pieces, (tok.EOT, True)]


def _masked(thought: str) -> list[Piece]:
    out: list[Piece] = []
    for i, part in enumerate(thought.split(WRONG_OPEN)):
        wrong, _, rest = part.partition(WRONG_CLOSE) if i else ("", "", part)
        out += [(wrong, False)] if wrong else []
        out += [(rest, True)] if rest else []
    return out


def encode(
    pieces: list[Piece], tokenizer: Tokenizer, prompt_tokenizer: Tokenizer | None = None
) -> tuple[list[int], list[bool]]:
    """Ids and loss mask; untrained text may go through another tokenizer (BPE dropout)."""
    ids: list[int] = []
    mask: list[bool] = []
    for piece, trained in _joined(pieces):
        if isinstance(piece, int):
            new = [piece]
        else:
            chosen = tokenizer if trained or prompt_tokenizer is None else prompt_tokenizer
            new = chosen.encode(piece, add_special_tokens=False).ids
        ids += new
        mask += [trained] * len(new)
    return ids, mask


def _joined(pieces: list[Piece]) -> Iterator[Piece]:
    """Neighbouring texts of one kind as one text, for the tokenizer may merge across them."""
    for (is_text, trained), group in groupby(pieces, lambda p: (isinstance(p[0], str), p[1])):
        if is_text:
            yield "".join(p for p, _ in group), trained
        else:
            yield from group
