"""Nearest neighbours: the same by blocks, by hand and, nearly, by the index."""

from __future__ import annotations

import numpy as np
import pytest

from dermlens.audit import lookalikes
from dermlens.audit.lookalikes import nearest, unit


def some_vectors(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return unit((rng.normal(0, 1, (n, 24))).astype(np.float32))


def test_unit_has_length_one() -> None:
    vectors = some_vectors(500)
    assert np.allclose(np.linalg.norm(vectors.astype(float), axis=1), 1, atol=2e-3)
    assert not unit(np.zeros((3, 4), np.float16)).any()


def test_exact_is_what_comparing_all_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = some_vectors(120)
    all_pairs = vectors.astype(np.float32) @ vectors.astype(np.float32).T
    np.fill_diagonal(all_pairs, -2)
    wanted = np.sort(all_pairs, axis=1)[:, ::-1][:, :5]
    for block in (8_000_000, 1000):
        monkeypatch.setattr(lookalikes, "_BLOCK_VALUES", block)
        steps: list[int] = []
        places, likeness = nearest(vectors, 5, steps.append)
        assert sum(steps) == 120
        assert np.allclose(likeness, wanted, atol=1e-5)
        assert np.allclose(np.take_along_axis(all_pairs, places, axis=1), likeness, atol=1e-5)


def test_the_index_finds_nearly_all(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = some_vectors(900)
    exact, _ = nearest(vectors, 5)
    monkeypatch.setattr(lookalikes, "EXACT_UP_TO", 500)
    steps: list[int] = []
    places, likeness = nearest(vectors, 5, steps.append)
    found = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(places.tolist(), exact.tolist(), strict=True)])
    assert found > 0.95 and sum(steps) == 900
    assert (places != np.arange(900)[:, None]).all()
    assert (np.diff(likeness, axis=1) <= 1e-3).all()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_vectors(n: int) -> None:
    places, likeness = nearest(some_vectors(n) if n > 1 else np.zeros((n, 4), np.float16), 5)
    assert places.shape == likeness.shape == (n, max(0, n - 1))
