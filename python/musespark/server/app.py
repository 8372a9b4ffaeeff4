"""The server as an ASGI application: paths, errors, and who may ask."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import musespark
from musespark.batches import encoder_of
from musespark.errors import (
    Cancelled,
    CorruptFile,
    Error,
    InvalidRequest,
    MemoryBudgetExceeded,
    MissingLibrary,
    UnsupportedModel,
)
from musespark.prompts import writes_effort
from musespark.server import (
    anthropic,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_responses,
)
from musespark.server.limits import Limits
from musespark.server.metrics import Meter
from musespark.server.openapi import Operation, document
from musespark.server.page_files import page_routes
from musespark.server.refusing import renaming
from musespark.server.security import Access, Denied, client_of, presented
from musespark.server.transport import (
    ENDS,
    Bodies,
    EventStream,
    Refused,
    as_json,
    body_of,
    large_json,
    told,
    until_gone,
    value_of,
    values_of,
)
from musespark.server.turns import QueueFull
from musespark.server.wire import Failure, Served, UnknownModel, field_of
from musespark.server.work import Work
from musespark.thinking.effort import ALL_EFFORTS

if TYPE_CHECKING:
    from musespark.model import Model

_LOG = logging.getLogger("musespark.server")
_EXCHANGES: dict[str, Any] = {
    openai_chat.PATH: openai_chat.ChatCompletions,
    openai_completions.PATH: openai_completions.Completions,
    openai_responses.PATH: openai_responses.Responses,
    anthropic.PATH: anthropic.Messages,
}
_PAGE = page_routes()
_PATHS = (
    *_EXCHANGES,
    *(anthropic.COUNT_PATH, openai_embeddings.PATH),
    *("/v1/models", "/health", "/metrics", "/openapi.json"),
    *_PAGE,
)
_OPEN = frozenset(["/health", *_PAGE])  # answered without the token
_GONE = 499  # nobody reads it; what servers log of a client that went away
_NOSNIFF = (b"x-content-type-options", b"nosniff")
_NO_STORE = (b"cache-control", b"no-store")  # where an answer says nothing else


def create_app(
    model: Model,
    *,
    names: Sequence[str] = (),
    access: Access | None = None,
    limits: Limits | None = None,
) -> ASGIApp:
    """An ASGI application that answers for a loaded model, which stays the caller's to close.

    ``names``: what clients may call the model, the first is how it calls itself; the name of its
    source where there are none. ``access``: loopback without a token where None.
    """
    return Server(model, names, access or Access(), limits or Limits()).app


class Server:
    """What the routes share. ``app``: the application."""

    def __init__(self, model: Model, names: Sequence[str], access: Access, limits: Limits):
        self.model, self.limits = model, limits
        self.served = Served(tuple(names) or (model.info.name,), model.tokenizer)
        self.meter = Meter(model)
        self.work = Work(model, limits, self.meter)
        posts: dict[str, Callable[[Request], Any]] = {
            path: functools.partial(self._exchange, exchange)
            for path, exchange in _EXCHANGES.items()
        }
        posts |= {anthropic.COUNT_PATH: self._count, openai_embeddings.PATH: self._embed}
        gets = {
            "/v1/models": self._models,
            "/v1/models/{name:path}": self._one_model,
            "/health": self._health,
            "/metrics": self._metrics,
            "/openapi.json": self._openapi,
        }
        named = [f"{method} {', '.join(acts)}" for method, acts in (("POST", posts), ("GET", gets))]
        self._there = f"{' and '.join(named)}; / is a page"
        routes = [
            Route(path, self._answering(path, act), methods=[method])
            for method, acts in (("POST", posts), ("GET", gets | _PAGE))
            for path, act in acts.items()
        ]
        handlers = {HTTPException: self._not_found}
        inner = Starlette(routes=routes, exception_handlers=handlers)
        inner.router.redirect_slashes = False  # a redirect would repeat the Host of the request
        bodies = Bodies(limits.bodies_bytes, self.work.retry_after)
        self.app = _Guard(inner, access, self.meter, bodies, self.failure_of)

    # ---- protocols ----------------------------------------------------------------------------

    def _answering(self, path: str, act: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            try:
                return await act(request)
            except ClientDisconnect:
                return Response(status_code=_GONE)
            except Exception as error:
                return told(self.failure_of(error), path)

        return answer

    async def _exchange(self, kind: Any, request: Request) -> Response:
        exchange = await self._read_job(request, kind)
        with renaming(kind.fields):
            return await self._exchanged(exchange, request)

    async def _exchanged(self, exchange: Any, request: Request) -> Response:
        run = self.work.begin(_client(request), exchange.job, exchange.streams)
        streams = False
        try:
            if not exchange.streams:
                ended = await until_gone(request.receive, run.answers())
                return await large_json(lambda: exchange.answer(ended), values_of(ended))
            # What is known until then has a status of its own; what comes later is an event.
            await until_gone(request.receive, run.begun(self.limits.quiet_seconds))
            response = EventStream(exchange, run, self.limits, self.failure_of)
            streams = True
            return response
        finally:
            if not streams:  # which closes it itself
                await run.close()

    async def _count(self, request: Request) -> Response:
        counted = await self._read_job(request, anthropic.CountTokens)
        with self.work.turn(_client(request)) as ticket:
            await until_gone(request.receive, ticket.wait())
            return as_json(counted.answer(await self.work.count(counted.job)))

    async def _embed(self, request: Request) -> Response:
        def read(value: Any) -> openai_embeddings.Embeddings:
            exchange = openai_embeddings.Embeddings(value, self.served, self.limits)
            encoder_of(self.model)  # before anybody waits
            return exchange

        given, stop = await self._read(request, read), threading.Event()
        with self.work.turn(_client(request)) as ticket:
            await until_gone(request.receive, ticket.wait())
            embedding = self.work.threaded(given.rows, self.model, stop.is_set, stop=stop.set)
            rows, tokens = await until_gone(request.receive, embedding)
        return await large_json(lambda: given.answer(rows, tokens), rows.size)

    async def _read_job(self, request: Request, kind: Any) -> Any:
        def read(value: Any) -> Any:
            exchange = kind(value, self.served)
            with renaming(kind.fields):
                self.limits.check(exchange.job)
            return exchange

        return await self._read(request, read)

    async def _read(self, request: Request, read: Callable[[Any], Any]) -> Any:
        """A body, read and checked in a thread: it may be large."""
        data = await body_of(request, self.limits)
        return await asyncio.to_thread(lambda: read(value_of(data, self.limits)))

    # ---- the rest -----------------------------------------------------------------------------

    async def _models(self, request: Request) -> Response:
        names = self.served.names
        pages = {"has_more": False, "first_id": names[0], "last_id": names[-1]}  # Anthropic's
        return as_json({"object": "list", "data": [self._described(n) for n in names], **pages})

    async def _one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.served.check_name(name)
        return as_json(self._described(name))

    def _described(self, name: str) -> dict[str, Any]:
        info = self.model.info
        about = {"id": name, "object": "model", "created": self.served.created}
        about |= {"owned_by": "musespark", "family": info.family, "context": info.context}
        began = datetime.fromtimestamp(self.served.created, timezone.utc).isoformat()
        # As Anthropic's clients read a model.
        about |= {"type": "model", "display_name": name, "created_at": began}
        sees = self._sees()
        about |= {"images": sees, "most_images": self.limits.images if sees else 0}
        return about | {"reasoning_efforts": self._efforts()}

    def _sees(self) -> bool:
        return self.model._requests.eyes is not None

    def _efforts(self) -> list[str]:
        """What ``reasoning_effort`` may be: nothing for a model that does not think."""
        template = self.model.template
        if template is None:
            return []
        marked = self.model._requests.thoughts.marks is not None
        return list(ALL_EFFORTS) if marked or writes_effort(template) else []

    async def _health(self, request: Request) -> Response:
        try:
            self.model._engine.check()
        except Error as error:
            why = str(error).partition(":")[0]  # what failed in it is told in Python alone
            return as_json({"status": why}, 503)
        return as_json({"status": "ok"})

    async def _metrics(self, request: Request) -> Response:
        text = await asyncio.to_thread(self.meter.text)
        return Response(text, headers={"content-type": self.meter.content_type})

    async def _openapi(self, request: Request) -> Response:
        operations = [Operation(path, kind.body_type) for path, kind in _EXCHANGES.items()]
        operations += [
            Operation(anthropic.COUNT_PATH, anthropic.CountBody),
            Operation(openai_embeddings.PATH, openai_embeddings.EmbeddingBody),
        ]
        return as_json(document(operations, self.served.names, musespark.__version__))

    async def _not_found(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path, headers = request.scope["path"], dict(error.headers or {})
        said = "refused"
        if error.status_code == 404:
            said = f"there is nothing at {path!r:.80}; there are {self._there}"
        elif error.status_code == 405:
            said = f"{path}: got {request.method:.20}, allowed is {headers['Allow']}"
        return told(Failure(error.status_code, said), path, **headers)

    # ---- errors -------------------------------------------------------------------------------

    def failure_of(self, error: Exception) -> Failure:
        """What a client is told of an error. What is nobody's fault but ours it is not told."""
        failure = self._failure_of(error)
        if not isinstance(error, InvalidRequest):
            return failure
        return replace(failure, param=field_of(failure.message))

    def _failure_of(self, error: Exception) -> Failure:
        said = self._without_paths(str(error))
        if isinstance(error, QueueFull):
            return Failure(429, said, "queue_full", error.retry_after)
        if isinstance(error, Refused):
            return Failure(error.status, said, retry_after=error.retry_after)
        if isinstance(error, Denied):
            return Failure(error.status, said)
        if isinstance(error, UnknownModel):
            return Failure(404, said, "model_not_found")
        if isinstance(error, (Cancelled, MemoryBudgetExceeded)):
            return Failure(503, said, "unavailable", self.work.retry_after())
        if isinstance(error, MissingLibrary):
            return Failure(501, said, "not_installed")
        if isinstance(error, (InvalidRequest, UnsupportedModel, CorruptFile)):
            return Failure(400, said, _code(error))
        _LOG.error("a request failed", exc_info=error)
        message = "the engine failed" if isinstance(error, Error) else "an internal error"
        return Failure(500, message)

    def _without_paths(self, text: str) -> str:
        """A message without what it may say of this machine's folders."""
        template = self.model.template
        for path in (self.model.info.source, "" if template is None else template.origin):
            if Path(path).is_absolute():
                text = text.replace(path, Path(path).name)
        return text


def _code(error: Exception) -> str:
    if isinstance(error, musespark.ContextOverflow):
        return "context_length_exceeded"
    return "unsupported" if isinstance(error, UnsupportedModel) else "invalid_request"


def _client(request: Request) -> str:
    address = "" if request.client is None else request.client.host
    return client_of(address, presented(request.headers))


class _Guard:
    """Before every route: whether one may ask, and how much. Behind every answer: headers, and that
    it counts. A request whose task is cancelled is told that the server ends, for nobody else
    cancels one that runs; the cancellation then goes on to who asked for it."""

    def __init__(
        self,
        inner: ASGIApp,
        access: Access,
        meter: Meter,
        bodies: Bodies,
        failure_of: Callable[[Exception], Failure],
    ):
        self._inner, self._access, self._meter, self._bodies = inner, access, meter, bodies
        self._failure_of = failure_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"no {scope['type']} is served here")
        path = scope["path"]
        request, label, started = Request(scope), path if path in _PATHS else "other", False

        async def counted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._meter.answered(label, message["status"])
                headers = [*message.get("headers", ()), _NOSNIFF]
                headers += self._access.shared(request.headers)
                if all(name != _NO_STORE[0] for name, _ in headers):
                    headers.append(_NO_STORE)
                message["headers"] = headers
            await send(message)

        try:
            early = self._early(request, path)
        except Denied as denied:
            early = told(self._failure_of(denied), path)
        if early is not None:
            await early(scope, receive, counted)
            return
        with self._bodies.counted(receive) as bounded:
            try:
                await self._inner(scope, bounded, counted)
            except asyncio.CancelledError:
                if not started:  # a stream tells it itself
                    await told(self._failure_of(ENDS), path)(scope, receive, counted)
                raise

    def _early(self, request: Request, path: str) -> Response | None:
        """What answers a browser that asks before a page does; :class:`Denied` for who may not."""
        self._access.check(request.headers, request.headers.getlist("host"))
        may = self._access.preflight(request.method, request.headers)
        if may is not None:
            return Response(status_code=204, headers=may)
        if path not in _OPEN:
            self._access.check_token(request.headers)
        return None
