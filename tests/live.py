"""A real server for tests, in a thread or as a process of its own, and the smallest clients. Loopback only."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2

import tiny
from dermlens import Predictor
from dermlens.serving.server import DrainingServer, make_server
from dermlens.serving.settings import Settings

START_S = 120
PREDICT = "/api/v1/predictions"


@contextmanager
def running(predictor: Predictor, **settings: Any) -> Iterator[tuple[DrainingServer, int]]:
    """Serve from a thread with these settings; gives the server and its port."""
    server = make_server(predictor, Settings(**settings), "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_S
    while not server.started:
        if time.monotonic() > deadline or not thread.is_alive():
            raise RuntimeError("The server did not start.")
        time.sleep(0.005)
    try:
        yield server, int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(timeout=30)


@contextmanager
def in_thread(predictor: Predictor, **settings: Any) -> Iterator[int]:
    """Serve from a thread with these settings; gives the port."""
    with running(predictor, **settings) as (_, port):
        yield port


@contextmanager
def as_process(*options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Serve with `dermlens serve`; gives the process and its port. What it logs goes to its standard error."""
    command = [sys.executable, "-m", "dermlens", "serve", "--port", "0", "--quiet", *options]
    environment = {**os.environ, "NO_COLOR": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield process, _port(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=30)


def _port(process: subprocess.Popen[str]) -> int:
    """Read the port from what the server says; one that says nothing is killed, which ends the reading."""
    timer = threading.Timer(START_S, process.kill)
    timer.start()
    try:
        for line in process.stderr or ():
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                port = int(found[1])
                _wait_until_open(port)
                return port
    finally:
        timer.cancel()
    raise RuntimeError("The server said no address.")


def _wait_until_open(port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError("The port did not open.")


def post_image(port: int, image: bytes, content_type: str = "image/png") -> int:
    """Send one image over a connection of its own; return the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", PREDICT, image, {"Content-Type": content_type})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def get_status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def picture(code: str = "RED", suffix: str = ".png", size: tuple[int, int] = (40, 40)) -> bytes:
    """Return an encoded image of a class's colour."""
    _, data = cv2.imencode(suffix, tiny.colour(code, size)[:, :, ::-1])
    return data.tobytes()
