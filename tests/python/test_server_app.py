"""The server as an application, without a socket: what is answered, and what is there beside it."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

import musespark
from musespark.server import Access, Limits, create_app
from support.asgi import CHAT, COMPLETIONS, HI, MESSAGES, POSTS, TOKEN, events, run
from support.bert_models import CASES, SEEDS, folder_of


@pytest.fixture(scope="module")
def model():
    with musespark.load(threads=1) as loaded:
        yield loaded


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


def test_a_model_goes_by_no_path(model, tmp_path, monkeypatch) -> None:
    def named(source: object) -> str:
        return replace(model.info, source=str(source)).name

    assert model.info.name == "spark-nano"
    assert named(tmp_path / "a.safetensors") == "a"
    assert named(tmp_path / "b-Q4.gguf") == "b-Q4"
    assert named(f"{tmp_path}/folder/") == "folder"
    monkeypatch.chdir(tmp_path)
    assert named(".") == named("../" + tmp_path.name) == tmp_path.name
    assert named("org/name@0123abc") == "org/name"


def test_without_its_libraries_the_server_says_which_extra_has_them(monkeypatch) -> None:
    import sys

    from musespark import server

    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    for name in ("metrics", "app", "work"):
        monkeypatch.delitem(sys.modules, f"musespark.server.{name}", raising=False)
    with pytest.raises(musespark.errors.MissingLibrary, match=r"musespark\[server\]"):
        _ = server.create_app
