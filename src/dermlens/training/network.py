"""One network in the parts that training needs: frozen trunk, trainable classifier over its features, and the whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import keras
import numpy as np

from dermlens.data.images import InputSpec
from dermlens.networks.backend import leaves
from dermlens.networks.efficientnet import Backbone, backbone, build_backbone, split_at_block
from dermlens.networks.weight_files import resolve_weights
from dermlens.training.recipe import Recipe


@dataclass(frozen=True)
class Stem:
    """A backbone with its weights, cut in two; made before the data is read: a wrong setting is told at once.

    Attributes:
        weights: where the weights come from, in words.
        trunk_id, weights_id: digests of the weights of the trunk with the cut, and of all weights.
    """

    row: Backbone
    spec: InputSpec
    pixels: keras.KerasTensor
    trunk: keras.Model
    top: keras.Model
    weights: str
    trunk_id: str
    weights_id: str


@dataclass(frozen=True)
class Network:
    """The same layers in four models.

    Attributes:
        trunk: pixels -> features at the cut.
        head: embeddings (n, d) -> logits; dropout and the last layer.
        classifier: features at the cut -> [logits, embedding, feature_map].
        whole: pixels -> [logits, embedding, feature_map].
    """

    trunk: keras.Model
    head: keras.Model
    classifier: keras.Model
    whole: keras.Model


def open_backbone(recipe: Recipe) -> Stem:
    """Build the backbone of a resolved recipe with its weights and cut it.

    Raises:
        RecipeError: unknown backbone, size or cut. WeightsError: missing or foreign weights.
    """
    row = backbone(recipe.backbone)
    spec = InputSpec(size_px=recipe.size_px, framing=recipe.framing)  # type: ignore[arg-type]
    weights = resolve_weights(row, recipe.weights)
    full = build_backbone(row.name, size_px=spec.size_px, weights=weights)  # float32, in which weights are checked
    trunk, top = split_at_block(full, recipe.cut_block)
    if recipe.precision != "float32":
        _compute_in(full, recipe.precision)
    digests = [_digest(model, (row.name, recipe.cut_block)) for model in (trunk, full)]
    return Stem(row, spec, full.inputs[0], trunk, top, str(weights), *digests)


def _digest(model: keras.Model, *facts: object) -> str:
    digest = hashlib.sha256(repr(facts).encode())
    for array in model.get_weights():
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def with_head(stem: Stem, recipe: Recipe, classes: int) -> Network:
    """Put pooling, dropout and a linear layer of `classes` outputs on the backbone, and set what is trained."""
    with _policy(recipe.precision):
        model = classifier(stem.top, classes, recipe.dropout, recipe.seed)
        whole = keras.Model(stem.pixels, model(stem.trunk(stem.pixels)), name=f"dermlens_{stem.row.name}")
        embedding = keras.Input((stem.row.embedding_size,), name="embedding")
        dropped = keras.layers.Dropout(recipe.dropout, seed=recipe.seed, name="dropout")(embedding)
        head = keras.Model(embedding, model.get_layer("logits")(dropped), name="head")
    stem.trunk.trainable = recipe.fine_tune == "full"
    if recipe.batch_norm == "frozen":
        _freeze_batch_norm(whole)
    return Network(stem.trunk, head, model, whole)


def classifier(top: keras.Model, classes: int, dropout: float, seed: int) -> keras.Model:
    """Return cached features -> [logits, embedding, feature_map]: upper blocks, average pooling, dropout, linear."""
    feature_map = top.outputs[0]
    embedding = keras.layers.GlobalAveragePooling2D(name="embedding")(feature_map)
    dropped = keras.layers.Dropout(dropout, seed=seed, name="head_dropout")(embedding)
    logits = keras.layers.Dense(classes, name="logits", dtype="float32")(dropped)
    return keras.Model(top.inputs[0], [logits, embedding, feature_map], name="classifier")


def _freeze_batch_norm(model: keras.Model) -> None:
    """Leave batch normalisation as it was pretrained: a layer that is not trainable also uses its kept statistics.

    Statistics of small, balanced batches of skin differ from ImageNet's so much that they undo the head in the first
    epoch.
    """
    for layer in leaves(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


@contextmanager
def in_float32(model: keras.Model, precision: str) -> Iterator[None]:
    """Let a network of mixed precision compute in float32 for an export; its weights are float32 all along."""
    if precision == "float32":
        yield
        return
    _compute_in(model, "float32")
    try:
        yield
    finally:
        _compute_in(model, precision)


def _compute_in(model: keras.Model, precision: str) -> None:
    for layer in leaves(model):
        if layer.name != "logits":
            layer.dtype_policy = keras.DTypePolicy(precision)


@contextmanager
def _policy(precision: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def head_of(whole: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    """Return the last layer of a whole model: weights float32 (d, classes), bias float32 (classes,)."""
    weights, bias = whole.get_layer("classifier").get_layer("logits").get_weights()
    return weights, bias


def trainable_millions(model: keras.Model) -> float:
    """Return the number of trainable parameters in millions."""
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables) / 1e6
