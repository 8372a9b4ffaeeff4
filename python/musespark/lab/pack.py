"""Items packed into rows of fixed length, made ahead of time by worker processes.

An item is never cut and never sees its neighbours: each token carries the number of its document,
and attention stays within a document. Questions about one picture share it: they are branches of
one document, each at the positions it would have alone, seeing the beginning and itself only.
Short documents share rows of ``length`` tokens; those that do not fit collect for batches of rows
twice as long. Prose is cut to fit.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from random import Random

import numpy as np
from tokenizers import Tokenizer

from . import drills, mix, protocol
from . import tokenizer as tok
from .item import Item
from .raster import CELL, LABEL_WIDTH, PATCH, SIZE, Picture
from .tasks import TASKS, nlvr, text

IGNORE = -100
_LOOK_S = 2  # how often a wait for a batch looks whether anybody makes one
#: Patch labels that no head is trained on.
UNLABELLED = 255
_DROPOUT_RATE, _DROPOUT_SHARE = 0.1, 0.1
#: Room for trained tokens, of all in a batch: what training draws hardly ever has more.
_TRAINED = 11 / 16
#: What a trained token belongs to, for the log: a task, prose, or drills.
FAMILIES = (*TASKS, nlvr.TASK, "prose", "repeats")


@dataclass
class Batch:
    """``ids``, ``document``, ``branch``, ``position`` [rows, length] (document 0 is padding, branch
    0 what all branches see); ``index`` into the flattened rows of the ``labels`` [targets] that
    are trained, padded with label IGNORE, with their ``weight`` and ``family`` [targets];
    ``pixels`` uint8 [pictures, 128, 128, 3] with ``seen`` uint8 [pictures, 16, 16, LABEL_WIDTH],
    what can be seen in each patch, and ``place`` [pictures * 64], where each image token goes in
    the flattened rows (beyond their end for drills, which no row has)."""

    ids: np.ndarray
    document: np.ndarray
    branch: np.ndarray
    position: np.ndarray
    index: np.ndarray
    labels: np.ndarray
    weight: np.ndarray
    family: np.ndarray
    pixels: np.ndarray
    seen: np.ndarray
    place: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """Its arrays by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass
class Sample:
    """A document: ids, whether each is trained, branch and position of each, its family, its
    pictures in order, what a trained token of it counts."""

    ids: list[int]
    mask: list[bool]
    branch: list[int]
    position: list[int]
    family: list[int]
    pictures: list[Picture] = field(default_factory=list)
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.ids)


def plain_sample(
    ids: list[int], mask: list[bool], family: str, pictures: list | None = None
) -> Sample:
    """A document without branches."""
    n, kind = len(ids), FAMILIES.index(family)
    return Sample(ids, mask, [0] * n, list(range(n)), [kind] * n, pictures or [])


def branched_sample(
    parts: list[tuple[list[int], list[bool], str]], pictures: list[Picture]
) -> Sample:
    """One document of (ids, mask, family) that begin alike up to their last picture."""
    first = parts[0][0]
    shared = len(first) - first[::-1].index(tok.IMAGE_END)
    sample = plain_sample(first[:shared], [False] * shared, parts[0][2], pictures)
    for number, (ids, mask, family) in enumerate(parts, 1):
        if ids[:shared] != first[:shared]:
            raise ValueError("branches: the questions do not share what stands before them")
        n = len(ids) - shared
        sample.ids += ids[shared:]
        sample.mask += mask[shared:]
        sample.branch += [number] * n
        sample.position += range(shared, shared + n)
        sample.family += [FAMILIES.index(family)] * n
    return sample


class Packer:
    """Draws items and prose and yields full batches; everything follows from the seed but where BPE
    dropout cuts words.

    Each batch has room for ``pictures`` pictures, and about ``vision`` of the documents drawn have
    some; with no room for any, none are drawn. Without rows a batch is ``drills`` alone. Of its
    tokens up to ``trained`` are targets: of more a random part is, so where all must count it is 1.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        books: list[str],
        rows: int,
        length: int,
        seed: int,
        phase: str = "main",
        pictures: int = 0,
        vision: float = 0.0,
        rollouts: Sequence[Item] = (),
        *,
        trained: float = _TRAINED,
    ):
        text.use_words(tok.words_of(tokenizer))
        self.tokenizer, self.dropped = tokenizer, tok.with_dropout(tokenizer, _DROPOUT_RATE)
        self.books, self.rows, self.length, self.phase = books, rows, length, phase
        self.pictures, self.vision = pictures, vision if pictures else 0.0
        self.rng = Random(seed)
        self.rollouts, self.trained = rollouts, trained
        self.long: list[Sample] = []

    def sample(self, waiting: int = 0) -> Sample:
        """One document: a passage of prose, a drill, an item, or questions about a picture (none
        while as many pictures are ``waiting`` as a batch holds)."""
        if self.rng.random() < self.vision and waiting < self.pictures:
            return self._picture()
        if self.rng.random() < mix.PROSE and self.phase == "main":
            return self._prose()
        if self.rng.random() < mix.REPEATS:
            return self._repeat()
        own = self.rollouts and self.rng.random() < mix.ROLLOUTS
        item = (
            self.rng.choice(self.rollouts) if own else mix.draw_training_item(self.rng, self.phase)
        )
        item = mix.offered(item, self.rng)
        return plain_sample(*self._encoded(item), item.task, item.pictures)

    def _encoded(self, item: Item, dropped: bool | None = None) -> tuple[list[int], list[bool]]:
        pieces = protocol.prompt_pieces(item.messages, item.effort, item.tools, item.pictures)
        pieces += protocol.reply_pieces(item)
        if dropped is None:
            dropped = self.rng.random() < _DROPOUT_SHARE
        return protocol.encode(pieces, self.tokenizer, self.dropped if dropped else None)

    def _picture(self) -> Sample:
        """As many questions about one picture as a row holds."""
        parts, total = [], 0
        items = mix.draw_picture_items(self.rng)
        for item in items:
            ids, mask = self._encoded(item, dropped=False)
            added = ids[::-1].index(tok.IMAGE_END) if parts else len(ids)
            if total + added <= self.length or not parts:
                parts.append((ids, mask, item.task))
                total += added
        if len(parts) == 1:
            return plain_sample(*parts[0], items[0].pictures)
        return branched_sample(parts, items[0].pictures)

    def _prose(self) -> Sample:
        passage = mix.prose(self.rng, self.books)
        ids = [tok.BOS, *self.tokenizer.encode(passage, add_special_tokens=False).ids]
        ids = [*ids[: self.length - 1], tok.EOS] if len(ids) < self.length else ids[: self.length]
        return plain_sample(ids, [False] + [True] * (len(ids) - 1), "prose")

    def _repeat(self) -> Sample:
        """Random ordinary tokens, two or three times over; the repetitions are trained."""
        first = len(tok.SPECIAL)
        count = self.rng.randint(4, 30)
        part = [self.rng.randrange(first, tok.VOCAB_SIZE) for _ in range(count)]
        times = self.rng.randint(2, 3)
        mask = [False] * (1 + count) + [True] * count * (times - 1)
        return plain_sample([tok.BOS, *part * times], mask, "repeats")

    def __iter__(self) -> Iterator[Batch]:
        while not self.rows:
            yield self._arrays([], 0, self.length)
        waiting: list[Sample] = []
        while True:
            rows = max(1, self.rows // 2)
            if sum(map(len, self.long)) > rows * self.length * 2 * 0.9:
                yield self.batch(self.long, rows, 2 * self.length)
                continue
            if sum(map(len, waiting)) > self.rows * self.length * 1.02:
                yield self.batch(waiting, self.rows, self.length)
                continue
            pools = (waiting, self.long)
            sample = self.sample(max(sum(len(s.pictures) for s in pool) for pool in pools))
            if len(sample) <= self.length:
                waiting.append(sample)
            elif len(sample) <= 2 * self.length:
                self.long.append(sample)

    def batch(self, pool: list[Sample], rows: int, length: int) -> Batch:
        """A batch out of ``pool``: best-fit of the longest first; what does not fit stays there."""
        pool.sort(key=lambda x: -len(x))
        free, content, left = [length] * rows, [[] for _ in range(rows)], []
        room = self.pictures
        for sample in pool:
            fits = [i for i in range(rows) if free[i] >= len(sample)]
            if not fits or len(sample.pictures) > room:
                left.append(sample)
                continue
            i = min(fits, key=free.__getitem__)
            free[i] -= len(sample)
            room -= len(sample.pictures)
            content[i].append(sample)
        pool[:] = left
        for row in content:
            self.rng.shuffle(row)
        return self._arrays(content, rows, length)

    def _arrays(self, content: list[list[Sample]], rows: int, length: int) -> Batch:
        ids = np.full((rows, length), tok.PAD, np.int64)
        document, branch, position = (np.zeros((rows, length), np.int64) for _ in range(3))
        targets, pictures = [], []
        for i, samples in enumerate(content):
            at = 0
            for number, s in enumerate(samples, 1):
                here = slice(at, at + len(s))
                ids[i, here], document[i, here] = s.ids, number
                branch[i, here], position[i, here] = s.branch, s.position
                pictures += s.pictures
                # A position predicts the next token of its own branch.
                targets += [
                    (i * length + at + p, s.ids[p + 1], s.family[p + 1], s.weight)
                    for p in range(len(s) - 1)
                    if s.mask[p + 1]
                ]
                at += len(s)
        size = int(rows * length * self.trained)
        if len(targets) > size:
            targets = self.rng.sample(targets, size)
        index, family = np.zeros((2, size), np.int64)
        labels, weight = np.full(size, IGNORE, np.int64), np.zeros(size, np.float32)
        n = len(targets)
        if n:
            index[:n], labels[:n], family[:n], weight[:n] = zip(*targets, strict=True)
        seen = self._seen(ids, pictures)
        return Batch(ids, document, branch, position, index, labels, weight, family, *seen)

    def _seen(self, ids: np.ndarray, pictures: list[Picture]) -> tuple[np.ndarray, ...]:
        """Pixels, patch labels and places of the pictures of a batch, in the order of the rows;
        drills where there is room for more."""
        cells = (SIZE // CELL) ** 2
        pixels = np.zeros((self.pictures, SIZE, SIZE, 3), np.uint8)
        side = SIZE // PATCH
        labels = np.full((self.pictures, side, side, LABEL_WIDTH), UNLABELLED, np.uint8)
        place = ids.size + np.arange(self.pictures * cells)
        found = np.flatnonzero(ids.reshape(-1) == tok.PATCH)
        place[: len(found)] = found
        more = [drills.draw(self.rng) for _ in range(self.pictures - len(pictures))]
        for k, picture in enumerate(pictures + more):
            pixels[k] = picture.pixels
            if picture.labels is not None:
                labels[k] = picture.labels
        return pixels, labels, place


def _work(
    queue: multiprocessing.Queue,
    folder: str,
    books: str | None,
    rows: int,
    length: int,
    pictures: int,
    vision: float,
    scenes: str | None,
    rollouts: str | None,
    seed: int,
    phase: str,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it takes a last step, and ends it
    if scenes is not None:
        nlvr.use(scenes)
    packer = Packer(
        tok.load(folder),
        mix.read_books(books),
        rows,
        length,
        seed,
        phase,
        pictures,
        vision,
        mix.read_rollouts(rollouts),
    )
    for batch in packer:
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
        pictures: int,
        vision: float,
        seed: int,
        phase: str,
        workers: int = 1,
        scenes: str | None = None,
        rollouts: str | None = None,
    ):
        self._context = multiprocessing.get_context("spawn")
        self._arguments = (folder, books, rows, length, pictures, vision, scenes, rollouts)
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
        """The next batch of ``phase``. RuntimeError where a process that makes them has died: what
        it died of stands on standard error."""
        if phase != self.phase:
            self.close()
            self._seed += 1
            self._start(phase)
        while True:
            try:
                return self._queue.get(timeout=_LOOK_S)
            except queue.Empty:
                dead = [p.exitcode for p in self._processes if not p.is_alive()]
                if dead:
                    raise RuntimeError(
                        f"{len(dead)} of {self._workers} processes that make batches ended, with "
                        f"{dead[0]}"
                    ) from None

    def close(self) -> None:
        """End the workers."""
        for process in self._processes:
            process.terminate()
            process.join()
