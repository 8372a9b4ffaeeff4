"""The page that the server gives to browsers: the files in ``page/``, and what they may do there.

They are served as they are. What a browser lets the page do is said by its policy: scripts and
styles are these files, requests go to this server, pictures come from what the user chose, and no
text becomes HTML (Trusted Types: https://www.w3.org/TR/trusted-types/).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

_FOLDER = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    [
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"),
        *("img-src 'self' data:", "base-uri 'none'", "form-action 'none'"),
        *("frame-ancestors 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'"),
    ]
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",  # kept by browsers, but asked for again each time
}


class _File(NamedTuple):
    data: bytes
    kind: str
    etag: str


def _read(path: Path) -> _File:
    data = path.read_bytes()
    return _File(data, _TYPES[path.suffix], f'"{hashlib.sha256(data).hexdigest()[:32]}"')


async def _answer(file: _File, request: Request) -> Response:
    """A file, or 304 where the browser has it."""
    headers = {**_HEADERS, "ETag": file.etag}
    known = request.headers.get("if-none-match", "")
    if file.etag in (one.strip().removeprefix("W/") for one in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(file.data, headers=headers, media_type=file.kind)


def page_routes() -> dict[str, Callable[[Request], Awaitable[Response]]]:
    """What answers at the path of each file. Nothing else on the disk has a path."""
    files = {f"/page/{path.name}": _read(path) for path in _FOLDER.iterdir() if path.is_file()}
    files["/"] = files.pop("/page/index.html")
    return {path: functools.partial(_answer, file) for path, file in files.items()}
