"""The running server: uvicorn that stops without losing a request and does not wait for slow clients."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
import webbrowser
from types import FrameType
from typing import Any

import cv2
import h11
import numpy as np
import uvicorn
from rich.console import Console
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.h11_impl import H11Protocol

from dermlens.diagnoses import DISCLAIMER
from dermlens.errors import UsageError
from dermlens.inference.predictor import Predictor
from dermlens.serving.app import create_app
from dermlens.serving.envelope import Life
from dermlens.serving.settings import Settings

BACKLOG = 1024
SWITCH_INTERVAL_S = 0.001  # with Python's 5 ms the event loop waits that long behind a thread that decodes
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # what a browser on the same machine needs
FREE_CHUNKS = 256  # of any size, in one body
MIN_CHUNK_BYTES = 512  # on average, beyond those: parsing costs time per chunk, not per byte
LAST_CHUNK = b"0\r\n\r\n"


def run(
    predictor: Predictor, settings: Settings, host: str, port: int, *, console: Console, open_page: bool = False
) -> None:
    """Listen, warm up, print the address, and serve until SIGTERM or Ctrl-C.

    Raises:
        UsageError: the address cannot be used.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    listener = listen(host, port)
    _, grey = cv2.imencode(".jpg", np.full((256, 256, 3), 128, np.uint8))
    predictor.predict(grey.tobytes(), name="warm-up")  # loads what is loaded on first use
    listener.listen(BACKLOG)  # from now on clients wait a moment instead of being refused
    bound = listener.getsockname()[1]
    shown = ANY_ADDRESS.get(host) or (f"[{host}]" if ":" in host else host)
    address = f"http://{shown}:{bound}/"
    console.print(f"Open {address}  (model {predictor.bundle.name} {predictor.bundle.version})", highlight=False)
    console.print(DISCLAIMER, style="dim", highlight=False)
    has_screen = not sys.platform.startswith("linux") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if open_page and has_screen:
        webbrowser.open(address)
    make_server(predictor, settings, host, bound).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Bind the address. This comes before the warm-up, so that a port in use is an error at once.

    The protocol is named because asyncio sets TCP_NODELAY only then; without it each answer waits 40 ms.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UsageError(
            f"Cannot listen on {host} port {port}: {error.strerror or error}.",
            remedy="Choose another --port (0 takes a free one) or another --host.",
        ) from error
    return listener


def make_server(predictor: Predictor, settings: Settings, host: str, port: int) -> DrainingServer:
    """Return a server that is ready to `run()`; port 0 takes a free one."""
    life = Life()
    config = uvicorn.Config(
        create_app(predictor, settings, life),
        host=host,
        port=port,
        http=_protocol(settings),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=int(settings.body_timeout_s + settings.request_timeout_s) + 5,
    )
    return DrainingServer(config, life, settings.drain_s)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send the log lines of the server to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("dermlens.serving")
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


class DrainingServer(uvicorn.Server):
    """On SIGTERM `/readyz` says 503, and every answer closes its connection while requests are still answered; then
    the server accepts no new connection and finishes its requests. SIGINT leaves out the first step.
    """

    def __init__(self, config: uvicorn.Config, life: Life, drain_s: float) -> None:
        super().__init__(config)
        self._life = life
        self._drain_s = drain_s
        self.drain_end: float | None = None  # when it stops accepting connections

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM and not self._life.draining:
            self._life.draining = True
            self.drain_end = time.monotonic() + self._drain_s
        elif sig == signal.SIGINT:
            self._life.draining = True
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self.drain_end is not None and time.monotonic() >= self.drain_end:
            self.should_exit = True
        return await super().on_tick(counter)


def _protocol(settings: Settings) -> type[asyncio.Protocol]:
    """Return the protocol class with the limits on connections."""

    class Protocol(H11Protocol):
        """Closes connections beyond the limit, and those whose headers, or whose refused body, take too long."""

        _timer: asyncio.TimerHandle | None = None
        _unparsed: bytes | None = None  # the last bytes of a refused chunked body, of which nothing else is kept

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.conn = _Connection(h11.SERVER, HIGH_WATER_LIMIT)

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > settings.max_connections:
                transport.abort()
            else:
                self._start_timer(settings.header_timeout_s)

        def data_received(self, data: bytes) -> None:
            if self._unparsed is not None:
                self._unparsed = (self._unparsed + data)[-len(LAST_CHUNK) :]
                if self._unparsed == LAST_CHUNK:
                    self.transport.close()
                return
            super().data_received(data)
            if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
                if self._timer is None:
                    self._start_timer(settings.header_timeout_s)
            elif self.conn.our_state is not h11.DONE:
                self._stop_timer()

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                super().send_400_response(msg)
            else:
                self.transport.abort()

        def on_response_complete(self) -> None:
            self._stop_timer()
            refused_early = self.conn.their_state is h11.SEND_BODY
            super().on_response_complete()
            if refused_early and not self.transport.is_closing():
                self._start_timer(settings.linger_s)
                if any(name == b"transfer-encoding" for name, _ in self.headers):
                    self._unparsed = b""

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _start_timer(self, seconds: float) -> None:
            self._stop_timer()
            self._timer = self.loop.call_later(seconds, lambda: self.transport.close())

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Protocol


class _Connection(h11.Connection):
    """Refuses a body of very many tiny chunks: parsing 256 KiB of them would block all clients for seconds."""

    _chunks = 0
    _bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
            if self._chunks > FREE_CHUNKS + self._bytes // MIN_CHUNK_BYTES:
                raise h11.RemoteProtocolError("The chunks of the body are too small.")
        return event
