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
from collections.abc import Callable, Iterable, Sequence
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
#: Draws for each instance that is wanted, at most.
_TRIES = 50
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

    Instances are distinct, so there are fewer where a side of the split is smaller: see
    :func:`fewer`.
    """
    generator = HeldOutWording if held_wording else Evaluation if evaluation else Random
    wording = "held" if held_wording else "seen"
    items = []
    for task in tasks:
        for level in levels:
            wanted = (more or {}).get(f"{task}/{level}", n)
            problems, tries = {}, 0
            rng = generator(f"{seed} {task} {level}")
            while len(problems) < wanted and tries < _TRIES * wanted:
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


def fewer(
    items: Iterable[Item],
    tasks: Sequence[str],
    levels: Sequence[str],
    n: int,
    more: dict[str, int] | None = None,
) -> list[dict]:
    """Of what :func:`items_for` gave for the same arguments, the tasks and levels that have fewer
    instances than were wanted: {task, level, n, wanted}."""
    found = Counter(
        (i.task, i.level) for i in {(i.task, i.level, i.key): i for i in items}.values()
    )
    cells = [(task, level) for task in tasks for level in levels]
    wanted = {(t, k): (more or {}).get(f"{t}/{k}", n) for t, k in cells}
    return [
        {"task": task, "level": level, "n": found[task, level], "wanted": count}
        for (task, level), count in wanted.items()
        if found[task, level] < count
    ]


def overlap(items: list[Item], draws: int, seed: int) -> dict[str, int]:
    """Of ``draws`` fresh training items, how many are ``instances`` of ``items``, which must be 0;
    and whatever their keys, how many without pictures are asked in the same words (``prompts``) and
    how many hold one of the same calls, name and arguments (``calls``)."""
    instances = {(split_of(i.task), i.key) for i in items}
    prompts = {_prompt(i) for i in items if not i.pictures}
    calls = {call for i in items for call in _calls(i)}
    rng, found = Random(seed), {"instances": 0, "prompts": 0, "calls": 0}
    for k in range(draws):
        drawn = [mix.draw_training_item(rng, "main")]
        if k % 4 == 0:
            drawn += mix.draw_picture_items(rng)
        for item in drawn:
            found["instances"] += (split_of(item.task), item.key) in instances
            found["prompts"] += not item.pictures and _prompt(item) in prompts
            found["calls"] += not calls.isdisjoint(_calls(item))
    return found


def _prompt(item: Item) -> str:
    return json.dumps(item.messages, sort_keys=True)


def _calls(item: Item) -> list[str]:
    return [json.dumps([c["name"], c["arguments"]], sort_keys=True) for c in item.calls or []]


# ---- baselines ----------------------------------------------------------------------------------


def blinded(items: list[Item], how: str) -> list[Item]:
    """``items`` as a baseline sees them: without their pictures (``none``), ``grey`` pictures that
    show nothing, or ``swapped``: each question with the pictures of the next one of its task, level
    and effort whose answer is another; where none is, of its task, of any task; where all have one
    answer, of the next one; grey where there is no other of as many pictures."""
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
        item, found = items[here], []
        for group in _groups_of(item):
            members = groups[group]
            at = members.index(here)
            further = [items[i] for i in (*members[at + 1 :], *members[:at])]
            found += [o for o in further if _may_show(o, item)]
            if others := [o for o in found if o.answer != item.answer]:
                return others[0]
        return found[0] if found else _blinded(item, "grey")

    swapped = {here: other(here).pictures for here in groups.get((), ())}
    return [
        replace(item, pictures=swapped[here]) if here in swapped else item
        for here, item in enumerate(items)
    ]


def _may_show(other: Item, item: Item) -> bool:
    """Whether the pictures of ``other`` may stand for those of ``item``: as many, of another scene,
    and to be told with the same means (a picture to zoom into shows nothing without the tool)."""
    return (
        other.key != item.key
        and len(other.pictures) == len(item.pictures)
        and bool(other.tools) == bool(item.tools)
    )


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


def tells_pictures_apart(item: Item) -> bool:
    """Whether another picture may change the answer: what is too small to read without the zoom
    tool is "cannot tell" of every picture."""
    return bool(item.tools) or item.task != "zooming"


def without_zoom(items: list[Item]) -> list[Item]:
    """Those items that come with the zoom tool, without it."""

    def zooms(item: Item) -> bool:
        return [t["function"]["name"] for t in item.tools or []] == [NAME]

    return [replace(i, tools=None) for i in items if zooms(i)]


def with_majority(items: list[Item], draws: int = 200) -> list[Reply]:
    """For each item the most frequent answer of its task and level on the training side, at the
    sizes that evaluation asks."""
    known: dict[tuple[str, str], Reply] = {}
    for item in items:
        if (item.task, item.level) not in known:
            rng = Evaluation(f"{item.task} {item.level}")
            drawn = [draw(rng, item.task, item.level, evaluation=False) for _ in range(draws)]
            told = Counter((p.answer, json.dumps(p.calls)) for p in drawn)
            answer, calls = told.most_common(1)[0][0]
            known[item.task, item.level] = Reply(answer, json.loads(calls) or [])
    return [known[item.task, item.level] for item in items]


def baselines(backend: Backend, items: list[Item], limit: int, progress: Progress) -> list[dict]:
    """Rows as :func:`score` has them, with ``baseline``: the same items as ``asked``, answered by
    the ``majority`` of training, with ``no thought``, ``no image``, a ``swapped image`` (those
    whose answer a picture may change); and those with the zoom tool with it and without."""
    seen = [i for i in items if i.pictures]
    apart = [i for i in seen if tells_pictures_apart(i)]
    blind = without_zoom(items)

    def asked(some: list[Item], **how: Any) -> list[Reply]:
        return backend.reply(some, limit, progress=progress, **how)

    replies = asked(items)
    looking = [(i, r) for i, r in zip(items, replies, strict=True) if i.tools and i.pictures]
    told = {
        "asked": (items, replies),
        "majority": (items, with_majority(items)),
        "no thought": (items, asked(items, thinking=EMPTY)),
        "no image": (seen, asked(blinded(seen, "none"))),
        "swapped image": (apart, asked(blinded(apart, "swapped"))),
        "zoom": ([i for i, _ in looking], [r for _, r in looking]),
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
    row's part of the whole run's, by the tokens computed: its items ran beside all others.

    Counts of replies that were ``checked``: their first attempt (:class:`lab.backends.Reply`) was
    known, ``first_wrong``: it was wrong, ``repaired``: and the end right, ``spoiled``: it was right
    and the end wrong.
    """
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
    ends = [(r.first, right(i, r)) for i, r in group if r.first is not None]
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
        "checked": len(ends),
        "first_wrong": sum(not first for first, _ in ends),
        "repaired": ends.count((False, True)),
        "spoiled": ends.count((True, False)),
        "unfinished": sum(not r.finished for r in replies),
        "too_long": sum(r.too_long for r in replies),
        "accuracy": round(correct / n, 4),
        "interval": [round(v, 4) for v in clustered(marks)],
    }


def evaluate(
    backend: Backend,
    items: list[Item],
    max_new_tokens: int = 400,
    dump: Path | None = None,
    *,
    pictures: str = "shown",
    oracle: bool = False,
    progress: Progress = lambda done, total: None,
) -> list[dict]:
    """Reply, grade, and write the raw outputs to ``dump`` (JSON lines) for others to grade.

    ``pictures``: what is shown of them (:func:`blinded`). Rows are of the items as they are, the
    dump has what was asked.
    """
    begin = time.monotonic()
    asked = blinded(items, pictures)
    replies = backend.reply(asked, max_new_tokens, oracle=oracle, progress=progress)
    seconds = time.monotonic() - begin
    if dump:
        records = [dump_record(*pair) for pair in zip(asked, replies, strict=True)]
        told = [r | {"modality": i.modality} for i, r in zip(items, records, strict=True)]
        lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in told]
        write_whole(dump, "".join(lines).encode())
    return score(items, replies, seconds)


def dump_record(item: Item, reply: Reply) -> dict:
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
        "first_right": reply.first,
        "finished": reply.finished,
        "correct": bool(right(item, reply)),
    }
