"""How fast training goes, and how near that is to what TensorFlow itself can do.

    python benchmarks/training_speed.py [--backbones lite0 b0] [--modes head top full] [--steps 20] [--batch 64]

Images a second of a step: the head over embeddings, the upper blocks over cached trunk features, the whole network on
fresh views of 600 x 450 px files; each with its real feed (mapped files, mixup, augmentation; each file is decoded at
its first draw) and with one batch that is there already; batch norm is frozen, as over pretrained weights. The whole
network also against the plain Keras step (`train_on_batch`, Adam, batch norm follows the batches) on such a batch, and
upper blocks and whole network against the same step with the frozen batch norm as layers of their own.
Steps are timed in turn. A mode that is not asked for keeps its figures.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from measure import REPEATS, in_turn, kept, save, spread, times_faster, with_goal
from rich.console import Console

from serving import images

NAME, MODES = "training_speed", ("head", "top", "full")
CACHED, VIEWS, CLASSES = 512, 4, 8
AS_LAYERS = "frozen batch norm as layers, batch in memory"


def built(name: str, mode: str, batch: int, batch_norm: str = "frozen") -> tuple[Any, Any]:
    """Return the recipe and the network of a mode, from random weights: no time depends on their values."""
    from dermlens.networks.efficientnet import backbone
    from dermlens.training.device import resolve
    from dermlens.training.network import open_backbone, with_head
    from dermlens.training.recipe import Recipe

    recipe = Recipe(backbone=name, weights="none", fine_tune=mode, batch_size=batch, batch_norm=batch_norm)
    recipe = resolve(recipe, backbone(name))
    return recipe, with_head(open_backbone(recipe), recipe, CLASSES)


def stepper(feed: Any, recipe: Any, model: Any) -> tuple[Callable[[], object], Any]:
    """Return one step with the real feed, and the same step on a batch that waits in memory."""
    from dermlens.training.feed import batches
    from dermlens.training.optimiser import averaged, make_optimiser
    from dermlens.training.step import make_step

    optimiser, average = make_optimiser(model, recipe), averaged(model)
    step = make_step(model, recipe, optimiser, average, feed.labels, CLASSES)
    source = batches(feed, recipe, CLASSES, mixup=recipe.mixup, salt=1, steps=range(10_000))
    rate = np.float32(1e-4)

    def real() -> None:
        batch = next(source)
        step(batch.inputs, batch.targets, batch.mix, rate).numpy()

    ready = next(source)
    return real, (lambda: step(ready.inputs, ready.targets, ready.mix, rate).numpy(), source, ready)


def measured(
    name: str, modes: Sequence[str], batch: int, rounds: int, folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    import keras

    from dermlens.data.images import InputSpec
    from dermlens.data.records import Record
    from dermlens.training.feed import from_arrays, from_images
    from dermlens.training.views import decoded

    ratios: dict[str, Any] = {}
    details: dict[str, Any] = {}
    labels = np.arange(CACHED) % CLASSES
    for mode in modes:
        recipe, network = built(name, mode, batch)
        model = {"head": network.head, "top": network.classifier, "full": network.whole}[mode]
        if mode == "full":
            paths = [folder / f"{number}.jpg" for number in range(CACHED)]
            for path, raw in zip(paths, cycle(images()), strict=False):
                path.write_bytes(raw)
            records = [Record(image=path.name, path=path, diagnosis="A") for path in paths]
            hashes, spec = [f"{i:064x}" for i in range(CACHED)], InputSpec(size_px=recipe.size_px)
            source = decoded(folder / "pixels", records, hashes, spec, Console())
            feed = from_images(records, hashes, labels, records[:1], labels[:1], spec, seed=0, source=source)
        else:
            shape = (CACHED, 1 + VIEWS, *model.inputs[0].shape[1:])
            cached = np.lib.format.open_memmap(folder / f"{mode}.npy", mode="w+", dtype=np.float16, shape=shape)
            cached[:] = np.random.default_rng(0).random((1, *shape[1:]), np.float32).astype(np.float16)
            feed = from_arrays(cached, labels, cached[:1, 0], labels[:1])
        real, (ready, source_of_steps, held) = stepper(feed, recipe, model)
        with ExitStack() as steps:
            steps.callback(source_of_steps.close)
            variants: dict[str, Callable[[], object]] = {"with its feed": real, "batch in memory": ready}
            if mode != "head":
                variants[AS_LAYERS], more = as_layers(feed, recipe, model)
                steps.callback(more.close)
            if mode == "full":
                real()  # traced, with what is frozen, before Keras is told to train everything
                variants["plain Keras, batch in memory"] = plain_keras(network, held)
            took = in_turn(variants, repeats=rounds, warm_up=2)
            details[f"{mode}, images/s"] = {
                key: spread([batch / ms * 1000 for ms in values]) for key, values in took.items()
            }
            share = times_faster(took["with its feed"], took["batch in memory"])
            ratios[f"{name}, {mode}: with its feed / batch in memory"] = with_goal(share, 0.85)
            if AS_LAYERS in took:
                key = f"{name}, {mode}: frozen batch norm as layers / folded into the convolutions"
                ratios[key] = times_faster(took["batch in memory"], took[AS_LAYERS])
            if mode == "full":
                plain = took["plain Keras, batch in memory"]
                ratio = times_faster(took["batch in memory"], plain)
                ratios[f"{name}, full: plain Keras step / dermlens"] = with_goal(ratio, 1.0)
                ratio = times_faster(took["with its feed"], plain)
                ratios[f"{name}, full: plain Keras step, without a feed / dermlens with its feed"] = ratio
        keras.backend.clear_session()
    return ratios, details


def as_layers(feed: Any, recipe: Any, model: Any) -> tuple[Callable[[], object], Any]:
    """Return the step on a batch that waits in memory with frozen batch norm as layers, and the source to close."""
    with mock.patch("dermlens.training.step.folded", lambda model: model):
        _, (ready, source, _) = stepper(feed, recipe, model)
        ready()  # traced
    return ready, source


def plain_keras(network: Any, held: Any) -> Callable[[], object]:
    """The step of `model.fit`: same layers, all of them trainable, Adam, batch norm in training mode."""
    import keras

    from dermlens.networks.backend import leaves

    layers = network.whole
    for layer in leaves(layers):
        layer.trainable = True
    model = keras.Model(layers.inputs, keras.layers.Softmax()(layers.outputs[0]))
    model.compile(keras.optimizers.Adam(1e-4), "categorical_crossentropy", jit_compile=False)
    pixels = held.inputs.astype(np.float32)
    return lambda: model.train_on_batch(pixels, held.targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["lite0", "b0"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=REPEATS)
    options = parser.parse_args()
    from dermlens.networks.backend import keep_freed_memory, load_tensorflow

    load_tensorflow()
    keep_freed_memory()
    before = kept(NAME)
    ratios, details = before.get("ratios", {}), {**before.get("details", {}), "batch": options.batch}
    for name in options.backbones:
        with tempfile.TemporaryDirectory() as folder:
            found, more = measured(name, options.modes, options.batch, options.steps, Path(folder))
        ratios |= found
        details[name] = details.get(name, {}) | more
        save(NAME, ratios, details)


if __name__ == "__main__":
    main()
