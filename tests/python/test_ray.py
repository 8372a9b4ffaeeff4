"""What runs in Ray's processes, without any: batches of rows, and where requests go."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

import musespark
from musespark.errors import Error, InvalidRequest

PROMPTS = ["The fox", "The king", "Once upon a time"]


@pytest.fixture(scope="module")
def model() -> Iterator[musespark.Model]:
    with musespark.load(threads=1) as loaded:
        yield loaded


def answered(table: pa.Table, method: str = "generate", **given: Any) -> list[dict[str, Any]]:
    """The rows that a worker makes of a table."""
    from musespark import ray

    columns = ray._CHAT_COLUMNS if method == "chat" else ray._TEXT_COLUMNS
    known = {"column": given.pop("column", "prompt"), "seed": given.pop("seed", None)}
    worker = ray.Worker(
        load={"threads": 1}, method=method, options=given, columns=tuple(columns), **known
    )
    return worker(table).to_pylist()


def test_a_bad_row_is_told_and_the_others_are_as_alone(model) -> None:
    prompts = [PROMPTS[0], "", None, PROMPTS[1], "many words " * 5000, PROMPTS[2]]
    rows = answered(pa.table({"prompt": prompts, "id": range(6)}), max_new_tokens=8)
    alone = iter(model.generate_batch(PROMPTS, max_new_tokens=8))
    assert [row["id"] for row in rows] == list(range(6))
    for row in rows:
        if row["prompt"] in PROMPTS:
            one = next(alone)
            assert (row["text"], row["finish_reason"]) == (one.text, one.finish_reason)
            assert row["prompt_tokens"] == one.usage.prompt_tokens
            assert row["completion_tokens"] == one.usage.completion_tokens == 8
            assert row["error"] is None
        else:
            assert row["error"]
            assert row["text"] is row["finish_reason"] is row["prompt_tokens"] is None
    assert "no tokens" in rows[1]["error"]
    assert "context" in rows[4]["error"]


def test_what_is_not_a_rows_fault_ends_the_job(model, monkeypatch) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise Error("the engine failed")

    monkeypatch.setattr(musespark.Model, "generate", broken)
    with pytest.raises(Error, match="the engine failed"):
        answered(pa.table({"prompt": PROMPTS}))


def test_each_row_has_the_seed_of_its_column(model) -> None:
    seeds = [3, 4, 3]
    options = {"temperature": 1.0, "max_new_tokens": 12}
    table = pa.table({"prompt": [PROMPTS[0]] * 3, "n": seeds})
    rows = answered(table, seed="n", **options)
    alone = [model.generate(PROMPTS[0], seed=seed, **options).text for seed in seeds]
    assert [row["text"] for row in rows] == alone
    assert alone[0] != alone[1]
    assert len({row["text"] for row in answered(table, seed=4, **options)}) == 1


def test_messages_lose_the_nulls_that_arrow_gives_them(model) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    conversations = [
        [{"role": "user", "content": "What is 47 + 38?"}],
        [
            {"role": "user", "content": "Call f."},
            {"role": "assistant", "tool_calls": [{"id": "1", **call}]},
            {"role": "tool", "tool_call_id": "1", "content": "7"},
        ],
    ]
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "number"}}}}
    options = {"max_new_tokens": 20, "tools": [{"type": "function", "function": tool}]}
    table = pa.table({"messages": conversations})
    assert table.to_pylist() != [{"messages": one} for one in conversations]
    rows = answered(table, "chat", column="messages", **options)
    alone = model.chat_batch(conversations, **options)
    for row, one in zip(rows, alone, strict=True):
        assert row["error"] is None
        assert (row["text"], row["reasoning"]) == (one.text, one.reasoning)
        assert row["tool_calls"] == "[]" or one.tool_calls


def test_columns_that_are_not_there_or_in_the_way_are_named() -> None:
    with pytest.raises(InvalidRequest, match=r"column: got 'prompt', allowed is .*\['words'\]"):
        answered(pa.table({"words": PROMPTS}))
    with pytest.raises(InvalidRequest, match=r"seed: got 'n', allowed is .*\['prompt'\]"):
        answered(pa.table({"prompt": PROMPTS}), seed="n")
    with pytest.raises(InvalidRequest, match=r"data: has the columns \['text', 'error'\]"):
        answered(pa.table({"prompt": PROMPTS, "error": PROMPTS, "text": PROMPTS}))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("generate", {"max_new_tokns": 3}, "max_new_tokns.*did you mean 'max_new_tokens'"),
        ("generate", {"temperature": -1}, "temperature: got -1"),
        ("generate", {"reasoning_effort": "high"}, "reasoning_effort"),
        ("chat", {"logprobs": 3}, "logprobs: got 3, allowed is nothing here"),
        ("generate", {"stream": True}, "stream"),
        ("generate", {"adapter": "a"}, "adapter"),
        ("generate", {"workers": 0}, "workers: got 0"),
        ("chat", {"threads": 0}, "threads: got 0"),
        ("chat", {"batch_size": 0}, "batch_size: got 0"),
        ("chat", {"load": {"thread": 2}}, "unknown argument 'thread'"),
        ("chat", {"load": {"threads": 2}}, "unknown argument 'threads'"),
    ],
)
def test_wrong_options_are_refused_before_a_worker_starts(method, options, message) -> None:
    import ray

    import musespark.ray

    class Data(ray.data.Dataset):
        """Of which nothing is asked."""

        def __init__(self) -> None: ...
        def __del__(self) -> None: ...

    with pytest.raises(InvalidRequest, match=message):
        getattr(musespark.ray, method)(Data(), **{"workers": 1, "threads": 1, **options})
    with pytest.raises(InvalidRequest, match=r"data: got \['a'\], allowed is a ray.data.Dataset"):
        musespark.ray.generate(["a"], workers=1, threads=1)


@pytest.mark.parametrize(
    ("module", "lacking", "named"),
    [("ray", "ray", "ray"), ("ray", "pyarrow", "pyarrow"), ("ray.serving", "fastapi", "fastapi")],
)
def test_a_missing_extra_is_named(module: str, lacking: str, named: str) -> None:
    program = (
        f"import sys; sys.modules[{lacking!r}] = None\n"
        "from musespark.errors import MissingLibrary\n"
        f"try: import musespark.{module}\n"
        "except MissingLibrary as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert named in done.stdout, done.stderr
    assert "pip install 'musespark[ray]'" in done.stdout


# ---- where requests go --------------------------------------------------------------------------

DOCUMENT = "The keeper of the lighthouse counts the ships that pass in the night. " * 8


def body(*contents: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant") * len(contents)
    turns = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    return {"model": "m", "messages": turns, **more}


def test_requests_have_the_blocks_in_common_with_which_both_begin() -> None:
    from musespark.ray.serving import BLOCK, blocks_of

    first = blocks_of(body(DOCUMENT + "How many?"))
    grown = blocks_of(body(DOCUMENT + "How many?", "Seven.", "And whales?" + DOCUMENT))
    other = blocks_of(body("No " + DOCUMENT))
    assert len(first) == len(DOCUMENT + "How many?") // BLOCK
    assert grown[: len(first)] == first
    assert len(grown) > len(first)
    assert not {*other} & {*first}
    sampled = blocks_of(body(DOCUMENT + "How many?", temperature=1.0, stream=True))
    assert sampled == first, "what is no part of the prompt decides nothing"
    assert not {*blocks_of({**body(DOCUMENT), "tools": [{"name": DOCUMENT}]})} & {*first}
    assert blocks_of({"prompt": DOCUMENT}) and blocks_of({"input": DOCUMENT})
    assert blocks_of(body("short")) == blocks_of([1, 2]) == blocks_of("text") == ()
    assert len(blocks_of(body(DOCUMENT * 1000))) == 256


class Routed:
    """A router over two replicas whose queues a test says."""

    def __init__(self) -> None:
        from musespark.ray.serving import PrefixRouter

        self.queues = {"a": 0, "b": 0}
        self.router = object.__new__(PrefixRouter)
        self.router._replica_queue_len_cache = self.queues
        self.router.initialize_state(lead=3)
        self.replicas = [SimpleNamespace(replica_id=name) for name in self.queues]

    def ask(self, value: Any) -> str:
        """Where a request goes, as Ray Serve takes the first rank with a replica."""
        from musespark.ray.serving import Asked, blocks_of

        asked = Asked({}, b"", blocks_of(value))
        pending = SimpleNamespace(args=[asked], routing_context=SimpleNamespace())
        ranks = asyncio.run(self.router.choose_replicas(self.replicas, pending))
        assert pending.routing_context.should_backoff
        assert {one.replica_id for one in ranks[-1]} == {one.replica_id for one in self.replicas}
        first = next(rank for rank in ranks if rank)
        chosen = min(first, key=lambda one: self.queues[one.replica_id]).replica_id
        self.router.on_request_routed(pending, chosen, None)
        return chosen


def test_what_begins_alike_goes_to_one_replica_and_the_rest_spreads() -> None:
    routed = Routed()
    starts = [f"{name} " + DOCUMENT for name in ("one", "two", "three", "four")]
    first = [routed.ask(body(start)) for start in starts]
    assert sorted(first) == ["a", "a", "b", "b"]
    for turns in ((), ("Seven.", "And whales?"), ("Seven.", "And whales?", "No.", "Why?")):
        assert [routed.ask(body(start, *turns)) for start in starts] == first


def test_a_replica_with_far_more_to_do_is_passed_over() -> None:
    routed = Routed()
    known = routed.ask(body(DOCUMENT))
    other = {"a": "b", "b": "a"}[known]
    routed.queues[known] = 2
    assert routed.ask(body(DOCUMENT)) == known
    routed.queues[known] = 3
    assert routed.ask(body(DOCUMENT)) == other
    routed.queues[known] = 0
    assert routed.ask(body(DOCUMENT)) == other, "who was asked last has it too"
    routed.replicas = [one for one in routed.replicas if one.replica_id == known]
    assert routed.ask(body(DOCUMENT)) == known, "a replica that is gone is asked nothing"


def test_old_beginnings_are_forgotten(monkeypatch) -> None:
    from musespark.ray import serving

    monkeypatch.setattr(serving, "_REMEMBERED", 6)
    routed = Routed()
    for index in range(20):
        routed.ask(body(f"{index} " + DOCUMENT))
        assert len(routed.router._asked) <= 6
        assert sum(routed.router._count.values()) == len(routed.router._asked)
    assert len(routed.router._asked) == 6


# ---- a replica ----------------------------------------------------------------------------------


def replica_of(model: musespark.Model, monkeypatch) -> Any:
    from musespark.ray.serving import Replica
    from musespark.server import Access, Limits

    monkeypatch.setattr(musespark, "load", lambda **given: model, raising=False)
    return Replica({}, ("nano",), Access(), Limits())


def asked_of(data: bytes) -> Any:
    from musespark.ray.serving import Asked

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    path = "/v1/completions"
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b""}
    return Asked({**scope, "headers": headers, "client": ("127.0.0.1", 1)}, data, ())


def test_a_call_that_is_closed_cancels_its_request(model, monkeypatch) -> None:
    replica = replica_of(model, monkeypatch)
    data = b'{"model": "nano", "prompt": "The fox", "max_tokens": 400, "stream": true}'

    async def scenario() -> None:
        messages = replica.respond(asked_of(data))
        start = await messages.__anext__()
        assert start["status"] == 200
        await messages.__anext__()
        assert model._engine.stats()["running"] == 1
        await messages.aclose()
        assert model._engine.stats()["running"] == 0

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_replica_whose_engine_has_failed_says_so(monkeypatch) -> None:
    with musespark.load(threads=1) as model:
        replica = replica_of(model, monkeypatch)
        replica.check_health()
    with pytest.raises(Error, match="closed"):
        replica.check_health()


# ---- what the front passes on -------------------------------------------------------------------

START = {"type": "http.response.start", "status": 200, "headers": []}
PART = {"type": "http.response.body", "body": b"a", "more_body": True}
LAST = {"type": "http.response.body", "body": b"b"}


def passed(*messages: Any) -> list[Any]:
    """What a client is sent of a replica's messages; an error among them is raised there."""
    from musespark.ray.serving import _Passed

    async def come() -> AsyncIterator[Any]:
        for message in messages:
            if isinstance(message, Exception):
                raise message
            yield message

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/v1/messages"}
    try:
        asyncio.run(_Passed(come())(scope, None, send))
    except Exception as error:
        sent.append(error)
    return sent


def test_an_answer_that_a_dead_replica_began_is_never_taken_for_a_whole_one() -> None:
    from ray.exceptions import ActorDiedError
    from ray.serve.exceptions import BackPressureError

    died = ActorDiedError()
    assert passed(START, PART, LAST) == [START, PART, LAST]
    assert passed(START, PART, LAST, died) == [START, PART, LAST]
    assert passed(START, PART, died) == [START, PART, died]
    for before in ((), (START,)):
        start, told = passed(*before, died)
        assert start["status"] == 503
        assert b'"type":"error"' in told["body"], "as Anthropic writes it"
    start, told = passed(BackPressureError(9, 8))
    assert start["status"] == 429
    assert (b"retry-after", b"1") in start["headers"]


def test_without_a_token_this_machine_alone_is_answered() -> None:
    from starlette.requests import Request

    from musespark.ray.serving import Front
    from musespark.server import Access, Limits

    taken: list[Any] = []
    respond = SimpleNamespace(remote=lambda asked: taken.append(asked) or asked)
    engines = SimpleNamespace(options=lambda **given: respond)
    token = "a-token-of-this-test"

    def status(access: Access, client: str, method: str = "POST", **headers: str) -> int:
        given = {"host": "localhost", "content-type": "application/json", **headers}
        scope = {"type": "http", "method": method, "path": "/v1/completions", "query_string": b""}
        scope |= {"client": (client, 1), "scheme": "http", "server": ("localhost", 80)}
        scope["headers"] = [(name.encode(), text.encode()) for name, text in given.items()]

        async def receive() -> Any:
            return {"type": "http.request", "body": b'{"prompt": "Hi"}'}

        front = Front(engines, access, Limits())
        taken.clear()
        answer = asyncio.run(front(Request(scope, receive)))
        return 0 if taken else answer.status_code

    assert status(Access(), "127.0.0.1") == status(Access(), "127.0.0.1", "GET") == 0
    assert status(Access(), "192.0.2.7") == status(Access(), "192.0.2.7", "GET") == 403
    known = Access("0.0.0.0", token)
    assert status(known, "192.0.2.7") == 401
    assert status(known, "192.0.2.7", authorization=f"Bearer {token}") == 0


def test_bodies_are_bounded_together_in_the_front_until_they_are_answered() -> None:
    from starlette.requests import Request

    from musespark.ray.serving import Front
    from musespark.server import Access, Limits

    page = "https://app.example"
    access = Access(origins=frozenset([page]))
    limits = Limits(body_bytes=1000, bodies_bytes=1000)
    body = b'{"prompt": "%s"}' % (b"a" * 500)

    async def answers() -> AsyncIterator[Any]:
        yield START
        yield LAST

    respond = SimpleNamespace(remote=lambda asked: answers())
    front = Front(SimpleNamespace(options=lambda **given: respond), access, limits)
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    given = {"host": "localhost", "content-type": "application/json", "origin": page}
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b""}
    scope |= {"client": ("127.0.0.1", 1), "scheme": "http", "server": ("localhost", 80)}
    scope["headers"] = [(name.encode(), text.encode()) for name, text in given.items()]

    async def main() -> None:
        first = await front(Request(scope, receive))
        refused = await front(Request(scope, receive))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.headers["access-control-allow-origin"] == page
        await first(scope, receive, send)
        assert sent == [START, LAST] and front._bodies.held == 0
        assert (await front(Request(scope, receive))).status_code == 200

    asyncio.run(main())


def test_of_a_long_request_the_beginning_alone_is_written(monkeypatch) -> None:
    from musespark.ray import serving

    written: list[str] = []
    encoder = serving._ENCODER

    def counted(part: Any) -> Any:
        for piece in encoder.iterencode(part):
            written.append(piece)
            yield piece

    short = body(*[DOCUMENT] * 200)
    monkeypatch.setattr(serving, "_ENCODER", SimpleNamespace(iterencode=counted))
    assert serving.blocks_of(body(*[DOCUMENT] * 5000)) == serving.blocks_of(short)
    assert sum(map(len, written)) < 2 * (serving._MOST_BLOCKS * serving.BLOCK + 2 * len(DOCUMENT))


def test_a_body_that_is_nothing_but_arrays_is_left_to_the_replica() -> None:
    """Which says what is wrong with it, unread."""
    from musespark.ray.serving import Front
    from musespark.server import Limits

    front: Any = SimpleNamespace(_limits=Limits())
    asked = body(DOCUMENT * 9)
    assert Front._blocks(front, json.dumps(asked).encode())
    asked["metadata"] = [[]] * 500_000
    assert Front._blocks(front, json.dumps(asked).encode()) == ()


@pytest.mark.parametrize(("given", "then"), [({}, "0"), ({"RAY_USAGE_STATS_ENABLED": "1"}, "1")])
def test_rays_reports_of_its_use_are_off_unless_asked_for(given: dict[str, str], then: str) -> None:
    script = """
import ray._common.usage.usage_lib
import musespark.ray
print(int(ray._common.usage.usage_lib.usage_stats_enabled()))
"""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_USAGE_STATS_ENABLED"} | given
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == then
