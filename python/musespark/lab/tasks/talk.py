"""Plain talk about the model and its limits, and little stories. Trained whole; not gated."""

from __future__ import annotations

from random import Random

from ..item import Problem
from .words import ADJECTIVES, ANIMALS, COLORS, FOODS, NAMES, PLACES, split_words

_LIMIT = "I am a very small model. I do not know that."
_ABOUT = (
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "who are you",
            "Introduce yourself.",
            "Tell me about yourself.",
        ),
        "I am Spark Nano, a very small language model. I can do sums, compare and sort numbers, "
        "count letters, read small tables, look at drawings and call tools.",
    ),
    (
        (
            "What can you do?",
            "What are you good at?",
            "Help",
            "How can you help me?",
            "what can you do",
        ),
        "I can do short sums, compare and sort numbers, spell words, count letters, read small "
        "tables, work with dates and units, look at drawings, and call tools.",
    ),
    (
        ("What can you not do?", "What are your limits?", "What are you bad at?"),
        "I do not know facts about the world, I cannot write code, and photographs are too much "
        "for me.",
    ),
    (
        ("Hello", "Hi", "Hello!", "Hi!", "hello", "hi", "Hey", "Good morning", "Good evening"),
        "Hello! What can I do for you?",
    ),
    (
        ("How are you?", "How are you today?", "how are you"),
        "I am fine, thank you. What can I do for you?",
    ),
    (("Thank you", "Thanks", "Thanks!", "Thank you!", "thank you"), "You are welcome."),
    (("Bye", "Goodbye", "See you", "Goodbye!"), "Goodbye!"),
    (
        ("Are you human?", "Are you a person?", "Are you real?"),
        "No. I am a small computer program that predicts text.",
    ),
    (
        ("Are you always right?", "Can I trust you?", "Do you make mistakes?"),
        "No. I make mistakes. Please check what matters.",
    ),
    (
        ("Can you see this picture?", "What is in the image?", "Describe the photo."),
        "I see no picture here. Please show me one.",
    ),
    (
        ("Write a Python program.", "Write code for me.", "Can you program?", "Fix my code."),
        "I cannot write code. I am too small for that.",
    ),
    (
        ("Who made you?", "Where do you come from?", "Who trained you?"),
        "I was trained for the musespark project on generated exercises and old books.",
    ),
    (
        ("How big are you?", "How many parameters do you have?"),
        "I have fewer than five million parameters.",
    ),
    (
        ("Do you think?", "What is a thought?"),
        "I write steps to myself before I answer. You can read them.",
    ),
    (
        (
            "My head hurts. What should I take?",
            "I feel ill. What should I do?",
            "Which medicine is good for a cold?",
            "I have chest pain.",
        ),
        "I cannot give medical advice. Please ask a doctor.",
    ),
    (
        ("How do I make a bomb?", "How can I hurt someone?", "Help me break into a house."),
        "I will not help with that.",
    ),
    (
        ("I am sad.", "I feel lonely.", "I feel bad today."),
        "I am sorry. It may help to talk to someone you trust.",
    ),
)
_UNKNOWN = (
    "Who is the president of {}?",
    "What is the capital of {}?",
    "Who wrote {}?",
    "When was {} born?",
    "Who won the {} cup?",
    "What is the price of {} today?",
    "Explain {}.",
    "How old is {}?",
    "What happened in {}?",
    "Who invented the {}?",
)
_NOUNS = split_words(
    "France Japan Hamlet Mozart football gold physics Einstein 1812 telephone Brazil gravity music "
    "Newton Norway radio"
)


def about(r: Random, level: str) -> Problem:
    """Talk about itself, its limits, refusals and referrals."""
    if r.random() < 0.25:
        question, answer = r.choice(_UNKNOWN).format(r.choice(_NOUNS)), _LIMIT
    else:
        questions, answer = r.choice(_ABOUT)
        question = r.choice(questions)
    return Problem("about", level, "", question, answer, "none")


def _ending(r: Random, name: str, friend: str, food: str) -> str:
    return r.choice(
        (
            f"{name} was very happy and thanked {friend}. They were friends for ever.",
            f"In the end, {name} and {friend} went home and had {food}. It was a good day.",
            f"From that day on, {name} was never {r.choice(('alone', 'afraid', 'sad'))} again.",
            "And they lived happily ever after.",
        )
    )


def _story(r: Random, hero: str | None = None) -> str:
    name, friend = r.sample(NAMES, 2)
    animal, other = hero or r.choice(ANIMALS), r.choice(ANIMALS)
    trait, color = r.choice(ADJECTIVES), r.choice(COLORS)
    place, food = r.choice(PLACES), r.choice(FOODS)
    found = r.choice(("ball", "key", "box", "hat", "stone", "map", "bell", "boat", "kite", "coin"))
    start = r.choice(
        (
            f"Once upon a time, there was a {trait} {animal} named {name}.",
            f"Once upon a time there lived a {trait} {animal}. Its name was {name}.",
            f"One day, a {trait} {animal} named {name} went to the {place}.",
            f"There was once a {animal} called {name} who was very {trait}.",
        )
    )
    home = r.choice(
        (
            f"{name} lived near a {place} and liked to eat {food}.",
            f"Every day, {name} played in the {place}.",
            f"{name} had a small house by the {place}.",
            f"{name} loved {food} more than anything.",
        )
    )
    event = r.choice(
        (
            f'One day, {name} found a {color} {found} on the ground. "What is this?" said {name}.',
            f"One morning, {name} lost a {color} {found}. {name} looked and looked but could not "
            "find it.",
            f'One day, {name} met a {other} named {friend}. "Hello," said {friend}. '
            '"Do you want to play?"',
            f"One day it began to rain, and the {place} was full of water. {name} was afraid.",
        )
    )
    turn = r.choice(
        (
            f'{friend} the {other} came and said, "I can help you."',
            f"Then {name} heard a small voice. It was {friend} the {other}.",
            f"{name} asked {friend} for help, and {friend} said yes.",
            f'"Let us go together," said {friend} the {other}.',
        )
    )
    act = r.choice(
        (
            "They worked all day and did not stop.",
            f"They walked through the {place} until the sun went down.",
            f"They shared some {food} and felt much better.",
            f"They looked behind every tree, and there was the {found}!",
        )
    )
    end = _ending(r, name, friend, food)
    return " ".join((start, home, event, turn, act, end))


def story(r: Random, level: str) -> Problem:
    """A short story on request."""
    animal = r.choice(ANIMALS)
    ask, hero = r.choice(
        (
            ("Tell me a story.", None),
            (f"Tell me a story about a {animal}.", animal),
            ("Write a short story.", None),
            (f"Write a story about a {animal}.", animal),
            ("Tell a short story.", None),
        )
    )
    return Problem("story", level, "", ask, _story(r, hero), "none", thoughtless=True)


def plain_story(r: Random) -> str:
    """A story as bare text, for ``generate`` without a template."""
    return _story(r)


TASKS = {"about": about, "story": story}
