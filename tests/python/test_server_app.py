"""The server as an application, without a socket: who may ask, what is refused and answered."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import musespark
from musespark.server import Access, Limits, create_app
from musespark.server.app import name_of
from musespark.server.security import client_of
from support.bert_models import CASES, SEEDS, folder_of

CHAT, COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
POSTS = (
    *(CHAT, COMPLETIONS, MESSAGES, "/v1/responses"),
    *("/v1/messages/count_tokens", "/v1/embeddings"),
)
HI = {"model": "spark-nano", "messages": [{"role": "user", "content": "What is 47 + 38?"}]}
TOKEN = "a-token-of-this-test"


@pytest.fixture(scope="module")
def model():
    with musespark.load(threads=1) as loaded:
        yield loaded


Scenario = Callable[[httpx.AsyncClient], Awaitable[None]]


def run(app: Any, scenario: Scenario, **client: Any) -> None:
    async def main() -> None:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
        base = client.pop("base_url", "http://localhost")
        async with httpx.AsyncClient(transport=transport, base_url=base, **client) as one:
            await asyncio.wait_for(scenario(one), 120)

    asyncio.run(main())


def events(response: httpx.Response) -> list[Any]:
    """The data of server-sent events."""
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


# ---- the same results ---------------------------------------------------------------------------


def test_the_same_seed_writes_what_it_writes_in_python(model) -> None:
    options = {"temperature": 1.0, "seed": 11}
    prompt = "Once upon a time"
    here = model.generate(prompt, max_new_tokens=40, **options)
    talked = model.chat(HI["messages"], max_new_tokens=200, **options)
    other = model.generate(prompt, max_new_tokens=40, temperature=1.0, seed=12)
    assert here.text != other.text, "the seed changes nothing, so the test cannot tell"

    async def scenario(client: httpx.AsyncClient) -> None:
        body = {"model": "spark-nano", "prompt": prompt, "max_tokens": 40, "n": 2, **options}
        choices = (await client.post(COMPLETIONS, json=body)).json()["choices"]
        assert [c["text"] for c in choices] == [here.text, other.text]
        assert [c["seed"] for c in choices] == [11, 12]
        streamed = events(await client.post(COMPLETIONS, json={**body, "stream": True}))
        for index, text in enumerate([here.text, other.text]):
            parts = [e["choices"][0] for e in streamed if e != "[DONE]"]
            assert "".join(c["text"] for c in parts if c["index"] == index) == text
        body = {**HI, "max_tokens": 200, **options}
        message = (await client.post(CHAT, json=body)).json()["choices"][0]["message"]
        assert (message["reasoning"], message["content"]) == (talked.reasoning, talked.content)

    run(create_app(model), scenario)


def test_many_at_once_are_each_as_alone(model) -> None:
    def body(seed: int) -> dict:
        return {
            "model": "spark-nano",
            "prompt": f"The fox {seed}",
            "max_tokens": 30,
            "temperature": 1.0,
            "seed": seed,
        }

    alone = [
        model.generate(f"The fox {i}", max_new_tokens=30, temperature=1.0, seed=i).text
        for i in range(12)
    ]

    async def scenario(client: httpx.AsyncClient) -> None:
        asked = [client.post(COMPLETIONS, json=body(i)) for i in range(12)]
        answers = await asyncio.gather(*asked)
        assert [a.json()["choices"][0]["text"] for a in answers] == alone

    run(create_app(model, limits=Limits(running=5)), scenario)


def test_log_probabilities_are_those_of_the_answer(model) -> None:
    here = model.chat(HI["messages"], logprobs=2)

    async def scenario(client: httpx.AsyncClient) -> None:
        body = {**HI, "logprobs": True, "top_logprobs": 2}
        choice = (await client.post(CHAT, json=body)).json()["choices"][0]
        told = choice["logprobs"]["content"]
        assert b"".join(bytes(t["bytes"]) for t in told).decode() == here.content
        assert all(len(t["top_logprobs"]) == 2 for t in told)
        known = {round(t.logprob, 6) for t in here.logprobs}
        assert {round(t["logprob"], 6) for t in told} <= known
        streamed = events(await client.post(CHAT, json={**body, "stream": True}))
        parts = [e["choices"][0]["logprobs"] for e in streamed if e != "[DONE]"]
        assert [t for part in parts if part for t in part["content"]] == told

    run(create_app(model), scenario)


def test_budgets_schemas_and_counts(model) -> None:
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer"}},
        "required": ["sum"],
        "additionalProperties": False,
    }

    async def scenario(client: httpx.AsyncClient) -> None:
        cut = {**HI, "reasoning_effort": "high", "thinking_token_budget": 8}
        choice = (await client.post(CHAT, json=cut)).json()
        assert choice["choices"][0]["thinking_stop_reason"] == "budget"
        assert choice["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 8
        wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        answer = (await client.post(CHAT, json={**HI, "response_format": wanted})).json()
        assert isinstance(json.loads(answer["choices"][0]["message"]["content"])["sum"], int)
        counted = await client.post(f"{MESSAGES}/count_tokens", json=HI)
        used = (await client.post(MESSAGES, json={**HI, "max_tokens": 300})).json()["usage"]
        prompt = used["input_tokens"] + used["cache_read_input_tokens"]
        assert counted.json() == {"input_tokens": prompt}

    run(create_app(model), scenario)


def test_agents_are_streamed_one_by_one(model) -> None:
    body = {**HI, "mode": "contemplating", "n_agents": 3, "temperature": 1.0, "seed": 1}
    here = model.chat(HI["messages"], mode="contemplating", n_agents=3, temperature=1.0, seed=1)

    async def scenario(client: httpx.AsyncClient) -> None:
        choice = (await client.post(CHAT, json=body)).json()["choices"][0]
        assert (choice["message"]["content"], choice["votes"]) == (here.content, here.votes)
        got = events(await client.post(CHAT, json={**body, "stream": True}))
        deltas = [e["choices"][0]["delta"] for e in got if e != "[DONE]"]
        assert {d["agent"]["index"] for d in deltas if "agent" in d} == {0, 1, 2}
        assert "".join(d.get("content", "") for d in deltas) == here.content

    run(create_app(model), scenario)


def test_what_became_of_agents_is_told_at_the_end(model) -> None:
    body = {**HI, "mode": "contemplating", "n_agents": 3, "temperature": 1.0, "seed": 1}
    here = model.chat(HI["messages"], mode="contemplating", n_agents=3, temperature=1.0, seed=1)

    async def scenario(client: httpx.AsyncClient) -> None:
        whole = (await client.post(CHAT, json=body)).json()["choices"][0]
        got = events(await client.post(CHAT, json={**body, "stream": True}))
        for end in (whole, got[-2]["choices"][0]):
            assert end["answer"] == here.answer
            told = [(a["round"], a["index"], a["seed"], a["key"]) for a in end["agents"]]
            assert told == [(a.round, a.agent, a.seed, a.key) for a in here.agents]
            tokens = [a["completion_tokens"] for a in end["agents"]]
            assert tokens == [a.usage.completion_tokens for a in here.agents]

    run(create_app(model), scenario)


def test_the_trace_of_an_answer_about_images(model) -> None:
    data = (Path(musespark.__file__).parent / "nano" / "examples" / "window.png").read_bytes()
    text = {"type": "text", "text": "Where is the button Exit?"}
    asked = [{"role": "user", "content": [{"type": "image", "image": data}, text]}]
    here = model.chat(asked)
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    image = {"type": "image_url", "image_url": {"url": url}}
    body = {"model": "spark-nano", "messages": [{"role": "user", "content": [image, text]}]}

    async def scenario(client: httpx.AsyncClient) -> None:
        plain = (await client.post(CHAT, json=body)).json()["choices"][0]
        assert "visual_trace" not in plain
        assert set(plain["timings"]) == {"prefill_s", "first_token_s", "decode_s"}
        asked = {**body, "visual_trace": True}
        whole = (await client.post(CHAT, json=asked)).json()["choices"][0]
        got = events(await client.post(CHAT, json={**asked, "stream": True}))
        for end in (whole, got[-2]["choices"][0]):
            trace = musespark.VisualTrace.from_json(json.dumps(end["visual_trace"]))
            assert trace.model == "spark-nano", "it tells where the model's files lie"
            assert (trace.images, trace.steps) == (here.trace.images, here.trace.steps)
            assert any(step.regions for step in trace.steps)
        text_alone = {**HI, "visual_trace": True}
        assert (await client.post(CHAT, json=text_alone)).json()["choices"][0][
            "visual_trace"
        ] is None

    run(create_app(model), scenario)


def test_efforts_are_told_where_the_model_thinks(model, tmp_path) -> None:
    folder = folder_of(tmp_path / "bert", next(iter(CASES)), SEEDS[0])

    def told(app: Any) -> list[str]:
        found: list[str] = []

        async def scenario(client: httpx.AsyncClient) -> None:
            found.extend((await client.get("/v1/models")).json()["data"][0]["reasoning_efforts"])

        run(app, scenario)
        return found

    assert told(create_app(model)) == ["none", "minimal", "low", "medium", "high", "xhigh"]
    with musespark.load(folder, quantize="none", threads=1) as bert:
        assert told(create_app(bert)) == []


# ---- the page -----------------------------------------------------------------------------------

PAGE = Path(musespark.__file__).parent / "server" / "page"
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def test_every_file_of_the_page_is_served_with_its_type_and_policy(model) -> None:
    files = sorted(path for path in PAGE.iterdir() if path.name != "index.html")

    async def scenario(client: httpx.AsyncClient) -> None:
        assert len(files) > 8
        for path in (PAGE / "index.html", *files):
            at = "/" if path.name == "index.html" else f"/page/{path.name}"
            answer = await client.get(at)
            assert answer.content == path.read_bytes()
            kind = answer.headers["content-type"].partition(";")[0]
            assert kind == KINDS[path.suffix[1:]]
            assert answer.headers["x-content-type-options"] == "nosniff"
            policy = answer.headers["content-security-policy"].split("; ")
            assert {"default-src 'none'", "script-src 'self'", "connect-src 'self'"} <= {*policy}
            assert {"require-trusted-types-for 'script'", "trusted-types 'none'"} <= {*policy}
            assert "unsafe" not in "".join(policy)
            assert answer.headers.get_list("cache-control") == ["no-cache"]
            known = {"if-none-match": f'"other", W/{answer.headers["etag"]}'}
            again = await client.get(at, headers=known)
            assert (again.status_code, again.content) == (304, b"")
            assert "content-security-policy" in again.headers
            changed = await client.get(at, headers={"if-none-match": '"other"'})
            assert changed.status_code == 200

    run(create_app(model), scenario)


def test_the_page_names_nothing_that_is_not_here() -> None:
    """No remote asset, no style or script in the HTML, which the policy would refuse."""
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        named = re.findall(r"""(?:src|href)="([^"#]+)"|from "([^"]+)"|url\(([^)]+)""", text)
        for one in ("".join(found) for found in named):
            assert (PAGE / one.removeprefix("page/")).is_file(), f"{path.name}: {one}"
        addresses = set(re.findall(r"https?://[^\s\"')]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path.name
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "style=", "<style"):
            assert word not in text, f"{path.name}: {word}"


def test_the_page_needs_no_token_but_its_host(model) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for at in ("/", "/page/main.js"):
            assert (await client.get(at)).status_code == 200
            assert (await client.get(at, headers={"host": "evil.example"})).status_code == 403
            foreign = {"origin": "http://evil.example"}
            assert (await client.get(at, headers=foreign)).status_code == 403
        for at in ("/page/", "/page/index.html", "/page/nothing.js"):
            assert (await client.get(at)).status_code == 401
        known = {"authorization": f"Bearer {TOKEN}"}
        for at in ("/page/", "/page/../app.py", "/page/%2e%2e/app.py", "/page//main.js"):
            assert (await client.get(at, headers=known)).status_code == 404

    run(create_app(model, access=Access(token=TOKEN)), scenario)


# ---- what is not chat ---------------------------------------------------------------------------


TOOLS = [
    {
        "name": name,
        "parameters": {
            "type": "object",
            "properties": {"word": {"enum": ["red", "blue"]}},
            "required": ["word"],
        },
    }
    for name in ("paint", "wash")
]
# A question that the model answers without a call, and two protocols' ways to force one.
NAMED = {"type": "function", "function": {"name": "wash"}}
ALLOWED_IN_CHAT = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "required", "tools": [NAMED]},
}
ALLOWED_IN_RESPONSES = {
    "type": "allowed_tools",
    "mode": "required",
    "tools": [{"type": "function", "name": "wash"}],
}
FORCED = [
    (CHAT, {"tool_choice": "required"}, {"paint", "wash"}),
    (CHAT, {"tool_choice": NAMED}, {"wash"}),
    (CHAT, {"tool_choice": ALLOWED_IN_CHAT}, {"wash"}),
    ("/v1/responses", {"tool_choice": ALLOWED_IN_RESPONSES}, {"wash"}),
    ("/v1/responses", {"tool_choice": "required"}, {"paint", "wash"}),
    ("/v1/responses", {"tool_choice": {"type": "function", "name": "wash"}}, {"wash"}),
    (MESSAGES, {"tool_choice": {"type": "any"}}, {"paint", "wash"}),
    (MESSAGES, {"tool_choice": {"type": "tool", "name": "wash"}}, {"wash"}),
]


def tools_for(path: str, **more: Any) -> dict[str, Any]:
    """A body with the tools, as the protocol of a path has them; with a short thought, for Nano may
    think about tools that it does not know until it is cut."""
    brief = {"thinking_token_budget": 8}
    if path == CHAT:
        tools = [{"type": "function", "function": {**t, **more}} for t in TOOLS]
        return {**HI, "tools": tools, **brief}
    if path == MESSAGES:
        given = [{"name": t["name"], "input_schema": t["parameters"], **more} for t in TOOLS]
        thinking = {"type": "enabled", "budget_tokens": 8}
        return {**HI, "tools": given, "max_tokens": 300, "thinking": thinking}
    tools = [{"type": "function", **t, **more} for t in TOOLS]
    return {"model": "spark-nano", "input": "What is 47 + 38?", "tools": tools, **brief}


def calls_in(path: str, answer: Any) -> list[tuple[str, Any]]:
    """The calls of an answer: names and arguments."""
    if path == CHAT:
        found = [c["function"] for c in answer["choices"][0]["message"].get("tool_calls", ())]
        return [(one["name"], json.loads(one["arguments"])) for one in found]
    if path == MESSAGES:
        return [(b["name"], b["input"]) for b in answer["content"] if b["type"] == "tool_use"]
    found = [i for i in answer["output"] if i["type"] == "function_call"]
    return [(one["name"], json.loads(one["arguments"])) for one in found]


@pytest.mark.parametrize(("path", "choice", "names"), FORCED)
def test_calls_that_have_to_come_come(model, path: str, choice: dict, names: set[str]) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(path, json={**tools_for(path), **choice})
        assert answer.status_code == 200, answer.text
        calls = calls_in(path, answer.json())
        assert calls and {name for name, _ in calls} <= names
        assert all(arguments["word"] in ("red", "blue") for _, arguments in calls)
        streamed = await client.post(path, json={**tools_for(path), **choice, "stream": True})
        assert calls[0][0] in streamed.text

    run(create_app(model), scenario)


def test_one_call_where_one_is_asked_for(model) -> None:
    """Where a turn may have several, one that had rather not end goes on with another call. What
    the other protocols make of theirs: test_server_protocols."""
    end = {str(model.tokenizer.markers["<|eot|>"]): -100}

    async def scenario(client: httpx.AsyncClient) -> None:
        for several in (False, True):
            more = {"parallel_tool_calls": several, "tool_choice": "required", "logit_bias": end}
            body = {**tools_for(CHAT), **more, "max_tokens": 150}
            calls = calls_in(CHAT, (await client.post(CHAT, json=body)).json())
            assert (len(calls) > 1) == several, calls

    run(create_app(model), scenario)


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", MESSAGES])
def test_tools_that_are_strict_have_calls_that_parse(model, path: str) -> None:
    """At a temperature at which the model's free calls do not."""
    more = {"temperature": 1.0, "seed": 5, "top_p": 1.0}

    async def scenario(client: httpx.AsyncClient) -> None:
        for seed in range(6):
            body = {**tools_for(path, strict=True), **more, "seed": seed}
            answer = (await client.post(path, json=body)).json()
            assert "malformed_tool_calls" not in json.dumps(answer)
            for name, arguments in calls_in(path, answer):
                assert name in ("paint", "wash") and arguments["word"] in ("red", "blue")

    run(create_app(model), scenario)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"type": "function", "function": {"name": "cook"}}, "tool_choice: got 'cook', allowed"),
        ("required", "without tools"),
    ],
)
def test_calls_that_cannot_come_are_refused(model, choice: Any, said: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        tools = {} if choice == "required" else {"tools": tools_for(CHAT)["tools"]}
        answer = await client.post(CHAT, json={**HI, **tools, "tool_choice": choice})
        assert answer.status_code == 400 and said in answer.text

    run(create_app(model), scenario)


def test_control_vectors_are_chosen_by_name(model) -> None:
    rng = np.random.default_rng(1)
    directions = {2: rng.standard_normal(model._weights.spec.hidden).astype(np.float32)}
    vector = musespark.ControlVector(directions)
    asked = {"model": "spark-nano", "prompt": "The fox", "max_tokens": 20}
    plain = model.generate("The fox", max_new_tokens=20).text
    with model.steer(vector, strength=20.0, everywhere=False, name="odd") as odd:
        steered = model.generate("The fox", max_new_tokens=20, steering=odd).text
        assert steered != plain == model.generate("The fox", max_new_tokens=20).text

        async def scenario(client: httpx.AsyncClient) -> None:
            async def text(**more: Any) -> str:
                answer = await client.post(COMPLETIONS, json={**asked, **more})
                return answer.json()["choices"][0]["text"]

            assert await text() == await text(steering="off") == plain
            assert await text(steering="odd") == steered
            for more in ({"steering": "other"}, {"adapter": "none"}):
                answer = await client.post(COMPLETIONS, json={**asked, **more})
                assert answer.status_code == 400 and next(iter(more)) in answer.text

        run(create_app(model), scenario)
        with pytest.raises(musespark.InvalidRequest, match="name: got 'odd', which another"):
            model.steer(vector, everywhere=False, name="odd")
    with pytest.raises(musespark.InvalidRequest, match="name: got 'off'"):
        model.steer(vector, everywhere=False, name="off")


def test_agents_take_rows_as_other_answers_do(model) -> None:
    """Not one place for sixty-four of them."""

    async def scenario(client: httpx.AsyncClient) -> None:
        body = {**HI, "mode": "contemplating", "n_agents": 4, "temperature": 1.0}
        asked = asyncio.ensure_future(client.post(CHAT, json={**body, "min_tokens": 300}))
        while model._engine.stats()["running"] < 4:
            assert not asked.done(), asked.result().text
            await asyncio.sleep(0)
        plain = {"model": "spark-nano", "prompt": "The fox", "max_tokens": 4}
        assert (await client.post(COMPLETIONS, json=plain)).status_code == 429
        assert (await asked).status_code == 200
        assert (await client.post(COMPLETIONS, json=plain)).status_code == 200

    run(create_app(model, limits=Limits(running=4, waiting=0)), scenario)


def test_embeddings(tmp_path) -> None:
    folder = folder_of(tmp_path / "bert", next(iter(CASES)), SEEDS[0])
    with musespark.load(folder, quantize="none", threads=1) as bert:
        rows = bert.embed(["a text", "b"])

        async def scenario(client: httpx.AsyncClient) -> None:
            body = {"model": "bert", "input": ["a text", "b"]}
            answer = (await client.post("/v1/embeddings", json=body)).json()
            found = np.array([one["embedding"] for one in answer["data"]], np.float32)
            assert np.array_equal(found, rows)
            assert answer["usage"]["prompt_tokens"] > 2
            refused = await client.post(CHAT, json={**HI, "model": "bert"})
            assert refused.status_code == 400

        run(create_app(bert), scenario)


# ---- who may ask --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "10.0.0.1", "localhost@evil", "", "[::2]:80"]
)
def test_other_hosts_are_refused(model, host: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for path in ("/health", "/v1/models"):
            assert (await client.get(path, headers={"host": host})).status_code == 403
        assert (await client.post(CHAT, json=HI, headers={"host": host})).status_code == 403

    run(create_app(model), scenario)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"])
def test_names_of_loopback_are_known(model, host: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get("/health", headers={"host": host})).status_code == 200

    run(create_app(model), scenario)


def test_pages_of_other_origins_are_refused(model) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for origin in ("http://evil.example", "null", "http://localhost:9", "file://localhost"):
            answer = await client.post(CHAT, json=HI, headers={"origin": origin})
            assert answer.status_code == 403, origin
        own = await client.get("/v1/models", headers={"origin": "http://localhost"})
        assert own.status_code == 200
        assert "access-control-allow-origin" not in own.headers
        form = {"content-type": "text/plain"}  # what a page may post without being asked
        simple = await client.post(CHAT, content=json.dumps(HI), headers=form)
        assert simple.status_code == 415

    run(create_app(model), scenario)


def test_a_token_is_asked_for(model) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
            assert (await client.get(path)).status_code == 401
        for path in POSTS:
            assert (await client.post(path, json=HI)).status_code == 401
        assert (await client.get("/health")).status_code == 200
        for headers in (
            {"authorization": f"Bearer {TOKEN}"},
            {"authorization": f"bearer  {TOKEN}"},
            {"x-api-key": TOKEN},
        ):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
        for headers in (
            {"authorization": f"Bearer {TOKEN}x"},
            {"authorization": f"Basic {TOKEN}"},
            {"x-api-key": "é".encode()},
        ):
            assert (await client.get("/v1/models", headers=headers)).status_code == 401

    run(create_app(model, access=Access(token=TOKEN)), scenario)


def test_only_loopback_goes_without_a_token() -> None:
    for host in ("0.0.0.0", "192.168.0.7", "::", "example.com"):
        with pytest.raises(musespark.InvalidRequest, match="without a token"):
            Access(host)
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        Access(host)
    with pytest.raises(musespark.InvalidRequest, match="16 ASCII"):
        Access(token="short")
    wide = Access("0.0.0.0", TOKEN, frozenset(["box.lan"]))
    known = ["192.168.0.7:8000", "box.lan", "localhost"]
    assert [wide.allows_host(h) for h in [*known, "evil.example"]] == [True, True, True, False]


# ---- what is refused ----------------------------------------------------------------------------

DEEP = '{"a":' * 5000 + "1" + "}" * 5000
BODIES = {
    "empty": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "a number": b"1",
    "not UTF-8": b'{"model": "\xff"}',
    "a lone surrogate": b'{"model": "\\ud800"}',
    "NaN": b'{"model": "spark-nano", "prompt": "x", "temperature": NaN}',
    "infinity": b'{"model": "spark-nano", "prompt": "x", "temperature": 1e999}',
    "many digits": b'{"model": "spark-nano", "prompt": "x", "seed": ' + b"9" * 5000 + b"}",
    "twice": b'{"model": "spark-nano", "model": "spark-nano"}',
    "deep": DEEP.encode(),
}


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_none(model, path: str, name: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        kind = {"content-type": "application/json"}
        answer = await client.post(path, content=BODIES[name], headers=kind)
        error = answer.json()["error"]
        assert 400 <= answer.status_code < 500, answer.text
        assert len(error["message"]) < 700
        assert (answer.json().get("type") == "error") == path.startswith(MESSAGES)

    run(create_app(model), scenario)


def test_what_is_checked_of_a_body_is_checked_in_no_event_loop(model, monkeypatch) -> None:
    """It may be megabytes of schemas, and others wait for the loop."""
    threads: list[bool] = []
    check = Limits.check

    def seen(self: Limits, job: Any) -> None:
        threads.append(threading.current_thread() is threading.main_thread())
        check(self, job)

    monkeypatch.setattr(Limits, "check", seen)

    async def scenario(client: httpx.AsyncClient) -> None:
        for path in (CHAT, f"{MESSAGES}/count_tokens"):
            many = {**HI, "messages": HI["messages"] * 3}
            answer = await client.post(path, json=many)
            assert answer.status_code == 400 and "messages: got 3" in answer.text
        assert threads == [False, False]

    run(create_app(model, limits=Limits(messages=2)), scenario)


def test_long_bodies_are_refused_before_they_are_read(model) -> None:
    sent = 0

    async def endless():
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b" " * 1000

    async def scenario(client: httpx.AsyncClient) -> None:
        kind = {"content-type": "application/json"}
        assert (await client.post(CHAT, content=b" " * 5000, headers=kind)).status_code == 413
        assert (await client.post(CHAT, content=endless(), headers=kind)).status_code == 413
        assert sent < 10
        told = {**kind, "content-length": "9" * 30}
        assert (await client.post(CHAT, content=b"{}", headers=told)).status_code == 400

    run(create_app(model, limits=Limits(body_bytes=4000)), scenario)


def test_bodies_are_bounded_together_until_they_are_answered(model) -> None:
    kind = {"content-type": "application/json"}
    lengths = {"max_tokens": 300, "min_tokens": 300}  # an answer that takes its time
    padded = {"model": "spark-nano", "prompt": "a", "user": "a" * 2500, **lengths}
    body = json.dumps(padded).encode()
    app: Any = create_app(model, limits=Limits(body_bytes=3000, bodies_bytes=4000))
    rest = asyncio.Event()

    async def halves():
        yield body[:2000]
        await rest.wait()
        yield body[2000:]

    async def scenario(client: httpx.AsyncClient) -> None:
        def post(content: Any) -> Any:
            return client.post(COMPLETIONS, content=content, headers=kind)

        async def refused() -> None:
            answer = await post(body)
            assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
            assert "have sent" in answer.text and "at most 4000 together" in answer.text

        async def held(size: int) -> None:
            while app._bodies.held != size:
                await asyncio.sleep(0.001)

        first = asyncio.ensure_future(post(halves()))
        await held(2000)  # while it is read
        await refused()
        rest.set()
        await held(len(body))  # while it is answered
        await refused()
        assert (await first).status_code == 200 and app._bodies.held == 0
        assert (await post(body)).status_code == 200

    run(app, scenario)


def test_bodies_together_are_at_least_one() -> None:
    with pytest.raises(musespark.InvalidRequest, match="bodies_bytes: got 9, allowed is at least"):
        Limits(body_bytes=10, bodies_bytes=9)


@pytest.mark.parametrize("streams", [False, True])
def test_a_request_that_is_cancelled_is_told_so_and_stays_cancelled(model, streams: bool) -> None:
    """Else who cancels it, such as a timeout around the application, hears that it ended well."""
    lengths = {"max_tokens": 1500, "min_tokens": 1500, "stream": streams}
    body = json.dumps({"model": "spark-nano", "prompt": "a", **lengths}).encode()
    received = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not received:
            await asyncio.Event().wait()
        return received.pop()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def main() -> None:
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": COMPLETIONS, "headers": headers}
        scope |= {"raw_path": COMPLETIONS.encode(), "query_string": b"", "client": ("::1", 1)}
        task = asyncio.ensure_future(create_app(model)(scope, receive, send))
        while model._engine.stats()["running"] == 0 or (streams and len(sent) < 3):
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait({task}, timeout=20)
        assert task.cancelled()

    asyncio.run(main())
    assert sent[0]["status"] == (200 if streams else 503)
    data = b"".join(message.get("body", b"") for message in sent).decode()
    last = data.strip().splitlines()[-1].removeprefix("data: ")
    assert json.loads(last)["error"]["message"] == "the server is shutting down"
    assert not sent[-1].get("more_body")


def test_bodies_that_do_not_come_are_not_waited_for(model) -> None:
    async def slow():
        yield b"{"
        await asyncio.sleep(60)

    async def scenario(client: httpx.AsyncClient) -> None:
        kind = {"content-type": "application/json"}
        answer = await client.post(CHAT, content=slow(), headers=kind)
        assert answer.status_code == 408

    run(create_app(model, limits=Limits(read_seconds=0.05)), scenario)


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/../etc/passwd", "/v1/%2e%2e/%2e%2e/etc/passwd", "//v1/models/", "/v1/models/../x"),
        *("/v1/models/%00", "/v1/models/" + "a" * 3000, "/docs", "/v1/chat/completions/"),
        *("/\\..\\x", "/v1/models;x", "/%ff"),
    ],
)
def test_paths_that_are_none(model, path: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "HEAD"):
            answer = await client.request(method, path)
            assert answer.status_code in (404, 405), (method, answer.text)
            assert "root:" not in answer.text

    run(create_app(model), scenario)


def test_a_model_that_is_none_is_told_as_one(model) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for answer in (
            await client.get("/v1/models/nope"),
            await client.post(CHAT, json={**HI, "model": "nope"}),
        ):
            assert answer.status_code == 404
            assert answer.json()["error"] == {
                "message": "model: got 'nope', allowed is 'spark-nano'",
                "type": "not_found_error",
                "param": "model",
                "code": "model_not_found",
            }

    run(create_app(model), scenario)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": "1"}, "temperature"),
        ({"messages": [{"role": "alien"}]}, "messages[0].role"),
        ({"messages": None}, "messages"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"unknown": 1}, "unknown"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_errors_name_their_field(model, body: dict, param: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(CHAT, json={**HI, **body})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
        nothing = (await client.post(CHAT, json=[])).json()["error"]
        assert nothing["message"] == "the body: got an array, allowed is an object"
        assert nothing["param"] is None

    run(create_app(model), scenario)


def test_files_of_this_machine_are_not_opened(model, tmp_path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"\x89PNG no picture")

    async def scenario(client: httpx.AsyncClient) -> None:
        for url in (str(secret), f"file://{secret}", f"http://localhost{secret}"):
            part = {"type": "image_url", "image_url": {"url": url}}
            messages = [{"role": "user", "content": [part]}]
            answer = await client.post(CHAT, json={**HI, "messages": messages})
            assert answer.status_code == 400
            assert "nothing is fetched or opened" in answer.text

    run(create_app(model), scenario)


def test_pictures_have_limits(model) -> None:
    def part(side: int) -> dict:
        file = io.BytesIO()
        Image.new("RGB", (side, side)).save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}

    async def scenario(client: httpx.AsyncClient) -> None:
        async def ask(*sides: int) -> httpx.Response:
            content = [*map(part, sides), {"type": "text", "text": "What is it?"}]
            messages = [{"role": "user", "content": content}]
            return await client.post(CHAT, json={**HI, "messages": messages, "max_tokens": 4})

        seen = await ask(30)
        assert seen.status_code == 200, seen.text
        assert seen.json()["usage"]["prompt_tokens_details"]["image_tokens"] > 0
        assert "the limit is 1000" in (await ask(40)).text
        assert (await ask(30, 30)).status_code == 400

    run(create_app(model, limits=Limits(image_pixels=1000, pixels=1000)), scenario)


def test_messages_of_errors_have_no_path_of_this_machine(model, tmp_path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path = folder / "plain.jinja"
    path.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    before = model.template
    try:
        model.template = path

        async def scenario(client: httpx.AsyncClient) -> None:
            tool = {"type": "function", "function": {"name": "f"}}
            answer = await client.post(CHAT, json={**HI, "tools": [tool]})
            assert answer.status_code == 400
            assert "plain.jinja" in answer.text
            assert str(folder) not in answer.text

        run(create_app(model), scenario)
    finally:
        model.template = before


def test_errors_of_our_own_are_not_told(model, monkeypatch, caplog) -> None:
    def broken(*args: Any, **more: Any) -> None:
        raise RuntimeError("the secret of line 7")

    monkeypatch.setattr(model, "_prepared_chat", broken)

    async def scenario(client: httpx.AsyncClient) -> None:
        for path, more in ((CHAT, {}), (MESSAGES, {"max_tokens": 4})):
            answer = await client.post(path, json={**HI, **more})
            assert answer.status_code == 500
            assert "secret" not in answer.text
            assert answer.json()["error"]["message"] == "an internal error"

    run(create_app(model), scenario)
    assert "the secret of line 7" in caplog.text, "who runs the server has to hear of it"


# ---- the queue ----------------------------------------------------------------------------------


def test_a_full_queue_is_429_and_what_was_taken_is_answered(model) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        body = {"model": "spark-nano", "prompt": "The fox", "max_tokens": 200, "min_tokens": 200}
        answers = await asyncio.gather(*(client.post(COMPLETIONS, json=body) for _ in range(12)))
        statuses = sorted(a.status_code for a in answers)
        assert statuses == [200] * 3 + [429] * 9
        for answer in answers:
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["error"]["code"] == "queue_full"
        assert (await client.post(COMPLETIONS, json=body)).status_code == 200

    run(create_app(model, limits=Limits(running=1, waiting=2)), scenario)


def test_one_client_with_many_requests_does_not_hold_up_another(model) -> None:
    body = {"model": "spark-nano", "prompt": "The fox", "max_tokens": 40, "min_tokens": 40}
    order: list[str] = []
    app = create_app(model, limits=Limits(running=1))

    async def scenario(client: httpx.AsyncClient) -> None:
        async def ask(who: str) -> None:
            address = {"greedy": "192.0.2.7", "modest": "192.0.2.8"}[who], 1
            transport = httpx.ASGITransport(app=app, client=address)
            key = {"authorization": f"Bearer {len(order)}"}  # which nobody checks
            async with httpx.AsyncClient(transport=transport, headers=key) as one:
                answer = await one.post(f"http://localhost{COMPLETIONS}", json=body)
            assert answer.status_code == 200
            order.append(who)

        many = [asyncio.ensure_future(ask("greedy")) for _ in range(20)]
        while "musespark_waiting 19.0" not in (await client.get("/metrics")).text and not order:
            await asyncio.sleep(0.001)
        await ask("modest")
        assert order.index("modest") < 10
        await asyncio.gather(*many)

    run(app, scenario)


def test_a_client_is_an_address_whatever_key_it_makes_up() -> None:
    assert client_of("192.0.2.7") != client_of("192.0.2.8")
    assert client_of("2001:db8::1") == client_of("2001:db8::ffff:1") != client_of("2001:db8:0:1::1")
    assert client_of("::ffff:192.0.2.7") == client_of("192.0.2.7")
    assert client_of("::1") != client_of("::2")
    assert client_of("testclient") == "testclient"
    assert client_of("192.0.2.7", "a") == client_of("192.0.2.7", "b")


def test_keys_tell_the_programs_of_this_machine_apart() -> None:
    assert client_of("127.0.0.1", "a") != client_of("127.0.0.1", "b") != client_of("127.0.0.1")
    assert client_of("::1", "a") == client_of("::1", "a")
    assert "secret" not in client_of("::1", "secret")


def test_what_does_not_fit_is_refused_with_the_numbers(model) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        body = {**HI, "max_tokens": 100_000}
        answer = await client.post(CHAT, json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert "2048" in answer.text

    run(create_app(model), scenario)


def test_a_client_that_takes_nothing_is_cut_off(model) -> None:
    app = create_app(model, limits=Limits(write_seconds=0.2))
    body = {"model": "spark-nano", "prompt": "The fox", "max_tokens": 1900, "min_tokens": 1900}
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    path = {"path": COMPLETIONS, "raw_path": COMPLETIONS.encode(), "root_path": ""}
    scope = {"type": "http", "method": "POST", "headers": headers, "query_string": b"", **path}
    sent: list[dict] = []

    async def main() -> None:
        stays = asyncio.Event()

        async def receive() -> dict:
            if not sent and not asked:
                asked.append(True)
                data = json.dumps({**body, "stream": True}).encode()
                return {"type": "http.request", "body": data, "more_body": False}
            await stays.wait()
            raise AssertionError("nobody goes away")

        async def send(message: dict) -> None:
            sent.append(message)
            if message["type"] == "http.response.body":
                await stays.wait()

        asked: list[bool] = []
        await asyncio.wait_for(app(scope, receive, send), 30)

    asyncio.run(main())
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert model._engine.stats()["running"] == 0


# ---- beside the protocols -----------------------------------------------------------------------


def test_models_health_metrics_and_the_description(model) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        listed = (await client.get("/v1/models")).json()["data"]
        assert [one["id"] for one in listed] == ["nano", "alias"]
        assert (await client.get("/v1/models/alias")).json()["id"] == "alias"
        assert (await client.get("/v1/models/other")).status_code == 404
        assert (await client.post(CHAT, json={**HI, "model": "alias"})).status_code == 200
        assert (await client.post(CHAT, json=HI)).status_code == 404
        text = (await client.get("/metrics")).text
        assert f'musespark_requests_total{{path="{CHAT}",status="200"}} 1.0' in text
        assert f'musespark_requests_total{{path="{CHAT}",status="404"}} 1.0' in text
        used = next(line for line in text.splitlines() if 'total{kind="completion"}' in line)
        assert float(used.split()[-1]) > 0
        assert "musespark_engine_running 0.0" in text
        for name in ("queue", "first_piece", "between_pieces"):
            ends = [line for line in text.splitlines() if f"{name}_seconds_bucket" in line]
            count = next(line for line in text.splitlines() if f"{name}_seconds_count" in line)
            counts = [float(line.split()[-1]) for line in ends]
            assert counts == sorted(counts) and 'le="+Inf"' in ends[-1]
            assert counts[-1] == float(count.split()[-1]) > 0
        assert 'musespark_queue_seconds_bucket{le="60.0"} 1.0' in text
        description = (await client.get("/openapi.json")).json()
        assert set(POSTS) <= set(description["paths"])
        assert description["components"]["schemas"]["ChatBody"]["properties"]["model"]["enum"]

    run(create_app(model, names=["nano", "alias"]), scenario)


def test_a_model_goes_by_no_path(model, tmp_path) -> None:
    class Info:
        def __init__(self, source: str):
            self.source = source

    class Model:
        def __init__(self, source: str):
            self.info = Info(source)

    assert name_of(model) == "spark-nano"
    assert name_of(Model(str(tmp_path / "a.safetensors"))) == "a"
    assert name_of(Model(str(tmp_path / "b-Q4.gguf"))) == "b-Q4"
    assert name_of(Model("org/name@0123abc")) == "org/name"


def test_without_its_libraries_the_server_says_which_extra_has_them(monkeypatch) -> None:
    import sys

    from musespark import server

    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    for name in ("metrics", "app", "work"):
        monkeypatch.delitem(sys.modules, f"musespark.server.{name}", raising=False)
    with pytest.raises(musespark.errors.MissingLibrary, match=r"musespark\[server\]"):
        _ = server.create_app
