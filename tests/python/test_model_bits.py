"""One result: a row's bits are a function of the sequence's tokens and the weights alone."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest
from tests.support.compare import assert_same_bits
from tests.support.levels import stdout_by_level
from tests.support.tiny_models import SPECS, Runner, pack, random_tokens, random_weights

pytestmark = pytest.mark.isa

RECIPES = ("f32", "q8", "q4", "mixed")
CACHES = ("f32", "kv8", "kv8v4", "kv4")
# `make test` repeats this file for each level of instructions: all of it where none is forced, then
# each recipe and each cache once for a model, and every pair of them for some model. Matmuls know
# nothing of pages, and attention nothing of weights.
EVERY = "MUSESPARK_ISA" not in os.environ
RUNS = [
    (name, recipe, kv)
    for i, name in enumerate(SPECS)
    for j, recipe in enumerate(RECIPES)
    for k, kv in enumerate(CACHES)
    if EVERY or (i + j) % len(CACHES) == k
]
# Inside a page, at and around page and merge chunk borders, and uneven ones in turn.
CUTS = (7, 64, [65, 1, 3], 512, [100, 411, 2, 1, 510]) if EVERY else (64, [100, 411, 2, 1, 510])


def runner_of(name: str, recipe: str, kv: str, threads: int = 1) -> Runner:
    spec = SPECS[name]()
    return Runner(spec, pack(random_weights(spec, seed=4), recipe), threads=threads, kv=kv)


@pytest.mark.parametrize(("name", "recipe", "kv"), RUNS)
def test_any_cut_of_the_prompt(name: str, recipe: str, kv: str) -> None:
    """Whole, token by token and cut anywhere; past windows, pages and two merge chunks."""
    runner = runner_of(name, recipe, kv)
    tokens = random_tokens(runner.spec, 1100)
    whole = runner.logits(tokens)
    assert np.isfinite(whole).all()
    assert np.ptp(whole, axis=1).min() > 0, "logits without content compare equal to anything"
    assert_same_bits(runner.logits(tokens, 1), whole, "token by token")
    for cut in CUTS:
        assert_same_bits(runner.logits(tokens, cut), whole, f"cut into {cut}")


@pytest.mark.parametrize(("name", "recipe", "kv"), RUNS)
def test_any_number_of_threads(name: str, recipe: str, kv: str) -> None:
    """Threads also decide whether merge chunks are spread and folded (few heads, long context)."""
    expected = None
    for threads in (1, 2, 3):
        runner = runner_of(name, recipe, kv, threads)
        tokens = random_tokens(runner.spec, 1060)
        actual = runner.logits(tokens, [600, 300, 1, 1, 158])
        if expected is None:
            expected = actual
        assert_same_bits(actual, expected, f"{threads} threads")


@pytest.mark.parametrize(("name", "recipe", "kv"), RUNS)
def test_alone_or_in_a_batch_of_nine(name: str, recipe: str, kv: str) -> None:
    """Nine sequences of different lengths, prefilling and decoding in the same steps."""
    runner = runner_of(name, recipe, kv, threads=2)
    prompts = [random_tokens(runner.spec, n, seed=n) for n in (1, 5, 63, 64, 65, 130, 200, 520, 77)]
    alone = [runner.logits(p) for p in prompts]
    cuts = [1, 2, 40, 64, 17, 33, 200, 260, 5]
    sequences = [runner.sequence() for _ in prompts]
    rows: list[list[np.ndarray]] = [[] for _ in prompts]
    while any(s.length < len(p) for s, p in zip(sequences, prompts, strict=True)):
        spans, owners = [], []
        for i, (sequence, prompt) in enumerate(zip(sequences, prompts, strict=True)):
            piece = prompt[sequence.length : sequence.length + cuts[i]]
            if len(piece):
                spans.append((sequence, [int(t) for t in piece], "all"))
                owners.append((i, len(piece)))
        out, at = runner.model.forward(spans), 0
        for i, count in owners:
            rows[i].append(out[at : at + count])
            sequences[i].accept(sequences[i].length)
            at += count
    for i, expected in enumerate(alone):
        assert_same_bits(np.concatenate(rows[i]), expected, f"sequence {i} of the batch")


@pytest.mark.parametrize("threads", [1, 2] if EVERY else [2])
@pytest.mark.parametrize("kv", CACHES)
@pytest.mark.parametrize("name", SPECS)
def test_forks_read_their_prefix_together(name: str, kv: str, threads: int) -> None:
    """Forks, forks of a fork, strangers between them and long rows: as if each were alone."""
    runner = runner_of(name, "q8", kv, threads)
    prefix = random_tokens(runner.spec, 1100)
    base = runner.sequence()
    runner.model.forward([(base, [int(t) for t in prefix[:1030]], "last")])
    base.accept(1030)
    branch = base.fork()
    runner.model.forward([(branch, [int(t) for t in prefix[1030:]] * 8, "last")])
    branch.accept(branch.length)
    sequences = [base.fork(), branch.fork(), runner.sequence(), base.fork(), branch.fork()]
    sequences += [base.fork(), branch.fork(), base.fork()]
    counts = [1, 1, 600, 3, 1, 70, 2, 1]
    tails = [random_tokens(runner.spec, 2 * n, seed=i) for i, n in enumerate(counts)]
    twins = [sequence.fork() for sequence in sequences]
    for half in range(2):
        pieces = [
            [int(t) for t in tail[half * n : half * n + n]]
            for tail, n in zip(tails, counts, strict=True)
        ]
        alone = [
            runner.model.forward([(twin, piece, "all")])
            for twin, piece in zip(twins, pieces, strict=True)
        ]
        spans = [
            (sequence, piece, "all") for sequence, piece in zip(sequences, pieces, strict=True)
        ]
        together = runner.model.forward(spans)
        assert_same_bits(together, np.concatenate(alone), f"half {half}")
        for sequence in sequences + twins:
            sequence.accept(sequence.length)


DIGEST_SCRIPT = """
from tests.python.test_model_bits import digests
print(digests())
"""


def digests() -> str:
    """One line for all models, recipes and caches."""
    out = hashlib.sha256()
    for name in SPECS:
        for recipe in RECIPES:
            for kv in CACHES:
                runner = runner_of(name, recipe, kv)
                out.update(runner.logits(random_tokens(runner.spec, 200), [150, 1]).tobytes())
    return out.hexdigest()


def test_every_instruction_set_level_in_fresh_processes() -> None:
    results = stdout_by_level(DIGEST_SCRIPT)
    assert "scalar" in results
    assert len(set(results.values())) == 1, results
