"""Fixtures of the tests that pack models."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.model_folder import checkpoint_weights, write_folder
from support.packing import CASE


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A packing cache of this test alone."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("MUSESPARK_CACHE", str(cache))
    return cache


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny llama with a tokenizer.json that no tokenizer reads."""
    made = write_folder(tmp_path / "model", CASE.config, checkpoint_weights(CASE, 11))
    (made / "tokenizer.json").write_text('{"version": "1.0"}')
    (made / "notes.txt").write_text("not part of a model")
    return made
