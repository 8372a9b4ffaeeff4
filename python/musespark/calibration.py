"""Calibration text of :func:`musespark.convert`: from what a caller gives to token chunks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musespark.assets import tokenizer_of
from musespark.errors import InvalidRequest, UnsupportedModel
from musespark.families.spec import ModelSpec
from musespark.text import Tokenizer
from musespark.untrusted import read_small_file
from musespark.weights import CHUNK, METHODS, Calibration

MAX_BYTES = 64 << 20  # of a text file; hours of calibration
_ALLOWED = "the path of a text file, or a list of texts or of lists of token ids"


def read_calibration(
    given: Any, method: str, spec: ModelSpec, assets: Mapping[str, bytes], source: str
) -> Calibration:
    """The chunks that `given` stands for: a path, texts, or lists of token ids.

    Each text or list is cut into chunks that fit a sequence of its own; those of a text begin as
    its tokenizer begins a text (BOS). Text that spells a marker is ordinary text. InvalidRequest
    for what is empty, of another kind or of another vocabulary; UnsupportedModel for encoders.
    """
    if not spec.writes:
        raise UnsupportedModel(f"{source}: an embedding model cannot be calibrated in this version")
    items = _items(given)
    if not items:
        raise InvalidRequest("calibration is empty")
    room = min(CHUNK, spec.max_context)
    tokenizer = tokenizer_of(assets, source) if isinstance(items[0], str) else None
    chunks: list[np.ndarray] = []
    for i, item in enumerate(items):
        if isinstance(item, str) != (tokenizer is not None):
            raise InvalidRequest(f"calibration mixes texts and token ids (item {i})")
        if tokenizer is None:
            chunks += _cut(_checked_ids(item, spec.vocab, f"calibration[{i}]"), [], room)
        else:
            chunks += _cut(tokenizer.encode(item), _beginning(tokenizer), room)
    if not chunks:
        raise InvalidRequest("calibration is empty: its texts have no tokens")
    return Calibration(method, tuple(chunks))


def sample_text(spec: ModelSpec, assets: Mapping[str, bytes], source: str) -> Sequence[np.ndarray]:
    """Chunks of a text that comes with the package, of many kinds; none where the model has no
    tokenizer for it."""
    if "tokenizer.json" not in assets:
        return []
    text = Path(__file__).with_name("calibration_text.txt").read_text(encoding="utf-8")
    chunks = read_calibration([text], METHODS[0], spec, assets, source).chunks
    return [] if any(int(chunk.max()) >= spec.vocab for chunk in chunks) else chunks


def _items(given: Any) -> Sequence[Any]:
    if isinstance(given, (str, os.PathLike)):
        return [_read_text(Path(given).expanduser())]
    if isinstance(given, np.ndarray) or not isinstance(given, Sequence):
        raise InvalidRequest(f"calibration: got {given!r:.60}, allowed is {_ALLOWED}")
    return given


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise InvalidRequest(f"calibration: there is no file {str(path)!r:.200}; allowed is "
                             f"{_ALLOWED}")  # fmt: skip
    try:
        return read_small_file(path, MAX_BYTES).decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"calibration: {path} is not UTF-8 text: {error}") from None


def _checked_ids(item: Any, vocab: int, where: str) -> list[int]:
    if isinstance(item, np.ndarray) and item.ndim == 1 and item.dtype.kind in "iu":
        item = item.tolist()
    if not isinstance(item, Sequence) or isinstance(item, (bytes, bytearray)):
        raise InvalidRequest(f"{where}: got {item!r:.60}, allowed is {_ALLOWED}")
    for position, token in enumerate(item):
        if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
            raise InvalidRequest(f"{where}[{position}]: got {token!r:.40}, allowed is a token id")
        if not 0 <= token < vocab:
            raise InvalidRequest(
                f"{where}[{position}]: token {token} is not of this vocabulary, 0 to {vocab - 1}"
            )
    return [int(token) for token in item]


def _beginning(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer's file puts before a text."""
    probe = tokenizer.encode("a")
    around = tokenizer.encode("a", add_special=True)
    for at in range(len(around) - len(probe) + 1):
        if around[at : at + len(probe)] == probe:
            return around[:at]
    return []


def _cut(ids: list[int], beginning: list[int], room: int) -> list[np.ndarray]:
    step = max(1, room - len(beginning))
    return [
        np.array((beginning + ids[i : i + step])[:room], np.int32) for i in range(0, len(ids), step)
    ]
