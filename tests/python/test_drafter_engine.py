"""A drafter behind the engine: the same tokens in fewer steps, and rest where it does not pay."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from musespark.errors import InvalidRequest
from musespark.events import Request
from support import engine_cases as cases
from support import tiny_models
from support.drafters import BLOCK, drafter_for, make_engine, weights_for
from support.engine_cases import fingerprint, tokens
from support.run_engine import pack_weights

# Whatever drafts cost: what these tests see does not depend on how fast the machine is.
EAGER = {"draft_tokens": 16, "draft_eagerly": True}
SAMPLED = {"temperature": 1.0, **EAGER}


def plain(name: str, requests: list[Request], **settings) -> list[str]:
    with cases.make_engine(name, threads=1, **settings) as engine:
        return [fingerprint(engine.submit(request).result()) for request in requests]


@pytest.mark.parametrize("model", cases.MODELS)
def test_the_same_bits_as_without(model: str) -> None:
    """Greedy and sampled, with penalties, biases, thoughts, trials, budgets and logits: a drafter
    of random weights is hardly ever right."""
    vocab = cases.packed(model)[0].vocab
    requests = cases.requests(vocab)
    wanted = plain(model, requests)
    with make_engine(model) as engine:
        assert [fingerprint(engine.submit(request).result()) for request in requests] == wanted
        eager = [dataclasses.replace(request, **EAGER) for request in requests]
        results = [engine.submit(request).result() for request in eager]
        assert [fingerprint(result) for result in results] == wanted
        together = [engine.submit(request) for request in eager]
        assert [fingerprint(handle.result()) for handle in together] == wanted
    assert sum(result.stats["drafter_passes"] for result in results) > 5, "it never drafted"


def test_the_same_tokens_on_many_prompts() -> None:
    requests = [
        Request(
            tokens=tokens(1 + 7 * i % 150, seed=i),
            max_new_tokens=20 + i % 30,
            temperature=i % 3 * 0.5,
            seed=i,
            **EAGER,
        )
        for i in range(60)
    ]
    wanted = plain("llama_f32", requests)
    with make_engine("llama_f32") as engine:
        assert [fingerprint(engine.submit(request).result()) for request in requests] == wanted


def test_fewer_steps_where_it_is_right() -> None:
    request = Request(tokens=tokens(100), max_new_tokens=200, seed=5, **SAMPLED)
    with make_engine(silent=True, prefix_cache=False) as engine:
        off = engine.submit(dataclasses.replace(request, draft_tokens=0)).result()
        before = engine.stats()["steps"]
        found = engine.submit(request).result()
        steps = engine.stats()["steps"] - before
    assert fingerprint(found) == fingerprint(off)
    assert off.stats["drafter_passes"] == 0 and found.stats["drafter_passes"] > 10
    assert found.stats["drafter_accepted_tokens"] > 100 and steps < 100
    passes, right = (found.stats[f"drafter_{what}"] for what in ("passes", "accepted_tokens"))
    assert right / passes <= BLOCK - 1


def test_where_it_is_never_right_it_rests() -> None:
    given = {"tokens": tokens(300), "temperature": 50.0, "seed": 2, "max_new_tokens": 600}
    with make_engine() as engine:
        found = engine.submit(Request(**given, draft_tokens=16)).result()
        assert found.tokens == engine.submit(Request(**given)).result().tokens
    assert found.stats["drafter_passes"] < 25


def test_one_token_at_a_time_when_it_is_told_so() -> None:
    request = Request(tokens=tokens(50), max_new_tokens=40, temperature=1.0)
    with make_engine(silent=True) as engine:
        found = engine.submit(request).result()
        assert found.stats["drafter_passes"] == 0 and engine.stats()["drafter_tokens"] == 0


def test_a_sequence_that_is_preempted_goes_on_with_it() -> None:
    """Two sequences that do not fit together: one is computed again, and drafts again."""
    requests = [
        Request(tokens=tokens(90, seed=i), max_new_tokens=250, seed=i, **SAMPLED) for i in (1, 2)
    ]
    growing = [dataclasses.replace(request, max_new_tokens=None) for request in requests]
    with make_engine(silent=True, context=340) as engine:
        wanted = [fingerprint(engine.submit(request).result()) for request in growing]
    room = cases.bytes_needed("muse_kv8", 340, context=340) * 3 // 2
    with make_engine(silent=True, context=340, memory_budget=room, prefix_cache=False) as engine:
        submits = [functools.partial(engine.submit, request) for request in growing]
        results = [handle.result() for handle in cases.at_once(engine, submits)]
    assert [fingerprint(result) for result in results] == wanted
    assert sum(result.stats["preemptions"] for result in results) > 0
    assert sum(result.stats["drafter_accepted_tokens"] for result in results) > 0


def test_a_conversation_goes_on_with_what_the_drafter_knows() -> None:
    """The next turn begins where the last one ended; a text that is another's is not known. Of the
    first prompt it knows what its windows see from the end, 69 tokens."""
    first = Request(tokens=tokens(80), max_new_tokens=60, retain=True, **SAMPLED)
    with make_engine(silent=True) as engine, make_engine(silent=True, prefix_cache=False) as other:
        handle = engine.submit(first)
        written = handle.result().tokens
        assert engine.stats()["drafter_tokens"] == 69 + 60 - 1
        more = [*first.tokens, *written, 1, 2, 3, 4, 5]
        turn = Request(tokens=more, max_new_tokens=30, seed=1, **SAMPLED)
        wanted = fingerprint(other.submit(turn).result())
        found = engine.submit(turn, base=handle.retained).result()
        assert fingerprint(found) == wanted and found.stats["cached_tokens"] > 100
        assert found.stats["drafter_accepted_tokens"] > 0
        assert engine.stats()["drafter_tokens"] == 69 + 60 + 5 + 30 - 1, "it had begun anew"
        branch = dataclasses.replace(turn, tokens=[*first.tokens, *written[:30], 7, 8, 9])
        wanted = fingerprint(other.submit(branch).result())
        assert fingerprint(engine.submit(branch, base=handle.retained).result()) == wanted
        engine.submit(dataclasses.replace(first, tokens=tokens(40, seed=9), retain=False)).result()
        assert engine.stats()["drafter_tokens"] == 40 + 60 - 1
        handle.retained.release()


def test_a_prefix_that_was_kept_is_not_known() -> None:
    request = Request(tokens=tokens(200), max_new_tokens=30, **SAMPLED)
    with make_engine(silent=True) as engine:
        wanted = fingerprint(engine.submit(request).result())
        engine.submit(Request(tokens=tokens(70, seed=4), max_new_tokens=5, **SAMPLED)).result()
        again = engine.submit(request).result()
        assert fingerprint(again) == wanted and again.stats["cached_tokens"] > 100
        assert 30 <= engine.stats()["drafter_tokens"] < 100
        assert again.stats["drafter_accepted_tokens"] > 0


def test_it_ends_with_its_request() -> None:
    request = Request(tokens=tokens(60), **SAMPLED)
    with make_engine(silent=True, context=1000) as engine:
        handle = engine.submit(request)
        for _ in handle:
            break  # which cancels it
        assert engine.submit(dataclasses.replace(request, max_new_tokens=20)).result().tokens
        late = engine.submit(dataclasses.replace(request, deadline=1e-3)).result()
        assert late.reason == "deadline"
        whole = engine.submit(request).result()
        assert whole.reason == "length" and len(whole.tokens) == 940


def test_stop_ids_and_lengths_end_it_inside_a_draft() -> None:
    request = Request(tokens=tokens(60), max_new_tokens=100, **SAMPLED)
    with make_engine(silent=True) as engine:
        whole = engine.submit(request).result()
        for count in range(20, 40):
            short = engine.submit(dataclasses.replace(request, max_new_tokens=count)).result()
            assert short.tokens == whole.tokens[:count]
        stop = whole.tokens[57]
        ended = engine.submit(dataclasses.replace(request, stop_ids=[stop])).result()
        assert ended.tokens == whole.tokens[: whole.tokens.index(stop) + 1]
        assert ended.reason == "stop"


def test_a_drafter_of_another_model_is_refused() -> None:
    spec = cases.packed("muse_kv8")[0]
    own = drafter_for(spec)
    for change, message in (
        ({"hidden": 48}, "hidden is 48, the model's is 64"),
        ({"mask_token": 500}, "mask_token is 500, the model's vocabulary has 130"),
        ({"target_layers": (0, 3)}, "target_layers has 3; allowed is 2"),
    ):
        wrong = dataclasses.replace(own, **change)
        with pytest.raises(InvalidRequest, match=message):
            make_engine(drafter=(wrong, weights_for(wrong)))


def itself(name: str) -> tuple:
    """A model as its own drafter: right wherever keys and values in 8 bits do not change it."""
    spec, tensors, _ = cases.packed(name)
    return spec, tensors


@pytest.mark.parametrize("model", cases.MODELS)
def test_a_model_drafts_as_well(model: str) -> None:
    requests = [
        dataclasses.replace(r, **EAGER) for r in cases.requests(cases.packed(model)[0].vocab)
    ]
    wanted = plain(model, requests)
    with make_engine(model, drafter=itself(model)) as engine:
        results = [engine.submit(request).result() for request in requests]
        assert [fingerprint(result) for result in results] == wanted
        together = [engine.submit(request) for request in requests]
        assert [fingerprint(handle.result()) for handle in together] == wanted
    passes = sum(result.stats["drafter_passes"] for result in results)
    assert sum(result.stats["drafter_accepted_tokens"] for result in results) > 2 * passes > 20


def test_a_model_that_drafts_follows_other_texts() -> None:
    """What two texts begin with is not computed twice; a draft that was wrong leaves nothing."""
    first = Request(tokens=tokens(150), max_new_tokens=40, retain=True, **SAMPLED)
    with make_engine("llama_f32", drafter=itself("llama_f32")) as engine:
        handle = engine.submit(first)
        written = handle.result().tokens
        texts = [
            [*first.tokens, *written, 5, 6],
            [*first.tokens[:100], 9, 9, 9],
            tokens(20, seed=8),
            [*first.tokens, *written[:20], 7],
        ]
        turns = [Request(tokens=text, max_new_tokens=30, seed=3, **SAMPLED) for text in texts]
        found = [engine.submit(turn, base=handle.retained).result() for turn in turns]
        handle.retained.release()
        assert engine.stats()["drafter_tokens"] >= len(texts[-1])
    assert [fingerprint(one) for one in found] == plain("llama_f32", turns)
    assert all(one.stats["drafter_accepted_tokens"] > 0 for one in found)


def padded(name: str, more: int) -> tuple:
    """A model with ids to spare, whose logits are large."""
    spec = cases.packed(name)[0]
    weights = tiny_models.random_weights(spec)
    for part, values in weights.items():
        if values.shape[0] == spec.vocab:
            weights[part] = np.concatenate([values, 5 * values[:more]])
    return dataclasses.replace(spec, vocab=spec.vocab + more), pack_weights(weights, "q8")


@pytest.mark.parametrize(("model", "other"), [("muse_kv8", "llama_f32"), ("llama_f32", "muse_kv8")])
def test_a_model_with_fewer_ids_or_more_drafts_what_both_have(model: str, other: str) -> None:
    requests = [
        dataclasses.replace(r, **EAGER) for r in cases.requests(cases.packed(model)[0].vocab)
    ]
    with make_engine(model, drafter=itself(other)) as engine:
        results = [engine.submit(request).result() for request in requests]
    assert [fingerprint(result) for result in results] == plain(model, requests)
    assert sum(result.stats["drafter_passes"] for result in results) > 5


def test_ids_to_spare_are_not_drafted() -> None:
    request = Request(tokens=tokens(40), max_new_tokens=60, **EAGER)
    with make_engine("llama_f32", drafter=padded("llama_f32", 27)) as engine:
        found = engine.submit(request).result()
    assert [fingerprint(found)] == plain("llama_f32", [request])
    assert found.stats["drafter_accepted_tokens"] > found.stats["drafter_passes"] > 0


def test_a_long_prompt_is_computed_piece_by_piece_beside_the_first_steps() -> None:
    known = []
    for count in (2, 3, 4):
        given = {"drafter": itself("llama_f32"), "context": 2048}
        with make_engine("llama_f32", **given) as engine:
            request = Request(tokens=tokens(1400), max_new_tokens=count, **EAGER)
            passes = engine.submit(request).result().stats["drafter_passes"]
            known.append((engine.stats()["drafter_tokens"], passes))
    assert known[:2] == [(512, 0), (1024, 0)] and known[2][0] >= 1400
