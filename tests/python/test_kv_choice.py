"""Formats of keys and values by page, layer and KV head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.support.compare import assert_same_bits
from tests.support.tiny_models import SPECS, Runner, pack, random_tokens, random_weights

from musespark.errors import InvalidRequest

SEALED = ("kv8", "kv8v4", "kv4")


def runner_of(name: str, kv: str, weights=None, threads: int = 1) -> Runner:
    spec = SPECS[name]()
    weights = random_weights(spec, seed=4) if weights is None else weights
    return Runner(spec, pack(weights, "f32"), threads=threads, kv=kv)


@pytest.mark.parametrize("name", ["llama", "muse"])
def test_the_first_page_is_at_8_bits(name: str) -> None:
    """Who reads only the first page sealed has kv8's bits; who reads the second as well has not."""
    tokens = random_tokens(SPECS[name](), 200)
    eight = runner_of(name, "kv8").logits(tokens)
    for kv in ("kv8v4", "kv4"):
        logits = runner_of(name, kv).logits(tokens)
        assert_same_bits(logits[:128], eight[:128], kv)
        assert (logits[128:] != eight[128:]).any(axis=1).all()


@pytest.mark.parametrize("kv", ["kv8/kv4", "kv4/kv8v4", "kv8v4/kv8"])
def test_each_head_has_its_own_format(kv: str) -> None:
    """With the other KV head's outputs cut off, a head has the bits it has where all are alike."""
    spec = replace(SPECS["llama"](), layers=SPECS["llama"]().layers[:1])
    weights = random_weights(spec, seed=5)
    tokens = random_tokens(spec, 300)
    a = spec.layers[0].attention
    for head, form in enumerate(kv.split("/")):
        cut = {name: value.copy() for name, value in weights.items()}
        half = a.heads // a.kv_heads * a.head_dim  # columns of o that one KV head's queries fill
        cut["layers.0.o"][:, (1 - head) * half : (2 - head) * half] = 0
        packed = pack(cut, "f32")
        mixed = Runner(spec, packed, kv=kv).logits(tokens)
        alike = {other: Runner(spec, packed, kv=other).logits(tokens) for other in SEALED}
        for other, logits in alike.items():
            if other == form:
                assert_same_bits(mixed, logits, f"{kv} head {head}")
            else:
                assert (mixed[128:] != logits[128:]).any()


def test_each_layer_has_its_own_format() -> None:
    """Keys and values of a layer that is cut off change nothing; the other layer's do."""
    spec = SPECS["llama"]()
    tokens = random_tokens(spec, 300)
    for cut in (0, 1):
        weights = random_weights(spec, seed=6)
        weights[f"layers.{cut}.o"][:] = 0
        packed = pack(weights, "f32")
        logits = Runner(spec, packed, kv="kv8").logits(tokens)
        unused, used = ("kv4,kv8", "kv8,kv4") if cut == 0 else ("kv8,kv4", "kv4,kv8")
        assert_same_bits(Runner(spec, packed, kv=unused).logits(tokens), logits, f"layer {cut}")
        assert (Runner(spec, packed, kv=used).logits(tokens) != logits).any()


@pytest.mark.isa
@pytest.mark.parametrize(
    ("name", "kv"), [("llama", "kv4/kv8,kv8v4"), ("muse", "kv8,kv4,kv8v4,kv4")]
)
def test_one_result(name: str, kv: str) -> None:
    """However the prompt is cut, with any number of threads, and in a fork."""
    runner = runner_of(name, kv)
    tokens = random_tokens(runner.spec, 1100)
    whole = runner.logits(tokens)
    for cut in (1, 64, [100, 411, 2, 1, 510]):
        assert_same_bits(runner.logits(tokens, cut), whole, f"cut into {cut}")
    assert_same_bits(runner_of(name, kv, threads=3).logits(tokens, 600), whole, "three threads")
    sequence = runner.sequence()
    runner.feed(sequence, tokens[:700])
    fork = sequence.fork()
    runner.feed(sequence, np.flip(tokens[700:]))
    assert_same_bits(runner.feed(fork, tokens[700:]), whole[700:], "fork")


def test_a_choice_for_another_model_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="formats of 3 layers; the model has 2"):
        runner_of("llama", "kv8,kv8,kv8")
    with pytest.raises(InvalidRequest, match="layer 1 has formats of 3 KV heads; the model has 2"):
        runner_of("llama", "kv8,kv8/kv4/kv8")
    with pytest.raises(InvalidRequest, match="'kv9', allowed is f32, kv8"):
        runner_of("llama", "kv8,kv9")
    with pytest.raises(InvalidRequest, match="f32 is for all"):
        runner_of("llama", "kv8,f32")
