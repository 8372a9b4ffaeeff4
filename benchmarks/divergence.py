"""How far a model's answers move when its weights do: perplexity and Kullback-Leibler divergence.

The test beds are the two models whose weights are at hand, with text that is calibrated on and
other text that is measured on:

- ``nano``: Spark Nano; exercises of its generators, training side and evaluation side of the split.
- ``stories260K``: the TinyStories sample, its beginning and its end.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from musespark import _core
from musespark.weights import open_model
from support.run_engine import engine, logits, pack_weights
from support.stories260k import BOS, convert_stories260k

Packed = dict[str, tuple[str, int, int, np.ndarray]]
CHUNK = 400  # tokens


@dataclass
class TestBed:
    """A model: its folder, spec and exact weights; chunks to calibrate on and to measure on."""

    name: str
    folder: Path
    spec: Any
    weights: dict[str, np.ndarray]
    calibration: list[list[int]]
    held_out: list[np.ndarray]

    def exact(self) -> list[np.ndarray]:
        """Log-probabilities [n, vocab] of each held-out chunk, unquantized."""
        return [log_softmax(rows) for rows in self.rows(pack_weights(self.weights))]

    def rows(self, tensors: Packed) -> Iterable[np.ndarray]:
        """Logits [n, vocab] of each held-out chunk."""
        core = engine(self.spec, tensors, context=512, threads=2)
        for chunk in self.held_out:
            yield logits(core, chunk)

    def changed(self, change: Callable[[str, np.ndarray], np.ndarray]) -> Packed:
        """The weights as f32, each matrix changed."""
        return pack_weights(
            {n: change(n, w) if w.ndim == 2 else w for n, w in self.weights.items()}
        )


def log_softmax(rows: np.ndarray) -> np.ndarray:
    """float64 [n, vocab]."""
    rows = rows.astype(np.float64)
    rows -= rows.max(1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(1, keepdims=True))


@dataclass
class Divergence:
    """Sums per chunk over `counts` tokens: of log-probability, and of KL(exact || changed)."""

    counts: np.ndarray
    scores: np.ndarray
    kld: np.ndarray

    @property
    def perplexity(self) -> float:
        return float(np.exp(-self.scores.sum() / self.counts.sum()))

    def mean(self) -> float:
        """Nats per token."""
        return float(self.kld.sum() / self.counts.sum())

    def interval(self) -> list[float]:
        """95%, chunks drawn again 2,000 times."""
        return _interval(lambda at: self.kld[at].sum() / self.counts[at].sum(), len(self.kld))

    def ratio(self, other: Divergence) -> tuple[float, list[float]]:
        """KLD over the other's, on the same chunks, and its 95% interval."""

        def ratio(at: np.ndarray) -> float:
            return self.kld[at].sum() / other.kld[at].sum()

        return float(ratio(np.arange(len(self.kld)))), _interval(ratio, len(self.kld))


def _interval(of: Callable[[np.ndarray], float], count: int) -> list[float]:
    rng = np.random.default_rng(0)
    drawn = [of(rng.integers(0, count, count)) for _ in range(2000)]
    return [float(v) for v in np.percentile(drawn, [2.5, 97.5])]


def measure(bed: TestBed, exact: list[np.ndarray], tensors: Packed) -> Divergence:
    """The divergence of `tensors` from the exact log-probabilities."""
    counts, scores, kld = [], [], []
    for chunk, wanted, rows in zip(bed.held_out, exact, bed.rows(tensors), strict=True):
        found = log_softmax(rows)
        counts.append(len(chunk) - 1)
        scores.append(found[np.arange(len(chunk) - 1), chunk[1:]].sum())
        kld.append((np.exp(wanted[:-1]) * (wanted[:-1] - found[:-1])).sum())
    return Divergence(np.array(counts), np.array(scores), np.array(kld))


def exact_weights(folder: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """Spec and canonical float32 weights of a folder."""
    model = open_model(folder, quantize="none", progress=False)
    weights = {
        name: np.array(raw) if rows == 1 else _core.unpack(form, raw, rows, cols)
        for name, (form, rows, cols, raw) in model.tensors.items()
    }
    return model.spec, weights


def stories(data: Path) -> TestBed:
    from tokenizers import Tokenizer

    folder = convert_stories260k(data / "stories260K", Path(tempfile.mkdtemp()) / "stories260K")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = (data / "text" / "tinystories.txt").read_text()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    chunks = [[BOS, *ids[i : i + CHUNK]] for i in range(0, len(ids) - CHUNK, CHUNK)]
    half = len(chunks) // 2
    held_out = [np.array(c, np.int32) for c in chunks[half : half + 40]]
    return TestBed("stories260K", folder, *exact_weights(folder), chunks[:half], held_out)


def nano() -> TestBed:
    from tokenizers import Tokenizer

    import musespark
    from musespark.lab import mix, protocol
    from musespark.lab.tasks import draw_item
    from musespark.lab.tasks import text as words
    from musespark.lab.tokenizer import words_of

    folder = Path(musespark.__file__).parent / "nano"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words.use_words(words_of(tokenizer))

    def ids_of(item: Any) -> list[int]:
        pieces = protocol.prompt_pieces(item.messages, item.effort, item.tools)
        return protocol.encode(pieces + protocol.reply_pieces(item), tokenizer, None)[0]

    rng = Random(1)
    calibration = [ids_of(mix.draw_training_item(rng, "main")) for _ in range(250)]
    held_out = []
    tasks = [task for task in mix.WEIGHTS["main"] if task in _evaluated()]
    while len(held_out) < 120:
        task, effort = rng.choice(tasks), rng.choice(("low", "medium", "high", "xhigh"))
        item = draw_item(rng, task, rng.choice(("easy", "middle")), effort, evaluation=True)
        if len(ids := ids_of(item)) <= CHUNK:
            held_out.append(np.array(ids, np.int32))
    return TestBed("nano", folder, *exact_weights(folder), calibration, held_out)


def _evaluated() -> tuple[str, ...]:
    from musespark.lab.tasks import EVALUATED

    return tuple(EVALUATED)
