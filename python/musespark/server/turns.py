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
        self.waiting, self.retry_after = waiting, retry_after


class Turns:
    """Gives ``running`` rows out at once and keeps tickets for ``waiting`` more. Of what waits only
    the rows beyond those that are free count: a ticket for many waits with all of its own while
    some are free already, and all that run and wait are never more than both together.

    Clients are served one after the other, each its oldest ticket, so that one with many requests
    does not hold up one with few; a ticket for several rows waits until so many are free, and what
    is behind it with it. Nor does it fill the places: where there are none left, the newest tickets
    of the client with the most waiting make room for one that has fewer, and :meth:`Ticket.wait`
    raises :class:`QueueFull`. For one event loop; nothing here waits or locks.
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
        full = QueueFull(self.waiting, retry_after)
        for displaced in self._room_for(client, wanted, full):
            self._forget(displaced)
            displaced.refuse(QueueFull(full.waiting, retry_after))
        for ticket in tickets:
            ticket.together = tickets
        self._queues.setdefault(client, deque()).extend(tickets)
        self.waiting += wanted
        self._give()
        return tickets

    def _room_for(self, client: str, rows: int, full: QueueFull) -> list[Ticket]:
        """Who makes room for so many rows more; raises ``full`` where nobody has to. A request's
        tickets go together, and none of them where one has its turn."""
        has = {name: sum(one.rows for one in queue) for name, queue in self._queues.items()}
        left = {name: list(queue) for name, queue in self._queues.items() if name != client}
        own, gone = has.get(client, 0) + rows, []
        over = self.waiting + rows - self.free - self._most
        while over > 0:
            most = max(left, key=lambda name: has[name], default=None)
            newest = left[most][-1].waiting() if most is not None and left[most] else []
            freed = sum(one.rows for one in newest)
            # Who loses one still has as much as who gains: so nobody displaces back.
            if most is None or not newest or has[most] - freed < own:
                raise full
            del left[most][-len(newest) :]
            has[most] -= freed
            over -= freed
            gone += newest
        return gone

    def give_back(self, ticket: Ticket) -> None:
        """Ends a turn, or gives up waiting for it."""
        if not ticket.turn.done():
            self._forget(ticket)
        elif ticket.turn.exception() is None:
            self.free += ticket.rows
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
    :meth:`release`, whether it came or not. ``together``: with which it was taken."""

    def __init__(self, turns: Turns, client: str, rows: int):
        self.client, self.rows = client, rows
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.together = [self]
        self._turns, self._released = turns, False

    def waiting(self) -> list[Ticket]:
        """Those that were taken together and wait still; none where one of them had its turn."""
        some = [one for one in self.together if not one._released or one.turn.done()]
        return [] if any(one.turn.done() for one in some) else some

    def refuse(self, error: QueueFull) -> None:
        """There will be no turn."""
        self.turn.set_exception(error)
        self.turn.exception()  # else it is told as forgotten where nobody waits for it

    async def wait(self) -> None:
        """Until it is its turn; QueueFull where it has to make room. Who is cancelled meanwhile
        still has to release it."""
        await asyncio.shield(self.turn)

    def release(self) -> None:
        """Idempotent."""
        if not self._released:
            self._released = True
            self._turns.give_back(self)
