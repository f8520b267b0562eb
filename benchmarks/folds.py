"""What the benchmarks of the accuracy protocol share: a fold's test images in order, and what its network says of them.

A test image is the one that the protocol tests: the sharpest copy of each lesion, as the run folder's `split.csv` and
`test_predictions.csv` name them. Outputs are kept beside the fold (`test_outputs.npz`), so a second run needs no data.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_table import Fold, figure_of, predictions  # beside this file
from rich.console import Console

from dermlens.bundle.bundle import Bundle, load_bundle
from dermlens.bundle.decision import decide, probabilities, softmax
from dermlens.data.images import load_image
from dermlens.data.records import Record
from dermlens.evaluation.bootstrap import resample_weights, sampled_figure
from dermlens.evaluation.conformal import wilson_interval
from dermlens.inference.predictor import turned
from dermlens.inference.runtime import BATCH, Runtime
from dermlens.reporting.progress import track

FOLDS = range(5)
RESAMPLES = 1000
LEAST_AGREEMENT = 0.98  # of the decisions with those that the run wrote: below it these are other images


@dataclass(frozen=True)
class OutOfFold:
    """One finished fold: its bundle, its table (see `predictions`), logits (views, n, classes), embedding (n, d)."""

    bundle: Bundle
    table: Fold
    logits: np.ndarray
    embedding: np.ndarray

    def probability(self, views: Sequence[int] = (0,)) -> np.ndarray:
        """Return the mean over these views, calibrated as the bundle says, (n, classes)."""
        return probabilities(mean_logits(self.logits[list(views)]), self.bundle.calibration)


def mean_logits(logits: np.ndarray) -> np.ndarray:
    """Return what `run_views` does for logits (views, n, classes): the log of the mean probability."""
    if len(logits) == 1:
        return logits[0]
    shares = np.mean([softmax(view.astype(np.float64)) for view in logits], axis=0)
    return np.log(np.maximum(shares, 1e-30)).astype(np.float32)


def finished(runs: Path, method: str) -> dict[int, Path]:
    """Return fold -> run folder of the folds that are trained and tested."""
    folders = {number: runs / method / f"fold{number}" for number in FOLDS}
    found = {number: folder for number, folder in folders.items() if (folder / "test_predictions.csv").is_file()}
    if not found:
        raise SystemExit(f"No finished fold of {method!r} in {runs}: train one with benchmarks/accuracy.py.")
    return found


def records_of(fold: Fold, data: Path) -> list[Record]:
    """Return the records of a fold's test images, in its order, framed as in the training."""
    from scripts.default_model.dataset import FRAME_ASPECT

    codes, rows = fold["codes"], zip(fold["image"], fold["truth"], fold["lesion"], fold["source"], strict=True)
    return [
        Record(
            path=data / str(image),
            image=str(image),
            diagnosis=str(codes[truth]),
            lesion_id=str(lesion),
            source=str(source),
            frame_aspect=FRAME_ASPECT if source == "isic9" else None,
        )
        for image, truth, lesion, source in rows
    ]


def answers_of(folder: Path, data: Path | None, keep: Path, views: int, console: Console) -> OutOfFold:
    """Run a fold's network over its test images, or read what is kept of it.

    Args:
        keep: where `test_outputs.npz` lies; made where it is missing. Views that are there are not run again.

    Raises:
        SystemExit: the images are needed and `data` is None, or the network answers otherwise than in its own test.
    """
    bundle, table = load_bundle(folder / "bundle"), predictions(folder)
    if list(bundle.codes) != table["codes"].tolist():
        raise SystemExit(f"{folder}: the bundle's classes {bundle.codes} are not those of test_predictions.csv.")
    path = keep / "test_outputs.npz"
    logits, embedding = _kept(path, bundle, table)
    if len(logits) < views:
        if data is None:
            raise SystemExit("Name the data folder with --data or DERMLENS_DATA.")
        more, first = outputs_of(bundle, records_of(table, data), range(len(logits), views), console, folder.name)
        logits = np.concatenate([logits, more]) if len(logits) else more
        embedding = first if embedding is None else embedding
        _keep(path, bundle, table, logits, embedding)
    answers = decide(probabilities(logits[0], bundle.calibration), bundle.calibration, bundle.decision_rule)
    agree = float(np.mean(answers == table["decision"]))
    if agree < LEAST_AGREEMENT:
        raise SystemExit(f"{folder}: only {agree:.1%} of the decisions are those of the run. Is --data its data set?")
    return OutOfFold(bundle, table, logits, embedding)


def outputs_of(
    bundle: Bundle, records: Sequence[Record], views: range, console: Console, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (views, n, classes) and the embedding (n, d) of the first of these views."""
    runtime = Runtime(bundle.graph_path)
    logits: list[list[np.ndarray]] = [[] for _ in views]
    embedding = []
    with ThreadPoolExecutor() as pool, track(f"Outputs, {name}", len(records), console) as advance:
        for start in range(0, len(records), BATCH):
            part = records[start : start + BATCH]
            pixels = np.stack(list(pool.map(lambda record: _pixels(record, bundle), part)))
            for place, view in enumerate(views):
                outputs = runtime.run(turned(pixels, view) if view else pixels)
                logits[place].append(outputs.logits)
                if not place:
                    embedding.append(outputs.embedding)
            advance(len(part))
    return np.stack([np.concatenate(rows) for rows in logits]), np.concatenate(embedding)


def _pixels(record: Record, bundle: Bundle) -> np.ndarray:
    return load_image(record.path, bundle.input_spec, frame_aspect=record.frame_aspect)


def _kept(path: Path, bundle: Bundle, table: Fold) -> tuple[np.ndarray, np.ndarray | None]:
    if path.is_file():
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["bundle"]) == bundle.sha256 and np.array_equal(kept["image"], table["image"]):
                return kept["logits"], kept["embedding"]
    return np.zeros((0, 0, 0), np.float32), None


def _keep(path: Path, bundle: Bundle, table: Fold, logits: np.ndarray, embedding: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".part.npz")
    np.savez(half, bundle=np.array(bundle.sha256), image=table["image"], logits=logits, embedding=embedding)
    os.replace(half, path)


def read_folds(options: argparse.Namespace, views: int, console: Console) -> dict[int, OutOfFold]:
    """Return every finished fold of `--method`, its networks run where nothing is kept."""
    folders = finished(options.runs, options.method)
    keep = options.keep or options.runs
    data = Path(options.data) if options.data else None
    return {
        number: answers_of(folder, data, keep / options.method / folder.name, views, console)
        for number, folder in folders.items()
    }


def column(folds: Mapping[int, Mapping[str, np.ndarray]], key: str) -> np.ndarray:
    """Return a column of all folds, one below the other.

    Raises:
        SystemExit: a lesion stands in two folds.
    """
    lesions = np.concatenate([table["lesion"] for table in folds.values()])
    if len(np.unique(lesions)) < len(lesions):
        raise SystemExit("A lesion stands in two folds: these are not the folds of one split.")
    return np.concatenate([table[key] for table in folds.values()])


def draws(truth: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return weights (1 + resamples, n): each lesion once, then lesions drawn anew within their class."""
    blocks = resample_weights(truth, np.arange(len(truth)), resamples=resamples, seed=seed)
    return np.concatenate([np.ones((1, len(truth))), *blocks])


def mean_figure(values: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Return the mean of values (n,) with its interval over the resamples of `draws`."""
    total = weights.sum(axis=1)
    return sampled_figure((weights @ values) / np.where(total > 0, total, np.nan), reason="no lesions")


def share_figure(values: np.ndarray) -> dict[str, Any]:
    """Return the mean of n shares, 0 to 1 each, with Wilson's 95 % interval for n lesions."""
    if not len(values):
        return {"value": None, "low": None, "high": None, "reason": "no lesions"}
    value = float(np.mean(values))
    low, high = wilson_interval(value, len(values))
    return {"value": value, "low": low, "high": high}


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return a Markdown table; a figure (a mapping) is written with its interval."""

    def text(cell: Any) -> str:
        return figure_of(cell) if isinstance(cell, Mapping) else str(cell)

    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(map(text, line)) + " |" for line in lines]


def arguments(doc: str | None, *, small_files: bool = False) -> argparse.ArgumentParser:
    """Return a parser with what these benchmarks share.

    Args:
        small_files: the benchmark needs what `accuracy.py --keep` keeps of a fold and no network: --kept is there, and
            --runs may be missing.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=not small_files, help="the --out of benchmarks/accuracy.py")
    parser.add_argument("--method", default="top")
    parser.add_argument("--data", default=os.environ.get("DERMLENS_DATA"))
    if small_files:
        parser.add_argument("--kept", type=Path, help="the --keep of benchmarks/accuracy.py, for folds without a run")
    else:
        parser.add_argument("--keep", type=Path, help="folder for the networks' outputs; beside the folds unless named")
    parser.add_argument("--out", type=Path, default=Path("runs/protocol"))
    parser.add_argument("--page", type=Path, help="also put the tables between this benchmark's marks in this document")
    return parser


def marks(name: str) -> tuple[str, str]:
    """Return what stands before and after the tables of a benchmark in a document."""
    return f"<!-- benchmarks/{name}.py: start -->", f"<!-- benchmarks/{name}.py: end -->"


def write(
    options: argparse.Namespace, name: str, found: Mapping[str, Any], lines: Sequence[str], png: bytes | None
) -> None:
    """Write NAME.json, NAME.md and NAME.png into --out, and the lines and the picture to --page where one is named."""
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (options.out / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if png is not None:
        (options.out / f"{name}.png").write_bytes(png)
    if options.page:
        start, end = marks(name)
        text = options.page.read_text(encoding="utf-8")
        if start not in text or end not in text:
            raise SystemExit(f"{options.page} has no place for these tables: it needs the lines {start} and {end}.")
        before, rest = text.split(start)
        block = "\n".join([start, *lines, end])
        options.page.write_text(before + block + rest.split(end)[1], encoding="utf-8")
        if png is not None:
            (options.page.parent / f"{name}.png").write_bytes(png)
    print("\n".join(lines))
