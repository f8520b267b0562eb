"""What a run leaves: the Keras model is found by name, and a failed save loses nothing."""

from __future__ import annotations

from pathlib import Path

import keras
import pytest

from dermlens.errors import StorageError, WeightsError
from dermlens.training.outputs import load_keras, save_keras


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
