"""Forks, cuts, interruptions and refusals: after each, a sequence goes on as a fresh one would."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.support.compare import assert_same_bits
from tests.support.tiny_models import (
    SPECS,
    Runner,
    llama,
    muse,
    pack,
    random_tokens,
    random_weights,
)

from musespark.errors import (
    ContextOverflow,
    CorruptFile,
    InvalidRequest,
    MemoryBudgetExceeded,
    UnsupportedModel,
)

CACHES = ("f32", "kv8", "kv8v4", "kv4")


def runner_of(name: str, kv: str, recipe: str = "q8", **options) -> Runner:
    spec = SPECS[name]()
    return Runner(spec, pack(random_weights(spec, seed=6), recipe), kv=kv, **options)


@pytest.mark.parametrize("kv", CACHES)
@pytest.mark.parametrize("length", [1, 63, 64, 65, 128, 140])
@pytest.mark.parametrize("accept", [True, False])
def test_forks_go_their_own_ways(kv: str, length: int, accept: bool) -> None:
    """Two children and the parent go on with different tokens, interleaved, inside shared pages."""
    runner = runner_of("muse", kv)
    prompt = random_tokens(runner.spec, length)
    parent = runner.sequence()
    runner.feed(parent, prompt, accept=accept)
    family = [parent, parent.fork(), parent.fork()]
    endings = [random_tokens(runner.spec, 80, seed=s) for s in (21, 22, 23)]
    got: list[list[np.ndarray]] = [[], [], []]
    for step in range(80):
        for sequence, ending, rows in zip(family, endings, got, strict=True):
            rows.append(runner.feed(sequence, ending[step : step + 1], accept=accept))
    for ending, rows in zip(endings, got, strict=True):
        fresh = runner.logits(np.concatenate([prompt, ending]))[length:]
        assert_same_bits(np.concatenate(rows), fresh, "a branch")


def test_a_fork_takes_no_page_until_it_writes() -> None:
    runner = runner_of("llama", "kv8")
    parent = runner.sequence()
    runner.feed(parent, random_tokens(runner.spec, 100))
    before = runner.pool.usage()
    child = parent.fork()
    assert runner.pool.usage() == before
    runner.feed(child, [1])
    assert runner.pool.usage()["pages"] == before["pages"] + 1
    del child
    assert runner.pool.usage()["in_use"] == before["in_use"]


@pytest.mark.parametrize("kv", CACHES)
@pytest.mark.parametrize("name", ["llama", "muse"])
def test_truncate_and_go_on(name: str, kv: str) -> None:
    """Rejected tokens leave nothing behind: cut back to every kind of place, then other tokens."""
    runner = runner_of(name, kv)
    prompt = random_tokens(runner.spec, 200)
    ending = random_tokens(runner.spec, 100, seed=9)
    for accepted, cut in [(190, 195), (190, 190), (130, 191), (100, 128), (128, 150), (64, 65)]:
        sequence = runner.sequence()
        runner.feed(sequence, prompt[:accepted])
        runner.feed(sequence, prompt[accepted:], accept=False)
        assert sequence.truncate(cut) == cut, "rows after `accepted` are open"
        got = runner.feed(sequence, ending, [1, 70])
        fresh = runner.logits(np.concatenate([prompt[:cut], ending]))[cut:]
        assert_same_bits(got, fresh, f"accepted {accepted}, cut to {cut}")


def test_truncate_reaches_the_page_border_without_open_rows() -> None:
    runner = runner_of("llama", "kv8")
    prompt = random_tokens(runner.spec, 300)
    sequence = runner.sequence()
    runner.feed(sequence, prompt)
    assert sequence.truncate(290) == 290, "the last page is open"
    assert sequence.truncate(250) == 192, "page 3 is sealed only"
    ending = random_tokens(runner.spec, 70, seed=3)
    fresh = runner.logits(np.concatenate([prompt[:192], ending]))[192:]
    assert_same_bits(runner.feed(sequence, ending), fresh, "after a cut to a page border")
    runner.feed(sequence, prompt[:100])
    assert sequence.truncate(0) == 0
    assert runner.pool.usage()["in_use"] == 0


def test_truncate_falls_to_zero_where_window_pages_are_gone() -> None:
    spec = muse(window=70)
    runner = Runner(spec, pack(random_weights(spec), "q8"), kv="kv8")
    sequence = runner.sequence()
    runner.feed(sequence, random_tokens(spec, 450))
    assert sequence.truncate(449) == 449
    assert sequence.truncate(448) == 448, "positions 379.. are needed, and page 5 begins at 320"
    assert sequence.truncate(380) == 0, "its border is 320, which sees 251 and page 3"
    assert runner.pool.usage()["in_use"] == 0
    fresh = runner.logits(random_tokens(spec, 80))
    assert_same_bits(runner.feed(sequence, random_tokens(spec, 80)), fresh, "after falling to 0")


@pytest.mark.parametrize("kv", CACHES)
def test_window_pages_are_given_back(kv: str) -> None:
    runner = runner_of("muse", kv)
    sequence = runner.sequence()
    assert [runner.pool.window(c) for c in range(runner.pool.classes)] == [0, 70]
    for _ in range(30):
        runner.feed(sequence, random_tokens(runner.spec, 32))
        length = sequence.length
        assert sequence.pages(0) == -(-length // 64)
        first_seen = max(0, length - 70 + 1)
        assert sequence.pages(1) == -(-length // 64) - first_seen // 64
    usage = runner.pool.usage()
    assert usage["in_use"] <= runner.pool.bytes_for(sequence.length, 32)
    assert usage["open_pages"] == usage["pages"] or kv != "f32"


@pytest.mark.parametrize("kv", CACHES)
@pytest.mark.parametrize("name", ["llama", "muse", "everything"])
def test_bytes_for_is_an_upper_bound(name: str, kv: str) -> None:
    """What admission reserves is never passed and at most two pages of a class too much."""
    for step in (1, 50, 64, 200):
        for tokens in (1, 64, 65, 300, 700):
            runner = runner_of(name, kv)
            runner.feed(runner.sequence(), random_tokens(runner.spec, tokens), step)
            peak, bound = runner.pool.usage()["peak"], runner.pool.bytes_for(tokens, step)
            slack = sum(
                2 * (runner.pool.open_bytes(c) + runner.pool.sealed_bytes(c))
                for c in range(runner.pool.classes)
            )
            assert peak <= bound <= peak + slack, (tokens, step)


@pytest.mark.parametrize("kv", CACHES)
def test_out_of_budget_leaves_everything_usable(kv: str) -> None:
    """The step that does not fit raises with the numbers; all sequences of it are as before."""
    probe = runner_of("muse", kv)
    budget = probe.pool.bytes_for(200, 100) + probe.pool.bytes_for(50, 50)
    runner = runner_of("muse", kv, budget=budget)
    prompt = random_tokens(runner.spec, 200)
    first, second = runner.sequence(), runner.sequence()
    got = [runner.feed(first, prompt[:100]), None]
    runner.feed(second, prompt[:20])
    before = runner.pool.usage()["in_use"]
    with pytest.raises(MemoryBudgetExceeded) as error:
        too_much = [int(t) for t in random_tokens(runner.spec, 1500)]
        runner.model.forward([(first, [1], "last"), (second, too_much, "last")])
    assert str(budget) in str(error.value)
    assert str(before) in str(error.value) or "in use" in str(error.value)
    assert (first.length, second.length) == (100, 20)
    assert runner.pool.usage()["in_use"] == before
    assert runner.pool.usage()["allocated"] <= budget
    got[1] = runner.feed(first, prompt[100:])
    fresh = probe.logits(prompt)
    assert_same_bits(np.concatenate(got), fresh, "after the refusal")


def test_spare_parts_move_between_classes() -> None:
    """What one class gave back is returned to the system when another class needs the budget."""
    runner = runner_of("muse", "kv8", budget=runner_of("muse", "kv8").pool.bytes_for(640, 640))
    sequence = runner.sequence()
    runner.feed(sequence, random_tokens(runner.spec, 640))  # many open parts at once
    runner.feed(sequence, random_tokens(runner.spec, 600), 20)  # then sealed ones of the full class
    assert runner.pool.usage()["allocated"] <= runner.pool.usage()["budget"]


@pytest.mark.parametrize("kv", CACHES)
def test_interrupted_steps_change_nothing(kv: str) -> None:
    """Interrupted before every layer and the head, then done: the same bits as undisturbed."""
    runner = runner_of("muse", kv, threads=2)
    prompt = random_tokens(runner.spec, 150)
    pieces = [prompt[:50], prompt[50:130], prompt[130:]]
    sequence, other = runner.sequence(), runner.sequence()
    got = []
    checks = len(runner.spec.layers) + 1
    for piece in pieces:
        spans = [(sequence, [int(t) for t in piece], "all"), (other, [1, 2, 3], "none")]
        for at in range(checks):
            before = (sequence.length, other.length, runner.pool.usage()["in_use"])
            assert runner.model.forward(spans, interrupt_at=at) is None
            assert (sequence.length, other.length, runner.pool.usage()["in_use"]) == before
        got.append(runner.model.forward(spans, interrupt_at=checks))
        assert got[-1] is not None
        sequence.accept(sequence.length)
    assert_same_bits(np.concatenate(got), runner.logits(prompt), "after interruptions")


def test_bad_steps_are_refused() -> None:
    runner = runner_of("llama", "f32")
    sequence = runner.sequence()
    with pytest.raises(InvalidRequest, match="without spans"):
        runner.model.forward([])
    with pytest.raises(InvalidRequest, match="0 tokens"):
        runner.model.forward([(sequence, [], "last")])
    for token in (-1, runner.spec.vocab):
        with pytest.raises(InvalidRequest, match=rf"id {token} is not in 0 \.\. 100"):
            runner.model.forward([(sequence, [0, token], "last")])
    with pytest.raises(InvalidRequest, match="repeats a sequence"):
        runner.model.forward([(sequence, [1], "last"), (sequence, [1], "last")])
    stranger = runner_of("muse", "f32").sequence()
    with pytest.raises(InvalidRequest, match="another model"):
        runner.model.forward([(stranger, [1], "last")])
    other_pool = runner_of("llama", "f32").sequence()
    with pytest.raises(InvalidRequest, match="another page pool"):
        runner.model.forward([(sequence, [1], "last"), (other_pool, [1], "last")])
    assert sequence.length == 0
    assert runner.pool.usage()["in_use"] == 0


def test_context_overflow_has_the_numbers() -> None:
    spec = dataclasses.replace(llama(), max_context=70)
    runner = Runner(spec, pack(random_weights(spec), "f32"))
    sequence = runner.sequence()
    runner.feed(sequence, random_tokens(spec, 70))
    with pytest.raises(ContextOverflow, match=r"71 tokens.*70"):
        runner.feed(sequence, [1])
    assert sequence.length == 70


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layers.1.down"), r"'layers\.1\.down' \(48 x 80\) is missing"),
        (lambda t: t.update(extra=t["embed"]), r"'extra' \(101 x 48\) is not one"),
        (
            lambda t: t.update({"layers.0.q": ("q8", 47, 48, t["layers.0.q"][3])}),
            r"'layers\.0\.q' is 47 x 48; the model needs 48 x 48",
        ),
        (
            lambda t: t.update({"layers.0.q": (*t["layers.0.q"][:3], t["layers.0.q"][3][:-64])}),
            r"'layers\.0\.q': \d+ bytes",
        ),
        (
            lambda t: t.update(final_norm=("f32", 1, 48, np.zeros(47, np.float32))),
            r"'final_norm': 188 bytes; 48 floats take 192",
        ),
        (
            lambda t: t.update(final_norm=("bf16", 1, 48, np.zeros(48, np.uint16))),
            r"'final_norm': vectors are f32, not bf16",
        ),
    ],
)
def test_wrong_tensors_are_corrupt(change, message: str) -> None:
    spec = llama()
    tensors = pack(random_weights(spec), "q8")
    change(tensors)
    with pytest.raises(CorruptFile, match=message):
        Runner(spec, tensors)


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("layers", 0, "mlp", "kind"), "experts", r"layers\[0\]\.mlp\.experts is 0"),
        (("layers", 0, "mlp", "swiglu_limit"), -1.0, r"layers\[0\]\.mlp\.swiglu_limit"),
        (("layers", 1, "residual_temperature"), 0.0, r"layers\[1\]\.residual_temperature"),
        (("ropes", 0, "scaling"), "factors", r"ropes\[0\]\.factors is 0"),
        (("layers", 0, "attention", "kv_heads"), 3, r"layers\[0\]\.attention\.kv_heads is 3"),
        (("layers", 0, "attention", "rope"), 1, r"layers\[0\]\.attention\.rope is 1"),
        (("layers", 0, "attention", "head_dim"), 513, r"attention\.head_dim is 513"),
        (("layers", 0, "attn_norm", "eps"), float("nan"), r"layers\[0\]\.attn_norm\.eps"),
        (("ropes", 0, "dim"), 7, r"ropes\[0\]\.dim is 7"),
        (("hidden",), 0, "hidden is 0"),
        (("max_context",), 1 << 21, "max_context"),
        (("embed_norm", "kind"), "rms", r"embed_norm\.kind"),
        (("layers",), [], "layers is empty"),
    ],
)
def test_unsupported_specs_name_the_field(path, value, field: str) -> None:
    spec = dataclasses.asdict(llama())
    at = spec
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    from musespark import _core

    with pytest.raises(UnsupportedModel, match=field):
        _core.testing.TextModel(spec, pack(random_weights(llama()), "f32"))
