"""One network in its parts: which weights each mode trains, what batch norm and precision do, and its Keras file."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from dermlens.errors import StorageError, WeightsError
from dermlens.networks.backend import leaves
from dermlens.networks.efficientnet import backbone
from dermlens.networks.openvino import check_export, to_openvino
from dermlens.training.device import resolve
from dermlens.training.network import (
    Network,
    add_head,
    head_of,
    in_float32,
    load_keras,
    open_backbone,
    save_keras,
)
from dermlens.training.recipe import Recipe


def network(**settings: object) -> Network:
    recipe = resolve(Recipe(size_px=32, **settings), backbone("lite0"))  # type: ignore[arg-type]
    return add_head(open_backbone(recipe), recipe, 3)


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


def model() -> keras.Model:
    inputs = keras.Input((2,))
    return keras.Model(inputs, keras.layers.Dense(3, name="logits")(inputs))


def test_a_saved_model_loads_by_run_folder_or_file(tmp_path: Path) -> None:
    save_keras(model(), tmp_path / "model.keras")
    assert load_keras(tmp_path).output_shape == (None, 3) == load_keras(tmp_path / "model.keras").output_shape
    assert [p.name for p in tmp_path.iterdir()] == ["model.keras"]


def test_a_full_disk_is_one_clear_error_and_the_earlier_model_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_keras(model(), tmp_path / "model.keras")
    before = (tmp_path / "model.keras").read_bytes()

    def no_space(self: keras.Model, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keras.Model, "save", no_space)
    with pytest.raises(StorageError, match="No space left"):
        save_keras(model(), tmp_path / "model.keras")
    assert (tmp_path / "model.keras").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.keras"]


def test_the_embedded_models_missing_copy_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="make train-default"):
        load_keras("default")
    with pytest.raises(WeightsError, match="dermlens train DATA --out RUN"):
        load_keras(tmp_path)
