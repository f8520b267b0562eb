"""The gate: how much, how slowly, how often, and who."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from dermlens import Predictor
from dermlens.serving.app import create_app
from dermlens.serving.batching import Batcher
from dermlens.serving.envelope import Life
from dermlens.serving.gate import RateLimit, UploadMemory
from dermlens.serving.problems import Problem
from dermlens.serving.settings import Settings

Client = Callable[..., TestClient]
PREDICT = "/api/v1/predictions"
PNG = {"content-type": "image/png"}


class Slow(Predictor):
    """Answers only when it is let go."""

    def __init__(self, model: Path) -> None:
        super().__init__(model)
        self.entered = threading.Event()
        self.go = threading.Event()

    def predict_many(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        self.entered.set()
        self.go.wait(30)
        return super().predict_many(*arguments, **options)


def test_a_body_just_below_the_limit_passes_and_one_byte_more_does_not(client: Client, red: bytes) -> None:
    api = client(max_body_bytes=len(red))
    assert api.post(PREDICT, content=red, headers=PNG).status_code == 200
    response = api.post(PREDICT, content=red + b"\0", headers=PNG)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(client: Client, red: bytes) -> None:
    sent = []

    def endless() -> Iterator[bytes]:
        for _ in range(64):
            sent.append(1)
            yield red

    response = client(max_body_bytes=len(red) * 4).post(PREDICT, content=endless(), headers=PNG)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
def test_compressed_uploads_are_refused(client: Client, red: bytes, encoding: str) -> None:
    response = client().post(PREDICT, content=red, headers={**PNG, "content-encoding": encoding})
    assert (response.status_code, response.json()["code"]) == (415, "content_encoding")


def test_too_many_images_are_refused(client: Client, red: bytes) -> None:
    files = [("image", ("a", red))] * 5
    assert client(max_images=4).post(PREDICT, files=files).json()["code"] == "too_many_images"


@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic long-token"}])
def test_without_the_token_nothing_is_answered(client: Client, red: bytes, header: dict[str, str]) -> None:
    api = client(token="long-token")
    for response in (
        api.post(PREDICT, content=red, headers={**PNG, **header}),
        api.get("/api/v1/model", headers=header),
        api.get("/metrics", headers=header),
    ):
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")


def test_with_the_token_everything_and_without_it_page_and_health(client: Client, red: bytes) -> None:
    api = client(token="long-token")
    assert api.post(PREDICT, content=red, headers={**PNG, "authorization": "bearer long-token"}).status_code == 200
    assert [api.get(path).status_code for path in ("/", "/static/page.js", "/healthz", "/readyz")] == [200] * 4


def test_a_page_of_another_site_is_refused(client: Client, red: bytes) -> None:
    response = client().post(PREDICT, content=red, headers={**PNG, "sec-fetch-site": "cross-site"})
    assert (response.status_code, response.json()["code"]) == (403, "cross_site")
    assert client().post(PREDICT, content=red, headers={**PNG, "sec-fetch-site": "same-origin"}).status_code == 200


def test_no_other_origin_is_let_in(client: Client) -> None:
    asked = {"origin": "https://example.org", "access-control-request-method": "POST"}
    response = client().options(PREDICT, headers=asked)
    assert response.status_code == 405 and "access-control-allow-origin" not in response.headers


def test_the_rate_limit_counts_each_client_and_forgives() -> None:
    now = [0.0]
    limit = RateLimit(60, clock=lambda: now[0])
    for _ in range(10):
        limit.check("10.0.0.1")
    with pytest.raises(Problem) as caught:
        limit.check("10.0.0.1")
    assert caught.value.code == "rate_limited" and caught.value.retry_after_s == 2
    limit.check("10.0.0.2")
    now[0] = 2.0
    limit.check("10.0.0.1")


def test_one_ipv6_network_is_one_client() -> None:
    limit = RateLimit(6, clock=lambda: 0.0)
    limit.check("2001:db8::1")
    with pytest.raises(Problem):
        limit.check("2001:db8::2")
    limit.check("2001:db8:0:1::1")
    limit.check("::ffff:192.0.2.1")
    limit.check("::ffff:192.0.2.2")
    with pytest.raises(Problem):
        limit.check("192.0.2.1")


def test_the_rate_limit_is_a_problem_over_http(client: Client) -> None:
    api = client(rate_limit=6)
    assert api.get("/api/v1/model").status_code == 200
    response = api.get("/api/v1/model")
    assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
    assert api.get("/healthz").status_code == 200


def test_uploads_in_memory_are_bounded() -> None:
    held = UploadMemory(100)
    held.take(80)
    with pytest.raises(Problem, match="All uploads together exceed"):
        held.take(30)
    held.give_back(80)
    held.take(100)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_a_body_where_none_is_read_changes_nothing(client: Client, red: bytes, method: str) -> None:
    api = client(max_upload_bytes=10)
    bare, loaded = (api.request(method, "/metrics/no", content=content) for content in (None, red))
    assert (bare.status_code, loaded.status_code) == (404, 404)


def test_a_full_queue_says_when_to_come_back(client: Client, model: Path, red: bytes) -> None:
    slow = Slow(model)
    api = client(slow, queue_images=1)
    waiting = threading.Thread(target=lambda: first.append(api.post(PREDICT, content=red, headers=PNG)))
    first: list[Any] = []
    waiting.start()
    assert slow.entered.wait(30)
    refused = api.post(PREDICT, content=red, headers=PNG)
    slow.go.set()
    waiting.join(30)
    assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
    assert refused.headers["retry-after"] == "1"
    assert first[0].status_code == 200


def test_an_answer_that_takes_too_long_is_given_up(client: Client, model: Path, red: bytes) -> None:
    slow = Slow(model)
    response = client(slow, request_timeout_s=0.05).post(PREDICT, content=red, headers=PNG)
    slow.go.set()
    assert (response.status_code, response.json()["code"]) == (503, "timeout")


def test_a_server_that_is_being_stopped_is_not_ready_but_answers(predictor: Predictor, red: bytes) -> None:
    with TestClient(create_app(predictor, Settings(), Life(draining=True))) as api:
        ready = api.get("/readyz")
        assert (ready.status_code, ready.json()["code"]) == (503, "draining")
        assert int(ready.headers["retry-after"]) >= 1
        assert api.get("/healthz").status_code == 200
        answer = api.post(PREDICT, content=red, headers=PNG)
        assert answer.status_code == 200 and answer.headers["connection"] == "close"


def test_a_server_whose_threads_have_ended_is_not_ready(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    api = client()
    assert api.get("/readyz").status_code == 200
    monkeypatch.setattr(Batcher, "alive", False)
    ready = api.get("/readyz")
    assert (ready.status_code, ready.json()["code"]) == (503, "not_working")
