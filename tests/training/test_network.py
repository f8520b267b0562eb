"""One network, four views of it: which weights each mode trains, and what batch norm and precision do."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from dermlens.networks.backend import leaves
from dermlens.networks.efficientnet import backbone
from dermlens.networks.openvino import check_export, to_openvino
from dermlens.training.device import resolve
from dermlens.training.network import Network, head_of, in_float32, open_backbone, with_head
from dermlens.training.recipe import Recipe


def network(**settings: object) -> Network:
    recipe = resolve(Recipe(size_px=32, **settings), backbone("lite0"))  # type: ignore[arg-type]
    return with_head(open_backbone(recipe), recipe, 3)


def test_the_parts_share_their_layers() -> None:
    made = network(fine_tune="top")
    made.head.get_layer("logits").bias.assign([1.0, 2.0, 3.0])
    assert head_of(made.whole)[1].tolist() == [1.0, 2.0, 3.0]
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    logits, embedding, _ = made.whole(pixels, training=False)
    np.testing.assert_allclose(made.classifier(made.trunk(pixels), training=False)[0], logits, atol=1e-5)
    np.testing.assert_allclose(made.head(embedding, training=False), logits, atol=1e-5)


def test_each_mode_trains_what_it_says() -> None:
    top, full = network(fine_tune="top"), network(fine_tune="full")
    assert not top.trunk.trainable_variables and top.classifier.trainable_variables
    assert len(full.whole.trainable_variables) > len(top.classifier.trainable_variables)
    assert any("stem_conv" in v.path for v in full.whole.trainable_variables)
    assert {v.path.split("/")[-2] for v in top.head.trainable_variables} == {"logits"}


def test_frozen_batch_norm_keeps_its_statistics_in_training_and_updated_does_not() -> None:
    pixels = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    for policy, still in (("frozen", True), ("updated", False)):
        made = network(fine_tune="full", batch_norm=policy)
        norms = [la for la in leaves(made.whole) if isinstance(la, keras.layers.BatchNormalization)]
        before = [layer.moving_mean.numpy() for layer in norms]
        made.whole(pixels, training=True)
        same = [np.array_equal(b, la.moving_mean.numpy()) for b, la in zip(before, norms, strict=True)]
        assert all(same) if still else not any(same), policy
        assert any("_bn/gamma" in v.path for v in made.whole.trainable_variables) is not still


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_a_network_of_mixed_precision_is_exported_in_float32(precision: str) -> None:
    made = network(fine_tune="full", precision=precision)
    assert keras.config.dtype_policy().name == "float32", "the policy of the process is left as it was"
    conv = next(la for la in leaves(made.whole) if isinstance(la, keras.layers.Conv2D))
    assert conv.compute_dtype == precision.removeprefix("mixed_") and conv.variable_dtype == "float32"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    with in_float32(made.whole, precision):
        assert check_export(made.whole, to_openvino(made.whole), pixels) < 1e-3
    assert conv.compute_dtype == precision.removeprefix("mixed_")
