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
from dermlens.serving.server import listen
from serving_requests import get_status, post_image

CLIENTS = 200


def test_sigterm_answers_what_is_in_flight_and_takes_no_more(model: Path, red: bytes) -> None:
    """Clients behave like a load balancer: they send until `/readyz` is no longer 200."""
    results: Counter[str] = Counter()
    with live.as_process("--model", str(model), "--drain", "6", "--queue", "64") as (process, port):
        stop = threading.Event()

        def load() -> None:
            while not stop.is_set():
                try:
                    results[str(post_image(port, red))] += 1
                except OSError as error:
                    results[type(error).__name__] += 1

        threads = [threading.Thread(target=load) for _ in range(8)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while results["200"] < 20 and time.monotonic() < deadline:  # the port is open before the server takes signals
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        before = results["200"]
        while get_status(port, "/readyz") == 200 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert get_status(port, "/readyz") == 503
        assert get_status(port, "/healthz") == 200
        time.sleep(0.3)
        stop.set()
        for thread in threads:
            thread.join(30)
        assert process.wait(timeout=60) == 0
    assert set(results) == {"200"}, results
    assert results["200"] > before > 0, "requests were answered before and after the signal"


def wait_until_held(port: int) -> None:
    """Wait until the server has taken up an upload: before that, the request is not in flight."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            found = re.search(r"^dermlens_upload_bytes (\S+)", answer.read().decode(), re.MULTILINE)
        if found and float(found[1]) > 0:
            return
        time.sleep(0.05)
    pytest.fail("The server took no upload up.")


def test_a_request_that_is_being_sent_when_the_signal_comes_is_answered(model: Path, red: bytes) -> None:
    with live.as_process("--model", str(model), "--drain", "0") as (process, port):
        connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        head = f"POST /api/v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(red)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + red[:20])
        wait_until_held(port)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        connection.sendall(red[20:])
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 200 and response.headers["connection"] == "close"
        assert json.loads(response.read())["diagnosis"]["code"] == "RED"
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("start", [b"", b"POST /api/v1/predictions HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_slow_headers_lose_their_connection(model: Path, red: bytes, start: bytes) -> None:
    with live.in_thread(model, header_timeout_s=0.4) as port:
        slow = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(50)]
        for connection in slow:
            connection.sendall(start)
        assert post_image(port, red) == 200, "others are served meanwhile"
        assert [connection.recv(100) for connection in slow] == [b""] * 50


def test_a_slow_body_is_told_so_and_others_are_served(model: Path, red: bytes) -> None:
    with live.in_thread(model, body_timeout_s=0.5) as port:
        connection = socket.create_connection(("127.0.0.1", port), timeout=20)
        head = (
            b"POST /api/v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
        )
        connection.sendall(head + red[:10])
        assert post_image(port, red) == 200
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert (response.status, json.loads(response.read())["code"]) == (408, "body_timeout")


def test_a_refused_body_that_never_ends_is_cut_off(model: Path) -> None:
    with live.in_thread(model, max_body_bytes=1000, linger_s=0.5) as port:
        connection = socket.create_connection(("127.0.0.1", port), timeout=20)
        connection.sendall(b"POST /api/v1/predictions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(OSError):  # noqa: PT012 - it is closed at some time within this loop
            for _ in range(1000):
                connection.sendall(b"400\r\n" + bytes(1024) + b"\r\n")
                time.sleep(0.02)


@pytest.mark.parametrize("request_line", [b"GET / HTTP/1.1", b"POST /api/v1/predictions HTTP/1.1"])
def test_a_body_in_tiny_chunks_is_cut_off(model: Path, request_line: bytes) -> None:
    with live.in_thread(model, linger_s=0.5) as port:
        connection = socket.create_connection(("127.0.0.1", port), timeout=20)
        connection.sendall(request_line + b"\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 256)
        time.sleep(0.1)
        with pytest.raises(OSError):  # noqa: PT012 - it is closed at some time within this loop
            for _ in range(100):
                connection.sendall(b"1\r\nx\r\n" * 10)
                time.sleep(0.02)
        assert get_status(port, "/healthz") == 200


def test_the_rest_of_a_refused_chunked_body_is_not_parsed(model: Path) -> None:
    with live.in_thread(model, token="long-token") as port:
        connection = socket.create_connection(("127.0.0.1", port), timeout=5)
        connection.sendall(b"POST /api/v1/predictions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 401
        response.read()
        connection.sendall(b"this is no chunk\r\n" * 100 + b"0\r\n")
        time.sleep(0.1)
        connection.sendall(b"\r\n")
        assert connection.recv(10) == b"", "closed at its end, without an answer to what is no chunk"


def test_a_body_in_honest_chunks_is_read(model: Path, red: bytes) -> None:
    with live.in_thread(model) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        chunks = [red[start : start + 16] for start in range(0, len(red), 16)][:250]
        chunks.append(red[250 * 16 :])
        headers = {"Content-Type": "image/png"}
        connection.request("POST", "/api/v1/predictions", iter(filter(None, chunks)), headers, encode_chunked=True)
        assert connection.getresponse().status == 200


@pytest.mark.parametrize("request_line", [b"GET / HTTP/1.1", b"POST /api/v1/predictions HTTP/1.1"])
def test_promised_bodies_take_no_memory_from_others(model: Path, red: bytes, request_line: bytes) -> None:
    """Sixteen clients promise 32 MiB each, twice what may be held, and send nothing."""
    with live.in_thread(model) as port:
        idle = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(16)]
        for connection in idle:
            connection.sendall(request_line + b"\r\nHost: x\r\nContent-Length: 33554432\r\n\r\n")
        time.sleep(0.3)
        assert post_image(port, red) == 200
        for connection in idle:
            connection.close()


def test_connections_beyond_the_limit_are_closed(model: Path) -> None:
    with live.in_thread(model, max_connections=5) as port:
        connections = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(5)]
        with pytest.raises(OSError):  # noqa: PT012
            late = socket.create_connection(("127.0.0.1", port), timeout=20)
            late.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            if late.recv(10) == b"":
                raise ConnectionResetError
        for connection in connections:
            connection.close()


def test_two_hundred_clients_at_once_get_an_answer_or_a_time_to_come_back(model: Path, red: bytes) -> None:
    async def one(port: int) -> tuple[int, bool]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /api/v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(red)}"
        writer.write(head.encode() + b"\r\nConnection: close\r\n\r\n" + red)
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        return int(answer.split(b" ", 2)[1]), b"retry-after" in answer.lower()

    async def all_at_once(port: int) -> list[tuple[int, bool]]:
        return await asyncio.gather(*(one(port) for _ in range(CLIENTS)))

    with live.in_thread(model, queue_images=8) as port:
        answers = asyncio.run(all_at_once(port))
        assert post_image(port, red) == 200
    assert {status for status, _ in answers} <= {200, 429}
    assert sum(status == 200 for status, _ in answers) >= 8
    assert all(told for status, told in answers if status == 429)


def test_a_port_in_use_is_told_in_one_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dermlens import cli

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SystemExit) as end:
            cli.main(["serve", "--model", str(model), "--port", str(taken.getsockname()[1])])
    assert end.value.code == 2
    assert "Cannot listen on 127.0.0.1" in capsys.readouterr().err


def test_answers_do_not_wait_for_an_acknowledgement() -> None:
    listener = listen("127.0.0.1", 0)
    assert listener.proto == socket.IPPROTO_TCP, "asyncio sets TCP_NODELAY only then"
    listener.close()
