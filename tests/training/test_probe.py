"""The linear probe: what it must beat, it beats; a class may be absent from its training part."""

from __future__ import annotations

import numpy as np

from dermlens.training.probe import STRENGTHS, fit_probe


def blobs(n: int, classes: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.array(classes)[np.arange(n) % len(classes)]
    return (rng.normal(0, 1, (n, 10)) + 3 * np.eye(10)[labels]).astype(np.float32), labels


def test_probe_separates_blobs_and_gives_probabilities() -> None:
    probe = fit_probe(blobs(120, (0, 1, 2), 0), blobs(60, (0, 1, 2), 1), 3)
    x, y = blobs(60, (0, 1, 2), 2)
    found = probe.probabilities(x)
    assert np.mean(found.argmax(axis=1) == y) > 0.9
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert probe.strength in STRENGTHS


def test_two_classes_and_a_gap_in_the_labels_keep_their_columns() -> None:
    probe = fit_probe(blobs(60, (0, 2), 0), blobs(30, (0, 2), 1), 3)
    found = probe.probabilities(blobs(30, (0, 2), 2)[0])
    assert found.shape == (30, 3) and (found[:, 1] == 0).all()
