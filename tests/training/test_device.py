"""What follows from machine and backbone: concrete settings, threads, and the batch that fits the memory."""

from __future__ import annotations

import pytest

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


def test_the_trial_of_precision_gives_one_of_two() -> None:
    assert device.faster_precision(repeats=1) in ("float32", "mixed_float16")
