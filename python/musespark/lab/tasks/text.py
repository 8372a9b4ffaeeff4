"""Copying, spelling, looking up and counting letters: what everything else stands on."""

from __future__ import annotations

from random import Random

from ..item import Problem, against, phrase, sized
from .words import ADJECTIVES, ANIMALS, COLORS, FOODS, NAMES, PLACES, THINGS, WORDS

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_EXTRA: list[str] = []


def use_words(words: list[str]) -> None:
    """Add words (say, the tokenizer's own entries) to those the spelling drills draw from."""
    _EXTRA[:] = sorted(set(words))


def _word(r: Random, longest: int = 12) -> str:
    for _ in range(50):
        k = r.random()
        if k < 0.75 or not _EXTRA:
            word = r.choice(WORDS)
        elif k < 0.9:
            word = r.choice(_EXTRA)
        else:
            word = "".join(r.choice(_LETTERS) for _ in range(r.randint(3, 7)))
        if len(word) <= longest:
            return word
    return "cat"


_COPY = (
    "Repeat: {}",
    "Say exactly: {}",
    "Repeat after me: {}",
    'Write "{}"',
    "Copy this: {}",
    "Echo: {}",
    "Give back: {}",
)
#: How each kind of spelling is asked; {} is the word.
_SPELL = {
    "spell": ("Spell {}.", "How do you spell {}?", "Spell out {}.", "Give the letters of {}."),
    "join": ("Which word is spelled {}?", "What word do these letters make: {}?"),
    "reverse": ("Reverse {}.", "Write {} backwards.", "Turn {} around."),
    "first": ("What is the first letter of {}?", "With which letter does {} begin?"),
    "last": ("What is the last letter of {}?", "With which letter does {} end?"),
    "nth": ("What is letter {i} of {}?", "Which letter of {} is number {i}?"),
    "length": ("How many letters are in {}?", "How long is {}?", "Count the letters of {}."),
}


def copying(r: Random, level: str) -> Problem:
    """Repeat words or digits exactly."""
    n = {"easy": r.randint(1, 4), "middle": r.randint(4, 8), "hard": r.randint(8, 14)}[level]
    if r.random() < 0.5:
        text = " ".join(_word(r) for _ in range(n))
    elif r.random() < 0.5:
        text = "".join(r.choice("0123456789") for _ in range(n + 2))
    else:
        text = " ".join(str(r.randint(0, 99)) for _ in range(n))
    ask = phrase(r, _COPY)
    return Problem(
        "copying", level, text, ask.format(text), text, "string", steps=lambda e: ("", text)
    )


def spelling(r: Random, level: str) -> Problem:
    """Spell, reverse, first, last, nth letter, number of letters."""
    word = _word(r, {"easy": 6, "middle": 9, "hard": 14}[level])
    spelled = "-".join(word)
    numbered = " ".join(f"{i}{c}" for i, c in enumerate(word, 1))
    quoted = r.choice((word, f'"{word}"', f"the word {word}", f'the word "{word}"'))
    i = 0
    kind = r.choice(("spell", "spell", "reverse", "first", "last", "nth", "length", "join"))
    if kind == "spell":
        answer, thought = spelled, ""
    elif kind == "join":
        return Problem(
            "spelling",
            level,
            f"join {word}",
            phrase(r, _SPELL["join"]).format(spelled),
            word,
            "string",
            steps=lambda e: ("", word),
        )
    elif kind == "reverse":
        answer, thought = word[::-1], f"{numbered}. Back: {'-'.join(word[::-1])}."
    elif kind in ("first", "last"):
        answer = word[0 if kind == "first" else -1]
        thought = f"{spelled}: {answer}."
    elif kind == "nth":
        i = r.randint(1, len(word))
        answer, thought = word[i - 1], f"{numbered}. {i} is {word[i - 1]}."
    else:
        answer = str(len(word))
        thought = f"{numbered}. So {len(word)}."
    return Problem(
        "spelling",
        level,
        f"{kind} {word}",
        phrase(r, _SPELL[kind]).format(quoted, i=i),
        answer,
        "string",
        steps=lambda e: (thought, answer),
    )


_LETTER_ASKS = (
    'How many times does the letter {c} appear in "{w}"?',
    "How many {c} in {w}?",
    "How many {c}'s are in {w}?",
    'How many "{c}" are in "{w}"?',
    "Count the letter {c} in {w}.",
    "How many letters {c} are in the word {w}?",
    "How many times does {c} occur in {w}?",
    "how many {c}s in {w}?",
    "How often does {c} appear in {w}?",
    'How often is {c} in "{w}"?',
    "In {w}, how many {c} are there?",
    "In the word {w}, count the letter {c}.",
    'Count how often {c} occurs in "{w}".',
    "How often do you see the letter {c} in {w}?",
    '"{w}": how many times is there a {c}?',
    "Tell me how many {c} there are in {w}.",
    "In {w}, how often does {c} occur?",
    "Number of {c} in {w}?",
    'In "{w}", how often is there the letter {c}?',
)


def _sentence(r: Random) -> str:
    """A short sentence in small letters without marks."""
    name, animal = r.choice(NAMES).lower(), r.choice(ANIMALS)
    return r.choice(
        (
            f"{name} has a {r.choice(ADJECTIVES)} {animal}",
            f"the {animal} is in the {r.choice(PLACES)}",
            f"{name} likes {r.choice(FOODS)} and {r.choice(FOODS)}",
            f"a {r.choice(COLORS)} {animal} sees {name}",
        )
    )


def letters(r: Random, level: str) -> Problem:
    """How often a letter stands in a word of up to 6 or 12 letters, or in a sentence; each step
    names the letter it compares with, each word stands before its letters."""
    word = _word(r, {"easy": 6, "middle": 12, "hard": 12}[level])
    if level == "hard":
        word = word + " " + _word(r, 8) + " " + _word(r, 6)
        if sized(r, 0, 1):
            word = _sentence(r)
    plain = word.replace(" ", "")
    letter = r.choice(plain) if r.random() < 0.85 else r.choice(_LETTERS)
    total = plain.count(letter)
    ask = phrase(r, _LETTER_ASKS)

    def steps(e: Random | None) -> tuple[str, str]:
        count, lines, bad = 0, [], e.randrange(len(plain)) if e else -1
        for part in word.split():
            steps = []
            for c in part:
                same = (c == letter) != (bad == 0)
                bad, count = bad - 1, count + same
                steps.append(f"{c}={letter} {count}" if same else f"{c}/{letter} {count}")
            lines.append(f"{part}: {', '.join(steps)}")
        return "; ".join(lines) + f". So {count}.", str(count)

    places = [str(i) for i, c in enumerate(plain, 1) if c == letter]
    spelled = " ".join(f"{i}{c}" for i, c in enumerate(plain, 1))
    route = f"{spelled}. {letter} at {' '.join(places) if places else 'none'}: {total}."
    count, back = 0, []
    for c in reversed(plain):
        count += c == letter
        back.append(f"{c}={letter} {count}" if c == letter else f"{c}/{letter} {count}")
    return Problem(
        "letters",
        level,
        f"{letter} {word}",
        ask.format(c=letter, w=word),
        str(total),
        "number",
        steps=steps,
        check=lambda got: against(route, got, str(total)),
        second=f"from the end {', '.join(back)}.",
    )


def lookup(r: Random, level: str) -> Problem:
    """Find the value that belongs to a key among short facts."""
    n = {"easy": r.randint(2, 4), "middle": r.randint(5, 7), "hard": r.randint(8, 11)}[level]
    style = r.randrange(3)
    keys = r.sample(NAMES if style else list(_LETTERS), n)
    values = [str(r.randint(1, 99)) for _ in keys] if r.random() < 0.7 else r.sample(WORDS, n)
    i = r.randrange(n)
    if style == 0:
        facts, ask = (
            ", ".join(f"{k}={v}" for k, v in zip(keys, values, strict=True)),
            phrase(r, ("What is {}?", "Give the value of {}.")).format(keys[i]),
        )
        fact = f"{keys[i]}={values[i]}"
    elif style == 1:
        facts = " ".join(f"{k} has {v}." for k, v in zip(keys, values, strict=True))
        ask, fact = (
            phrase(r, ("What does {} have?", "{} has what?", "Say what {} has.")).format(keys[i]),
            f"{keys[i]} has {values[i]}",
        )
    else:
        facts = "\n".join(f"{k}: {v}" for k, v in zip(keys, values, strict=True))
        asks = ("What is the value of {}?", "Which value belongs to {}?")
        ask, fact = phrase(r, asks).format(keys[i]), f"{keys[i]}: {values[i]}"
    sep = "\n" if style == 2 else " "
    return Problem(
        "lookup",
        level,
        facts + keys[i],
        f"{facts}{'.' if style == 0 else ''}{sep}{ask}",
        values[i],
        "string",
        steps=lambda e: (f"{fact}.", values[i]),
    )


def recall(r: Random, level: str) -> Problem:
    """A fact told earlier in the conversation is asked for later."""
    name, thing, n = r.choice(NAMES), r.choice(THINGS), r.randint(2, 99)
    told, ask, answer = r.choice(
        (
            (f"My name is {name}.", ("What is my name?", "Who am I?"), name),
            (
                f"I have {n} {thing}.",
                (f"How many {thing} do I have?", f"Say how many {thing} I have."),
                str(n),
            ),
            (f"The code is {n}{n % 7}.", ("What is the code?", "Tell me the code."), f"{n}{n % 7}"),
            (
                f"My favorite word is {thing}.",
                ("What is my favorite word?", "Which word is my favorite?"),
                thing,
            ),
        )
    )
    ask = phrase(r, ask)
    reply = (
        r.choice(("Noted.", "Good to know.", "Understood.", "I will keep that in mind."))
        if "name" not in told
        else f"Hello, {name}."
    )
    messages = [{"role": "user", "content": told}, {"role": "assistant", "content": reply}]
    for _ in range({"easy": 0, "middle": 1, "hard": 2}[level]):
        word = r.choice(WORDS)
        messages += [
            {"role": "user", "content": f"Repeat: {word}"},
            {"role": "assistant", "content": word},
        ]
    messages.append({"role": "user", "content": ask})
    return Problem(
        "recall",
        level,
        f"{told}{len(messages)}",
        ask,
        answer,
        "string",
        messages=messages,
        steps=lambda e: (f'You said: "{told}"', answer),
    )


TASKS = {
    "copying": copying,
    "spelling": spelling,
    "letters": letters,
    "lookup": lookup,
    "recall": recall,
}
