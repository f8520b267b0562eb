"""What several methods together would say of the folds that all of them have; nothing is trained.

    python benchmarks/ensemble.py --kept benchmarks/results/folds [--methods top full full_12 embedded full_260]
                                  [--out DIR] [--page docs/accuracy.md]

Reads the small files of `accuracy.py --keep`: each method with the decisions that it serves. Two ways to join them, of
which each would cost a pass a method: the mean of the probabilities, divided by the class shares of the lesions in all
other folds to name one class (biases by class that a method's bundle has stay in it; no temperature is fitted again),
and a vote of the decisions, where the mean decides a tie. The last row is no method: it knows the truth, and says how
many lesions at least one of them names rightly. By default these are all methods kept of fold 0 that name a class as
balanced accuracy asks for (the student does not). Intervals from a bootstrap over lesions within classes, not over
trainings; differences in pairs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_table import Fold, aligned  # all beside this file
from fold_views import scored
from folds import column, draws, markdown, mean_figure, write
from kept_folds import read_folds

from dermlens.evaluation.bootstrap import paired_difference

ANY = "one of them right (knows the truth)"
VOTE = "their vote"
Kept = Mapping[str, Mapping[int, tuple[Fold, Mapping[str, Any]]]]


@dataclass(frozen=True)
class Joined:
    """The lesions of the common folds in one order: truth, lesion (n,); by method decision (n,), probability (n, c).

    `prior` (n, classes) holds the class shares of the lesions in all folds but the lesion's own.
    """

    codes: tuple[str, ...]
    folds: tuple[int, ...]
    truth: np.ndarray
    lesion: np.ndarray
    prior: np.ndarray
    decision: dict[str, np.ndarray]
    probability: dict[str, np.ndarray]


def join(kept: Kept, methods: Sequence[str]) -> Joined:
    """Bring the common folds of these methods into one order.

    Raises:
        SystemExit: fewer than two methods, one that is not kept, no common fold, folds of other data, or no other fold
            in which all classes can be counted.
    """
    if len(set(methods)) < 2 or len(set(methods)) < len(methods):
        raise SystemExit(f"Name two or more different --methods: got {' '.join(methods)}.")
    missing = [name for name in methods if name not in kept]
    if missing:
        raise SystemExit(f"Nothing is kept of {', '.join(missing)}: there is {', '.join(kept) or 'nothing'}.")
    common = sorted(set.intersection(*(set(kept[name]) for name in methods)))
    if not common:
        raise SystemExit(f"{', '.join(methods)} have no fold in common.")
    first = {number: kept[methods[0]][number][0] for number in common}
    for name in methods:
        for number, fold in first.items():
            _refuse_others(kept[name][number][0], fold, f"Fold {number} of {name!r} and of {methods[0]!r}")
    codes = tuple(str(code) for code in first[common[0]]["codes"])
    priors = [_elsewhere(kept, number, len(codes)) for number in common]

    def ordered(name: str, key: str) -> np.ndarray:
        return np.concatenate([aligned(fold, kept[name][number][0], key) for number, fold in first.items()])

    return Joined(
        codes,
        tuple(common),
        column(first, "truth"),
        column(first, "lesion"),
        np.repeat(priors, [len(fold["truth"]) for fold in first.values()], axis=0),
        {name: ordered(name, "decision") for name in methods},
        {name: ordered(name, "probability") for name in methods},
    )


def _refuse_others(fold: Fold, first: Fold, which: str) -> None:
    """Refuse two folds that are not of the same lesions, diagnoses and classes."""

    def told(each: Fold) -> list[tuple[str, str]]:
        return sorted(zip(each["lesion"].tolist(), each["codes"][each["truth"]].tolist(), strict=True))

    if fold["codes"].tolist() != first["codes"].tolist() or told(fold) != told(first):
        raise SystemExit(f"{which} do not hold the same lesions and diagnoses: they were cut from different data.")


def _elsewhere(kept: Kept, number: int, classes: int) -> np.ndarray:
    """Return the class shares of the lesions in all kept folds but this one, each lesion once, (classes,)."""
    found = {
        lesion: truth
        for folds in kept.values()
        for other, (fold, _) in folds.items()
        if other != number
        for lesion, truth in zip(fold["lesion"].tolist(), fold["truth"].tolist(), strict=True)
    }
    counts = np.bincount(list(found.values()), minlength=classes)
    if not counts.all():
        raise SystemExit(f"The folds besides {number} do not hold every class; its shares are counted in them.")
    return np.asarray(counts / counts.sum())


def vote(decisions: Sequence[np.ndarray], weight: np.ndarray) -> np.ndarray:
    """Return the class that most name, (n,); of classes named as often that with the largest weight (n, classes)."""
    votes = np.sum([np.eye(weight.shape[1])[decision] for decision in decisions], axis=0)
    most = votes == votes.max(axis=1, keepdims=True)
    found: np.ndarray = np.where(most, weight, -np.inf).argmax(axis=1)
    return found


def compared(joined: Joined, against: str) -> dict[str, Any]:
    """Return the figures of each method, of their mean and vote, and of the lesions that any of them names rightly."""
    truth, codes = joined.truth, list(joined.codes)
    weights, lesions = draws(truth), joined.lesion.tolist()
    of_melanoma = weights * (truth == codes.index("MEL")) if "MEL" in codes else None
    mean = np.mean(list(joined.probability.values()), axis=0)
    decided = {**joined.decision, f"mean of the {len(joined.decision)}": (mean / joined.prior).argmax(axis=1)}
    decided[VOTE] = vote(list(joined.decision.values()), mean / joined.prior)
    right = np.any([decision == truth for decision in joined.decision.values()], axis=0)
    decided[ANY] = np.where(right, truth, joined.decision[against])
    found: dict[str, Any] = {}
    for name, decision in decided.items():
        probability = joined.probability.get(name, mean)
        row = scored(truth, probability, decision, weights, codes)
        if name in (VOTE, ANY):  # neither has a probability
            row = {key: row[key] for key in ("balanced_accuracy", "accuracy")}
        if of_melanoma is not None and name != ANY:
            row["melanoma_sensitivity"] = mean_figure(decision == truth, of_melanoma)
        if name not in (against, ANY):
            row["difference"] = paired_difference(truth, decision, decided[against], lesions)
        found[name] = row
    return found


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return the Markdown of `ensemble.json`."""
    columns = {
        "balanced accuracy": "balanced_accuracy",
        f"minus `{found['against']}`": "difference",
        "accuracy": "accuracy",
        "melanoma sensitivity": "melanoma_sensitivity",
        "melanoma AUC": "melanoma_auc",
        "log loss": "log_loss",
    }
    rows = [[name, *(row.get(key, "") for key in columns.values())] for name, row in found["answers"].items()]
    folds = ", ".join(map(str, found["folds"]))
    return [
        f"{found['lesions']} lesions, one image each, of {len(found['folds'])} of 5 folds ({folds}).",
        "",
        *markdown(["answers of", *columns], rows),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=Path, required=True, help="the --keep of benchmarks/accuracy.py")
    parser.add_argument("--methods", nargs="+", default=["top", "full", "full_12", "embedded", "full_260"])
    parser.add_argument("--against", default="embedded", help="the method that the others are set against")
    parser.add_argument("--out", type=Path, default=Path("runs/protocol"))
    parser.add_argument("--page", type=Path, help="also put the table between this benchmark's marks in this document")
    options = parser.parse_args()
    if options.against not in options.methods:
        raise SystemExit(f"--against {options.against} is not among --methods {' '.join(options.methods)}.")
    if not options.kept.is_dir():
        raise SystemExit(f"The folder {options.kept} does not exist.")
    joined = join(read_folds(options.kept), options.methods)
    found = {
        "methods": options.methods,
        "against": options.against,
        "folds": list(joined.folds),
        "lesions": len(joined.truth),
        "answers": compared(joined, options.against),
    }
    write(options, "ensemble", found, lines(found), None)


if __name__ == "__main__":
    main()
