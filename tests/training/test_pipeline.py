"""Views and draws: reproducible, uint8, and the plain view is what a prediction sees."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dermlens.data.images import InputSpec, load_image
from dermlens.data.records import Record
from dermlens.training.pipeline import Draws, augment, effective_prior, plain_view, sampling_weights, views

SPEC = InputSpec(size_px=32)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), cv2.GaussianBlur(noise, (9, 9), 0))
    return Record(path=tmp_path / "a.png", image="a.png", diagnosis="NV")


def test_view_zero_is_the_pixel_path_and_nothing_else(record: Record) -> None:
    found = views(record, SPEC, count=2, seed=0, key="ab" * 32)
    np.testing.assert_array_equal(found[0], load_image(record.path.read_bytes(), SPEC))
    np.testing.assert_array_equal(plain_view(record, SPEC), found[0])


def test_views_depend_on_key_seed_and_index_alone(record: Record) -> None:
    first = views(record, SPEC, count=3, seed=0, key="ab" * 32)
    np.testing.assert_array_equal(first, views(record, SPEC, count=3, seed=0, key="ab" * 32))
    np.testing.assert_array_equal(first[:2], views(record, SPEC, count=1, seed=0, key="ab" * 32))
    assert (first[1] != first[2]).any()
    assert (first[1] != views(record, SPEC, count=1, seed=1, key="ab" * 32)[1]).any()
    assert (first[1] != views(record, SPEC, count=1, seed=0, key="cd" * 32)[1]).any()


def test_augmentation_keeps_a_lesion_in_the_picture_and_its_rough_colour() -> None:
    source = np.full((100, 100, 3), (220, 180, 170), np.uint8)
    cv2.circle(source, (50, 50), 18, (90, 50, 40), -1)
    for seed in range(50):
        view = augment(source, 80, np.random.default_rng(seed))
        assert view.shape == (80, 80, 3) and view.dtype == np.uint8
        middle, corner = view[30:50, 30:50].mean(), view[:6, :6].mean()
        assert middle < corner - 30, f"seed {seed}: the dark lesion left the middle"


def test_sampling_between_the_datas_own_and_equal_class_frequencies() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    np.testing.assert_allclose(effective_prior(labels, 2, 0.0), [0.9, 0.1])
    np.testing.assert_allclose(effective_prior(labels, 2, 1.0), [0.5, 0.5])
    assert sampling_weights(labels, 2, 0.7).sum() == pytest.approx(1)
    order = Draws(labels, classes=2, class_balance=1.0, view_count=3, batch_size=4000, mixup=0.2, seed=0)
    first = order.at(0)
    assert labels[first.rows].mean() == pytest.approx(0.5, abs=0.05)
    assert set(first.views) == {0, 1, 2}
    assert first.mix.min() >= 0.5 and first.mix.max() <= 1.0
    assert (order.at(1).rows != first.rows).any()
    np.testing.assert_array_equal(order.at(0).rows, first.rows)
