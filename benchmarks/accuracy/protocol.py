"""The accuracy protocol: every method on the same five folds, stratified and grouped by lesion.

Both sets of the data folder are repaired and joined as for the embedded model (eight classes). A fold is tested once,
with one image of each lesion (the sharpest copy); all choices of a method (epoch, calibration) are made on lesions of
the other four folds. Each fold is a run folder of its own in `--runs` and resumes where it was stopped. Probe and most
common class are read from any method's folds. Without `--runs` nothing is trained: the table is that of the folds that
are kept (`benchmarks/folds.py`). A row with more folds in the earlier result stays.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import CONSOLE
from benchmarks.folds import FOLDS, Fold, Kept, aligned, keep_fold, read_folds, train_once
from benchmarks.report import cell, markdown
from dermlens.evaluation.bootstrap import paired_difference
from dermlens.evaluation.metrics import balanced_accuracy_score
from dermlens.evaluation.scores import score

INSIDE = {"train": 0.83, "select": 0.07, "calibrate": 0.10}
METHODS: dict[str, dict[str, Any]] = {
    "head": {"fine_tune": "head", "head_epochs": 30},
    "top": {"fine_tune": "top", "cut_block": 7, "views": 8, "epochs": 8, "learning_rate": 4e-4},
    "full": {"fine_tune": "full", "epochs": 6},
    "full_12": {"fine_tune": "full", "epochs": 12},
    "embedded": {"fine_tune": "full", "epochs": 12, "artefacts": 0.25, "patience": 0},  # the embedded model's recipe
}
PROBE, MAJORITY, BASE = "linear probe", "majority", "embedded"
CHOICES = {"methods": tuple(METHODS), "folds": range(FOLDS)}


def run(
    *,
    methods: tuple[str, ...] = ("embedded",),
    folds: tuple[int, ...] = (0,),
    runs: Path | None = None,
    data: Path | None = None,
    earlier: Mapping[str, Any],
) -> dict[str, Any]:
    """Train what is asked for and not there yet, and return the figures of all kept folds."""
    if runs is not None:
        if data is None:
            raise SystemExit("Training needs the data: name the folder with --data or DERMLENS_DATA.")
        for number, method in itertools.product(folds, methods):
            folder = runs / method / f"fold{number}"
            train_once(folder, train_fold, str(data), str(folder), number, METHODS[method])
            keep_fold(folder, method, number)
    return fuller(summary(read_folds()), earlier)


def train_fold(data: str, out: str, number: int, settings: Mapping[str, Any]) -> None:
    """Train one recipe on one fold in this process."""
    from dermlens.audit.findings import hash_records
    from dermlens.networks.backend import load_tensorflow
    from dermlens.training.split import assign_folds, assign_roles
    from scripts.default_model.dataset import default_dataset

    dataset = default_dataset(Path(data), CONSOLE)
    records = [replace(record, split=None) for record in dataset.records]
    hashes = hash_records(records)
    fold_of = assign_folds(records, hashes, folds=FOLDS, seed=0)
    rest = [i for i, fold in enumerate(fold_of) if fold != number]
    roles = assign_roles([records[i] for i in rest], [hashes[i] for i in rest], fractions=INSIDE, seed=0)
    role_of = dict(zip(rest, roles, strict=True))
    split = tuple(replace(record, split=role_of.get(i, "test")) for i, record in enumerate(records))
    load_tensorflow()
    from dermlens.training.recipe import make_recipe
    from dermlens.training.run import About, train

    about = About(name=Path(out).parent.name)
    train(replace(dataset, records=split), Path(out), make_recipe(dict(settings)), about, console=CONSOLE)


# --- figures ---------------------------------------------------------------------------------------------------


def summary(every: Mapping[str, Mapping[int, Kept]]) -> dict[str, Any]:
    """Return the figures of each method, with the simplest answers before them."""
    tables = {method: {n: fold for n, (fold, _) in folds.items()} for method, folds in every.items()}
    probes = {n: fold for folds in tables.values() for n, fold in folds.items() if "probe_probability" in fold}
    probes = dict(sorted(probes.items()))
    found: dict[str, Any] = {}
    if probes:
        found[MAJORITY] = pooled(probes, "majority", probes)
        found[PROBE] = pooled(probes, "probe", probes)
    for method, folds in tables.items():
        costs = [cost for _, cost in every[method].values()]
        found[method] = pooled(folds, "decision", probes)
        found[method]["minutes"] = float(np.mean([cost["minutes"] for cost in costs]))
        found[method]["peak_gb"] = max(cost["peak_gb"] for cost in costs)
        common = {n: fold for n, fold in folds.items() if n in tables.get(BASE, {})}
        if method != BASE and common:
            found[method]["minus_embedded"] = {"folds": sorted(common), **against(common, tables[BASE])}
    return found


def pooled(folds: Mapping[int, Fold], decision: str, probes: Mapping[int, Fold]) -> dict[str, Any]:
    """Score the pooled folds of one method; `decision` names whose decisions, `probes` the folds with a probe."""
    truth, decided, lesion = (
        np.concatenate([fold[key] for fold in folds.values()]) for key in ("truth", decision, "lesion")
    )
    codes = [str(code) for code in next(iter(folds.values()))["codes"]]
    name = {"decision": "probability", "probe": "probe_probability"}.get(decision, "")
    ranked = all(name in fold for fold in folds.values())
    shares = np.concatenate([fold[name] for fold in folds.values()]) if ranked else np.eye(len(codes))[decided]
    scored = score(truth, shares, decided, lesion, codes)
    melanoma = scored["per_class"]["MEL"] if ranked and "MEL" in codes else {}
    result = {
        "folds": sorted(folds),
        "lesions": len(truth),
        "by_fold": [float(balanced_accuracy_score(fold["truth"], fold[decision])) for fold in folds.values()],
        "balanced_accuracy": scored["balanced_accuracy"],
        "accuracy": scored["accuracy"],
        "auc": scored["macro_auc"] if ranked else None,
        "melanoma_auc": melanoma.get("auc"),
        "melanoma_sensitivity_at_90": melanoma.get("sensitivity_at_90_specificity"),
        "recall": {
            code: {"lesions": row["n_lesions"], **row["sensitivity"]} for code, row in scored["per_class"].items()
        },
    }
    if decision == "decision" and set(folds) <= set(probes):
        probe = np.concatenate([aligned(fold, probes[number], "probe") for number, fold in folds.items()])
        result["minus_probe"] = paired_difference(truth, decided, probe, lesion)
    return result


def against(folds: Mapping[int, Fold], base: Mapping[int, Fold]) -> dict[str, Any]:
    """Return by how much a method is better than the embedded recipe on the same folds, in pairs over lesions.

    Once with the decisions of both, once with the largest probability of both: folds of before the case mixes state
    probabilities at the mix of their training, and a method without class balance is not to lose by that alone.
    """

    def both(of: Callable[[Fold, Fold], np.ndarray]) -> np.ndarray:
        return np.concatenate([of(fold, base[number]) for number, fold in folds.items()])

    truth, lesion = both(lambda fold, _: fold["truth"]), both(lambda fold, _: fold["lesion"])
    decided = (both(lambda fold, _: fold["decision"]), both(lambda fold, other: aligned(fold, other, "decision")))
    largest = (
        both(lambda fold, _: fold["probability"].argmax(axis=1)),
        both(lambda fold, other: aligned(fold, other, "probability").argmax(axis=1)),
    )
    return {
        "balanced_accuracy": paired_difference(truth, *decided, lesion),
        "balanced_accuracy_by_probability": paired_difference(truth, *largest, lesion),
    }


def fuller(found: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows of two results, each method's from the one that has more of its folds; of equals the new one.

    Rows of the earlier one are marked: they were made on another day, maybe by other code.
    """
    rows = dict(found)
    for name, row in earlier.items():
        if name not in rows or len(rows[name]["folds"]) < len(row["folds"]):
            rows[name] = {**row, "earlier": True}
    first = [name for name in (MAJORITY, PROBE) if name in rows]
    return {name: rows[name] for name in [*first, *(name for name in rows if name not in first)]}


# --- tables ----------------------------------------------------------------------------------------------------


def table(found: Mapping[str, Any]) -> str:
    """Return a line for each method."""
    header = ["method", "folds", "balanced accuracy", "mean of folds (SD)", "accuracy", "melanoma AUC", "minus probe"]
    rows = []
    for name, row in found.items():
        cells = [row["balanced_accuracy"], _mean_of_folds(row["by_fold"]), row["accuracy"], row["melanoma_auc"] or ""]
        cost = [f"{row['minutes']:.0f}", f"{row['peak_gb']:.1f}"] if "minutes" in row else ["", ""]
        label = f"{name} (of an earlier day)" if row.get("earlier") else name
        rows.append([label, _numbers(row["folds"]), *cells, row.get("minus_probe", ""), *cost])
    return markdown([*header, "minutes a fold", "peak GB"], rows)


def recalls(found: Mapping[str, Any]) -> str:
    """Return each class's recall (sensitivity): what a rare class gains, and what melanoma pays."""
    first = next(iter(found.values()))["recall"]
    header = ["recall", *(f"{code} ({row['lesions']})" for code, row in first.items())]
    rows = [[name, *(cell(part, 2) for part in row["recall"].values())] for name, row in found.items()]
    return markdown(header, [row for row in rows if row[0] in (PROBE, "top", BASE)])


def pairs(found: Mapping[str, Any]) -> str:
    """Return each method minus the embedded recipe on the folds that both have."""
    rows = [
        [name, _numbers(pair["folds"]), pair["balanced_accuracy"], pair["balanced_accuracy_by_probability"]]
        for name, row in found.items()
        if (pair := row.get("minus_embedded"))
    ]
    return markdown(["minus `embedded`, paired", "folds", "balanced accuracy", "the same, largest probability"], rows)


def _numbers(folds: list[int]) -> str:
    return ", ".join(map(str, folds))


def _mean_of_folds(values: list[float]) -> str:
    spread = f" ({np.std(values, ddof=1):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"
