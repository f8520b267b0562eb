"""What will my 300 images give? A linear probe's accuracy by number of training images and by backbone.

    python benchmarks/size_study.py --data DATA --runs runs/size         # goes on where it was stopped
    python benchmarks/size_study.py --runs runs/size --table [--out benchmarks/results] [--page docs/accuracy.md]

The second line computes nothing: table and plot of what is there.

DATA holds `ham10000/`, `isic9/` and `isic_reference.csv`, repaired and joined as for the embedded model (8 classes).
The test is fold 0 of five, split by lesion, with one image of each lesion (the sharpest copy). A draw takes n images of
the other folds, at their natural class shares with at least two lesions of each class, or (`balanced`) as many of each
class; one image of a lesion before a second one. A fifth of the lesions of a draw chooses the strength of the probe,
the rest teaches it, so n is all that a user needs but for the test. Features come from the frozen ImageNet network.
`--backbones lite0@320` fits that network's features at another side of its input, in pixels, on all images alone.

Writes `size_study.json`, `.md` and `.png` into --out. Intervals (95 %): draws and test lesions are both drawn anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import FOLDS  # all beside this file
from accuracy_table import PREFERENCE
from folds import write

SIZES_PX = {"lite0": 224, "lite1": 240, "lite2": 260}
FIRST = "lite0"
OTHER_SIZES = ("lite0@260", "lite0@320", "lite2@224", "lite2@320")
DRAWS = {100: 10, 200: 10, 400: 8, 800: 5, 1600: 3, 3200: 2}
BALANCED_TO = 400
ALL = 0
SELECT_SHARE = 0.2
RESAMPLES = 1000


@dataclass(frozen=True)
class Images:
    """Images in one order: embeddings float32 (n, d), class indices and lesion numbers (n,)."""

    vectors: np.ndarray
    labels: np.ndarray
    lesions: np.ndarray

    def pick(self, rows: np.ndarray) -> Images:
        return Images(self.vectors[rows], self.labels[rows], self.lesions[rows])


def quotas(labels: np.ndarray, n: int, *, balanced: bool) -> dict[int, int]:
    """Return how many of n images each class gets: as many each, or by share (largest remainder), at least two."""
    counts = Counter(int(label) for label in labels)
    if balanced:
        return {code: min(counts[code], n // len(counts)) for code in sorted(counts)}
    ideal = {code: n * counts[code] / len(labels) for code in sorted(counts)}
    given = {code: max(2, int(share)) for code, share in ideal.items()}
    by_rest = sorted(ideal, key=lambda code: given[code] - ideal[code])
    for code in by_rest[: max(0, n - sum(given.values()))]:
        given[code] += 1
    given[max(given, key=given.__getitem__)] -= sum(given.values()) - n
    return given


def draw(labels: np.ndarray, lesions: np.ndarray, n: int, rng: np.random.Generator, *, balanced: bool) -> np.ndarray:
    """Return the rows of n images at the quotas of their classes, one image of each lesion before a second one."""
    chosen: list[int] = []
    for code, quota in quotas(labels, n, balanced=balanced).items():
        rows = rng.permutation(np.flatnonzero(labels == code))
        nth: list[int] = []  # is it the first, second ... image of its lesion?
        met: Counter[int] = Counter()
        for row in rows:
            nth.append(met[int(lesions[row])])
            met[int(lesions[row])] += 1
        chosen += rows[np.argsort(nth, kind="stable")][:quota].tolist()
    return np.sort(chosen)


def held_out(labels: np.ndarray, lesions: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return (n,) bool: the images of `share` of each class's lesions, of at least one and never of all of a class."""
    held: set[int] = set()
    for code in np.unique(labels):
        every = rng.permutation(np.unique(lesions[labels == code]))
        count = min(max(1, round(share * len(every))), len(every) - 1)
        held |= {int(lesion) for lesion in every[:count]}
    return np.isin(lesions, sorted(held))


def one_a_lesion(rows: Sequence[int], lesions: np.ndarray, sources: Sequence[str | None]) -> np.ndarray:
    """Return of `rows` the sharpest image of each lesion, ascending."""
    best: dict[int, int] = {}
    rank = {name: place for place, name in enumerate(PREFERENCE)}
    for row in sorted(rows, key=lambda row: (rank.get(str(sources[row]), len(rank)), row)):
        best.setdefault(int(lesions[row]), row)
    return np.array(sorted(best.values()))


def summarise(truth: np.ndarray, decisions: np.ndarray, melanoma: int, *, seed: int = 0) -> dict[str, Any]:
    """Return the figures of several draws on one test, the mean over draws with its interval.

    Args:
        truth: (t,) class indices of the test, one image a lesion; decisions: (draws, t).
    """
    from dermlens.evaluation import metrics
    from dermlens.evaluation.bootstrap import resample_weights

    lesions, classes = np.arange(len(truth)), int(max(truth.max(), decisions.max())) + 1
    blocks = list(resample_weights(truth, lesions, resamples=RESAMPLES, seed=seed))
    weights = np.concatenate([np.ones((1, len(truth))), *blocks])
    counts = [metrics.class_counts(truth, row, classes, weights) for row in decisions]
    occurring = np.unique(truth)
    samples = {
        "balanced_accuracy": np.stack([metrics.sensitivity(c)[:, occurring].mean(axis=1) for c in counts]),
        "accuracy": np.stack([metrics.accuracy(c) for c in counts]),
        "melanoma_sensitivity": np.stack([metrics.sensitivity(c)[:, melanoma] for c in counts]),
    }
    return {name: interval(values, seed) for name, values in samples.items()}


def interval(samples: np.ndarray, seed: int) -> dict[str, Any]:
    """Return value, low, high of the mean over draws; samples (draws, 1 + resamples), the figure itself first."""
    draws, columns = samples.shape
    rng = np.random.default_rng(seed)
    again = rng.integers(draws, size=(draws, columns - 1))
    means = np.take_along_axis(samples[:, 1:], again, axis=0).mean(axis=0)
    low, high = np.quantile(means, (0.025, 0.975))
    values = samples[:, 0]
    found = {"value": float(values.mean()), "low": float(low), "high": float(high)}
    return {**found, "draws": [round(float(v), 4) for v in values]}


def read_study(data: Path, out: Path, backbones: Sequence[str]) -> tuple[dict[str, Images], np.ndarray, np.ndarray]:
    """Return the images by backbone, the rows to draw from, and the rows of the test; writes `study.json`."""
    from rich.console import Console

    from dermlens.audit.findings import hash_records
    from dermlens.data.records import lesions as lesion_numbers
    from dermlens.training.split import assign_folds
    from scripts.default_model.dataset import default_dataset

    console = Console(width=140)
    records = list(default_dataset(data, console).records)
    hashes = [str(digest) for digest in hash_records(records)]
    codes = sorted({record.diagnosis for record in records})
    labels = np.array([codes.index(record.diagnosis) for record in records])
    lesions = np.array(lesion_numbers(records, hashes))
    folds = np.array(assign_folds(records, hashes, folds=FOLDS, seed=0))
    test = one_a_lesion(np.flatnonzero(folds == 0).tolist(), lesions, [record.source for record in records])
    pool = np.flatnonzero(folds != 0)
    images = {name: Images(features(out, name, records, hashes, console), labels, lesions) for name in backbones}
    study = {"codes": codes, "truth": labels[test].tolist(), "pool": len(pool), "pool_lesions": len(set(lesions[pool]))}
    (out / "study.json").write_text(json.dumps(study) + "\n")
    return images, pool, test


def side_px(name: str) -> int:
    """Return the side of the input: behind the `@` of the name, or the backbone's own."""
    return int(name.partition("@")[2] or SIZES_PX[name])


def features(out: Path, name: str, records: Sequence[Any], hashes: Sequence[str], console: Any) -> np.ndarray:
    """Return embeddings of the frozen ImageNet network, float32 (n, d); kept on disk, and gone on with."""
    kept, size_px = out / f"{name}.npz", side_px(name)
    key = hashlib.sha256(repr((name, size_px, list(hashes))).encode()).hexdigest()
    if kept.is_file():
        with np.load(kept, allow_pickle=False) as file:
            if str(file["key"]) == key:
                return file["vectors"].astype(np.float32)
    from dermlens.networks.backend import load_tensorflow

    load_tensorflow()
    import keras

    from dermlens.data.images import InputSpec
    from dermlens.networks.efficientnet import build_backbone
    from dermlens.networks.openvino import to_openvino
    from dermlens.training.features import trunk_cache

    backbone = build_backbone(name.partition("@")[0], size_px=size_px, weights="lite")
    pooled = keras.layers.GlobalAveragePooling2D(name="embedding")(backbone.outputs[0])
    graph = to_openvino(keras.Model(backbone.inputs[0], pooled))
    found = trunk_cache(
        out / name,
        graph,
        records,
        hashes,
        InputSpec(size_px=size_px),
        view_count=0,
        seed=0,
        weights_id=f"{name} ImageNet, pooled",
        console=console,
        what=f"Features, {name}",
    )[:, 0]
    np.savez(kept, key=np.array(key), vectors=found)
    return found.astype(np.float32)


def run_points(images: Mapping[str, Images], pool: np.ndarray, test: np.ndarray, out: Path) -> None:
    """Fit every probe that is not there yet; each adds a line to `points.jsonl`."""
    finished = points(out)
    (out / "points.jsonl").write_text("".join(json.dumps(point) + "\n" for point in finished))  # no half line stays
    done = {(p["backbone"], p["mix"], p["n"], p["draw"]) for p in finished}
    for n, draws in [*DRAWS.items(), (ALL, 1)]:
        for name, every in images.items():
            if "@" in name and n != ALL:
                continue
            for mix in ("natural", "balanced") if ALL < n <= BALANCED_TO else ("natural",):
                for number in range(draws):
                    if (name, mix, n, number) not in done:
                        _run_point(every, pool, test, out, (name, mix, n, number))


def _run_point(every: Images, pool: np.ndarray, test: np.ndarray, out: Path, point: tuple[str, str, int, int]) -> None:
    from threadpoolctl import threadpool_limits

    from dermlens.training.probe import fit_probe

    name, mix, n, number = point
    rng = np.random.default_rng([n, number])
    source = every.pick(pool)
    rows = np.arange(len(pool)) if n == ALL else draw(source.labels, source.lesions, n, rng, balanced=mix == "balanced")
    mine = source.pick(rows)
    held = held_out(mine.labels, mine.lesions, SELECT_SHARE, rng)
    classes = int(every.labels.max()) + 1
    with threadpool_limits(1):
        probe = fit_probe((mine.vectors[~held], mine.labels[~held]), (mine.vectors[held], mine.labels[held]), classes)
    decided = probe.probabilities(every.vectors[test]).argmax(axis=1)
    facts = {"backbone": name, "mix": mix, "n": n, "draw": number, "images": len(rows)}
    facts |= {"lesions": len(set(mine.lesions)), "strength": probe.strength, "decided": decided.tolist()}
    with (out / "points.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")
    print(f"{name} {mix} {len(rows)} images, draw {number}", flush=True)


def points(out: Path) -> list[dict[str, Any]]:
    """Return the finished points; a half-written last line is left out."""
    path = out / "points.jsonl"
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def summary(out: Path) -> dict[str, Any]:
    """Return the figures of the finished points, a row for each backbone, mix and number of images."""
    from dermlens.evaluation.bootstrap import paired_difference

    study = json.loads((out / "study.json").read_text())
    truth, melanoma = np.array(study["truth"]), study["codes"].index("MEL")
    groups: defaultdict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for point in points(out):
        groups[point["backbone"], point["mix"], point["images"]].append(point)
    rows = []
    on_all = [point["decided"] for point in points(out) if point["n"] == ALL and point["backbone"] == FIRST]
    most = max(n for _, _, n in groups)
    for (name, mix, n), found in sorted(groups.items(), key=lambda item: (item[0][0], item[0][1], item[0][2])):
        decisions = np.array([point["decided"] for point in found])
        lesions = round(float(np.mean([point["lesions"] for point in found])))
        figures = summarise(truth, decisions, melanoma)
        if on_all and n == most:
            figures["minus_first"] = paired_difference(truth, decisions[0], on_all[0], range(len(truth)))
        rows.append({"backbone": name, "mix": mix, "images": n, "lesions": lesions, "draws": len(found), **figures})
    return {"test_lesions": len(truth), "classes": study["codes"], "pool_images": study["pool"], "rows": rows}


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the Markdown table: a line for each number of images and mix, a column for each backbone."""
    names = [name for name in dict.fromkeys(row["backbone"] for row in rows) if "@" not in name]
    if not names:
        return []
    cells = {(row["mix"], row["images"], row["backbone"]): row for row in rows if row["backbone"] in names}
    first = names[0]
    header = ["images", "classes drawn", "draws", *(f"balanced accuracy, {name}" for name in names)]
    header += [f"accuracy, {first}", f"melanoma sensitivity, {first}"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for mix, n in sorted({(mix, n) for mix, n, _ in cells}, key=lambda key: (key[0] != "natural", key[1])):
        base = cells.get((mix, n, first))
        scores = [_figure(cells.get((mix, n, name)), "balanced_accuracy") for name in names]
        scores += [_figure(base, "accuracy"), _figure(base, "melanoma_sensitivity")]
        draws = max(cells[mix, n, name]["draws"] for name in names if (mix, n, name) in cells)
        kind = "as they come" if mix == "natural" else "as many of each"
        lines.append(f"| {n} | {kind} | {draws} | " + " | ".join(scores) + " |")
    return lines


def by_side(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of networks and sides of the input, on all images; none of the usual sides alone."""
    most = max(row["images"] for row in rows)
    ends = [row for row in rows if row["images"] == most]
    found = [(row["backbone"].partition("@")[0], side_px(row["backbone"]), row) for row in ends]
    if not any("@" in row["backbone"] for _, _, row in found):
        return []
    header = ["network", "px", "balanced accuracy", f"minus {FIRST} at {SIZES_PX[FIRST]} px, in pairs", "accuracy"]
    lines = ["", "| " + " | ".join([*header, "melanoma sensitivity"]) + " |", "|" + "---|" * 6]
    for name, side, row in sorted(found, key=lambda item: item[:2]):
        gain = _figure(row, "minus_first") if "minus_first" in row and row["backbone"] != FIRST else ""
        figures = [_figure(row, key) for key in ("balanced_accuracy", "accuracy", "melanoma_sensitivity")]
        scores = [figures[0], gain, *figures[1:]]
        lines.append(f"| {name} | {side} | " + " | ".join(scores) + " |")
    return lines


def _figure(row: Mapping[str, Any] | None, name: str) -> str:
    from dermlens.text import figure

    return figure(row[name], 2) if row else ""


def plot(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw balanced accuracy and accuracy by number of images, a line for each backbone and mix, as PNG bytes."""
    import io

    from matplotlib.figure import Figure

    rows = [row for row in rows if "@" not in row["backbone"]]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True)
    for key, axis in zip(("balanced_accuracy", "accuracy"), axes, strict=True):
        for colour, name in enumerate(dict.fromkeys(row["backbone"] for row in rows)):
            for mix, style in (("natural", "-"), ("balanced", ":")):
                line = [row for row in rows if row["backbone"] == name and row["mix"] == mix]
                n, label = [row["images"] for row in line], name + (", as many of each" if mix == "balanced" else "")
                axis.plot(n, [row[key]["value"] for row in line], style, marker="o", color=f"C{colour}", label=label)
                low, high = [row[key]["low"] for row in line], [row[key]["high"] for row in line]
                if mix == "natural" and colour == 0:
                    axis.fill_between(n, low, high, color=f"C{colour}", alpha=0.15, linewidth=0)
        axis.set(xscale="log", xlabel="labelled images", ylabel=key.replace("_", " "))
        ticks = sorted({row["images"] for row in rows if row["mix"] == "natural"})
        axis.set_xticks(ticks, [str(n) for n in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DERMLENS_DATA"))
    parser.add_argument("--runs", type=Path, required=True, help="folder for features and finished fits")
    parser.add_argument("--backbones", nargs="+", choices=[*SIZES_PX, *OTHER_SIZES], default=list(SIZES_PX))
    parser.add_argument("--table", action="store_true", help="compute nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/protocol"))
    parser.add_argument("--page", type=Path, help="also put table and plot between this benchmark's marks there")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    if not options.table:
        if options.data is None:
            raise SystemExit("Name the data folder with --data or DERMLENS_DATA.")
        images, pool, test = read_study(Path(options.data), options.runs, options.backbones)
        run_points(images, pool, test, options.runs)
    found = summary(options.runs)
    lines = [
        f"Test: {found['test_lesions']} lesions; images come from {found['pool_images']}.",
        "",
        *table(found["rows"]),
        *by_side(found["rows"]),
    ]
    write(
        options,
        "size_study",
        found,
        [*lines, "", "![Accuracy by number of images](size_study.png)"],
        plot(found["rows"]),
    )


if __name__ == "__main__":
    main()
