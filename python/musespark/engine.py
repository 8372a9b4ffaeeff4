"""The one Python face of the C++ engine: submit requests, iterate over what they produce.

    engine = Engine(spec, tensors, threads=2, context=4096, kv="kv8", memory_budget=2**30)
    handle = engine.submit(Request(tokens=[1, 2, 3], max_new_tokens=16))
    for event in handle:            # Tokens, LogitsRows, and at last Finished
        ...

Two daemon threads per engine drive it. Any number of threads and event loops may submit, into one
batch. Waiting can be interrupted (Ctrl-C); an iteration that is left early cancels its request.
"""

from __future__ import annotations

import os
import queue
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from musespark import _core
from musespark.driver import ALIVE_S, Driver, EventStream
from musespark.errors import Error
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

__all__ = ["Engine", "Event", "Finished", "Handle", "LogitsRows", "Request", "Result", "Tokens"]

TokenClasses = _core.TokenClasses
STOPPER_FEATURES: tuple[str, ...] = _core.stopper_features
ARITHMETIC_VERSION: int = _core.arithmetic_version


class Retained:
    """Keys and values kept after a request: pass as ``base`` to reuse the common prefix (with the
    same adapter). Released by :meth:`release`, or when collected."""

    def __init__(self, driver: Driver, ids: list[int]) -> None:
        self._driver = driver
        self._ids = ids  # empty until the core has given one out
        self.released = False

    @property
    def id(self) -> int:
        return self._ids[0]

    @property
    def driver(self) -> Driver:
        """Of the engine that has it."""
        return self._driver

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

    def __init__(self, driver: Driver, retain: bool, keep: object) -> None:
        self._driver = driver
        self._keep = keep  # the engine lives as long as someone waits for it
        self.stream = EventStream()
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
                event = self.next_event()
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
                event = await self.anext_event()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self.cancel()

    @property
    def has_event(self) -> bool:
        """Whether :meth:`next_event` would not wait."""
        return not self.stream.events.empty()

    def next_event(self) -> Event | Exception:
        """Waits for the next event, or for the error that the request ended with: for who reads
        several requests at once. Nothing is cancelled where it is interrupted."""
        while True:
            if error := self.stream.exhausted():
                return error
            try:
                return self.stream.events.get(timeout=ALIVE_S)
            except queue.Empty:
                # The driver ends every stream when it stops; only a fork leaves one without it.
                if os.getpid() != self._driver.pid:
                    self._driver.check()
                *_, telling = self._driver.threads
                if not telling.is_alive() and self.stream.events.empty():
                    return Error("the engine's threads are gone")

    async def anext_event(self) -> Event | Exception:
        """The same for an event loop."""
        return await self.stream.aget()

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
    with; ``prefix_cache_bytes``: of it at most, beside what requests use (None: what is free of the
    budget). ``drafter``: spec and tensors of a block drafter made for the model, or of a model with
    the same tokens; its keys and values come beside the budget.
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
        prefix_cache_bytes: int | None = None,
        drafter: tuple[Any, Mapping[str, tuple]] | None = None,
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
            prefix_cache_bytes=prefix_cache_bytes,
            drafter=None if drafter is None else (spec_dict(drafter[0]), dict(drafter[1])),
        )
        self.context = context
        self._driver = Driver(core)
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
        """Queues a request. ``then`` is called at its end, in a thread of the engine: it must not
        wait nor raise.

        Raises InvalidRequest, ContextOverflow or MemoryBudgetExceeded at once, naming the field.
        """
        if base is not None and not self.has(base):
            base = None  # of weights that were replaced: nothing of it may be used
        tokens, params = token_array(request.tokens), request.params()
        handle = Handle(self._driver, request.retain, self)
        handle.stream.then, handle.stream.given = then, request.given
        try:
            self._driver.submit(handle, tokens, params, None if base is None else base.id)
        except BaseException:  # Ctrl-C: its traceback may be kept, and would keep the request
            handle.discard()
            raise
        return handle

    def add_adapter(
        self, ids: list[int], tensors: dict[str, tuple], *, over: int | None = None
    ) -> None:
        """Takes an adapter in (csrc/model/adapter.h), laid over the one with the id `over` or by
        itself, and appends its id to `ids`."""
        self._driver.take(ids, "add_adapter", tensors, over=over)

    def remove_adapter(self, adapter: int) -> None:
        """No later request may name it; those under way keep it. Nothing on a closed engine."""
        self._driver.quietly("remove_adapter", adapter)

    def check(self) -> None:
        """Error, saying why, where it can no longer be used. Waits for nothing."""
        self._driver.check()

    def stats(self) -> dict[str, Any]:
        """Counters, bytes of keys and values, threads and the instruction set in use."""
        return self._driver.check().stats()

    @property
    def closed(self) -> bool:
        return self._driver.closed

    def has(self, kept: Retained) -> bool:
        """Whether ``kept`` is this engine's."""
        return kept.driver is self._driver

    def close(self) -> None:
        """Ends all requests and the threads, and lets go of the tensors.

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
