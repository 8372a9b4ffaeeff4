"""Drafts from the text so far: the same tokens in fewer steps, and few where they do not pay."""

from __future__ import annotations

import dataclasses
from random import Random

import pytest

import musespark
from musespark import _core
from musespark.errors import InvalidRequest
from musespark.events import Request
from support import engine_cases as cases
from support.engine_cases import make_engine, tokens

LOOP = [*tokens(20, seed=4), *range(40, 60), *range(40, 60), *range(40, 52)]


FEW = dict.fromkeys(range(40, 44), 30.0)  # biases with which a random model repeats itself


def both(request: Request, **settings) -> tuple:
    """The results with drafts and without."""
    with make_engine(threads=1, **settings) as engine:
        drafted = engine.submit(dataclasses.replace(request, draft_tokens=16)).result()
        plain = engine.submit(dataclasses.replace(request, draft_tokens=0)).result()
    assert plain.stats["drafted_tokens"] == 0
    return drafted, plain


@pytest.mark.parametrize("model", cases.MODELS)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"logprobs": 3},
        {"temperature": 0.7, "seed": 3},
        {"repetition_penalty": 1.05, "frequency_penalty": 0.01, "presence_penalty": 0.01},
        {"stop_ids": [41], "min_new_tokens": 37},
        {"max_new_tokens": 33},
    ],
)
def test_the_same_tokens(model: str, more: dict) -> None:
    given = {"tokens": LOOP, "max_new_tokens": 150, "logit_bias": FEW}
    with make_engine(model, threads=1) as engine:
        request = Request(**(given | more))
        drafted = engine.submit(dataclasses.replace(request, draft_tokens=16)).result()
        plain = engine.submit(request).result()
    assert cases.fingerprint(drafted) == cases.fingerprint(plain)
    if "stop_ids" not in more:  # which ends it soon
        assert drafted.stats["accepted_tokens"] > 5, "nothing was ever right"
    assert drafted.stats["drafted_tokens"] >= drafted.stats["accepted_tokens"]


def test_fewer_steps() -> None:
    request = Request(tokens=LOOP, max_new_tokens=200, logit_bias={40: 1e6})  # one id for ever
    with make_engine(threads=1, prefix_cache=False) as engine:
        engine.submit(request).result()
        before = engine.stats()["steps"]
        found = engine.submit(dataclasses.replace(request, draft_tokens=16)).result()
        steps = engine.stats()["steps"] - before
    assert found.tokens == [40] * 200 and steps < 120
    assert found.stats["accepted_tokens"] > 80


def test_what_never_comes_back_is_seldom_drafted() -> None:
    """A sampled text with a common pair here and there: drafts are wrong, and pause."""
    given = {"tokens": tokens(300), "temperature": 50.0, "seed": 2, "max_new_tokens": 600}
    drafted, plain = both(Request(**given, draft_tokens=16), context=1000)
    assert drafted.tokens == plain.tokens
    assert drafted.stats["drafted_tokens"] < 60


def test_a_session_goes_on_after_drafts() -> None:
    """What is kept has no key of a token that was not accepted."""
    request = Request(tokens=LOOP, max_new_tokens=90, logit_bias=FEW, retain=True, draft_tokens=16)
    more = [*range(7), 5]
    with make_engine(threads=1) as engine, make_engine(threads=1, prefix_cache=False) as other:
        first = engine.submit(request)
        written = first.result()
        assert written.stats["accepted_tokens"] > 0
        again = Request(tokens=[*LOOP, *written.tokens, *more], max_new_tokens=20, logprobs=2)
        wanted = cases.fingerprint(other.submit(again).result())
        assert cases.fingerprint(engine.submit(again, base=first.retained).result()) == wanted
        assert cases.fingerprint(engine.submit(again).result()) == wanted
        first.retained.release()
        engine.submit(Request(tokens=[1], max_new_tokens=1)).result()
        assert engine.stats()["kv_bytes_used"] == 0


def test_budgets_and_thoughts_are_drafted_too() -> None:
    request = cases.thinking(60, cases.packed("muse_kv8")[0].vocab, confident=1.0, budget=50)
    request = dataclasses.replace(
        request, trials=None, temperature=0.0, logit_bias={**FEW, 6: -50.0}
    )
    drafted, plain = both(request)
    assert cases.fingerprint(drafted) == cases.fingerprint(plain)
    assert drafted.stats["thought_stop"] == "budget" and drafted.stats["accepted_tokens"] > 0


def test_the_end_of_the_context() -> None:
    request = Request(tokens=LOOP, logit_bias={40: 1e6}, draft_tokens=16)
    with make_engine(threads=1, context=150) as engine:
        found = engine.submit(request).result()
    assert len(LOOP) + len(found.tokens) == 150 and found.reason == "length"


def test_the_option() -> None:
    text = "one two three four five six seven. one two three four five six seven. one two"
    with musespark.load(threads=1, prefix_cache=False) as model:
        drafted = model.generate(text, max_new_tokens=120)
        plain = model.generate(text, max_new_tokens=120, speculation="off")
        assert drafted.tokens == plain.tokens and drafted == dataclasses.replace(
            plain, timings=drafted.timings
        )
        assert plain.timings.drafted_tokens == 0 < drafted.timings.drafted_tokens
        assert drafted.timings.accepted_tokens <= drafted.timings.drafted_tokens
        for wrong in ("on", True, 5, None, ["off"]):
            if wrong is None:
                continue
            with pytest.raises(InvalidRequest, match="speculation: got"):
                model.generate("a", speculation=wrong)
    with (
        make_engine(threads=1) as engine,
        pytest.raises(InvalidRequest, match="draft_tokens: got 17"),
    ):
        engine.submit(Request(tokens=[1], draft_tokens=17))


def simulated(
    share: float, slope: float, fixed: float, each: float, *, wrong: int = 0, tokens: int = 20_000
) -> float:
    """Tokens in the time of a plain row, where each drafted token is right with probability
    ``share``, rows cost ``slope`` of the first, and a draft ``fixed`` and ``each`` token. After
    ``wrong`` tokens whose drafts were all wrong, which do not count."""
    cost, length, rng = _core.testing.RowCost(), _core.testing.DraftLength(), Random(3)
    written, spent = -wrong, 0.0
    while written < tokens:
        single = cost.wants_single()
        count = 0 if single else length.next(cost, 7, draft_pass=fixed, each=each)
        step = 1 + slope * count
        cost.observe(1 + count, 0.01 * step)
        right = 0
        while right < count and written >= 0 and rng.random() < share:
            right += 1
        if count:
            length.tried(count, right)
        elif not single:
            length.skipped()
        if written >= 0:
            spent += step + (fixed + each * count if count else 0)
        written += 1 + right
    return tokens / spent


@pytest.mark.parametrize("slope", [0.0, 0.05, 0.2, 1.0])
@pytest.mark.parametrize(
    ("fixed", "each"), [(0, 0), (0.1, 0), (0.5, 0), (2.0, 0), (0, 0.1), (0, 1)]
)
def test_drafts_never_cost_more_than_they_give(slope: float, fixed: float, each: float) -> None:
    """Whatever part is right and whatever drafts cost: at most 3% are lost to finding out, and
    where drafts pay, what the best length would give is nearly reached."""
    for share in (0.0, 0.1, 0.25, 0.5, 0.7, 0.9, 0.98):
        best = max(
            sum(share**i for i in range(count + 1))
            / (1 + slope * count + (fixed + each * count if count else 0))
            for count in range(8)
        )
        found = simulated(share, slope, fixed, each)
        assert found > 0.97, (share, found)
        if best > 1.2:
            assert found > 0.9 * best, (share, found, best)


def test_a_text_that_repeats_itself_at_last() -> None:
    """However long drafts were wrong, they are soon made again."""
    assert simulated(1.0, 0.1, 0, 0, wrong=5000, tokens=200) > 1.8
