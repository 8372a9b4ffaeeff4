"""``python -m musespark.lab.evaluate [FOLDER]``: exact accuracy per task, level and effort on
held-out instances.

Items come from the evaluation side of the split only (see ``lab.item``); the overlap with a
sample of
training draws is counted and printed. Decoding is greedy.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import numpy as np

from . import mix
from .backends import Backend, MusesparkBackend, Reply, TransformersBackend
from .item import EFFORTS, LEVELS, HeldOutWording, Item, compose, grade
from .raster import Picture
from .tasks import EVALUATED, draw, split_of
from .zoom import opened


def wilson(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927); (0, 1) without observations."""
    if n == 0:
        return 0.0, 1.0
    p = correct / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def items_for(
    tasks: list[str],
    levels: list[str],
    efforts: list[str],
    n: int,
    seed: int,
    more: dict[str, int] | None = None,
    *,
    held_wording: bool = False,
) -> list[Item]:
    """``n`` items per task, level and effort, or ``more["task/level"]`` of them; the efforts of a
    task and level see the same instances. ``held_wording`` asks in the tenth of the wordings that
    training never uses.

    Instances are distinct, so there are fewer where the held-out side is smaller.
    """
    generator = HeldOutWording if held_wording else Random
    items = []
    for task in tasks:
        for level in levels:
            wanted = (more or {}).get(f"{task}/{level}", n)
            for effort in efforts:
                rng, seen, tries = generator(f"{seed} {task} {level}"), set(), 0
                while len(seen) < wanted and tries < 50 * wanted:
                    tries += 1
                    problem = draw(rng, task, level, evaluation=True)
                    if problem.key not in seen:
                        seen.add(problem.key)
                        items.append(opened(compose(problem, effort, Random(seed))))
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


def blinded(items: list[Item], how: str) -> list[Item]:
    """``items`` as a baseline sees them: ``grey`` pictures that show nothing, or ``swapped``: each
    question with the picture of the next one of its task and level."""
    if how == "shown":
        return items
    groups: dict[tuple[str, str], list[int]] = {}
    for i, item in enumerate(items):
        if item.pictures:
            groups.setdefault((item.task, item.level), []).append(i)
    out = list(items)
    for members in groups.values():
        for here, there in zip(members, [*members[1:], members[0]], strict=True):
            pictures = items[there].pictures
            if how == "grey":
                pictures = [_grey(p) for p in items[here].pictures]
            out[here] = replace(items[here], pictures=pictures)
    return out


def _grey(picture: Picture) -> Picture:
    return Picture(np.full_like(picture.pixels, 128))


def score(items: list[Item], replies: list[Reply]) -> list[dict]:
    """One row per task, level and effort."""
    rows: dict[tuple, dict] = {}
    for item, reply in zip(items, replies, strict=True):
        row = rows.setdefault(
            (item.task, item.level, item.effort),
            {
                "task": item.task,
                "level": item.level,
                "modality": item.modality,
                "effort": item.effort,
                "n": 0,
                "correct": 0,
                "thinking_tokens": 0.0,
                "unfinished": 0,
            },
        )
        row["n"] += 1
        row["correct"] += reply.finished and grade(item, reply.answer, reply.calls)
        row["thinking_tokens"] += reply.thinking_tokens
        row["unfinished"] += not reply.finished
    for row in rows.values():
        row["thinking_tokens"] = round(row["thinking_tokens"] / row["n"], 1)
        row["accuracy"] = round(row["correct"] / row["n"], 4)
        row["interval"] = [round(v, 4) for v in wilson(row["correct"], row["n"])]
    return list(rows.values())


def table(rows: list[dict]) -> str:
    """Markdown: one line per task and level; per effort accuracy with interval and mean thinking
    tokens."""
    efforts = [e for e in EFFORTS if any(r["effort"] == e for r in rows)]
    lines = ["| task | level | n | " + " | ".join(f"{e} | tokens" for e in efforts) + " |"]
    lines.append("|---|---|---|" + "---|---|" * len(efforts))
    for task, level in dict.fromkeys((r["task"], r["level"]) for r in rows):
        mine = {r["effort"]: r for r in rows if (r["task"], r["level"]) == (task, level)}
        cells = []
        for effort in efforts:
            r = mine.get(effort)
            cells += (
                [
                    f"{r['accuracy']:.1%} [{r['interval'][0]:.0%}, {r['interval'][1]:.0%}]",
                    f"{r['thinking_tokens']:.0f}",
                ]
                if r
                else ["", ""]
            )
        lines.append(
            f"| {task} | {level} | {next(iter(mine.values()))['n']} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def evaluate(
    backend: Backend, items: list[Item], max_new_tokens: int = 400, dump: Path | None = None
) -> list[dict]:
    """Reply, grade, and write the raw outputs to ``dump`` (JSON lines) for others to grade."""
    replies = backend.reply(items, max_new_tokens)
    if dump:
        with dump.open("w") as f:
            for item, reply in zip(items, replies, strict=True):
                right = reply.finished and grade(item, reply.answer, reply.calls)
                line = {"item": _plain(item), "reply": asdict(reply), "correct": bool(right)}
                f.write(json.dumps(line) + "\n")
    return score(items, replies)


def _plain(item: Item) -> dict:
    """``item`` for JSON: of its pictures only size and SHA-256."""
    pictures = [
        {"shape": p.pixels.shape, "sha256": hashlib.sha256(p.pixels.tobytes()).hexdigest()}
        for p in item.pictures or []
    ]
    return asdict(replace(item, pictures=None)) | {"pictures": pictures}


_BEGIN, _END = "<!-- accuracy -->", "<!-- /accuracy -->"


def fill_card(card: Path, text: str) -> None:
    """Put ``text`` between the accuracy marks of a model card; without the marks it raises."""
    content = card.read_text()
    before, begin, rest = content.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"{card}: no line {_BEGIN} followed by {_END}")
    card.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}")


def _listed(text: str, allowed: tuple[str, ...], name: str) -> list[str]:
    chosen = list(allowed) if text == "all" else text.split(",")
    for c in chosen:
        if c not in allowed:
            raise SystemExit(f"--{name}: got {c}, allowed are {', '.join(allowed)}")
    return chosen


def _counts(texts: list[str]) -> dict[str, int]:
    counts = {}
    for text in texts:
        where, _, n = text.partition("=")
        task, _, level = where.partition("/")
        if task not in EVALUATED or level not in LEVELS or not n.isdigit():
            raise SystemExit(f"--more: got {text}, wanted TASK/LEVEL=N")
        counts[where] = int(n)
    return counts


def main(argv: list[str] | None = None) -> None:
    """Evaluate and print the table."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("folder", nargs="?", help="model folder (default: the embedded model)")
    p.add_argument("--backend", choices=("musespark", "transformers"), default="musespark")
    p.add_argument("--tasks", default="all")
    p.add_argument("--levels", default="all")
    p.add_argument("--efforts", default="all")
    p.add_argument("--n", type=int, default=100, help="items per task, level and effort")
    p.add_argument(
        "--more", action="append", default=[], metavar="TASK/LEVEL=N", help="N items of these"
    )
    p.add_argument("--seed", type=int, default=2026)
    p.add_argument(
        "--wording", choices=("seen", "held"), default="seen", help="held: the held-out wordings"
    )
    p.add_argument(
        "--pictures",
        choices=("shown", "grey", "swapped"),
        default="shown",
        help="baselines: every picture grey, or that of another question",
    )
    p.add_argument("--max-new-tokens", type=int, default=400)
    p.add_argument("--json", help="write the rows here")
    p.add_argument("--card", help="put the table between the accuracy marks of this model card")
    p.add_argument("--dump", help="write each item with its raw reply here (JSON lines)")
    args = p.parse_args(argv)
    items = items_for(
        _listed(args.tasks, EVALUATED, "tasks"),
        _listed(args.levels, LEVELS, "levels"),
        _listed(args.efforts, EFFORTS, "efforts"),
        args.n,
        args.seed,
        _counts(args.more),
        held_wording=args.wording == "held",
    )
    shared = overlap(items, 20_000, args.seed)
    print(f"{len(items)} items, overlap with 20000 training draws = {shared}")
    if shared:
        raise SystemExit("evaluation items occur in training")
    folder = args.folder or str(Path(__file__).parent.parent / "nano")
    backend = (
        TransformersBackend(folder)
        if args.backend == "transformers"
        else MusesparkBackend(args.folder)
    )
    begin = time.time()
    items = blinded(items, args.pictures)
    rows = evaluate(backend, items, args.max_new_tokens, Path(args.dump) if args.dump else None)
    seconds = time.time() - begin
    print(table(rows))
    for modality in dict.fromkeys(r["modality"] for r in rows):
        mine = [r for r in rows if r["modality"] == modality]
        correct, n = sum(r["correct"] for r in mine), sum(r["n"] for r in mine)
        print(f"{modality}: {correct}/{n} = {correct / n:.1%}")
    correct, n = sum(r["correct"] for r in rows), sum(r["n"] for r in rows)
    summary = f"all: {correct}/{n} = {correct / n:.1%}, backend {backend.name}, seed {args.seed}"
    print(f"{summary}, {seconds:.0f} s")
    if args.card:
        fill_card(Path(args.card), f"{table(rows)}\n\n{summary}.")
    if args.json:
        Path(args.json).write_text(
            json.dumps(
                {
                    "backend": backend.name,
                    "seed": args.seed,
                    "overlap": shared,
                    "wording": args.wording,
                    "pictures": args.pictures,
                    "rows": rows,
                },
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
