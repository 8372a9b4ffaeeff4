"""The queue of the server: bounded, fair between clients, nothing lost to those that go away."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from musespark.contemplating import AgentDelta
from musespark.errors import InvalidRequest
from musespark.results import Delta, TokenLogprob
from musespark.server import outbox as outboxes
from musespark.server.outbox import Begun, Failed, Outbox, Piece, joined
from musespark.server.turns import QueueFull, Ticket, Turns


def run(scenario) -> None:
    async def guarded() -> None:
        await asyncio.wait_for(scenario(), 10)

    asyncio.run(guarded())


def has_turn(ticket: Ticket) -> bool:
    return ticket.turn.done()


def test_clients_take_turns_whatever_they_queue() -> None:
    async def scenario() -> None:
        turns = Turns(1, 100)
        (first,) = turns.take("a", [1], 1)
        many = turns.take("a", [1] * 5, 1)
        (one,) = turns.take("b", [1], 1)
        (other,) = turns.take("c", [1], 1)
        served = []
        holder = first
        names = {id(t): f"a{i}" for i, t in enumerate(many)} | {id(one): "b", id(other): "c"}
        for _ in range(7):
            holder.release()
            holder = next(t for t in (*many, one, other) if has_turn(t) and not t._released)
            served.append(names[id(holder)])
        assert served == ["a0", "b", "c", "a1", "a2", "a3", "a4"]

    run(scenario)


def test_the_queue_is_bounded_and_full_means_nothing_was_taken() -> None:
    async def scenario() -> None:
        turns = Turns(2, 3)
        held = turns.take("a", [1] * 2, 1)
        turns.take("a", [1] * 2, 1)
        with pytest.raises(QueueFull, match="2 requests wait") as full:
            turns.take("b", [1] * 2, 7)
        assert full.value.retry_after == 7
        assert turns.waiting == 2
        turns.take("b", [1], 1)
        assert turns.waiting == 3
        held[0].release()
        assert turns.waiting == 2

    run(scenario)


def test_who_gives_up_waiting_leaves_no_trace() -> None:
    async def scenario() -> None:
        turns = Turns(1, 10)
        (first,) = turns.take("a", [1], 1)
        (second,) = turns.take("b", [1], 1)
        (third,) = turns.take("c", [1], 1)
        waiting = asyncio.ensure_future(second.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert turns.waiting == 2
        second.release()
        second.release()
        assert turns.waiting == 1
        first.release()
        assert has_turn(third)
        third.release()
        assert (turns.free, turns.waiting, len(turns._queues)) == (1, 0, 0)

    run(scenario)


def test_a_turn_given_to_who_was_just_cancelled_goes_on_to_the_next() -> None:
    async def scenario() -> None:
        turns = Turns(1, 10)
        (first,) = turns.take("a", [1], 1)
        (second,) = turns.take("b", [1], 1)
        (third,) = turns.take("c", [1], 1)
        waiting = asyncio.ensure_future(second.wait())
        await asyncio.sleep(0)
        first.release()  # it is the second's turn now, which does not know yet
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        second.release()
        await asyncio.wait_for(third.wait(), 10)
        assert (turns.free, turns.waiting) == (0, 0)

    run(scenario)


def test_what_takes_several_rows_waits_for_them_and_keeps_its_place() -> None:
    async def scenario() -> None:
        turns = Turns(4, 20)
        (first,) = turns.take("a", [3], 1)
        (large,) = turns.take("b", [9], 1)  # more than there are: all of them
        (small,) = turns.take("c", [1], 1)
        assert has_turn(first) and large.rows == 4
        assert not has_turn(large) and not has_turn(small), "what waits is overtaken for ever"
        assert (turns.free, turns.waiting) == (1, 5)
        first.release()
        assert has_turn(large) and not has_turn(small)
        large.release()
        assert has_turn(small)
        small.release()
        assert (turns.free, turns.waiting, len(turns._queues)) == (4, 0, 0)

    run(scenario)


def test_who_gives_up_a_large_place_lets_others_go_on() -> None:
    async def scenario() -> None:
        turns = Turns(2, 20)
        (first,) = turns.take("a", [1], 1)
        (large,) = turns.take("b", [2], 1)
        (small,) = turns.take("c", [1], 1)
        large.release()
        assert has_turn(small) and turns.free == 0
        first.release()
        assert turns.free == 1

    run(scenario)


def test_a_large_place_that_waits_leaves_the_others_theirs() -> None:
    """Of its four rows three are free: one of the two places is taken, not all."""

    async def scenario() -> None:
        turns = Turns(4, 2)
        (held,) = turns.take("a", [1], 1)
        (large,) = turns.take("b", [4], 1)
        (small,) = turns.take("c", [1], 1)
        assert not has_turn(large) and not has_turn(small)
        with pytest.raises(QueueFull):
            turns.take("d", [1], 1)
        held.release()
        assert has_turn(large) and not has_turn(small)
        turns.take("d", [1], 1)
        with pytest.raises(QueueFull):
            turns.take("e", [1], 1)

    run(scenario)


def test_what_runs_and_waits_is_never_more_than_both_together() -> None:
    async def scenario() -> None:
        for seed in range(200):
            drawn = random.Random(seed)
            running, waiting = drawn.randint(1, 6), drawn.randint(0, 8)
            turns, tickets = Turns(running, waiting), list[Ticket]()
            for _ in range(60):
                if drawn.random() < 0.6:
                    rows = [drawn.randint(1, 8) for _ in range(drawn.choice([1, 1, 2]))]
                    with contextlib.suppress(QueueFull, InvalidRequest):
                        tickets += turns.take(drawn.choice("abc"), rows, 1)
                elif tickets:
                    tickets.pop(drawn.randrange(len(tickets))).release()
                held = sum(one.rows for one in tickets if one.turn.done() and not refused(one))
                waits = sum(one.rows for one in tickets if not one.turn.done())
                assert (turns.free, turns.waiting) == (running - held, waits)
                assert held + waits <= running + waiting

    run(scenario)


def refused(ticket: Ticket) -> bool:
    return ticket.turn.exception() is not None


def test_what_could_never_wait_is_refused_for_good() -> None:
    async def scenario() -> None:
        turns = Turns(2, 3)
        with pytest.raises(InvalidRequest, match="choices: got 6, allowed are at most 5"):
            turns.take("a", [1] * 6, 1)
        assert len(turns.take("a", [1] * 5, 1)) == 5

    run(scenario)


def test_only_neighbouring_text_of_one_channel_of_one_answer_is_joined() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {}}}
    log = (TokenLogprob(1, -1.0), TokenLogprob(2, -2.0))
    items = [
        Piece(0, Delta("a", logprobs=log[:1])),
        Piece(0, Delta("b", logprobs=log[1:])),
        Piece(1, Delta("c")),
        Piece(0, Delta("d")),
        Piece(0, Delta("e", "reasoning")),
        Piece(0, AgentDelta("f", "reasoning", agent=1)),
        Piece(0, AgentDelta("g", "reasoning", agent=2)),
        Piece(0, Delta("", "tool", call)),
        Piece(0, Delta("", "tool", call)),
    ]
    found = [(one.index, one.delta.text) for one in joined(items)]
    assert found == [(0, "ab"), (1, "c"), (0, "d"), (0, "e"), (0, "f"), (0, "g"), (0, ""), (0, "")]
    assert joined(items)[0].delta.logprobs == log


def test_a_thousand_pieces_are_joined_at_once(monkeypatch) -> None:
    """Not pair by pair, which takes the square of what a slow reader left."""
    made, replace = [], outboxes.replace
    monkeypatch.setattr(
        outboxes, "replace", lambda one, **more: made.append(one) or replace(one, **more)
    )
    log = (TokenLogprob(1, -1.0),)
    (one,) = joined([Piece(2, Delta("ab", logprobs=log))] * 1000)
    assert one == Piece(2, Delta("ab" * 1000, logprobs=log * 1000))
    assert len(made) == 1


def test_what_comes_while_nobody_takes_it_is_one_piece() -> None:
    async def scenario() -> None:
        outbox = Outbox()
        waiting = asyncio.ensure_future(outbox.take())
        await asyncio.sleep(0)
        outbox.put(Begun(0, 3))
        assert await waiting == [Begun(0, 3)]
        for text in "abc":
            outbox.put(Piece(0, Delta(text)))
        failed = Failed(0, ValueError("no more"))
        outbox.put(failed)
        assert await outbox.take() == [Piece(0, Delta("abc")), failed]
        waiting = asyncio.ensure_future(outbox.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()

    run(scenario)


def test_who_has_many_places_makes_room_for_who_has_few() -> None:
    async def scenario() -> None:
        turns = Turns(1, 4)
        (held,) = turns.take("greedy", [1], 1)
        many = turns.take("greedy", [1], 1) + turns.take("greedy", [1], 1)
        many += turns.take("greedy", [1], 1) + turns.take("greedy", [1], 1)
        (modest,) = turns.take("modest", [1], 9)
        assert turns.waiting == 4
        with pytest.raises(QueueFull, match="4 requests wait") as full:
            await many[-1].wait()
        assert full.value.retry_after == 9
        assert not any(has_turn(one) for one in many[:-1]), "the newest alone"
        turns.take("modest", [1], 1)
        for who in ("modest", "greedy", "greedy"):  # half each: nobody displaces back
            with pytest.raises(QueueFull):
                turns.take(who, [1], 1)
        for one in many:
            one.release()
        held.release()
        assert has_turn(modest) and (turns.free, turns.waiting) == (0, 1)

    run(scenario)


def test_what_was_asked_together_goes_together_or_stays() -> None:
    async def scenario() -> None:
        turns = Turns(1, 8)
        begun = turns.take("greedy", [1] * 3, 1)
        whole = turns.take("greedy", [1] * 6, 1)
        with pytest.raises(QueueFull):
            turns.take("modest", [1] * 3, 1)  # of eight, two would be left to the other
        assert turns.waiting == 8 and not any(has_turn(one) for one in whole)
        for one in whole:
            one.release()
        some = [turns.take("greedy", [1] * 2, 1) for _ in range(3)]
        turns.take("modest", [1] * 2, 1)
        assert [has_turn(one) for job in some for one in job] == [False] * 4 + [True] * 2
        turns.take("modest", [1], 1)
        assert [has_turn(one) for job in some for one in job] == [False] * 2 + [True] * 4
        assert [has_turn(one) for one in begun] == [True, False, False]

    run(scenario)


def test_an_answer_that_has_begun_is_not_displaced() -> None:
    async def scenario() -> None:
        turns = Turns(1, 4)
        begun = turns.take("greedy", [1] * 5, 1)
        with pytest.raises(QueueFull):
            turns.take("modest", [1], 1)
        assert [has_turn(one) for one in begun] == [True] + [False] * 4

    run(scenario)
