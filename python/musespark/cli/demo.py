"""``musespark demo``: what the embedded model does, on exercises that its training never drew.

A word problem with its thought; a tool that is called, and runs; a picture drawn on the spot and
one of the package, each asked for a place. The true answer stands beside what the model said,
whatever that was.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musespark.cli import common
from musespark.errors import InvalidRequest, MissingLibrary, UnsupportedModel
from musespark.machine import human_bytes

if TYPE_CHECKING:
    from musespark.lab.item import Item
    from musespark.model import Model
    from musespark.results import ChatResult

_LONGEST = 400  # tokens of a turn
_SCALE = 4  # pictures have 128 pixels a side


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m", "--model", help="a model trained as Spark Nano was (default: Spark Nano)"
    )
    parser.add_argument("--seed", type=int, help="of the exercises (default: others each time)")
    parser.add_argument(
        "--out", metavar="FOLDER", help="for pictures and pages (default: a new temporary folder)"
    )
    parser.add_argument("--threads", type=int, default=None, help="default: every core")


def run(args: argparse.Namespace) -> int:
    import musespark

    if args.out is not None:
        _check_folder(Path(args.out))
    seed = random.randrange(1_000_000) if args.seed is None else args.seed
    start = time.perf_counter()
    with musespark.load(args.model, threads=args.threads) as model:
        info = model.info
        print(
            f"{'Spark Nano' if args.model is None else args.model}: {info.parameters / 1e6:.1f} M "
            f"parameters, {human_bytes(info.weight_bytes)}, loaded in "
            f"{time.perf_counter() - start:.2f} s ({info.isa}, {info.threads} threads)"
        )
        print(f"Exercises that training never drew; --seed {seed} draws them again.")
        demo = _Demo(model, seed)
        demo.think()
        demo.call()
        demo.see(args.out)
        print(f"\n{demo.tokens} tokens written at {demo.tokens / demo.seconds:,.0f} tokens/s")
    print(f"peak memory {human_bytes(common.peak_memory_bytes())}")
    return 0


def calculate(expression: str) -> str:
    """Evaluate an expression."""
    from musespark.lab.grading import value_of

    return str(value_of(expression))


class _Demo:
    """The questions of a seed to one model; ``tokens`` and ``seconds`` of what it wrote."""

    def __init__(self, model: Model, seed: int):
        from musespark.lab.item import Evaluation

        self._model, self._random = model, Evaluation(seed)
        self._style = common.Style()
        self.tokens, self.seconds = 0, 0.0

    def think(self) -> None:
        """A word problem of three steps and a sentence that does not matter."""
        self._title("A word problem, with its thought")
        item = self._drawn("word_problem", "middle", "high")
        result = self._ask(_messages(item), reasoning_effort="high")
        self._compare(_right(item, result), f"true answer: {item.answer}")

    def call(self) -> None:
        """A sum for which there is a tool, which is a Python function."""
        from musespark.agents import act
        from musespark.lab.grading import value_of

        self._title("A tool: calculate(expression)")
        question, expression = self._sum()
        told = act(self._ask, question, [calculate], tool_choice=None)
        value = str(value_of(expression))
        said = re.findall(r"-?\d+", told.content)
        self._compare(bool(told.uses) and said == [value], f"true answer: {value}")

    def see(self, out: str | None) -> None:
        """Two pictures, each asked for a place, and the places drawn in."""
        folder = None
        for name, title, item in self._pictures():
            self._title(title)
            try:
                result = self._ask(_messages(item))
            except UnsupportedModel as error:
                common.show(f"This model does not see ({error}); pictures are left out.")
                return
            self._compare(_right(item, result), f"true box: {item.answer}{_overlap(item, result)}")
            folder = folder or _folder(out)
            for path in _written(result.trace, folder / name):
                common.show(path)

    # ---- what is asked --------------------------------------------------------------------------

    def _drawn(self, task: str, level: str, effort: str) -> Item:
        from musespark.lab.tasks import draw_item

        return draw_item(self._random, task, level, effort, evaluation=True)

    def _sum(self) -> tuple[str, str]:
        """A question for the calculator, of the evaluation side, and the expression in it."""
        from musespark.lab.grading import value_of
        from musespark.lab.item import is_evaluation

        while True:
            first, second = self._random.randint(100, 9999), self._random.randint(10, 999)
            expression = f"{first}{self._random.choice('+-*')}{second}"
            question = f"Use the calculator for {expression}."
            keys = f"{question} calculate", f"report {question} {value_of(expression)}"
            if all(is_evaluation("tool_call", key) for key in keys):
                return question, expression

    def _pictures(self) -> Iterator[tuple[str, str, Item]]:
        """Names of files, titles and items."""
        import musespark
        from musespark.lab.items_file import read_items

        yield "drawn", "A picture drawn just now", self._drawn("locating", "easy", "medium")
        path = Path(musespark.__file__).parent / "nano" / "examples" / "items.jsonl"
        try:
            items = read_items(path, ["medium"])
        except MissingLibrary as error:
            common.note(f"The picture of the package is left out: {error}")
            return
        for item in items:
            yield "window", "A picture of the package", item

    # ---- asking and telling ---------------------------------------------------------------------

    def _title(self, text: str) -> None:
        print(f"\n{self._style.bold}{text}{self._style.reset}")

    def _ask(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> ChatResult:
        """A turn, shown as it comes; before it what it answers."""
        last = messages[-1]
        mark = f"= {last['name']}:" if last["role"] == "tool" else ">"
        common.show(f"{mark} {_text(last['content'])}")
        stream = self._model.chat(messages, stream=True, max_new_tokens=_LONGEST, **options)
        printer = common.ChannelPrinter(self._style)
        for delta in stream:
            printer(delta)
        printer.finish()
        result = stream.result
        self.tokens += max(0, result.usage.completion_tokens - 1)
        self.seconds += result.timings.decode_s
        return result

    def _compare(self, right: bool, truth: str) -> None:
        mark = "right" if right else "wrong"
        print(f"{self._style.dim}[{truth}: {mark}]{self._style.reset}")


def _messages(item: Item) -> list[dict[str, Any]]:
    from musespark.lab.engine import messages_of

    return messages_of(item)


def _text(content: str | Sequence[Mapping[str, Any]]) -> str:
    """What of a message can be printed."""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "(picture)") for part in content)


def _right(item: Item, result: ChatResult) -> bool:
    from musespark.lab.grading import grade

    return result.finish_reason == "stop" and grade(item, result.content)


def _overlap(item: Item, result: ChatResult) -> str:
    """How far a box lies on the true one; right from a half on."""
    from musespark.lab.grading import boxes_in, overlap_of

    told, (_, true) = boxes_in(result.content), boxes_in(item.answer)[0]
    if len(told) != 1:
        return ""
    return f", overlap {overlap_of(told[0][1], true):.2f} (intersection over union)"


def _check_folder(folder: Path) -> None:
    """InvalidRequest where files could not be written, before anything is asked for them. The
    folder is made when there is something to put in it."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise InvalidRequest(f"--out: {place} is no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InvalidRequest(f"--out: {place} cannot be written to")


def _folder(out: str | None) -> Path:
    if out is None:
        return Path(tempfile.mkdtemp(prefix="musespark-demo-"))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _written(trace: Any, path: Path) -> Iterator[Path]:
    """The page, and the picture where Pillow is there to draw it."""
    trace.to_html(path.with_suffix(".html"))
    yield path.with_suffix(".html")
    try:
        trace.to_png(path.with_suffix(".png"), scale=_SCALE)
    except MissingLibrary as error:
        common.note(str(error))
    else:
        yield path.with_suffix(".png")
