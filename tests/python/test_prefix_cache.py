"""What prompts begin with is kept: computed once, the same bits, given up when memory is needed."""

from __future__ import annotations

import random
import time

import pytest

from musespark.engine import Engine, Request
from support import engine_cases as cases
from support.engine_cases import fingerprint, tokens
from support.lora import adapter_tensors, random_adapter

MODELS = sorted(cases.MODELS)  # muse_kv8 has windows of 70, llama_f32 has none
WINDOWED, FULL = "muse_kv8", "llama_f32"
PAGE = 64


def ask(engine: Engine, prompt: list[int], new: int = 5, **more):
    return engine.submit(Request(tokens=prompt, max_new_tokens=new, **more)).result()


def cached(engine: Engine, prompt: list[int], **more) -> int:
    return ask(engine, prompt, **more).stats["cached_tokens"]


@pytest.mark.parametrize("model", MODELS)
def test_a_prompt_again_computes_its_last_page_only(model: str) -> None:
    prompt = tokens(600)
    with cases.make_engine(model) as engine:
        first = ask(engine, prompt, logprobs=3)
        rows = engine.stats()["rows"]
        again = ask(engine, prompt, logprobs=3)
        assert first.stats["cached_tokens"] == 0 and again.stats["cached_tokens"] == 576
        assert engine.stats()["rows"] - rows == 600 - 576 + 4
        assert fingerprint(again) == fingerprint(first)
        # The last token is always computed, and less than a page is not kept.
        assert cached(engine, prompt[:576]) == 512
        assert cached(engine, prompt[:63]) == 0
        assert cached(engine, [prompt[0] + 1, *prompt[1:]]) == 0


@pytest.mark.parametrize("model", MODELS)
def test_a_conversation_goes_on_from_the_last_answer(model: str) -> None:
    with cases.make_engine(model) as engine, cases.make_engine(model, prefix_cache=False) as plain:
        known = tokens(150)
        for turn in range(4):
            result = ask(engine, known, 70)
            wanted = ask(plain, known, 70)
            assert result.tokens == wanted.tokens and wanted.stats["cached_tokens"] == 0
            if turn > 0:
                assert result.stats["cached_tokens"] >= (len(known) - 31) // PAGE * PAGE - PAGE
            known = known + result.tokens + tokens(30, seed=turn)


@pytest.mark.parametrize("model", MODELS)
def test_prompts_with_one_beginning_compute_it_once(model: str) -> None:
    start = tokens(448)
    for rest, windowed in ((560, [0, 0, 448, 448, 448]), (200, [0, *[448] * 4])):
        prompts = [start + tokens(rest, seed=s) for s in range(5)]
        with cases.make_engine(model, prefill_chunk=128) as engine:
            got = [cached(engine, prompt) for prompt in prompts]
            # With windows, where they part more than 256 tokens before the end, the second one
            # shows the place; from the third on it is known.
            assert got == (windowed if model == WINDOWED else [0, *[448] * 4])


@pytest.mark.parametrize("model", MODELS)
def test_prompts_submitted_together_compute_one_beginning_once(model: str) -> None:
    start = tokens(300)
    prompts = [start + tokens(40 + s, seed=s) for s in range(9)]
    prompts.append(tokens(500, seed=77))
    with cases.make_engine(model, prefill_chunk=100) as engine:
        handles = [engine.submit(Request(tokens=p, max_new_tokens=5)) for p in prompts]
        results = [h.result() for h in handles]
        shared = [r.stats["cached_tokens"] for r in results]
        # Submitted one after the other: with windows, the second may come when the first is past
        # the place where they part, and then it shows the others.
        assert shared[0] == shared[-1] == 0 and shared.count(256) >= (7 if model == WINDOWED else 8)
        assert engine.stats()["rows"] == sum(map(len, prompts)) - sum(shared) + 10 * 4
    with cases.make_engine(model, prefix_cache=False) as plain:
        for prompt, result in zip(prompts, results, strict=True):
            assert fingerprint(ask(plain, prompt)) == fingerprint(result)


def test_who_waits_for_a_beginning_goes_on_when_its_maker_is_cancelled() -> None:
    prompt = tokens(900)
    with cases.make_engine(prefill_chunk=16) as engine:
        first = engine.submit(Request(tokens=prompt, max_new_tokens=5))
        second = engine.submit(Request(tokens=prompt, max_new_tokens=5))
        first.cancel()
        assert first.result().reason == "cancelled"
        result = second.result()
    with cases.make_engine(prefix_cache=False) as plain:
        assert result.tokens == ask(plain, prompt).tokens


@pytest.mark.parametrize("model", MODELS)
def test_any_order_of_any_prompts_gives_the_bits_of_no_cache(model: str) -> None:
    choose = random.Random(5)
    trunks = [tokens(choose.randrange(1, 900), seed=s) for s in range(4)]
    requests = []
    for i in range(30):
        trunk = choose.choice(trunks)
        prompt = trunk[: choose.randrange(1, len(trunk) + 1)] + tokens(choose.randrange(90), seed=i)
        requests.append(Request(tokens=prompt, max_new_tokens=choose.randrange(1, 90)))
    with cases.make_engine(model, prefix_cache=False) as plain:
        wanted = [fingerprint(plain.submit(r).result()) for r in requests]
    # The most tight budget makes every admission push something out.
    for budget in (1 << 28, cases.bytes_needed(model, 1024) + 4096):
        settings = {"memory_budget": budget, "prefill_chunk": choose.choice([33, 200, 512])}
        with cases.make_engine(model, **settings) as engine:
            hits = 0
            for begin in range(0, len(requests), 6):
                handles = [engine.submit(r) for r in requests[begin : begin + 6]]
                for i, handle in enumerate(handles, begin):
                    result = handle.result()
                    assert fingerprint(result) == wanted[i], (budget, i)
                    hits += result.stats["cached_tokens"] > 0
                stats = engine.stats()
                assert stats["kv_bytes_used"] == 0 and stats["prefix_bytes"] <= budget
            assert hits > 3


@pytest.mark.parametrize("model", MODELS)
def test_what_is_kept_gives_way_least_recently_used_first(model: str) -> None:
    budget = cases.bytes_needed(model, 1000) * 3 // 2
    prompts = [tokens(500, seed=s) for s in range(8)]
    with cases.make_engine(model, memory_budget=budget) as engine:
        for prompt in prompts:
            ask(engine, prompt)
            stats = engine.stats()
            assert stats["kv_bytes_used"] == 0 < stats["prefix_bytes"] <= budget
        assert cached(engine, prompts[-1]) == 448
        assert cached(engine, prompts[0]) == 0
        assert ask(engine, tokens(900, seed=99), 100).reason == "length"


def test_forks_of_one_beginning_fit_where_copies_would_not() -> None:
    start = tokens(576)
    one = cases.bytes_needed(FULL, 640)
    with cases.make_engine(FULL, memory_budget=2 * one) as engine:
        ask(engine, start)
        handles = [engine.submit(Request(tokens=[*start, s], max_new_tokens=50)) for s in range(8)]
        results = [h.result() for h in handles]
        assert all(r.stats["cached_tokens"] == 576 for r in results)
        assert all(r.stats["preemptions"] == 0 for r in results)
        # All eight ran side by side: 50 steps, not 8 x 50.
        assert engine.stats()["steps"] < 120


def test_logits_for_every_token_share_nothing() -> None:
    prompt = tokens(300)
    with cases.make_engine() as engine:
        ask(engine, prompt)
        for mode, rows in (("all", 300), ("score", 299), ("last", 1)):
            result = engine.submit(Request(tokens=prompt, logits=mode)).result()
            assert len(result.logits) == rows
            assert result.stats["cached_tokens"] == (256 if mode == "last" else 0)


@pytest.mark.parametrize("model", MODELS)
def test_no_more_is_kept_than_asked_for(model: str) -> None:
    prompts = [tokens(500, seed=s) for s in range(8)]
    with cases.make_engine(model) as engine:
        ask(engine, prompts[0])
        one = engine.stats()["prefix_bytes"]
    with cases.make_engine(model, prefix_cache_bytes=2 * one) as engine:
        for prompt in prompts:
            ask(engine, prompt)
            stats = engine.stats()
            assert 0 < stats["prefix_bytes"] <= 2 * one
            assert stats["prefix_bytes"] <= stats["kv_bytes_allocated"] < stats["kv_bytes_limit"]
        assert cached(engine, prompts[-1]) == 448 and cached(engine, prompts[0]) == 0
    with cases.make_engine(model, prefix_cache_bytes=0) as engine:
        assert [cached(engine, prompts[0]) for _ in range(2)] == [0, 0]
        assert engine.stats()["prefix_bytes"] == 0


def test_without_it_nothing_is_kept() -> None:
    with cases.make_engine(prefix_cache=False) as engine:
        assert [cached(engine, tokens(300)) for _ in range(2)] == [0, 0]
        stats = engine.stats()
        assert stats["prefix_bytes"] == stats["kv_bytes_used"] == 0


def test_an_adapter_has_prefixes_of_its_own() -> None:
    prompt = tokens(300)
    with cases.make_engine() as engine:
        spec, ids = cases.packed(WINDOWED)[0], []
        for seed in (1, 2):
            engine.add_adapter(ids, adapter_tensors(random_adapter(spec, seed)))
        one, two = ids
        for adapter in (None, one, two):
            assert [cached(engine, prompt, adapter=adapter) for _ in range(2)] == [0, 256]
        kept = engine.stats()["prefix_bytes"]
        engine.remove_adapter(two)
        assert cached(engine, prompt, adapter=one) == 256
        assert engine.stats()["prefix_bytes"] <= kept * 2 // 3 + 1


def test_what_windows_keep_of_a_prefix_makes_no_request_too_large() -> None:
    prompt = tokens(620)
    with cases.make_engine(memory_budget=cases.bytes_needed(WINDOWED, 640)) as engine:
        ask(engine, prompt[:500])
        assert ask(engine, prompt, 20).stats["cached_tokens"] == 448


def test_marks_in_a_prefix_that_others_use_take_no_memory_from_them() -> None:
    prompt, settings = tokens(640), {"context": 3200, "prefill_chunk": 64}
    room = sum(cases.bytes_needed(WINDOWED, n, **settings) for n in (3140, 650))
    with cases.make_engine(memory_budget=room, **settings) as engine:
        ask(engine, prompt)
        holder = engine.submit(Request(tokens=prompt, max_new_tokens=2500))
        events = iter(holder)
        next(events)
        waited = 0.0
        for i in range(8):  # each parts from the prompt elsewhere and marks where
            part = 64 * (9 - i)
            asked = ask(engine, [*prompt[:part], 5, *tokens(640 - part - 1, seed=i)])
            waited = max(waited, asked.stats["queue_s"])
        whole = list(events)[-1].stats["decode_s"]
        assert waited < whole / 2, "they had to wait for the first to end"


def test_pages_of_a_removed_adapter_stay_counted() -> None:
    prompt, settings = tokens(1500), {"context": 3000}
    one = cases.bytes_needed(FULL, 2900, **settings)
    with cases.make_engine(FULL, memory_budget=one * 3 // 2, **settings) as engine:
        ids: list[int] = []
        engine.add_adapter(ids, adapter_tensors(random_adapter(cases.packed(FULL)[0], 1)))
        ask(engine, prompt, adapter=ids[0])
        first = engine.submit(Request(tokens=prompt, max_new_tokens=1400, adapter=ids[0]))
        events = iter(first)
        next(events)
        engine.remove_adapter(ids[0])
        assert ask(engine, tokens(1000, seed=2), 1400).reason == "length"
        assert list(events)[-1].reason == "length"


def test_who_waits_for_a_beginning_keeps_its_place() -> None:
    prompt = tokens(900)
    with cases.make_engine(prefill_chunk=16, max_batch=2) as engine:
        maker = engine.submit(Request(tokens=prompt, max_new_tokens=5))
        begin = time.perf_counter()
        second = engine.submit(Request(tokens=prompt, max_new_tokens=5))
        third = engine.submit(Request(tokens=tokens(20, seed=2), max_new_tokens=300))
        between = time.perf_counter() - begin
        stats = [handle.result().stats for handle in (maker, second, third)]
        assert stats[1]["cached_tokens"] == 896
        assert stats[1]["queue_s"] < stats[2]["queue_s"] + between
