"""A model behind Ray Serve: the protocols of ``musespark serve``, an engine in each replica::

    from ray import serve
    from musespark.ray.serving import application

    serve.start(http_options={"host": "127.0.0.1", "port": 8000})
    serve.run(application("MODEL_FOLDER", replicas=2, threads=4))  # http://127.0.0.1:8000/v1

A request first comes to a front, which holds no model: it reads the body, refuses who may not ask,
and hands the request on to the replica that has computed most of its beginning
(:class:`PrefixRouter`, a request router of Ray Serve). The replica answers with the application of
:mod:`musespark.server`. Ray Serve starts dead replicas again; a request that one of them was
answering fails with 503, which OpenAI's and Anthropic's clients repeat by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import musespark
from musespark.errors import Error, MissingLibrary
from musespark.loading import MAX_THREADS
from musespark.options import integer
from musespark.ray import load_options
from musespark.server import Access, Limits, create_app

try:
    from ray import serve
    from ray.exceptions import RayActorError
    from ray.serve.config import RequestRouterConfig
    from ray.serve.exceptions import BackPressureError
    from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
    from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.types import Message, Receive, Scope, Send
except ImportError as error:
    raise MissingLibrary(
        f"musespark.ray.serving needs {error.name}: pip install 'musespark[ray]'"
    ) from error

from musespark.server.security import Denied, is_loopback
from musespark.server.transport import Bodies, Refused, body_of, told, value_of
from musespark.server.wire import Failure

__all__ = ["PrefixRouter", "application"]

BLOCK = 128  # characters, of a beginning; an engine shares pages of 64 tokens
_MOST_BLOCKS = 256  # of one request: what lies behind decides nothing
_REMEMBERED = 1 << 16  # blocks, of all requests
_BEGINNING = ("tools", "instructions", "system", "messages", "input", "prompt")  # as prompts begin
_SCOPE = (
    *("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "root_path"),
    *("query_string", "headers", "client", "server"),
)
_RETRY_S = 1
_ENCODER = json.JSONEncoder(ensure_ascii=False)


def application(
    source: str | None = None,
    *,
    replicas: int,
    threads: int,
    names: Sequence[str] = (),
    access: Access | None = None,
    limits: Limits | None = None,
    load: Mapping[str, Any] | None = None,
) -> serve.Application:
    """What ``ray.serve.run`` runs, at the route prefix ``/``.

    ``source``, ``load``: of :func:`musespark.load`, in each of the ``replicas``; ``threads`` of its
    engine, for which Ray reserves as many CPUs. ``names``, ``access``, ``limits``: as of
    :func:`musespark.server.create_app`; limits are each replica's, and those of bodies the front's
    too. Without a token in ``access`` clients on the machine of the HTTP proxy alone are answered,
    whatever it is bound to.

    Raises InvalidRequest.
    """
    access, limits = access or Access(), limits or Limits()
    count = integer("replicas", replicas, 1)
    threads = integer("threads", threads, 1, MAX_THREADS)
    at_once = limits.running + limits.waiting
    engines = serve.deployment(Replica).options(
        name="musespark",
        num_replicas=count,
        ray_actor_options={"num_cpus": threads},
        max_ongoing_requests=at_once,
        max_queued_requests=max(1, limits.waiting),  # Ray Serve takes no 0
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
    )
    front = serve.deployment(Front).options(
        name="musespark-front",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=count * at_once + limits.waiting + 1,
    )
    loaded = {"source": source, **load_options(load), "threads": threads}
    return front.bind(engines.bind(loaded, tuple(names), access, limits), access, limits)


@dataclass(frozen=True)
class Asked:
    """A request on its way to a replica. ``scope``: what is plain data of ASGI's. ``blocks``: of
    its beginning (:func:`blocks_of`)."""

    scope: Mapping[str, Any]
    body: bytes
    blocks: tuple[bytes, ...]


class Replica:
    """One engine and the server's application over it."""

    def __init__(
        self, load: Mapping[str, Any], names: Sequence[str], access: Access, limits: Limits
    ):
        self._model = musespark.load(**load)
        self._app = create_app(self._model, names=names, access=access, limits=limits)

    def check_health(self) -> None:
        """What Ray Serve asks now and then; it replaces a replica whose engine has failed."""
        self._model._engine.stats()

    async def respond(self, asked: Asked) -> AsyncIterator[Message]:
        """The messages of ASGI with which the application answers. Who closes this early cancels
        the request."""
        answers: asyncio.Queue[Message | None] = asyncio.Queue()
        request: list[Message] = [{"type": "http.request", "body": asked.body}]

        async def receive() -> Message:
            if request:
                return request.pop()
            return await asyncio.get_running_loop().create_future()  # until it is cancelled

        task = asyncio.ensure_future(self._app({**asked.scope}, receive, answers.put))
        task.add_done_callback(lambda _: answers.put_nowait(None))
        try:
            while (message := await answers.get()) is not None:
                yield message
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Front:
    """Where requests come in: reads them, and passes answers on."""

    def __init__(self, engines: DeploymentHandle, access: Access, limits: Limits):
        self._respond = engines.options(method_name="respond", stream=True)
        self._access, self._limits = access, limits
        self._bodies = Bodies(limits.bodies_bytes, lambda: _RETRY_S)

    async def __call__(self, request: Request) -> Response:
        """For Ray Serve."""
        shared = self._access.shared(request.headers)
        with contextlib.ExitStack() as held:
            receive = held.enter_context(self._bodies.counted(request.receive))
            try:
                asked = await self._asked(Request(request.scope, receive))
                messages = self._respond.remote(asked)
            except (Denied, Refused) as refused:
                after = getattr(refused, "retry_after", None)
                failure = Failure(refused.status, str(refused), retry_after=after)
                return _shared(told(failure, request.url.path), shared)
            except ClientDisconnect:
                return Response(status_code=499)
            return _Passed(messages, shared, held.pop_all())  # until it is answered

    async def _asked(self, request: Request) -> Asked:
        client = "" if request.client is None else request.client.host
        if self._access.token is None and not is_loopback(client):
            raise Denied(403, "without a token this machine alone is answered")
        scope = {name: request.scope[name] for name in _SCOPE if name in request.scope}
        if request.method != "POST":
            return Asked(scope, b"", ())
        self._access.check(request.headers, request.headers.getlist("host"))
        self._access.check_token(request.headers)
        body = await body_of(request, self._limits)
        return Asked(scope, body, await asyncio.to_thread(self._blocks, body))

    def _blocks(self, body: bytes) -> tuple[bytes, ...]:
        try:
            return blocks_of(value_of(body, self._limits))
        except Error:
            return ()  # the replica says what is wrong with it


class _Passed(Response):
    """An answer as it comes from a replica. ``shared``: headers of one that is ours. ``held``: what
    is let go of at its end."""

    def __init__(
        self,
        messages: DeploymentResponseGenerator[Message],
        shared: Sequence[tuple[bytes, bytes]] = (),
        held: contextlib.AbstractContextManager[Any] | None = None,
    ):
        super().__init__()
        self._messages, self._shared = messages, shared
        self._held = held or contextlib.nullcontext()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await self._pass(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        held: list[Message] = []  # the start, until something stands behind it
        begun = whole = False
        try:
            async for message in self._messages:
                held.append(message)
                if message["type"] == "http.response.body":
                    begun, whole = True, not message.get("more_body")
                    for one in held:
                        await send(one)
                    held.clear()
        except BackPressureError:
            full = Failure(429, "too many requests wait", "queue_full", _RETRY_S)
            await self._told(full, scope["path"])(scope, receive, send)
        except RayActorError:
            if begun and not whole:
                raise  # the connection ends, which no client takes for a whole answer
            if not begun:
                gone = Failure(503, "the replica ended; ask again", "unavailable", _RETRY_S)
                await self._told(gone, scope["path"])(scope, receive, send)

    def _told(self, failure: Failure, path: str) -> Response:
        return _shared(told(failure, path), self._shared)


def _shared(answer: Response, headers: Sequence[tuple[bytes, bytes]]) -> Response:
    answer.raw_headers += headers
    return answer


def blocks_of(value: Any) -> tuple[bytes, ...]:
    """A digest for each whole block of a request's beginning and all before it: two requests have
    as many in common as blocks with which both begin. ``value``: a body, of whatever protocol."""
    if not isinstance(value, Mapping):
        return ()
    parts = [value[name] for name in _BEGINNING if value.get(name)]
    text = _beginning(parts, _MOST_BLOCKS * BLOCK)
    digest, found = hashlib.blake2b(digest_size=8), []
    for begin in range(0, len(text) - BLOCK + 1, BLOCK):
        digest.update(text[begin : begin + BLOCK].encode("utf-8", "surrogatepass"))
        found.append(digest.digest())
    return tuple(found)


def _beginning(parts: Iterable[Any], most: int) -> str:
    """The first characters of values as JSON; no more of it is written."""
    pieces, length = [], 0
    for piece in itertools.chain.from_iterable(map(_ENCODER.iterencode, parts)):
        pieces.append(piece)
        length += len(piece)
        if length >= most:
            break
    return "".join(pieces)[:most]


class PrefixRouter(RequestRouter):
    """A request router of Ray Serve: to the replica that was last asked what begins alike, unless
    ``lead`` requests more wait there than elsewhere; else to the one with the fewest requests, of
    several the one that has been asked the fewest beginnings.

    Ray's own ``PrefixCacheAffinityRouter`` does alike; without vLLM or SGLang it has no public
    name to be imported by.
    """

    def initialize_state(self, lead: int = 8) -> None:
        """For Ray Serve, which gives ``request_router_kwargs``."""
        self._lead = lead
        self._asked: OrderedDict[bytes, ReplicaID] = OrderedDict()  # by block, the last used last
        self._count: Counter[ReplicaID] = Counter()  # of these blocks

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Ranks of candidates, for Ray Serve, which takes the first that has room."""
        if pending_request is None or not candidate_replicas:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # where none of them has room
        lengths = {one.replica_id: self._length(one.replica_id) for one in candidate_replicas}
        known = self._known(_blocks_in(pending_request), lengths)
        if known is None or lengths[known] - min(lengths.values()) >= self._lead:
            known = min(lengths, key=lambda one: (lengths[one], self._count[one]))
        first = [one for one in candidate_replicas if one.replica_id == known]
        return [first, candidate_replicas]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """For Ray Serve: a replica has taken a request."""
        for block in _blocks_in(pending_request):
            before = self._asked.pop(block, None)
            if before is not None:
                self._count[before] -= 1
            self._asked[block] = replica_id
            self._count[replica_id] += 1
        while len(self._asked) > _REMEMBERED:
            self._count[self._asked.popitem(last=False)[1]] -= 1

    def _length(self, replica_id: ReplicaID) -> int:
        """Requests there, as far as is known."""
        return self.replica_queue_len_cache.get(replica_id) or 0

    def _known(self, blocks: Sequence[bytes], candidates: Iterable[ReplicaID]) -> ReplicaID | None:
        """Who was asked the longest beginning."""
        asked = (self._asked.get(block) for block in reversed(blocks))
        return next((one for one in asked if one in candidates), None)


def _blocks_in(pending: PendingRequest) -> tuple[bytes, ...]:
    return next((one.blocks for one in pending.args if isinstance(one, Asked)), ())
