"""The family table, the builders and the cuts: shapes, the two Keras graphs, sharing of layers, saving."""

from __future__ import annotations

from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from dermlens.errors import RecipeError, WeightsError
from dermlens.training.backbones import BACKBONES, backbone, block_cuts, build_backbone, split_at_block
from dermlens.training.pretrained import fingerprint_image, read_keras_model

SIZE = 64


@pytest.fixture(scope="module", params=sorted(BACKBONES))
def random_model(request: pytest.FixtureRequest) -> keras.Model:
    keras.utils.set_random_seed(3)
    model = build_backbone(request.param, size_px=SIZE, weights="none")
    _scatter_batch_norm(model)
    return model


@pytest.fixture(scope="module")
def b0_official_h5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file laid out as Keras publishes it, with the stored normalisation of the official one."""
    keras.utils.set_random_seed(5)
    model = build_backbone("b0", size_px=SIZE, weights="none")
    _scatter_batch_norm(model)
    path = tmp_path_factory.mktemp("weights") / "efficientnetb0_notop.h5"
    write_legacy_h5(model, path)
    return path


def _scatter_batch_norm(model: keras.Model) -> None:
    """Give batch norms such statistics as a trained network has, so that features are far from zero."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            layer.set_weights(
                [
                    gamma + rng.normal(0, 0.1, gamma.shape),
                    beta + rng.normal(0, 0.1, beta.shape),
                    mean + rng.normal(0, 0.1, mean.shape),
                    variance * rng.uniform(0.05, 0.5, variance.shape),
                ]
            )


def write_legacy_h5(model: keras.Model, path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{w.name}:0" for w in layer.weights]
            group.attrs["weight_names"] = [n.encode() for n in names]
            for name, value in zip(names, layer.get_weights(), strict=True):
                group[name] = value


def _run(model: keras.Model, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(model(pixels, training=False))


def test_known_rows_have_the_facts_of_the_built_network(random_model: keras.Model) -> None:
    row = backbone(random_model.name)
    assert random_model.count_params() == row.parameters
    assert random_model.output_shape == (None, 2, 2, row.embedding_size)
    assert random_model.inputs[0].dtype == "float32"
    assert row.blocks == 16


def test_layer_names_can_be_exported(random_model: keras.Model) -> None:
    assert not [layer.name for layer in random_model.layers if set(".|>/") & set(layer.name)]


def test_every_cut_has_the_promised_shape_and_the_halves_make_the_whole(random_model: keras.Model) -> None:
    pixels = fingerprint_image(SIZE)
    whole = _run(random_model, pixels)
    assert whole.std() > 1e-3
    for cut in block_cuts(random_model.name):
        trunk, top = split_at_block(random_model, cut.block)
        assert trunk.output_shape == (None, SIZE // cut.stride, SIZE // cut.stride, cut.channels)
        if cut.block in (0, 7, 11, 16):
            np.testing.assert_allclose(_run(top, _run(trunk, pixels)), whole, atol=1e-4)


def test_cut_numbers_of_the_14_px_maps_at_224() -> None:
    by_channels = {80: [], 112: []}  # type: dict[int, list[int]]
    for cut in block_cuts("lite0"):
        if cut.stride == 16:
            by_channels[cut.channels].append(cut.block)
    assert by_channels == {80: [6, 7, 8], 112: [9, 10, 11]}


def test_training_the_top_changes_the_whole_and_spares_the_trunk() -> None:
    model = build_backbone("lite0", size_px=SIZE, weights="none")
    trunk, top = split_at_block(model, 11)
    shared = {id(layer) for layer in model.layers}
    assert all(id(layer) in shared for layer in top.layers[1:])
    pixels = fingerprint_image(SIZE)
    before, trunk_before = _run(model, pixels), _run(trunk, pixels)
    kernel = top.get_layer("top_bn").beta
    kernel.assign(kernel + 1.0)
    np.testing.assert_array_equal(_run(trunk, pixels), trunk_before)
    assert np.abs(_run(model, pixels) - before).max() > 0.5


def test_a_reloaded_model_answers_the_same_and_can_be_cut(random_model: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    random_model.save(path)
    pixels = fingerprint_image(SIZE)
    again = keras.models.load_model(path, compile=False, safe_mode=True)
    np.testing.assert_allclose(_run(again, pixels), _run(random_model, pixels), atol=1e-5)
    trunk, top = split_at_block(again, 7)
    np.testing.assert_allclose(_run(top, _run(trunk, pixels)), _run(random_model, pixels), atol=1e-4)


def test_a_backbone_is_taken_out_of_a_larger_keras_file(tmp_path: Path) -> None:
    model = build_backbone("lite0", size_px=SIZE, weights="none")
    trunk, top = split_at_block(model, 7)
    logits = keras.layers.Dense(3, name="logits")(keras.layers.GlobalAveragePooling2D()(top.outputs[0]))
    head = keras.Model(top.inputs, logits, name="classifier")
    keras.Model(model.inputs, head(trunk(model.inputs[0]))).save(tmp_path / "run.keras")
    again = build_backbone("lite0", size_px=SIZE, weights=str(tmp_path / "run.keras"))
    pixels = fingerprint_image(SIZE)
    np.testing.assert_allclose(_run(again, pixels), _run(model, pixels), atol=1e-5)
    with pytest.raises(WeightsError, match="do not belong"):
        build_backbone("b0", size_px=SIZE, weights=tmp_path / "run.keras")


def test_b0_normalises_as_the_original_did() -> None:
    model = build_backbone("b0", size_px=32, weights="none")
    pixels = fingerprint_image(32)
    seen = _run(keras.Model(model.inputs[0], model.get_layer("rescaling_std").output), pixels)
    wanted = (pixels / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(seen, wanted, atol=1e-4)


def test_the_same_official_file_gives_the_same_features_by_every_door(
    b0_official_h5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keras.src.applications import efficientnet as keras_efficientnet

    monkeypatch.setattr(keras_efficientnet.file_utils, "get_file", lambda *a, **k: str(b0_official_h5))
    by_keras = keras.applications.EfficientNetB0(include_top=False, weights="imagenet", input_shape=(SIZE, SIZE, 3))
    wanted = _run(by_keras, fingerprint_image(SIZE))
    for weights in ("imagenet", b0_official_h5):
        model = build_backbone("b0", size_px=SIZE, weights=weights)
        np.testing.assert_allclose(_run(model, fingerprint_image(SIZE)), wanted, atol=1e-4)
    keras_plain = keras.applications.EfficientNetB0(
        include_top=False, weights=str(b0_official_h5), input_shape=(SIZE, SIZE, 3)
    )
    assert np.abs(_run(keras_plain, fingerprint_image(SIZE)) - wanted).max() > 0.01, "the trap is gone from Keras"


def test_a_file_made_in_the_plain_keras_graph_gets_the_plain_graph(tmp_path: Path) -> None:
    plain = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(SIZE, SIZE, 3))
    _scatter_batch_norm(plain)
    write_legacy_h5(plain, tmp_path / "plain.h5")
    plain.save(tmp_path / "plain.keras")
    wanted = _run(plain, fingerprint_image(SIZE))
    model = build_backbone("b0", size_px=SIZE, weights=tmp_path / "plain.h5")
    np.testing.assert_allclose(_run(model, fingerprint_image(SIZE)), wanted, atol=1e-4)
    values, extra_rescaling = read_keras_model(tmp_path / "plain.keras")
    assert not extra_rescaling
    assert len(values["normalization"]) == 3


def test_an_unknown_normalisation_or_shape_in_an_h5_is_refused(b0_official_h5: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.h5"
    path.write_bytes(b0_official_h5.read_bytes())
    with h5py.File(path, "r+") as file:
        file["normalization/normalization/mean:0"][...] = 0.7
    with pytest.raises(WeightsError, match="normalisation"):
        build_backbone("b0", size_px=SIZE, weights=path)
    with h5py.File(path, "r+") as file:
        file["normalization/normalization/mean:0"][...] = (0.485, 0.456, 0.406)
        del file["stem_conv/stem_conv/kernel:0"]
        file["stem_conv/stem_conv/kernel:0"] = np.zeros((3, 3, 3, 40), np.float32)
    with pytest.raises(WeightsError, match=r"stem_conv/kernel.*\(3, 3, 3, 40\).*\(3, 3, 3, 32\)"):
        build_backbone("b0", size_px=SIZE, weights=path)


def test_offline_says_all_ways_out_and_nothing_is_random(monkeypatch: pytest.MonkeyPatch) -> None:
    from keras.src.applications import efficientnet as keras_efficientnet

    def no_network(*_args: object, **_kwargs: object) -> str:
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras_efficientnet.file_utils, "get_file", no_network)
    with pytest.raises(WeightsError) as caught:
        build_backbone("b0")
    assert caught.value.code == "weights_offline"
    for way in ("efficientnetb0_notop.h5", "pip install", "lite0", "'none'", "network"):
        assert way in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "near"), [("lite-0", "lite0"), ("efficientnetb", "b0"), ("B00", "b0"), ("resnet50", "")]
)
def test_unknown_backbone_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(RecipeError) as caught:
        backbone(name)
    assert repr(name) in caught.value.message
    assert near in caught.value.remedy
    assert caught.value.code == "unknown_backbone"


def test_titles_and_capitals_are_known_names() -> None:
    assert backbone("EfficientNet-Lite0").name == "lite0"
    assert backbone("B0").name == "b0"


@pytest.mark.parametrize("weights", ["imagenet", "lit", "random"])
def test_a_word_that_is_no_source_for_this_backbone_is_refused(weights: str) -> None:
    with pytest.raises(RecipeError, match="lite"):
        build_backbone("lite0", weights=weights)


@pytest.mark.parametrize("size_px", [8, 5000, -1])
def test_sizes_out_of_range_are_refused(size_px: int) -> None:
    with pytest.raises(RecipeError, match=str(size_px)):
        build_backbone("lite0", size_px=size_px, weights="none")


def test_cuts_out_of_range_are_refused(random_model: keras.Model) -> None:
    for block in (-1, 17):
        with pytest.raises(RecipeError, match=str(block)):
            split_at_block(random_model, block)


def test_damaged_or_foreign_model_files_are_refused(tmp_path: Path) -> None:
    for name, content in (
        ("a.keras", b"no zip"),
        ("b.h5", b"no hdf5"),
        ("c.weights.h5", b""),
        ("d.txt", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError):
            build_backbone("b0", size_px=SIZE, weights=tmp_path / name)
    with pytest.raises(WeightsError, match="cannot be read"):
        build_backbone("b0", size_px=SIZE, weights="absent.h5")


def test_stochastic_depth_can_be_set(random_model: keras.Model) -> None:
    row = backbone(random_model.name)
    still = build_backbone(row.name, size_px=32, weights="none", drop_connect=0.0)
    rates = [layer.rate for layer in random_model.layers if isinstance(layer, keras.layers.Dropout)]
    assert 0.1 < max(rates) < row.drop_connect
    assert all(layer.rate == 0 for layer in still.layers if isinstance(layer, keras.layers.Dropout))
    with pytest.raises(RecipeError, match="drop_connect"):
        build_backbone(row.name, weights="none", drop_connect=1.0)
