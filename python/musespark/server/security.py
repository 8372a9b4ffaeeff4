"""Who may ask: tokens, and the hosts and origins that requests say they are for and from."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from musespark.errors import InvalidRequest

_LOOPBACK_NAMES = frozenset(["localhost", "127.0.0.1", "::1"])
_MOST_HEADER = 1024
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9_.:\[\]-]+")
_NAME = re.compile(r"[a-z0-9_.-]{1,253}")
_HEADERS = re.compile(r"[A-Za-z0-9_, -]{1,2048}")


class Denied(InvalidRequest):
    """A request that is not answered: 401 or 403."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Access:
    """``host``: what the server is bound to. ``token``: what clients have to know; None: nothing,
    which is allowed on loopback alone. ``names``: hosts that it is reached by beside its own, of
    whatever is in front of it too, without a port. ``origins``: of pages elsewhere that may ask,
    exactly.

    Host is checked against DNS rebinding: a page of a name that its owner lets point at this
    machine says that name. An Origin has to be the server's own or one of ``origins``, so that no
    other page asks; to those browsers are told to give the answers (CORS).
    """

    host: str = "127.0.0.1"
    token: str | None = None
    names: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.token is not None and (len(self.token) < 16 or not self.token.isascii()):
            raise InvalidRequest("token: allowed are 16 ASCII characters or more")
        object.__setattr__(self, "names", _names_of(self.names))
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                raise InvalidRequest(
                    f"origins: got {origin!r:.80}, allowed is a scheme and a host in small letters "
                    "as browsers send them, such as https://app.example or http://localhost:3000"
                )
        if self.token is None and not is_loopback(self.host):
            raise InvalidRequest(
                f"host: got {self.host!r:.80} without a token, allowed is loopback (127.0.0.1, "
                "::1, localhost); set a token to be reached from elsewhere"
            )

    def check(self, headers: Mapping[str, str], hosts: Iterable[str]) -> None:
        """:class:`Denied` for another host or origin, several hosts, or a wrong token."""
        given = list(hosts)
        if len(given) != 1 or not self.allows_host(given[0]):
            raise Denied(
                403,
                f"Host: got {', '.join(given)!r:.80}, allowed is one name of this server; more of "
                "them are --allow-host of musespark serve, or names of Access",
            )
        origin = headers.get("origin")
        if origin is not None and not self._allows_origin(origin, given[0]):
            raise Denied(
                403,
                f"Origin: got {origin!r:.80}, allowed are this server's pages; those of others are "
                "--allow-origin of musespark serve, or origins of Access",
            )

    def check_token(self, headers: Mapping[str, str]) -> None:
        """:class:`Denied` without the token, as ``Authorization: Bearer`` or ``x-api-key``."""
        given = presented(headers).encode()
        if self.token is not None and not hmac.compare_digest(given, self.token.encode()):
            raise Denied(
                401,
                "the token is missing or wrong; it is sent as Authorization: Bearer TOKEN or "
                "x-api-key: TOKEN",
            )

    def _allows_origin(self, origin: str, host: str) -> bool:
        if origin in self.origins:
            return True
        scheme, _, rest = origin.lower().partition("://")
        return scheme in ("http", "https") and (rest == host.lower() or rest in self.names)

    def shared(self, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
        """Headers of an answer: that the page which asks may read it, where it is elsewhere."""
        if not self.origins:
            return []
        vary, origin = (b"vary", b"Origin"), headers.get("origin")
        if origin not in self.origins:
            return [vary]
        expose = (b"access-control-expose-headers", b"Retry-After")
        return [vary, (b"access-control-allow-origin", origin.encode()), expose]

    def preflight(self, method: str, headers: Mapping[str, str]) -> dict[str, str] | None:
        """Headers that answer a browser which asks whether a page of ``origins`` may send what it
        wants to; None for any other request. It comes without the token."""
        asks = method == "OPTIONS" and "access-control-request-method" in headers
        if not asks or headers.get("origin") not in self.origins:
            return None
        wanted = headers.get("access-control-request-headers", "")
        return {
            "access-control-allow-methods": "GET, POST",
            "access-control-allow-headers": wanted if _HEADERS.fullmatch(wanted) else "",
            "access-control-max-age": "600",
        }

    def allows_host(self, given: str) -> bool:
        """Whether a Host header names this server."""
        name = _host_name(given)
        if name is None:
            return False
        if name in self.names or name == self.host.lower():
            return True
        if is_loopback(self.host):
            return name in _LOOPBACK_NAMES
        # Bound to all addresses: no DNS stands behind an address that is named itself.
        return self.host in ("0.0.0.0", "::") and (_is_address(name) or name == "localhost")


def _names_of(given: Iterable[str]) -> frozenset[str]:
    """Names as :func:`_host_name` reads them in a Host header. InvalidRequest for one that no
    header could say, which would let nobody in and tell nobody why."""
    one_text = isinstance(given, (str, bytes)) or not isinstance(given, Iterable)
    names = [given] if one_text else [*given]
    for name in names:
        known = isinstance(name, str) and (_NAME.fullmatch(name.lower()) or _is_address(name))
        if one_text or not known:
            raise InvalidRequest(
                f"names: got {name!r:.80}, allowed are hosts without scheme and port, such as "
                "box.lan or 192.168.0.7; an international name as browsers send it (xn--…)"
            )
    return frozenset(name.lower() for name in names)


def is_loopback(host: str) -> bool:
    """Whether what is bound to a host is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def presented(headers: Mapping[str, str]) -> str:
    """The key that a client sends, empty for none."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        return key.strip()
    return headers.get("x-api-key", "")


def client_of(address: str, key: str = "") -> str:
    """Who asks, for turns and connections: an address, of IPv6 the network of 64 bits, in which one
    machine may have any. A ``key`` tells the programs of this machine apart, which trust each
    other; of others none counts: one that is checked is the same for all."""
    try:
        given = ipaddress.ip_address(address)
    except ValueError:
        return address
    if given.is_loopback:
        return f"{address} {hashlib.sha256(key.encode()).hexdigest()[:16]}" if key else address
    if given.version == 4:
        return address
    mapped = given.ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.ip_network((given.packed, 64), strict=False))


def _host_name(given: str) -> str | None:
    """The name or address in a Host header, without its port."""
    if not given or len(given) > _MOST_HEADER or any(c in given for c in "/\\@?# \t,"):
        return None
    try:
        parts = urlsplit(f"//{given}")
        _ = parts.port  # a ValueError where it is none
        return parts.hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
