"""Every door for Keras weights: one file gives the same features by each, and a file of another graph is refused."""

from __future__ import annotations

from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from dermlens.errors import WeightsError
from dermlens.networks.efficientnet import build_backbone, split_at_block
from dermlens.networks.weights import fingerprint_image, pixel_scaling, read_keras
from networks import answer, settle, write_legacy_h5

SIZE = 64
PICTURE = fingerprint_image(SIZE)
TITLES = {"b0": "EfficientNetB0", "v2-b0": "EfficientNetV2B0"}
FILES = {"b0": "efficientnetb0_notop.h5", "v2-b0": "efficientnetv2-b0_notop.h5"}


def keras_network(name: str, weights: str | None = None) -> keras.Model:
    """Return the network as keras.applications builds it."""
    builder = getattr(keras.applications, TITLES[name])
    return builder(include_top=False, weights=weights, input_shape=(SIZE, SIZE, 3))


@pytest.fixture(scope="module", params=["b0", pytest.param("v2-b0", marks=pytest.mark.long)])
def official(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file laid out as Keras publishes it, in its name, with the stored normalisation of the official ones."""
    keras.utils.set_random_seed(5)
    model = settle(build_backbone(request.param, size_px=SIZE, weights="none"))
    return write_legacy_h5(model, tmp_path_factory.mktemp("weights") / FILES[request.param])


def name_of(official: Path) -> str:
    return next(name for name, file in FILES.items() if file == official.name)


def downloaded(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Keras's own door find this file instead of its download."""
    from keras.src.applications import efficientnet, efficientnet_v2

    for module in (efficientnet, efficientnet_v2):
        monkeypatch.setattr(module.file_utils, "get_file", lambda *a, **k: str(official))


def test_the_same_file_gives_the_same_features_by_every_door(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = name_of(official)
    downloaded(official, monkeypatch)
    by_keras = keras_network(name, "imagenet")
    by_keras.save(tmp_path / "whole.keras")
    by_keras.save_weights(tmp_path / "some.weights.h5")
    wanted = answer(by_keras, PICTURE)
    for weights in ("imagenet", "pretrained", official, tmp_path / "whole.keras", tmp_path / "some.weights.h5"):
        model = build_backbone(name, size_px=SIZE, weights=weights)
        np.testing.assert_allclose(answer(model, PICTURE), wanted, atol=1e-4 * np.abs(wanted).max())


def test_the_trap_is_real(official: Path) -> None:
    """By Keras's own path door the B graph lacks a layer: no error, other answers."""
    name = name_of(official)
    by_path = answer(keras_network(name, str(official)), PICTURE)
    ours = answer(build_backbone(name, size_px=SIZE, weights=official), PICTURE)
    apart = np.abs(by_path - ours).max() / np.abs(ours).max()
    assert apart > 0.01 if name == "b0" else apart < 1e-4


@pytest.mark.parametrize("kind", ["legacy.h5", "plain.weights.h5", "plain.keras"])
def test_weights_of_the_plain_graph_get_the_plain_graph(kind: str, tmp_path: Path) -> None:
    plain = settle(keras_network("b0"))
    path = tmp_path / kind
    write_legacy_h5(plain, path) if kind == "legacy.h5" else (
        plain.save(path) if kind.endswith(".keras") else plain.save_weights(path)
    )
    model = build_backbone("b0", size_px=SIZE, weights=path)
    wanted = answer(plain, PICTURE)
    np.testing.assert_allclose(answer(model, PICTURE), wanted, atol=1e-4 * np.abs(wanted).max())
    assert "rescaling_std" not in [layer.name for layer in model.layers]


def test_groups_without_names_are_told_by_their_order(tmp_path: Path) -> None:
    """Older Keras 3 writes no layer names into .weights.h5."""
    plain = settle(keras_network("v2-b0"))
    plain.save_weights(tmp_path / "old.weights.h5")
    with h5py.File(tmp_path / "old.weights.h5", "r+") as file:
        for group in file["layers"].values():
            group["vars"].attrs.clear()
    model = build_backbone("v2-b0", size_px=SIZE, weights=tmp_path / "old.weights.h5")
    np.testing.assert_allclose(answer(model, PICTURE), answer(plain, PICTURE), atol=1e-4)


def test_an_imagenet_classifier_in_the_file_is_left_over(tmp_path: Path) -> None:
    whole = keras.applications.EfficientNetV2B0(weights=None, input_shape=(SIZE, SIZE, 3))
    path = write_legacy_h5(settle(whole), tmp_path / "efficientnetv2-b0.h5")
    model = build_backbone("v2-b0", size_px=SIZE, weights=path)
    wanted = answer(keras.Model(whole.inputs[0], whole.get_layer("top_activation").output), PICTURE)
    np.testing.assert_allclose(answer(model, PICTURE), wanted, atol=1e-4 * np.abs(wanted).max())


def test_a_backbone_is_taken_out_of_the_model_of_a_run_at_any_size(tmp_path: Path) -> None:
    model = settle(build_backbone("lite0", size_px=SIZE, weights="none"))
    trunk, top = split_at_block(model, 7)
    pooled = keras.layers.GlobalAveragePooling2D()(top.outputs[0])
    logits = keras.layers.Dense(3, name="logits")(pooled)
    head = keras.Model(top.inputs, [logits, pooled, top.outputs[0]], name="classifier")
    keras.Model(model.inputs, head(trunk(model.inputs[0]))).save(tmp_path / "model.keras")
    again = build_backbone("lite0", size_px=SIZE, weights=tmp_path)
    np.testing.assert_allclose(answer(again, PICTURE), answer(model, PICTURE), atol=1e-5)
    larger = build_backbone("lite0", size_px=96, weights=tmp_path)
    for one, two in zip(larger.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    with pytest.raises(WeightsError, match="do not belong"):
        build_backbone("b0", size_px=SIZE, weights=tmp_path)


def test_a_model_that_scales_its_pixels_otherwise_is_refused(tmp_path: Path) -> None:
    bare = keras.applications.EfficientNetV2B0(
        include_top=False, weights=None, input_shape=(32, 32, 3), include_preprocessing=False
    )
    bare.save(tmp_path / "bare.keras")
    assert pixel_scaling(bare) == []
    with pytest.raises(WeightsError, match="scales its pixels in another way"):
        build_backbone("v2-b0", size_px=32, weights=tmp_path / "bare.keras")


def test_a_model_that_answers_otherwise_is_refused(tmp_path: Path) -> None:
    """All weights fit by name and shape, and still the network is another."""
    model = settle(build_backbone("lite0", size_px=32, weights="none"))
    keras.Model(model.inputs[0], keras.layers.ReLU(name="more")(model.outputs[0] - 0.5)).save(tmp_path / "other.keras")
    with pytest.raises(WeightsError, match="other features than in"):
        build_backbone("lite0", size_px=32, weights=tmp_path / "other.keras")


def test_an_unknown_normalisation_or_shape_in_an_h5_is_refused(tmp_path: Path) -> None:
    path = write_legacy_h5(build_backbone("b0", size_px=32, weights="none"), tmp_path / "odd.h5")
    for key, value in (("mean", 0.7), ("variance", 0.05)):
        with h5py.File(path, "r+") as file:
            kept = file[f"normalization/normalization/{key}:0"][...]
            file[f"normalization/normalization/{key}:0"][...] = value
        with pytest.raises(WeightsError, match="normalisation"):
            build_backbone("b0", size_px=32, weights=path)
        with h5py.File(path, "r+") as file:
            file[f"normalization/normalization/{key}:0"][...] = kept
    with h5py.File(path, "r+") as file:
        del file["stem_conv/stem_conv/kernel:0"]
        file["stem_conv/stem_conv/kernel:0"] = np.zeros((3, 3, 3, 40), np.float32)
    with pytest.raises(WeightsError, match=r"stem_conv/kernel.*\(3, 3, 3, 40\).*\(3, 3, 3, 32\)"):
        build_backbone("b0", size_px=32, weights=path)


def test_weights_of_a_sibling_are_refused(tmp_path: Path) -> None:
    small = build_backbone("lite0", size_px=32, weights="none")
    small.save(tmp_path / "lite0.keras")
    small.save_weights(tmp_path / "lite0.weights.h5")
    for file in ("lite0.keras", "lite0.weights.h5"):
        for name in ("lite1", "b0"):
            with pytest.raises(WeightsError, match="do not belong"):
                build_backbone(name, size_px=32, weights=tmp_path / file)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    for name, content in (("a.keras", b"no zip"), ("b.h5", b"no hdf5"), ("c.weights.h5", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match="damaged"):
            build_backbone("b0", size_px=32, weights=tmp_path / name)
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file["something"] = 1
    with pytest.raises(WeightsError, match="no named layers"):
        build_backbone("b0", size_px=32, weights=tmp_path / "empty.h5")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_keras(tmp_path / "absent.keras")


def test_offline_says_all_ways_out_and_nothing_is_random(monkeypatch: pytest.MonkeyPatch) -> None:
    from keras.src.applications import efficientnet

    def no_network(*_args: object, **_kwargs: object) -> str:
        raise Exception("URL fetch failure on https://x: None -- [Errno -2] Name or service not known")

    monkeypatch.setattr(efficientnet.file_utils, "get_file", no_network)
    with pytest.raises(WeightsError, match="URL fetch failure") as caught:
        build_backbone("b0", size_px=32)
    assert caught.value.code == "weights_offline"
    for way in ("efficientnetb0_notop.h5", "pip install", "lite0", "'none'", "network"):
        assert way in caught.value.remedy
