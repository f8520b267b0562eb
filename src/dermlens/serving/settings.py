"""Every limit of the server, in one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass

from dermlens.data.images import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS

MIB = 1024 * 1024
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True)
class Settings:
    """What one server allows. Times are in seconds."""

    token: str | None = None  # bearer token that every client must send; None: no token is needed
    rate_limit: int = 0  # requests per minute and client; 0: no limit
    max_body_bytes: int = 32 * MIB  # one request body
    max_image_bytes: int = DEFAULT_MAX_BYTES  # one image file
    max_pixels: int = DEFAULT_MAX_PIXELS  # one image, width x height
    max_images: int = 32  # images in one request
    max_upload_bytes: int = 256 * MIB  # all request bodies in memory together
    queue_images: int = 2  # images that wait or run at once; more are refused with 429
    batch_images: int = 4  # images that go through the network together
    body_timeout_s: float = 30.0  # until a request body has arrived whole
    request_timeout_s: float = 30.0  # from then until its answer
    header_timeout_s: float = 10.0  # until the headers of a request have arrived
    linger_s: float = 10.0  # for the rest of a refused body, so that the client reads the refusal
    keep_alive_s: int = 15  # for an idle connection
    drain_s: float = 3.0  # after SIGTERM: /readyz says 503, requests are still answered
    max_connections: int = 1000  # open at once; the server closes further ones

    def limits(self) -> dict[str, int]:
        """Return the limits that a client must keep, as `/api/v1/model` states them."""
        names = ("max_body_bytes", "max_image_bytes", "max_pixels", "max_images")
        return {**{name: getattr(self, name) for name in names}, "rate_limit_per_minute": self.rate_limit}
