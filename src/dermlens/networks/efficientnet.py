"""One builder for the whole EfficientNet family, and the place where a network may be cut in two.

Every backbone takes RGB 0..255 and normalises inside the graph, so no caller can scale pixels differently. The facts
are in `family.py`, where a new member joins by a row. Layer names are fixed, equal in all families, safe to export.
B and V2 are Keras's own graphs; Lite is built here: EfficientNet without squeeze-and-excitation and with ReLU6, so that
it runs well on small processors (TensorFlow TPU repository, models/official/efficientnet/lite; arXiv 1905.11946).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
from keras import layers

from dermlens.errors import RecipeError, WeightsError
from dermlens.networks.family import (
    BACKBONES,
    HEAD_FILTERS,
    STEM_FILTERS,
    Backbone,
    BlockCut,
    Stage,
    backbone,
    block_cuts,
    check_size,
)
from dermlens.networks.weight_files import lite_weights_path, read_torch_legacy, resolve_weights, ways_out
from dermlens.networks.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Values,
    check_known,
    check_same,
    check_sane,
    feature_map_of,
    layer_values,
    load_lite_weights,
    load_named_weights,
    made_for_imagenet_graph,
    mismatch,
    pixel_scaling,
    pooled_features,
    read_h5,
    read_keras,
    set_layer,
)

__all__ = ["BACKBONES", "Backbone", "BlockCut", "backbone", "block_cuts", "build_backbone", "split_at_block"]

STD_LAYER = "rescaling_std"


def build_backbone(
    name: str, *, size_px: int = 0, weights: str | Path = "pretrained", drop_connect: float | None = None
) -> keras.Model:
    """Build a backbone with its weights.

    Args:
        name: a name from `BACKBONES`.
        size_px: side of the square input, 32..1024; 0 takes the backbone's own.
        weights: "pretrained" (the word in the row), "imagenet", "lite", "none" for random weights, the path of a
            weight file, or the folder of an earlier run; see `weight_files.py`.
        drop_connect: stochastic-depth rate of the last block, 0 to below 1; None takes the published one. It acts in
            training calls only.

    Returns:
        Functional model named `name`: float32 (n, size_px, size_px, 3) RGB 0..255 to the feature map
        float32 (n, h, w, embedding_size) after head convolution and activation, h = w = ceil(size_px / 32). It
        computes in float32 whatever the global policy.

    Raises:
        RecipeError: unknown name or word, or a size out of range.
        WeightsError: the weights are missing, damaged or belong to another network. Never random instead.
    """
    row = backbone(name)
    size_px = check_size(row, size_px)
    rate = row.drop_connect if drop_connect is None else drop_connect
    if not 0 <= rate < 1:
        raise RecipeError(
            f"drop_connect {rate} is out of range. Allowed is 0 to below 1.",
            remedy=f"Leave it out to use the published {row.drop_connect}.",
            code="drop_connect_out_of_range",
        )
    source = resolve_weights(row, weights)
    door = _DOORS[source] if isinstance(source, str) else _FILE_DOORS[source.suffix]
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")  # weights are proved by what the network answers, exactly
    try:
        return door(row, size_px, rate, Path(source))
    finally:
        keras.config.set_dtype_policy(policy)


# --- doors: one way in for each source of weights --------------------------------------------------------------


def _random(row: Backbone, size_px: int, rate: float, _source: Path) -> keras.Model:
    """Random weights, because the caller said "none". Family B gets the ImageNet statistics as normalisation."""
    model = _graph(row, size_px, rate)
    if row.family == "B":
        mean, variance, count = model.get_layer("normalization").get_weights()
        mean[...], variance[...] = IMAGENET_MEAN, IMAGENET_STD
        set_layer(model.get_layer("normalization"), [mean, variance, count])
    return model


def _lite(row: Backbone, size_px: int, rate: float, _source: Path) -> keras.Model:
    """The packaged weights, proved by the fingerprint at the size they were made for."""
    tensors = read_torch_legacy(lite_weights_path(row.name))
    own = _graph(row, row.input_size_px, rate)
    load_lite_weights(own, tensors)
    check_known(own, row.name)
    return _at_size(own, row, size_px, rate)


def _torch_file(row: Backbone, size_px: int, rate: float, source: Path) -> keras.Model:
    model = _graph(row, size_px, rate)
    load_lite_weights(model, read_torch_legacy(source))
    check_sane(model)
    return model


def _imagenet(row: Backbone, size_px: int, rate: float, _source: Path) -> keras.Model:
    """Keras's own door: its download with its checksum, in our graph, which must answer as Keras's does."""
    try:
        made = _keras_builder(row)(include_top=False, weights="imagenet", input_shape=(size_px, size_px, 3))
    except Exception as error:  # Keras raises the plain class when a download fails
        reason = (str(error).splitlines() or [repr(error)])[0].rstrip(".")
        raise WeightsError(
            f"The ImageNet weights of {row.title} could not be fetched: {reason}.",
            remedy=ways_out(row),
            code="weights_offline",
        ) from error
    model = _graph(row, size_px, rate)
    load_named_weights(model, layer_values(made))
    check_same(pooled_features(model), pooled_features(made), "Keras's own network")
    return model


def _h5_file(row: Backbone, size_px: int, rate: float, source: Path) -> keras.Model:
    """For family B the graph is the one that the file's own normalisation asks for."""
    model = _graph(row, size_px, rate)
    values = read_h5(source, model)
    if row.family == "B" and not made_for_imagenet_graph(values):
        model = _graph(row, size_px, rate, standardise=False)
    _pour(model, values)
    check_sane(model)
    return model


def _keras_file(row: Backbone, size_px: int, rate: float, source: Path) -> keras.Model:
    """A whole model: our graph must scale its pixels and answer as the file's does."""
    saved = read_keras(source)
    whole = feature_map_of(saved, row.embedding_size)
    own_size_px = int(whole.input_shape[1]) if whole is not None else size_px
    values, scaling = layer_values(saved), pixel_scaling(saved)
    for standardise in (True, False):
        model = _graph(row, own_size_px, rate, standardise=standardise)
        if pixel_scaling(model) == scaling:
            break
    else:
        _pour(model, values)  # the network itself may be another: that is the plainer message
        raise mismatch(f"{source} scales its pixels in another way than {row.title} does")
    _pour(model, values)
    if whole is not None:
        check_same(pooled_features(model), pooled_features(whole), str(source))
    return _at_size(model, row, size_px, rate)


_DOORS: dict[str, Callable[[Backbone, int, float, Path], keras.Model]] = {
    "none": _random,
    "lite": _lite,
    "imagenet": _imagenet,
}
_FILE_DOORS = {".pth": _torch_file, ".h5": _h5_file, ".keras": _keras_file}


def _pour(model: keras.Model, values: Values) -> None:
    """Fill the network by name; layers behind it (an ImageNet classifier, a head of ours) may be left over."""
    wanted = {layer.name for layer in model.layers}
    others = tuple(name for name in values if not name.startswith(("block", "stem", "top_")) and name not in wanted)
    load_named_weights(model, values, ignore=others)


def _at_size(model: keras.Model, row: Backbone, size_px: int, rate: float) -> keras.Model:
    """Return the same graph with the same weights for another input size."""
    if model.input_shape[1] == size_px:
        return model
    standardise = any(layer.name == STD_LAYER for layer in model.layers)
    other = _graph(row, size_px, rate, standardise=standardise)
    load_named_weights(other, layer_values(model))
    return other


# --- graphs ----------------------------------------------------------------------------------------------------


def _graph(row: Backbone, size_px: int, rate: float, *, standardise: bool = True) -> keras.Model:
    """Build the graph with random weights.

    Keras's EfficientNet B has two graphs: with `weights="imagenet"` one more Rescaling by 1 / sqrt(std) follows the
    normalisation. Weights move between the two without an error and answer differently, so here the layer is put in
    exactly when the weights were made for it (`standardise`). V2 has one graph, with its scaling inside.
    """
    if row.family == "Lite":
        return build_lite(row.stages, size_px=size_px, name=row.name, drop_connect=rate)
    plain = _keras_builder(row)(include_top=False, weights=None, input_shape=(size_px, size_px, 3))
    rates = _drop_rates(row, rate)

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if isinstance(layer, (keras.layers.Rescaling, keras.layers.Normalization)):
            config["name"] = type(layer).__name__.lower()
        if isinstance(layer, keras.layers.Dropout):
            config["rate"] = rates[layer.name]
        return type(layer).from_config(config)

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        out = layer(*args, **kwargs)
        if standardise and row.family == "B" and isinstance(layer, keras.layers.Normalization):
            scale = [1 / math.sqrt(std) for std in IMAGENET_STD]
            return keras.layers.Rescaling(scale, name=STD_LAYER)(out)
        return out

    image = keras.Input((size_px, size_px, 3), name="image")
    made = keras.models.clone_model(plain, input_tensors=image, clone_function=clone, call_function=call)
    return keras.Model(made.inputs[0], made.outputs[0], name=row.name)


def _keras_builder(row: Backbone) -> Callable[..., keras.Model]:
    return getattr(keras.applications, row.title)


def _drop_rates(row: Backbone, rate: float) -> dict[str, float]:
    """Return the rate of each block's drop layer: from 0 in the first block growing evenly over all of them.

    Keras's V2 counts the blocks before scaling and so goes beyond `rate` in the deeper ones; the paper does not.
    """
    blocks = block_cuts(row.name)[1:]
    return {f"{cut.layer.split('_')[0]}_drop": rate * (cut.block - 1) / len(blocks) for cut in blocks}


# --- cuts ------------------------------------------------------------------------------------------------------


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


BATCH_NORM_EPSILON = 1e-3
BATCH_NORM_MOMENTUM = 0.99


def build_lite(stages: tuple[Stage, ...], *, size_px: int, name: str, drop_connect: float) -> keras.Model:
    """Build an EfficientNet-Lite with random weights.

    Args:
        stages: of a Lite row in `family.py`.
        size_px: side of the square input, pixels.
        name: name of the model.
        drop_connect: stochastic-depth rate of the last block, 0 to below 1; it grows linearly from 0.

    Returns:
        Model from float32 (n, size_px, size_px, 3) RGB 0..255 to the feature map float32 (n, h, w, 1280), with
        h = w = ceil(size_px / 32). The scaling `(x - 127) / 128` is the first layer.
    """
    inputs = keras.Input((size_px, size_px, 3), name="image")
    x = layers.Rescaling(1 / 128, offset=-127 / 128, name="rescaling")(inputs)
    x = _conv_bn(x, STEM_FILTERS, 3, 2, "stem_conv", "stem_bn")
    x = layers.ReLU(6.0, name="stem_activation")(x)
    total = sum(stage.repeats for stage in stages)
    done = 0
    for number, stage in enumerate(stages, start=1):
        for repeat in range(stage.repeats):
            x = _mbconv(
                x,
                stage,
                block=f"block{number}{chr(ord('a') + repeat)}",
                stride=stage.stride if repeat == 0 else 1,
                drop_rate=drop_connect * done / total,
            )
            done += 1
    x = _conv_bn(x, HEAD_FILTERS, 1, 1, "top_conv", "top_bn")
    x = layers.ReLU(6.0, name="top_activation")(x)
    return keras.Model(inputs, x, name=name)


def _mbconv(x: Any, stage: Stage, *, block: str, stride: int, drop_rate: float) -> Any:
    """One inverted-bottleneck block: widen 1x1, depthwise, project 1x1, add the input where the shapes allow."""
    inputs = x
    filters_in = int(x.shape[-1])
    if stage.expand != 1:
        x = _conv_bn(x, filters_in * stage.expand, 1, 1, f"{block}_expand_conv", f"{block}_expand_bn")
        x = layers.ReLU(6.0, name=f"{block}_expand_activation")(x)
    x = layers.DepthwiseConv2D(stage.kernel, strides=stride, padding="same", use_bias=False, name=f"{block}_dwconv")(x)
    x = _batch_norm(x, f"{block}_bn")
    x = layers.ReLU(6.0, name=f"{block}_activation")(x)
    x = _conv_bn(x, stage.filters, 1, 1, f"{block}_project_conv", f"{block}_project_bn")
    if stride == 1 and filters_in == stage.filters:
        if drop_rate > 0:
            x = layers.Dropout(drop_rate, noise_shape=(None, 1, 1, 1), name=f"{block}_drop")(x)
        x = layers.Add(name=f"{block}_add")([x, inputs])
    return x


def _conv_bn(x: Any, filters: int, kernel: int, stride: int, conv: str, norm: str) -> Any:
    x = layers.Conv2D(
        filters,
        kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal"),
        name=conv,
    )(x)
    return _batch_norm(x, norm)


def _batch_norm(x: Any, name: str) -> Any:
    return layers.BatchNormalization(epsilon=BATCH_NORM_EPSILON, momentum=BATCH_NORM_MOMENTUM, name=name)(x)
