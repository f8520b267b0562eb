"""Training on two devices of one machine (virtual processors, in a process of their own): the curve of one device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain
from typing import Any

import numpy as np
import pytest

PROGRAM = """
import io, json, sys, tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from dermlens.networks.backend import load_tensorflow
load_tensorflow()
import keras, numpy as np, tensorflow as tf
from rich.console import Console
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
tf.config.experimental.enable_op_determinism()
from dermlens.errors import RecipeError
from dermlens.training import fit as fit_module
from dermlens.training.checkpoint import Checkpoint, values_of
from dermlens.training.device import devices, resolve
from dermlens.networks.family import backbone
from dermlens.training.feed import from_arrays
from dermlens.training.step import Mirror
from dermlens.training.network import add_head, classifier, open_backbone
from dermlens.training.recipe import Recipe
from dermlens.training.watch import Watch

CODES, TWO = ("A", "B", "C"), ("CPU:0", "CPU:1")
QUIET = Console(file=io.StringIO())
PLAIN = Recipe(batch_size=16, dropout=0.0, clip_norm=0.05, precision="float32", seed=1)
STAGE = fit_module.Stage("tune", 3, 1e-2, mixup=0.4, salt=1)


class Losses(Watch):
    losses: list

    @contextmanager
    def stage(self, name, images, *, step=0):
        yield lambda done, loss: self.losses.append(loss)


def network(recipe, norm_trainable):
    keras.utils.set_random_seed(0)
    features = keras.Input((4, 4, 6))
    x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(features)
    norm = keras.layers.BatchNormalization(name="norm")
    x = norm(x)
    norm.trainable = norm_trainable
    return classifier(keras.Model(features, keras.layers.ReLU(name="relu")(x)), 3, recipe.dropout, 0)


def toy(n, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    features = rng.normal(0, 0.5, (n, 2, 4, 4, 6))
    features[np.arange(n), :, :, :, labels] += 2
    return features.astype(np.float16), labels


def trained(recipe, spread, norm_trainable=False, checkpoint=None):
    model, (select, labels) = network(recipe, norm_trainable), toy(48, 1)
    watch = Losses(QUIET, CODES)
    watch.losses = []
    saved = checkpoint.load() if checkpoint else None
    history = fit_module.fit(model, from_arrays(*toy(96, 0), select[:, 0], labels), STAGE, recipe, CODES, watch,
                             checkpoint, saved, spread)
    return watch.losses, model, history


def compared(recipe):
    (one, model_1, _), (two, model_2, history) = trained(recipe, ()), trained(recipe, TWO)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(values_of(model_1.weights), values_of(model_2.weights)))
    return {"one": one, "two": two, "weights": difference, "best": history.best_score}


def resumed():
    recipe = replace(PLAIN, dropout=0.3, batch_size=10)
    straight, whole, _ = trained(recipe, TWO, True)
    checkpoint = Checkpoint(Path(tempfile.mkdtemp()) / "c.npz", "key", QUIET)
    real, count = fit_module._Loop.save, iter(range(100))

    def save(self):
        real(self)
        if next(count) == 6:
            raise KeyError
    fit_module._Loop.save, Checkpoint.due = save, lambda self: True
    try:
        trained(recipe, TWO, True, checkpoint)
    except KeyError:
        pass
    fit_module._Loop.save = real
    again, model, _ = trained(recipe, TWO, True, checkpoint)
    same = all(np.array_equal(a, b) for a, b in zip(values_of(whole.variables), values_of(model.variables)))
    norm = whole.get_layer("norm")
    return {"straight": straight, "again": again, "same": same, "moved": float(np.abs(norm.moving_mean.numpy()).max())}


def paths(model):
    return [variable.path for variable in model.trainable_variables]


def copied():
    recipe = resolve(Recipe(fine_tune="full", size_px=32, batch_size=5, precision="float32"), backbone("lite0"))
    whole = add_head(open_backbone(recipe), recipe, 3).whole
    mirror = Mirror(whole, devices(recipe), recipe.batch_size)
    mirror.copy_weights()
    pixels = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3)).astype(np.float32)
    own, copy = whole(pixels, training=False)[0], mirror._copy(pixels, training=False)[0]
    return {"devices": devices(recipe), "difference": float(np.abs(np.asarray(own) - np.asarray(copy)).max()),
            "trained": paths(whole) == paths(mirror._copy),
            "frozen": len(whole.weights) - len(whole.trainable_variables), "statistics": len(mirror._statistics)}


def refused(**settings):
    try:
        resolve(Recipe(precision="float32", **settings), backbone("lite0"))
    except RecipeError as error:
        return error.message


print(json.dumps({"even": compared(PLAIN), "odd": compared(replace(PLAIN, batch_size=13)), "resumed": resumed(),
    "copied": copied(), "refused": [refused(fine_tune="full", devices=3), refused(fine_tune="top", devices=2),
                                    refused(fine_tune="full", batch_size=3, devices=2)]}))
"""


@pytest.fixture(scope="module")
def found() -> Any:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("batch", ["even", "odd"])
def test_two_devices_have_the_loss_curve_of_one(found: Any, batch: str) -> None:
    """With mixup, whose pairs lie on one device, and gradients clipped all the way."""
    curves = found[batch]
    assert len(curves["one"]) == 3 * (6 if batch == "even" else 8) and curves["one"][-1] < 0.8 * curves["one"][0]
    np.testing.assert_allclose(curves["two"], curves["one"], rtol=1e-4)
    assert curves["weights"] < 1e-4


def test_a_training_on_two_devices_goes_on_to_the_same_bits(found: Any) -> None:
    """With dropout, and batch norms that follow the batches."""
    resumed = found["resumed"]
    assert resumed["same"] and resumed["again"] == resumed["straight"][-len(resumed["again"]) :]
    assert 0 < len(resumed["again"]) < len(resumed["straight"]) and resumed["moved"] > 0.01


def test_a_whole_network_is_copied_with_what_is_frozen_in_it(found: Any) -> None:
    copied = found["copied"]
    assert copied["devices"] == ["CPU:0", "CPU:1"] and copied["trained"] and copied["difference"] < 1e-5
    assert copied["frozen"] > 40 and copied["statistics"] == 0


def test_devices_that_there_are_not_or_that_have_nothing_to_do_are_refused(found: Any) -> None:
    too_many, not_full, too_few_images = found["refused"]
    assert "devices is 3. TensorFlow sees 2" in too_many and "can be spread over 1" in too_few_images
    assert "fine_tune is top" in not_full


@pytest.mark.parametrize(("batch", "devices"), [(8, 2), (13, 3), (64, 3), (4, 2), (7, 3)])
def test_every_row_goes_to_one_device_with_the_row_it_is_blended_with(batch: int, devices: int) -> None:
    from dermlens.training.step import shares

    parts = [[row for start, stop in ranges for row in range(start, stop)] for ranges in shares(batch, devices)]
    assert sorted(chain(*parts)) == list(range(batch)) and min(map(len, parts)) >= 2
    for part in parts:
        assert [batch - 1 - row for row in part] == part[::-1]
