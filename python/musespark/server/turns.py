"""Whose turn it is: a bounded queue, fair between clients."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence

from musespark.errors import Error, InvalidRequest


class QueueFull(Error):  # noqa: N818 - says what it is
    """As much waits already as may. ``retry_after``: seconds in which some of it will be done."""

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(f"{waiting} requests wait already; try again in {retry_after} s")
        self.retry_after = retry_after


class Turns:
    """Gives ``running`` rows out at once and keeps tickets for ``waiting`` later ones.

    Clients are served one after the other, each its oldest ticket, so that one with many requests
    does not hold up one with few; a ticket for several rows waits until so many are free, and what
    is behind it with it. For one event loop; nothing here waits or locks.
    """

    def __init__(self, running: int, waiting: int):
        self.free, self._running, self._most = running, running, waiting
        self.waiting = 0
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()

    def take(self, client: str, rows: Sequence[int], retry_after: int) -> list[Ticket]:
        """A ticket for each of these numbers of rows, or :class:`QueueFull` and none. One for more
        rows than there are gets them all; InvalidRequest for more than could ever wait."""
        tickets = [Ticket(self, client, min(one, self._running)) for one in rows]
        wanted = sum(ticket.rows for ticket in tickets)
        if wanted > self._running + self._most:
            raise InvalidRequest(
                f"choices: got {wanted}, allowed are at most {self._running + self._most}"
            )
        if self.waiting + max(0, wanted - self.free) > self._most:
            raise QueueFull(self.waiting, retry_after)
        self._queues.setdefault(client, deque()).extend(tickets)
        self.waiting += wanted
        self._give()
        return tickets

    def give_back(self, ticket: Ticket) -> None:
        """Ends a turn, or gives up waiting for it."""
        if ticket.turn.done() and not ticket.turn.cancelled():
            self.free += ticket.rows
        else:
            self._forget(ticket)
        self._give()

    def _forget(self, ticket: Ticket) -> None:
        queue = self._queues[ticket.client]
        queue.remove(ticket)
        self.waiting -= ticket.rows
        if not queue:
            del self._queues[ticket.client]

    def _give(self) -> None:
        while self._queues:
            client, queue = next(iter(self._queues.items()))
            if queue[0].rows > self.free:
                return
            ticket = queue.popleft()
            self._queues.move_to_end(client)  # behind the others
            if not queue:
                del self._queues[client]
            self.waiting -= ticket.rows
            self.free -= ticket.rows
            ticket.turn.set_result(None)


class Ticket:
    """A turn of ``rows`` in the engine, to be waited for by :meth:`wait` and ended by
    :meth:`release`, whether it came or not."""

    def __init__(self, turns: Turns, client: str, rows: int):
        self.client, self.rows = client, rows
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns, self._released = turns, False

    async def wait(self) -> None:
        """Until it is its turn. Who is cancelled meanwhile still has to release it."""
        await asyncio.shield(self.turn)

    def release(self) -> None:
        """Idempotent."""
        if not self._released:
            self._released = True
            self._turns.give_back(self)
