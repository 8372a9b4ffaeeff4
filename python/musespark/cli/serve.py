"""``musespark serve``: a model for other programs, over OpenAI's and Anthropic's protocols, and on
a page for people."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
from typing import Any

from musespark.cli import common
from musespark.errors import InvalidRequest, MissingLibrary
from musespark.machine import bytes_of

TOKEN = "MUSESPARK_TOKEN"  # the environment variable, which other users do not see
_BACKLOG = 1024  # connections that the system holds until they are taken
# Of prompts' beginnings, in memory: a server stays for days beside other programs, and fills what
# it may have. This much is 60,000 tokens of a 1B model, a million of Spark Nano.
PREFIX_CACHE_BYTES = 1 << 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    common.add_adapter_argument(parser)
    common.add_drafter_argument(parser)
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0: any that is free")
    parser.add_argument(
        "--token",
        help=f"what clients have to send as their API key (better: {TOKEN} in the environment)",
    )
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        help="what clients call the model (repeatable; default: the name of its file or folder)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that this machine is reached by (repeatable)",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="whose pages may ask from browsers, such as https://app.example (repeatable)",
    )
    parser.add_argument(
        "--prefix-cache-bytes",
        default=str(PREFIX_CACHE_BYTES),
        metavar="BYTES",
        help="memory for what prompts begin with, beside what requests use (default: 1G)",
    )
    parser.add_argument("--running", type=int, help="requests in the engine at once (default: 32)")
    parser.add_argument(
        "--waiting", type=int, help="requests that wait, before 429 is answered (default: 128)"
    )
    parser.add_argument(
        "--drain",
        type=int,
        default=30,
        metavar="SECONDS",
        help="how long requests under way may go on after SIGTERM or Ctrl-C (default: 30)",
    )


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens; InvalidRequest for a port or host that cannot be."""
    if not 0 <= port < 65536:
        raise InvalidRequest(f"--port: got {port}, allowed is 0 to 65535")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family, backlog=_BACKLOG)
    except OSError as error:
        raise InvalidRequest(f"--host {host} --port {port}: {error.strerror}") from None


def _limits(args: argparse.Namespace) -> Any:
    from musespark.server import Limits

    given = {"running": args.running, "waiting": args.waiting}
    return Limits(**{name: value for name, value in given.items() if value is not None})


def _check_context(model: Any, given: int | None) -> None:
    """InvalidRequest for a context that was asked for and has room for no chat."""
    if given is None or model.template is None:
        return
    from musespark.prompts import encode_chat

    shortest = [{"role": "user", "content": "?"}]
    least = len(encode_chat(model.tokenizer, model.template, shortest)) + 1
    if given < least:
        raise InvalidRequest(
            f"--context: got {given}, allowed is {least} or more: a question of one letter takes "
            f"{least - 1} tokens with what the chat template puts around it, its answer at least 1"
        )


def _ended_quietly(app: Any) -> Any:
    """The application as uvicorn has to have it: the task of a request that the end of the drain
    cancels has nothing after the application, which has told the client and whose cancellation
    uvicorn would show as an error of it."""
    import asyncio  # here: it takes longer than mapping the weights

    async def outermost(scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    return outermost


def run(args: argparse.Namespace) -> int:
    try:
        import uvicorn
    except ImportError as error:
        raise MissingLibrary(
            "musespark serve needs uvicorn: pip install 'musespark[server]'"
        ) from error
    from musespark.server import Access, create_app
    from musespark.server.connections import config_of

    if args.drain < 0:
        raise InvalidRequest(f"--drain: got {args.drain}, allowed is 0 or more")
    token = args.token if args.token is not None else os.environ.get(TOKEN) or None
    origins = frozenset(origin.lower() for origin in args.allow_origin)
    access, limits = Access(args.host, token, frozenset(args.allow_host), origins), _limits(args)
    remembered = bytes_of(args.prefix_cache_bytes, "--prefix-cache-bytes")
    with contextlib.ExitStack() as opened:
        listening = opened.enter_context(_listening(args.host, args.port))
        model = opened.enter_context(common.load_model(args, None, prefix_cache_bytes=remembered))
        _check_context(model, args.context)
        app = create_app(model, names=args.name, access=access, limits=limits)
        config = config_of(_ended_quietly(app), limits, timeout_graceful_shutdown=args.drain)
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        logging.getLogger("uvicorn.error").addFilter(_is_no_end_of_drain)
        common.show(f"{model.info.source}: http://{shown}:{port}/v1")
        common.show(f"the page: http://{shown}:{port}/")
        _told(uvicorn.Server(config), args.drain).run(sockets=[listening])
    return 0


def _is_no_end_of_drain(record: logging.LogRecord) -> bool:
    """Not uvicorn's line that the end of the drain cancels tasks, as if it were an error: who ended
    the server was told when that will be (:func:`_told`), and so are the clients."""
    return "timeout graceful shutdown exceeded" not in record.getMessage()


def _told(server: Any, drain: int) -> Any:
    """The server; who ends it is told what it waits for."""
    end = server.shutdown

    async def shutdown(sockets: Any = None) -> None:
        if under_way := len(server.server_state.tasks):
            what = f"{under_way} request{'s are' if under_way > 1 else ' is'} under way"
            common.note(f"ending: {what}, for at most {drain} s; Ctrl-C again ends it at once")
        await end(sockets)

    server.shutdown = shutdown
    return server
