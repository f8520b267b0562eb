"""Views and draws: reproducible, uint8, and the plain view is what a prediction sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from dermlens.data.images import InputSpec, load_image
from dermlens.data.records import Record
from dermlens.training import views as pipeline
from dermlens.training.feed import Draws, effective_prior, sampling_weights
from dermlens.training.views import augment, fresh_view, larger_copy, plain_view, views

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


def by_hand(record: Record, index: int) -> np.ndarray:
    """The augmented view as it was made before artefacts existed."""
    source = load_image(record.path, InputSpec(size_px=40))
    rng = np.random.default_rng([0, int("ab" * 8, 16), index])
    made: np.ndarray = pipeline._compression(pipeline._colour(pipeline._geometry(source, 32, rng), rng), rng)
    return made


def test_views_without_artefacts_are_what_they_were_to_the_bit(record: Record) -> None:
    found = views(record, SPEC, count=6, seed=0, key="ab" * 32)
    for index in range(1, 7):
        np.testing.assert_array_equal(found[index], by_hand(record, index))


def test_artefacts_are_drawn_into_their_share_of_the_views_and_change_nothing_else(record: Record) -> None:
    count, key = 120, "ab" * 32
    plain, half, every = (
        views(record, SPEC, count=count, seed=0, key=key, artefacts=share) for share in (0.0, 0.5, 1.0)
    )
    drawn = (half[1:] != plain[1:]).any(axis=(1, 2, 3))
    assert drawn.mean() == pytest.approx(0.5, abs=0.15)
    assert (every[1:] != plain[1:]).any(axis=(1, 2, 3)).mean() > 0.95, "JPEG may hide a thin hair in 32 px"
    np.testing.assert_array_equal(every[0], plain[0])
    np.testing.assert_array_equal(every[1:][drawn], half[1:][drawn], "the same artefact whatever the share")
    single = fresh_view(larger_copy(record, SPEC), SPEC.size_px, index=5, seed=0, key=key, artefacts=0.5)
    np.testing.assert_array_equal(single, half[5])


def test_each_kind_of_artefact_gets_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for kind in ("dark_corners", "hair", "ink", "ruler"):
        draw = getattr(pipeline, kind)

        def noted(
            *args: object, kind: str = kind, draw: Callable[..., np.ndarray] = draw, **more: object
        ) -> np.ndarray:
            drawn.append(kind)
            return draw(*args, **more)

        monkeypatch.setattr(pipeline, kind, noted)
    source = np.full((50, 50, 3), 180, np.uint8)
    for seed in range(80):
        assert augment(source, 40, np.random.default_rng(seed), 1.0).shape == (40, 40, 3)
    assert len(drawn) == 80 and min(drawn.count(kind) for kind in set(drawn)) > 8 and len(set(drawn)) == 4


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
