"""The packaged Lite weights: read without torch, loaded whole, proved on pictures, refused when damaged."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
import skimage.data

from dermlens.errors import WeightsError
from dermlens.networks import weight_files
from dermlens.networks.efficientnet import backbone, build_backbone
from dermlens.networks.weight_files import lite_weights_path, read_torch_legacy
from dermlens.networks.weights import check_known, load_lite_weights, set_layer


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return read_torch_legacy(lite_weights_path("lite0"))


@pytest.fixture(scope="module")
def lite0() -> keras.Model:
    return build_backbone("lite0")


@pytest.mark.parametrize("name", ["lite0", "lite1", "lite2"])
def test_real_pictures_get_their_imagenet_class(name: str) -> None:
    size_px = backbone(name).input_size_px
    model = build_backbone(name)
    tensors = read_torch_legacy(lite_weights_path(name))
    kernel, bias = tensors["_fc.weight"].T, tensors["_fc.bias"]  # the ImageNet classifier
    for picture, imagenet_class in (("chelsea", 285), ("coffee", 967)):
        image = cv2.resize(getattr(skimage.data, picture)(), (size_px, size_px), interpolation=cv2.INTER_AREA)
        features = np.asarray(model(image[None].astype(np.float32), training=False)).mean(axis=(1, 2))
        logits = (features @ kernel + bias)[0]
        probability = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert int(logits.argmax()) == imagenet_class
        assert probability.max() > 0.6


def test_ignoring_the_strides_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_strides(flat: np.ndarray, ref: weight_files._TensorRef) -> np.ndarray:
        return flat[ref.offset : ref.offset + int(np.prod(ref.shape))].reshape(ref.shape)

    monkeypatch.setattr(weight_files, "_strided", without_strides)
    with pytest.raises(WeightsError, match="test picture"):
        build_backbone("lite0")


def test_other_sizes_carry_the_same_weights(lite0: keras.Model) -> None:
    small = build_backbone("lite0", size_px=96)
    for one, two in zip(lite0.get_weights(), small.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_pth_path_is_the_same_door(lite0: keras.Model) -> None:
    again = build_backbone("lite0", weights=lite_weights_path("lite0"))
    check_known(again, "lite0")
    with pytest.raises(WeightsError, match="do not belong"):
        build_backbone("lite1", weights=lite_weights_path("lite0"))


def test_missing_left_over_and_misshapen_tensors_are_named(tensors: dict[str, np.ndarray]) -> None:
    model = build_backbone("lite0", size_px=32, weights="none")
    before = [w.copy() for w in model.get_weights()]
    name = "_blocks.3._depthwise_conv.weight"
    with pytest.raises(WeightsError, match=f"{name} is missing"):
        load_lite_weights(model, {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(WeightsError, match=r"extra\.weight.*has no place"):
        load_lite_weights(model, tensors | {"extra.weight": np.zeros(3, np.float32)})
    with pytest.raises(WeightsError, match=rf"{name}.*\(7, 7, 144, 1\).*\(5, 5, 144, 1\)"):
        load_lite_weights(model, tensors | {name: np.zeros((144, 1, 7, 7), np.float32)})
    with pytest.raises(WeightsError, match="not finite"):
        load_lite_weights(model, tensors | {"_bn0.bias": np.full(32, np.nan, np.float32)})
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)  # a refused load leaves nothing half done


@pytest.mark.parametrize("cut", [0, 10, 200, 5_000, 1_000_000, 18_826_031])
def test_cut_off_files_are_refused(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    path.write_bytes(lite_weights_path("lite0").read_bytes()[:cut])
    with pytest.raises(WeightsError, match="damaged"):
        read_torch_legacy(path)


def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    whole = lite_weights_path("lite0").read_bytes()
    rng = np.random.default_rng(1)
    path = tmp_path / "flipped.pth"
    for _ in range(30):
        data = bytearray(whole)
        data[int(rng.integers(0, 47_000))] ^= int(rng.integers(1, 256))
        path.write_bytes(data)
        try:
            read_torch_legacy(path)
        except WeightsError:
            continue


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "evil.pth"
    head = b"".join(pickle.dumps(v, 2) for v in (weight_files.TORCH_MAGIC, weight_files.TORCH_PROTOCOL, {}))
    path.write_bytes(head + pickle.dumps(Evil(), 2))
    with pytest.raises(WeightsError, match="not allowed"):
        read_torch_legacy(path)
    assert not (tmp_path / "ran").exists()


def test_a_tensor_outside_its_storage_is_refused() -> None:
    storage = weight_files._Storage("0", np.dtype("<f4"), 4)
    flat = np.arange(4, dtype=np.float32)
    good = weight_files._TensorRef(storage, 0, (2, 2), (1, 2))
    np.testing.assert_array_equal(weight_files._strided(flat, good), [[0, 2], [1, 3]])
    for offset, shape, strides in (
        (1, (2, 2), (1, 2)),
        (0, (2, 2), (-1, 2)),
        (-1, (1,), (1,)),
        (0, (9,), (1,)),
    ):
        with pytest.raises(ValueError):
            weight_files._strided(flat, weight_files._TensorRef(storage, offset, shape, strides))


def test_weights_of_a_normalisation_act_at_once() -> None:
    """Keras keeps working copies that `set_weights` alone does not refresh."""
    layer = keras.layers.Normalization(axis=-1)
    layer.build((None, 3))
    _, _, count = layer.get_weights()
    set_layer(layer, [np.full(3, 2.0, np.float32), np.full(3, 4.0, np.float32), count])
    np.testing.assert_allclose(np.asarray(layer(np.full((1, 3), 6.0, np.float32))), 2.0, atol=1e-5)
