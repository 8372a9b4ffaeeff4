"""The one Python face of the C++ engine: submit requests, iterate over what they produce.

    engine = Engine(spec, tensors, threads=2, context=4096, kv="kv8", memory_budget=2**30)
    handle = engine.submit(Request(tokens=[1, 2, 3], max_new_tokens=16))
    for event in handle:            # Tokens, LogitsRows, and at last Finished
        ...

One daemon thread per engine drives it; it sleeps when there is nothing to do. Any number of threads
and event loops may submit: what they submit runs as one batch. Waiting can be interrupted (Ctrl-C),
and an iteration that is left early cancels its request.
"""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import os
import queue
import threading
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from musespark import _core
from musespark.errors import Cancelled, Error, InvalidRequest, MemoryBudgetExceeded

# How long the core decodes before events are handed out: short enough to look immediate.
_SLICE_S = 0.02
# How often a waiting caller looks whether the driver is alive.
_ALIVE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """Token ids and how to continue them; the meaning of each field is in csrc/decode/sampler.h.

    ``logits``: ``none``, ``last``, ``all`` or ``score`` (the log-probability of each token but the
    first); anything but ``none`` samples nothing. ``deadline``: seconds from submission.
    ``retain``: keep keys and values after the end, see :attr:`Handle.retained`.
    """

    tokens: Sequence[int] | np.ndarray
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stream: int = 0
    stop_ids: Sequence[int] = ()
    logit_bias: Mapping[int, float] | None = None
    allowed_ids: Sequence[int] | None = None
    logprobs: int = 0
    logits: str = "none"
    deadline: float | None = None
    retain: bool = False

    def params(self) -> dict[str, Any]:
        """The core's parameter dict."""
        params = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del params["tokens"]
        params["deadline_s"] = params.pop("deadline")
        if self.logit_bias is not None:
            params["logit_bias"] = dict(self.logit_bias)
        return params


class Tokens(NamedTuple):
    """Tokens since the last event; a stop id is the last one where it ended the sequence."""

    ids: list[int]
    logprobs: list[float] | None  # of each, under the model's own distribution
    top: list[list[tuple[int, float]]] | None  # the most likely of each, best first


class LogitsRows(NamedTuple):
    """Rows of logits float32 [n, vocab] (``score``: [n]) for positions ``first`` and after."""

    first: int
    values: np.ndarray


class Finished(NamedTuple):
    """How the request ended: ``stop``, ``length``, ``cancelled`` or ``deadline``."""

    reason: str
    stats: dict[str, Any]


Event = Tokens | LogitsRows | Finished


@dataclass(frozen=True)
class Result:
    """Everything a request produced."""

    tokens: list[int]
    logprobs: list[float] | None
    top: list[list[tuple[int, float]]] | None
    logits: np.ndarray | None
    reason: str
    stats: dict[str, Any]


def _token_array(tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    array = np.asarray(tokens)
    if array.ndim != 1:
        raise InvalidRequest(f"tokens: got {array.ndim} dimensions, allowed is 1")
    if array.size and array.dtype.kind not in "iu":
        raise InvalidRequest(f"tokens: got {array.dtype} values, allowed are integers")
    limits = np.iinfo(np.int32)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        worst = array.max() if array.max() > limits.max else array.min()
        raise InvalidRequest(f"tokens: got {worst}, allowed is a token id of the vocabulary")
    return np.ascontiguousarray(array, np.int32)


def _error_of(kind: str, message: str) -> Error:
    return MemoryBudgetExceeded(message) if kind == "memory" else Error(message)


class _Stream:
    """Events on their way from the driver to whoever iterates. Puts never block or lock."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event | Exception] = queue.SimpleQueue()
        self.ended = False  # set by the driver after it has put the last event
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def put(self, event: Event | Exception) -> None:
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
        _running.add(self)
        self.thread = threading.Thread(target=self._drive, name="musespark-engine", daemon=True)
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

    def submit(self, tokens: np.ndarray, params: dict[str, Any], base: int | None) -> tuple:
        self.check()
        stream = _Stream()
        with self._lock:
            core = self.check()
            request = core.submit(tokens, params=params, base=base)
            self._streams[request] = stream
        self._wake.put(None)
        return request, stream

    def ask(self, method: str, request: int) -> Any:
        """Calls a method of the core that gives the driver something to do."""
        result = getattr(self.check(), method)(request)
        self._wake.put(None)
        return result

    def quietly(self, method: str, request: int) -> None:
        """The same for clean-up: nothing to do once the engine is gone."""
        core = self.core
        if core is None or self.closed or self.failure is not None or os.getpid() != self.pid:
            return
        getattr(core, method)(request)
        self._wake.put(None)

    def _drive(self) -> None:
        core = self.core
        assert core is not None
        try:
            while not self.closed:
                events = core.run_until(_SLICE_S)
                if events:
                    self._deliver(core, events)
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

    def _deliver(self, core: _core.Engine, events: list[tuple]) -> None:
        for kind, request, *rest in events:
            with self._lock:  # a submit that is still registering its stream holds it
                stream = self._streams.get(request)
                if kind == "finished":
                    self._streams.pop(request, None)
            if stream is None:  # its submit was interrupted before anyone could know of it
                core.cancel(request)
            elif kind == "tokens":
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
                stream.put(Cancelled("the model was closed while this request ran"))
            else:
                error = Error(f"the engine failed: {self.failure}")
                error.__cause__ = self.failure
                stream.put(error)

    def stop(self) -> None:
        """Ends the thread within a layer; every running request with it. Idempotent."""
        if os.getpid() != self.pid:
            return
        self.closed = True
        core = self.core
        if core is not None:
            core.cancel_all()
        del core
        self._wake.put(None)
        if threading.current_thread() is not self.thread:  # a finalizer may run there
            self.thread.join()


_running: set[_Driver] = set()


@atexit.register
def _stop_all() -> None:
    """A thread that comes back from the core into a dying interpreter would crash the process."""
    for driver in list(_running):
        driver.stop()


class Retained:
    """Keys and values kept after a request: pass as ``base`` to reuse the common prefix.

    Released by :meth:`release`, or when collected.
    """

    def __init__(self, driver: _Driver, request: int) -> None:
        self._driver = driver
        self.id = request
        self._released = False

    def fork(self) -> Retained:
        """A twin that shares all pages until written to; only after the request has ended."""
        return Retained(self._driver, self._driver.ask("fork", self.id))

    def release(self) -> None:
        """Gives the pages back. Idempotent."""
        if not self._released:
            self._released = True
            self._driver.quietly("release", self.id)

    def __del__(self) -> None:
        if not getattr(self, "_released", True):
            self.release()


class Handle:
    """A submitted request. Iterate (``for`` or ``async for``) once; or take :meth:`result`.

    The last event is :class:`Finished`. A request that failed raises its error instead.
    """

    def __init__(
        self, driver: _Driver, request: int, stream: _Stream, retain: bool, keep: object
    ) -> None:
        self._driver = driver
        self._stream = stream
        self._keep = keep  # the engine lives as long as someone waits for it
        self.id = request
        self.retained = Retained(driver, request) if retain else None

    def cancel(self) -> None:
        """Ends the request within one layer; its tokens so far stay. No effect after its end."""
        if not self._stream.ended:
            self._driver.quietly("cancel", self.id)

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
                event = await self._stream.aget()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self.cancel()

    def _next(self) -> Event | Exception:
        while True:
            if error := self._stream.exhausted():
                return error
            try:
                return self._stream.events.get(timeout=_ALIVE_S)
            except queue.Empty:
                # The driver ends every stream when it stops; only a fork leaves one without it.
                if os.getpid() != self._driver.pid:
                    self._driver.check()
                if not self._driver.thread.is_alive() and self._stream.events.empty():
                    return Error("the engine's thread is gone")

    def result(self) -> Result:
        """Waits for the end and returns everything."""
        return _collect(list(self))

    async def aresult(self) -> Result:
        """The same for an event loop."""
        return _collect([event async for event in self])

    def __del__(self) -> None:
        if hasattr(self, "_keep"):
            self.cancel()


def _collect(events: list[Event]) -> Result:
    finished = events[-1]
    assert isinstance(finished, Finished)
    parts = [e for e in events if isinstance(e, Tokens)]
    rows = [e.values for e in events if isinstance(e, LogitsRows)]
    with_logprobs = bool(parts) and parts[0].logprobs is not None
    return Result(
        tokens=[t for p in parts for t in p.ids],
        logprobs=[x for p in parts for x in p.logprobs or ()] if with_logprobs else None,
        top=[x for p in parts for x in p.top or ()] if with_logprobs else None,
        logits=np.concatenate(rows) if rows else None,
        reason=finished.reason,
        stats=finished.stats,
    )


class Engine:
    """One model's engine. Close it, or let it be collected; at exit it ends by itself.

    ``spec``: a ``families.spec.ModelSpec`` or its dict. ``tensors``: name -> (format, rows, cols,
    buffer). ``context``: tokens a sequence may have. ``kv``: ``f32`` or ``kv8``. ``memory_budget``:
    bytes of keys and values.
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
        prefill_chunk: int = 512,
        max_batch: int = 64,
    ) -> None:
        if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
            spec = dataclasses.asdict(spec)
        core = _core.Engine(
            spec,
            dict(tensors),
            threads=threads,
            context=context,
            kv=kv,
            memory_budget=memory_budget,
            prefill_chunk=prefill_chunk,
            max_batch=max_batch,
        )
        self.context = context
        self._driver = _Driver(core)
        self._finalizer = weakref.finalize(self, self._driver.stop)
        self._finalizer.atexit = False  # _stop_all does that, for engines already collected too

    def submit(self, request: Request, *, base: Retained | None = None) -> Handle:
        """Queues a request.

        Raises InvalidRequest, ContextOverflow or MemoryBudgetExceeded at once, naming the field.
        """
        tokens = _token_array(request.tokens)
        number, stream = self._driver.submit(
            tokens, request.params(), None if base is None else base.id
        )
        return Handle(self._driver, number, stream, request.retain, self)

    def stats(self) -> dict[str, Any]:
        """Counters, bytes of keys and values, threads and the instruction set in use."""
        return self._driver.check().stats()

    @property
    def closed(self) -> bool:
        return self._driver.closed

    def close(self) -> None:
        """Ends all requests and the thread, and lets go of the tensors. Idempotent."""
        self._finalizer()

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
