"""Every EfficientNet of the family lives through a training: built, trained, saved, reloaded, exported, used.

Weights are random (cost and correctness do not depend on them), with batch norm settled on some views of an example
image. What is checked, not only measured: the facts of the table, a step in head, top and full mode, the same outputs
after a reload in a fresh process, the exported graph within 1e-3 of Keras, and an answer of `Predictor` from the
exported bundle. A row runs in a process of its own; rows that are not asked for keep their figures.
"""

from __future__ import annotations

import gc
import io
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import CONSOLE, EXAMPLE
from benchmarks.fresh import fresh
from benchmarks.report import markdown
from dermlens.data.images import InputSpec, load_image
from dermlens.networks.family import BACKBONES, Backbone, backbone

MODES = ("full", "top", "head")
SETTLED_ON = 512  # values of a channel in the smallest map, at least: fewer leave a network that magnifies rounding
STEPS = 2  # the first one traces the graph
CODES = ("A", "B")


def run(
    *, only: tuple[str, ...] = tuple(BACKBONES), batch: int = 1, size_px: int = 0, earlier: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what each row took; `size_px` 0 is each row's own size."""
    rows = dict(earlier.get("rows", {}))
    for name in (backbone(name).name for name in only):
        with tempfile.TemporaryDirectory() as folder:
            row = fresh(lived, name, folder, batch, size_px)
            value = {**row.value, "peak_gb": row.peak_mb / 1000}
            value["reload"] = fresh(reload_difference, folder).value
        rows[name] = value
        CONSOLE.print(f"{name}: {row.seconds:.0f} s", highlight=False)
    return {"batch": batch, "rows": {name: rows[name] for name in BACKBONES if name in rows}}


def lived(name: str, folder: str, batch: int, size_px: int) -> dict[str, Any]:
    """Take one row through its life in this process."""
    from dermlens.networks.backend import keep_freed_memory, load_tensorflow

    load_tensorflow()
    keep_freed_memory()
    row = backbone(name)
    size = size_px or row.input_size_px
    return live(row, Path(folder), size_px=size, batch=batch, check_facts=size == row.input_size_px)


def multiply_adds(model: Any) -> int:
    """Return the multiply-adds of one image through all convolutions and dense layers, squeeze-and-excitation included.

    Additions, activations and batch normalisation (which an export folds into the convolutions) are not counted, as
    in the EfficientNet papers.
    """
    import keras

    from dermlens.networks.backend import leaves

    total = 0
    for layer in leaves(model):
        if isinstance(layer, keras.layers.Dense):
            total += int(np.prod(layer.kernel.shape))
        elif isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            _, height, width, _ = layer.output.shape
            total += int(height * width * np.prod(layer.kernel.shape))
    return total


def live(row: Backbone, folder: Path, *, size_px: int, batch: int, check_facts: bool = True) -> dict[str, Any]:
    """Build, train, export and use one row, and return what was measured.

    Raises:
        SystemExit: something is not as it should be.
    """
    import keras

    from dermlens.networks.efficientnet import build_backbone

    start = time.perf_counter()
    built = build_backbone(row.name, size_px=size_px, weights="none")
    found: dict[str, Any] = {"size_px": size_px, "build_s": time.perf_counter() - start, "step_s": {}}
    counted = int(built.count_params()), multiply_adds(built)
    if check_facts and counted != (row.parameters, row.multiply_adds):
        raise SystemExit(f"{row.name}: the network has {counted} parameters and multiply-adds; correct the table.")
    del built
    for mode in MODES:
        network, seconds = train_steps(row, mode, size_px, batch)
        if mode == "full":
            found |= use(network.whole, folder, size_px)
        found["step_s"][mode] = seconds
        del network
        keras.backend.clear_session()
        gc.collect()
    return found


def use(whole: Any, folder: Path, size_px: int) -> dict[str, Any]:
    """Save, export and use a trained network."""
    from dermlens.networks.openvino import check_export, to_openvino
    from dermlens.training.network import save_keras

    # Settled again: a few steps on random weights leave statistics that belong to none.
    pixels = settled_pictures(whole, size_px)[:1]
    save_keras(whole, folder / "model.keras")
    outputs = [np.asarray(o) for o in whole(pixels.astype(np.float32), training=False)]
    np.savez(folder / "expected.npz", pixels, *outputs)
    graph = to_openvino(whole)
    return {"export": check_export(whole, graph, pixels), "predicted": predict(whole, graph, folder, size_px)}


def train_steps(row: Backbone, mode: str, size_px: int, batch: int) -> tuple[Any, float]:
    """Train some steps with the code of `dermlens train`; return the network and the seconds of the fastest step."""
    from dermlens.training.device import resolve
    from dermlens.training.feed import from_arrays
    from dermlens.training.fit import Stage, fit
    from dermlens.training.network import add_head, open_backbone
    from dermlens.training.recipe import make_recipe
    from dermlens.training.watch import Watch

    settings = {"fine_tune": mode, "backbone": row.name, "weights": "none", "size_px": size_px, "batch_size": batch}
    recipe = resolve(make_recipe({**settings, "mixup": 0.0}), row)
    network = add_head(open_backbone(recipe), recipe, len(CODES))
    pixels, labels = pictures(batch, size_px), np.arange(batch) % 2
    settled_pictures(network.whole, size_px)
    inputs, model = pixels, network.whole
    if mode == "top":
        inputs, model = np.asarray(network.trunk(pixels.astype(np.float32), training=False)), network.classifier
    if mode == "head":
        inputs = np.asarray(network.whole(pixels.astype(np.float32), training=False)[1])
        model = network.head
    select, select_labels = np.repeat(inputs[:1], 2, axis=0), np.array([0, 1])
    feed = from_arrays(inputs[:, None], labels, select, select_labels)
    silent = Watch(Console(file=io.StringIO()), CODES)
    rate = recipe.head_learning_rate if mode == "head" else recipe.learning_rate
    history = fit(model, feed, Stage("tune", STEPS, rate, 0.0, salt=1), recipe, CODES, silent)
    if not all(np.isfinite(row["train_loss"]) for row in history.rows[1:]):
        raise SystemExit(f"{row.name}: no finite loss in mode {mode}: {history.rows}.")
    return network, min(r["seconds"] for r in history.rows[1:])


def pictures(count: int, size_px: int) -> np.ndarray:
    """Return views of the example image, uint8 (count, size_px, size_px, 3), the plain one first."""
    from dermlens.training.views import augment

    rng = np.random.default_rng(0)
    plain = load_image(EXAMPLE, InputSpec(size_px=size_px))
    return np.stack([plain, *(augment(plain, size_px, rng) for _ in range(count - 1))])


def settled_pictures(model: Any, size_px: int) -> np.ndarray:
    """Settle a model's batch norm on enough views of the example for its size, and return these views."""
    pixels = pictures(max(1, SETTLED_ON // (size_px // 32) ** 2), size_px)
    settle(model, pixels)
    return pixels


def settle(model: Any, pixels: np.ndarray) -> None:
    """Give every batch norm the statistics of one batch, as a trained network would have; random ones explode."""
    import keras

    from dermlens.networks.backend import leaves

    norms = [layer for layer in leaves(model) if isinstance(layer, keras.layers.BatchNormalization)]
    before = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(pixels.astype(np.float32), training=True)
    for layer, momentum in zip(norms, before, strict=True):
        layer.momentum = momentum


def predict(whole: Any, graph: Any, folder: Path, size_px: int) -> str:
    """Write the smallest bundle, answer an image file from it, and compare the logits with Keras."""
    import openvino as ov

    from dermlens import Predictor
    from dermlens.bundle.bundle import BASELINES_FILE, LESIONS_FILE, MODELS_DIR, load_bundle, write_bundle
    from dermlens.bundle.card import make_card
    from dermlens.bundle.limits import ROLES, no_lesions
    from dermlens.bundle.quality import QualityLimits
    from dermlens.bundle.trust import TrustFacts
    from dermlens.training.network import head_of

    any_quality = QualityLimits(0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0)
    spec = InputSpec(size_px=size_px)
    nobody = {name: array for role in ROLES for name, array in no_lesions(len(CODES)).arrays(role).items()}
    shares = dict.fromkeys(CODES, 0.5)
    card = {  # what is not measured here stays as the embedded model's card has it
        **load_bundle(MODELS_DIR / "default").card.as_dict(),
        "name": folder.name,
        "version": "0.0.0",
        "scope": "A measurement.",
        "classes": [{"code": code, "name": code} for code in CODES],
        "input": spec.as_dict(),
        "calibration": {"temperature": 1.0, "training_prior": [0.5, 0.5]},
        "calibration_fit": {"fitted": False, "reason": "a measurement", "lesions": 0, "bias": None},
        "case_mix": {"name": "equal", "shares": shares},
        "training_mix": {"name": "training", "shares": shares},
        "trust": TrustFacts(None, None, 0.95, None, any_quality, None).as_dict(),
    }
    write_bundle(
        folder / "bundle",
        make_card(card),
        head=head_of(whole),
        seen={},
        write_graph=lambda path: ov.save_model(graph, path, compress_to_fp16=False),
        arrays={BASELINES_FILE: {"content_hash": np.zeros((0, 16), np.uint8)}, LESIONS_FILE: nobody},
    )
    answer = Predictor(folder / "bundle").predict(EXAMPLE)
    wanted = np.asarray(whole(load_image(EXAMPLE, spec)[None].astype(np.float32), training=False)[0])[0]
    if answer.status != "ok" or not np.abs(answer.logits - wanted).max() <= 1e-3 * max(1.0, np.abs(wanted).max()):
        raise SystemExit(f"{folder.name}: predicted {answer}, Keras says {wanted}.")
    return answer.status


def reload_difference(folder: str | Path) -> float:
    """Return by how much a saved model answers differently in this process, relative to its largest value."""
    from dermlens.training.network import load_keras

    with np.load(Path(folder) / "expected.npz") as file:
        pixels, *expected = (file[name] for name in file.files)
    found = load_keras(Path(folder))(pixels.astype(np.float32), training=False)
    pairs = zip(found, expected, strict=True)
    return max(float(np.abs(np.asarray(f) - e).max() / max(1e-6, np.abs(e).max())) for f, e in pairs)


def table(found: Mapping[str, Any]) -> str:
    """Return a line for each row of the family."""
    rows = [
        [
            name,
            *(f"{row['step_s'][mode]:.2g}" for mode in ("top", "full")),
            f"{row['export']:.0e}",
            f"{row['peak_gb']:.1f}",
        ]
        for name, row in found["rows"].items()
    ]
    header = ["network", "top, s/step", "full, s/step", "export differs", "peak GB"]
    return markdown(header, rows)
