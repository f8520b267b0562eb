"""Who may ask, and how often: bearer token, no other sites, requests a minute."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from dermlens.serving.problems import Problem

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
