"""A batch that the memory cannot hold is refused before it is tried."""

from __future__ import annotations

from dataclasses import replace

import keras
import pytest

from dermlens.errors import RecipeError
from dermlens.training import batch_memory
from dermlens.training.recipe import Recipe


def small() -> keras.Model:
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 3, padding="same")(image)
    return keras.Model(image, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))


def test_a_batch_that_does_not_fit_is_refused_with_the_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    free = batch_memory.fixed_bytes(model) + 10 * batch_memory.bytes_per_image(model) + 5
    monkeypatch.setattr(batch_memory, "free_bytes", lambda: free)
    batch_memory.check_memory(model, Recipe(batch_size=10))
    with pytest.raises(RecipeError, match="batch_size 11") as caught:
        batch_memory.check_memory(model, Recipe(batch_size=11))
    assert "batch_size=10" in str(caught.value.remedy)
    monkeypatch.setattr(batch_memory, "free_bytes", lambda: 10)
    with pytest.raises(RecipeError) as caught:
        batch_memory.check_memory(model, Recipe(batch_size=11))
    assert "smaller backbone" in str(caught.value.remedy)


def test_where_nothing_is_known_of_the_memory_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_memory, "free_bytes", lambda: None)
    batch_memory.check_memory(small(), Recipe(batch_size=4096))


def test_the_devices_own_error_names_half_the_batch() -> None:
    error = batch_memory.out_of_memory(replace(Recipe(), batch_size=64, size_px=300))
    assert "batch_size 64 at 300 px" in str(error) and "batch_size=32" in str(error.remedy)


def test_a_norm_that_goes_into_its_convolution_costs_nothing() -> None:
    image = keras.Input((8, 8, 3))
    norm = keras.layers.BatchNormalization()
    model = keras.Model(image, norm(keras.layers.Conv2D(4, 1, use_bias=False)(image)))
    updated = batch_memory.bytes_per_image(model)
    norm.trainable = False
    saved = 8 * 8 * 4 * batch_memory.BYTES_PER_ACTIVATION
    assert updated - batch_memory.bytes_per_image(model) == pytest.approx(saved, abs=1)  # whole bytes
