"""Every limit of the server, one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass

from dermlens.data.images import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS

MIB = 1024 * 1024
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True)
class Settings:
    """What one server allows.

    Attributes:
        token: bearer token that the API asks for; None asks for none.
        rate_limit: requests a minute and client; 0 sets no limit.
        max_body_bytes: the whole request body.
        max_image_bytes, max_pixels: one image.
        max_images: images in one request.
        max_held_bytes: all request bodies that are in memory at once.
        queue_images: images that wait or run at once; more are refused with 429.
        batch_images: images that go through the network together.
        body_timeout_s: until a request's body has arrived whole.
        request_timeout_s: from then until its answer.
        header_timeout_s: until a request's headers have arrived.
        linger_s: how long the rest of a refused body is still read, so that the client sees the refusal.
        keep_alive_s: how long an idle connection stays open.
        drain_s: after SIGTERM, how long `/readyz` says 503 while new requests are still answered.
        max_connections: open at once; further ones are closed.
    """

    token: str | None = None
    rate_limit: int = 0
    max_body_bytes: int = 32 * MIB
    max_image_bytes: int = DEFAULT_MAX_BYTES
    max_pixels: int = DEFAULT_MAX_PIXELS
    max_images: int = 32
    max_held_bytes: int = 256 * MIB
    queue_images: int = 2
    batch_images: int = 4
    body_timeout_s: float = 30.0
    request_timeout_s: float = 30.0
    header_timeout_s: float = 10.0
    linger_s: float = 10.0
    keep_alive_s: int = 15
    drain_s: float = 3.0
    max_connections: int = 1000

    def limits(self) -> dict[str, int]:
        """Return what a client has to keep to, as `/api/v1/model` says it."""
        return {
            "max_body_bytes": self.max_body_bytes,
            "max_image_bytes": self.max_image_bytes,
            "max_pixels": self.max_pixels,
            "max_images": self.max_images,
            "rate_limit_per_minute": self.rate_limit,
        }
