"""The one Python face of the C++ engine: submit requests, iterate over what they produce.

    engine = Engine(spec, tensors, threads=2, context=4096, kv="kv8", memory_budget=2**30)
    handle = engine.submit(Request(tokens=[1, 2, 3], max_new_tokens=16))
    for event in handle:            # Tokens, LogitsRows, and at last Finished
        ...

One daemon thread per engine drives it. Any number of threads and event loops may submit, into one
batch. Waiting can be interrupted (Ctrl-C); an iteration that is left early cancels its request.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import queue
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from musespark import _core
from musespark.errors import Cancelled, Error, InvalidRequest, MemoryBudgetExceeded
from musespark.events import (
    Event,
    Finished,
    LogitsRows,
    Request,
    Result,
    Tokens,
    collect,
    token_array,
)
from musespark.sizes import MAX_BATCH, PREFILL_CHUNK, spec_dict

if TYPE_CHECKING:
    import asyncio

__all__ = ["Engine", "Event", "Finished", "Handle", "LogitsRows", "Request", "Result", "Tokens"]

# How long the core decodes before events are handed out: short enough to look immediate.
_SLICE_S = 0.02
ARITHMETIC_VERSION: int = _core.arithmetic_version
CLOSED_MEANWHILE = "the model was closed while this request ran"
# How often a waiting caller looks whether the driver is alive.
_ALIVE_S = 1.0


def _error_of(kind: str, message: str) -> Error:
    return MemoryBudgetExceeded(message) if kind == "memory" else Error(message)


class _Stream:
    """Events on their way from the driver to whoever iterates. Puts never block or lock."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event | Exception] = queue.SimpleQueue()
        self.ended = False  # set by the driver after it has put the last event
        self.given_up = False  # its caller has cancelled it
        self.then: Callable[[], None] | None = None  # called at the end, in the driver's thread
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def put(self, event: Event | Exception) -> None:
        # Before the event: who sees the end may close the model.
        if isinstance(event, Finished) and self.then is not None:
            self.then()
        self.events.put(event)
        if isinstance(event, (Finished, Exception)):
            self.ended = True
        waiter = self._waiter
        if waiter is not None:
            loop, ready = waiter
            try:
                loop.call_soon_threadsafe(ready.set)
            except RuntimeError:  # that loop is closed: nobody waits there any more
                self._waiter = None

    def exhausted(self) -> Error | None:
        """What a second iteration gets instead of waiting for ever."""
        if self.ended and self.events.empty():
            return Error("the events of this request have been taken; a handle is iterated once")
        return None

    async def aget(self) -> Event | Exception:
        import asyncio  # here: it takes longer than mapping the weights

        ready = asyncio.Event()
        self._waiter = (asyncio.get_running_loop(), ready)
        try:
            while True:
                # Cleared before looking: what is put after the look sets it again.
                ready.clear()
                try:
                    return self.events.get_nowait()
                except queue.Empty:
                    if error := self.exhausted():
                        return error
                    await ready.wait()
        finally:
            self._waiter = None


def _note_id(ids: list[int], call: Callable[[Any], int], argument: Any) -> None:
    """Appends the id that a call of the core gives out.

    All of it is one step of C: Ctrl-C comes before or after, never between the id being given out
    and its being noted, where nobody could cancel or release it any more.
    """
    ids.extend(map(call, [argument]))


class _Driver:
    """Owns the core and the thread that runs it. Knows no Engine, so that one can be collected."""

    def __init__(self, core: _core.Engine) -> None:
        self.core: _core.Engine | None = core
        self.pid = os.getpid()
        self.failure: BaseException | None = None
        self.closed = False
        self._lock = threading.Lock()
        self._streams: dict[int, _Stream] = {}
        # SimpleQueue.put may be called from a finalizer at any time, in any thread.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._drive, name="musespark-engine", daemon=True)

    def start(self) -> None:
        _running.add(self)
        self.thread.start()

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
            _note_id(handle.ids, call, tokens)
            self._streams[handle.id] = handle.stream
        self._wake.put(None)

    def take(self, ids: list[int], method: str, argument: Any, **rest: Any) -> None:
        """Calls what gives out an id: fork, add_adapter or begin_restore."""
        _note_id(ids, functools.partial(getattr(self.check(), method), **rest), argument)
        self._wake.put(None)

    def ask(self, method: str, request: int) -> _core.Engine:
        """Calls what the thread then has to act on; the core."""
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

    def _drive(self) -> None:
        core = self.core
        if core is None:  # closed before the thread ran
            return
        try:
            while not self.closed:
                events = core.run_until(_SLICE_S)
                if events:
                    self._deliver(events)
                elif not core.has_work():
                    self._park()
        except BaseException as error:  # every waiting caller hears of it
            self.failure = error
        finally:
            del core
            self._end()

    def _park(self) -> None:
        self._wake.get()
        while not self._wake.empty():
            self._wake.get()

    def _deliver(self, events: list[tuple]) -> None:
        for kind, request, *rest in events:
            with self._lock:  # a submit that is still registering its stream holds it
                stream = self._streams.get(request)
                if kind == "finished":
                    # Closing cancels in the core. Who did not ask for it hears of it from _end,
                    # whichever comes first: a closed model has one outcome.
                    if self.closed and rest[0] == "cancelled" and stream and not stream.given_up:
                        continue
                    self._streams.pop(request, None)
            if stream is None:  # its submit was interrupted, which has cancelled it
                continue
            if kind == "tokens":
                stream.put(Tokens(*rest))
            elif kind == "logits":
                stream.put(LogitsRows(*rest))
            else:
                reason, error, stats = rest
                stream.put(Finished(reason, stats) if error is None else _error_of(*error))

    def _end(self) -> None:
        _running.discard(self)
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
        """Ends the thread within a layer; every running request with it.

        Idempotent; when it is interrupted, the next call waits on.
        """
        if os.getpid() != self.pid:
            return
        self.closed = True
        core = self.core
        if core is not None:
            core.cancel_all()
        del core
        self._wake.put(None)
        if self.thread.ident is None:  # interrupted before it was started
            self._end()
        elif threading.current_thread() is not self.thread:  # a finalizer may run there
            self.thread.join()


_running: set[_Driver] = set()


@atexit.register
def _stop_all() -> None:
    """A thread that comes back from the core into a dying interpreter would crash the process."""
    for driver in list(_running):
        driver.stop()


class Retained:
    """Keys and values kept after a request: pass as ``base`` to reuse the common prefix (with the
    same adapter). Released by :meth:`release`, or when collected."""

    def __init__(self, driver: _Driver, ids: list[int]) -> None:
        self._driver = driver
        self._ids = ids  # empty until the core has given one out
        self.released = False

    @property
    def id(self) -> int:
        return self._ids[0]

    def fork(self) -> Retained:
        """A twin that shares all pages until written to; only after the request has ended."""
        twin = Retained(self._driver, [])
        try:
            self._driver.take(twin._ids, "fork", self.id)
        except BaseException:  # as in Engine.submit
            twin.release()
            raise
        return twin

    def release(self) -> None:
        """Gives the pages back. Idempotent."""
        if self._ids and not self.released:
            self._driver.quietly("release", self.id)
        self.released = True

    def __del__(self) -> None:
        if hasattr(self, "released"):
            self.release()


class Handle:
    """A submitted request. Iterate (``for`` or ``async for``) once; or take :meth:`result`.

    The last event is :class:`Finished`. A request that failed raises its error instead.
    """

    def __init__(self, driver: _Driver, retain: bool, keep: object) -> None:
        self._driver = driver
        self._keep = keep  # the engine lives as long as someone waits for it
        self.stream = _Stream()
        self.ids: list[int] = []  # empty until the core has given one out
        self.retained = Retained(driver, self.ids) if retain else None

    @property
    def id(self) -> int:
        return self.ids[0]

    def cancel(self) -> None:
        """Ends the request within one layer; its tokens so far stay. No effect after its end."""
        if self.ids and not self.stream.ended:
            self.stream.given_up = True
            self._driver.quietly("cancel", self.id)

    def discard(self) -> None:
        """Cancels, and releases what it would retain."""
        self.cancel()
        if self.retained is not None:
            self.retained.release()

    def __iter__(self) -> Iterator[Event]:
        try:
            while True:
                event = self._next()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[Event]:
        try:
            while True:
                event = await self.stream.aget()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self.cancel()

    def _next(self) -> Event | Exception:
        while True:
            if error := self.stream.exhausted():
                return error
            try:
                return self.stream.events.get(timeout=_ALIVE_S)
            except queue.Empty:
                # The driver ends every stream when it stops; only a fork leaves one without it.
                if os.getpid() != self._driver.pid:
                    self._driver.check()
                if not self._driver.thread.is_alive() and self.stream.events.empty():
                    return Error("the engine's thread is gone")

    def result(self) -> Result:
        """Waits for the end and returns everything."""
        return collect(list(self))

    async def aresult(self) -> Result:
        """The same for an event loop."""
        return collect([event async for event in self])

    def __del__(self) -> None:
        if hasattr(self, "ids"):
            self.cancel()


class Engine:
    """One model's engine. Close it, or let it be collected; at exit it ends by itself.

    ``spec``: a ``families.spec.ModelSpec`` or its dict. ``tensors``: name -> (format, rows, cols,
    buffer). ``context``: tokens a sequence may have. ``kv``: ``f32``, ``kv8``, ``kv8v4`` or
    ``kv4``. ``memory_budget``: bytes of keys and values. ``prefix_cache``: keep what prompts begin
    with.
    """

    def __init__(
        self,
        spec: Any,
        tensors: Mapping[str, tuple],
        *,
        threads: int,
        context: int,
        kv: str,
        memory_budget: int,
        prefill_chunk: int = PREFILL_CHUNK,
        max_batch: int = MAX_BATCH,
        prefix_cache: bool = True,
    ) -> None:
        core = _core.Engine(
            spec_dict(spec),
            dict(tensors),
            threads=threads,
            context=context,
            kv=kv,
            memory_budget=memory_budget,
            prefill_chunk=prefill_chunk,
            max_batch=max_batch,
            prefix_cache=prefix_cache,
        )
        self.context = context
        self._driver = _Driver(core)
        self._finalizer = weakref.finalize(self, self._driver.stop)
        self._finalizer.atexit = False  # _stop_all does that, for engines already collected too
        try:
            self._driver.start()
        except BaseException:
            self._driver.stop()
            raise

    def submit(
        self,
        request: Request,
        *,
        base: Retained | None = None,
        then: Callable[[], None] | None = None,
    ) -> Handle:
        """Queues a request. ``then`` is called at its end, in the engine's thread: it must not wait
        nor raise.

        Raises InvalidRequest, ContextOverflow or MemoryBudgetExceeded at once, naming the field.
        """
        tokens, params = token_array(request.tokens), request.params()
        handle = Handle(self._driver, request.retain, self)
        handle.stream.then = then
        try:
            self._driver.submit(handle, tokens, params, None if base is None else base.id)
        except BaseException:  # Ctrl-C: its traceback may be kept, and would keep the request
            handle.discard()
            raise
        return handle

    def add_adapter(self, ids: list[int], tensors: dict[str, tuple]) -> None:
        """Takes a LoRA adapter in (csrc/model/adapter.h) and appends its id to `ids`."""
        self._driver.take(ids, "add_adapter", tensors)

    def remove_adapter(self, adapter: int) -> None:
        """No later request may name it; those under way keep it. Nothing on a closed engine."""
        self._driver.quietly("remove_adapter", adapter)

    def stats(self) -> dict[str, Any]:
        """Counters, bytes of keys and values, threads and the instruction set in use."""
        return self._driver.check().stats()

    @property
    def closed(self) -> bool:
        return self._driver.closed

    def close(self) -> None:
        """Ends all requests and the thread, and lets go of the tensors.

        Idempotent; when Ctrl-C interrupts it, the next call finishes.
        """
        self._driver.stop()
        self._finalizer.detach()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def default_threads() -> int:
    """The cores this process may use: affinity and control-group quota."""
    return _core.count_cores()["usable"]


def build_report() -> dict[str, Any]:
    """Processor, instruction sets (which is used, why the others are not), threads and build."""
    in_use = _core.isa_levels()
    levels = []
    for name, present, reason in _core.isa_report():
        state = "in use" if name == in_use[0] else "available" if present else reason
        levels.append(f"{name}: {state}")
    return {
        "processor": _core.cpu_model(),
        "instruction sets": levels,
        "threads": default_threads(),
        "cores": dict(_core.count_cores()),
        "build": {key: str(value) for key, value in _core.build_info().items()},
    }
