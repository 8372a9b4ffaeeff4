"""The commands ``musespark lab …``: evaluation here, the others by their own modules."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest, MissingLibrary, UnsupportedModel
from ..weights.files import write_whole
from .arguments import at_least, check_targets, chosen_of, filled
from .backends import Backend, TransformersBackend
from .card import attempts_table, baselines_table, card, fewer_told, formats_table, table
from .engine import ANY_EFFORT, MusesparkBackend
from .evaluate import (
    HELD_SHARE,
    OVERLAP_DRAWS,
    baselines,
    evaluate,
    fewer,
    items_for,
    overlap,
    score,
)
from .item import EFFORTS, LEVELS, Item
from .items_file import read_items
from .progress import Bar
from .steps import STEPS
from .tasks import EVALUATED, nlvr, pictures

NANO = str(Path(__file__).parent.parent / "nano")
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
    if argv and argv[0] in STEPS and argv[0] != "eval":
        return _module(argv[0], argv[1:])
    parser = argparse.ArgumentParser(prog="musespark lab", description="How Nano is made.")
    commands = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    for name, text in STEPS.items():
        step = commands.add_parser(name, help=text, add_help=name == "eval")
        if name == "eval":
            add_arguments(step)
    return run(parser.parse_args(argv))


def _module(name: str, argv: Sequence[str]) -> int:
    try:
        module = importlib.import_module(f"musespark.lab.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        raise MissingLibrary(
            f"musespark lab {name} needs {error.name}: pip install 'musespark[lab]'"
        ) from error
    module.main(list(argv))
    return 0


#: Options of the generated tasks, and what holds where they are not given.
GENERATED = {
    "tasks": "all",
    "levels": "all",
    "n": 100,
    "more": [],
    "seed": 2026,
    "nlvr": None,
    "wording": "both",
}


def add_arguments(p: argparse.ArgumentParser) -> None:
    """Of ``musespark lab eval``. What is None by default is given only where it has an effect."""
    p.add_argument("model", nargs="?", help="model folder, file or hub id (default: Spark Nano)")
    _add_items(p)
    p.add_argument("--efforts", help="all, some of low,medium,high,xhigh, or default: none set")
    p.add_argument(
        "--pictures",
        choices=("shown", "none", "grey", "swapped"),
        default="shown",
        help="none: no picture, a grey one, that of another question",
    )
    p.add_argument("--no-oracle", action="store_true", help="leave out stable_oracle_tokens")
    measured = "of N items per task and level, at medium effort"
    p.add_argument("--baselines", type=int, metavar="N", help=measured)
    p.add_argument("--formats", type=int, metavar="N", help=f"all formats {measured}")
    p.add_argument("--max-new-tokens", type=int, default=1000)
    p.add_argument("--quantize", choices=("auto", "none", "q8", "q4"), help="default: auto")
    p.add_argument("--kv", choices=("auto", "f32", "kv8", "kv8v4", "kv4"), help="default: auto")
    p.add_argument("--threads", type=int)
    p.add_argument("--backend", choices=("musespark", "transformers"), default="musespark")
    p.add_argument("--json", metavar="OUT", help="write the rows here")
    p.add_argument("--dump", metavar="FILE", help="write prompt, gold and raw output of each item")
    p.add_argument("--card", metavar="FILE", help="write the model card here")
    p.add_argument("--log", metavar="FILE", help="log.jsonl of the training run, for the card")


def _add_items(p: argparse.ArgumentParser) -> None:
    """What is asked."""
    p.add_argument("--tasks", help=f"all, or some of {', '.join(EVALUATED)}")
    p.add_argument("--levels", help="all, or some of easy,middle,hard")
    p.add_argument("--n", type=int, help="items per task, level and effort (default: 100)")
    more = "N items of these instead"
    p.add_argument("--more", action="append", metavar="TASK/LEVEL=N", help=more)
    p.add_argument("--seed", type=int, help="default: 2026")
    p.add_argument("--nlvr", metavar="FILE", help="NLVR's dev.json: its evaluation side too")
    p.add_argument(
        "--wording",
        choices=("seen", "held", "both"),
        help=f"both (the default): beside each {HELD_SHARE} items one in words that training never "
        "uses",
    )
    p.add_argument("--items", metavar="FILE", help="your own items (JSON lines) instead of tasks")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table, write what was asked for."""
    _check(args)
    every = args.tasks in (None, "all")
    items, short = _items(args)
    for cell in short:
        print("fewer than wanted:", fewer_told(cell), file=sys.stderr)
    report: dict[str, Any] = {"items": args.items}
    with contextlib.closing(_backend(args)) as backend:
        if not args.items:  # another's have no training side
            report = {"seed": args.seed, "overlap": _apart(args, items), "fewer": short}
        begin = time.monotonic()
        if backend.blind and every and not args.items and args.pictures != "none":
            items = _seen_by_the_blind(args, items, backend.blind)
        report |= _described(backend)
        dump = Path(args.dump) if args.dump else None
        report["rows"] = evaluate(
            backend,
            items,
            args.max_new_tokens,
            dump,
            pictures=args.pictures,
            oracle=args.backend == "musespark" and not args.no_oracle,
            progress=Bar("evaluating"),
        )
        if args.baselines:
            some = _some(args, args.baselines)
            report["baselines"] = baselines(backend, some, args.max_new_tokens, Bar("baselines"))
    if args.formats:
        report["formats"] = _formats(args)
    report["seconds"] = round(time.monotonic() - begin, 1)
    _tell(args, report)
    return 0


def _apart(args: argparse.Namespace, items: list[Item]) -> dict[str, int]:
    """What the items share with training; InvalidRequest where those are instances."""
    shared = overlap(items, OVERLAP_DRAWS, args.seed)
    told = ", ".join(f"{n} {what}" for what, n in shared.items())
    print(f"{len(items)} items, overlap with {OVERLAP_DRAWS} training draws: {told}")
    if same := shared["instances"]:
        raise InvalidRequest(f"{same} training draws are instances of the evaluation")
    return shared


def _check(args: argparse.Namespace) -> None:
    """Refuses what cannot be done before anything is computed for it; fills in the defaults."""
    written, read = ("json", "dump", "card"), ("items", "log", "nlvr")
    check_targets(*({f"--{name}": getattr(args, name) for name in one} for one in (written, read)))
    for option, beside in _idle(args):
        raise InvalidRequest(f"{option}: has no effect {beside}")
    if args.log and not Path(args.log).is_file():
        raise InvalidRequest(f"--log: there is no file {args.log}")
    filled(args, GENERATED)
    at_least(1, args.n, "--n")
    at_least(1, args.max_new_tokens, "--max-new-tokens")
    for name in ("baselines", "formats"):
        at_least(0, getattr(args, name) or 0, f"--{name}")


def _idle(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Options that were given and change nothing beside others."""

    def given(*names: str) -> Iterator[str]:
        for name in names:
            if getattr(args, name) not in (None, False):
                yield "--" + name.replace("_", "-")

    if args.items:
        for option in given("baselines", "formats", "card"):
            yield option, "with --items"
    if args.backend == "transformers":
        ours = given("quantize", "kv", "threads", "no_oracle", "baselines", "formats")
        for option in ours:
            yield option, "with --backend transformers"
    if args.log and not args.card:
        yield "--log", "without --card"
    if args.pictures != "shown" and (args.baselines or args.formats):
        yield "--pictures", "on --baselines and --formats"


def _items(args: argparse.Namespace) -> tuple[list[Item], list[dict]]:
    """What is asked, and where that is less than was wanted; ``args.tasks``, ``levels`` and
    ``efforts`` become lists."""
    efforts = chosen_of(args.efforts or "all", (*EFFORTS, ANY_EFFORT), "--efforts", EFFORTS)
    if args.items:
        items = read_items(Path(args.items), efforts if args.efforts else None)
        return _with_pictures(args, items), []
    args.efforts = efforts
    args.tasks = chosen_of(args.tasks, EVALUATED, "--tasks")
    args.levels = chosen_of(args.levels, LEVELS, "--levels")
    items, short = [], []
    for wording in ("seen", "held") if args.wording == "both" else (args.wording,):
        share = HELD_SHARE if (args.wording, wording) == ("both", "held") else 1
        more = {where: -(-n // share) for where, n in _counts(args).items()}
        n, held = -(-args.n // share), wording == "held"
        some = items_for(args.tasks, args.levels, efforts, n, args.seed, more, held_wording=held)
        items += some
        cells = fewer(some, args.tasks, args.levels, n, more)
        short += [cell | {"wording": wording} for cell in cells]
    if args.nlvr:
        nlvr.use(args.nlvr)
        items += nlvr.items(args.levels, efforts, args.n, args.seed)
    return _with_pictures(args, items), short


def _with_pictures(args: argparse.Namespace, items: list[Item]) -> list[Item]:
    if args.pictures != "shown" and not any(i.pictures for i in items):
        raise InvalidRequest(f"--pictures: got {args.pictures}, no item has a picture")
    return items


def _seen_by_the_blind(args: argparse.Namespace, items: list[Item], why: str) -> list[Item]:
    if args.nlvr:
        raise UnsupportedModel(f"--nlvr: {why}")
    args.tasks = [task for task in args.tasks if task not in pictures.TASKS]
    print(f"tasks with pictures are left out: {why}")
    return [i for i in items if not i.pictures]


def _some(args: argparse.Namespace, n: int) -> list[Item]:
    """``n`` items per task and level at medium effort, or none where none is set."""
    efforts = [ANY_EFFORT if args.efforts == [ANY_EFFORT] else "medium"]
    return items_for(args.tasks, args.levels, efforts, n, args.seed)


def _backend(args: argparse.Namespace) -> Backend:
    if args.backend == "transformers":
        return TransformersBackend(args.model or NANO)
    options = {"quantize": args.quantize or "auto", "kv": args.kv or "auto"}
    return MusesparkBackend(args.model, threads=args.threads, **options)


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
    source = args.model or NANO
    items, out = _some(args, args.formats), []
    for quantize, kv in FORMATS:
        bar = Bar(f"weights {quantize}, cache {kv}")
        load = {"quantize": quantize, "kv": kv, "threads": args.threads}
        with contextlib.closing(MusesparkBackend(source, **load)) as backend:
            rows = score(items, backend.reply(items, args.max_new_tokens, progress=bar))
        for modality in dict.fromkeys(r["modality"] for r in rows):
            mine = [r for r in rows if r["modality"] == modality]
            counts = {key: sum(r[key] for r in mine) for key in ("n", "correct")}
            out.append({"quantize": quantize, "kv": kv, "modality": modality, **counts})
    return out


def _tell(args: argparse.Namespace, report: dict[str, Any]) -> None:
    rows = report["rows"]
    print(table(rows))
    for name, told in (("baselines", baselines_table), ("formats", formats_table)):
        if report.get(name):
            print(f"\n{name}, at medium effort\n\n{told(report[name])}")
    if attempts := attempts_table(rows):
        print(f"\nfirst attempts\n\n{attempts}")
    print()
    for wording, modality in dict.fromkeys((r["wording"], r["modality"]) for r in rows):
        mine = [r for r in rows if (r["wording"], r["modality"]) == (wording, modality)]
        correct, n = sum(r["correct"] for r in mine), sum(r["n"] for r in mine)
        of = modality if args.items else f"{modality}, {wording} wordings"
        print(f"{of}: {correct}/{n} = {correct / n:.1%}")
    if too_long := sum(r["too_long"] for r in rows):
        print(f"{too_long} longer than the context, not answered and counted as wrong")
    asked = f"items {args.items}" if args.items else f"seed {args.seed}"
    print(f"{report['backend']}, {asked}, {report['seconds']:.0f} s")
    if args.json:
        write_whole(Path(args.json), (json.dumps(report, indent=1) + "\n").encode())
    if args.card:
        log = Path(args.log) if args.log else None
        write_whole(Path(args.card), card(report, Path(args.model or NANO), log).encode())


def _counts(args: argparse.Namespace) -> dict[str, int]:
    """``--more`` by task/level."""
    counts: dict[str, int] = {}
    for text in args.more:
        where, _, n = text.partition("=")
        task, _, level = where.partition("/")
        if task not in EVALUATED or level not in LEVELS or not n.isdecimal():
            raise InvalidRequest(f"--more: got {text!r:.60}, wanted TASK/LEVEL=N")
        if task not in args.tasks or level not in args.levels:
            raise InvalidRequest(f"--more: {where} is not among --tasks and --levels")
        if where in counts:
            raise InvalidRequest(f"--more: {where} is given twice")
        counts[where] = int(n)
    return counts
