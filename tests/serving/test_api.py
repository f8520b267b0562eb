"""What the API answers, and what it says when it will not."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from dermlens import Predictor, cli
from dermlens.serving import schemas
from dermlens.serving.problems import KINDS

Client = Callable[..., TestClient]
PREDICT = "/api/v1/predictions"
EXPLAIN = "/api/v1/explanations"


def as_form(*images: bytes, name: str = "a.png") -> list[tuple[str, tuple[str, bytes]]]:
    return [("image", (name, image)) for image in images]


def test_one_image_gives_what_the_command_line_prints(
    client: Client, model: Path, red: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(red)
    with pytest.raises(SystemExit):
        cli.main(["predict", str(path), "--model", str(model), "--json"])
    printed = json.loads(capsys.readouterr().out)
    by_form = client().post(PREDICT, files=as_form(red)).json()
    by_body = client().post(PREDICT, content=red, headers={"content-type": "image/png"}).json()
    assert by_form["image"] == "image-1"
    for answer in (by_form, by_body):
        own = {"image", "elapsed_ms"}
        assert {k: v for k, v in answer.items() if k not in own} == {k: v for k, v in printed.items() if k not in own}
        assert set(answer) == set(printed)


def test_several_images_keep_their_order_and_a_bad_one_its_row(client: Client, pictures: list[bytes]) -> None:
    response = client().post(PREDICT, files=as_form(pictures[0], b"no image", *pictures[1:]))
    assert response.status_code == 200
    rows = response.json()["predictions"]
    assert [row["image"] for row in rows] == ["image-1", "image-2", "image-3", "image-4"]
    assert [row["diagnosis"] and row["diagnosis"]["code"] for row in rows] == ["RED", None, "GREEN", "BLUE"]
    assert rows[1]["status"] == "error" and rows[1]["error"]["code"] == "unsupported_format"


def _gif() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 40)).save(out, "GIF")
    return out.getvalue()


def _png_that_promises(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "PNG")
    data = bytearray(out.getvalue())
    data[16:24] = side.to_bytes(4, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"hello, I am text", 415, "unsupported_format"),
        (_gif(), 415, "unsupported_format"),
        (_png_that_promises(30_000), 422, "too_many_pixels"),
        (b"\xff\xd8\xff\xe0", 422, "truncated"),
        (b"", 422, "no_image"),
    ],
)
def test_a_bad_image_is_a_problem_with_a_remedy(client: Client, body: bytes, status: int, code: str) -> None:
    response = client().post(PREDICT, content=body, headers={"content-type": "image/png"})
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "detail", "code", "remedy"}
    assert problem["code"] == code and problem["status"] == status and problem["type"] == f"/problems#{code}"
    assert len(problem["remedy"]) > 10


def test_an_empty_image_in_a_form_is_a_problem(client: Client) -> None:
    assert client().post(PREDICT, files=as_form(b"")).json()["code"] == "empty_file"


@pytest.mark.parametrize(
    ("content_type", "code"),
    [("text/plain", "content_type"), ("multipart/form-data", "bad_multipart"), ("", "content_type")],
)
def test_the_wrong_content_type_is_a_problem(client: Client, red: bytes, content_type: str, code: str) -> None:
    response = client().post(PREDICT, content=red, headers={"content-type": content_type})
    assert response.json()["code"] == code


def test_explanations_are_pictures(client: Client, red: bytes) -> None:
    api = client()
    overlay = api.post(EXPLAIN, files=as_form(red))
    assert overlay.headers["content-type"] == "image/png"
    shape = cv2.imdecode(np.frombuffer(overlay.content, np.uint8), cv2.IMREAD_UNCHANGED).shape
    assert shape == (28, 28, 3)
    relevance = api.post(f"{EXPLAIN}?code=RED&picture=relevance", files=as_form(red))
    grey = cv2.imdecode(np.frombuffer(relevance.content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert grey.shape == (28, 28) and grey.max() == 255


def test_an_explanation_as_json_carries_the_answer(client: Client, red: bytes) -> None:
    response = client().post(
        EXPLAIN, files=as_form(red), data={"code": "GREEN"}, headers={"accept": "application/json"}
    )
    found = response.json()
    assert found["code"] == "GREEN" and found["prediction"]["diagnosis"]["code"] == "RED"
    assert base64.b64decode(found["relevance_png"]).startswith(b"\x89PNG")
    assert (found["width_px"], found["height_px"]) == (28, 28)


@pytest.mark.parametrize(
    ("query", "code"),
    [("code=NOPE", "unknown_class"), ("alpha=7", "bad_parameter"), ("picture=cat", "bad_parameter")],
)
def test_a_wrong_parameter_is_a_problem(client: Client, red: bytes, query: str, code: str) -> None:
    assert client().post(f"{EXPLAIN}?{query}", files=as_form(red)).json()["code"] == code


def test_an_explanation_of_a_bad_image_is_a_problem(client: Client) -> None:
    response = client().post(EXPLAIN, files=as_form(b"no image at all"))
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_format")


def test_the_model_says_what_it_is(client: Client) -> None:
    facts = client(rate_limit=600).get("/api/v1/model").json()
    assert facts["scope"] == "Reads plain colours." and facts["card"].startswith("# tiny 0.0.1\n")
    assert [c["code"] for c in facts["classes"]] == ["BLUE", "GREEN", "RED"]
    assert facts["limits"]["max_body_bytes"] == 32 * 1024 * 1024
    assert facts["limits"]["rate_limit_per_minute"] == 600


def test_health_readiness_and_metrics(client: Client, red: bytes) -> None:
    api = client()
    assert api.get("/healthz").json() == api.get("/readyz").json() == {"status": "ok"}
    api.post(PREDICT, files=as_form(red))
    api.post("/some/strange/path")
    text = api.get("/metrics").text
    assert 'dermlens_requests_total{method="POST",route="/api/v1/predictions",status="200"} 1.0' in text
    assert 'dermlens_images_total{status="ok"} 1.0' in text
    assert "strange" not in text


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/api/v1/model", "/nowhere", "/problems"])
def test_every_answer_is_guarded(client: Client, path: str) -> None:
    headers = client().get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert "access-control-allow-origin" not in headers
    assert headers["cache-control"] in ("no-cache", "no-store")


def test_the_page_is_not_sent_twice(client: Client) -> None:
    api = client()
    first = api.get("/static/page.js")
    assert api.get("/static/page.js", headers={"if-none-match": first.headers["etag"]}).status_code == 304


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/.git/config"])
def test_no_path_reaches_the_file_system(client: Client, path: str) -> None:
    response = client().get(path)
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


def test_the_wrong_method_is_a_problem_that_names_the_right_one(client: Client) -> None:
    response = client().get(PREDICT)
    assert response.status_code == 405 and response.headers["allow"] == "POST"
    assert response.json()["code"] == "method_not_allowed"


def test_uploads_touch_no_disk_and_no_log(
    client: Client, red: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an upload went to a temporary file")

    for name in ("SpooledTemporaryFile", "TemporaryFile", "NamedTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    large = red + bytes(3_000_000)  # beyond what form parsers usually keep in memory
    with caplog.at_level(logging.DEBUG):
        response = client().post(PREDICT, files=as_form(large, name="Jane Doe 1970.png"))
    assert response.json()["diagnosis"]["code"] == "RED"
    assert "Jane" not in caplog.text and "Jane" not in response.text
    assert "RED" not in caplog.text


def test_the_openapi_document_names_everything(client: Client) -> None:
    document = client().get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert {"/api/v1/predictions", "/api/v1/explanations", "/api/v1/model", "/healthz", "/readyz", "/metrics"} == set(
        document["paths"]
    )
    body = document["paths"][PREDICT]["post"]["requestBody"]["content"]
    assert {"multipart/form-data", "image/jpeg"} <= set(body)
    answers = document["paths"][PREDICT]["post"]["responses"]
    assert "examples" in answers["200"]["content"]["application/json"]
    assert {"413", "415", "422", "429"} <= set(answers)


def test_every_field_of_an_answer_is_described_with_an_example(
    client: Client, clinic: Predictor, pictures: list[bytes]
) -> None:
    """In the document and, by its path, in the table of docs/answer.md; and an answer has no other field."""
    shapes = client().get("/openapi.json").json()["components"]["schemas"]
    page = (Path(__file__).parents[2] / "docs" / "answer.md").read_text(encoding="utf-8")
    fields: dict[str, set[str]] = {}

    def walk(name: str, prefix: str) -> None:
        for field, facts in shapes[name]["properties"].items():
            inner = re.findall(r"schemas/(\w+)", json.dumps(facts))
            example = "see below" if inner else f"`{json.dumps(facts['examples'][0])}`"
            row = f"| `{prefix}{field}` | {facts['description']} | {example} |"
            assert row in page, f"docs/answer.md lacks this row:\n{row}"
            fields.setdefault(prefix, set()).add(field)
            for ref in inner:
                walk(ref, f"{prefix}{field}{'[]' if facts.get('type') == 'array' else ''}.")

    walk("PredictionShape", "")
    for answer in (
        schemas.PREDICTION_EXAMPLE,
        *client(clinic).post(PREDICT, files=as_form(*pictures, b"no image")).json()["predictions"],
    ):
        assert set(answer) == fields[""]
        for prefix, names in fields.items():
            part = answer.get(prefix.rstrip(".[]")) if prefix else None
            if isinstance(part, dict) and prefix:
                assert set(part) == names, prefix
        schemas.PredictionShape.model_validate(answer)


def test_the_example_is_one_coherent_answer() -> None:
    answer = schemas.PREDICTION_EXAMPLE
    shares = list(answer["probabilities"].values())
    grave = sum(answer["probabilities"][code] for code in ("AK", "BCC", "MEL", "SCC"))
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1)
    assert answer["diagnosis"]["code"] == next(iter(answer["probabilities"])) == answer["prediction_set"][0]
    assert answer["malignant_probability"] == pytest.approx(grave, abs=1e-4)
    assert answer["malignant_probability"] >= answer["referral"]["threshold"] and answer["advice"]["code"] == "refer"


def test_every_problem_is_on_its_page(client: Client) -> None:
    page = client().get("/problems").text
    assert all(f'id="{code}"' in page for code in KINDS)


def test_an_unexpected_fault_says_nothing_of_itself(client: Client, red: bytes, model: Path) -> None:
    class Broken(Predictor):
        def predict_many(self, *_: object, **__: object) -> None:  # type: ignore[override]
            raise RuntimeError("secret inner state")

    response = client(Broken(model)).post(PREDICT, files=as_form(red))
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert "secret" not in response.text
