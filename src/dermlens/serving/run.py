"""Start the server: bind, warm up, say where it is, serve until it is told to stop."""

from __future__ import annotations

import os
import socket
import sys
import webbrowser

import cv2
import numpy as np
from rich.console import Console

from dermlens.errors import UsageError
from dermlens.inference.predict import DISCLAIMER, Predictor
from dermlens.serving.server import make_server
from dermlens.serving.settings import Settings

BACKLOG = 1024
SWITCH_INTERVAL_S = 0.001  # Python's 5 ms would let the event loop wait that long behind a thread that decodes
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # what to type into a browser on the same machine


def run(
    predictor: Predictor, settings: Settings, host: str, port: int, *, console: Console, open_page: bool = False
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        UsageError: the address cannot be listened on.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    listener = listen(host, port)
    warm_up(predictor)
    listener.listen(BACKLOG)  # from here on whoever comes waits for a moment instead of being turned away
    bound = listener.getsockname()[1]
    shown = ANY_ADDRESS.get(host) or (f"[{host}]" if ":" in host else host)
    address = f"http://{shown}:{bound}/"
    console.print(f"Open {address}  (model {predictor.bundle.name} {predictor.bundle.version})", highlight=False)
    console.print(DISCLAIMER, style="dim", highlight=False)
    if open_page and _has_screen():
        webbrowser.open(address)
    make_server(predictor, settings, host, bound).run(sockets=[listener])


def warm_up(predictor: Predictor) -> None:
    """Answer once for a grey picture, so that the first visitor does not wait for what is loaded on first use."""
    _, code = cv2.imencode(".jpg", np.full((256, 256, 3), 128, np.uint8))
    predictor.predict(code.tobytes(), name="warm-up")


def listen(host: str, port: int) -> socket.socket:
    """Bind before the model is warmed up, so that a port in use is told at once.

    The protocol is named because asyncio sets TCP_NODELAY only where it is; without it each answer waits 40 ms.
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


def _has_screen() -> bool:
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
