"""What follows from machine and backbone: concrete settings, threads, and the batch that fits the memory."""

from __future__ import annotations

import io
from dataclasses import replace

import keras
import pytest
from rich.console import Console

from dermlens.errors import RecipeError
from dermlens.networks.efficientnet import BACKBONES, backbone
from dermlens.training import device
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


def test_over_random_weights_nothing_is_frozen() -> None:
    assert device.resolve(Recipe(weights="none"), backbone("lite0")).fine_tune == "full"
    assert device.resolve(Recipe(weights="none", fine_tune="head"), backbone("lite0")).fine_tune == "head"


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


def test_the_faster_precision_is_taken_where_it_is_clearly_so(monkeypatch: pytest.MonkeyPatch) -> None:
    took = {"float32": 1.0, "float16": 0.5}
    monkeypatch.setattr(device, "_trial", lambda dtype, repeats: took[dtype])
    assert device.faster_precision() == "mixed_float16"
    took["float16"] = 0.95
    assert device.faster_precision() == "float32"


@pytest.mark.long
def test_the_trial_of_precision_gives_one_of_two() -> None:
    assert device.faster_precision(repeats=1) in ("float32", "mixed_float16")


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
    with pytest.raises(RecipeError, match="GB; ") as caught:
        device.check_memory(model, Recipe(batch_size=11), begun=True)
    assert "Free some memory and give the same command again" in str(caught.value.remedy)


def test_where_nothing_is_known_of_the_memory_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "free_bytes", lambda: None)
    device.check_memory(small(), Recipe(batch_size=4096))


def test_the_devices_own_error_names_half_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "on_gpu", lambda: True)
    error = device.out_of_memory(replace(Recipe(), batch_size=64, size_px=300))
    assert "batch_size 64 at 300 px" in str(error) and "batch_size=32" in str(error.remedy)
    assert "On a GPU the batch is not chosen by memory" in str(error.remedy)


def test_a_norm_that_goes_into_its_convolution_costs_nothing() -> None:
    image = keras.Input((8, 8, 3))
    norm = keras.layers.BatchNormalization()
    model = keras.Model(image, norm(keras.layers.Conv2D(4, 1, use_bias=False)(image)))
    updated = device.bytes_per_image(model)
    norm.trainable = False
    saved = 8 * 8 * 4 * device.BYTES_PER_ACTIVATION
    assert updated - device.bytes_per_image(model) == pytest.approx(saved, abs=1)  # whole bytes


def test_without_a_batch_size_the_largest_multiple_of_eight_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model, said = small(), io.StringIO()
    per_image, console = device.bytes_per_image(model), Console(file=said, width=300)

    def fitted(fits: int) -> int:
        monkeypatch.setattr(device, "free_bytes", lambda: device.fixed_bytes(model) + fits * per_image + 5)
        return device.fit_batch(model, Recipe(batch_size=64), console).batch_size

    assert fitted(64) == fitted(1000) == 64 and said.getvalue() == ""
    assert fitted(63) == 56 and "batch_size is 56" in said.getvalue()
    assert fitted(8) == 8
    with pytest.raises(RecipeError, match="A batch of 7 fits"):
        fitted(7)
    monkeypatch.setattr(device, "free_bytes", lambda: None)
    assert device.fit_batch(model, Recipe(batch_size=64), console).batch_size == 64
    assert device.resolve(Recipe(), backbone("lite0")).batch_size == 64
