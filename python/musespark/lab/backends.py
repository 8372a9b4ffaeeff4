"""Replies for evaluation: what a reply is, and the reference that gives them, transformers. Our own
engine is in ``engine.py``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import MissingLibrary
from ..results import ThoughtSignals
from . import protocol, zoom
from . import tokenizer as tok
from .grading import grade
from .item import Item
from .raster import PATCH, Picture

_CALL = re.compile(r'<atem:invoke name="([^"]*)">\n(.*?)</atem:invoke>', re.S)
_PARAMETER = re.compile(r'<atem:parameter name="([^"]*)">(.*?)</atem:parameter>', re.S)


#: Zooms in one reply at most.
ZOOMS = 3


@dataclass
class Reply:
    """A model's turn: what it told the user, what it called, what it thought and in how many
    tokens. Where it zoomed in first, ``thought`` and ``tokens`` are of the last turn, and
    ``thinking_tokens`` of all.

    ``raw``: all it wrote, markers too. ``stable``: thinking tokens after which it would have stayed
    right (lab.oracle); None where nobody asked. ``first``: whether it is right where its thought is
    closed before its first check or other way; None where it has neither, or nobody asked.
    ``too_long``: there was none, the item is longer than the context.
    ``computed``: tokens that went through the model.
    ``probe_tokens`` of trial answers, and why the thought ``stopped``, as
    :class:`musespark.ChatResult` has them. ``logprobs`` of the tokens and ``signals`` of the
    thought's, where they were asked for.
    """

    answer: str
    calls: list[dict] = field(default_factory=list)
    thought: str = ""
    thinking_tokens: int = 0
    finished: bool = True
    raw: str = ""
    tokens: tuple[int, ...] = ()
    stable: int | None = None
    first: bool | None = None
    too_long: bool = False
    computed: int = 0
    probe_tokens: int = 0
    stopped: str = "none"
    logprobs: tuple[float, ...] = ()
    signals: ThoughtSignals | None = field(default=None, compare=False)


def right(item: Item, reply: Reply) -> bool:
    """Whether a reply ended and is exactly right."""
    return reply.finished and grade(item, reply.answer, reply.calls)


#: How a model is to think: as it likes, or not at all (its thought is empty and closed).
FREE, EMPTY = "free", "empty"


class Backend(Protocol):
    """Answers items greedily."""

    name: str

    @property
    def blind(self) -> str:
        """Why it sees no pictures; empty where it does."""

    def close(self) -> None:
        """Lets the model go."""

    def reply(
        self,
        items: list[Item],
        max_new_tokens: int,
        *,
        thinking: str = FREE,
        oracle: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Reply]:
        """One reply per item, in order; where ``oracle`` is asked for, with ``stable``."""


def parse_reply(ids: list[int], decode: Any) -> Reply:
    """Split generated ids (after the generation prompt) into channels by the markers.

    ``decode`` turns ids into text, markers left out.
    """
    reply = Reply("", raw=decode(ids))
    finished = tok.EOT in ids
    if finished:
        ids = ids[: ids.index(tok.EOT)]
    for channel in _split(ids, tok.EOM):
        if tok.START in channel:
            channel = channel[channel.index(tok.START) + 1 :]
        if tok.MESSAGE not in channel:
            continue
        at = channel.index(tok.MESSAGE)
        header, body = decode(channel[:at]), channel[at + 1 :]
        recipient = header.rsplit("to=", 1)[-1].strip()
        if recipient == "self":
            reply.thought += decode(body)
            reply.thinking_tokens += len(body)
        elif recipient == "user":
            reply.answer += decode(body)
        else:
            reply.calls += [
                {"name": name, "arguments": dict(_PARAMETER.findall(inner))}
                for name, inner in _CALL.findall(decode(body))
            ]
    reply.finished = finished
    return reply


def _split(ids: list[int], marker: int) -> list[list[int]]:
    out: list[list[int]] = [[]]
    for i in ids:
        if i == marker:
            out.append([])
        else:
            out[-1].append(i)
    return out


class TransformersBackend:
    """``MuseGlimmerForConditionalGeneration`` in float32, batched with left padding, greedy."""

    name, blind = "transformers", ""

    def __init__(self, folder: str | Path, batch: int = 64):
        try:
            import torch
            from transformers import AutoModelForImageTextToText
        except ImportError as error:
            raise MissingLibrary(
                f"the transformers backend needs {error.name}: pip install 'musespark[lab]'"
            ) from None

        from .network import patches_of

        self._patches_of = patches_of
        self._torch, self._batch = torch, batch
        self._tokenizer = tok.load(folder)
        self._model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32
        ).eval()

    def close(self) -> None:
        """Lets the model go."""
        del self._model

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def reply(
        self,
        items: list[Item],
        max_new_tokens: int,
        *,
        thinking: str = FREE,
        oracle: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Reply]:
        """Prompts of like length share a batch. A reply that calls the zoom tool on a picture it
        was given goes on with the crop, up to ``ZOOMS`` times. Neither oracle nor empty thoughts.
        """
        if oracle or thinking != FREE:
            raise ValueError("the transformers backend has no oracle and no empty thoughts")
        replies = self._replies(items, max_new_tokens)
        progress(len(items), len(items))
        for _ in range(ZOOMS):
            further = {
                i: seen
                for i, (item, reply) in enumerate(zip(items, replies, strict=True))
                if reply.calls and item.checker != "call"
                if (seen := zoom.answered(item, reply.thought, reply.calls))
            }
            if not further:
                break
            items = [further.get(i, item) for i, item in enumerate(items)]
            for i, reply in zip(
                further, self._replies(list(further.values()), max_new_tokens), strict=True
            ):
                reply.thinking_tokens += replies[i].thinking_tokens
                replies[i] = reply
        return replies

    def _replies(self, items: list[Item], max_new_tokens: int) -> list[Reply]:
        prompts = [
            protocol.encode(
                protocol.prompt_pieces(i.messages, i.effort, i.tools, i.pictures), self._tokenizer
            )[0]
            for i in items
        ]
        order = sorted(
            range(len(items)), key=lambda i: (items[i].effort, items[i].task, len(prompts[i]))
        )
        replies: list[Reply | None] = [None] * len(items)
        for at in range(0, len(order), self._batch):
            chosen = order[at : at + self._batch]
            pictures = [p for i in chosen for p in items[i].pictures or []]
            out = self._generate([prompts[i] for i in chosen], pictures, max_new_tokens)
            for i, ids in zip(chosen, out, strict=True):
                replies[i] = self._parsed(ids)
        return [r for r in replies if r is not None]

    def _parsed(self, ids: list[int]) -> Reply:
        ids = ids[: ids.index(tok.EOT) + 1] if tok.EOT in ids else ids
        reply = parse_reply(ids, self._decode)
        reply.raw = self._tokenizer.decode(ids, skip_special_tokens=False)
        reply.tokens = tuple(ids)
        return reply

    def _generate(
        self, prompts: list[list[int]], pictures: list[Picture], max_new_tokens: int
    ) -> list[list[int]]:
        torch, longest = self._torch, max(map(len, prompts))
        ids = torch.tensor([[tok.PAD] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        more = {}
        if pictures:
            patches = [
                self._patches_of(torch.from_numpy(p.pixels)[None]).flatten(0, 1) for p in pictures
            ]
            grids = [[1, *(s // PATCH for s in p.pixels.shape[:2])] for p in pictures]
            more = {"pixel_values": torch.cat(patches), "image_grid_thw": torch.tensor(grids)}
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=[tok.EOT, tok.EOS],
                pad_token_id=tok.PAD,
                **more,
            )
        return out[:, longest:].tolist()
