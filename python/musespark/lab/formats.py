"""Forms that items may take: cut by a budget, without a thought, drafts to refine, after other
turns, beside tools.

They are what decoding and callers do to turns later: a budget closes a thought with ``CLOSING``, or
bare where that does not fit, or lets none begin; several drafts come back in a workspace; a
conversation goes on after earlier questions; tools are there that nobody needs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from .item import WRONG_CLOSE, WRONG_OPEN, Item, Problem, compose

#: What closes a thought that was cut by its budget; input, never loss.
CLOSING = "\nTime is up. I answer with the best I have."
_REFINE = "Check the drafts and answer."


def cut(item: Item, r: Random) -> Item:
    """``item`` with its thought ended by the closing message: after some step, or in half of them
    after a sentence, which is where budgets and probes end thoughts. In the middle of a check too,
    where the answer is still that of the first route. One in eight is ended at once, one in four
    anywhere without the message."""
    thought = (item.thought or "").replace(WRONG_OPEN, "").replace(WRONG_CLOSE, "")
    ends = [i + 1 for i, c in enumerate(thought) if c in ",.;" and i + 1 < len(thought)]
    if not ends or WRONG_OPEN in (item.thought or ""):
        return item
    how = r.random()
    if how < 0.125:
        return replace(item, thought=f"{WRONG_OPEN}{CLOSING}{WRONG_CLOSE}")
    if how < 0.375:
        return replace(item, thought=thought[: r.randint(1, len(thought) - 1)], forced=True)
    sentences = [i for i in ends if thought[i - 1] == "." and thought[i].isspace()]
    kept = thought[: r.choice(sentences if sentences and r.random() < 0.5 else ends)]
    return replace(item, thought=f"{kept}{WRONG_OPEN}{CLOSING}{WRONG_CLOSE}")


def direct(item: Item) -> Item:
    """``item`` answered without a thought, which whoever runs the model did not let begin; as it is
    where its reply is a call."""
    return item if item.calls else replace(item, thought=None, forced=True)


def beside(item: Item, tools: list[dict]) -> Item:
    """``item``, which has no tools, beside some that it has no use for."""
    return item if item.tools else replace(item, tools=tools)


def drafts(problem: Problem, effort: str, r: Random, count: int) -> Item:
    """``problem`` (one that has steps and a check) with a workspace of ``count`` drafts, of which
    any number may be wrong.

    The thought names what the drafts say and where they part, then works the problem out: a
    majority decides nothing.
    """
    item = compose(problem, effort, r)
    wrong_share, told = r.choice((0.1, 0.4, 0.7)), []
    for _ in range(count):
        told.append(problem.steps(r if r.random() < wrong_share else None))
    listed = "\n".join(f"Draft {i}: {text}" for i, (text, _) in enumerate(told, 1))
    question = f"{problem.question}\n{listed}\n{_REFINE}"
    votes = Counter(result for _, result in told).most_common()
    said = ", ".join(f"{result} by {n}" for result, n in votes)
    own, _ = problem.steps(None)
    thought = f"Drafts say {said}. {own}"
    if effort in ("high", "xhigh"):
        thought += f"\nCheck: {problem.check(problem.answer)[0]} Right."
    messages = [*item.messages[:-1], {"role": "user", "content": question}]
    return replace(item, messages=messages, thought="" if effort == "low" else thought)


def after(item: Item, earlier: list[Item]) -> Item:
    """``item`` as a later question of a conversation; what was thought before is gone."""
    if item.tools or item.pictures or any(e.tools or e.calls or e.pictures for e in earlier):
        return item
    turns = []
    for e in earlier:
        turns += [e.messages[-1], {"role": "assistant", "content": e.answer}]
    system = item.messages[:1] if item.messages[0]["role"] == "system" else []
    return replace(item, messages=[*system, *turns, *item.messages[len(system) :]])
