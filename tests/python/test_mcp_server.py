"""A model as an MCP server: asked by the official SDK's client in this process, and, as the command
``musespark mcp``, by it and by ours."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import jsonschema
import pytest
from mcp import Client, MCPError, StdioServerParameters
from PIL import Image

import musespark
from musespark.agents import act
from musespark.agents.mcp import connect
from musespark.cli import main
from musespark.errors import InvalidRequest
from musespark.results import ChatResult, Delta
from musespark.server.mcp import ModelTools
from musespark.vision.trace import trace_of
from support.scripted_chat import Script, call

BESIDE = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
SERVE = ["-m", "musespark", "mcp", "--context", "512"]


def png() -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 48), "red").save(file, "PNG")
    return file.getvalue()


IMAGE = base64.b64encode(png()).decode()


@pytest.fixture(scope="module")
def nano() -> Iterator[Any]:
    with musespark.load(context=1024) as model:
        yield model


def ask(tools: ModelTools, use: Callable[[Client], Awaitable[Any]], mode: str = "auto") -> Any:
    """What ``use`` makes of a client of these tools."""

    async def main() -> Any:
        async with Client(tools.server(), mode=mode) as client:
            return await use(client)

    return asyncio.run(main())


def called(tools: ModelTools, name: str, **arguments: Any) -> Any:
    return ask(tools, lambda client: client.call_tool(name, arguments))


def refused(tools: ModelTools, name: str, **arguments: Any) -> str:
    """What a call that fails is told."""
    result = called(tools, name, **arguments)
    assert result.is_error and result.structured_content is None
    kind, _, said = result.content[0].text.partition(": ")
    assert result.meta["musespark/error"] == kind
    return f"{kind}: {said}"


# ---- generate ----------------------------------------------------------------------------------


def test_tools_are_told_with_their_schemas(nano: Any, tmp_path: Path) -> None:
    tools = ask(ModelTools(nano, [tmp_path]), lambda client: client.list_tools()).tools
    assert [tool.name for tool in tools] == ["generate", "see"]
    for tool in tools:
        jsonschema.Draft202012Validator.check_schema(tool.input_schema)
        jsonschema.Draft202012Validator.check_schema(tool.output_schema)
        assert tool.annotations.read_only_hint and not tool.annotations.open_world_hint
        assert tool.input_schema["additionalProperties"] is False
    assert str(tmp_path.resolve()) in tools[1].description


def test_generate(nano: Any) -> None:
    tools, question = ModelTools(nano), "What is 47 + 38?"
    more = {"temperature": 0.0, "seed": 3}
    result = called(tools, "generate", prompt=question, reasoning_effort="high", **more)
    found, same = result.structured_content, nano.chat(question, reasoning_effort="high", **more)
    assert found["content"] == same.content and found["seed"] == 3 and found["reasoning"] is None
    assert found["usage"]["completion_tokens"] == same.usage.completion_tokens
    assert found["finish_reason"] == "stop" and json.loads(result.content[0].text) == found
    (tool, _) = ask(tools, lambda client: client.list_tools()).tools
    jsonschema.validate(found, tool.output_schema)
    result = called(
        tools, "generate", prompt=question, thinking_token_budget=8, include_reasoning=True, **more
    )
    cut = nano.chat(question, thinking_token_budget=8, **more)
    assert result.structured_content["reasoning"] == cut.reasoning != same.reasoning
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": question},
    ]
    found = called(tools, "generate", messages=talk, max_tokens=5, **more).structured_content
    assert found["content"] == nano.chat(talk, max_new_tokens=5, **more).content


def test_generate_by_a_schema(nano: Any) -> None:
    schema = {"type": "object", "properties": {"sum": {"type": "integer", "maximum": 99}}}
    schema |= {"required": ["sum"], "additionalProperties": False}
    given = {"prompt": "What is 47 + 38?", "temperature": 0.0, "json_schema": schema}
    found = called(ModelTools(nano), "generate", **given).structured_content
    assert found["parsed"] == json.loads(found["content"]) and found["parse_error"] == ""
    jsonschema.validate(found["parsed"], schema)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "InvalidRequest: prompt, messages: allowed is one of them"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "allowed is one of them"),
        ({"prompt": ""}, "InvalidRequest: prompt: got ''"),
        ({"prompt": "a", "max_tokens": 0}, "InvalidRequest: max_tokens: got 0"),
        ({"prompt": "a", "max_tokens": "9"}, "InvalidRequest: max_tokens: got '9'"),
        ({"prompt": "a", "max_tokens": 5000}, "ContextOverflow: "),
        ({"prompt": "a", "seed": -1}, "InvalidRequest: seed: got -1"),
        ({"prompt": "a", "temperature": 3.0}, "InvalidRequest: temperature: got 3.0"),
        ({"prompt": "a", "reasoning_effort": "much"}, "reasoning_effort: got 'much'"),
        ({"prompt": "a", "thinking_token_budget": -1}, "thinking_token_budget: got -1"),
        ({"prompt": "a", "json_schema": {"not": {}}}, "InvalidRequest: json_schema: .*not"),
        ({"prompt": "a", "chat_template": "x"}, "chat_template: a template of a request is never"),
        ({"messages": [{"role": "tool", "content": "b"}]}, r"messages\[0\].role: got 'tool'"),
    ],
)
def test_calls_that_are_refused(nano: Any, arguments: dict[str, Any], says: str) -> None:
    said = refused(ModelTools(nano), "generate", **arguments)
    assert re.search(says, said), said


def test_a_tool_that_there_is_none_of(nano: Any) -> None:
    async def use(client: Client) -> None:
        with pytest.raises(MCPError, match="no tool 'shell', there are generate, see") as caught:
            await client.call_tool("shell", {})
        assert caught.value.code == -32602

    ask(ModelTools(nano), use)


# ---- see ---------------------------------------------------------------------------------------


def test_see(nano: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    tools = ModelTools(nano, [tmp_path])
    asked = {"question": "What colour is it?", "temperature": 0.0, "max_tokens": 20}
    found = called(tools, "see", image=IMAGE, **asked).structured_content
    parts = [{"type": "image", "image": png()}, {"type": "text", "text": asked["question"]}]
    same = nano.chat([{"role": "user", "content": parts}], temperature=0.0, max_new_tokens=20)
    assert found["content"] == same.content and found["usage"]["image_tokens"] > 0
    assert (found["width"], found["height"]) == (64, 48)
    for other in ({"image": f"data:image/png;base64,{IMAGE}"}, {"path": str(tmp_path / "a.png")}):
        assert called(tools, "see", **other, **asked).structured_content["content"] == same.content


def test_places_are_pixels_of_the_image(nano: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model writes of a place, by its convention, in the pixels that the client has."""
    said = '{"bbox_2d": [250, 500, 1000, 1200], "label": "door"}, {"point_2d": [500, 500]}'
    blank: dict[str, Any] = {"tokens": (), "seed": 0, "finish_reason": "stop"}
    result = ChatResult(text=said, content=said, reasoning="At [0, 0, 9, 9].", **blank)

    async def achat(messages: Any, **options: Any) -> Any:
        picture = messages[0]["content"][0]["image"]
        return Endless([Delta(said)], replace(result, trace=trace_of(result, [picture], "muse")))

    monkeypatch.setattr(nano, "achat", achat)
    found = called(ModelTools(nano), "see", image=IMAGE, question="Where?").structured_content
    box, point = found["places"]
    assert box == {
        "kind": "box",
        "label": "door",
        "points": [[16.0, 24.0], [64.0, 48.0]],
        "flags": ["clipped"],
    }
    assert (point["kind"], point["points"], point["flags"]) == ("point", [[32.0, 24.0]], [])


def test_only_files_of_allowed_folders_are_opened(nano: Any, tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    (inside / "deep").mkdir(parents=True)
    outside.mkdir()
    (outside / "a.png").write_bytes(png())
    (inside / "link.png").symlink_to(outside / "a.png")
    (inside / "linked").symlink_to(outside)
    (inside / "text.png").write_text("words")
    os.mkfifo(inside / "pipe.png")
    tools = ModelTools(nano, [inside])
    for path, says in (
        (outside / "a.png", f"allowed are absolute paths of files in {inside}"),
        (f"{inside}/../out/a.png", "allowed is a path without"),
        ("in/text.png", "allowed are absolute paths of files in"),
        (f"{inside}evil", "allowed are absolute paths of files in"),
        (inside / "link.png", "symbolic links"),
        (inside / "linked" / "a.png", "Not a directory"),
        (inside / "deep", "Is a directory"),
        (inside / "pipe.png", "no regular file"),
        (inside, "allowed is a path without"),
        (inside / "none.png", "No such file"),
        (f"{inside}/a\0b", "allowed is a path without"),
        (inside / "text.png", "CorruptFile: path"),
    ):
        said = refused(tools, "see", question="?", path=str(path))
        assert says in said, said
    said = refused(ModelTools(nano), "see", question="?", path=str(inside / "a.png"))
    assert said.endswith("allowed is none without --allow")
    with pytest.raises(InvalidRequest, match="--allow: there is no folder"):
        ModelTools(nano, [inside / "none"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"question": "?"}, "image, path: allowed is one of them"),
        ({"question": "?", "image": IMAGE, "path": "/a"}, "allowed is one of them"),
        ({"question": "?", "image": "%"}, "InvalidRequest: image: got '%', allowed is a file in"),
        ({"question": "?", "image": "/home/a.png"}, "is given by its path as path"),
        ({"question": "?", "image": "https://a.example/a.png"}, "image: got 'https://a.example"),
        ({"question": "?", "image": "data:;base64,%"}, "image: a data URL: not base64"),
        ({"question": "?", "image": "AAAA"}, "CorruptFile: image"),
        ({"question": "?", "image": "data:text,a"}, "InvalidRequest: image: "),
        ({"image": IMAGE}, "question is missing"),
    ],
)
def test_images_that_are_refused(nano: Any, arguments: dict[str, Any], says: str) -> None:
    assert says in refused(ModelTools(nano), "see", **arguments)


def test_a_model_that_reads_text_alone_does_not_see() -> None:
    blind: Any = SimpleNamespace(
        _requests=SimpleNamespace(eyes=None), info=SimpleNamespace(name="blind")
    )
    tools = ask(ModelTools(blind), lambda client: client.list_tools()).tools
    assert [tool.name for tool in tools] == ["generate"]


# ---- progress and cancelling -------------------------------------------------------------------


class Endless:
    """A stream of deltas that does not end, or of those given."""

    def __init__(self, deltas: list[Delta] | None = None, result: Any = None):
        self._deltas, self.result, self.closed = deltas, result, False
        self.begun = anyio.Event()

    async def __aenter__(self) -> Endless:
        self.begun.set()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.closed = True

    async def __aiter__(self) -> AsyncIterator[Delta]:
        for delta in self._deltas or ():
            yield delta
        while self._deltas is None:
            await asyncio.sleep(0.01)
            yield Delta("word ", "reasoning")


@pytest.mark.parametrize("how", ["cancelled by the client", "the client leaves"])
def test_what_ends_a_call_ends_the_generation(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musespark.server.mcp._PROGRESS_S", 0.02)
    told: list[tuple[float, str | None]] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        told.append((done, message))

    async def use(client: Client, stream: Endless) -> None:
        with anyio.move_on_after(30) as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "generate", {"prompt": "a"}, None, progress)
                await stream.begun.wait()
                while len(told) < 2:
                    await anyio.sleep(0.01)
                group.cancel_scope.cancel()
        assert not scope.cancelled_caught
        while how == "cancelled by the client" and not stream.closed:
            await anyio.sleep(0.01)

    async def main() -> None:
        stream = Endless()

        async def achat(messages: Any, **options: Any) -> Endless:
            return stream

        model: Any = SimpleNamespace(
            achat=achat,
            _requests=SimpleNamespace(eyes=None),
            info=SimpleNamespace(name="endless"),
        )
        async with Client(ModelTools(model).server(), mode="legacy") as client:
            await use(client, stream)
        assert stream.closed

    asyncio.run(asyncio.wait_for(main(), 60))
    (first, said), (second, _) = told[:2]
    assert first < second and said == f"{first:.0f} characters, now of the reasoning"


# ---- the command -------------------------------------------------------------------------------


def test_without_the_library(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "musespark.server.mcp")
    monkeypatch.setitem(sys.modules, "mcp", None)
    assert main(["mcp"]) == 1
    assert (
        "error: musespark mcp needs mcp 2: pip install 'musespark[mcp]'" in capsys.readouterr().err
    )


def test_the_command_for_the_sdks_client(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())

    async def main() -> None:
        arguments = [*SERVE, "--allow", str(tmp_path)]
        server = StdioServerParameters(command=sys.executable, args=arguments, env=BESIDE)
        async with Client(server) as client:
            assert client.server_info.name == "musespark"
            asked = {"prompt": "What is 47 + 38?", "temperature": 0.0}
            both = []
            async with anyio.create_task_group() as group:
                for _ in range(2):
                    group.start_soon(keep, both, client.call_tool("generate", asked))
            first, second = (one.structured_content for one in both)
            assert first["content"] == second["content"] == "85"
            asked = {"path": str(tmp_path / "a.png"), "question": "What is it?", "max_tokens": 4}
            assert (await client.call_tool("see", asked)).structured_content["width"] == 64

    asyncio.run(asyncio.wait_for(main(), 120))


async def keep(into: list[Any], answer: Awaitable[Any]) -> None:
    into.append(await answer)


def test_the_command_for_our_client() -> None:
    server = {"command": sys.executable, "args": SERVE, "env": BESIDE}
    with connect({"nano": server}) as tools:
        assert [(tool.name, tool.effects) for tool in tools] == [
            ("generate", False),
            ("see", False),
        ]
        calls = [call("generate", {"prompt": "What is 47 + 38?", "temperature": 0}, 1)]
        calls += [call("generate", {"prompt": "a", "max_tokens": 9999}, 2)]
        found = act(Script(calls, "Ok."), "?", tools)
        assert json.loads(found.uses[0].answer)["content"] == "85"
        assert found.uses[1].answer.startswith("error: nano: generate: ContextOverflow: ")
        with musespark.load(context=2048) as model:  # its schemas can be followed by a grammar
            model.act("Hi", tools, max_new_tokens=2, max_steps=1)


@pytest.mark.parametrize(("ends", "status"), [("the client leaves", 0), (signal.SIGTERM, 143)])
def test_how_the_command_ends(ends: str | signal.Signals, status: int) -> None:
    """Nothing but the protocol on standard output, and no word on standard error."""
    about = {"protocolVersion": "2025-11-25", "capabilities": {}}
    begin = {**about, "clientInfo": {"name": "test", "version": "1"}}
    asks = [("initialize", begin), ("tools/call", {"name": "generate", "arguments": {}})]
    if ends == "the client leaves":  # while it is being answered
        asks.append(("tools/call", {"name": "generate", "arguments": {"prompt": "a"}}))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, **BESIDE}
    with subprocess.Popen([sys.executable, *SERVE], env=environment, **pipes) as process:
        for number, (method, given) in enumerate(asks):
            message = {"jsonrpc": "2.0", "id": number, "method": method, "params": given}
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
            if number < 2:
                answer = json.loads(process.stdout.readline())
                assert (answer["jsonrpc"], answer["id"]) == ("2.0", number)
            if number == 0:
                process.stdin.write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
        if isinstance(ends, signal.Signals):
            process.send_signal(ends)
        else:
            process.stdout.close()
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        ended = process.poll()
        process.kill()
        assert ended == status and process.stderr.read().strip() == b""
