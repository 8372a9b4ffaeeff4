"""Whose turn it is: a bounded queue, fair between clients."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from musespark.errors import Error


class QueueFull(Error):  # noqa: N818 - says what it is
    """As much waits already as may. ``retry_after``: seconds in which some of it will be done."""

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(f"{waiting} requests wait already; try again in {retry_after} s")
        self.retry_after = retry_after


class Turns:
    """Gives ``running`` turns out at once and keeps ``waiting`` tickets for later ones.

    Clients are served one after the other, each its oldest ticket, so that one with many requests
    does not hold up one with few. For one event loop; nothing here waits or locks.
    """

    def __init__(self, running: int, waiting: int):
        self.free, self._most = running, waiting
        self.waiting = 0
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()

    def take(self, client: str, count: int, retry_after: int) -> list[Ticket]:
        """So many tickets, or :class:`QueueFull` and none."""
        if self.waiting + max(0, count - self.free) > self._most:
            raise QueueFull(self.waiting, retry_after)
        tickets = [Ticket(self, client) for _ in range(count)]
        queue = self._queues.setdefault(client, deque())
        queue.extend(tickets)
        self.waiting += count
        self._give()
        return tickets

    def give_back(self, ticket: Ticket) -> None:
        """Ends a turn, or gives up waiting for it."""
        if ticket.turn.done() and not ticket.turn.cancelled():
            self.free += 1
        else:
            self._forget(ticket)
        self._give()

    def _forget(self, ticket: Ticket) -> None:
        queue = self._queues[ticket.client]
        queue.remove(ticket)
        self.waiting -= 1
        if not queue:
            del self._queues[ticket.client]

    def _give(self) -> None:
        while self.free and self._queues:
            client, queue = self._queues.popitem(last=False)
            ticket = queue.popleft()
            if queue:
                self._queues[client] = queue  # behind the others
            self.waiting -= 1
            self.free -= 1
            ticket.turn.set_result(None)


class Ticket:
    """A turn, to be waited for by :meth:`wait` and ended by :meth:`release`, whether it came or
    not."""

    def __init__(self, turns: Turns, client: str):
        self.client = client
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
