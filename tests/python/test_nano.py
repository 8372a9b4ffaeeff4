"""Spark Nano: what ships is what transformers runs, and it answers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import musespark

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "python" / "musespark" / "nano"
GOLDEN = ROOT / "tests" / "golden" / "nano.json"


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(GOLDEN.read_text())


def test_the_fixture_is_of_the_weights_that_ship(golden):
    digest = hashlib.sha256((NANO / "model.safetensors").read_bytes()).hexdigest()
    assert golden["weights"] == digest, "run tests/golden/make_nano.py"


def test_greedy_answers_in_f32_are_those_of_transformers(golden):
    assert len(golden["cases"]) >= 16
    with musespark.load(NANO, quantize="none", kv="f32") as model:
        for case in golden["cases"]:
            result = model.chat(
                case["question"],
                reasoning_effort=case["effort"],
                max_new_tokens=golden["new_tokens"],
            )
            assert list(result.tokens) == case["tokens"], case["question"]
            assert result.usage.prompt_tokens == len(case["prompt"])


def test_two_digit_addition_and_comparison_as_shipped():
    """A floor far below what the card reports: 48 questions, at most 6 wrong in all."""
    with musespark.load() as model:
        pairs = [(10 + 37 * i % 90, 10 + 53 * i % 90) for i in range(1, 25)]
        sums = model.chat_batch([f"What is {a} + {b}?" for a, b in pairs], max_new_tokens=200)
        larger = model.chat_batch(
            [f"Which is larger, {a} or {b}?" for a, b in pairs if a != b], max_new_tokens=200
        )
    right = sum(r.content.strip() == str(a + b) for r, (a, b) in zip(sums, pairs, strict=True))
    different = [p for p in pairs if p[0] != p[1]]
    right += sum(r.content.strip() == str(max(p)) for r, p in zip(larger, different, strict=True))
    assert right >= len(pairs) + len(different) - 6


def test_the_packed_file_that_ships_is_packed_from_the_weights_that_ship(tmp_path):
    """Whoever changes the weights, the format or a recipe packs again:
    musespark convert python/musespark/nano OUT --quantize q8"""
    shipped = NANO / "packed" / "nano-q8.safetensors"
    musespark.convert(NANO, tmp_path / "again.safetensors", quantize="q8")
    assert (tmp_path / "again.safetensors").read_bytes() == shipped.read_bytes()


def test_loading_the_embedded_model_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "cache"))
    with musespark.load() as model:
        assert model.info.weight_formats.keys() == {"q8", "f32", "bf16", "q8g1024h"}
    assert not (tmp_path / "cache").exists()
