"""Items as token ids with a loss mask: the twin, in Python, of nano/chat_template.jinja.

Written out here because training renders thousands of items a second; a test holds it to the
template.
Only what the model itself writes is trained: thoughts (but for wrong steps), answers and calls.
"""

from __future__ import annotations

import json

from tokenizers import Tokenizer

from . import tokenizer as tok
from .item import WRONG_CLOSE, WRONG_OPEN, Item

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


def prompt_pieces(messages: list[dict], effort: str, tools: list[dict] | None) -> list[Piece]:
    """Everything up to and with the generation prompt ``<|start|>assistant``."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    pieces: list[Piece] = [(tok.BOS, False), *_turn("system", system_text(system, effort, tools))]
    for message in messages[1:] if system else messages:
        if message["role"] == "tool":
            name = message["name"]
            pieces += _turn(
                f"tool {name}", f'<tool_output name="{name}">\n{message["content"]}\n</tool_output>'
            )
        elif message.get("tool_calls"):
            for call in message["tool_calls"]:
                pieces += _turn(
                    f"assistant to={call['function']['name']}", call_text(call["function"])
                )
        elif message["role"] == "assistant":
            pieces += _turn("assistant to=user", message["content"])
        else:
            pieces += _turn(message["role"], message["content"])
    return [*pieces, (tok.START, False), ("assistant", False)]


def _turn(header: str, content: str) -> list[Piece]:
    return [
        (tok.START, False),
        (header, False),
        (tok.MESSAGE, False),
        (content, False),
        (tok.EOT, False),
    ]


def reply_pieces(item: Item) -> list[Piece]:
    """What the model is to write: an optional thought, then calls or an answer."""
    pieces: list[Piece] = []
    if item.thought is not None:
        pieces += [(" to=self", True), (tok.MESSAGE, True), *_masked(item.thought), (tok.EOM, True)]
        pieces += [(tok.START, True), ("assistant", True)]
    for i, call in enumerate(item.calls or []):
        pieces += [(tok.EOM, True), (tok.START, True), ("assistant", True)] if i else []
        pieces += [(f" to={call['name']}", True), (tok.MESSAGE, True), (call_text(call), True)]
    if not item.calls:
        pieces += [(" to=user", True), (tok.MESSAGE, True), (item.answer, True)]
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
    for piece, trained in pieces:
        if isinstance(piece, int):
            new = [piece]
        else:
            chosen = tokenizer if trained or prompt_tokenizer is None else prompt_tokenizer
            new = chosen.encode(piece, add_special_tokens=False).ids
        ids += new
        mask += [trained] * len(new)
    return ids, mask
