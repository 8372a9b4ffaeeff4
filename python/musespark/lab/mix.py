"""What training draws, how often: tasks, levels, efforts, prose."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from . import formats, zoom
from .item import LEVELS, Item, compose
from .tasks import draw, draw_item, functions, nlvr, pictures, talk
from .tasks.words import split_words

#: Relative weight of each task by phase. "first" teaches copying, spelling, looking up,
#: pairs of numbers and single digits.
WEIGHTS = {
    "first": {
        "copying": 3,
        "spelling": 3,
        "pairs": 3,
        "lookup": 3,
        "recall": 1,
        "addition": 3,
        "subtraction": 2,
        "multiplication": 1,
        "comparison": 3,
        "extreme": 1,
        "sorting": 1,
        "letters": 1,
        "ordering": 1,
        "word_problem": 1,
        "table": 1,
        "dates": 1,
        "units": 1,
        "facts": 0.3,
        "tool_call": 1,
        "about": 0.7,
        "story": 0.2,
    },
    "main": {
        "copying": 0.6,
        "spelling": 2.2,
        "pairs": 4,
        "lookup": 1.5,
        "recall": 0.3,
        "addition": 1.6,
        "subtraction": 2.2,
        "multiplication": 2,
        "comparison": 1.6,
        "extreme": 1.6,
        "sorting": 2.4,
        "letters": 2.4,
        "ordering": 0.7,
        "word_problem": 2,
        "table": 7,
        "dates": 1.8,
        "units": 1,
        "facts": 0.4,
        "tool_call": 3,
        "notes": 1,
        "countdown": 0.4,
        "knights": 0.3,
        "fractions": 0.4,
        "story_facts": 0.4,
        "json_answers": 0.8,
        "about": 0.5,
        "story": 0.3,
    },
}
#: Tasks whose problems have a check and one user turn: these come with drafts and after others.
DRAFTED = (
    "addition",
    "subtraction",
    "multiplication",
    "comparison",
    "sorting",
    "extreme",
    "letters",
    "ordering",
    "word_problem",
)
LEVEL_WEIGHTS = {"first": (0.7, 0.2, 0.1), "main": (0.5, 0.35, 0.15)}
#: Of calls: all that comes after one (reports, errors) is hard, and what users see first.
CALL_LEVELS = (0.4, 0.25, 0.35)
EFFORT_WEIGHTS = {"low": 0.12, "medium": 0.32, "high": 0.3, "xhigh": 0.26}
#: Shares of text items that come after other questions or with drafts, of any that are cut or have
#: no thought, and that stand beside tools which they do not need. Without the last two weights of
#: 177 M tokens called any tool there was, and thought aloud in answers that were to come at once.
AFTER, CUT, DRAFTS, DIRECT, BESIDE = 0.05, 0.1, 0.06, 0.04, 0.12
PROSE = 0.04
#: Share of drills that repeat random tokens: the densest signal there is for copying.
REPEATS = 0.06
#: Of first tries at high and xhigh; one in six of a model's own is wrong.
ERROR_RATE = 0.15
#: Share of text items that are the model's own tries, where there is a file of them.
ROLLOUTS = 0.33


def draw_training_item(rng: Random, phase: str) -> Item:
    """A training item of the mix of ``phase``."""
    task = rng.choices(list(WEIGHTS[phase]), list(WEIGHTS[phase].values()))[0]
    weights = CALL_LEVELS if task == "tool_call" else LEVEL_WEIGHTS[phase]
    level = rng.choices(LEVELS, weights)[0]
    effort = rng.choices(list(EFFORT_WEIGHTS), list(EFFORT_WEIGHTS.values()))[0]
    form = rng.random()
    if form < DRAFTS and task in DRAFTED:
        problem = draw(rng, task, level, evaluation=False)
        return formats.drafts(problem, effort, rng, rng.choice((3, 4, 5)))
    item = draw_item(rng, task, level, effort, evaluation=False, error_rate=ERROR_RATE)
    if form > 1 - CUT - DIRECT:
        return _shortened(item, rng)
    if form > 1 - CUT - DIRECT - AFTER and task in DRAFTED:
        earlier = [
            draw_item(rng, rng.choice(DRAFTED), "easy", effort, evaluation=False)
            for _ in range(rng.randint(1, 2))
        ]
        return formats.after(item, earlier)
    return item


def _shortened(item: Item, rng: Random) -> Item:
    """``item`` with its thought cut, or left out, as often as CUT and DIRECT say."""
    without = rng.random() * (CUT + DIRECT) < DIRECT
    return formats.direct(item) if without else formats.cut(item, rng)


def offered(item: Item, rng: Random) -> Item:
    """``item``, as often as BESIDE says beside one to four tools."""
    if item.tools or rng.random() >= BESIDE:
        return item
    but = frozenset({"search"} if item.task == "about" else ())  # it does not know, a search might
    return formats.beside(item, functions.spare(rng, rng.randint(1, 4), but))


#: Relative weight of each kind of picture; a picture of shapes is asked anything about shapes.
PICTURES = {
    "pointing": 8,
    "counting": 8,
    "codes": 2.5,
    "displays": 1.5,
    "labels": 2,
    "buttons": 1.5,
    "bars": 1.5,
    "blank": 0.3,
    "zooming": 1,
    "clocks": 0.3,
    "number_lines": 0.3,
    "line_charts": 0.3,
    "angles": 0.2,
    "areas": 0.2,
    "sketches": 0.3,
    "mazes": 0.2,
    "comparing": 0.3,
}
#: Share of pictures that are NLVR's, where there is its file: it has less than a thousand.
NLVR = 0.01
#: Questions asked about one picture at most; one where the question leads to another picture.
QUESTIONS = 5


def draw_picture_items(rng: Random) -> list[Item]:
    """Training items about one picture, told at one effort."""
    if nlvr.there() and rng.random() < NLVR:
        return [compose(nlvr.problem(rng, evaluation=False), "medium", rng)]
    task = rng.choices(list(PICTURES), list(PICTURES.values()))[0]
    level = rng.choices(LEVELS, LEVEL_WEIGHTS["main"])[0]
    effort = rng.choices(list(EFFORT_WEIGHTS), list(EFFORT_WEIGHTS.values()))[0]
    count = 1 if task == "zooming" else QUESTIONS
    problems = pictures.ask_several(rng, task, level, count, evaluation=False)
    items = [compose(p, effort, rng, ERROR_RATE) for p in problems]
    if rng.random() < BESIDE:  # all of one picture alike: they share its beginning
        tools = _at_hand(rng)
        items = [formats.beside(i, tools) for i in items]
    return [_shortened(i, rng) if rng.random() < CUT + DIRECT else i for i in items]


def _at_hand(rng: Random) -> list[dict]:
    """Tools beside a picture that needs none: those of ``Model.look``, some of them, or others."""
    form = rng.random()
    if form < 0.2:
        return functions.spare(rng, rng.randint(1, 3))
    if form < 0.3:
        return [zoom.TOOL]
    return list(zoom.SHIPPED) if form < 0.65 else rng.sample(zoom.SHIPPED, rng.randint(1, 2))


def read_books(folder: str | Path | None, limit: int = 12_000_000) -> list[str]:
    """Public-domain books (.md or .txt below ``folder``) as texts; at most ``limit`` characters,
    children's first."""
    if folder is None:
        return []
    paths = sorted(
        (p for p in Path(folder).rglob("*") if p.suffix in (".md", ".txt")),
        key=lambda p: (not _for_children(p), hashlib.blake2b(p.name.encode()).digest()),
    )
    texts, total = [], 0
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")
        text = text.translate(str.maketrans("“”‘’—–", "\"\"''--"))
        texts.append(text)
        total += len(text)
        if total >= limit:
            break
    return texts


def read_rollouts(path: str | Path | None) -> list[Item]:
    """Items as ``musespark lab rollouts`` wrote them."""
    if path is None:
        return []
    with Path(path).open(encoding="utf-8") as lines:
        return [Item(**json.loads(line)) for line in lines]


_CHILDREN = split_words(
    "Baum Potter Aesop Grimm Andersen Carroll Grahame Nesbit Collodi Spyri Sewell Burnett Kipling "
    "MacDonald"
)


def _for_children(path: Path) -> bool:
    return any(author in str(path) for author in _CHILDREN)


def prose(rng: Random, books: list[str], characters: int = 900) -> str:
    """A bare text: half little stories, half a passage that starts at a paragraph of a book."""
    if not books or rng.random() < 0.5:
        return talk.plain_story(rng)
    text = books[rng.randrange(len(books))]
    start = text.find("\n\n", rng.randrange(max(1, len(text) - characters)))
    return text[max(start, 0) :][:characters].strip()


def corpus(rng: Random, books: list[str], items: int) -> Iterator[str]:
    """Texts to train the tokenizer on: items as they are rendered, and some prose."""
    from .protocol import prompt_pieces, reply_pieces

    for i in range(items):
        item = draw_training_item(rng, "main")
        pieces = prompt_pieces(item.messages, item.effort, item.tools) + reply_pieces(item)
        yield from (p for p, _ in pieces if isinstance(p, str))
        if i % 8 == 0:
            yield prose(rng, books, 2000)
