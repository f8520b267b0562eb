"""The API keeps to its own document: schemathesis makes the requests and checks the answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from dermlens import Predictor
from dermlens.serving.app import create_app
from dermlens.serving.settings import Settings

NOT_SAID_BY_A_SCHEMA = [positive_data_acceptance]  # "the bytes of an image": made bytes are refused, and that is right
LIMITS = settings(deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
PATHS = ("/api/v1/predictions", "/api/v1/explanations", "/api/v1/model", "/healthz", "/readyz", "/metrics")


@pytest.fixture(scope="module")
def document(predictor: Predictor) -> Iterator[Any]:
    app = create_app(predictor, Settings(queue_images=1000))
    with TestClient(app):
        yield schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize("examples", [8, pytest.param(300, marks=pytest.mark.long)])
@pytest.mark.parametrize("path", PATHS)
def test_answers_keep_to_the_document(document: Any, path: str, examples: int) -> None:
    calls = []
    for operation in document.get_all_operations():
        made = operation.ok()
        if made.path != path:
            continue

        @settings(LIMITS, max_examples=examples)
        @given(case=made.as_strategy())
        def call(case: Any) -> None:
            calls.append(case.call_and_validate(excluded_checks=NOT_SAID_BY_A_SCHEMA).status_code)

        call()
    assert calls
