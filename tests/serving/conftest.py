"""A tiny model behind the real application."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import tiny
from dermlens import Predictor
from dermlens.bundle.limits import SetRule
from dermlens.serving.app import create_app
from dermlens.serving.settings import Settings
from live import picture

Client = Callable[..., TestClient]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(scope="session")
def predictor(model: Path) -> Predictor:
    return Predictor(model, max_pixels=1_000_000)


@pytest.fixture(scope="session")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A model of nevus, keratosis and melanoma (blue, green, red) that knows when to refer."""
    folder = tmp_path_factory.mktemp("clinic") / "bundle"
    rule = {"prediction_sets": SetRule("probability").as_dict()}
    changes = {**tiny.named("NV", "BKL", "MEL"), "trust": rule}
    return Predictor(tiny.write(folder, calibrate=tiny.known(), test=tiny.known(seed=1), **changes))


@pytest.fixture
def client(predictor: Predictor) -> Iterator[Client]:
    """Return a maker of clients: `client(token="...")` talks to a server with those settings."""
    with ExitStack() as stack:

        def make(used: Predictor | None = None, **settings: Any) -> TestClient:
            app = create_app(used or predictor, Settings(**{"queue_images": 32, **settings}))
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield make


@pytest.fixture(scope="session")
def red() -> bytes:
    return picture("RED")


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    return [picture(code) for code in ("RED", "GREEN", "BLUE")]
