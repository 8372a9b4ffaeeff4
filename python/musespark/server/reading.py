"""Conversations of jobs: pictures decoded and prompts read once for all answers to one, in threads;
no more decoded pixels under way at once than memory is for."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from musespark.errors import InvalidRequest, UnsupportedModel
from musespark.options import CONTEMPLATING
from musespark.parts import media_parts, with_media
from musespark.server.limits import Limits
from musespark.server.wire import Ask
from musespark.vision.pixels import Limits as PictureLimits
from musespark.vision.pixels import open_named

if TYPE_CHECKING:
    from musespark.model import Model
    from musespark.requests import PreparedChat

T = TypeVar("T")

# Pictures of so many conversations are decoded at the same time, beside what is admitted.
_DECODERS = 2


class Pixels:
    """Decoded pixels under way: at most ``most``, first come, first served. For one event loop."""

    def __init__(self, most: int):
        self.free = self._most = most
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def held(self, count: int) -> AsyncIterator[None]:
        """Waits until there is room for so many, which are held until the context ends."""
        await self._take(count)
        try:
            yield
        finally:
            self._give(count)

    async def _take(self, count: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give(count)  # it came just before
            else:
                self._waiting.remove((count, turn))
                self._admit()
            raise

    def _give(self, count: int) -> None:
        self.free += count
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.free:
            count, turn = self._waiting.popleft()
            self.free -= count
            if turn.cancelled():
                self.free += count
            else:
                turn.set_result(None)


async def in_thread(
    call: Callable[..., T],
    *args: Any,
    stop: Callable[[], object] = lambda: None,
    pool: Executor | None = None,
) -> T:
    """What a call gives that runs in a thread, of the loop's own ones where there is no ``pool``.
    Cancelled, it waits for the thread first, which ``stop`` may end early: who asks for much and
    goes away holds its turn as long as it holds the thread."""
    thread = asyncio.get_running_loop().run_in_executor(pool, call, *args)
    return await ended(thread, stop)


async def ended(work: asyncio.Future[T], stop: Callable[[], object]) -> T:
    """What ``work`` gives. Cancelled, however often, it calls ``stop`` and waits for the work."""
    cancelled = None
    while not work.done():
        try:
            await asyncio.wait({work})  # which does not cancel it, and tells nobody of its errors
        except asyncio.CancelledError as error:
            cancelled = error
            stop()
    if cancelled is None:
        return work.result()
    if not work.cancelled():
        work.exception()  # else it is logged, with what the client sent
    raise cancelled


@dataclass(frozen=True)
class Conversation:
    """A prompt of a job with its pictures decoded; ``chat``: as one turn reads it, None for what
    agents answer."""

    messages: Any
    chat: PreparedChat | None


class Reader:
    """Reads conversations for one model."""

    def __init__(self, model: Model, limits: Limits, pool: Executor):
        self._model, self._limits, self._pool = model, limits, pool
        self._pictures = PictureLimits(
            file_bytes=limits.body_bytes, pixels=limits.image_pixels, count=limits.images
        )
        self._pixels, self._decoders = Pixels(limits.decoded_pixels), asyncio.Semaphore(_DECODERS)

    async def count(self, ask: Ask) -> int:
        """Tokens of a chat's prompt."""
        async with self.read(ask) as conversation:
            chat = conversation.chat or await self._prepared(ask, conversation)
            return len(chat.ids)

    @contextlib.asynccontextmanager
    async def read(self, ask: Ask) -> AsyncIterator[Conversation]:
        """The conversation of a chat; its pixels count until the context ends."""
        async with contextlib.AsyncExitStack() as held:
            messages = ask.prompt
            if next(media_parts(messages), None) is not None:
                async with self._decoders:
                    messages, pixels = await in_thread(
                        self._with_pictures, messages, pool=self._pool
                    )
                    await held.enter_async_context(self._pixels.held(pixels))
            found = Conversation(messages, None)
            if not contemplates(ask):
                found = Conversation(messages, await self._prepared(ask, found))
            yield found

    async def _prepared(self, ask: Ask, conversation: Conversation) -> PreparedChat:
        given = (conversation.messages, ask.options)
        return await in_thread(self._model._prepared_chat, *given, pool=self._pool)

    def _with_pictures(self, messages: Any) -> tuple[Any, int]:
        """The messages with images decoded, within the limits of a request, and their pixels."""
        most = left = self._limits.pixels

        def decode(part: Mapping[str, Any], where: str) -> Mapping[str, Any]:
            nonlocal left
            if self._model._requests.eyes is None:
                raise UnsupportedModel("images: this model reads text alone")
            limits = replace(self._pictures, pixels=min(self._pictures.pixels, max(1, left)))
            picture = open_named(part["image"], where, limits=limits)
            left -= picture.pixels.size // 3
            if left < 0:
                raise InvalidRequest(f"{where}: more than {most} pixels together")
            return {**part, "image": picture}

        found = with_media(messages, decode)
        return found, most - left


def contemplates(ask: Ask) -> bool:
    """Whether several agents answer it."""
    return ask.is_chat and ask.options.get("mode") == CONTEMPLATING
