"""Every row of the family: its facts, its cuts, its life through a training; and what a builder refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks.speed import family
from dermlens.errors import RecipeError
from dermlens.networks.efficientnet import (
    BACKBONES,
    backbone,
    block_cuts,
    build_backbone,
    multiply_adds,
    parameters,
    split_at_block,
)
from dermlens.networks.weights import fingerprint_image
from networks import answer, settle

SIZE = 64
CHEAP = ("lite0", "b0", "v2-b0")
LIVES = ("b0",)  # here with the dearest mode alone; Lite0 lives through the tests of training
ROOT = Path(__file__).resolve().parents[2]


def rows(cheap: tuple[str, ...]) -> list[object]:
    return [pytest.param(name, marks=() if name in cheap else pytest.mark.long) for name in BACKBONES]


@pytest.fixture(scope="module", params=["b0", pytest.param("v2-b0", marks=pytest.mark.long)])
def random_model(request: pytest.FixtureRequest) -> keras.Model:
    keras.utils.set_random_seed(3)
    return settle(build_backbone(request.param, size_px=SIZE, weights="none"))


@pytest.mark.parametrize("name", rows(CHEAP))
def test_the_facts_are_those_of_the_built_network(name: str) -> None:
    row = backbone(name)
    model = build_backbone(name, weights="none")
    assert (parameters(model), multiply_adds(model)) == (row.parameters, row.multiply_adds)
    assert model.input_shape == (None, row.input_size_px, row.input_size_px, 3)
    side = -(-row.input_size_px // 32)
    assert model.output_shape == (None, side, side, row.embedding_size)
    assert not [layer.name for layer in model.layers if set(".|>/") & set(layer.name)], "these cannot be exported"
    cuts = block_cuts(name)
    assert len(cuts) == row.blocks + 1
    for cut in cuts:
        assert model.get_layer(cut.layer).output.shape[1:] == (
            *2 * (-(-row.input_size_px // cut.stride),),
            cut.channels,
        )
    rates = [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert rates == sorted(rates) and 0.15 < rates[-1] < row.drop_connect
    keras.backend.clear_session()


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lives")


@pytest.mark.parametrize("name", rows(LIVES))
def test_every_row_trains_exports_and_predicts(name: str, lives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lives / name).mkdir()
    monkeypatch.setattr(family, "STEPS", 1)
    modes = ("full",) if name in LIVES else family.MODES
    monkeypatch.setattr(family, "MODES", modes)
    as_it_is = family.train_steps

    def without_tracing(*arguments: object) -> object:
        """Tracing a graph takes longer than one small step."""
        tf.config.run_functions_eagerly(True)
        try:
            return as_it_is(*arguments)
        finally:
            tf.config.run_functions_eagerly(False)

    monkeypatch.setattr(family, "train_steps", without_tracing)
    found = family.live(backbone(name), lives / name, size_px=SIZE, batch=2, check_facts=False)
    assert tuple(found["step_s"]) == modes
    assert found["export"] <= 1e-3
    assert found["predicted"] == "ok"
    shutil.rmtree(lives / name / "bundle")


@pytest.mark.parametrize("which", ["cheap", pytest.param("all", marks=pytest.mark.long)])
def test_what_was_saved_answers_the_same_in_a_fresh_process(which: str, lives: Path) -> None:
    names = [path.parent.name for path in lives.glob("*/expected.npz")]
    if not names:
        pytest.skip(f"{which} rows are saved by the test before this one, which was not chosen")
    program = (
        "from benchmarks.speed import family\n"
        f"for name in {names!r}: print(family.reload_difference({str(lives)!r} + '/' + name))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert max(map(float, done.stdout.split()[-len(names) :])) < 1e-5


def test_the_halves_of_a_cut_make_the_whole(random_model: keras.Model) -> None:
    pixels = fingerprint_image(SIZE)
    whole = answer(random_model, pixels)
    assert whole.std() > 1e-3
    for block in (0, 1, 7, backbone(random_model.name).blocks):
        trunk, top = split_at_block(random_model, block)
        np.testing.assert_allclose(answer(top, answer(trunk, pixels)), whole, atol=1e-4)


def test_training_the_top_changes_the_whole_and_spares_the_trunk() -> None:
    model = build_backbone("lite0", size_px=SIZE, weights="none")
    trunk, top = split_at_block(model, 11)
    shared = {id(layer) for layer in model.layers}
    assert all(id(layer) in shared for layer in top.layers[1:])
    pixels = fingerprint_image(SIZE)
    before, trunk_before = answer(model, pixels), answer(trunk, pixels)
    kernel = top.get_layer("top_bn").beta
    kernel.assign(kernel + 1.0)
    np.testing.assert_array_equal(answer(trunk, pixels), trunk_before)
    assert np.abs(answer(model, pixels) - before).max() > 0.5


def test_a_reloaded_model_can_be_cut(random_model: keras.Model, tmp_path: Path) -> None:
    random_model.save(tmp_path / "model.keras")
    pixels = fingerprint_image(SIZE)
    again = keras.models.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    trunk, top = split_at_block(again, 7)
    np.testing.assert_allclose(answer(top, answer(trunk, pixels)), answer(random_model, pixels), atol=1e-4)


@pytest.mark.parametrize("name", ["b0", "v2-b0"])
def test_pixels_are_normalised_as_in_the_original(name: str) -> None:
    model = build_backbone(name, size_px=32, weights="none")
    pixels = fingerprint_image(32)
    last = "rescaling_std" if name == "b0" else "normalization"
    seen = answer(keras.Model(model.inputs[0], model.get_layer(last).output), pixels)
    wanted = (pixels / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(seen, wanted, atol=1e-4)


@pytest.mark.long
def test_the_large_v2_normalise_to_half_a_range() -> None:
    model = build_backbone("v2-s", size_px=32, weights="none")
    seen = answer(keras.Model(model.inputs[0], model.get_layer("rescaling").output), fingerprint_image(32))
    np.testing.assert_allclose(seen, fingerprint_image(32) / 128 - 1, atol=1e-5)


@pytest.mark.parametrize("name", ["lite0", "b0", "v2-b0"])
def test_odd_sizes_are_built_too(name: str) -> None:
    assert build_backbone(name, size_px=75, weights="none").output_shape[1] == 3


def test_cuts_out_of_range_are_refused(random_model: keras.Model) -> None:
    for block in (-1, backbone(random_model.name).blocks + 1):
        with pytest.raises(RecipeError, match=str(block)):
            split_at_block(random_model, block)


def test_stochastic_depth_can_be_set(random_model: keras.Model) -> None:
    name = random_model.name
    still = build_backbone(name, size_px=32, weights="none", drop_connect=0.0)
    assert all(layer.rate == 0 for layer in still.layers if isinstance(layer, keras.layers.Dropout))
    with pytest.raises(RecipeError, match="drop_connect"):
        build_backbone(name, weights="none", drop_connect=1.0)
