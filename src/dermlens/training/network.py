"""One network in the parts that training needs: frozen trunk, trainable classifier over its features, and the whole."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from dermlens.data.images import InputSpec
from dermlens.training.backbones import Backbone, backbone, build_backbone, split_at_block
from dermlens.training.fit import classifier
from dermlens.training.recipe import Recipe


@dataclass(frozen=True)
class Stem:
    """A backbone with its weights, cut in two; made before the data is read: a wrong setting is told at once."""

    row: Backbone
    spec: InputSpec
    pixels: keras.KerasTensor
    trunk: keras.Model
    top: keras.Model
    weights: str
    weights_id: str


@dataclass(frozen=True)
class Network:
    """Trunk: pixels -> features. Classifier: features -> logits, embedding, feature map. Whole: both, same layers."""

    trunk: keras.Model
    classifier: keras.Model
    whole: keras.Model


def open_backbone(recipe: Recipe) -> Stem:
    """Build the recipe's backbone with its weights and cut it.

    Raises:
        RecipeError: unknown backbone, size or cut. WeightsError: missing or foreign weights.
    """
    row = backbone(recipe.backbone)
    spec = InputSpec(size_px=recipe.size_px or row.input_size_px, framing=recipe.framing)  # type: ignore[arg-type]
    keras.utils.set_random_seed(recipe.seed)
    named = {"pretrained": row.weights, "none": "none"}
    weights = named.get(recipe.weights) or Path(recipe.weights)
    full = build_backbone(row.name, size_px=spec.size_px, weights=weights)
    trunk, top = split_at_block(full, recipe.cut_block)
    digest = hashlib.sha256(repr((row.name, recipe.cut_block)).encode())
    for array in trunk.get_weights():
        digest.update(np.ascontiguousarray(array).tobytes())
    return Stem(row, spec, full.inputs[0], trunk, top, str(weights), digest.hexdigest())


def with_head(stem: Stem, recipe: Recipe, classes: int) -> Network:
    """Put pooling, dropout and a linear layer of `classes` outputs on the backbone."""
    model = classifier(stem.top, classes, recipe.dropout, recipe.seed)
    whole = keras.Model(stem.pixels, model(stem.trunk(stem.pixels)), name=f"dermlens_{stem.row.name}")
    return Network(stem.trunk, model, whole)


def head_of(whole: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    """Return the last layer of a whole model: weights float32 (d, classes), bias float32 (classes,)."""
    weights, bias = whole.get_layer("classifier").get_layer("logits").get_weights()
    return weights, bias


def trainable_millions(model: keras.Model) -> float:
    """Return the number of trainable parameters in millions."""
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables) / 1e6
