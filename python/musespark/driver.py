"""The threads of an engine: one runs its core, one hands out what it tells.

Between two steps the core does not wait for Python's lock, which other threads may hold for 5 ms at
a time (but for requests with a constraint, which is Python's): there is a step of a small model
every few milliseconds.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from musespark.errors import Cancelled, Error, InvalidRequest, MemoryBudgetExceeded
from musespark.events import Event, Finished, GivenRows, LogitsRows, Tokens

if TYPE_CHECKING:
    import asyncio

    from musespark import _core
    from musespark.engine import Handle

# How long the core decodes before events are handed out: short enough to look immediate; longer
# where many requests run (csrc/decode/runner.h). And how often it looks whether rows have come.
_SLICE_S = 0.02
CLOSED_MEANWHILE = "the model was closed while this request ran"
# How often a waiting caller looks whether the driver is alive.
ALIVE_S = 1.0


def _error_of(kind: str, message: str) -> Error:
    kinds = {"memory": MemoryBudgetExceeded, "constraint": InvalidRequest}
    return kinds.get(kind, Error)(message)


class EventStream:
    """Events on their way from the driver to whoever iterates. Puts never block or lock."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event | Exception] = queue.SimpleQueue()
        self.ended = False  # set by the driver after it has put the last event
        self.given_up = False  # its caller has cancelled it
        self.given: Sequence[GivenRows] = ()  # made when the core asks for them
        self.then: Callable[[], None] | None = None  # called at the end, where events are told
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def put(self, event: Event | Exception, waiters: Waiters | None = None) -> None:
        """Adds an event. Who waits for it on an event loop is noted in ``waiters``, to be woken
        with others; without, woken at once."""
        # Before the event: who sees the end may close the model.
        if isinstance(event, Finished) and self.then is not None:
            self.then()
        self.events.put(event)
        if isinstance(event, (Finished, Exception)):
            self.ended = True
        waiter = self._waiter
        if waiter is not None:
            loop, ready = waiter
            woken = {} if waiters is None else waiters
            woken.setdefault(loop, []).append(ready)
            if waiters is None:
                wake(woken)

    def exhausted(self) -> Error | None:
        """What a second iteration gets instead of waiting for ever."""
        if self.ended and self.events.empty():
            return Error("the events of this request have been taken; a handle is iterated once")
        return None

    async def aget(self) -> Event | Exception:
        if not self.events.empty():  # of one reader: nobody else takes it
            return self.events.get_nowait()
        import asyncio  # here: it takes longer than mapping the weights

        loop = asyncio.get_running_loop()
        try:
            while True:
                # Noted before looking: what is put after the look wakes it.
                ready = loop.create_future()
                self._waiter = (loop, ready)
                try:
                    return self.events.get_nowait()
                except queue.Empty:
                    if error := self.exhausted():
                        return error
                    await ready
        finally:
            self._waiter = None


# Who waits for events, by the event loop.
Waiters = dict["asyncio.AbstractEventLoop", list["asyncio.Future[None]"]]


def wake(waiters: Waiters) -> None:
    """Wakes all that wait on an event loop by one call: each is a system call, at which the loop's
    thread takes the interpreter's lock, and others wait to be told."""
    for loop, all_ready in waiters.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(_set_all, all_ready)


def _set_all(all_ready: Iterable[asyncio.Future[None]]) -> None:
    for ready in all_ready:
        if not ready.done():  # who waited may be cancelled, or several events came at once
            ready.set_result(None)


def note_id(ids: list[int], call: Callable[[Any], int], argument: Any) -> None:
    """Appends the id that a call of the core gives out.

    All of it is one step of C: Ctrl-C comes before or after, never between the id being given out
    and its being noted, where nobody could cancel or release it any more.
    """
    ids.extend(map(call, [argument]))


class Driver:
    """Owns the core and its threads. Knows no Engine, so that one can be collected."""

    def __init__(self, core: _core.Engine) -> None:
        self.core: _core.Engine | None = core
        self.pid = os.getpid()
        self.failure: BaseException | None = None
        self.closed = False
        self._lock = threading.Lock()
        self._streams: dict[int, EventStream] = {}
        # SimpleQueue.put may be called from a finalizer at any time, in any thread.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stepping = threading.Thread(target=self._step, name="musespark-engine", daemon=True)
        self._telling = threading.Thread(target=self._tell, name="musespark-events", daemon=True)
        # Rows are made in a thread of their own: images take longer than other requests may wait.
        self._wanted: queue.SimpleQueue[tuple[EventStream, int, int] | None] = queue.SimpleQueue()
        self._rows_thread: threading.Thread | None = None

    @property
    def threads(self) -> tuple[threading.Thread, threading.Thread]:
        """That which runs the core, and that which ends after it and tells every request so."""
        return self._stepping, self._telling

    def start(self) -> None:
        _running.add(self)
        self._telling.start()
        self._stepping.start()

    def check(self) -> _core.Engine:
        """The core, or the reason why it cannot be used."""
        if os.getpid() != self.pid:
            raise Error(
                "this model was loaded before os.fork and has no threads in this process; "
                "load it again after the fork"
            )
        if self.failure is not None:
            raise Error(f"the engine failed: {self.failure}") from self.failure
        core = self.core
        if self.closed or core is None:
            raise Error("the model is closed")
        return core

    def submit(self, handle: Handle, tokens: np.ndarray, params: dict, base: int | None) -> None:
        self.check()  # before the lock: after a fork nobody may ever release it
        with self._lock:
            call = functools.partial(self.check().submit, params=params, base=base)
            note_id(handle.ids, call, tokens)
            self._streams[handle.id] = handle.stream
        self._wake.put(None)

    def take(self, ids: list[int], method: str, argument: Any, **rest: Any) -> None:
        """Calls what gives out an id: fork, add_adapter or begin_restore."""
        note_id(ids, functools.partial(getattr(self.check(), method), **rest), argument)
        self._wake.put(None)

    def ask(self, method: str, request: int) -> _core.Engine:
        """Calls what the core's thread then has to act on; the core."""
        core = self.check()
        getattr(core, method)(request)
        self._wake.put(None)
        return core

    def quietly(self, method: str, request: int) -> None:
        """Ends something as clean-up: nothing to do where it is done or the engine is gone."""
        core = self.core
        if core is None or self.closed or self.failure is not None or os.getpid() != self.pid:
            return
        with contextlib.suppress(InvalidRequest):
            getattr(core, method)(request)
        self._wake.put(None)

    def _step(self) -> None:
        core = self.core
        if core is None:  # closed before the thread ran
            return
        try:
            while not self.closed:
                core.run(_SLICE_S)
                if not core.has_work():
                    self._park()
                elif core.waits_for_rows():  # or for a deadline, of which nobody tells
                    with contextlib.suppress(queue.Empty):
                        self._wake.get(timeout=_SLICE_S)
        except BaseException as error:  # every waiting caller hears of it
            self.failure = self.failure or error
        finally:
            core.end_events()
            del core  # the failure has this frame

    def _tell(self) -> None:
        core = self.core
        if core is None:
            return
        try:
            while (events := core.take_events()) is not None:
                self._deliver(events)
        except BaseException as error:
            self.failure = error
            core.cancel_all()
            core.stop()
        finally:
            del core
            self._end()
            self._wake.put(None)
            if self._stepping.ident is not None:
                self._stepping.join()  # before nobody waits for it when the interpreter ends
            _running.discard(self)

    def _park(self) -> None:
        self._wake.get()
        while not self._wake.empty():
            self._wake.get()

    def _deliver(self, events: list[tuple]) -> None:
        waiters: Waiters = {}
        try:
            for kind, request, *rest in events:
                self._put(waiters, kind, request, rest)
        finally:
            wake(waiters)

    def _put(self, waiters: Waiters, kind: str, request: int, rest: list[Any]) -> None:
        with self._lock:  # a submit that is still registering its stream holds it
            stream = self._streams.get(request)
        if stream is None:  # its submit was interrupted, which has cancelled it
            return
        # Closing cancels in the core. Who did not ask for it hears of it from _end, whichever comes
        # first: a closed model has one outcome.
        if kind == "finished" and rest[0] == "cancelled" and self.closed and not stream.given_up:
            return
        if kind == "tokens":
            stream.put(Tokens(*rest), waiters)
        elif kind == "logits":
            stream.put(LogitsRows(*rest), waiters)
        elif kind == "rows_wanted":
            self._want(stream, request, *rest)
        else:
            reason, error, stats = rest
            ended = Finished(reason, stats) if error is None else _error_of(*error)
            stream.put(ended, waiters)
            with self._lock:
                self._streams.pop(request, None)

    def _want(self, stream: EventStream, request: int, index: int) -> None:
        self._wanted.put((stream, request, index))
        if self._rows_thread is None:
            thread = threading.Thread(target=self._make_rows, name="musespark-rows", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the interpreter is ending
                self._fail(stream, request, Error(f"no thread to make an image's rows: {error}"))
            else:
                self._rows_thread = thread

    def _make_rows(self) -> None:
        while (wanted := self._wanted.get()) is not None and not self.closed:
            stream, request, index = wanted
            if stream.given_up:
                continue
            try:
                rows, taps = stream.given[index].make()
                core = self.core
                if core is not None:
                    core.provide_rows(request, index, rows, taps)
            except Exception as error:  # the caller's to hear, as any other error of its request
                self._fail(stream, request, error)
            self._wake.put(None)

    def _fail(self, stream: EventStream, request: int, error: Exception) -> None:
        stream.put(error)
        self.quietly("cancel", request)

    def _end(self) -> None:
        with self._lock:
            self.closed = True
            self.core = None
            streams, self._streams = self._streams, {}
        for stream in streams.values():
            if self.failure is None:
                stream.put(Cancelled(CLOSED_MEANWHILE))
            else:
                error = Error(f"the engine failed: {self.failure}")
                error.__cause__ = self.failure
                stream.put(error)

    def stop(self) -> None:
        """Ends the threads within a layer; every running request with them.

        Idempotent; when it is interrupted, the next call waits on.
        """
        if os.getpid() != self.pid:
            return
        self.closed = True
        core = self.core
        if core is not None:
            core.cancel_all()
            core.stop()
        self._wake.put(None)
        if self._stepping.ident is None:  # interrupted before it was started
            if core is not None:
                core.end_events()
            if self._telling.ident is None:
                self._end()
                _running.discard(self)
        del core
        if threading.current_thread() not in self.threads:  # a finalizer may run there
            for thread in self.threads:
                if thread.ident is not None:
                    thread.join()
        self._wanted.put(None)
        rows = self._rows_thread
        if rows is not None and threading.current_thread() is not rows:
            rows.join()  # what it makes now, it makes to the end


_running: set[Driver] = set()


@atexit.register
def _stop_all() -> None:
    """A thread that comes back from the core into a dying interpreter would crash the process."""
    for driver in list(_running):
        driver.stop()
