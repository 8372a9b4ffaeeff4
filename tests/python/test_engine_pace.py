"""How many prefill rows a step takes beside decode rows, and who gets them (csrc/decode/pace.h).

Against a machine whose clock is a formula, and the scheduler's loop over it.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from musespark._core import testing

PROMISE_S = 0.15  # what prefill may add to a step
CHUNK = 512
LEAST_ROWS = 4  # that a step gets however dear they are


@dataclass
class Machine:
    """Seconds of a step. ``cliff``: what the first row beyond 16 costs more (a kernel's tiles)."""

    row_s: float = 1.3e-3
    key_s: float = 3e-7
    read_s: float = 0.03
    decode_row_s: float = 1e-3
    cliff_s: float = 0.0
    noise: Callable[[], float] = field(default=lambda: 0.0, repr=False)

    def alone(self, decode: int) -> float:
        return self.read_s + decode * self.decode_row_s + (self.cliff_s if decode > 16 else 0)

    def added(self, decode: int, prefill: int, keys: float) -> float:
        cliff = self.cliff_s if decode <= 16 < decode + prefill else 0
        return cliff + prefill * (self.row_s + keys * self.key_s)


@dataclass
class Sequence:
    pending: int
    writes: int
    behind: int = 0
    arrival: int = 0  # step
    last_rows: int = -1  # step in which it last got prefill rows
    longest_wait: int = 0
    first_token_s: float | None = None


@dataclass
class Step:
    decode: int
    prefill: int
    added_s: float


@dataclass
class Scheduler:
    """Engine::Impl::choose_rows over a Machine."""

    machine: Machine
    running: list[Sequence] = field(default_factory=list)
    weight_off: float = 1.0  # by what the weight of a key that the pace is given is wrong
    now: float = 0.0
    steps: int = 0

    def __post_init__(self) -> None:
        weight = self.machine.key_s / self.machine.row_s
        self.pace = testing.PrefillPace(weight=self.weight_off * weight)

    def step(self) -> Step:
        decoding = [s for s in self.running if s.pending == 1]
        order = sorted((s for s in self.running if s.pending > 1), key=lambda s: s.last_rows)
        counts: list[int] = []
        if order and not (decoding and self.pace.wants_alone(len(decoding))):
            work = [(s.pending, float(s.behind)) for s in order]
            units = self.pace.units() if decoding else float("inf")
            rows = min(CHUNK, self.pace.most_rows()) if decoding else CHUNK
            counts = testing.share_prefill(self.pace, work, rows=rows, units=units)
        return self._run(decoding, order, counts)

    def _run(self, decoding: list[Sequence], order: list[Sequence], counts: list[int]) -> Step:
        rows = sum(counts)
        sharers = zip(order, counts, strict=False)
        keys = sum(n * (s.behind + n // 2) for s, n in sharers) / max(rows, 1)
        added = self.machine.added(len(decoding), rows, keys) if rows else 0.0
        took = self.machine.alone(len(decoding)) + added + self.machine.noise()
        self.pace.observe(decode_rows=len(decoding), prefill_rows=rows, keys=keys, seconds=took)
        self.now += took
        self.steps += 1
        for sequence, count in zip(order, counts, strict=False):
            if count:
                wait = self.steps - max(sequence.last_rows, sequence.arrival)
                sequence.longest_wait = max(sequence.longest_wait, wait)
                sequence.last_rows = self.steps
            sequence.behind += count
            sequence.pending -= count
            if sequence.pending == 0:
                sequence.pending, sequence.first_token_s = 1, self.now
        for sequence in decoding:
            sequence.behind += 1
            sequence.writes -= 1
        self.running = [s for s in self.running if s.writes > 0]
        return Step(len(decoding), rows, added)

    def until_done(self, most: int = 20_000) -> Iterator[Step]:
        for _ in range(most):
            if not self.running:
                return
            yield self.step()
        raise AssertionError("sequences are left")


def decoding(count: int) -> list[Sequence]:
    return [Sequence(pending=1, writes=10**9, behind=100, first_token_s=0.0) for _ in range(count)]


def beside(steps: list[Step]) -> list[float]:
    """What prefill added to steps with decode rows."""
    return [step.added_s for step in steps if step.decode and step.prefill]


MACHINES = [
    Machine(row_s=row_s, key_s=row_s * weight, read_s=read_s, cliff_s=cliff_s)
    for row_s, weight in (
        (1e-5, 1 / 4000),
        (1e-5, 1 / 500),
        (2e-4, 1 / 500),
        (1e-3, 1 / 4000),
        (4e-3, 1 / 10_000),
    )
    for read_s in (1e-4, 0.05, 0.4)
    for cliff_s in (0.0, 0.04)
]


@pytest.mark.parametrize("machine", MACHINES, ids=str)
@pytest.mark.parametrize("rows", [1, 16, 17, 63])
@pytest.mark.parametrize("weight_off", [0.5, 4])
def test_prefill_adds_at_most_its_share(machine: Machine, rows: int, weight_off: float) -> None:
    scheduler = Scheduler(machine, [*decoding(rows), Sequence(40_000, 1)], weight_off)
    added = beside([scheduler.step() for _ in range(80)])
    assert max(added) <= PROMISE_S or machine.row_s * 32 + machine.cliff_s > PROMISE_S
    assert max(added[1:]) <= PROMISE_S  # the first measures 32 rows
    whole = machine.added(rows, CHUNK, 0)
    assert statistics.mean(added[-20:]) >= min(whole, 0.07)  # and does not starve prefill
    assert len(added) >= 74  # nearly every step takes some


def test_prefill_that_grows_dearer_stays_within_the_promise() -> None:
    """4% a step, by what no keys account for."""
    machine = Machine(key_s=0.0)
    scheduler = Scheduler(machine, [*decoding(4), Sequence(100_000, 1)])
    added = []
    for _ in range(60):
        machine.row_s *= 1.04
        added += beside([scheduler.step()])
    assert max(added[1:]) <= PROMISE_S


@pytest.mark.parametrize("key_s", [1e-8, 1e-7, 3e-7, 1e-6])
@pytest.mark.parametrize("weight_off", [0.8, 4])
def test_depth_changes_stay_within_the_promise(key_s: float, weight_off: float) -> None:
    """A prompt of 60,000 tokens grows deep; a short one joins; then, with none left, a sequence
    goes on 50,000 tokens deep, and short ones after it."""
    scheduler = Scheduler(Machine(key_s=key_s), [*decoding(8), Sequence(60_000, 1)], weight_off)
    writing = scheduler.running[:8]
    steps = []

    def run(*arriving: Sequence) -> None:
        scheduler.running += arriving
        while len(scheduler.running) > 8:
            steps.append(scheduler.step())
        assert scheduler.running == writing

    for _ in range(200):
        steps.append(scheduler.step())
    run(Sequence(3_000, 1))
    run(Sequence(2_000, 1, behind=50_000))
    run(Sequence(2_000, 1))
    assert max(beside([s for s in steps if s.prefill > LEAST_ROWS])[1:]) <= PROMISE_S
    last = [s for s in steps if s.prefill > 16][-20:]
    assert statistics.mean(s.added_s for s in last) >= 0.06


def test_rows_that_come_and_go_stay_within_the_promise() -> None:
    """The time of decode rows alone is measured anew when their number changes."""
    machine = Machine(decode_row_s=2.5e-3, cliff_s=0.04)
    scheduler = Scheduler(machine, [*decoding(1), Sequence(400_000, 1)])
    added = []
    for rows in [1] * 10 + list(range(1, 63)) + [62] * 10 + list(range(62, 0, -3)) + [1] * 20:
        scheduler.running[:-1] = decoding(rows)
        added += beside([scheduler.step()])
    assert max(added[1:]) <= PROMISE_S
    assert sum(step >= 0.05 for step in added) > 0.6 * len(added)  # nor does it starve prefill


def test_a_step_held_up_by_others_does_not_break_the_promise() -> None:
    """The machine was busy for half a second, in a step with prefill or without."""
    for held in range(2, 60):
        scheduler = Scheduler(Machine(), [*decoding(8), Sequence(40_000, 1)])
        scheduler.machine.noise = lambda s=scheduler, at=held: 0.5 if s.steps == at else 0.0
        added = beside([scheduler.step() for _ in range(100)])
        assert max(added[1:]) <= PROMISE_S, held
        assert added[-1] >= 0.08, held


def test_noise_moves_little() -> None:
    source = random.Random(1)
    machine = Machine(noise=lambda: source.uniform(0, 0.015))
    scheduler = Scheduler(machine, [*decoding(8), Sequence(60_000, 1)])
    added = beside([scheduler.step() for _ in range(300)])
    assert max(added[1:]) <= PROMISE_S
    assert min(added[10:]) >= 0.05


# --- who gets the rows -------------------------------------------------------------------------


def measured(machine: Machine) -> object:
    """A pace that knows the machine."""
    scheduler = Scheduler(machine, [*decoding(4), Sequence(40_000, 1)])
    for _ in range(200):
        scheduler.step()
    return scheduler.pace


def test_sequences_share_the_time_of_a_step() -> None:
    pace = measured(Machine())
    units = pace.units()
    assert 60 <= units <= 120
    alike = testing.share_prefill(pace, [(900, 0.0)] * 4, rows=CHUNK, units=units)
    assert max(alike) - min(alike) <= 4 and 0.9 * units <= sum(alike) <= units
    # Four times as dear: a quarter of the rows.
    depth = 3 * 1.3e-3 / 3e-7
    shallow, deep = testing.share_prefill(pace, [(900, 0.0), (900, depth)], rows=CHUNK, units=200)
    assert 0.8 * 100 <= shallow <= 1.2 * 100 and 0.7 * 25 <= deep <= 1.3 * 25


def test_what_short_prompts_leave_goes_to_those_that_waited_longest() -> None:
    pace = measured(Machine(key_s=0.0))
    counts = testing.share_prefill(pace, [(900, 0.0), (10, 0.0), (900, 0.0)], rows=90, units=1e9)
    assert counts == [50, 10, 30]
    # Sequences that get no whole tile of 16 rows wait for the next step.
    counts = testing.share_prefill(pace, [(900, 0.0)] * 10, rows=CHUNK, units=33)
    assert counts[:2] == [16, 16] and sum(counts) <= 33
    inf = float("inf")
    assert testing.share_prefill(pace, [(900, 0.0)] * 3, rows=CHUNK, units=inf) == [171, 171, 170]


def test_somebody_always_gets_rows() -> None:
    pace = testing.PrefillPace(weight=1 / 4000)
    for keys in (0.0, 1e5, 1e7):
        for units in (0.0, 1.0, 32.0, float("inf")):
            for limits in ([2], [900], [5, 900], [900] * 64):
                work = [(limit, keys) for limit in limits]
                counts = testing.share_prefill(pace, work, rows=CHUNK, units=units)
                assert counts[0] >= min(LEAST_ROWS, limits[0])
                assert all(0 <= n <= limit for n, limit in zip(counts, limits, strict=True))
                assert sum(counts) <= CHUNK


# --- many sequences ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [8, 32, 64])
def test_sequences_that_arrive_at_random(count: int) -> None:
    """Nobody starves, decode rows keep their pace, and first tokens come in bounded time; some are
    cancelled while they prefill, and some lose their pages (preemption) and prefill again."""
    source = random.Random(count)
    machine = Machine(cliff_s=0.04)
    scheduler = Scheduler(machine)
    due = sorted(
        (source.uniform(0, 30), source.randint(20, 2000), source.random()) for _ in range(count)
    )
    every, steps, lost = [], [], 0
    while due or scheduler.running:
        while due and (due[0][0] <= scheduler.now or not scheduler.running):
            at, prompt, fate = due.pop(0)
            scheduler.now = max(scheduler.now, at)
            sequence = Sequence(prompt, writes=200, arrival=scheduler.steps)
            scheduler.running.append(sequence)
            every.append((sequence, scheduler.now, prompt, fate))
        steps.append(scheduler.step())
        if scheduler.steps % 97 == 0 and scheduler.running:
            victim = scheduler.running[-1]
            if every[[s for s, *_ in every].index(victim)][3] < 0.2:
                scheduler.running.remove(victim)
            else:
                victim.pending, victim.behind = victim.pending + victim.behind, 0
                victim.last_rows = scheduler.steps
                lost += 1
    assert lost > 3 and len(every) == count
    assert max(beside(steps)[1:]) <= PROMISE_S
    # At least two tiles of rows beside decode rows: everybody's turn comes within count / 2 steps,
    # and a few steps that measure decode rows alone.
    assert all(s.longest_wait <= count / 2 + 4 for s, *_ in every)
    work = sum(machine.added(0, prompt, prompt / 2) for _, _, prompt, _ in every)
    for sequence, arrived, _, _ in every:
        if sequence.first_token_s is not None:
            assert sequence.first_token_s - arrived <= 3 * work
    assert sum(s.first_token_s is not None for s, *_ in every) >= 0.7 * count
