"""The running server: stopping, slow clients, many clients."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import signal
import socket
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

import live
import waiting
from dermlens import Predictor
from dermlens.serving.server import listen
from live import get_status, post_image

CLIENTS = 200


def test_sigterm_answers_what_is_in_flight_and_takes_no_more(predictor: Predictor, red: bytes) -> None:
    """Clients behave like a load balancer: they send until `/readyz` is no longer 200."""
    results: Counter[str] = Counter()
    enough, stop = threading.Event(), threading.Event()

    def load(port: int) -> None:
        while not stop.is_set():
            try:
                results[str(post_image(port, red))] += 1
            except OSError as error:
                results[type(error).__name__] += 1
            if results["200"] >= before + 10:
                enough.set()

    before = 0
    with live.running(predictor, drain_s=3600, queue_images=64) as (server, port):
        threads = [threading.Thread(target=load, args=[port]) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert enough.wait(60)
        before = results["200"]
        enough.clear()
        server.handle_exit(signal.SIGTERM, None)
        assert get_status(port, "/readyz") == 503
        assert get_status(port, "/healthz") == 200
        assert enough.wait(60), "requests are answered after the signal too"
        stop.set()
        for thread in threads:
            thread.join(30)
        server.drain_end = 0  # the drain time is over
        waiting.until_refused(port)
    assert set(results) == {"200"}, results


def upload_bytes(port: int) -> float:
    """Return how many bytes of uploads the server has in memory."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        found = re.search(r"^dermlens_upload_bytes (\S+)", answer.read().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_a_request_that_is_being_sent_when_the_signal_comes_is_answered(model: Path, red: bytes) -> None:
    with live.as_process("--model", str(model), "--drain", "0") as (process, port):
        connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        head = f"POST /api/v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(red)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + red[:20])
        waiting.until(lambda: upload_bytes(port) > 0, process)  # before that, the request is not in flight
        process.send_signal(signal.SIGTERM)
        waiting.until_refused(port)
        connection.sendall(red[20:])
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 200 and response.headers["connection"] == "close"
        assert json.loads(response.read())["diagnosis"]["code"] == "RED"
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("start", [b"", b"POST /api/v1/predictions HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_slow_headers_lose_their_connection(predictor: Predictor, red: bytes, start: bytes) -> None:
    with live.in_thread(predictor, header_timeout_s=0.2) as port:
        slow = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(50)]
        for connection in slow:
            connection.sendall(start)
        assert post_image(port, red) == 200, "others are served meanwhile"
        assert [connection.recv(100) for connection in slow] == [b""] * 50


def test_a_slow_body_is_a_problem_and_others_are_served(predictor: Predictor, red: bytes) -> None:
    with live.in_thread(predictor, body_timeout_s=0.2) as port:
        connection = socket.create_connection(("127.0.0.1", port), timeout=20)
        head = (
            b"POST /api/v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
        )
        connection.sendall(head + red[:10])
        assert post_image(port, red) == 200
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert (response.status, json.loads(response.read())["code"]) == (408, "body_timeout")


def test_a_refused_body_that_never_ends_is_cut_off(predictor: Predictor) -> None:
    with live.in_thread(predictor, max_body_bytes=1000, linger_s=0.1) as port:
        connection = socket.create_connection(("127.0.0.1", port), timeout=20)
        connection.sendall(b"POST /api/v1/predictions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(OSError):  # noqa: PT012 - it is closed at some time within this loop
            for _ in range(4000):
                connection.sendall(b"400\r\n" + bytes(1024) + b"\r\n")
                time.sleep(0.005)


@pytest.mark.parametrize("request_line", [b"GET / HTTP/1.1", b"POST /api/v1/predictions HTTP/1.1"])
def test_a_body_in_tiny_chunks_is_cut_off(predictor: Predictor, request_line: bytes) -> None:
    with live.in_thread(predictor, linger_s=0.5) as port:
        connection = socket.create_connection(("127.0.0.1", port), timeout=20)
        connection.sendall(request_line + b"\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 256)
        with pytest.raises(OSError):  # noqa: PT012 - it is closed at some time within this loop
            for _ in range(400):
                connection.sendall(b"1\r\nx\r\n" * 10)
                time.sleep(0.005)
        assert get_status(port, "/healthz") == 200


def test_the_rest_of_a_refused_chunked_body_is_not_parsed(predictor: Predictor) -> None:
    with live.in_thread(predictor, token="long-token") as port:
        connection = socket.create_connection(("127.0.0.1", port), timeout=5)
        connection.sendall(b"POST /api/v1/predictions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 401
        response.read()
        connection.sendall(b"this is no chunk\r\n" * 100 + b"0\r\n")
        get_status(port, "/healthz")  # the server has read what came before
        connection.sendall(b"\r\n")
        assert connection.recv(10) == b"", "closed at its end, without an answer to what is no chunk"


def test_a_body_in_honest_chunks_is_read(predictor: Predictor, red: bytes) -> None:
    with live.in_thread(predictor) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        chunks = [red[start : start + 16] for start in range(0, len(red), 16)][:250]
        chunks.append(red[250 * 16 :])
        headers = {"Content-Type": "image/png"}
        connection.request("POST", "/api/v1/predictions", iter(filter(None, chunks)), headers, encode_chunked=True)
        assert connection.getresponse().status == 200


@pytest.mark.parametrize("request_line", [b"GET / HTTP/1.1", b"POST /api/v1/predictions HTTP/1.1"])
def test_promised_bodies_take_no_memory_from_others(predictor: Predictor, red: bytes, request_line: bytes) -> None:
    """Sixteen clients promise 32 MiB each, twice what may be held, and send nothing."""
    with live.in_thread(predictor) as port:
        idle = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(16)]
        for connection in idle:
            connection.sendall(request_line + b"\r\nHost: x\r\nContent-Length: 33554432\r\n\r\n")
        assert get_status(port, "/healthz") == 200  # by now the server has read the promises
        assert post_image(port, red) == 200
        for connection in idle:
            connection.close()


def test_connections_beyond_the_limit_are_closed(predictor: Predictor) -> None:
    with live.in_thread(predictor, max_connections=5) as port:
        connections = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(5)]
        with pytest.raises(OSError):  # noqa: PT012
            late = socket.create_connection(("127.0.0.1", port), timeout=20)
            late.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            if late.recv(10) == b"":
                raise ConnectionResetError
        for connection in connections:
            connection.close()


def test_two_hundred_clients_at_once_get_an_answer_or_a_time_to_come_back(predictor: Predictor, red: bytes) -> None:
    async def one(port: int) -> tuple[int, bool]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /api/v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(red)}"
        writer.write(head.encode() + b"\r\nConnection: close\r\n\r\n" + red)
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        return int(answer.split(b" ", 2)[1]), b"retry-after" in answer.lower()

    async def all_at_once(port: int) -> list[tuple[int, bool]]:
        return await asyncio.gather(*(one(port) for _ in range(CLIENTS)))

    with live.in_thread(predictor, queue_images=8) as port:
        answers = asyncio.run(all_at_once(port))
        assert post_image(port, red) == 200
    assert {status for status, _ in answers} <= {200, 429}
    assert sum(status == 200 for status, _ in answers) >= 8
    assert all(told for status, told in answers if status == 429)


def test_answers_do_not_wait_for_an_acknowledgement() -> None:
    listener = listen("127.0.0.1", 0)
    assert listener.proto == socket.IPPROTO_TCP, "asyncio sets TCP_NODELAY only then"
    listener.close()
