"""How fast training goes, and how near that is to what TensorFlow itself can do.

Images a second of a step: the head over embeddings, the upper blocks over cached trunk features, the whole network on
fresh views of 600 x 450 px files; each with its real feed (mapped files, mixup, augmentation; each file is decoded at
its first draw) and with one batch that is there already; batch norm is frozen, as over pretrained weights. The whole
network also against the plain Keras step (`train_on_batch`, Adam, batch norm follows the batches) on such a batch, and
upper blocks and whole network against the same step with the frozen batch norm as layers of their own. Steps are
timed in turn. A network or mode that is not asked for keeps its figures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.report import cell, markdown
from benchmarks.timing import REPEATS, in_turn, spread, times_faster, with_goal, write_jpegs
from dermlens.data.images import InputSpec
from dermlens.data.records import Record

MODES = ("head", "top", "full")
CHOICES = {"modes": MODES}
CACHED, VIEWS, CLASSES = 512, 4, 8
FEED, READY = "with its feed", "batch in memory"
AS_LAYERS = "frozen batch norm as layers, batch in memory"
PLAIN = "plain Keras, batch in memory"
RATIO_FEED = "with its feed / batch in memory"
RATIO_PLAIN = "plain Keras step / dermlens"
RATIO_LAYERS = "frozen batch norm as layers / folded into the convolutions"


def run(
    *,
    backbones: tuple[str, ...] = ("lite0", "b0"),
    modes: tuple[str, ...] = MODES,
    batch: int = 64,
    steps: int = REPEATS,
    earlier: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the ratios and the images a second of each network and mode."""
    from dermlens.networks.backend import keep_freed_memory, load_tensorflow

    load_tensorflow()
    keep_freed_memory()
    ratios, rates = dict(earlier.get("ratios", {})), dict(earlier.get("images/s", {}))
    for name in backbones:
        with tempfile.TemporaryDirectory() as folder:
            for mode in modes:
                took = _timed(name, mode, batch, steps, Path(folder))
                ratios |= _ratios(name, mode, took)
                rates[f"{name}, {mode}"] = {
                    way: spread([batch / ms * 1000 for ms in values]) for way, values in took.items()
                }
    return {"batch": batch, "ratios": ratios, "images/s": rates}


def _timed(name: str, mode: str, batch: int, steps: int, folder: Path) -> dict[str, list[float]]:
    """Return the milliseconds of the steps of one mode, by way."""
    import keras

    recipe, network = built(name, mode, batch)
    model = {"head": network.head, "top": network.classifier, "full": network.whole}[mode]
    feed = _image_feed(recipe, folder) if mode == "full" else _cached_feed(model, folder / f"{mode}.npy")
    real, ready, source, batch_in_memory = _stepper(feed, recipe, model)
    with ExitStack() as sources:
        sources.callback(source.close)
        variants: dict[str, Callable[[], object]] = {FEED: real, READY: ready}
        if mode != "head":
            variants[AS_LAYERS], more = _as_layers(feed, recipe, model)
            sources.callback(more.close)
        if mode == "full":
            real()  # traced, with what is frozen, before Keras is told to train everything
            variants[PLAIN] = _plain_keras(network, batch_in_memory)
        took = in_turn(variants, repeats=steps, warm_up=2)
    keras.backend.clear_session()
    return took


def _ratios(name: str, mode: str, took: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    what = f"{name}, {mode}"
    found = {f"{what}: {RATIO_FEED}": with_goal(times_faster(took[FEED], took[READY]), 0.85)}
    if AS_LAYERS in took:
        found[f"{what}: {RATIO_LAYERS}"] = times_faster(took[READY], took[AS_LAYERS])
    if PLAIN in took:
        found[f"{what}: {RATIO_PLAIN}"] = with_goal(times_faster(took[READY], took[PLAIN]), 1.0)
    return found


def built(name: str, mode: str, batch: int, batch_norm: str = "frozen") -> tuple[Any, Any]:
    """Return the recipe and the network of a mode, from random weights: no time depends on their values."""
    from dermlens.networks.efficientnet import backbone
    from dermlens.training.device import resolve
    from dermlens.training.network import add_head, open_backbone
    from dermlens.training.recipe import Recipe

    recipe = Recipe(backbone=name, weights="none", fine_tune=mode, batch_size=batch, batch_norm=batch_norm)
    recipe = resolve(recipe, backbone(name))
    return recipe, add_head(open_backbone(recipe), recipe, CLASSES)


def _image_feed(recipe: Any, folder: Path) -> Any:
    from benchmarks import CONSOLE
    from dermlens.training.caches import pixel_cache
    from dermlens.training.feed import from_images
    from dermlens.training.material import Material

    labels, paths = np.arange(CACHED) % CLASSES, write_jpegs(folder, CACHED)
    records = [Record(image=path.name, path=path, diagnosis="A") for path in paths]
    hashes, spec = [f"{i:064x}" for i in range(CACHED)], InputSpec(size_px=recipe.size_px)
    codes, roles = tuple(str(label) for label in range(CLASSES)), np.full(CACHED, "train")
    material = Material(tuple(records), tuple(hashes), roles, labels, codes, (), False, ())
    copies = pixel_cache(folder / "pixels", material.images(), spec, CONSOLE)
    return from_images(material, np.arange(CACHED), np.arange(1), spec, recipe, copies)


def _cached_feed(model: Any, path: Path) -> Any:
    from dermlens.training.feed import from_arrays

    labels, shape = np.arange(CACHED) % CLASSES, (CACHED, 1 + VIEWS, *model.inputs[0].shape[1:])
    cached = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    cached[:] = np.random.default_rng(0).random((1, *shape[1:]), np.float32).astype(np.float16)
    return from_arrays(cached, labels, cached[:1, 0], labels[:1])


def _stepper(feed: Any, recipe: Any, model: Any) -> tuple[Callable[[], object], Callable[[], object], Any, Any]:
    """Return one step with the real feed, the same step on a batch in memory, the feed's source, and that batch."""
    from dermlens.training.feed import batches
    from dermlens.training.optimiser import make_averages, make_optimiser
    from dermlens.training.step import make_step

    optimiser, average = make_optimiser(model, recipe), make_averages(model)
    step = make_step(model, recipe, optimiser, average, feed.labels, CLASSES)
    source = batches(feed, recipe, CLASSES, mixup=recipe.mixup, salt=1, steps=range(10_000))
    rate = np.float32(1e-4)

    def real() -> None:
        batch = next(source)
        step(batch.inputs, batch.targets, batch.mix, rate).numpy()

    ready = next(source)
    return real, (lambda: step(ready.inputs, ready.targets, ready.mix, rate).numpy()), source, ready


def _as_layers(feed: Any, recipe: Any, model: Any) -> tuple[Callable[[], object], Any]:
    """Return the step on a batch in memory with frozen batch norm as layers, and the source to close."""
    with mock.patch("dermlens.training.step.fold_batch_norm", lambda model: model):
        _, ready, source, _ = _stepper(feed, recipe, model)
        ready()  # traced
    return ready, source


def _plain_keras(network: Any, batch: Any) -> Callable[[], object]:
    """Return the step of `model.fit`: same layers, all of them trainable, Adam, batch norm in training mode."""
    import keras

    from dermlens.networks.backend import leaves

    layers = network.whole
    for layer in leaves(layers):
        layer.trainable = True
    model = keras.Model(layers.inputs, keras.layers.Softmax()(layers.outputs[0]))
    model.compile(keras.optimizers.Adam(1e-4), "categorical_crossentropy", jit_compile=False)
    pixels = batch.inputs.astype(np.float32)
    return lambda: model.train_on_batch(pixels, batch.targets)


def table(found: Mapping[str, Any]) -> str:
    """Return a line for each network and mode: images a second, and the ratios."""
    columns = {
        RATIO_FEED: f"{FEED} / {READY}",
        RATIO_PLAIN: "plain Keras / ours",
        RATIO_LAYERS: "norm as layers / folded",
    }
    rows = []
    for name, row in found["images/s"].items():
        ratios = (found["ratios"].get(f"{name}: {key}") for key in columns)
        rate = f"{row[FEED]['median']:,.0f}"
        rows.append([name, rate, *(cell(ratio, 2) if ratio else "" for ratio in ratios)])
    feed_goal = next(iter(found["ratios"].values()))["goal"]
    header = [f"batch of {found['batch']}", "images/s", *columns.values()]
    return f"{markdown(header, rows)}\n\nGoals: {feed_goal} for the feed; plain Keras no faster, 1.0."
