"""Items packed into rows of fixed length, made ahead of time by worker processes.

An item is never cut and never sees its neighbours: each row carries a document number per token,
and
attention stays within a document. Short items share rows of ``length`` tokens; items that do not
fit
collect for batches of rows twice as long. Prose is cut to fit.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
from tokenizers import Tokenizer

from . import mix, protocol
from . import tokenizer as tok
from .tasks import text

IGNORE = -100
_DROPOUT_RATE, _DROPOUT_SHARE = 0.1, 0.1


@dataclass
class Batch:
    """``ids``, ``document`` [rows, length] (document 0 is padding); ``index`` into the flattened
    rows of the
    ``labels`` [targets] that are trained, padded with label IGNORE."""

    ids: np.ndarray
    document: np.ndarray
    index: np.ndarray
    labels: np.ndarray


class Packer:
    """Draws items and prose and yields full batches; everything follows from the seed."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        books: list[str],
        rows: int,
        length: int,
        seed: int,
        phase: str = "main",
    ):
        text.use_words(tok.words_of(tokenizer))
        self.tokenizer, self.dropped = tokenizer, tok.with_dropout(tokenizer, _DROPOUT_RATE)
        self.books, self.rows, self.length, self.phase = books, rows, length, phase
        self.rng = Random(seed)
        self.long: list[tuple[list[int], list[bool]]] = []

    def sample(self) -> tuple[list[int], list[bool]]:
        """One item or one passage of prose: ids, and whether each is trained."""
        if self.rng.random() < mix.PROSE and self.phase == "main":
            ids = [
                tok.BOS,
                *self.tokenizer.encode(
                    mix.prose(self.rng, self.books), add_special_tokens=False
                ).ids,
            ]
            ids = (
                [*ids[: self.length - 1], tok.EOS] if len(ids) < self.length else ids[: self.length]
            )
            return ids, [False] + [True] * (len(ids) - 1)
        if self.rng.random() < mix.REPEATS:
            return self._repeat()
        item = mix.draw_training_item(self.rng, self.phase)
        pieces = protocol.prompt_pieces(
            item.messages, item.effort, item.tools
        ) + protocol.reply_pieces(item)
        split = self.dropped if self.rng.random() < _DROPOUT_SHARE else None
        return protocol.encode(pieces, self.tokenizer, split)

    def _repeat(self) -> tuple[list[int], list[bool]]:
        """Random ordinary tokens, two or three times over; the repetitions are trained."""
        first = len(tok.SPECIAL)
        count = self.rng.randint(4, 30)
        part = [self.rng.randrange(first, tok.VOCAB_SIZE) for _ in range(count)]
        times = self.rng.randint(2, 3)
        return [tok.BOS, *part * times], [False] * (1 + count) + [True] * count * (times - 1)

    def __iter__(self) -> Iterator[Batch]:
        waiting: list[tuple[list[int], list[bool]]] = []
        while True:
            rows = max(1, self.rows // 2)
            if sum(len(ids) for ids, _ in self.long) > rows * self.length * 2 * 0.9:
                yield self._batch(self.long, rows, 2 * self.length)
                continue
            if sum(len(ids) for ids, _ in waiting) > self.rows * self.length * 1.02:
                yield self._batch(waiting, self.rows, self.length)
                continue
            ids, mask = self.sample()
            if len(ids) <= self.length:
                waiting.append((ids, mask))
            elif len(ids) <= 2 * self.length:
                self.long.append((ids, mask))

    def _batch(self, pool: list, rows: int, length: int) -> Batch:
        """Best-fit of the longest first; what does not fit stays in ``pool``."""
        pool.sort(key=lambda x: -len(x[0]))
        free, content, left = [length] * rows, [[] for _ in range(rows)], []
        for sample in pool:
            fits = [i for i in range(rows) if free[i] >= len(sample[0])]
            if not fits:
                left.append(sample)
                continue
            i = min(fits, key=free.__getitem__)
            free[i] -= len(sample[0])
            content[i].append(sample)
        pool[:] = left
        return self._arrays(content, rows, length)

    def _arrays(self, content: list, rows: int, length: int) -> Batch:
        ids = np.full((rows, length), tok.PAD, np.int64)
        document = np.zeros((rows, length), np.int64)
        targets = []
        for i, samples in enumerate(content):
            at = 0
            self.rng.shuffle(samples)
            for number, (sample, mask) in enumerate(samples, 1):
                ids[i, at : at + len(sample)] = sample
                document[i, at : at + len(sample)] = number
                # Position p predicts token p + 1 of the same document.
                targets += [
                    (i * length + at + p, sample[p + 1])
                    for p in range(len(sample) - 1)
                    if mask[p + 1]
                ]
                at += len(sample)
        size = rows * length * 11 // 16
        if len(targets) > size:
            targets = self.rng.sample(targets, size)
        index, labels = np.zeros(size, np.int64), np.full(size, IGNORE, np.int64)
        if targets:
            index[: len(targets)], labels[: len(targets)] = np.array(targets).T
        return Batch(ids, document, index, labels)


def _work(
    queue: multiprocessing.Queue,
    folder: str,
    books: str | None,
    rows: int,
    length: int,
    seed: int,
    phase: str,
) -> None:
    for batch in Packer(tok.load(folder), mix.read_books(books), rows, length, seed, phase):
        queue.put(batch)


class Source:
    """Batches made ahead by ``workers`` processes; ``get()`` hands them out, ``phase`` restarts
    the workers."""

    def __init__(
        self,
        folder: str,
        books: str | None,
        rows: int,
        length: int,
        seed: int,
        phase: str,
        workers: int = 1,
    ):
        self._context = multiprocessing.get_context("spawn")
        self._arguments = (folder, books, rows, length)
        self._seed, self._workers = seed, workers
        self._start(phase)

    def _start(self, phase: str) -> None:
        self.phase = phase
        self._queue = self._context.Queue(maxsize=8)
        self._processes = [
            self._context.Process(
                target=_work,
                args=(self._queue, *self._arguments, self._seed * 1009 + i, phase),
                daemon=True,
            )
            for i in range(self._workers)
        ]
        for process in self._processes:
            process.start()

    def get(self, phase: str) -> Batch:
        """The next batch of ``phase``."""
        if phase != self.phase:
            self.close()
            self._seed += 1
            self._start(phase)
        return self._queue.get()

    def close(self) -> None:
        """End the workers."""
        for process in self._processes:
            process.terminate()
            process.join()
