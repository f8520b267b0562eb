"""One network in the parts that training needs: frozen trunk, trainable classifier over its features, and the whole.

Built from a recipe, exported in float32 whatever it trains in, saved and loaded as a Keras file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import openvino as ov
from rich.console import Console

from dermlens.bundle.bundle import embedded_models
from dermlens.data.images import InputSpec
from dermlens.errors import WeightsError, os_errors
from dermlens.files import atomic_file
from dermlens.networks.backend import leaves
from dermlens.networks.efficientnet import Backbone, backbone, build_backbone, split_at_block
from dermlens.networks.openvino import to_openvino
from dermlens.networks.weight_files import resolve_weights
from dermlens.training.features import Engine, FeatureSpec, Images, plain_outputs
from dermlens.training.recipe import Recipe


@dataclass(frozen=True)
class Stem:
    """A backbone with its weights, cut in two; made before the data is read, so that a wrong setting shows at once.

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

    def last_stage(self, fine_tune: str) -> keras.Model:
        """Return the model that the last stage of this mode trains."""
        return {"head": self.head, "top": self.classifier, "full": self.whole}[fine_tune]


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
    _compute_in(full, recipe.precision, unless="float32")
    digests = [_digest(model, (row.name, recipe.cut_block)) for model in (trunk, full)]
    return Stem(row, spec, full.inputs[0], trunk, top, str(weights), *digests)


def _digest(model: keras.Model, *facts: object) -> str:
    digest = hashlib.sha256(repr(facts).encode())
    for array in model.get_weights():
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def add_head(stem: Stem, recipe: Recipe, classes: int) -> Network:
    """Put pooling, dropout and a linear layer of `classes` outputs on the backbone, and set what is trained."""
    model = classifier(stem.top, classes, recipe.dropout, recipe.seed, recipe.precision)
    whole = keras.Model(stem.pixels, model(stem.trunk(stem.pixels)), name=f"dermlens_{stem.row.name}")
    embedding = keras.Input((stem.row.embedding_size,), name="embedding")
    dropout = keras.layers.Dropout(recipe.dropout, seed=recipe.seed, name="dropout", dtype=recipe.precision)
    head = keras.Model(embedding, model.get_layer("logits")(dropout(embedding)), name="head")
    stem.trunk.trainable = recipe.fine_tune == "full"
    if recipe.batch_norm == "frozen":
        _freeze_batch_norm(whole)
    return Network(stem.trunk, head, model, whole)


def classifier(top: keras.Model, classes: int, dropout: float, seed: int, precision: str = "float32") -> keras.Model:
    """Return cached features -> [logits, embedding, feature_map]: upper blocks, average pooling, dropout, linear."""
    feature_map = top.outputs[0]
    embedding = keras.layers.GlobalAveragePooling2D(name="embedding", dtype=precision)(feature_map)
    dropped = keras.layers.Dropout(dropout, seed=seed, name="head_dropout", dtype=precision)(embedding)
    logits = keras.layers.Dense(classes, name="logits", dtype="float32")(dropped)
    return keras.Model(top.inputs[0], [logits, embedding, feature_map], name="classifier")


def _freeze_batch_norm(model: keras.Model) -> None:
    """Leave batch normalisation as it was pretrained: a layer that is not trainable also uses its stored statistics.

    Statistics of small, balanced batches of skin differ from ImageNet's so much that they undo the head in the first
    epoch.
    """
    for layer in leaves(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


@contextmanager
def in_float32(model: keras.Model, precision: str) -> Iterator[None]:
    """Let a network of mixed precision compute in float32 for an export; its weights are float32 all along."""
    _compute_in(model, "float32", unless=precision)
    try:
        yield
    finally:
        _compute_in(model, precision, unless="float32")


def export_graph(model: keras.Model, precision: str) -> ov.Model:
    """Return the graph of a network that may compute in mixed precision, in float32."""
    with in_float32(model, precision):
        return to_openvino(model)


def embed(stem: Stem, network: Network, images: Images, recipe: Recipe, engine: Engine, console: Console) -> np.ndarray:
    """Return the embeddings of images by the network as it was pretrained, float32 (n, d)."""
    graph, spec = export_graph(network.whole, recipe.precision), FeatureSpec(stem.spec, output=1)
    return plain_outputs(graph, images, spec, console=console, what="Frozen features", engine=engine)


def _compute_in(model: keras.Model, precision: str, *, unless: str) -> None:
    for layer in leaves(model) if precision != unless else ():
        if layer.name != "logits":
            layer.dtype_policy = keras.DTypePolicy(precision)


def head_of(whole: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    """Return the last layer of a whole model: weights float32 (d, classes), bias float32 (classes,)."""
    weights, bias = whole.get_layer("classifier").get_layer("logits").get_weights()
    return weights, bias


def trainable_millions(model: keras.Model) -> float:
    """Return the number of trainable parameters in millions."""
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables) / 1e6


def save_keras(model: keras.Model, path: Path) -> None:
    """Save the whole model.

    Raises:
        StorageError: no space or no permission; an earlier file is unchanged.
    """
    with (
        os_errors(
            f"The Keras model could not be saved to {path}", "Free some space; an earlier model there is unchanged."
        ),
        atomic_file(path) as temporary,
    ):
        model.save(temporary)


def load_keras(model: str | Path) -> keras.Model:
    """Return the whole Keras model of a run: an ordinary `keras.Model` to work on in Keras.

    It takes RGB pixels as they are, 0..255, uint8 or float32 (n, h, w, 3), brought to size by
    `dermlens.data.images.load_image`, and gives [logits (n, classes), embedding (n, d), feature_map (n, h, w, d)].
    Logits are not calibrated: temperature, prior and decision rule are in the run's bundle.

    Args:
        model: a run folder, a `.keras` file, or the name of an embedded model.

    Raises:
        WeightsError: there is no `.keras` file; the embedded models come without theirs.
    """
    path = Path(model)
    path = path if path.suffix == ".keras" else path / "model.keras"
    if path.is_file():
        return keras.models.load_model(path, safe_mode=True)
    if str(model) in embedded_models():
        raise WeightsError(
            f"The embedded model {str(model)!r} comes as an OpenVINO graph, without its Keras copy.",
            remedy="Make it with `make train-default DERMLENS_DATA=...`; it is then in runs/default/model.keras.",
            code="keras_missing",
        )
    raise WeightsError(
        f"There is no Keras model at {path}. `dermlens train` writes model.keras into its run folder.",
        remedy="Give the folder of a run, or make one with `dermlens train DATA --out RUN`.",
        code="keras_missing",
    )
