"""Pages of thoughts demoted and evicted: the same result however a request is computed."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from musespark import _core
from musespark.engine import Engine, Request
from musespark.errors import InvalidRequest, MemoryBudgetExceeded
from musespark.reference import attention, forward
from musespark.reference.choose_rows import choose_rows
from support import engine_cases as cases
from support import run_engine, tiny_models
from support.engine_cases import fingerprint, tokens

PAGE = 64
OPEN, CLOSE = [7, 8], 9
MODELS = ["muse_kv8", "llama_f32", "llama_kv8"]


def settings(model: str) -> dict:
    name, kv = model.split("_")
    return {"name": f"{name}_{'kv8' if name == 'muse' else 'f32'}", "kv": kv}


def make_engine(model: str, **more) -> Engine:
    return cases.make_engine(**settings(model), **more)


def thoughts(cache: str = "keep", most: int | None = None) -> dict:
    return {"cache": cache, "most_tokens": most, "opens": [OPEN], "closes": [CLOSE]}


def thinking(prompt: int = 90, new: int = 350, seed: int = 1, **given) -> Request:
    """Opens a thought at the prompt's end. It never closes by itself."""
    base = {"max_new_tokens": new, "temperature": 0.9, "seed": seed, "logprobs": 2}
    ids = [t + 10 if t < 10 else t for t in tokens(prompt, seed=seed)] + OPEN
    bias = dict.fromkeys((*OPEN, CLOSE), -100.0)
    return Request(tokens=ids, logit_bias=bias, **(base | given))


def with_thoughts(seed: int = 3) -> list[int]:
    """A prompt with two finished thoughts, of three whole pages and of none, and text between."""

    def text(count: int, at: int) -> list[int]:
        return [t + 10 if t < 10 else t for t in tokens(count, seed=seed + at)]

    return text(50, 0) + OPEN + text(280, 1) + [CLOSE] + text(40, 2) + OPEN + text(30, 3) + [CLOSE]


def run(engine: Engine, request: Request, base=None):
    return engine.submit(request, base=base).result()


# ---- one result ---------------------------------------------------------------------------------


def requests(model: str) -> list[Request]:
    out = [
        thinking(thoughts=thoughts(most=128)),
        thinking(prompt=130, seed=2, thoughts=thoughts(most=50)),
        thinking(prompt=5, seed=4, thoughts=thoughts(most=200)),
    ]
    if model != "llama_f32":
        prompt = with_thoughts()
        out.append(
            Request(tokens=prompt, max_new_tokens=30, logprobs=2, thoughts=thoughts("demote"))
        )
        out.append(thinking(seed=6, thoughts=thoughts("demote", 96)))
    return out


@pytest.mark.isa
@pytest.mark.parametrize("model", MODELS)
def test_one_result(model: str) -> None:
    """Threads, chunks, batches, and the instruction set that the suite runs on."""
    with make_engine(model, threads=1) as engine:
        alone = [run(engine, r) for r in requests(model)]
        assert engine.stats()["kv_bytes_used"] == 0
    assert all(r.stats["evictions"] > 1 for r in alone[:3])
    wanted = [(fingerprint(r), r.stats["freed_bytes"]) for r in alone]
    for how in ({"threads": 3}, {"prefill_chunk": 7}, {"prefill_chunk": 100, "max_batch": 3}):
        with make_engine(model, **how) as engine:
            handles = [engine.submit(r) for r in requests(model)]
            results = [h.result() for h in handles]
        assert [(fingerprint(r), r.stats["freed_bytes"]) for r in results] == wanted, how


@pytest.mark.parametrize("model", MODELS)
def test_one_result_when_computed_again(model: str) -> None:
    """Preempted after evictions, by an older sequence that grows: evicted again at the same
    lengths, of which several lie in one chunk of prefill."""
    context, given = 600, settings(model)
    grows = thinking(seed=9, new=None)
    evicting = [thinking(seed=s, new=None, thoughts=thoughts(most=64)) for s in range(2)]
    with make_engine(model, context=context) as engine:
        wanted = [run(engine, r) for r in (grows, *evicting)]
    whole, part = (cases.bytes_needed(given["name"], n, kv=given["kv"]) for n in (context, 250))
    with make_engine(model, context=context, memory_budget=whole + part) as engine:
        submits = [functools.partial(engine.submit, r) for r in (grows, *evicting)]
        results = [h.result() for h in cases.at_once(engine, submits)]
    again = [r.stats["preemptions"] for r in results]
    assert again[0] == 0 < sum(again), "the budget was not tight"
    for result, other in zip(results, wanted, strict=True):
        assert fingerprint(result) == fingerprint(other)
        assert result.stats["evictions"] == other.stats["evictions"]
    assert results[1].stats["evictions"] > 20


# ---- what it does -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_evicted_rows_give_memory_back(model: str) -> None:
    with make_engine(model, prefix_cache=False) as engine:
        handle = engine.submit(thinking(thoughts=thoughts(most=64), new=600))
        whole = engine.submit(thinking(thoughts=thoughts(), new=600))
        used = {}
        for name, h in (("evicted", handle), ("whole", whole)):
            used[name] = h.result().stats
    stats = used["evicted"]
    # From the first whole page after the prompt (92 tokens) on: of every 64 rows 16 go.
    grown = 92 + 600 - 1 - 2 * PAGE
    assert stats["evictions"] == (grown - 64) // 16 + 1
    assert stats["evicted_tokens"] == 16 * stats["evictions"]
    assert stats["thought_tokens"] == 600
    # What is left are the rest of the page in which the thought began, and 48 to 64 rows.
    assert stats["thought_bytes"] <= used["whole"]["thought_bytes"] // 8
    assert stats["freed_bytes"] > used["whole"]["thought_bytes"] // 2


def test_nothing_goes_where_the_thought_is_short() -> None:
    with make_engine("llama_kv8") as engine:
        plain = run(engine, thinking(new=150))
        limited = run(engine, thinking(new=150, thoughts=thoughts(most=128)))
        assert limited.stats["evictions"] == 0 == limited.stats["freed_bytes"]
        assert fingerprint(limited) == fingerprint(plain)
        assert run(engine, thinking(new=170, thoughts=thoughts(most=128))).stats["evictions"] == 1


def test_the_answer_is_not_evicted() -> None:
    with make_engine("llama_kv8") as engine:
        request = thinking(new=400, thoughts=thoughts(most=64))
        closed = Request(
            tokens=[*request.tokens, 33, CLOSE],
            max_new_tokens=400,
            seed=1,
            thoughts=request.thoughts,
            logit_bias=request.logit_bias,
        )
        assert run(engine, closed).stats["evictions"] == 0


def test_demoted_pages_are_those_inside_a_finished_thought() -> None:
    prompt = with_thoughts()
    with make_engine("llama_kv8", prefix_cache=False) as engine:

        def ask(cache: str):
            request = Request(
                tokens=prompt, max_new_tokens=1, retain=True, thoughts=thoughts(cache), logprobs=2
            )
            handle = engine.submit(request)
            return handle.result(), engine.stats()["kv_bytes_used"], handle.retained

        plain, held, kept = ask("keep")
        kept.release()
        demoted, less, kept = ask("demote")
        # 52 .. 331 is the first thought: pages 1 .. 4 are whole. The second has none.
        assert demoted.stats["demoted_pages"] == 4 and plain.stats["demoted_pages"] == 0
        assert held - less == demoted.stats["freed_bytes"] > 0
        assert fingerprint(plain) != fingerprint(demoted), "four bits changed nothing"
        kept.release()


@pytest.mark.parametrize("model", ["muse_kv8", "llama_kv8"])
def test_demoted_pages_are_not_shared_with_those_who_keep_them(model: str) -> None:
    """Neither through the prefix tree nor through a base; those who demote share what they may."""
    prompt, more = with_thoughts(), tokens(20, seed=70)

    def ask(engine, cache, base=None, retain=False, extra=()):
        request = Request(
            tokens=[*prompt, *extra],
            max_new_tokens=12,
            logprobs=2,
            retain=retain,
            thoughts=thoughts(cache),
        )
        handle = engine.submit(request, base=base)
        return handle.result(), handle.retained

    wanted = {}
    for cache in ("keep", "demote"):
        with make_engine(model, prefix_cache=False) as engine:
            wanted[cache] = [fingerprint(ask(engine, cache, extra=e)[0]) for e in ((), more)]
    for order in (("keep", "demote"), ("demote", "keep")):
        with make_engine(model) as engine:
            first, base = ask(engine, order[0], retain=True)
            assert fingerprint(first) == wanted[order[0]][0]
            other, _ = ask(engine, order[1], base=base, extra=more)
            assert fingerprint(other) == wanted[order[1]][1], order
            again, _ = ask(engine, order[0], base=base, extra=more)
            assert fingerprint(again) == wanted[order[0]][1], order
            assert again.stats["cached_tokens"] >= len(prompt) - PAGE
            # The page that comes before the thought's first whole page is everybody's.
            assert other.stats["cached_tokens"] in (0, PAGE)


def test_a_thought_that_goes_on_otherwise_is_computed_again() -> None:
    """Rows of a thought see the thought at 8 bits, those after it at 4."""
    prompt = with_thoughts()
    inside = [*prompt[:250], *tokens(60, seed=5), CLOSE, 20, 21]
    with make_engine("llama_kv8", prefix_cache=False) as engine:
        first = engine.submit(
            Request(tokens=prompt, max_new_tokens=1, retain=True, thoughts=thoughts("demote"))
        )
        first.result()
        request = Request(tokens=inside, max_new_tokens=9, logprobs=2, thoughts=thoughts("demote"))
        shared = run(engine, request, base=first.retained)
        assert shared.stats["cached_tokens"] == PAGE
        assert fingerprint(shared) == fingerprint(run(engine, request))


@pytest.mark.parametrize("model", MODELS)
def test_what_is_retained_of_an_evicted_thought_is_its_prompt(model: str) -> None:
    with make_engine(model, prefix_cache=False) as engine:
        request = thinking(thoughts=thoughts(most=64), retain=True)
        handle = engine.submit(request)
        result = handle.result()
        after = [*request.tokens, *result.tokens[:40], 50, 51]
        go_on = Request(tokens=after, max_new_tokens=9, logprobs=2)
        shared = run(engine, go_on, base=handle.retained)
        assert shared.stats["cached_tokens"] == len(request.tokens)
        assert fingerprint(shared) == fingerprint(run(engine, go_on))


def test_limits_are_checked() -> None:
    with make_engine("llama_kv8") as engine:
        for most in (-1, 31, 2**31, 2**63 - 1):
            with pytest.raises(InvalidRequest, match=r"thoughts.most_tokens.*0 or 32 to"):
                engine.submit(thinking(thoughts=thoughts(most=most)))


def test_a_limit_that_no_thought_reaches_reserves_nothing() -> None:
    """A limit beyond the context made every request too large for any memory."""
    request = thinking(prompt=90, new=100)
    need = cases.bytes_needed("llama_f32", len(request.tokens) + 100, kv="kv8")
    with make_engine("llama_kv8", memory_budget=need) as engine:
        wanted = fingerprint(run(engine, request))
        for most in (101, 10**6, 2**31 - 1):
            limited = dataclasses.replace(request, thoughts=thoughts(most=most))
            assert fingerprint(run(engine, limited)) == wanted
        with pytest.raises(MemoryBudgetExceeded):
            run(engine, dataclasses.replace(request, thoughts=thoughts(most=100)))


# ---- which rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rows,keep,d,group", [(64, 48, 32, 1), (200, 150, 64, 4), (33, 24, 16, 3)])
def test_rows_are_chosen_as_the_reference_does(rows: int, keep: int, d: int, group: int) -> None:
    rng = np.random.default_rng(rows)
    keys = rng.standard_normal((rows, d), np.float32)
    keys[12::7] = keys[11] + 0.1 * rng.standard_normal((len(keys[12::7]), d), np.float32)  # alike
    queries = 0.05 * rng.standard_normal((8, group, d), np.float32)  # flat scores, but for one key
    queries[3] += 2 * keys[2] / np.linalg.norm(keys[2])  # one that is looked at
    chosen = _core.testing.choose_rows(keys, queries, keep)
    assert chosen == choose_rows(keys, queries, keep).tolist()
    assert chosen == sorted(set(chosen)) and len(chosen) == keep
    assert chosen[-8:] == list(range(rows - 8, rows))
    assert 2 in chosen and not {11, 12} & set(chosen), (
        "of keys that are alike the earlier ones go first"
    )


def test_what_cannot_be_chosen_from_is_refused() -> None:
    keys, queries = np.ones((40, 16), np.float32), np.ones((8, 1, 16), np.float32)
    for keep in (8, 40):
        with pytest.raises(InvalidRequest, match=r"\[choose_rows\]"):
            _core.testing.choose_rows(keys, queries, keep)
    keys[3] = np.nan  # poisons nothing else
    chosen = _core.testing.choose_rows(keys, queries, 30)
    assert chosen == sorted(set(chosen)) and chosen[-8:] == list(range(32, 40))


@pytest.mark.parametrize("d", [32, 48])
@pytest.mark.parametrize("form", ["kv8", "kv8v4", "kv4"])
def test_rows_come_out_of_a_page_as_they_are_in_it(form: str, d: int) -> None:
    rng = np.random.default_rng(d)
    rows = rng.standard_normal((2, PAGE, d)).astype(np.float32) + 3
    opened = np.zeros((4 + 2) * PAGE * d, np.uint8)
    for slot in range(PAGE):
        _core.testing.write_token("scalar", form, slot, *rows[:, slot], opened)
    k, v = _core.testing.page_rows(form, d, opened, sealed=False)
    page = attention.open_page(form, d, opened)
    assert np.array_equal(k, page.keys) and np.array_equal(v, page.values)
    sealed = _core.testing.seal_page("scalar", form, d, opened)
    k, v = _core.testing.page_rows(form, d, sealed, sealed=True)
    page = attention.sealed_page(form, d, sealed)
    scaled = page.key_scale[:, None] * page.key_codes.astype(np.float32)
    assert np.array_equal(k, page.key_mean + scaled)
    assert np.array_equal(v, page.value_scale[:, None] * page.value_codes.astype(np.float32))


# ---- against the twin ---------------------------------------------------------------------------

PROMPT, MOST, NEW = 40, 48, 150


def evicting_attend(q, k, v, a, sinks, seen):
    """reference.forward.attend of a sequence whose thought begins at PROMPT: in layers without a
    window rows that were evicted at a length are not seen by any query from there on."""
    seen = np.repeat(seen[None], a.kv_heads, 0)
    for head in range(a.kv_heads if a.window == 0 else 0):
        group = slice(head * (a.heads // a.kv_heads), (head + 1) * (a.heads // a.kv_heads))
        here = list(range(PAGE))  # of this head's rows, by position
        for length in range(PAGE + 1, len(q)):
            here.append(length - 1)
            if len(here) < PAGE + MOST:
                continue
            rows = np.array(here[PAGE:])
            chosen = choose_rows(k[rows, head], q[length - 8 : length, group], MOST * 3 // 4)
            seen[head, length:, np.setdiff1d(rows, rows[chosen])] = False
            here[PAGE:] = rows[chosen].tolist()
    out = np.empty_like(q)
    for head in range(a.heads):
        kv_head = head // (a.heads // a.kv_heads)
        scores = q[:, head] @ k[:, kv_head].T
        scores = np.where(seen[kv_head], scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, head] = p @ v[:, kv_head] / p.sum(-1, keepdims=True)
    return out


@pytest.mark.parametrize("name", ["llama", "muse"])
def test_what_is_left_is_attended_to_as_the_twin_does(name: str, monkeypatch) -> None:
    """Ropes at positions, rows at slots, the right rows: log-probabilities of 150 tokens."""
    spec = getattr(tiny_models, name)()
    assert not any(layer.attention.softcap for layer in spec.layers)
    weights = tiny_models.random_weights(spec)
    never_closed = thoughts(most=MOST) | {"closes": []}
    plainly = thinking(prompt=PROMPT - 2, new=NEW, thoughts=never_closed)
    request = dataclasses.replace(plainly, logit_bias=None)
    given = {"threads": 1, "context": 256, "kv": "f32", "memory_budget": 1 << 26}
    with Engine(spec, run_engine.pack_weights(weights, "f32"), **given) as engine:
        result = run(engine, request)
        whole = run(engine, dataclasses.replace(request, thoughts=None))
    assert result.stats["evictions"] == (PROMPT + NEW - 1 - PAGE - MOST) // (MOST // 4) + 1

    def told(ids: list[int]) -> np.ndarray:
        rows = forward.logits(spec, weights, [*request.tokens, *ids])[PROMPT - 1 : -1]
        return (rows - np.log(np.exp(rows).sum(-1, keepdims=True)))[np.arange(len(ids)), ids]

    plain = told(result.tokens)
    assert np.abs(told(whole.tokens) - whole.logprobs).max() < 1e-4
    monkeypatch.setattr(forward, "attend", evicting_attend)
    error = np.abs(told(result.tokens) - result.logprobs)
    assert error.max() < 1e-4
    assert np.abs(plain - result.logprobs).max() > 100 * error.max(), "evicting changed nothing"
