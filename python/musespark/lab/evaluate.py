"""``musespark lab eval [MODEL]``: exact accuracy per task, level and effort on held-out instances.

Items come from the evaluation side of the split only (see ``lab.item``); the overlap with a sample
of training draws is counted and printed. Decoding is greedy, on the package's own engine as it
ships, and needs nothing but the package.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from ..weights.files import write_whole
from . import mix
from .backends import EMPTY, Backend, Reply, right
from .item import Evaluation, HeldOutWording, Item, compose, is_calibration
from .raster import Picture
from .tasks import draw, split_of
from .zoom import NAME, opened

Progress = Callable[[int, int], None]
#: Of so many items in the words that training uses one is asked in held-out words too.
HELD_SHARE = 5
#: Training draws that the evaluation's instances are looked for in.
OVERLAP_DRAWS = 20_000


def wilson(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927); (0, 1) without observations."""
    if n == 0:
        return 0.0, 1.0
    p = correct / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


# ---- what is asked ------------------------------------------------------------------------------


def items_for(
    tasks: Iterable[str],
    levels: Iterable[str],
    efforts: Iterable[str],
    n: int,
    seed: int,
    more: dict[str, int] | None = None,
    *,
    held_wording: bool = False,
    evaluation: bool = True,
    calibration: bool | None = None,
) -> list[Item]:
    """``n`` items per task, level and effort, or ``more["task/level"]`` of them; the efforts of a
    task and level see the same instances. ``held_wording`` asks in the tenth of the wordings that
    training never uses; not ``evaluation``: of the other side of the split, as training draws.
    ``calibration``: only those that thresholds are calibrated on, or only the others.

    Instances are distinct, so there are fewer where a side of the split is smaller.
    """
    generator = HeldOutWording if held_wording else Evaluation if evaluation else Random
    wording = "held" if held_wording else "seen"
    items = []
    for task in tasks:
        for level in levels:
            wanted = (more or {}).get(f"{task}/{level}", n)
            problems, tries = {}, 0
            rng = generator(f"{seed} {task} {level}")
            while len(problems) < wanted and tries < 50 * wanted:
                tries += 1
                problem = draw(rng, task, level, evaluation=evaluation)
                if calibration in (None, is_calibration(split_of(task), problem.key)):
                    problems.setdefault(problem.key, problem)
            items += [
                replace(opened(compose(problem, effort, Random(seed))), wording=wording)
                for effort in efforts
                for problem in problems.values()
            ]
    return items


def overlap(items: list[Item], draws: int, seed: int) -> int:
    """How many of ``draws`` fresh training items are instances of ``items``: must be 0."""
    held = {(split_of(i.task), i.key) for i in items}
    rng, count = Random(seed), 0
    for k in range(draws):
        drawn = [mix.draw_training_item(rng, "main")]
        if k % 4 == 0:
            drawn += mix.draw_picture_items(rng)
        count += sum((split_of(i.task), i.key) in held for i in drawn)
    return count


# ---- baselines ----------------------------------------------------------------------------------


def blinded(items: list[Item], how: str) -> list[Item]:
    """``items`` as a baseline sees them: without their pictures (``none``), ``grey`` pictures that
    show nothing, or ``swapped``: each question with the pictures of the next one of its task, level
    and effort whose answer is another, or of the next one; where it is alone, of another level or
    task; grey where there is no other of as many pictures."""
    if how == "shown":
        return items
    if how == "swapped":
        return _swapped(items)
    return [_blinded(item, how) if item.pictures else item for item in items]


def _swapped(items: list[Item]) -> list[Item]:
    groups: dict[tuple[str, ...], list[int]] = {}
    for here, item in enumerate(items):
        for group in _groups_of(item) if item.pictures else ():
            groups.setdefault(group, []).append(here)

    def other(here: int) -> Item:
        item = items[here]
        for group in _groups_of(item):
            members = groups[group]
            at = members.index(here)
            further = [
                items[i]
                for i in (*members[at + 1 :], *members[:at])
                if items[i].key != item.key and len(items[i].pictures) == len(item.pictures)
            ]
            if further:
                return next((o for o in further if o.answer != item.answer), further[0])
        return _blinded(item, "grey")

    swapped = {here: other(here).pictures for here in groups.get((), ())}
    return [
        replace(item, pictures=swapped[here]) if here in swapped else item
        for here, item in enumerate(items)
    ]


def _groups_of(item: Item) -> list[tuple[str, ...]]:
    """Those that a question may get its pictures from, the nearest first."""
    return [(item.task, item.level, item.effort), (item.task,), ()]


def _blinded(item: Item, how: str) -> Item:
    if how == "grey":
        return replace(item, pictures=[_grey(p) for p in item.pictures])
    messages = [m if isinstance(m["content"], str) else _unseen(m) for m in item.messages]
    return replace(item, messages=messages, pictures=None)


def _grey(picture: Picture) -> Picture:
    return Picture(np.full_like(picture.pixels, 128))


def _unseen(message: dict) -> dict:
    return message | {"content": "".join(p["text"] for p in message["content"] if "text" in p)}


def without_zoom(items: list[Item]) -> list[Item]:
    """Those items that come with the zoom tool, without it."""

    def zooms(item: Item) -> bool:
        return [t["function"]["name"] for t in item.tools or []] == [NAME]

    return [replace(i, tools=None) for i in items if zooms(i)]


def with_majority(items: list[Item], draws: int = 200) -> list[Reply]:
    """For each item the most frequent answer of its task and level on the training side."""
    known: dict[tuple[str, str], Reply] = {}
    for item in items:
        if (item.task, item.level) not in known:
            rng = Random(f"{item.task} {item.level}")
            drawn = [draw(rng, item.task, item.level, evaluation=False) for _ in range(draws)]
            told = Counter((p.answer, json.dumps(p.calls)) for p in drawn)
            answer, calls = told.most_common(1)[0][0]
            known[item.task, item.level] = Reply(answer, json.loads(calls) or [])
    return [known[item.task, item.level] for item in items]


def baselines(backend: Backend, items: list[Item], limit: int, progress: Progress) -> list[dict]:
    """Rows as :func:`score` has them, with ``baseline``: the same items as ``asked``, answered by
    the ``majority`` of training, with ``no thought``, ``no image``, a ``swapped image``; and those
    that come with the zoom tool with it and without."""
    seen = [i for i in items if i.pictures]
    blind = without_zoom(items)
    looking = [i for i in items if i.tools and i.pictures]

    def asked(some: list[Item], **how: Any) -> list[Reply]:
        return backend.reply(some, limit, progress=progress, **how)

    told = {
        "asked": (items, asked(items)),
        "majority": (items, with_majority(items)),
        "no thought": (items, asked(items, thinking=EMPTY)),
        "no image": (seen, asked(blinded(seen, "none"))),
        "swapped image": (seen, asked(blinded(seen, "swapped"))),
        "zoom": (looking, asked(looking)),
        "no zoom": (blind, asked(blind)),
    }
    return [
        {"baseline": name, **row}
        for name, (some, replies) in told.items()
        for row in score(some, replies)
    ]


# ---- rows ---------------------------------------------------------------------------------------


def score(items: list[Item], replies: list[Reply], seconds: float = 0.0) -> list[dict]:
    """One row per task, level, effort and wording. Thinking tokens are means; ``seconds`` is the
    row's part of the whole run's, by the tokens computed: its items ran beside all others."""
    groups: dict[tuple, list[tuple[Item, Reply]]] = {}
    for item, reply in zip(items, replies, strict=True):
        groups.setdefault((item.task, item.level, item.effort, item.wording), []).append(
            (item, reply)
        )
    computed = sum(reply.computed for reply in replies) or 1
    return [_row(group, seconds / computed) for group in groups.values()]


def clustered(marks: dict[str, list[bool]]) -> tuple[float, float]:
    """The 95% interval of a share whose observations come in clusters (of one sentence, say), which
    are alike: from the spread of the clusters' sums, never narrower than Wilson's."""
    n, correct = (sum(map(f, marks.values())) for f in (len, sum))
    plain = wilson(correct, n)
    count = len(marks)
    if count == n or count < 2:
        return plain
    p = correct / n
    spread = sum((sum(m) - p * len(m)) ** 2 for m in marks.values()) * count / (count - 1)
    half = 1.96 * math.sqrt(spread) / n
    return max(0.0, min(plain[0], p - half)), min(1.0, max(plain[1], p + half))


def _row(group: list[tuple[Item, Reply]], each: float) -> dict:
    item, n = group[0][0], len(group)
    replies = [reply for _, reply in group]
    marks: dict[str, list[bool]] = {}
    for i, r in group:
        marks.setdefault(i.key, []).append(right(i, r))
    correct = sum(map(sum, marks.values()))
    stable = [r.stable for r in replies]
    return {
        "task": item.task,
        "level": item.level,
        "modality": item.modality,
        "effort": item.effort,
        "wording": item.wording,
        "kind": item.checker,
        "n": n,
        "correct": correct,
        "thinking_tokens": round(sum(r.thinking_tokens for r in replies) / n, 1),
        "stable_oracle_tokens": None if None in stable else round(sum(stable) / n, 1),
        "seconds": round(sum(r.computed for r in replies) * each, 2),
        "unfinished": sum(not r.finished for r in replies),
        "accuracy": round(correct / n, 4),
        "interval": [round(v, 4) for v in clustered(marks)],
    }


def evaluate(
    backend: Backend,
    items: list[Item],
    max_new_tokens: int = 400,
    dump: Path | None = None,
    *,
    oracle: bool = False,
    progress: Progress = lambda done, total: None,
) -> list[dict]:
    """Reply, grade, and write the raw outputs to ``dump`` (JSON lines) for others to grade."""
    begin = time.monotonic()
    replies = backend.reply(items, max_new_tokens, oracle=oracle, progress=progress)
    seconds = time.monotonic() - begin
    if dump:
        pairs = zip(items, replies, strict=True)
        lines = [json.dumps(told(*pair), ensure_ascii=False) + "\n" for pair in pairs]
        write_whole(dump, "".join(lines).encode())
    return score(items, replies, seconds)


def told(item: Item, reply: Reply) -> dict:
    """An item and its reply for the dump: prompt, gold and raw output; pictures' SHA-256."""
    pictures = [
        {"shape": p.pixels.shape, "sha256": hashlib.sha256(p.pixels.tobytes()).hexdigest()}
        for p in item.pictures or []
    ]
    return {
        "task": item.task,
        "level": item.level,
        "modality": item.modality,
        "effort": item.effort,
        "wording": item.wording,
        "key": item.key,
        "prompt": {"messages": item.messages, "tools": item.tools, "pictures": pictures},
        "gold": {
            "kind": item.checker,
            "answer": item.calls if item.checker == "call" else item.answer,
        },
        "output": {"answer": reply.answer, "calls": reply.calls, "thought": reply.thought},
        "raw": reply.raw,
        "thinking_tokens": reply.thinking_tokens,
        "stable_oracle_tokens": reply.stable,
        "finished": reply.finished,
        "correct": bool(right(item, reply)),
    }
