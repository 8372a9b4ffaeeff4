"""``musespark mcp``: a model as an MCP server on standard input and output."""

from __future__ import annotations

import argparse
import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

from musespark.cli import common
from musespark.errors import MissingLibrary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    common.add_adapter_argument(parser)
    common.add_drafter_argument(parser)
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="FOLDER",
        help="where the tool `see` may open images by absolute path (repeatable; default: nowhere)",
    )


def run(args: argparse.Namespace) -> int:
    try:
        import anyio

        from musespark.server.mcp import ModelTools, serve
    except ImportError as error:
        if (error.name or "").startswith("musespark"):
            raise
        raise MissingLibrary("musespark mcp needs mcp 2: pip install 'musespark[mcp]'") from error
    with common.load_model(args, "chat") as model:
        tools = ModelTools(model, args.allow)
        terminated = False
        try:
            terminated = anyio.run(_until_terminated, serve(tools))
        except Exception as error:
            # The client went away, and what was being written to it has nowhere to go.
            if not all(isinstance(one, BrokenPipeError) for one in _inside(error)):
                raise
    return 128 + signal.SIGTERM if terminated else 0


async def _until_terminated(serving: Coroutine[Any, Any, None]) -> bool:
    """Whether a SIGTERM ended it. That cancels what is served: an exit raised where the signal
    comes, inside some task, would be told as that task's error."""
    import anyio

    with anyio.CancelScope() as scope:
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, scope.cancel)
        await serving
    return scope.cancel_called


def _inside(error: BaseException) -> Iterator[BaseException]:
    """The errors of a group of groups."""
    several = getattr(error, "exceptions", None)
    if several is None:
        yield error
    for one in several or ():
        yield from _inside(one)
