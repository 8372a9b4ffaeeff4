"""The commands ``musespark lab …``: evaluation here; training and export, which need torch, by
their own modules."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from ..errors import InvalidRequest, MissingLibrary
from .backends import Backend, TransformersBackend
from .card import card, table
from .engine import ANY_EFFORT, MusesparkBackend
from .evaluate import (
    HELD_SHARE,
    OVERLAP_DRAWS,
    baselines,
    blinded,
    evaluate,
    items_for,
    overlap,
    score,
)
from .item import EFFORTS, LEVELS, Item
from .items_file import read_items
from .tasks import EVALUATED, nlvr, pictures

#: Commands that are modules with a ``main(argv)`` of their own, and what --help says of them.
MODULES = {
    "train": "train Spark Nano, or go on from a checkpoint (needs torch)",
    "rl": "group-relative policy optimization (needs torch)",
    "curve": "what runs of `lab rl` say of accuracy and length",
    "rollouts": "the model's own right replies, to train on",
    "export": "a checkpoint as a folder that transformers and musespark load (needs torch)",
}
#: Weights and cache of the first are what all others are compared with.
FORMATS = (
    ("none", "f32"),
    ("q8", "f32"),
    ("q4", "f32"),
    ("none", "kv8"),
    ("none", "kv8v4"),
    ("none", "kv4"),
    ("auto", "auto"),
)


def main(argv: Sequence[str]) -> int:
    """``musespark lab ARGV…``: one step; returns the exit status."""
    if argv and argv[0] in MODULES:
        return _module(argv[0], argv[1:])
    parser = argparse.ArgumentParser(prog="musespark lab", description="How Nano is made.")
    commands = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    add_arguments(commands.add_parser("eval", help="exact accuracy on held-out instances"))
    for name, text in MODULES.items():
        commands.add_parser(name, help=text, add_help=False)
    return run(parser.parse_args(argv))


def _module(name: str, argv: Sequence[str]) -> int:
    try:
        module = importlib.import_module(f"musespark.lab.{name}")
    except ModuleNotFoundError as error:
        raise MissingLibrary(
            f"musespark lab {name} needs {error.name}: pip install 'musespark[lab]'"
        ) from error
    module.main(list(argv))
    return 0


def add_arguments(p: argparse.ArgumentParser) -> None:
    """Of ``musespark lab eval``."""
    p.add_argument("model", nargs="?", help="model folder, file or hub id (default: Spark Nano)")
    p.add_argument("--tasks", default="all", help=f"all, or some of {', '.join(EVALUATED)}")
    p.add_argument("--levels", default="all", help="all, or some of easy,middle,hard")
    p.add_argument(
        "--efforts", default="all", help="all, some of low,medium,high,xhigh, or default: none set"
    )
    p.add_argument("--n", type=int, default=100, help="items per task, level and effort")
    more = "N items of these instead"
    p.add_argument("--more", action="append", default=[], metavar="TASK/LEVEL=N", help=more)
    p.add_argument("--seed", type=int, default=2026)
    p.add_argument("--nlvr", metavar="FILE", help="NLVR's dev.json: its evaluation side too")
    p.add_argument("--items", metavar="FILE", help="your own items (JSON lines) instead of tasks")
    p.add_argument(
        "--wording",
        choices=("seen", "held", "both"),
        default="both",
        help=f"both: beside each {HELD_SHARE} items one in words that training never uses",
    )
    p.add_argument(
        "--pictures",
        choices=("shown", "none", "grey", "swapped"),
        default="shown",
        help="baselines: no picture, a grey one, that of another question",
    )
    p.add_argument("--no-oracle", action="store_true", help="leave out stable_oracle_tokens")
    p.add_argument(
        "--baselines", type=int, default=0, metavar="N", help="of N items per task and level"
    )
    p.add_argument(
        "--formats", type=int, default=0, metavar="N", help="compare all formats on so many items"
    )
    p.add_argument("--max-new-tokens", type=int, default=400)
    p.add_argument("--quantize", default="auto", choices=("auto", "none", "q8", "q4"))
    p.add_argument("--kv", default="auto", choices=("auto", "f32", "kv8", "kv8v4", "kv4"))
    p.add_argument("--threads", type=int)
    p.add_argument("--backend", choices=("musespark", "transformers"), default="musespark")
    p.add_argument("--json", metavar="OUT", help="write the rows here")
    p.add_argument("--dump", metavar="FILE", help="write prompt, gold and raw output of each item")
    p.add_argument("--card", metavar="FILE", help="write the model card here")
    p.add_argument("--log", metavar="FILE", help="log.jsonl of the training run, for the card")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table, write what was asked for."""
    _check(args)
    items = _items(args)
    # Another's items have no training side.
    shared = 0 if args.items else overlap(items, OVERLAP_DRAWS, args.seed)
    if not args.items:
        print(f"{len(items)} items, overlap with {OVERLAP_DRAWS} training draws = {shared}")
    if shared:
        raise InvalidRequest(f"{shared} training draws are instances of the evaluation")
    begin = time.monotonic()
    backend = _backend(args)
    if isinstance(backend, MusesparkBackend) and backend.blind and args.tasks == "all":
        args.tasks = ",".join(task for task in EVALUATED if task not in pictures.TASKS)
        items = [i for i in items if not i.pictures]
        print(f"tasks with pictures are left out: {backend.blind}")
    report: dict[str, Any] = {"seed": args.seed, "overlap": shared, **_described(backend)}
    try:
        shown = blinded(items, args.pictures)
        oracle = not args.no_oracle and args.backend == "musespark"
        dump = Path(args.dump) if args.dump else None
        bar = Bar("evaluating")
        report["rows"] = evaluate(
            backend, shown, args.max_new_tokens, dump, oracle=oracle, progress=bar
        )
        if args.baselines:
            some = _some(args, args.baselines)
            report["baselines"] = baselines(backend, some, args.max_new_tokens, Bar("baselines"))
    finally:
        if isinstance(backend, MusesparkBackend):
            backend.close()
    if args.formats:
        report["formats"] = _formats(args)
    report["seconds"] = round(time.monotonic() - begin, 1)
    _tell(args, report)
    return 0


def _check(args: argparse.Namespace) -> None:
    for name in ("json", "dump", "card"):
        path = getattr(args, name)
        if path and not Path(path).parent.is_dir():
            raise InvalidRequest(f"--{name}: there is no folder {Path(path).parent}")
    for name in ("n", "baselines", "formats"):
        if getattr(args, name) < (name == "n"):
            raise InvalidRequest(f"--{name}: {getattr(args, name)}, must be {int(name == 'n')}…")
    if args.items and (args.baselines or args.formats):
        raise InvalidRequest("--items: baselines and formats are measured on the generated tasks")


def _items(args: argparse.Namespace) -> list[Item]:
    efforts = _listed(args.efforts, (*EFFORTS, ANY_EFFORT), EFFORTS, "efforts")
    if args.items:
        return read_items(Path(args.items), efforts)
    tasks = _listed(args.tasks, EVALUATED, EVALUATED, "tasks")
    levels = _listed(args.levels, LEVELS, LEVELS, "levels")
    more = _counts(args.more)
    items = []
    if args.wording != "held":
        items += items_for(tasks, levels, efforts, args.n, args.seed, more)
    if args.wording != "seen":
        share = 1 if args.wording == "held" else HELD_SHARE
        more = {where: -(-n // share) for where, n in more.items()}
        n = -(-args.n // share)
        items += items_for(tasks, levels, efforts, n, args.seed, more, held_wording=True)
    if args.nlvr:
        nlvr.use(args.nlvr)
        items += nlvr.items(efforts, args.n, args.seed)
    return items


def _some(args: argparse.Namespace, n: int) -> list[Item]:
    """``n`` items per task and level at medium effort, or none where none is set."""
    efforts = [ANY_EFFORT if args.efforts == ANY_EFFORT else "medium"]
    tasks = _listed(args.tasks, EVALUATED, EVALUATED, "tasks")
    return items_for(tasks, _listed(args.levels, LEVELS, LEVELS, "levels"), efforts, n, args.seed)


def _backend(args: argparse.Namespace, **other: Any) -> Backend:
    if args.backend == "transformers":
        folder = args.model or str(Path(__file__).parent.parent / "nano")
        return TransformersBackend(folder)
    options = {"quantize": args.quantize, "kv": args.kv, "threads": args.threads}
    return MusesparkBackend(args.model, **options | other)


def _described(backend: Backend) -> dict[str, Any]:
    if not isinstance(backend, MusesparkBackend):
        return {"backend": backend.name, "weights": "f32", "kv": "f32"}
    info = backend.model.info
    return {
        "backend": backend.name,
        "source": info.source,
        "parameters": info.parameters,
        "weights": " + ".join(sorted(info.weight_formats)),
        "kv": info.kv,
    }


def _formats(args: argparse.Namespace) -> list[dict]:
    """A row for each format and modality, on the same items."""
    source = args.model or str(Path(__file__).parent.parent / "nano")
    items, out = _some(args, args.formats), []
    for quantize, kv in FORMATS:
        backend = MusesparkBackend(source, quantize=quantize, kv=kv, threads=args.threads)
        bar = Bar(f"weights {quantize}, cache {kv}")
        rows = score(items, backend.reply(items, args.max_new_tokens, progress=bar))
        backend.close()
        for modality in dict.fromkeys(r["modality"] for r in rows):
            mine = [r for r in rows if r["modality"] == modality]
            counts = {key: sum(r[key] for r in mine) for key in ("n", "correct")}
            out.append({"quantize": quantize, "kv": kv, "modality": modality, **counts})
    return out


def _tell(args: argparse.Namespace, report: dict[str, Any]) -> None:
    rows = report["rows"]
    print(table(rows))
    for wording, modality in dict.fromkeys((r["wording"], r["modality"]) for r in rows):
        mine = [r for r in rows if (r["wording"], r["modality"]) == (wording, modality)]
        correct, n = sum(r["correct"] for r in mine), sum(r["n"] for r in mine)
        print(f"{modality}, {wording} wordings: {correct}/{n} = {correct / n:.1%}")
    print(f"{report['backend']}, seed {args.seed}, {report['seconds']:.0f} s")
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.card:
        folder = Path(args.model) if args.model else Path(__file__).parent.parent / "nano"
        log = Path(args.log) if args.log else None
        Path(args.card).write_text(card(report, folder, log), encoding="utf-8")


def _listed(text: str, allowed: tuple[str, ...], every: tuple[str, ...], name: str) -> list[str]:
    chosen = list(every) if text == "all" else text.split(",")
    for one in chosen:
        if one not in allowed:
            raise InvalidRequest(f"--{name}: got {one!r:.60}, allowed are {', '.join(allowed)}")
    return chosen


def _counts(texts: list[str]) -> dict[str, int]:
    counts = {}
    for text in texts:
        where, _, n = text.partition("=")
        task, _, level = where.partition("/")
        if task not in EVALUATED or level not in LEVELS or not n.isdigit():
            raise InvalidRequest(f"--more: got {text!r:.60}, wanted TASK/LEVEL=N")
        counts[where] = int(n)
    return counts


class Bar:
    """Items done, on standard error: in a terminal only."""

    def __init__(self, label: str, stream: TextIO | None = None):
        self._label, self._stream = label, stream or sys.stderr
        self._begin = self._drawn = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        ended = done >= total
        if not self._stream.isatty() or (not ended and now - self._drawn < 0.2):
            return
        self._drawn, filled = now, 24 * done // max(1, total)
        rate = done / (now - self._begin) if now > self._begin else 0.0
        left = f"{(total - done) / rate:.0f} s left" if rate and not ended else ""
        bar = "█" * filled + "░" * (24 - filled)
        end = "\n" if ended else ""
        told = f"\r{self._label} [{bar}] {done}/{total}  {rate:.1f} items/s  {left}\x1b[K{end}"
        self._stream.write(told)
        self._stream.flush()
