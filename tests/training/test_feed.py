"""Batches: each follows from its step alone, in every mode; errors in the background are raised."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dermlens.data.images import InputSpec, load_image
from dermlens.data.records import Record
from dermlens.training.feed import Feed, batches, from_arrays, from_images
from dermlens.training.material import Material
from dermlens.training.recipe import Recipe

RECIPE = Recipe(batch_size=6, mixup=0.2)


def arrays() -> Feed:
    train = np.arange(10 * 3).reshape(10, 3, 1)
    return from_arrays(train, np.arange(10) % 2, np.arange(300).reshape(300, 1), np.zeros(300, int))


def test_a_batch_follows_from_its_step_alone() -> None:
    all_of_them = list(batches(arrays(), RECIPE, 2, mixup=0.2, salt=1, steps=range(7)))
    last = next(batches(arrays(), RECIPE, 2, mixup=0.2, salt=1, steps=range(6, 7)))
    np.testing.assert_array_equal(all_of_them[6].inputs, last.inputs)
    np.testing.assert_array_equal(all_of_them[6].mix, last.mix)
    assert (all_of_them[0].inputs != last.inputs).any()
    other = next(batches(arrays(), RECIPE, 2, mixup=0.2, salt=0, steps=range(6, 7)))
    assert (other.inputs != last.inputs).any(), "head and blocks draw in another order"


def test_targets_and_shares_belong_to_the_inputs() -> None:
    for batch in batches(arrays(), RECIPE, 2, mixup=0.2, salt=0, steps=range(5)):
        rows = batch.inputs[:, 0] // 3
        np.testing.assert_array_equal(batch.targets.argmax(axis=1), rows % 2)
        assert batch.targets.dtype == np.float32 and (batch.mix >= 0.5).all() and (batch.mix <= 1).all()
    plain = next(batches(arrays(), RECIPE, 2, mixup=0.0, salt=0, steps=range(1)))
    assert (plain.mix == 1).all()


def test_select_comes_in_order_and_whole() -> None:
    np.testing.assert_array_equal(np.concatenate(list(arrays().select())), np.arange(300).reshape(300, 1))


def test_an_error_in_the_background_is_raised_here() -> None:
    feed = arrays()

    def broken(draw: object) -> np.ndarray:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(
            batches(
                Feed(broken, feed.labels, 3, feed.select, feed.select_labels),
                RECIPE,
                2,
                mixup=0,
                salt=0,
                steps=range(3),
            )
        )


def test_images_give_views_never_seen_before_and_plain_ones_to_score_on(tmp_path: Path) -> None:
    records = []
    for index in range(4):
        path = tmp_path / f"{index}.png"
        cv2.imwrite(str(path), np.random.default_rng(index).integers(0, 256, (40, 50, 3), dtype=np.uint8))
        records.append(Record(image=path.name, path=path, diagnosis="A"))
    spec = InputSpec(size_px=32)
    hashes = [f"{i:064x}" for i in range(4)]
    labels, rows = np.array([0, 1, 0, 1]), np.arange(4)
    material = Material(tuple(records), tuple(hashes), np.array(["train"] * 4), labels, ("A", "B"), (), False, ())
    made = [from_images(material, rows, rows, spec, RECIPE) for _ in range(2)]
    first, again = (list(batches(f, RECIPE, 2, mixup=0, salt=1, steps=range(3))) for f in made)
    assert first[0].inputs.shape == (6, 32, 32, 3) and first[0].inputs.dtype == np.uint8
    np.testing.assert_array_equal(first[2].inputs, again[2].inputs)
    views = {view.tobytes() for batch in first for view in batch.inputs}
    assert len(views) == 18, "no view comes twice"
    plain = np.concatenate(list(made[0].select()))
    np.testing.assert_array_equal(plain[3], load_image(records[3].path, spec))
