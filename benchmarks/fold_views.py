"""What test-time views are worth over the folds of the accuracy protocol: each fold's network on its own test lesions.

    DERMLENS_DATA=/path/to/data python benchmarks/fold_views.py --runs runs/accuracy --method top
                                                                [--out DIR] [--page docs/accuracy.md]

As `views.py` does for the embedded model, with every lesion of the protocol: 1, 2, 4 and 8 views (`predict --views`),
the same calibration and rule, fitted by each fold's bundle on the plain view. Besides, choices that leave out the half
turn: plain and mirror image, and all but the half turns. Differences in pairs over the lesions of all folds. The last
columns fit the temperature anew on four fifths of the lesions and measure on the rest, since a mean is less sure than
one view. The eight passes of a fold are kept beside it, so it can be stopped after any fold.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from folds import OutOfFold, arguments, column, draws, markdown, mean_figure, read_folds, write
from rich.console import Console

from dermlens.bundle.decision import decide, probabilities
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import paired_difference, sampled_figure
from dermlens.evaluation.calibration import fit_calibration
from dermlens.inference.predictor import VIEWS

CHOICES: dict[str, tuple[int, ...]] = {
    **{str(count): tuple(range(count)) for count in VIEWS},
    "2, plain and mirror image": (0, 4),
    "6, no half turns": (0, 2, 3, 4, 6, 7),
}
PLAIN = "1"
PARTS = 5


def compared(folds: Mapping[int, OutOfFold], *, seed: int) -> dict[str, Any]:
    """Return the figures of every choice of views, each in pairs with the plain view."""
    tables = {number: part.table for number, part in folds.items()}
    truth, lesions = column(tables, "truth"), column(tables, "lesion").tolist()
    weights, codes = draws(truth, seed=seed), next(iter(folds.values())).bundle.codes
    shares = {name: [part.probability(views) for part in folds.values()] for name, views in CHOICES.items()}
    decided = {
        name: np.concatenate(
            [
                decide(share, part.bundle.calibration, part.bundle.decision_rule)
                for share, part in zip(each, folds.values(), strict=True)
            ]
        )
        for name, each in shares.items()
    }
    prior = np.mean([part.bundle.calibration.prior for part in folds.values()], axis=0)
    found = {}
    for name, each in shares.items():
        probability = np.concatenate(each)
        again = refitted(probability, truth, prior / prior.sum(), seed=seed)
        figures = scored(truth, probability, decided[name], weights, list(codes))
        found[name] = figures | {"refitted": calibration(truth, again, weights)}
        if name != PLAIN:
            pair = (truth, decided[name], decided[PLAIN], lesions)
            found[name]["minus_plain"] = paired_difference(*pair, seed=seed)
            found[name]["accuracy_minus_plain"] = paired_difference(*pair, "accuracy", seed=seed)
    return {"lesions": len(truth), "seed": seed, "views": found}


def scored(
    truth: np.ndarray, probability: np.ndarray, decision: np.ndarray, weights: np.ndarray, codes: list[str]
) -> dict[str, Any]:
    """Return accuracy, balanced accuracy, melanoma AUC, ECE and log loss over the resamples of `weights`."""
    counts = metrics.class_counts(truth, decision, len(codes), weights)
    balanced = metrics.sensitivity(counts)[:, np.unique(truth)].mean(axis=1)
    figures = {
        "balanced_accuracy": sampled_figure(balanced, reason="no lesions"),
        "accuracy": sampled_figure(metrics.accuracy(counts), reason="no lesions", lesions=len(truth)),
        **calibration(truth, probability, weights),
    }
    if "MEL" in codes:
        melanoma = codes.index("MEL")
        curve = (metrics.roc(truth == melanoma, probability[:, melanoma], part) for part in np.array_split(weights, 10))
        areas = np.concatenate([metrics.area(each) for each in curve])
        figures["melanoma_auc"] = sampled_figure(areas, reason="no melanoma")
    return figures


def calibration(truth: np.ndarray, probability: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Return expected calibration error and log loss."""
    confidence, right = metrics.top_label(truth, probability)
    bins = metrics.equal_mass_bins(confidence)
    return {
        "ece": sampled_figure(metrics.calibration_error(confidence, right, bins, weights), reason="no lesions"),
        "log_loss": mean_figure(metrics.log_errors(truth, probability), weights),
    }


def refitted(probability: np.ndarray, truth: np.ndarray, prior: np.ndarray, *, seed: int) -> np.ndarray:
    """Return the probabilities with one more temperature, fitted without the lesion that it is applied to."""
    logits, found = np.log(np.maximum(probability, 1e-30)), np.empty_like(probability)
    part = np.random.default_rng(seed).integers(0, PARTS, len(truth))
    for number in range(PARTS):
        known, new = part != number, part == number
        fit = fit_calibration(logits[known], truth[known], prior=prior.tolist(), training_prior=prior.tolist())
        found[new] = probabilities(logits[new], fit)
    return found


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return the Markdown of `fold_views.json`."""
    folds = ", ".join(map(str, found["folds"]))
    keys = ("balanced_accuracy", "minus_plain", "accuracy", "accuracy_minus_plain", "melanoma_auc", "ece", "log_loss")
    rows = []
    for name, row in found["views"].items():
        again = (row["refitted"][key] for key in ("ece", "log_loss"))
        rows.append([name, *(row.get(key, "") for key in keys), *again])
    header = [
        "views",
        "balanced accuracy",
        "minus plain",
        "accuracy",
        "accuracy minus plain",
        "melanoma AUC",
        "ECE",
        "log loss",
    ]
    return [
        f"{found['lesions']} lesions, one image each, of {len(found['folds'])} of 5 folds ({folds}) of "
        f"`{found['method']}`, seed {found['seed']}.",
        "",
        *markdown([*header, "ECE, temperature fitted anew", "log loss, temperature fitted anew"], rows),
        "",
        "![Balanced accuracy by number of views](fold_views.png)",
    ]


def plot(found: Mapping[str, Any]) -> bytes:
    """Draw the paired difference in balanced accuracy and in accuracy by choice of views, as PNG bytes."""
    from matplotlib.figure import Figure

    rows = {name: row for name, row in found["views"].items() if name != PLAIN}
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    for place, (key, label) in enumerate((("minus_plain", "balanced accuracy"), ("accuracy_minus_plain", "accuracy"))):
        at = np.arange(len(rows)) + 0.2 * (place - 0.5)
        value, low, high = (np.array([row[key][name] for row in rows.values()]) for name in ("value", "low", "high"))
        axis.errorbar(value, at, xerr=[value - low, high - value], fmt="o", capsize=3, label=label)
    axis.axvline(0, color="grey", linewidth=1)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set(xlabel="difference to one view, in pairs, 95 % interval over lesions", ylabel="views")
    axis.invert_yaxis()
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folds = read_folds(options, max(VIEWS), Console(stderr=True, width=120))
    found = {"method": options.method, "folds": sorted(folds), **compared(folds, seed=options.seed)}
    write(options, "fold_views", found, lines(found), plot(found))


if __name__ == "__main__":
    main()
