"""Requests: what they return, when they end, what is refused; and sequences kept for reuse."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import pytest

from musespark.engine import Engine, Finished, LogitsRows, Request
from musespark.errors import ContextOverflow, Error, InvalidRequest, MemoryBudgetExceeded
from musespark.families.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, RopeSpec
from musespark.reference import sampler as twin
from support import engine_cases as cases
from support import run_engine, tiny_models
from support.compare import assert_same_bits
from support.engine_cases import tokens


@pytest.fixture(scope="module")
def engine():
    # What one test leaves must not shorten another's prefill.
    with cases.make_engine("muse_kv8", context=1024, prefix_cache=False) as engine:
        yield engine


# --- what comes back ---------------------------------------------------------------------------


def test_greedy_is_the_arg_max_of_the_logits(engine: Engine) -> None:
    prompt = tokens(70)
    out = engine.submit(Request(tokens=prompt, max_new_tokens=30)).result()
    assert len(out.tokens) == 30 and out.reason == "length"
    logits = engine.submit(Request(tokens=prompt + out.tokens, logits="all")).result().logits
    assert logits.shape == (100, 130) and logits.dtype == np.float32
    assert logits.argmax(1)[69:-1].tolist() == out.tokens


def test_sampled_tokens_are_the_twins_at_their_absolute_positions(engine: Engine) -> None:
    request = Request(
        tokens=tokens(70),
        max_new_tokens=50,
        temperature=1.2,
        top_p=0.9,
        repetition_penalty=1.2,
        frequency_penalty=0.2,
        seed=77,
        stream=3,
    )
    out = engine.submit(request).result().tokens
    known = request.tokens + out
    rows = engine.submit(Request(tokens=known, logits="all")).result().logits
    params = twin.Sampling(
        **{f.name: getattr(request, f.name) for f in dataclasses.fields(twin.Sampling)}
    )
    for i, token in enumerate(out):
        assert token == twin.sample(rows[69 + i], params, 70 + i, known[:70], out[:i]), i
    # Another seed or stream is another text; the same is the same.
    changed = [dataclasses.replace(request, **c) for c in ({}, {"seed": 78}, {"stream": 4})]
    same, *others = [engine.submit(r).result().tokens for r in changed]
    assert same == out and out not in others


def test_logits_last_score_and_all_agree(engine: Engine) -> None:
    prompt = tokens(333)
    events = list(engine.submit(Request(tokens=prompt, logits="all")))
    pieces = [e for e in events if isinstance(e, LogitsRows)]
    assert [p.first for p in pieces] == [
        sum(len(q.values) for q in pieces[:i]) for i in range(len(pieces))
    ]
    assert max(len(p.values) for p in pieces) <= 64, "pieces are bounded"
    rows = np.concatenate([p.values for p in pieces])
    last = engine.submit(Request(tokens=prompt, logits="last")).result()
    assert_same_bits(last.logits, rows[-1:])
    assert last.tokens == [] and last.reason == "length"
    score = engine.submit(Request(tokens=prompt, logits="score")).result().logits
    x = rows.astype(np.float64)
    wanted = (
        x
        - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))
        - x.max(1, keepdims=True)
    )
    wanted = wanted[np.arange(332), prompt[1:]]
    assert score.shape == (332,) and np.abs(score - wanted).max() < 1e-5
    assert engine.submit(Request(tokens=[3], logits="score")).result().logits is None


@pytest.mark.parametrize("mode", ["all", "score"])
@pytest.mark.parametrize("name", ["muse_kv8", "llama_f32"])
def test_logits_from_a_token_on_are_those_of_the_whole(name: str, mode: str) -> None:
    """What lies before may be known: from prompts before, or a sequence that is gone on with."""
    prompt = tokens(333)
    cut = name == "llama_f32"  # without windows a sequence can be gone on with from anywhere
    with cases.make_engine(name) as engine:
        whole = engine.submit(Request(tokens=prompt, logits=mode)).result()
        assert whole.stats["cached_tokens"] == 0
        base = engine.submit(Request(tokens=prompt[:200], max_new_tokens=0, retain=True))
        base.result()
        for first in (0, 1, 63, 64, 199, 200, 320, 331, 332):
            request = Request(tokens=prompt, logits=mode, logits_from=first)
            known = [engine.submit(request).result()]
            if first > 0:
                known.append(engine.submit(request, base=base.retained).result())
                assert known[1].stats["cached_tokens"] >= min(first, 200) * cut
            for found in known:
                assert found.stats["cached_tokens"] <= first
                if mode == "score" and first == 332:
                    assert found.logits is None
                else:
                    assert_same_bits(found.logits, whole.logits[first:])
        assert known[0].stats["cached_tokens"] >= 320 * cut  # of whole pages


@pytest.mark.parametrize(
    ("mode", "first", "told"),
    [
        ("none", 1, "got 1, allowed is 0 without logits"),
        ("last", 1, "got 1, allowed is 0 without logits"),
        ("all", -1, "got -1, allowed is 0 to 3, the last token"),
        ("score", 4, "got 4, allowed is 0 to 3, the last token"),
    ],
)
def test_logits_from_where_there_are_none(engine: Engine, mode, first, told) -> None:
    with pytest.raises(InvalidRequest, match=f"logits_from: {told}"):
        engine.submit(Request(tokens=[1, 2, 3, 4], logits=mode, logits_from=first))


def test_stop_ids_and_min_new_tokens(engine: Engine) -> None:
    prompt = tokens(20)
    free = engine.submit(
        Request(tokens=prompt, max_new_tokens=40, temperature=1.0, seed=1)
    ).result()
    stop = free.tokens[10]
    at = free.tokens.index(stop)
    out = engine.submit(
        Request(tokens=prompt, max_new_tokens=40, temperature=1.0, seed=1, stop_ids=[stop])
    ).result()
    assert out.reason == "stop" and out.tokens == free.tokens[: at + 1]
    sampled = Request(tokens=prompt, max_new_tokens=40, temperature=1.0, seed=1, stop_ids=[stop])
    # The stop id may come as token number `at` (from 0) once `at` tokens are there, not before.
    for least in (at, at + 1, 25):
        later = engine.submit(dataclasses.replace(sampled, min_new_tokens=least)).result()
        assert stop not in later.tokens[:least] and len(later.tokens) >= least
        assert (later.tokens == out.tokens) == (least == at)


def test_lengths_and_stats(engine: Engine) -> None:
    out = engine.submit(Request(tokens=tokens(1000))).result()
    assert out.reason == "length" and len(out.tokens) == 24, "up to the context"
    assert out.stats["prompt_tokens"] == 1000 and out.stats["completion_tokens"] == 24
    assert (
        out.stats["cached_tokens"] == 0 and out.stats["first_token_s"] >= out.stats["prefill_s"] > 0
    )
    none = engine.submit(Request(tokens=tokens(10), max_new_tokens=0)).result()
    assert none.tokens == [] and none.reason == "length"


def test_more_requests_than_may_run_at_once() -> None:
    with cases.make_engine(max_batch=2) as few, cases.make_engine() as many:
        made = [Request(tokens=tokens(9, i), max_new_tokens=12, temperature=1.0) for i in range(9)]
        results = [[h.result().tokens for h in [e.submit(r) for r in made]] for e in (few, many)]
    assert results[0] == results[1]


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    with cases.make_engine(context=4096, prefill_chunk=32, prefix_cache=False) as engine:
        long = engine.submit(Request(tokens=tokens(4000), max_new_tokens=1))
        short = engine.submit(Request(tokens=tokens(20), max_new_tokens=1))
        short.result()
        assert not long.stream.ended
        long.result()


# --- what is refused ---------------------------------------------------------------------------

BAD = [
    ({"tokens": []}, "tokens: got none"),
    ({"tokens": [1, 130]}, r"tokens\[1\]: got 130, allowed is a token id from 0 to 129"),
    ({"tokens": [-1]}, r"tokens\[0\]: got -1"),
    ({"tokens": [2**31]}, "tokens: got 2147483648"),
    ({"tokens": [1.5]}, "tokens: got float64"),
    ({"tokens": [[1]]}, "tokens: got 2 dimensions"),
    ({"max_new_tokens": -1}, "max_new_tokens: got -1"),
    ({"max_new_tokens": 2.0}, "max_new_tokens: got 2.0"),
    ({"min_new_tokens": -1}, "min_new_tokens: got -1"),
    ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens: got 9.*max_new_tokens = 8"),
    ({"stop_ids": [130]}, "stop_ids: got 130"),
    ({"stop_ids": ["a"]}, "stop_ids: got 'a'"),
    ({"logits": "some"}, "logits: got 'some'.*none, last, all, score"),
    ({"logits": "all", "max_new_tokens": 3}, "max_new_tokens: got 3 with logits"),
    ({"deadline": -1.0}, "deadline_s: got -1"),
    ({"deadline": math.nan}, "deadline_s: got nan"),
    ({"retain": 1}, "retain: got 1"),
    ({"temperature": -1.0}, "temperature: got -1"),
    ({"logprobs": 131}, "logprobs: got 131.*0 to 130"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m[:40] for _, m in BAD])
def test_bad_requests_are_refused_at_once(engine: Engine, change: dict, message: str) -> None:
    request = dataclasses.replace(Request(tokens=[1, 2]), **change)
    with pytest.raises(InvalidRequest, match=message):
        engine.submit(request)


@pytest.mark.parametrize(
    ("count", "new", "needed"),
    [(1024, None, 1025), (1024, 1, 1025), (2000, None, 2001), (5, 2**62, None)],
)
def test_what_does_not_fit_the_context(engine: Engine, count: int, new: int, needed: int) -> None:
    with pytest.raises(ContextOverflow) as error:
        engine.submit(Request(tokens=tokens(count), max_new_tokens=new))
    assert error.value.limit == 1024
    assert error.value.needed == (needed if needed else count + new)
    assert str(error.value.needed) in str(error.value)


def test_what_does_not_fit_the_memory() -> None:
    needs = cases.bytes_needed("muse_kv8", 900)
    with cases.make_engine(memory_budget=needs) as engine:
        with pytest.raises(MemoryBudgetExceeded, match=f"memory budget is {needs}"):
            engine.submit(Request(tokens=tokens(100), max_new_tokens=900))
        assert (
            len(engine.submit(Request(tokens=tokens(100), max_new_tokens=700)).result().tokens)
            == 700
        )
        # Of unknown length and alone: full memory ends it with an error, not quietly shorter.
        with pytest.raises(MemoryBudgetExceeded, match="is full after"):
            engine.submit(Request(tokens=tokens(100))).result()
        assert engine.submit(Request(tokens=[1], max_new_tokens=2)).result().reason == "length"
        assert engine.stats()["kv_bytes_used"] == 0


def test_settings_are_checked() -> None:
    for settings, message in [
        ({"context": 0}, "context: got 0"),
        ({"context": 4097}, "context: got 4097.*4096"),
        ({"threads": 0}, "threads"),
        ({"prefill_chunk": 0}, "prefill_chunk: got 0"),
        ({"max_batch": 0}, "max_batch: got 0"),
        ({"kv": "kv3"}, "kv: got 'kv3'"),
        ({"memory_budget": -1}, "budget"),
    ]:
        with pytest.raises(InvalidRequest, match=message):
            cases.make_engine(**settings)


def test_the_spec_is_read_strictly() -> None:
    spec, tensors, kv = cases.packed("muse_kv8")
    good = dataclasses.asdict(spec)

    def refused(message: str, change) -> None:
        import copy

        bad = copy.deepcopy(good)
        change(bad)
        with pytest.raises(InvalidRequest, match=message):
            Engine(bad, tensors, threads=1, context=64, kv=kv, memory_budget=1 << 20)

    refused(
        r"layers\[3\]\.attention\.rope: got 'x'",
        lambda s: s["layers"][3]["attention"].update(rope="x"),
    )
    refused(r"layers\[0\]\.mlp\.gated: missing", lambda s: s["layers"][0]["mlp"].pop("gated"))
    refused(
        r"layers\[1\]\.attention\.q_norm\.kind: got 'l2'",
        lambda s: s["layers"][1]["attention"]["q_norm"].update(kind="l2"),
    )
    refused(r"ropes\[0\]\.flip: unknown", lambda s: s["ropes"][0].update(flip=1))
    refused("vocab: got True", lambda s: s.update(vocab=True))
    refused("layers: got 3", lambda s: s.update(layers=3))
    refused("hidden_size: unknown", lambda s: s.update(hidden_size=3))


def test_tensors_are_read_strictly() -> None:
    spec, tensors, kv = cases.packed("muse_kv8")

    def refused(error, message: str, name: str, value: object) -> None:
        with pytest.raises(error, match=message):
            Engine(
                spec, tensors | {name: value}, threads=1, context=64, kv=kv, memory_budget=1 << 20
            )

    embed = tensors["embed"]
    refused(InvalidRequest, r"tensors\['embed'\]: got 3", "embed", 3)
    refused(InvalidRequest, "one of f32, bf16, q8, q6, q4", "embed", ("q5", *embed[1:]))
    refused(InvalidRequest, "contiguous buffer", "embed", (*embed[:3], "text"))
    refused(InvalidRequest, "contiguous buffer", "embed", (*embed[:3], embed[3][::2]))
    refused(Error, "embed", "embed", (*embed[:3], embed[3][:-64]))


# --- logits that are not finite ----------------------------------------------------------------


def test_a_model_that_overflows_ends_with_an_error() -> None:
    spec = tiny_models.llama()
    weights = tiny_models.random_weights(spec)
    weights["head"][5] = 3e38
    tensors = run_engine.pack_weights(weights, "f32")
    with Engine(spec, tensors, threads=1, context=64, kv="f32", memory_budget=1 << 22) as engine:
        for request in (
            Request(tokens=[1, 2], max_new_tokens=3),
            Request(tokens=[1, 2], logits="score"),
        ):
            with pytest.raises(Error, match="not finite: id 5 of 101"):
                engine.submit(request).result()
        assert np.isinf(engine.submit(Request(tokens=[1, 2], logits="last")).result().logits[0, 5])
        assert engine.stats()["kv_bytes_used"] == 0


# --- cancel and deadline -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow_engine():
    """One step over a whole prompt takes long, one of its 32 layers little."""
    attention = AttentionSpec(heads=4, kv_heads=1, head_dim=64, rope=0, query_scale=0.125)
    norm = tiny_models.RMS
    layer = LayerSpec(attention, MlpSpec(intermediate=1024), attn_norm=norm, mlp_norm=norm)
    spec = ModelSpec(
        vocab=100,
        hidden=256,
        max_context=16384,
        final_norm=norm,
        tied_head=True,
        ropes=[RopeSpec(dim=64)],
        layers=[layer] * 32,
    )
    tensors = run_engine.pack_weights(tiny_models.random_weights(spec), "q8")
    settings = {"threads": 2, "context": 4096, "prefill_chunk": 4096, "memory_budget": 1 << 30}
    with Engine(spec, tensors, kv="kv8", prefix_cache=False, **settings) as engine:
        begin = time.perf_counter()
        engine.submit(Request(tokens=tokens(3000, vocab=100), max_new_tokens=1)).result()
        yield engine, time.perf_counter() - begin


def test_cancel_inside_prefill(slow_engine) -> None:
    """One step holds the whole prompt; it ends within a layer, of which there are 32."""
    engine, whole = slow_engine
    steps = engine.stats()["steps"]
    handle = engine.submit(Request(tokens=tokens(3000, vocab=100), max_new_tokens=1))
    time.sleep(whole * 0.25)
    begin = time.perf_counter()
    handle.cancel()
    result = handle.result()
    took = time.perf_counter() - begin
    assert result.reason == "cancelled" and result.tokens == []
    # A layer (the last have more keys than the first) and the 50 ms the design allows, with air for
    # a machine that does other things; the rest of the prompt would take 0.75 of the whole.
    assert took < whole * 4 / 32 + 0.15, (took, whole)
    assert engine.stats()["steps"] == steps, "the step was not discarded"


def test_deadline_inside_prefill(slow_engine) -> None:
    engine, whole = slow_engine
    begin = time.perf_counter()
    result = engine.submit(
        Request(tokens=tokens(3000, vocab=100), max_new_tokens=1, deadline=whole * 0.25)
    ).result()
    took = time.perf_counter() - begin
    assert result.reason == "deadline"
    assert whole * 0.25 <= took < whole * (0.25 + 4 / 32) + 0.15, (took, whole)


def test_cancelling_one_leaves_the_others(slow_engine) -> None:
    engine, whole = slow_engine
    request = Request(tokens=tokens(800, seed=2, vocab=100), max_new_tokens=4, temperature=1.0)
    wanted = engine.submit(request).result().tokens
    redone = engine.stats()["redone_steps"]
    doomed = engine.submit(Request(tokens=tokens(2500, vocab=100), max_new_tokens=4))
    handle = engine.submit(request)
    time.sleep(whole * 0.25)
    doomed.cancel()
    assert doomed.result().reason == "cancelled"
    assert handle.result().tokens == wanted
    assert engine.stats()["redone_steps"] > redone, "the step held only one of them"
    assert engine.stats()["kv_bytes_used"] == 0


def test_cancel_while_decoding_keeps_what_came(engine: Engine) -> None:
    request = Request(tokens=tokens(5), max_new_tokens=1000, temperature=1.0)
    handle = engine.submit(request)
    events = []
    for event in handle:
        events.append(event)
        handle.cancel()
    assert isinstance(events[-1], Finished) and events[-1].reason in ("cancelled", "length")
    got = [t for e in events[:-1] for t in e.ids]
    assert got == engine.submit(request).result().tokens[: len(got)]
    handle.cancel()  # no effect after the end


def test_a_deadline_of_nothing(engine: Engine) -> None:
    assert engine.submit(Request(tokens=[1], deadline=0.0)).result().reason == "deadline"


# --- sequences kept for reuse ------------------------------------------------------------------


@pytest.mark.isa
@pytest.mark.parametrize("model", sorted(cases.MODELS))
def test_a_base_changes_nothing_but_the_time(model: str) -> None:
    """Common prefixes that end on and around page borders, beyond the base, and at once."""
    with cases.make_engine(model, prefix_cache=False) as engine:
        first = engine.submit(Request(tokens=tokens(200), max_new_tokens=60, retain=True))
        known = tokens(200) + first.result().tokens
        cached = {}
        for common in (0, 1, 63, 64, 65, 128, 190, 192, 193, 199, 255, 256, 257, 259, 260):
            prompt = (
                known[:common] + [(t + 1) % 60 for t in known[common : common + 1]] + tokens(40, 7)
            )
            request = Request(tokens=prompt, max_new_tokens=20, temperature=1.0, seed=common)
            last = Request(tokens=prompt, logits="last")
            for made in (request, last):
                fresh = engine.submit(made).result()
                reused = engine.submit(made, base=first.retained).result()
                assert cases.fingerprint(fresh) == cases.fingerprint(reused), common
                assert fresh.stats["cached_tokens"] == 0
                assert reused.stats["cached_tokens"] <= min(common, 259)
                cached[common] = reused.stats["cached_tokens"]
        # Nothing is thrown away that could be shared: whole pages always, without a window.
        if model == "llama_f32":
            assert cached == {c: min(c, 259) for c in cached}
        assert cached[259] == cached[260] == 259 and cached[257] >= 256


def test_the_same_prompt_again(engine: Engine) -> None:
    """All of it is known, but its last token's logits are computed."""
    request = Request(tokens=tokens(130), max_new_tokens=5, retain=True)
    first = engine.submit(request)
    wanted = first.result().tokens
    again = engine.submit(request, base=first.retained).result()
    assert again.tokens == wanted and 128 <= again.stats["cached_tokens"] <= 129


def test_forks_go_their_own_ways(engine: Engine) -> None:
    first = engine.submit(Request(tokens=tokens(100), max_new_tokens=30, retain=True))
    known = tokens(100) + first.result().tokens
    twins = [first.retained.fork() for _ in range(3)]
    first.retained.release()
    twins.append(twins[0].fork())
    handles = []
    for i, base in enumerate(twins):
        request = Request(tokens=known + tokens(10, seed=i), max_new_tokens=20, temperature=1.0)
        handles.append((request, engine.submit(request, base=base)))
        base.release()
    for request, handle in handles:
        got = handle.result()
        assert got.stats["cached_tokens"] == len(known) - 1
        assert got.tokens == engine.submit(request).result().tokens


def test_released_pages_come_back() -> None:
    with cases.make_engine() as engine:
        handle = engine.submit(Request(tokens=tokens(300), max_new_tokens=5, retain=True))
        handle.result()
        assert engine.stats()["kv_bytes_used"] > 0 and engine.stats()["retained"] == 1
        handle.retained.release()
        handle.retained.release()
        deadline = time.monotonic() + 10
        while engine.stats()["kv_bytes_used"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert engine.stats()["kv_bytes_used"] == 0 and engine.stats()["retained"] == 0
        with pytest.raises(InvalidRequest, match="base: got"):
            engine.submit(Request(tokens=[1]), base=handle.retained)
        with pytest.raises(InvalidRequest, match="id: got"):
            handle.retained.fork()


def test_a_running_sequence_is_no_base() -> None:
    with cases.make_engine() as engine:
        handle = engine.submit(Request(tokens=tokens(300), retain=True))
        with pytest.raises(InvalidRequest, match="base"):
            engine.submit(Request(tokens=[1]), base=handle.retained)
        with pytest.raises(InvalidRequest, match="logits_from: got 0, with a base"):
            engine.submit(Request(tokens=[1], logits="all"), base=handle.retained)
        handle.cancel()
        assert handle.result().reason == "cancelled"
        # What a cancelled sequence had computed can be built on.
        assert engine.submit(
            Request(tokens=tokens(300), max_new_tokens=1), base=handle.retained
        ).result()


def test_kept_pages_give_way_to_running_sequences() -> None:
    """Least recently used first; their next use computes again, with the same tokens."""
    budget = cases.bytes_needed("muse_kv8", 700) * 5 // 4  # a running one has many open pages
    with cases.make_engine(memory_budget=budget, prefix_cache=False) as engine:
        made = [Request(tokens=tokens(600, i), max_new_tokens=100, retain=True) for i in range(4)]
        handles = [engine.submit(r) for r in made]
        results = [h.result() for h in handles]
        cached = []
        for request, handle, result in zip(made, handles, results, strict=True):
            again = engine.submit(
                dataclasses.replace(request, retain=False), base=handle.retained
            ).result()
            assert again.tokens == result.tokens
            cached.append(again.stats["cached_tokens"])
        assert 0 in cached, "memory was not tight"
        assert engine.stats()["kv_bytes_used"] <= budget
