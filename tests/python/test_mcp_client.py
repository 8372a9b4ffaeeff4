"""Tools of MCP servers in :func:`act`: servers of the official SDK, in a process of their own and
over HTTP, and what servers may say that is wrong."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mcp_types as types
import numpy as np
import pytest

import musespark
from musespark.agents import aact, act, events
from musespark.agents.mcp import connect
from musespark.agents.mcp.connection import Connection
from musespark.agents.mcp.places import Place, places_of
from musespark.agents.mcp.results import followed_schema, value_of
from musespark.agents.mcp.session import Patience
from musespark.agents.tools import Content, Tool
from musespark.errors import DeadlineExceeded, InvalidRequest, ToolServerFailed
from support import mcp_server
from support.scripted_chat import Script, call
from support.serving import served, within

COMMAND = [sys.executable, mcp_server.__file__]


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    """The URL of the test's server, in this process."""
    with served(mcp_server.SERVER.streamable_http_app()) as url:
        yield f"{url}/mcp"


@pytest.fixture(autouse=True)
def nothing_noted() -> None:
    mcp_server.NOTES.clear()


def named(tools: list[Tool]) -> dict[str, Tool]:
    return {tool.name: tool for tool in tools}


def ours() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name == "musespark-mcp"]


# ---- from end to end ---------------------------------------------------------------------------


def test_tools_of_two_servers_and_a_function_in_act(web: str) -> None:
    def double(n: int) -> int:
        return 2 * n

    chosen = {"url": web, "tools": ["add", "shot"]}
    with connect({"files": COMMAND, "web": chosen}) as tools:
        names = [tool.name for tool in tools]
        assert names[:3] == ["files_add", "note", "odd"] and names[-2:] == ["web_add", "web_shot"]
        calls = [call("files_add", {"a": 2, "b": 3}, 1), call("web_add", {"a": 4, "b": 5}, 2)]
        calls += [call("double", {"n": 7}, 3), call("files_add", {"a": "x", "b": 1}, 4)]
        chat = Script(calls, "Ok.")
        found = act(chat, "?", [*tools, double], dry_run=True)
        assert [use.answer for use in found.uses[:3]] == ["5", "9", "14"]
        assert found.uses[3].answer == "error: files_add.a: 'x', must be integer"
        function = chat.seen[0][1]["tools"][0]["function"]
        assert function["description"] == "Add two numbers."
        assert function["parameters"]["required"] == ["a", "b"]
        process = int(named(tools)["pid"]({}))
        calls = [call("die", {}, 1), call("pid", {}, 2), call("web_add", {"a": 1, "b": 1}, 3)]
        found = act(Script(calls, "Ok."), "?", tools, dry_run=True)
        gone = "the server ended; what it wrote to standard error may say why"
        assert [use.answer for use in found.uses] == [
            f"error: files: die: {gone}",
            f"error: files: pid: {gone}",
            "2",
        ]
        assert found.uses[0].status == found.uses[1].status == "error" and ours()
    assert not ours() and not Path(f"/proc/{process}").exists()
    with pytest.raises(ToolServerFailed, match="web: add: the connection is closed"):
        named(tools)["web_add"]({"a": 1, "b": 1})


def test_tools_in_aact_and_a_task_that_is_cancelled(web: str) -> None:
    async def main() -> None:
        async with connect({"files": COMMAND, "web": web}, prefix=True) as tools:
            assert all(tool.is_async for tool in tools) and "web_pid" in named(tools)
            script = Script([call("files_add", {"a": 2, "b": 3})], "Ok.")
            found = await aact(script.asynchronous, "?", tools, dry_run=True)
            assert found.uses[0].answer == "5"
            task = asyncio.ensure_future(named(tools)["web_slow"]({}))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            process = int(await named(tools)["files_pid"]({}))
        assert not ours() and not Path(f"/proc/{process}").exists()

    asyncio.run(main())
    within(lambda: mcp_server.NOTES == ["cancelled"], "the server was not told")


def test_the_value_of_a_configuration_file(web: str) -> None:
    file = json.dumps({"mcpServers": {"web": {"type": "http", "url": web}}})
    with connect(json.loads(file)) as tools:
        assert named(tools)["add"]({"a": 1, "b": 2}) == "3"
    (place,) = places_of({"mcpServers": {"a": {"type": "stdio", "command": "x", "args": ["y"]}}})
    assert (place.name, place.command) == ("a", ("x", "y"))
    (place,) = places_of({"mcpServers": ["x"]})  # a server of that name
    assert (place.name, place.command) == ("mcpServers", ("x",))


def test_a_call_takes_no_longer_than_timeout(web: str) -> None:
    with connect({"web": web}, timeout=0.2) as tools:
        found = act(Script([call("slow", {})], "Ok."), "?", tools, dry_run=True)
        assert found.uses[0].answer == "error: web: slow: no answer within timeout, 0.2 s"
        with pytest.raises(DeadlineExceeded, match="web: slow"):
            named(tools)["slow"]({})
    within(lambda: mcp_server.NOTES == ["cancelled"] * 2, "the server was not told")


def test_ctrl_c_ends_a_call(web: str) -> None:
    main = threading.main_thread().ident
    with connect({"web": web}) as tools:
        timer = threading.Timer(0.3, signal.pthread_kill, [main, signal.SIGINT])
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                named(tools)["slow"]({})
        finally:
            signal.signal(signal.SIGINT, before)
        within(lambda: mcp_server.NOTES == ["cancelled"], "the server was not told")
        assert named(tools)["add"]({"a": 1, "b": 2}) == "3"


def test_a_connection_may_be_left_while_a_thread_waits_and_entered_again(web: str) -> None:
    failed: list[Exception] = []

    def wait(tool: Tool) -> None:
        try:
            tool({})
        except Exception as error:
            failed.append(error)

    connection = connect({"web": web})
    with connection as tools:
        thread = threading.Thread(target=wait, args=(named(tools)["slow"],))
        thread.start()
        time.sleep(0.2)
        with pytest.raises(InvalidRequest, match="this connection is open"):
            connection.__enter__()
    thread.join(20)
    assert [type(error) for error in failed] == [ToolServerFailed]
    assert "web: slow: " in str(failed[0])
    with connection as tools:  # again
        assert named(tools)["add"]({"a": 1, "b": 2}) == "3"


# ---- effects, instructions, pictures, errors ---------------------------------------------------


def test_what_has_effects_waits_for_approval(web: str) -> None:
    asked: list[events.ProposedCall] = []

    def approve(one: events.ProposedCall) -> bool:
        assert mcp_server.NOTES == []
        asked.append(one)
        return len(asked) > 1

    with connect({"web": web}) as tools:
        effects = {name for name, tool in named(tools).items() if tool.effects}
        assert effects == {"note", "odd", "append"}
        with pytest.raises(InvalidRequest, match="approve: got None, but note, odd, append has"):
            act(Script(), "?", tools)
        notes = [call("note", {"text": text}, n) for n, text in enumerate("ab", 1)]
        calls = [call("poisoned", {}), *notes]
        found = act(Script(calls, "Ok."), "?", tools, approve=approve)
        assert [one.arguments for one in asked] == [{"text": "a"}, {"text": "b"}]
        assert [use.status for use in found.uses] == ["done", "refused", "done"]
        assert mcp_server.NOTES == ["b"] and asked[0].flags[0].reason == "overrides instructions"
    with connect({"web": web}, trust_hints=False) as tools:
        assert all(tool.effects for tool in tools)


def test_instructions_in_results_and_errors_are_flagged(web: str) -> None:
    with connect({"web": web}) as tools:
        calls = [call("poisoned", {}, 1), call("fail", {}, 2), call("add", {"a": 1, "b": 1}, 3)]
        found = act(Script(calls, "Ok."), "?", tools, dry_run=True)
        first, second, third = found.uses
        assert first.answer == mcp_server.POISON and first.status == "done"
        assert second.answer.startswith("error: web: fail: ") and second.status == "error"
        assert mcp_server.POISON in second.answer
        for use in (first, second):
            reasons = {flag.reason for flag in use.flags}
            assert reasons >= {"overrides instructions", "asks for a call", "imitates markers"}
        assert third.flags == () and found.messages[2]["content"] == mcp_server.POISON


@pytest.mark.parametrize("sees", [True, False])
def test_a_picture_comes_as_pixels(web: str, sees: bool) -> None:
    with connect({"web": {"url": web, "tools": ["shot"]}}) as tools:
        found = act(Script([call("shot", {})], "Ok."), "?", tools, sees=sees)
    content = found.messages[2]["content"]
    if not sees:
        told = "a shot\n[images, which this model cannot see: 1]"
        assert content == found.uses[0].answer == told
        return
    text, image = content
    assert text == {"type": "text", "text": "a shot"} and image["type"] == "image"
    assert np.array_equal(image["image"].pixels, [[[255, 0, 0]]])


def test_nano_is_told_of_a_picture_and_calls_are_held_to_schemas(web: str) -> None:
    """Nano's own turns: a schema with what no grammar follows, and an image in a tool's message."""
    with musespark.load(context=2048) as nano, connect({"web": web}) as tools:
        pick = named(tools)["pick"]
        assert "uniqueItems" not in pick.parameters["properties"]["names"]
        ended = nano.act("Hi", tools, dry_run=True, max_new_tokens=8, max_steps=1).ended
        assert ended in ("answer", "length", "max_steps")
        strict = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
        other = Tool("other", "", {"properties": {"a": strict}}, lambda a: a)
        with pytest.raises(InvalidRequest, match=r"tools: other: .*uniqueItems.*tool_choice=None"):
            nano.act("Hi", [pick, other])
        shot = named(tools)["shot"]
        given = [
            {"role": "user", "content": "Look."},
            {"role": "assistant", "content": "", "tool_calls": [call("shot", {})]},
            {"role": "tool", "name": "shot", "tool_call_id": "call_1", "content": shot({}).parts},
        ]
        assert nano.chat(given, tools=[shot.to_openai()], max_new_tokens=2).images.tokens > 0


# ---- what is wrong -----------------------------------------------------------------------------

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.mark.parametrize(
    ("server", "kind", "says"),
    [
        (["/nowhere/server"], ToolServerFailed, "bad: '/nowhere/server': No such file"),
        ([sys.executable, "-c", "raise SystemExit(3)"], ToolServerFailed, "bad: the server ended"),
        (SLEEP, DeadlineExceeded, "bad: the server did not answer within start_timeout, 0.3 s"),
        ("http://127.0.0.1:9/mcp", ToolServerFailed, "bad: ConnectError"),
    ],
)
def test_a_server_that_cannot_be_had(
    server: Any, kind: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcp.client.stdio.PROCESS_TERMINATION_TIMEOUT", 0.1)
    start = 0.3 if server is SLEEP else 60
    with (
        pytest.raises(kind, match=says),
        connect({"bad": server}, start_timeout=start),
    ):
        pytest.fail("it was connected to")
    assert not ours()


def test_one_server_that_fails_ends_the_others(web: str) -> None:
    with pytest.raises(ToolServerFailed, match="bad: "), connect({"web": web, "bad": ["/nowhere"]}):
        pytest.fail("it was connected to")
    with (
        pytest.raises(InvalidRequest, match=r"servers\['web'\].tools: got 'sub', it has add, note"),
        connect({"web": {"url": web, "tools": ["add", "sub"]}}),
    ):
        pytest.fail("it has no such tool")
    assert not ours()


@pytest.mark.parametrize(
    ("servers", "says"),
    [
        ({}, "servers: got {}"),
        (["a"], "servers: got"),
        ({"a b": "http://x"}, "servers: got the name 'a b'"),
        ({"a": "server.py"}, r"servers\['a'\]: got 'server.py', allowed is http://"),
        ({"a": []}, r"servers\['a'\]: got \[\], allowed is a command"),
        ({"a": ["x", 3]}, r"servers\['a'\]: got 3 in it"),
        ({"a": {"command": "x", "url": "http://x"}}, "allowed is one of command and url"),
        ({"a": {"comand": "x"}}, "got 'comand', allowed are command, args"),
        ({"a": {"command": "x", "args": "y"}}, r"servers\['a'\].args: got 'y'"),
        ({"a": {"command": "x", "env": {"A": 3}}}, r"servers\['a'\].env: allowed is a dict"),
        ({"a": {"url": "http://x", "env": {}}}, "'env' has no meaning beside 'url'"),
        ({"a": {"command": "x", "headers": {}}}, "'headers' has no meaning beside 'command'"),
        ({"mcpServers": {}}, r"servers\['mcpServers'\]: got none"),
        ({"mcpServers": {"a": {"command": "x"}}, "b": 1}, "got 'b' beside 'mcpServers'"),
        ({"mcpServers": {"a": {"comand": "x"}}}, r"servers\['a'\]: got 'comand'"),
        (
            {"a": {"type": "sse", "url": "http://x"}},
            "a'.*.type: got 'sse', allowed beside 'url' is",
        ),
        ({"a": {"type": "http", "command": "x"}}, "allowed beside 'command' is stdio"),
        ({"a": {"command": "x", "tools": "read"}}, r"servers\['a'\].tools: got 'read'"),
    ],
)
def test_servers_that_are_none(servers: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        connect(servers)


@pytest.mark.parametrize("option", ["timeout", "start_timeout", "prefix", "trust_hints"])
def test_options_that_are_none(option: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{option}: got -1"):
        connect({"a": ["x"]}, **{option: -1})


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(musespark.MissingLibrary, match=r"pip install 'musespark\[mcp\]'"):
        connect({"a": ["x"]})


def test_secrets_are_shown_nowhere() -> None:
    place = Place("a", ("x",), env={"KEY": "hidden"}, headers={"Authorization": "hidden"})
    assert "hidden" not in repr(place)


# ---- names -------------------------------------------------------------------------------------


def named_as(prefix: bool = False, **servers: list[str]) -> list[str]:
    """What tools of such names of such servers are called."""
    connection = Connection([], Patience(1, 1), prefix=prefix, trust_hints=True)
    connection._sessions = [
        SimpleNamespace(place=Place(name), tools=[types.Tool(name=n, input_schema={}) for n in own])
        for name, own in servers.items()
    ]  # type: ignore[assignment]
    return [tool.name for tool in connection._tools(lambda session, tool: print)]


def test_names() -> None:
    assert named_as(a=["read", "x"], b=["write", "x"]) == ["read", "a_x", "write", "b_x"]
    assert named_as(b=["write", "x"], a=["x", "read"]) == ["write", "b_x", "a_x", "read"]
    assert named_as(prefix=True, a=["read"]) == ["a_read"]
    assert named_as(a=["fs/read file", "7z", "", "_x", "a.b-c"]) == [
        *("fs_read_file", "a_7z", "a_", "_x", "a.b-c")
    ]
    assert named_as(a=["x/y"], b=["x_y"]) == ["a_x_y", "b_x_y"]
    with pytest.raises(InvalidRequest, match=r"servers\['b'\]: its tool 'x' would be called b_x"):
        named_as(a=["b_x", "x"], b=["x"])
    with pytest.raises(InvalidRequest, match="at most 64 characters"):
        named_as(a=["x" * 65])
    with pytest.raises(InvalidRequest, match="would be called a_x"):
        named_as(a=["x", "x"])


# ---- schemas and results -----------------------------------------------------------------------


def test_schemas_without_what_no_grammar_follows() -> None:
    union = [{"type": "string", "pattern": "^(?!a)"}, {"type": "string", "pattern": "^a"}]
    given = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "not": {"type": "array", "items": {"$ref": "#/$defs/a"}, "uniqueItems": True},
            "b": {"type": "object", "propertyNames": {"type": "string"}, "minProperties": 1},
            "c": {"oneOf": union},
        },
        "required": ["not"],
        "if": {"required": ["b"]},
        "$defs": {"a": {"type": "string", "not": {"const": "x"}}},
    }
    assert followed_schema(given, "s: t") == {
        "type": "object",
        "properties": {
            "not": {"type": "array", "items": {"$ref": "#/$defs/a"}},
            "b": {"type": "object", "minProperties": 1},
            "c": {"anyOf": [{"type": "string"}, {"type": "string", "pattern": "^a"}]},
        },
        "required": ["not"],
        "$defs": {"a": {"type": "string"}},
    }
    for bad, says in (
        ({"type": "array"}, "s: t: its inputSchema is of type 'array'"),
        ({"properties": 5}, "s: t: its inputSchema is no JSON schema .*: properties: 5 is not"),
        ({"properties": {"a": {"minimum": "x"}}}, "properties/a/minimum: 'x' is not"),
    ):
        with pytest.raises(ToolServerFailed, match=says):
            followed_schema(bad, "s: t")


@pytest.mark.parametrize("checks", [True, False])
def test_a_schema_that_is_nested_too_deeply(checks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """For who checks it, and for who follows it where that one would have been content."""
    if not checks:
        monkeypatch.setattr("jsonschema.Draft202012Validator.check_schema", lambda schema: None)
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(2000):
        schema = {"items": schema}
    with pytest.raises(ToolServerFailed, match=r"s: t: its inputSchema is nested too deeply"):
        followed_schema({"type": "object", "properties": {"a": schema}}, "s: t")


def picture(data: bytes) -> types.ImageContent:
    return types.ImageContent(data=base64.b64encode(data).decode(), mime_type="image/png")


def value(*content: Any, **more: Any) -> Any:
    return value_of(types.CallToolResult(content=list(content), **more), "s: t")


def test_results() -> None:
    text = types.TextContent(text="one")
    link = types.ResourceLink(name="r", uri="file:///r")
    held = types.TextResourceContents(uri="file:///t", text="three")
    blob = types.BlobResourceContents(uri="file:///b", blob="AAAA", mime_type="a/b")
    shown = types.BlobResourceContents(
        uri="file:///p", blob=base64.b64encode(mcp_server.PIXEL).decode(), mime_type="image/png"
    )
    every = [text, link, *(types.EmbeddedResource(resource=one) for one in (held, blob))]
    every.append(types.AudioContent(data="AAAA", mime_type="audio/wav"))
    told = "one\n[resource r: file:///r]\nthree\n[resource file:///b: 3 bytes of a/b]\n"
    assert value(*every) == told + "[audio: audio/wav, which is not told]"
    both = value(text, types.EmbeddedResource(resource=shown))
    assert isinstance(both, Content) and both.text == "one" and len(both.parts) == 2
    assert value() == "" and value(structured_content={"a": "é"}) == '{"a": "é"}'
    assert value(text, structured_content={"a": 1}) == "one"
    with pytest.raises(ToolServerFailed, match=r"s: t: the tool gave the number -Infinity"):
        value(structured_content={"a": float("-inf")})
    for content, says in (
        ([text], "s: t: one"),
        ([], "s: t: it failed, and does not say why"),
    ):
        with pytest.raises(ToolServerFailed, match=says):
            value(*content, is_error=True)


def test_pictures_that_are_none() -> None:
    with pytest.raises(ToolServerFailed, match="s: t: a picture that is not base64"):
        value(types.ImageContent(data="/etc/passwd!", mime_type="image/png"))
    with pytest.raises(musespark.CorruptFile, match="s: t"):
        value(picture(b"/etc/passwd"))
    with pytest.raises(ToolServerFailed, match="s: t: 17 pictures, at most 16"):
        value(*[picture(mcp_server.PIXEL)] * 17)


def test_a_long_text_beside_a_picture_is_cut() -> None:
    def long() -> Content:
        image = {"type": "image", "image": np.zeros((1, 1, 3), np.uint8)}
        return Content([{"type": "text", "text": "a" * 20_000}, image])

    found = act(Script([call("long", {})], "Ok."), "?", [long])
    image, text = found.messages[2]["content"]
    assert image["type"] == "image" and text["text"] == found.uses[0].answer
    assert found.uses[0].left_out == 20_000 - 16_384
