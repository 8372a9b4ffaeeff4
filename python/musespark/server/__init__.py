"""A model behind the wire protocols that agents speak: OpenAI's and Anthropic's, over HTTP.

In a browser the same server is a page to talk to the model (``page/``).

Each protocol is a translation in a file of its own: a body of the wire to a :class:`Job`, deltas
and results to what the wire has for them. They know no sockets, queues or engines. ``app.py`` joins
them with ``work.py`` (requests of many clients in one engine), ``security.py`` and ``metrics.py``.

Needs ``musespark[server]``: starlette, uvicorn, pydantic and prometheus_client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from musespark.errors import MissingLibrary

if TYPE_CHECKING:
    from musespark.server.app import create_app
    from musespark.server.limits import Limits
    from musespark.server.security import Access

__all__ = ["Access", "Limits", "create_app"]

_DEFINED_IN = {"Access": "security", "Limits": "limits", "create_app": "app"}


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module 'musespark.server' has no attribute {name!r}")
    import importlib

    try:
        module = importlib.import_module(f"musespark.server.{_DEFINED_IN[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("musespark"):
            raise
        raise MissingLibrary(
            f"the server needs {error.name}: pip install 'musespark[server]'"
        ) from error
    return getattr(module, name)
