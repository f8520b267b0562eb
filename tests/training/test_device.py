"""What follows from machine and backbone: concrete settings, threads, and the batch that fits the memory."""

from __future__ import annotations

from dataclasses import replace

import keras
import pytest

from dermlens.errors import RecipeError
from dermlens.training import device
from dermlens.training.backbones import BACKBONES, backbone
from dermlens.training.recipe import Recipe


def test_on_a_processor_the_top_is_trained_in_float32() -> None:
    found = device.resolve(Recipe(), backbone("lite0"))
    assert (found.fine_tune, found.precision, found.cut_block, found.size_px) == ("top", "float32", 7, 224)
    assert found.threads >= 1 and found.batch_norm == "frozen"
    assert device.resolve(found, backbone("lite0")) == found, "what is resolved stays"


def test_on_a_gpu_the_whole_network_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "on_gpu", lambda: True)
    found = device.resolve(Recipe(precision="mixed_float16"), backbone("lite0"))
    assert (found.fine_tune, found.precision, found.cut_block) == ("full", "mixed_float16", 0)


def test_random_weights_need_batch_norm_to_follow_the_batches() -> None:
    assert device.resolve(Recipe(weights="none"), backbone("lite0")).batch_norm == "updated"
    assert device.resolve(Recipe(weights="none", batch_norm="frozen"), backbone("lite0")).batch_norm == "frozen"


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_every_backbone_has_a_cut_in_its_upper_half(name: str) -> None:
    row = backbone(name)
    cut = device.resolve(Recipe(backbone=name, fine_tune="top"), row).cut_block
    assert 0.3 * row.blocks < cut < 0.8 * row.blocks
    assert device.resolve(Recipe(backbone=name, fine_tune="head"), row).cut_block == row.blocks


def test_a_block_that_is_not_there_is_refused() -> None:
    with pytest.raises(RecipeError, match="1 to 16"):
        device.resolve(Recipe(fine_tune="top", cut_block=16), backbone("lite0"))
    assert device.resolve(Recipe(fine_tune="top", cut_block=15), backbone("lite0")).cut_block == 15


def small() -> keras.Model:
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 3, padding="same")(image)
    return keras.Model(image, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))


def test_a_batch_that_does_not_fit_is_refused_with_the_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    free = device.fixed_bytes(model) + 10 * device.bytes_per_image(model) + 5
    monkeypatch.setattr(device, "free_bytes", lambda: free)
    device.check_memory(model, Recipe(batch_size=10))
    with pytest.raises(RecipeError, match="batch_size 11") as caught:
        device.check_memory(model, Recipe(batch_size=11))
    assert "batch_size=10" in str(caught.value.remedy)
    monkeypatch.setattr(device, "free_bytes", lambda: 10)
    with pytest.raises(RecipeError) as caught:
        device.check_memory(model, Recipe(batch_size=11))
    assert "smaller backbone" in str(caught.value.remedy)


def test_where_nothing_is_known_of_the_memory_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "free_bytes", lambda: None)
    device.check_memory(small(), Recipe(batch_size=4096))


def test_the_devices_own_error_names_half_the_batch() -> None:
    error = device.out_of_memory(replace(Recipe(), batch_size=64, size_px=300))
    assert "batch_size 64 at 300 px" in str(error) and "batch_size=32" in str(error.remedy)


def test_the_trial_of_precision_gives_one_of_two() -> None:
    assert device.faster_precision(repeats=1) in ("float32", "mixed_float16")
