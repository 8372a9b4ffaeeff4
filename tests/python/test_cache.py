"""The page pool and sequences by themselves, against a twin that keeps one dict per sequence."""

from __future__ import annotations

import random

import pytest

from musespark import _core
from musespark.errors import Error, InvalidRequest, MemoryBudgetExceeded

PAGE = 64
# (KV heads, padded head dimension, window): two full layers, windows 100 and 7.
LAYERS = [(2, 16, 0), (1, 32, 100), (2, 16, 0), (1, 16, 7)]
CLASSES = (0, 7, 100)


def new_pool(kv: str, budget: int = 1 << 40):
    return _core.testing.PagePool(kv, LAYERS, budget)


class Twin:
    """What a sequence must report, from the rules of cache/sequence.h."""

    def __init__(self, kv: str):
        self.kv = kv
        self.length = self.accepted = 0
        self.first = dict.fromkeys(CLASSES, 0)  # first page held
        self.open_from = 0  # first page with open rows (all but f32)

    def copy(self) -> Twin:
        other = Twin(self.kv)
        other.__dict__ |= self.__dict__ | {"first": dict(self.first)}
        return other

    def pages(self, window: int) -> int:
        return -(-self.length // PAGE) - self.first[window]

    def accept(self, length: int) -> None:
        self.accepted = length
        if self.kv != "f32":
            self.open_from = max(self.open_from, length // PAGE)
        for window in CLASSES[1:]:
            seen = max(0, length - window + 1)
            self.first[window] = max(self.first[window], min(seen, length) // PAGE)

    def truncate(self, length: int) -> int:
        if length == self.length:
            return length
        page = length // PAGE
        held = all(self.first[w] <= page < -(-self.length // PAGE) for w in CLASSES)
        if page < self.open_from or not held:
            length = page * PAGE
        for window in CLASSES[1:]:
            if max(0, length - window + 1) // PAGE < self.first[window]:
                length = 0
        if length == 0:
            self.first = dict.fromkeys(CLASSES, 0)
        self.open_from = min(self.open_from, -(-length // PAGE))
        self.length = length
        self.accepted = min(self.accepted, length)
        return length


def check(sequence, twin: Twin) -> None:
    assert (sequence.length, sequence.accepted) == (twin.length, twin.accepted)
    held = [sequence.pages(c) for c in range(len(CLASSES))]
    assert held == [twin.pages(window) for window in CLASSES]


@pytest.mark.parametrize("kv", ["f32", "kv8", "kv4", "kv4,kv8,kv8v4/kv4,kv4"])
@pytest.mark.parametrize("seed", range(20))
def test_random_histories(kv: str, seed: int) -> None:
    """Steps, drafts, cuts, forks and ends in random order; at the end everything is given back."""
    rng = random.Random(seed)
    pool = new_pool(kv)
    live = [(_core.testing.Sequence(pool), Twin(kv))]
    for _ in range(300):
        sequence, twin = rng.choice(live)
        action = rng.choice(
            ["step", "step", "step", "discard", "accept", "accept", "cut", "fork", "end"]
        )
        if action in ("step", "discard"):
            count = rng.choice([1, 1, 2, 30, 63, 64, 65, 150])
            before = pool.usage()["in_use"]
            sequence.begin_step(count)
            if action == "step":
                sequence.commit_step()
                twin.length += count
            else:
                sequence.discard_step()
                if len(live) == 1:  # less: a seal that a sequence now gone had left
                    assert pool.usage()["in_use"] <= before
        elif action == "accept":
            length = rng.randint(twin.accepted, twin.length)
            sequence.accept(length)
            twin.accept(length)
        elif action == "cut" and twin.length:
            length = rng.randint(max(0, twin.length - 150), twin.length)
            assert sequence.truncate(length) == twin.truncate(length)
        elif action == "fork" and len(live) < 5:
            live.append((sequence.fork(), twin.copy()))
        elif action == "end" and len(live) > 1:
            live.remove((sequence, twin))
        del sequence, twin  # nothing but `live` keeps a sequence alive
        for i in range(len(live)):
            check(*live[i])
        usage = pool.usage()
        assert usage["in_use"] <= usage["allocated"] <= usage["budget"]
    live.clear()
    usage = pool.usage()
    assert (usage["in_use"], usage["pages"], usage["open_pages"]) == (0, 0, 0)


@pytest.mark.parametrize("kv", ["f32", "kv8", "kv4", "kv4,kv8,kv8v4/kv4,kv4"])
def test_a_step_that_does_not_fit_takes_nothing(kv: str) -> None:
    """Whatever part of a step fails to fit, begin_step gives back what it had taken."""
    whole = new_pool(kv)
    _core.testing.Sequence(whole).begin_step(200)
    needed = whole.usage()["peak"]
    smallest = min(whole.open_bytes(c) for c in range(3))
    for budget in range(0, needed, smallest // 2):
        pool = new_pool(kv, budget)
        sequence = _core.testing.Sequence(pool)
        with pytest.raises(MemoryBudgetExceeded, match=f"budget of {budget} bytes"):
            sequence.begin_step(200)
        assert pool.usage()["in_use"] == 0
        assert pool.usage()["allocated"] <= budget
        assert sequence.length == 0
    pool = new_pool(kv, needed)
    _core.testing.Sequence(pool).begin_step(200)


def test_parts_lie_in_slabs_that_grow() -> None:
    """A slab holds as many parts as there were before it."""
    pool = _core.testing.PagePool("kv8", [(8, 128, 0)], 1 << 40)
    part = pool.open_bytes(0)
    sequences = []
    for count in range(1, 20):
        sequences.append(_core.testing.Sequence(pool))
        sequences[-1].begin_step(1)
        usage = pool.usage()
        assert usage["allocated"] == usage["in_use"] == count * part
        assert usage["mapped"] == part << (count - 1).bit_length()
    sequences.clear()
    assert pool.usage()["allocated"] == 19 * part
    assert pool.usage()["mapped"] == 32 * part


def test_spare_parts_are_returned_when_others_need_the_budget() -> None:
    """First a slab without parts in use, as a whole; else one part, whose addresses stay."""
    sizes = _core.testing.PagePool("kv8", [(8, 128, 0)], 0)
    part, sealed = sizes.open_bytes(0), sizes.sealed_bytes(0)
    pool = _core.testing.PagePool("kv8", [(8, 128, 0)], 8 * part)

    def memory() -> tuple[int, int]:
        usage = pool.usage()
        return usage["allocated"], usage["mapped"]

    def begin(rows: int):
        sequence = _core.testing.Sequence(pool)
        sequence.begin_step(rows)
        return sequence

    live = [begin(63) for _ in range(8)]  # slabs of 1, 1, 2 and 4 parts
    live[0].commit_step()
    del live[1:]
    assert memory() == (8 * part, 8 * part)
    live[0].begin_step(1)  # its sealed part takes the room of the second slab
    assert memory() == (7 * part + sealed, 7 * part + sealed)
    live += [begin(63) for _ in range(6)]
    with pytest.raises(MemoryBudgetExceeded, match=f"{7 * part + sealed} of the budget"):
        begin(1)
    live[1].commit_step()
    live[2].commit_step()
    del live[3]
    live[1].begin_step(1)
    assert memory() == (7 * part + 2 * sealed, 7 * part + 2 * sealed), "there is room"
    live[2].begin_step(1)  # among parts in use is a spare one
    allocated, mapped = memory()
    assert allocated == 6 * part + 3 * sealed <= 8 * part < allocated + part
    assert mapped >= 7 * part + 3 * sealed
    del live[2]
    live += [begin(1), begin(1)]
    assert pool.usage()["in_use"] == 7 * part + 2 * sealed


def test_huge_pages_are_a_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("0", "1"):
        monkeypatch.setenv("MUSESPARK_KV_HUGE_PAGES", value)
        new_pool("kv8")
    monkeypatch.setenv("MUSESPARK_KV_HUGE_PAGES", "yes")
    with pytest.raises(InvalidRequest, match="MUSESPARK_KV_HUGE_PAGES is 'yes'; known: 0, 1"):
        new_pool("kv8")


def test_page_sizes_follow_the_formats() -> None:
    """kv8: 264 bytes a token, head and layer at dimension 128; open rows: keys f32, values f16."""
    pool = _core.testing.PagePool("kv8", [(1, 128, 0)], 0)
    assert pool.open_bytes(0) == 64 * 128 * (4 + 2)
    assert pool.sealed_bytes(0) == -(-(64 * 2 * 128 + 2 * 128 + 256) // 64) * 64
    assert pool.sealed_bytes(0) / 64 <= 266
    for kv, most in (("kv8v4", 204), ("kv4", 146)):
        pool = _core.testing.PagePool(kv, [(2, 128, 0), (1, 64, 0)], 0)
        assert pool.open_bytes(0) == 64 * (2 * 128 + 64) * (4 + 2)
        one, other = (_core.testing.sealed_page_bytes(kv, dim) for dim in (128, 64))
        assert pool.sealed_bytes(0) == 2 * one + other
        assert one <= 64 * most
        eight = sum(
            n * _core.testing.sealed_page_bytes("kv8", dim) for n, dim in ((2, 128), (1, 64))
        )
        assert pool.sealed_bytes(0, page=0) == eight, "the first page is at 8 bits"
        assert pool.bytes_for(1000, 64) == 2 * pool.open_bytes(0) + eight + 15 * (2 * one + other)
    mixed = _core.testing.PagePool("kv4,kv8/kv8v4,kv8", [(2, 64, 0), (2, 64, 0), (1, 64, 9)], 0)
    four, eight, both = (_core.testing.sealed_page_bytes(kv, 64) for kv in ("kv4", "kv8", "kv8v4"))
    assert [mixed.sealed_bytes(c) for c in (0, 1)] == [2 * four + eight + both, eight]
    assert [mixed.sealed_bytes(c, page=0) for c in (0, 1)] == [4 * eight, eight]
    pool = _core.testing.PagePool("f32", [(3, 16, 0), (1, 32, 0), (1, 16, 9)], 0)
    assert [pool.window(c) for c in range(pool.classes)] == [0, 9]
    assert pool.open_bytes(0) == 2 * 64 * 4 * (3 * 16 + 32)
    assert pool.sealed_bytes(0) == 0


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="no layers"):
        _core.testing.PagePool("f32", [], 1)
    with pytest.raises(InvalidRequest, match="head_dim 12"):
        _core.testing.PagePool("f32", [(1, 12, 0)], 1)
    for kv, what in (
        ("kv8,f32", "layer 1: f32 is for all"),
        ("kv8/f32", "layer 0: f32 is for all"),
    ):
        layers = [(len(kv.split("/")), 16, 0)] * len(kv.split(","))
        with pytest.raises(InvalidRequest, match=what):
            _core.testing.PagePool(kv, layers, 1)
    with pytest.raises(InvalidRequest, match="'kv9', allowed is f32, kv8, kv8v4, kv4"):
        _core.testing.PagePool("kv8,kv9", LAYERS, 1)
    with pytest.raises(InvalidRequest, match="-1 is negative"):
        _core.testing.PagePool("f32", LAYERS, -1)
    sequence = _core.testing.Sequence(new_pool("f32"))
    sequence.begin_step(3)
    with pytest.raises(Error, match="step is under way"):
        sequence.begin_step(1)
    sequence.commit_step()
    for length in (-1, 4):
        with pytest.raises(InvalidRequest, match=f"truncate to {length} tokens"):
            sequence.truncate(length)
    with pytest.raises(InvalidRequest, match="accept 4 tokens"):
        sequence.accept(4)
    sequence.accept(2)
    with pytest.raises(InvalidRequest, match="accept 1 tokens"):
        sequence.accept(1)
    with pytest.raises(InvalidRequest, match="a step of 0 tokens"):
        sequence.begin_step(0)
