"""The gate that every request passes before anything is parsed: who, how often, how much, how slowly.

Pure ASGI, so that a body is never read before its length is known to be fine, and never beyond the limit when it is
not known. What passes is handed on whole, in memory: nothing here or later touches the disk.

Who may ask, and how often: bearer token, no other sites, requests a minute.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dermlens.serving.problems import Problem
from dermlens.serving.settings import MIB, Settings


class ClientGone(ConnectionError):
    """The client closed the connection before its request was whole."""


class Held:
    """How many bytes of request bodies are in memory, and how many may be."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0

    def take(self, count: int) -> None:
        if self.bytes + count > self.max_bytes:
            raise Problem(
                "out_of_memory",
                f"All uploads together may hold {self.max_bytes // MIB} MiB, and they do.",
                retry_after_s=2,
            )
        self.bytes += count

    def give_back(self, count: int) -> None:
        self.bytes -= count


class Gate:
    """ASGI middleware: token, site, rate, encoding, length, time; then the body, whole, to the app.

    Args:
        app: what comes after.
        settings: the limits.
        held: counts the bytes in memory.
        admit: called before a body is read; raises Problem when the queue is full.
    """

    def __init__(self, app: ASGIApp, settings: Settings, held: Held, admit: Callable[[], None]) -> None:
        self._app = app
        self._settings = settings
        self._held = held
        self._admit = admit
        self._rate = RateLimit(settings.rate_limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held = _Share(self._held)
        try:
            headers = dict(scope["headers"])
            self._check_client(scope, headers)
            body = b""
            if _takes_body(scope) and _has_body(headers):
                self._check_body(headers)
                body = await self._read(receive, held)
            await self._app(scope, _whole(body, receive), send)
        except Problem as problem:
            await problem.send(scope, receive, send)
        except ClientGone:
            return
        finally:
            held.give_back()

    def _check_client(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        path = scope["path"]
        if path in OPEN_PATHS or not (path.startswith("/api/") or path == "/metrics"):
            return
        client = scope.get("client")
        self._rate.check(client[0] if client else "unknown")
        check_token(headers, self._settings.token)
        check_site(headers, scope["method"])

    def _check_body(self, headers: Mapping[bytes, bytes]) -> None:
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"", b"identity"):
            raise Problem("content_encoding", f"Content-Encoding is {_text(encoding)}. None is allowed.")
        declared = headers.get(b"content-length")
        if declared is not None:
            if not declared.isdigit():
                raise Problem("length_wrong", f"Content-Length is {_text(declared)}. A whole number is needed.")
            self._check_length(int(declared))
        self._admit()

    def _check_length(self, count: int) -> None:
        allowed = self._settings.max_body_bytes
        if count > allowed:
            raise Problem(
                "body_too_large",
                f"The request has more than {allowed:,} bytes ({allowed // MIB} MiB), the most allowed.",
            )

    async def _read(self, receive: Receive, held: _Share) -> bytes:
        """Read the body, at most as many bytes as are allowed, in at most the time allowed.

        Only what has arrived is counted as held: a promised length costs its sender nothing.
        """
        parts: list[bytes] = []
        count = 0
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    count += len(message.get("body", b""))
                    self._check_length(count)
                    held.take(count - held.bytes)
                    parts.append(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            raise Problem(
                "body_timeout", f"The body did not arrive within {self._settings.body_timeout_s:g} seconds."
            ) from None
        return b"".join(parts)


class _Share:
    """What one request holds."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self.bytes = 0

    def take(self, count: int) -> None:
        if count > 0:
            self._held.take(count)
            self.bytes += count

    def give_back(self) -> None:
        self._held.give_back(self.bytes)
        self.bytes = 0


def _takes_body(scope: Scope) -> bool:
    """Say whether a body is read at all; anywhere else it is never waited for, and the app sees an empty one."""
    return scope["method"] == "POST" and bool(scope["path"].startswith("/api/"))


def _has_body(headers: Mapping[bytes, bytes]) -> bool:
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


def _whole(body: bytes, receive: Receive) -> Receive:
    """Hand the body on as one message; afterwards only a disconnect can come."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_whole() -> Message:
        return messages.pop() if messages else await receive()

    return receive_whole


def _text(value: bytes) -> str:
    return repr(value[:40].decode("latin-1"))


MAX_CLIENTS = 10_000
OPEN_PATHS = frozenset({"/healthz", "/readyz"})


def check_token(headers: Mapping[bytes, bytes], token: str | None) -> None:
    """Refuse a request without the right bearer token; compared in constant time, whatever its length.

    Raises:
        Problem: `unauthorised`.
    """
    if token is None:
        return
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    expected = hashlib.sha256(token.encode()).digest()
    same = hmac.compare_digest(hashlib.sha256(given.strip()).digest(), expected)
    if scheme.lower() != b"bearer" or not same:
        raise Problem("unauthorised", "This server answers only requests that carry its token.")


def check_site(headers: Mapping[bytes, bytes], method: str) -> None:
    """Refuse what a page of another site sends through a visitor's browser.

    Raises:
        Problem: `cross_site`.
    """
    if method not in ("GET", "HEAD") and headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site"):
        raise Problem("cross_site", "The request comes from a page of another site.")


class RateLimit:
    """A token bucket for each client; the clients seen last are remembered, in bounded memory.

    Args:
        per_minute: requests a minute and client; 0 sets no limit.
        clock: seconds, rising.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_minute / 60.0
        self._burst = max(1.0, per_minute / 6.0)  # ten seconds' worth at once
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, client: str) -> None:
        """Count one request.

        Raises:
            Problem: `rate_limited`.
        """
        if self._per_s == 0:
            return
        key = _network(client)
        now = self._clock()
        left, since = self._left.pop(key, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._per_s)
        self._left[key] = (max(0.0, left - 1), now) if left >= 1 else (left, now)
        if len(self._left) > MAX_CLIENTS:
            self._left.popitem(last=False)
        if left < 1:
            wait_s = int((1 - left) / self._per_s) + 1
            raise Problem(
                "rate_limited",
                f"At most {round(self._per_s * 60)} requests a minute are answered for one client.",
                retry_after_s=wait_s,
            )


def _network(client: str) -> str:
    """One IPv6 client owns a whole /64, so that counts as one; an IPv4 address counts as itself, also when mapped."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client
    address = getattr(address, "ipv4_mapped", None) or address
    if address.version == 6:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
