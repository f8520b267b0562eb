"""Every row of the EfficientNet family lives through a training: built, trained, saved, reloaded, exported, used.

    python benchmarks/family.py OUT [--only NAME ...] [--batch 1] [--size-px 0] [--write docs/backbones.md]

Each row runs in a process of its own and leaves OUT/NAME.json; a row that is there already is not run again, so a
measurement that was stopped goes on where it was. Weights are random (cost and correctness do not depend on them), with
batch-norm statistics settled on some views of an example image. What is checked, not only measured: the facts of the
table, a step in head, top and full mode, the same outputs after a reload in a fresh process, the exported graph within
1e-3 of Keras, and an answer of `Predictor` from the exported bundle.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.networks.family import BACKBONES, Backbone, backbone

MODES = ("full", "top", "head")
SETTLED_ON = 512  # values of a channel in the smallest map, at least: fewer leave a network that magnifies rounding
STEPS = 2  # the first one traces the graph
CODES = ("A", "B")
NOT_MEASURED = ("created", "backbone", "recipe", "training", "metrics", "probe", "baselines", "versions")
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "images" / "MEL_ISIC_0000029.jpg"
KEYS = ("size_px", "batch", "build_s", "step_s", "reload", "export", "peak_gb", "row_s")


def live(
    row: Backbone, folder: Path, *, size_px: int, batch: int, check_facts: bool = True, keep: bool = False
) -> dict[str, Any]:
    """Take one row through its life in this process and return what was measured; raises where something is wrong.

    With `keep`, what a process that was stopped had measured is taken up from `folder`.
    """
    import keras

    from dermlens.networks.efficientnet import build_backbone, multiply_adds, parameters

    kept = folder / "partial.json"
    found: dict[str, Any] = {"size_px": size_px, "batch": batch, "step_s": {}, "peak_gb": 0.0}
    if keep and kept.is_file():
        found = json.loads(kept.read_text(encoding="utf-8"))
    if "build_s" not in found:
        start = time.perf_counter()
        built = build_backbone(row.name, size_px=size_px, weights="none")
        found["build_s"] = time.perf_counter() - start
        counted = parameters(built), multiply_adds(built)
        if check_facts and counted != (row.parameters, row.multiply_adds):
            raise SystemExit(f"{row.name}: the network has {counted} parameters and multiply-adds; correct the table.")
        del built
    for mode in MODES:
        if mode in found["step_s"]:
            continue
        network, seconds = train_steps(row, mode, size_px, batch)
        if mode == "full":
            found |= use(network.whole, folder, size_px)
        found["step_s"][mode] = seconds
        found["peak_gb"] = max(found["peak_gb"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)
        if keep:
            kept.write_text(json.dumps(found), encoding="utf-8")
        del network
        keras.backend.clear_session()
        gc.collect()
    return found


def use(whole: Any, folder: Path, size_px: int) -> dict[str, Any]:
    """Save, export and use a trained network."""
    from dermlens.training.outputs import save_keras

    from dermlens.networks.openvino import check_export, to_openvino

    pixels = pictures(max(1, SETTLED_ON // (size_px // 32) ** 2), size_px)
    settle(whole, pixels)  # again: a few steps on random weights leave statistics that belong to none
    pixels = pixels[:1]
    save_keras(whole, folder / "model.keras")
    outputs = [np.asarray(o) for o in whole(pixels.astype(np.float32), training=False)]
    np.savez(folder / "expected.npz", pixels, *outputs)
    graph = to_openvino(whole)
    return {
        "export": check_export(whole, graph, pixels),
        "predicted": predict(whole, graph, folder, size_px),
    }


def train_steps(row: Backbone, mode: str, size_px: int, batch: int) -> tuple[Any, float]:
    """Train some steps with the code of `dermlens train`; return the network and the seconds of the fastest step."""
    from rich.console import Console

    from dermlens.training.device import resolve
    from dermlens.training.feed import from_arrays
    from dermlens.training.fit import Stage, fit
    from dermlens.training.network import open_backbone, with_head
    from dermlens.training.recipe import Recipe
    from dermlens.training.watch import Watch

    settings = {"fine_tune": mode, "backbone": row.name, "weights": "none", "size_px": size_px, "batch_size": batch}
    recipe = resolve(Recipe(**settings, mixup=0.0), row)
    network = with_head(open_backbone(recipe), recipe, len(CODES))
    pixels, labels = pictures(batch, size_px), np.arange(batch) % 2
    settle(network.whole, pictures(max(1, SETTLED_ON // (size_px // 32) ** 2), size_px))
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
    from dermlens.data.images import InputSpec, load_image
    from dermlens.training.views import augment

    rng = np.random.default_rng(0)
    plain = load_image(EXAMPLE, InputSpec(size_px=size_px))
    return np.stack([plain, *(augment(plain, size_px, rng) for _ in range(count - 1))])


def settle(model: Any, pixels: np.ndarray) -> None:
    """Give every batch norm the statistics of one batch, as a trained network would have; random ones explode."""
    import keras

    from dermlens.networks.backend import leaves

    norms = [layer for layer in leaves(model) if isinstance(layer, keras.layers.BatchNormalization)]
    kept = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(pixels.astype(np.float32), training=True)
    for layer, momentum in zip(norms, kept, strict=True):
        layer.momentum = momentum


def predict(whole: Any, graph: Any, folder: Path, size_px: int) -> str:
    """Write the smallest bundle, answer an image file from it, and compare the logits with Keras."""
    import openvino as ov

    from dermlens import Predictor
    from dermlens.bundle.bundle import write_bundle
    from dermlens.bundle.trust import NOT_FITTED
    from dermlens.data.images import InputSpec, load_image
    from dermlens.training.network import head_of

    spec = InputSpec(size_px=size_px)
    card = {
        "name": folder.name,
        "version": "0.0.0",
        "scope": "A measurement.",
        "classes": [{"code": code, "name": code} for code in CODES],
        "input": spec.as_dict(),
        "calibration": {"temperature": 1.0, "prior": [0.5, 0.5], "training_prior": [0.5, 0.5], "bias": [0.0, 0.0]},
        "calibration_fit": {"fitted": False, "reason": "a measurement", "lesions": 0, "bias": None},
        "decision_rule": {"kind": "largest_probability", "strength": 1.0},
        "data": {"leaky": False},
        "licence": {"code": "Apache-2.0", "weights": "none"},
        "modality": "unknown",
        "trust": NOT_FITTED,
        **{name: {} for name in NOT_MEASURED},
    }
    write_bundle(
        folder / "bundle",
        card,
        head=head_of(whole),
        seen={},
        write_graph=lambda path: ov.save_model(graph, path, compress_to_fp16=False),
        model_card="# A measurement\n",
        arrays={},
    )
    answer = Predictor(folder / "bundle").predict(EXAMPLE)
    wanted = np.asarray(whole(load_image(EXAMPLE, spec)[None].astype(np.float32), training=False)[0])[0]
    if answer.status != "ok" or not np.abs(answer.logits - wanted).max() <= 1e-3 * max(1.0, np.abs(wanted).max()):
        raise SystemExit(f"{folder.name}: predicted {answer}, Keras says {wanted}.")
    return answer.status


def reload_difference(folder: Path) -> float:
    """Return by how much a saved model answers differently in this process, relative to its largest value."""
    from dermlens.training.outputs import load_keras

    with np.load(folder / "expected.npz") as file:
        pixels, *expected = (file[name] for name in file.files)
    found = load_keras(folder)(pixels.astype(np.float32), training=False)
    pairs = zip(found, expected, strict=True)
    return max(float(np.abs(np.asarray(f) - e).max() / max(1e-6, np.abs(e).max())) for f, e in pairs)


# --- one process for each row ----------------------------------------------------------------------------------


def run_row(name: str, out: Path, batch: int, size_px: int) -> dict[str, Any]:
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    found = _in_fresh_process("--row", name, out, batch, size_px)
    found |= _in_fresh_process("--reload", name, out, batch, size_px)
    found["row_s"] = time.perf_counter() - start
    shutil.rmtree(folder)
    (out / f"{name}.json").write_text(json.dumps({**found, "machine": machine()}, indent=1) + "\n", encoding="utf-8")
    return found


def _in_fresh_process(step: str, name: str, out: Path, batch: int, size_px: int) -> dict[str, Any]:
    command = [sys.executable, __file__, str(out), step, name, "--batch", str(batch), "--size-px", str(size_px)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{name} failed with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _row(row: Backbone, options: argparse.Namespace) -> dict[str, Any]:
    from dermlens.networks.backend import load_tensorflow

    load_tensorflow()
    from dermlens.networks.backend import keep_freed_memory

    keep_freed_memory()
    size_px = options.size_px or row.input_size_px
    own = size_px == row.input_size_px
    return live(row, options.out / row.name, size_px=size_px, batch=options.batch, check_facts=own, keep=True)


def machine() -> dict[str, Any]:
    from importlib.metadata import version

    import openvino as ov

    return {
        "processor": ov.Core().get_property("CPU", "FULL_DEVICE_NAME"),
        "threads": len(__import__("os").sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": {name: version(name) for name in ("tensorflow", "keras", "openvino")},
    }


# --- the page --------------------------------------------------------------------------------------------------


def page(results: dict[str, dict[str, Any]]) -> str:
    """Return docs/backbones.md: the facts of every row, and what was measured of those that ran."""
    made = next(iter(results.values()))["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in made["packages"].items())
    facts = [
        "| name | input px | parameters | multiply-adds | top-1 | weights | licence | pixels become |",
        "|---|---:|---:|---:|---:|---|---|---|",
    ]
    costs = [
        "| name | build s | head, s/step | top, s/step | full, s/step | export differs | peak GB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in BACKBONES.items():
        facts.append(
            f"| {name} | {row.input_size_px} | {row.parameters / 1e6:.1f} M | {row.multiply_adds / 1e9:.2f} G "
            f"| {row.imagenet_top1:.1%} | {row.weights_source} | {row.licence or '-'} | {row.scaling} |"
        )
        if name in results:
            costs.append(_cost(name, results[name]))
    missing = [name for name in BACKBONES if name not in results]
    batch = {result["batch"] for result in results.values()}
    text = _PAGE.format(
        facts="\n".join(facts),
        costs="\n".join(costs),
        batch=", ".join(map(str, sorted(batch))),
        processor=made["processor"],
        threads=made["threads"],
        system=made["system"],
        packages=packages,
    )
    return text + (f"\nNot measured here: {', '.join(missing)}.\n" if missing else "")


def _cost(name: str, found: dict[str, Any]) -> str:
    steps = " | ".join(f"{found['step_s'][mode]:.3g}" for mode in ("head", "top", "full"))
    return f"| {name} | {found['build_s']:.1f} | {steps} | {found['export']:.0e} | {found['peak_gb']:.1f} |"


_PAGE = """# Choose a backbone

`dermlens backbones` prints the first table, and with `--latency` measures on your machine. Made by
`python benchmarks/family.py OUT --write docs/backbones.md`.

## Which one?

When in doubt, take the default, `lite0`, and spend the time on the data.

| you have | take | why |
|---|---|---|
| a laptop | `lite0` | trains in minutes; its weights come with the extra `train` |
| a laptop and patience | `lite1`, `lite2` | more pixels and parameters; their weights come with it, too |
| a GPU | `b0` to `b3`, `v2-b0` to `v2-s` | the whole network is trained; Keras downloads the weights once |
| a large GPU, thousands of lesions | `b4` and above, `v2-m`, `v2-l` | see in the last table what a step costs |
| a telephone in mind | a Lite | no squeeze-and-excitation, and ReLU6 instead of swish: made for small processors |
| no network | `lite0`, `lite1`, `lite2`; any with `--weights FILE` | nothing is downloaded |

Whether a larger one is better **on your images** only a test says: train both with the same seed, so that both have the
same split, and compare the intervals.

```sh
dermlens backbones                                        # the table of facts, and which weights are here
dermlens backbones --only lite0 --only lite1 --latency    # also measured on this machine
dermlens train my_images --out runs/lite1 --backbone lite1
dermlens evaluate runs/lite1 my_images --out scores_lite1
```

## Facts

Parameters and multiply-adds are counted on the built networks at the size shown, without the ImageNet classifier.
Top-1 is the published ImageNet accuracy of these weights: for B and V2 the table of keras.applications, for Lite the
TensorFlow TPU repository (`models/official/efficientnet/lite/README.md`). Lite3 and Lite4 have no packaged weights:
their top-1 is that of Google's own.

{facts}

## Measured

Each row of this table was built at its own size, trained some steps in head, top and full mode, saved, reloaded in a
fresh process with the same outputs, exported to the graph that predicting uses (within 1e-3 of Keras: "export
differs" is the largest difference relative to the largest value), and asked for the diagnosis of an image file. A step
has a batch of {batch}; peak memory is that of the whole process over all of this. Weights are random: cost does not
depend on them.

Machine: {processor}, {threads} threads, shared with other work while measuring, so the times are upper bounds;
{system}; {packages}. How long predicting takes, alone on the machine and against Keras: [docs/speed.md](speed.md).

{costs}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="folder for one JSON a row")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this row; repeatable")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size-px", type=int, default=0, help="0: each row's own")
    parser.add_argument("--write", type=Path, help="write the page from what is in OUT")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--reload", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.out is None:
        print("Not run: it takes an hour or two. Give a folder: python benchmarks/family.py OUT")
    elif options.row:
        print(json.dumps(_row(backbone(options.row), options)))
    elif options.reload:
        print(json.dumps({"reload": reload_difference(options.out / options.reload)}))
    else:
        run_all(options)


def run_all(options: argparse.Namespace) -> None:
    for name in [backbone(name).name for name in options.only] if options.only else BACKBONES:
        if not (options.out / f"{name}.json").is_file():
            found = run_row(name, options.out, options.batch, options.size_px)
            print(name, json.dumps({key: found[key] for key in KEYS}), flush=True)
    if options.write:
        results = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in options.out.glob("*.json")}
        options.write.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
