"""What every request must pass before it is parsed: token, site, requests per minute, size and time of its body.

Pure ASGI, so that the server reads no body whose declared length is too large, and none beyond the limit when no length
is declared. The body then goes to the app whole, in memory: nothing here or later touches the disk.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dermlens.serving.problems import Problem
from dermlens.serving.settings import MIB, Settings

MAX_CLIENTS = 10_000


class UploadMemory:
    """How many bytes of request bodies are in memory, and how many may be."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0

    def take(self, count: int) -> None:
        if self.bytes + count > self.max_bytes:
            limit = f"{self.max_bytes // MIB} MiB"
            raise Problem("out_of_memory", f"All uploads together exceed {limit}, the most allowed.", retry_after_s=2)
        self.bytes += count

    def give_back(self, count: int) -> None:
        self.bytes -= count


class Gate:
    """ASGI middleware: checks a request, then passes it on with its whole body.

    Before it reads a body it calls `admit`, which raises Problem when the queue is full.
    """

    def __init__(self, app: ASGIApp, settings: Settings, memory: UploadMemory, admit: Callable[[], None]) -> None:
        self._app = app
        self._settings = settings
        self._memory = memory
        self._admit = admit
        self._rate = RateLimit(settings.rate_limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parts: list[bytes] = []  # of the body; their bytes count until the answer is sent
        try:
            headers = dict(scope["headers"])
            self._check_client(scope, headers)
            if _has_body(scope, headers):
                self._check_headers(headers)
                await self._read(receive, parts)
            await self._app(scope, _whole(b"".join(parts), receive), send)
        except Problem as problem:
            await problem.response()(scope, receive, send)
        except ClientDisconnect:
            return
        finally:
            self._memory.give_back(sum(map(len, parts)))

    def _check_client(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        path = scope["path"]
        if path.startswith("/api/") or path == "/metrics":
            client = scope.get("client")
            self._rate.check(client[0] if client else "unknown")
            check_token(headers, self._settings.token)
            check_site(headers, scope["method"])

    def _check_headers(self, headers: Mapping[bytes, bytes]) -> None:
        encoding = headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
        if encoding not in ("", "identity"):
            raise Problem("content_encoding", f"Content-Encoding is {encoding[:40]!r}. None is allowed.")
        declared = headers.get(b"content-length", b"0").decode("latin-1")
        if not (declared.isascii() and declared.isdigit()):
            raise Problem("length_wrong", f"Content-Length is {declared[:40]!r}. It must be a whole number.")
        self._check_length(int(declared))
        self._admit()

    def _check_length(self, count: int) -> None:
        allowed = self._settings.max_body_bytes
        if count > allowed:
            limit = f"{allowed:,} bytes ({allowed // MIB} MiB)"
            raise Problem("body_too_large", f"The request has more than {limit}, the most allowed.")

    async def _read(self, receive: Receive, parts: list[bytes]) -> None:
        """Read the body within its limits of size and time.

        Only bytes that have arrived count as memory: a client that promises a length takes nothing from others.
        """
        count, more = 0, True
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    part = message.get("body", b"")
                    count += len(part)
                    self._check_length(count)
                    self._memory.take(len(part))
                    parts.append(part)
                    more = message.get("more_body", False)
            parts[:] = [b"".join(parts)]  # in memory once, not twice
        except TimeoutError:
            allowed = f"{self._settings.body_timeout_s:g} seconds"
            raise Problem("body_timeout", f"The body did not arrive within {allowed}, the most allowed.") from None


def _has_body(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """Say whether there is a body to read; other requests reach the app with an empty one."""
    takes_body = scope["method"] == "POST" and scope["path"].startswith("/api/")
    return takes_body and (headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers)


def _whole(body: bytes, receive: Receive) -> Receive:
    """Give the app the body as one message; after it only a disconnect can come."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_whole() -> Message:
        return messages.pop() if messages else await receive()

    return receive_whole


def check_token(headers: Mapping[bytes, bytes], token: str | None) -> None:
    """Raise Problem without the right bearer token. The comparison takes the same time for every wrong one."""
    if token is None:
        return
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    expected = hashlib.sha256(token.encode()).digest()
    same = hmac.compare_digest(hashlib.sha256(given.strip()).digest(), expected)
    if scheme.lower() != b"bearer" or not same:
        raise Problem("unauthorised", "The request does not carry the token of this server.")


def check_site(headers: Mapping[bytes, bytes], method: str) -> None:
    """Raise Problem for what a page of another site sends through a visitor's browser."""
    if method not in ("GET", "HEAD") and headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site"):
        raise Problem("cross_site", "The request comes from a page of another site.")


class RateLimit:
    """A token bucket per client. It remembers the clients seen last, in bounded memory.

    Args:
        per_minute: requests per minute and client; 0 sets no limit.
        clock: rising seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_minute / 60.0
        self._burst = max(1.0, per_minute / 6.0)  # ten seconds' worth at once
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, client: str) -> None:
        """Count one request; raise Problem if it is one too many."""
        if self._per_s == 0:
            return
        key, now = _network(client), self._clock()
        left, since = self._left.pop(key, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._per_s)
        self._left[key] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > MAX_CLIENTS:
            self._left.popitem(last=False)
        if left < 1:
            allowed = f"At most {round(self._per_s * 60)} requests per minute are allowed for one client."
            raise Problem("rate_limited", allowed, retry_after_s=int((1 - left) / self._per_s) + 1)


def _network(client: str) -> str:
    """Return the /64 of an IPv6 address, which belongs to one client; an IPv4 address as it is, also when mapped."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client
    address = getattr(address, "ipv4_mapped", None) or address
    if address.version == 6:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
