"""A model as an MCP server (Model Context Protocol) for one client, over standard input and output.

Two tools: ``generate`` answers a prompt or a conversation, ``see`` a question about an image, with
the places it names in pixels. Bodies and answers are those of this file, as JSON schemas that
clients are told; the protocol is the official SDK's (``musespark[mcp]``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio
import mcp_types as types
from mcp import MCPError
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.server.stdio import stdio_server
from pydantic import BaseModel, Field

from musespark import __version__
from musespark.errors import Error, InvalidRequest
from musespark.server.openai_chat import Effort
from musespark.server.wire import Body, Schema, Seed, Temperature, Text, Tokens, read_body
from musespark.untrusted import check_parts, checked_path, open_below
from musespark.vision.pixels import Limits, Picture, file_of, open_named

if TYPE_CHECKING:
    from musespark.model import Model
    from musespark.results import ChatResult

RUNNING = 16  # calls in the engine at once; more wait
_PROGRESS_S = 0.5  # between two reports
_PICTURE = Limits(file_bytes=32 << 20, pixels=1 << 25)
_READ = 1 << 16  # bytes


# ---- what is asked ------------------------------------------------------------------------------


class Asking(Body):
    """What both tools take."""

    max_tokens: Annotated[Tokens | None, Field(description="of the answer at most")] = None
    reasoning_effort: Annotated[Effort | None, Field(description="how long to think")] = None
    thinking_token_budget: Annotated[
        Annotated[int, Field(ge=0, lt=2**31)] | None, Field(description="of the thought at most")
    ] = None
    temperature: Annotated[Temperature | None, Field(description="0 is greedy")] = None
    seed: Annotated[Seed | None, Field(description="repeats an answer")] = None
    include_reasoning: Annotated[bool, Field(description="answer with the thought too")] = False

    def options(self) -> dict[str, Any]:
        """Of :meth:`musespark.Model.achat`."""
        names = ("reasoning_effort", "thinking_token_budget", "temperature", "seed")
        given = {name: getattr(self, name) for name in names}
        given["max_new_tokens"] = self.max_tokens
        return {name: value for name, value in given.items() if value is not None}


class Message(Body):
    role: Literal["system", "user", "assistant"]
    content: str


class Generate(Asking):
    """Answer a prompt, or go on with a conversation. Give one of prompt and messages."""

    prompt: Annotated[Text | None, Field(description="one turn of the user")] = None
    messages: Annotated[
        Annotated[list[Message], Field(min_length=1, max_length=4096)] | None,
        Field(description="a conversation"),
    ] = None
    json_schema: Annotated[
        Schema | None, Field(description="JSON schema that the answer has to satisfy")
    ] = None


class See(Asking):
    """Answer a question about an image, with the places that the answer names. Give one of image
    and path."""

    question: Text
    image: Annotated[Text | None, Field(description="PNG, JPEG, WebP, GIF or BMP in base64")] = None
    path: Annotated[Text | None, Field(description="an absolute path, where allowed")] = None


# ---- what is answered ---------------------------------------------------------------------------


class Used(BaseModel):
    """Tokens."""

    prompt_tokens: int
    cached_tokens: int
    image_tokens: int
    completion_tokens: int
    reasoning_tokens: int


class Answered(BaseModel):
    content: str
    reasoning: Annotated[str | None, Field(description="where asked for")]
    finish_reason: Literal["stop", "length", "tool_calls", "cancelled", "deadline"]
    seed: int
    usage: Used


class Generated(Answered):
    parsed: Annotated[Any, Field(description="the value of an answer by json_schema")] = None
    parse_error: Annotated[str, Field(description="why a whole answer has none")] = ""


class Place(BaseModel):
    """A place that the answer names, in pixels of the image from its left top corner."""

    kind: Literal["box", "point", "polygon"]
    label: str
    points: Annotated[
        list[list[float]], Field(description="x, y: of a box its left top and right bottom corner")
    ]
    flags: Annotated[list[str], Field(description="what is wrong with it, such as clipped")]


class Seen(Answered):
    width: int
    height: int
    places: list[Place]


# ---- the server ---------------------------------------------------------------------------------


class ModelTools:
    """A model's tools. ``folders``: those whose images ``see`` opens by their path; InvalidRequest
    for one that is none. A model that sees nothing has ``generate`` alone."""

    def __init__(self, model: Model, folders: Sequence[str | os.PathLike[str]] = ()):
        self._model, self._folders = model, [_folder(given) for given in folders]
        self._running = anyio.Semaphore(RUNNING)
        self._tools: dict[str, tuple[type[Asking], type[Answered], Callable[..., Any]]] = {
            "generate": (Generate, Generated, self._generate)
        }
        if model._requests.eyes is not None:
            self._tools["see"] = (See, Seen, self._see)

    def server(self) -> Server[Any]:
        """The SDK's server of these tools."""
        return Server(
            "musespark",
            version=__version__,
            instructions=f"The model {self._model.info.name}, on this machine.",
            on_list_tools=self._list,
            on_call_tool=self._call,
        )

    async def _list(self, context: ServerRequestContext[Any], page: Any) -> types.ListToolsResult:
        harmless = types.ToolAnnotations(read_only_hint=True, open_world_hint=False)
        tools = [
            types.Tool(
                name=name,
                description=self._description(asked),
                input_schema=asked.model_json_schema(),
                output_schema=answered.model_json_schema(),
                annotations=harmless,
            )
            for name, (asked, answered, _) in self._tools.items()
        ]
        return types.ListToolsResult(tools=tools)

    def _description(self, asked: type[Asking]) -> str:
        said = " ".join((asked.__doc__ or "").split())
        if asked is not See:
            return said
        folders = ", ".join(str(folder) for folder in self._folders)
        return f"{said} Paths are allowed in: {folders or 'no folder'}."

    async def _call(
        self, context: ServerRequestContext[Any], call: types.CallToolRequestParams
    ) -> types.CallToolResult:
        if call.name not in self._tools:
            known = ", ".join(self._tools)
            raise MCPError(types.INVALID_PARAMS, f"no tool {call.name!r:.60}, there are {known}")
        asked, _, answer = self._tools[call.name]
        try:
            body = read_body(asked, call.arguments or {})
            async with self._running:
                answered: Answered = await answer(body, context)
        except (Error, OSError) as error:
            kind = type(error).__name__
            return types.CallToolResult(
                content=[types.TextContent(text=f"{kind}: {error}")],
                is_error=True,
                _meta={"musespark/error": kind},
            )
        return types.CallToolResult(
            content=[types.TextContent(text=answered.model_dump_json())],
            structured_content=answered.model_dump(mode="json"),
        )

    async def _generate(self, body: Generate, context: ServerRequestContext[Any]) -> Generated:
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequest("prompt, messages: allowed is one of them")
        messages = [message.model_dump() for message in body.messages or ()]
        options = body.options() | {"json_schema": body.json_schema}
        result = await self._answer(body.prompt or messages, options, context)
        told = _told(body, result)
        return Generated(**told, parsed=result.parsed, parse_error=result.parse_error)

    async def _see(self, body: See, context: ServerRequestContext[Any]) -> Seen:
        picture = await anyio.to_thread.run_sync(self._picture, body)
        parts = [{"type": "image", "image": picture}, {"type": "text", "text": body.question}]
        messages = [{"role": "user", "content": parts}]
        result = await self._answer(messages, body.options(), context)
        steps = result.trace.steps if result.trace is not None else ()
        regions = [one for step in steps if step.channel == "content" for one in step.regions]
        places = [
            Place(kind=one.kind, label=one.label, points=one.points, flags=one.flags)
            for one in regions
        ]
        height, width = picture.size
        return Seen(**_told(body, result), width=width, height=height, places=places)

    async def _answer(
        self, messages: Any, options: dict[str, Any], context: ServerRequestContext[Any]
    ) -> ChatResult:
        """The model's answer. What cancels the call cancels the request."""
        written, due = 0, time.monotonic() + _PROGRESS_S
        async with await self._model.achat(messages, stream=True, **options) as stream:
            async for delta in stream:
                written += len(delta.text)
                if time.monotonic() >= due:
                    due = time.monotonic() + _PROGRESS_S
                    told = f"{written} characters, now of the {delta.channel}"
                    await context.session.report_progress(written, message=told)
        return stream.result

    # ---- images ---------------------------------------------------------------------------------

    def _picture(self, body: See) -> Picture:
        if (body.image is None) == (body.path is None):
            raise InvalidRequest("image, path: allowed is one of them")
        if body.path is not None:
            return open_named(self._file(body.path), "path", limits=_PICTURE)
        given = body.image or ""
        whole = given[:5].lower() == "data:"
        try:
            file = file_of(given if whole else f"data:;base64,{given}")
        except InvalidRequest as error:
            if whole or "not base64" not in str(error):
                raise InvalidRequest(f"image: {error}") from None
            raise InvalidRequest(
                f"image: got {given!r:.60}, allowed is a file in base64; one that lies in a folder "
                "is given by its path as path"
            ) from None
        return open_named(file, "image", limits=_PICTURE)

    def _file(self, path: str) -> bytes:
        """What is in a file of an allowed folder; InvalidRequest for any other."""
        given = Path(path)
        for folder in self._folders:
            if given.is_absolute() and given.is_relative_to(folder):
                parts = given.relative_to(folder).parts
                check_parts(path, parts or ("",))
                try:
                    return _bytes_of(open_below(folder, parts))
                except OSError as error:
                    raise InvalidRequest(f"path: {path!r:.200}: {error.strerror}") from None
        known = ", ".join(map(str, self._folders))
        allowed = f"are absolute paths of files in {known}" if known else "is none without --allow"
        raise InvalidRequest(f"path: got {path!r:.200}, allowed {allowed}")


def _bytes_of(handle: int) -> bytes:
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise InvalidRequest("path: it is no regular file")
        return file.read(_PICTURE.file_bytes + 1)  # one more is refused


def _told(body: Asking, result: ChatResult) -> dict[str, Any]:
    usage = {name: getattr(result.usage, name) for name in Used.model_fields}
    return {
        "content": result.content,
        "reasoning": result.reasoning if body.include_reasoning else None,
        "finish_reason": result.finish_reason,
        "seed": result.seed,
        "usage": usage,
    }


def _folder(given: str | os.PathLike[str]) -> Path:
    path = checked_path(given, "--allow")
    if not path.is_dir():
        raise InvalidRequest(f"--allow: there is no folder {str(path)!r:.200}")
    return path.resolve()


# ---- standard input and output ------------------------------------------------------------------


async def serve(tools: ModelTools, descriptor: int = 0) -> None:
    """Serves one client over standard output and a descriptor, standard input, until that ends.
    Meanwhile what else is written to standard output goes to standard error."""
    server = tools.server()
    async with stdio_server(stdin=_lines(descriptor)) as (read, write):  # type: ignore[arg-type]
        await server.run(read, write, server.create_initialization_options())


async def _lines(descriptor: int) -> AsyncIterator[str]:
    """Lines of UTF-8. Nothing ends the reading of a pipe, and a signal is to end the server at
    once: a thread reads that nobody waits for."""
    loop, read = asyncio.get_running_loop(), asyncio.Queue[bytes]()
    threading.Thread(target=_read, args=(descriptor, loop, read), daemon=True).start()
    pieces: list[bytes] = []
    while data := await read.get():
        first, *more = data.split(b"\n")
        pieces.append(first)
        for piece in more:
            yield b"".join(pieces).decode(errors="replace")
            pieces = [piece]


def _read(descriptor: int, loop: asyncio.AbstractEventLoop, into: asyncio.Queue[bytes]) -> None:
    """Reads to the end, which is an empty piece."""
    data = b"..."
    with contextlib.suppress(RuntimeError):  # the loop is closed
        while data:
            data = os.read(descriptor, _READ)
            loop.call_soon_threadsafe(into.put_nowait, data)
