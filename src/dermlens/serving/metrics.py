"""What Prometheus may know: counts, times and fill levels; nothing about an image or who sent it."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.3, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The counters of one server, in a registry of their own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "dermlens_requests_total", "Requests answered.", ["route", "method", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "dermlens_request_seconds",
            "From headers to the end of the answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._images = Counter("dermlens_images_total", "Images answered.", ["status"], registry=self.registry)
        self._batches = Histogram(
            "dermlens_batch_images", "Images that went together.", buckets=(1, 2, 4, 8, 16), registry=self.registry
        )

    def watch(self, name: str, description: str, value: Callable[[], float]) -> None:
        """Add a gauge that is read when it is asked for."""
        Gauge(name, description, registry=self.registry).set_function(value)

    def model(self, name: str, version: str, sha256: str) -> None:
        """Say which model answers."""
        gauge = Gauge("dermlens_model_info", "The model.", ["name", "version", "sha256"], registry=self.registry)
        gauge.labels(name, version, sha256).set(1)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def images(self, status: str, count: int = 1) -> None:
        self._images.labels(status).inc(count)

    def batch(self, images: int) -> None:
        self._batches.observe(images)

    def text(self) -> bytes:
        """Return the exposition format."""
        return bytes(generate_latest(self.registry))
