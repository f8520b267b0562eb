"""Novelty: about 1 for what is known, high for what is not, the same after a round through a bundle."""

from __future__ import annotations

import numpy as np
import pytest

from dermlens.bundle.novelty import Novelty
from dermlens.bundle.quality import DEFAULT_LIMITS, measure
from dermlens.errors import BundleError
from dermlens.evaluation.fit_trust import fit_novelty, fit_quality, lesion_quantile, sample_per_class


def known(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of two classes in 5 of 20 directions, with their classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    x = rng.normal(0, 0.02, (n, 20)) + 1
    x[:, :5] += rng.normal(0, 0.3, (n, 5)) + 2 * y[:, None]
    return x, y


@pytest.fixture(scope="module")
def fitted() -> Novelty:
    x, y = known(600, 0)
    held, _ = known(300, 1)
    novelty = fit_novelty(x, y, held, np.arange(300), share=0.9)
    assert novelty is not None
    return novelty


def test_known_images_score_about_one_and_the_share_asked_for_is_kept(fitted: Novelty) -> None:
    scores = fitted.score(known(2000, 2)[0])
    assert scores.mean() == pytest.approx(1, abs=0.3)
    assert np.mean(scores <= fitted.threshold) == pytest.approx(0.9, abs=0.04)


def test_what_lies_outside_the_known_directions_is_novel(fitted: Novelty) -> None:
    strange = known(50, 3)[0]
    strange[:, 10:] += np.linspace(-1, 1, 10)
    assert np.all(fitted.score(strange) > fitted.threshold)


def test_the_length_of_an_embedding_does_not_matter(fitted: Novelty) -> None:
    x = known(10, 4)[0]
    np.testing.assert_allclose(fitted.score(x), fitted.score(7 * x), rtol=1e-5)
    assert np.isfinite(fitted.score(np.zeros((1, 20)))).all()


def test_it_comes_back_from_a_bundle_as_it_was(fitted: Novelty) -> None:
    again = Novelty.read(fitted.as_dict(), fitted.arrays())
    np.testing.assert_allclose(again.score(known(50, 5)[0]), fitted.score(known(50, 5)[0]), rtol=1e-3)
    with pytest.raises(BundleError, match="do not fit together"):
        Novelty.read({**fitted.as_dict(), "method": "magic"}, fitted.arrays())
    with pytest.raises(BundleError, match="do not fit together"):
        Novelty.read(fitted.as_dict(), {**fitted.arrays(), "mean": np.zeros(3, np.float32)})


def test_too_little_is_not_fitted() -> None:
    x, y = known(39, 0)
    assert fit_novelty(x, y, x, np.arange(39)) is None
    x, y = known(200, 0)
    assert fit_novelty(x, y, x, np.zeros(200, int)) is None, "one lesion says nothing of others"


def test_a_quantile_counts_each_lesion_once() -> None:
    values = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.5, 0.6, 0.7, 0.8])
    many_views = np.array([0, 0, 0, 0, 0, 0, 1, 2, 3, 4])
    assert lesion_quantile(values, many_views, 0.2) == 0.1
    assert lesion_quantile(values, many_views, 0.4) == 0.5, "by image it would be 0.1"
    assert lesion_quantile(values, np.arange(10), 0.4) == 0.1


def test_a_sample_leaves_no_class_out() -> None:
    y = np.array([0] * 50 + [1] * 3)
    rows = sample_per_class(y, seed=0, most=10)
    assert np.bincount(y[rows]).tolist() == [10, 3] and len(set(rows)) == 13


def test_limits_of_quality_are_never_stricter_than_the_defaults() -> None:
    rng = np.random.default_rng(0)
    noisy = [measure(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)) for _ in range(30)]
    assert fit_quality(noisy).min_sharpness == DEFAULT_LIMITS.min_sharpness
    dark = [measure((rng.integers(0, 256, (60, 60, 3)) // 12).astype(np.uint8)) for _ in range(30)]
    assert fit_quality(dark).min_brightness < DEFAULT_LIMITS.min_brightness
    assert fit_quality([]) == DEFAULT_LIMITS
