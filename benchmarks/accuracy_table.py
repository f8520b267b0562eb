"""The table and the plots of the accuracy protocol, from the folds that are finished. Run by `accuracy.py`."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from kept_folds import fuller, identity, read_folds, refuse_mixtures, rule_of, write_fold  # both beside this file
from measure import machine

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for scripts.default_model

PREFERENCE = ("images_224", "isic9", "images_200x150")
PROBE, MAJORITY, STUDENT, FINAL = "linear probe", "majority", "student", "top"
HEADER = (
    "method",
    "folds",
    "balanced accuracy",
    "mean of folds",
    "accuracy",
    "AUC",
    "melanoma AUC",
    "melanoma sensitivity at 90 % specificity",
    "minus probe",
    "accuracy minus majority",
    "minutes a fold",
    "peak GB",
)

Fold = dict[str, np.ndarray]


def start_run(out: Path, script: Path, arguments: Sequence[str], name: str) -> None:
    """Run a training in a process of its own unless it is there; keep minutes of all tries, memory, processor."""
    if (out / "test_predictions.csv").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    cost_file = out / "cost.json"
    cost = json.loads(cost_file.read_text()) if cost_file.exists() else {"minutes": 0.0, "peak_gb": 0.0}
    print(f"== {name}", flush=True)
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, str(script), *arguments])
    try:
        _, status, usage = os.wait4(process.pid, 0)
        cost["peak_gb"] = max(cost["peak_gb"], usage.ru_maxrss * 1024 / 1e9)
    finally:
        cost["minutes"] += (time.monotonic() - start) / 60
        cost["processor"] = machine()["processor"]
        cost_file.write_text(json.dumps(cost))
    if status:
        raise SystemExit(f"{name} failed; the same command goes on from what is there.")


def predictions(out: Path) -> Fold:
    """Return one row a lesion of a finished fold, sorted by lesion.

    `truth`, `decision`, `probe`, `majority` (n,) class indices; `probability`, and `probe_probability` where the run
    kept it, (n, classes); `lesion`, `image`, `source`, `isic_id` (n,) text; `codes` (classes,). The student's run knows
    neither probe nor majority.
    """
    with (out / "split.csv").open(newline="", encoding="utf-8") as file:
        facts = {row["image"]: row for row in csv.DictReader(file)}
    with (out / "test_predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    codes = sorted(name[2:] for name in rows[0] if name.startswith("p_"))

    def sharpest(row: Mapping[str, str]) -> tuple[int, str]:
        source = facts[row["image"]]["source"]
        return (PREFERENCE.index(source) if source in PREFERENCE else len(PREFERENCE), row["image"])

    best: dict[str, dict[str, str]] = {}
    for row in sorted(rows, key=sharpest):
        best.setdefault(row["lesion_id"] or row["image"], row)
    kept = [best[lesion] for lesion in sorted(best)]

    def index(name: str) -> np.ndarray:
        return np.array([codes.index(row[name]) for row in kept])

    def shares(kind: str) -> np.ndarray:
        found = np.array([[float(row[f"{kind}_{code}"]) for code in codes] for row in kept])
        return found / found.sum(axis=1, keepdims=True)

    fold = {
        "truth": index("diagnosis"),
        "decision": index("decision"),
        "probe": index("probe_decision"),
        "probability": shares("p"),
        "lesion": np.array(sorted(best)),
        **{
            key: np.array([facts[row["image"]].get(key) or "" for row in kept])
            for key in ("image", "source", "isic_id")
        },
        "codes": np.array(codes),
    }
    if f"q_{codes[0]}" in rows[0]:
        fold["probe_probability"] = shares("q")
    learned = Counter(row["diagnosis"] for row in facts.values() if row.get("role") == "train")
    if learned:
        fold["majority"] = np.full(len(kept), codes.index(max(sorted(learned), key=learned.__getitem__)))
    return fold


def summarise(folds: Mapping[int, Fold], decision: str, probes: Mapping[int, Fold]) -> dict[str, Any]:
    """Score the pooled folds of one method; `decision` names whose decisions, `probes` the folds with a probe."""
    from dermlens.evaluation.bootstrap import paired_difference
    from dermlens.evaluation.metrics import balanced_accuracy_score
    from dermlens.evaluation.scores import score

    pooled = {key: np.concatenate([part[key] for part in folds.values()]) for key in ("truth", decision, "lesion")}
    codes = [str(code) for code in next(iter(folds.values()))["codes"]]
    truth, decided = pooled["truth"], pooled[decision]
    name = {"decision": "probability", "probe": "probe_probability"}.get(decision, "")
    ranked = all(name in part for part in folds.values())
    shares = np.concatenate([part[name] for part in folds.values()]) if ranked else np.eye(len(codes))[decided]
    result = {
        "folds": sorted(folds),
        "balanced_accuracy_by_fold": [
            float(balanced_accuracy_score(part["truth"], part[decision])) for part in folds.values()
        ],
        "metrics": score(truth, shares, decided, pooled["lesion"], codes),
        "ranked": ranked,
        "reliability": reliability(truth, shares) if ranked else None,
    }
    if decision != "majority" and set(folds) <= set(probes):
        probe, most = (
            np.concatenate([aligned(part, probes[number], key) for number, part in folds.items()])
            for key in ("probe", "majority")
        )
        result["accuracy_minus_majority"] = paired_difference(truth, decided, most, pooled["lesion"], "accuracy")
        if decision != "probe":
            result["minus_probe"] = paired_difference(truth, decided, probe, pooled["lesion"])
    return result


def against(final: Mapping[int, Fold], folds: Mapping[int, Fold]) -> dict[str, Any]:
    """Return by how much the final method is better than another on folds that both have, in pairs over lesions.

    Once with the decisions of both, once with the largest probability named by both: a method without class balance is
    not to lose by its rule of decision alone.
    """
    from dermlens.evaluation.bootstrap import paired_difference

    def pooled(of: Callable[[int, Fold], np.ndarray]) -> np.ndarray:
        return np.concatenate([of(number, part) for number, part in folds.items()])

    truth, lesion = pooled(lambda _, part: part["truth"]), pooled(lambda _, part: part["lesion"])
    named = {
        "": (
            pooled(lambda number, part: aligned(part, final[number], "decision")),
            pooled(lambda _, part: part["decision"]),
        ),
        "_by_probability": (
            pooled(lambda number, part: aligned(part, final[number], "probability").argmax(axis=1)),
            pooled(lambda _, part: part["probability"].argmax(axis=1)),
        ),
    }
    return {
        f"{metric}{rule}": paired_difference(truth, *pair, lesion, metric)
        for rule, pair in named.items()
        for metric in ("balanced_accuracy", "accuracy")
    }


def aligned(fold: Fold, other: Fold, key: str) -> np.ndarray:
    """Return `other[key]` in the order of the lesions of `fold`; both hold the same lesions."""
    places = {lesion: place for place, lesion in enumerate(other["lesion"].tolist())}
    return other[key][[places[lesion] for lesion in fold["lesion"].tolist()]]


def reliability(truth: np.ndarray, probability: np.ndarray, bins: int = 10) -> dict[str, list[float]]:
    """Return mean confidence and share that is right of the most probable class, by bins of equal mass."""
    from dermlens.evaluation.metrics import equal_mass_bins, top_label

    confidence, right = top_label(truth, probability)
    number = equal_mass_bins(confidence, bins)
    rows = [number == each for each in np.unique(number)]
    return {
        "confidence": [float(confidence[row].mean()) for row in rows],
        "accuracy": [float(right[row].mean()) for row in rows],
    }


def write_table(
    out: Path, methods: Sequence[str], fold_count: int, keep: Path | None = None, onto: Path | None = None
) -> list[str]:
    """Write `accuracy.json`, `accuracy.md`, `accuracy.png` and `reliability.png` of the finished folds of --out.

    Args:
        keep: folder that gets each finished fold as a small file; folds that only stand there count as well.
        onto: an earlier `accuracy.json`, whose rows stay where they have more folds than are at hand.
    """
    every, costs = _finished_folds(out, methods, fold_count, keep)
    probes = _with_probe(every)
    found: dict[str, Any] = {}
    if probes:
        found[MAJORITY] = summarise(probes, "majority", probes)
        found[PROBE] = summarise(probes, "probe", probes)
    for method, folds in every.items():
        found[method] = summarise(folds, "decision", probes)
        found[method]["minutes"] = _minutes(costs[method], folds)
        found[method]["peak_gb"] = max(costs[method][fold]["peak_gb"] for fold in folds)
        common = {number: fold for number, fold in folds.items() if number in every.get(FINAL, {})}
        if method != FINAL and common:
            found[method]["final"] = against(every[FINAL], common)
            found[method]["final"]["folds"] = sorted(common)
            share = _minutes(costs[FINAL], common) / _minutes(costs[method], common)
            found[method]["final"]["share_of_minutes"] = share
    if onto is not None and onto.is_file():
        found = fuller(found, json.loads(onto.read_text()))
    lines = [*table(found), "", *recalls(found), *comparisons(found)]
    out.mkdir(parents=True, exist_ok=True)
    (out / "accuracy.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "accuracy.md").write_text("\n".join(lines) + "\n")
    if found:
        (out / "accuracy.png").write_bytes(plot_accuracy(found))
        (out / "reliability.png").write_bytes(plot_reliability(found))
    return lines


def _finished_folds(
    out: Path, methods: Sequence[str], fold_count: int, keep: Path | None
) -> tuple[dict[str, dict[int, Fold]], dict[str, dict[int, dict[str, float]]]]:
    """Return the table and the cost of each finished fold by method, those of run folders before kept ones."""
    kept = read_folds(keep) if keep else {}
    every: dict[str, dict[int, Fold]] = {}
    costs: dict[str, dict[int, dict[str, float]]] = {}
    for method in methods:
        for number in range(fold_count):
            folder = out / method / f"fold{number}"
            if _finished(folder):
                fold = predictions(folder)
                cost = json.loads((folder / "cost.json").read_text()) | identity(folder)
                if keep:
                    write_fold(keep, method, number, fold, cost | {"rule": rule_of(folder)})
            elif number in kept.get(method, {}):
                fold, cost = kept[method][number]
            else:
                continue
            every.setdefault(method, {})[number] = fold
            costs.setdefault(method, {})[number] = cost
        refuse_mixtures(method, costs.get(method, {}))
    return every, costs


def _minutes(costs: Mapping[int, Mapping[str, float]], folds: Iterable[int]) -> float:
    return float(np.mean([costs[fold]["minutes"] for fold in folds]))


def _with_probe(every: Mapping[str, Mapping[int, Fold]]) -> dict[int, Fold]:
    """Return by fold a run that has a probe, one with its probabilities before one without."""
    best: dict[int, Fold] = {}
    for method, folds in every.items():
        for number, fold in folds.items():
            if method == STUDENT or "majority" not in fold:
                continue
            if number not in best or ("probe_probability" in fold and "probe_probability" not in best[number]):
                best[number] = fold
    return dict(sorted(best.items()))


def _finished(folder: Path) -> bool:
    return (folder / "test_predictions.csv").exists() and (folder / "cost.json").exists()


def table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the main table; figures of ranking stay empty where only decisions are known."""
    lines = [_row(HEADER), "|" + "---|" * len(HEADER)]
    return lines + [_row(_cells(name, summary)) for name, summary in found.items()]


def _cells(name: str, summary: Mapping[str, Any]) -> list[str]:
    metrics, ranked = summary["metrics"], summary["ranked"]
    melanoma = metrics["per_class"]["MEL"]
    ranking = [metrics["macro_auc"], melanoma["auc"], melanoma["sensitivity_at_90_specificity"]]
    return [
        f"{name} (of an earlier table)" if summary.get("earlier") else name,
        ", ".join(map(str, summary["folds"])),
        figure_of(metrics["balanced_accuracy"]),
        mean_of_folds(summary["balanced_accuracy_by_fold"]),
        figure_of(metrics["accuracy"]),
        *(figure_of(figure) if ranked else "" for figure in ranking),
        *(figure_of(summary[key]) if key in summary else "" for key in ("minus_probe", "accuracy_minus_majority")),
        f"{summary['minutes']:.0f}" if "minutes" in summary else "",
        f"{summary['peak_gb']:.1f}" if "peak_gb" in summary else "",
    ]


def mean_of_folds(values: Sequence[float]) -> str:
    """Return the mean over folds, and, of two or more, their standard deviation."""
    spread = f" (SD {np.std(values, ddof=1):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def recalls(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the table of each class's recall (sensitivity): what a rare class gains, and what melanoma pays."""
    if not found:
        return []
    first = next(iter(found.values()))["metrics"]["per_class"]
    codes = [f"{code} ({row['n_lesions']} lesions)" for code, row in first.items()]
    lines = [_row(["recall", "folds", *codes]), "|" + "---|" * (len(codes) + 2)]
    for name, summary in found.items():
        cells = [figure_of(row["sensitivity"], 2) for row in summary["metrics"]["per_class"].values()]
        lines.append(_row([name, ", ".join(map(str, summary["folds"])), *cells]))
    return lines


def comparisons(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the table of the final method minus each other one on the same folds, with the time that it takes."""
    both = "the largest probability named by both"
    header = [f"`{FINAL}` minus", "folds", "balanced accuracy", "accuracy", f"balanced accuracy, {both}"]
    header += [f"accuracy, {both}", f"minutes of `{FINAL}` by its minutes"]
    keys = [f"{metric}{rule}" for rule in ("", "_by_probability") for metric in ("balanced_accuracy", "accuracy")]
    rows = [
        [f"`{name}`", ", ".join(map(str, summary["final"].get("folds", summary["folds"])))]
        + [figure_of(summary["final"][key]) if key in summary["final"] else "" for key in keys]
        + [f"{summary['final']['share_of_minutes']:.2f}"]
        for name, summary in found.items()
        if "final" in summary
    ]
    return ["", _row(header), "|" + "---|" * len(header), *map(_row, rows)] if rows else []


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def figure_of(figure: Mapping[str, Any], digits: int = 3) -> str:
    if figure["value"] is None:
        return "n/a"
    limits = "" if figure["low"] is None else f" [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"
    return f"{figure['value']:.{digits}f}{limits}"


def plot_accuracy(found: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Draw balanced accuracy with its interval against minutes a fold; probe and majority are lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    for place, (name, summary) in enumerate(found.items()):
        score = summary["metrics"]["balanced_accuracy"]
        low, high = (score["value"] if score[key] is None else score[key] for key in ("low", "high"))
        label = f"{name} ({len(summary['folds'])} folds)" if len(summary["folds"]) > 1 else f"{name} (1 fold)"
        if "minutes" not in summary:
            axis.axhspan(low, high, color=f"C{place}", alpha=0.15, linewidth=0)
            axis.axhline(score["value"], color=f"C{place}", linestyle="--", label=label)
            continue
        spread = [[score["value"] - low], [high - score["value"]]]
        axis.errorbar(
            [summary["minutes"]], [score["value"]], spread, fmt="o", capsize=3, color=f"C{place}", label=label
        )
    axis.set(xlabel="minutes a fold", ylabel="balanced accuracy, 95 % interval over lesions")
    if any(summary.get("minutes", 0) > 0 for summary in found.values()):
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        ticks = [minutes for minutes in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if low <= minutes <= high]
        axis.set_xticks(ticks, [f"{minutes:g}" for minutes in ticks])
        axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _png(figure, axis)


def plot_reliability(found: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Draw how often the most probable class is right by how probable it is, a line for each method that ranks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="as sure as right")
    for name, summary in found.items():
        if summary["reliability"]:
            line, error = summary["reliability"], summary["metrics"]["ece"]["value"]
            label = name if error is None else f"{name} (ECE {error:.3f})"
            axis.plot(line["confidence"], line["accuracy"], marker="o", markersize=4, label=label)
    axis.set(xlabel="largest probability", ylabel="share that is right", xlim=(0, 1.01), ylim=(0, 1.01))
    axis.legend(frameon=False, fontsize=8)
    return _png(figure, axis)


def _png(figure: Any, axis: Any) -> bytes:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
