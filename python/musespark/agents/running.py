"""Calls of tools, made: at once, or on an event loop, where several coroutines run together."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from musespark.agents.tools import Content, Tool, UnfinishedError, Written, written
from musespark.errors import InvalidRequest

if TYPE_CHECKING:
    import asyncio

_NO_TEXT = Written("")
_GRACE = 1.0  # seconds that a coroutine has to end itself once it is cancelled


@dataclass(frozen=True)
class Run:
    """Calls that may run together. ``until``: when coroutines and generators are ended, on the
    monotonic clock; ``most``: characters after which no more of a generator is read; ``images``:
    of a :class:`~musespark.agents.telling.Room`; None: they are not opened here."""

    calls: tuple[tuple[Tool, Mapping[str, Any]], ...]
    until: float | None = None
    most: int | None = None
    images: Callable[[Sequence[Mapping[str, Any]]], int] | None = None


@dataclass(frozen=True)
class Ran:
    """What became of a call: the tool's value, its text and the tokens of its images, or the error
    that it raised, or how far it had come when the time was over, and the seconds that it took."""

    value: Any = None
    text: Written = _NO_TEXT
    error: BaseException | None = None
    late: str = ""
    seconds: float = 0.0
    images: int = 0


def run_all(run: Run) -> list[Ran]:
    """One after the other. InvalidRequest for a value that only an event loop could wait for."""
    return [_ran(run, *call) for call in run.calls]


def _ran(run: Run, tool: Tool, arguments: Mapping[str, Any]) -> Ran:
    began = time.perf_counter()
    try:
        value = tool(arguments)
    except Exception as error:  # the function's: the model is told
        return Ran(error=error, seconds=time.perf_counter() - began)
    _refuse_awaitable(value, tool)
    return _with_text(run, value, began)


def _with_text(run: Run, value: Any, began: float) -> Ran:
    """What became of a call that gave a value, of which a generator runs only now, and images are
    opened."""
    try:
        text = written(value, run.most, run.until)
        counts = run.images is not None and isinstance(value, Content)
        images = run.images(value.parts) if counts else 0
    except UnfinishedError:
        return Ran(late="not finished", seconds=time.perf_counter() - began)
    except Exception as error:  # a generator's, of a value that is no JSON, of a broken image
        return Ran(error=error, seconds=time.perf_counter() - began)
    return Ran(value, text, seconds=time.perf_counter() - began, images=images)


def _refuse_awaitable(value: Any, tool: Tool) -> None:
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()  # else Python warns that nobody awaited it
        raise InvalidRequest(
            f"tools: {tool.name} gave a {type(value).__name__}, allowed of act() is a value; use "
            "aact(), which awaits it, or a plain function"
        )


async def arun_all(run: Run) -> list[Ran]:
    """Coroutines together, in the order of the calls; functions that are none one after the other,
    in a thread, for they need not be made to run beside each other."""
    import asyncio  # here: it takes longer than mapping the weights

    turn = asyncio.Lock()
    return await asyncio.gather(*(_aran(run, *call, turn) for call in run.calls))


async def _aran(run: Run, tool: Tool, arguments: Mapping[str, Any], turn: asyncio.Lock) -> Ran:
    import asyncio

    began, until = time.perf_counter(), run.until
    try:
        if tool.is_async:
            value, late = await _within(tool(arguments), until)
        else:
            async with turn:
                began = time.perf_counter()
                if until is not None and time.monotonic() >= until:
                    return Ran(late="not run")
                value = await asyncio.to_thread(_value_or_ran, run, tool, arguments)
                if isinstance(value, Ran):
                    return value
                late = ""
            if inspect.isawaitable(value):
                value, late = await _within(value, until)
    except Exception as error:  # the function's: the model is told
        return Ran(error=error, seconds=time.perf_counter() - began)
    if isinstance(value, asyncio.CancelledError):  # of something in it, not of who waits for it
        return Ran(error=value, seconds=time.perf_counter() - began)
    if late:
        return Ran(late=late, seconds=time.perf_counter() - began)
    if isinstance(value, Content):  # whose images take long to open
        return await asyncio.to_thread(_with_text, run, value, began)
    return _with_text(run, value, began)


def _value_or_ran(run: Run, tool: Tool, arguments: Mapping[str, Any]) -> Any:
    """What a function gives where that is to be awaited, else what became of its call: its text is
    made in the thread too."""
    began, value = time.perf_counter(), tool(arguments)
    return value if inspect.isawaitable(value) else _with_text(run, value, began)


async def _within(given: Awaitable[Any], until: float | None) -> tuple[Any, str]:
    """What an awaitable gives, a CancelledError where it was cancelled within, and "not finished"
    where it was ended because the time was over. It does not outlive who waits for it, unless it
    will not be cancelled."""
    import asyncio

    task = asyncio.ensure_future(given)
    try:
        left = None if until is None else max(0.0, until - time.monotonic())
        await asyncio.wait([task], timeout=left)
        late = not task.done()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_GRACE)
    if late:
        return None, "not finished"
    return (asyncio.CancelledError() if task.cancelled() else task.result()), ""
