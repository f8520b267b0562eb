"""Trust on the pooled out-of-fold predictions of the accuracy protocol, cross-fitted by lesion.

    DERMLENS_DATA=/path/to/data python benchmarks/pooled.py --runs runs/accuracy --method top
                                                            [--out DIR] [--page docs/trust.md]

The held-out part of one split is too small for the rare classes; over five folds every lesion is tested once, by a
network that has not met it. The networks differ in the scale of their logits, so each fold's scores first pass through
that fold's own bundle: temperature, priors and, where it has them, biases, fitted on its calibrate role. What comes out
is pooled, and calibrated a second time: one temperature for all (a bias for each class besides, for comparison), then
class-conditional limits and thresholds of referral, fitted on four fifths of the lesions and measured on the rest; in
several repeats every lesion is measured once a repeat by a fit that did not see it. Figures "as served" use no second
fit: each bundle alone, its own limits and thresholds, on test lesions that took no part in them.

One image of each lesion. Coverage has Wilson's 95 % interval over lesions, all else a bootstrap's.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from accuracy_table import reliability
from folds import OutOfFold, arguments, column, draws, markdown, mean_figure, read_folds, share_figure, write
from rich.console import Console

from dermlens.bundle.decision import DecisionRule, decide, probabilities, softmax
from dermlens.bundle.trust import Trust
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import sampled_figure
from dermlens.evaluation.calibration import fit_calibration
from dermlens.evaluation.conformal import LEVEL, fit_sets
from dermlens.evaluation.thresholds import aims, fit_points

ECE_AIM, COVERAGE_AIM, CLASS_AIM = 0.03, 0.02, 0.8
RAW, SERVED, FITTED, BIASED = (
    "the network's softmax",
    "its own bundle's calibration, as served",
    "then one temperature for all, cross-fitted",
    "then a temperature and a bias for each class, cross-fitted",
)


@dataclass(frozen=True)
class Pool:
    """All lesions in one order: `probability` as served, `inside` (n, classes) the served sets or None.

    `prior` is the mean of the bundles'; `called` is by operating point which lesions the bundles refer, (n,) 0 or 1.
    """

    codes: tuple[str, ...]
    truth: np.ndarray
    raw: np.ndarray
    probability: np.ndarray
    decision: np.ndarray
    inside: np.ndarray | None
    called: Mapping[str, np.ndarray]
    prior: tuple[float, ...]
    rule: DecisionRule


@dataclass(frozen=True)
class Crossfit:
    """Means over the repeats, of fits that did not see the lesion; shapes as in `Pool`; `held`, `size` (n,)."""

    probability: np.ndarray
    biased: np.ndarray
    held: np.ndarray
    size: np.ndarray
    called: Mapping[str, np.ndarray]
    thresholds: Mapping[str, list[float]]


def pool_folds(folds: Mapping[int, OutOfFold]) -> Pool:
    """Put the folds below each other."""
    parts = list(folds.values())
    shares = [part.probability() for part in parts]
    trusts = [Trust.read({**part.bundle.card, "trust": _fitted(part)}, {}) for part in parts]
    inside, called = [], []
    for part, share, trust in zip(parts, shares, trusts, strict=True):
        if trust.sets is not None:
            inside.append(trust.sets.apply(share, part.bundle.calibration.prior, part.table["decision"]))
        called.append(
            {
                point.name: _score(share, part.bundle.codes, point.codes) >= point.threshold
                for point in trust.operating_points
            }
        )
    names = [name for name in called[0] if all(name in row for row in called)]
    prior = np.mean([part.bundle.calibration.prior for part in parts], axis=0)
    tables = {number: part.table for number, part in folds.items()}
    return Pool(
        codes=tuple(parts[0].bundle.codes),
        truth=column(tables, "truth"),
        raw=np.concatenate([softmax(part.logits[0].astype(np.float64)) for part in parts]),
        probability=np.concatenate(shares),
        decision=column(tables, "decision"),
        inside=np.concatenate(inside) if len(inside) == len(parts) else None,
        called={name: np.concatenate([row[name] for row in called]).astype(float) for name in names},
        prior=tuple((prior / prior.sum()).tolist()),
        rule=parts[0].bundle.decision_rule,
    )


def _fitted(part: OutOfFold) -> dict[str, Any]:
    """The trust facts without the novelty score, whose arrays are not needed here."""
    return {**part.bundle.card["trust"], "novelty": None}


def _score(probability: np.ndarray, codes: tuple[str, ...], members: tuple[str, ...]) -> np.ndarray:
    total: np.ndarray = probability[:, [codes.index(code) for code in members]].sum(axis=1)
    return total


def crossfit(pool: Pool, *, parts: int, repeats: int, seed: int) -> Crossfit:
    """Fit on all parts of the lesions but one, measure on that one, for every part, in several repeats."""
    logits = np.log(np.maximum(pool.probability, 1e-30))
    n, lesions = len(pool.truth), np.arange(len(pool.truth))
    probability, biased = np.zeros_like(logits), np.zeros_like(logits)
    held, size = np.zeros(n), np.zeros(n)
    called: dict[str, np.ndarray] = {}
    thresholds: dict[str, list[float]] = {}
    for repeat in range(repeats):
        part = np.random.default_rng([seed, repeat]).integers(0, parts, n)
        for number in range(parts):
            known, new = np.flatnonzero(part != number), np.flatnonzero(part == number)
            fit = fit_calibration(logits[known], pool.truth[known], prior=pool.prior, training_prior=pool.prior)
            p = probabilities(logits, fit)
            sets, _ = fit_sets(p[known], pool.truth[known], lesions[: len(known)], pool.prior)
            inside = sets.apply(p[new], pool.prior, decide(p[new], fit, pool.rule))
            held[new] += inside[np.arange(len(new)), pool.truth[new]] / repeats
            size[new] += inside.sum(axis=1) / repeats
            probability[new] += p[new] / repeats
            fit = fit_calibration(
                logits[known], pool.truth[known], prior=pool.prior, training_prior=pool.prior, bias=True
            )
            biased[new] += probabilities(logits[new], fit) / repeats
            for point in fit_points(p[known], pool.truth[known], lesions[: len(known)], pool.codes):
                refer = _score(p[new], pool.codes, tuple(point["codes"])) >= point["threshold"]
                called.setdefault(point["name"], np.zeros(n))[new] += refer / repeats
                thresholds.setdefault(point["name"], []).append(point["threshold"])
    return Crossfit(probability, biased, held, size, called, thresholds)


def calibrated(probability: np.ndarray, pool: Pool, weights: np.ndarray) -> dict[str, Any]:
    """Return ECE of the largest probability and of each aim's (such as melanoma), Brier and log loss, with limits."""

    def error(score: np.ndarray, right: np.ndarray) -> dict[str, Any]:
        bins = metrics.equal_mass_bins(score)
        return sampled_figure(metrics.calibration_error(score, right, bins, weights), reason="no lesions")

    found = {"ece": error(*metrics.top_label(pool.truth, probability))}
    for aim, members in aims(pool.codes).items():
        positive = np.isin(pool.truth, [pool.codes.index(code) for code in members])
        found[f"ece_{aim}"] = error(_score(probability, pool.codes, members), positive)
    return found | {
        "brier": mean_figure(metrics.squared_errors(pool.truth, probability), weights),
        "log_loss": mean_figure(metrics.log_errors(pool.truth, probability), weights),
    }


def coverage(held: np.ndarray, size: np.ndarray, pool: Pool, weights: np.ndarray) -> dict[str, Any]:
    """Return coverage and mean size of the sets, over all and by class."""

    def row(rows: np.ndarray) -> dict[str, Any]:
        figures = {"coverage": share_figure(held[rows]), "mean_size": mean_figure(size[rows], weights[:, rows])}
        return {"lesions": len(rows), **figures}

    by_class = {code: row(np.flatnonzero(pool.truth == c)) for c, code in enumerate(pool.codes)}
    return {"all": row(np.arange(len(held))), "per_class": by_class}


def referral(called: Mapping[str, np.ndarray], pool: Pool, weights: np.ndarray) -> dict[str, Any]:
    """Return by operating point the sensitivity reached, the specificity that it costs, and the share referred."""
    members = aims(pool.codes)
    found = {}
    for name, refer in called.items():
        codes = members[name.rpartition("_")[0]]
        positive = np.isin(pool.truth, [pool.codes.index(code) for code in codes])
        found[name] = {
            "codes": list(codes),
            "positive_lesions": int(positive.sum()),
            "sensitivity": mean_figure(refer[positive], weights[:, positive]),
            "specificity": mean_figure(1 - refer[~positive], weights[:, ~positive]),
            "referred": mean_figure(refer, weights),
        }
    return found


def verdict(ece: float, sets: Mapping[str, Any]) -> dict[str, Any]:
    """Say of each aim whether it is reached; a class fails when its whole interval lies under 80 %."""
    rows = {code: row["coverage"] for code, row in sets["per_class"].items() if row["lesions"]}
    under = [code for code, figure in rows.items() if figure["high"] < CLASS_AIM]
    return {
        "ece_at_most_0.03": ece <= ECE_AIM,
        "coverage_within_2_points": abs(sets["all"]["coverage"]["value"] - LEVEL) <= COVERAGE_AIM,
        "no_class_under_80": not under,
        "classes_under_80": under,
        "classes_whose_interval_reaches_under_80": [c for c, figure in rows.items() if figure["low"] < CLASS_AIM],
    }


def report(pool: Pool, *, parts: int, repeats: int, seed: int) -> tuple[dict[str, Any], Crossfit]:
    """Return what `pooled.json` holds of the lesions, and the fits behind it."""
    fitted, weights = crossfit(pool, parts=parts, repeats=repeats, seed=seed), draws(pool.truth, seed=seed)
    shares = {RAW: pool.raw, SERVED: pool.probability, FITTED: fitted.probability, BIASED: fitted.biased}
    calibration = {name: calibrated(share, pool, weights) for name, share in shares.items()}
    sets = {"cross-fitted": coverage(fitted.held, fitted.size, pool, weights)}
    if pool.inside is not None:
        held = pool.inside[np.arange(len(pool.truth)), pool.truth].astype(float)
        sets["as served"] = coverage(held, pool.inside.sum(axis=1).astype(float), pool, weights)
    points = {"cross-fitted": referral(fitted.called, pool, weights), "as served": referral(pool.called, pool, weights)}
    for name, values in fitted.thresholds.items():
        points["cross-fitted"][name]["thresholds"] = {"mean": float(np.mean(values)), "of": [min(values), max(values)]}
    found = {
        "lesions": len(pool.truth),
        "parts": parts,
        "repeats": repeats,
        "seed": seed,
        "level": LEVEL,
        "calibration": calibration,
        "sets": sets,
        "referral": points,
        "verdict": verdict(calibration[FITTED]["ece"]["value"], sets["cross-fitted"]),
    }
    return found, fitted


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return the Markdown of `pooled.json`."""
    folds, said = ", ".join(map(str, found["folds"])), found["verdict"]
    words = {True: "reached", False: "missed"}
    first = next(iter(found["calibration"].values()))
    names = {"ece": "ECE", "ece_malignant": "ECE, malignant", "ece_melanoma": "ECE, melanoma", "brier": "Brier"}
    names = {key: name for key, name in {**names, "log_loss": "log loss"}.items() if key in first}
    low = ", ".join(said["classes_whose_interval_reaches_under_80"]) or "none"
    return [
        f"{found['lesions']} lesions, one image each, of {len(found['folds'])} of 5 folds ({folds}) of "
        f"`{found['method']}`; {found['parts']} parts, {found['repeats']} repeats, seed {found['seed']}.",
        f"Calibration error at most {ECE_AIM}: {words[said['ece_at_most_0.03']]}. Coverage within two points of "
        f"{found['level']:.0%}: {words[said['coverage_within_2_points']]}.",
        f"No class whose interval lies under {CLASS_AIM:.0%}: {words[said['no_class_under_80']]} "
        f"(classes whose interval begins under it: {low}).",
        "",
        *markdown(
            ["probabilities", *names.values()],
            [[name, *(row[key] for key in names)] for name, row in found["calibration"].items()],
        ),
        "",
        *_set_lines(found["sets"]),
        "",
        *_point_lines(found["referral"]),
        "",
        "![Reliability before and after](pooled.png)",
    ]


def _set_lines(sets: Mapping[str, Any]) -> list[str]:
    header, rows = ["class", "lesions"], []
    for kind in sets:
        header += [f"coverage, {kind}", f"mean size, {kind}"]
    for name in ("all", *sets["cross-fitted"]["per_class"]):
        each = [part["all"] if name == "all" else part["per_class"][name] for part in sets.values()]
        rows.append([name, each[0]["lesions"], *(row[key] for row in each for key in ("coverage", "mean_size"))])
    return markdown(header, rows)


def _point_lines(points: Mapping[str, Any]) -> list[str]:
    rows = []
    for kind, each in points.items():
        for name, row in each.items():
            threshold = f"{row['thresholds']['mean']:.3f}" if "thresholds" in row else "each bundle's"
            rates = [row[key] for key in ("sensitivity", "specificity", "referred")]
            rows.append([name, kind, f"{' '.join(row['codes'])} ({row['positive_lesions']})", threshold, *rates])
    header = ["operating point", "chosen", "classes (lesions)", "threshold", "sensitivity", "specificity", "referred"]
    return markdown(header, rows) if rows else []


def plot(pool: Pool, fitted: np.ndarray) -> bytes:
    """Draw reliability of the largest probability, and of each aim's, before and after, as PNG bytes."""
    from matplotlib.figure import Figure

    from dermlens.reporting.plots import plot_reliability

    watched = aims(pool.codes)
    figure = Figure(figsize=(4.4 * (1 + len(watched)), 4.2), layout="constrained")
    axes = figure.subplots(1, 1 + len(watched), squeeze=False)[0]
    plot_reliability(reliability(pool.truth, pool.raw), reliability(pool.truth, fitted), axis=axes[0])
    for axis, (aim, members) in zip(axes[1:], watched.items(), strict=True):
        positive = np.isin(pool.truth, [pool.codes.index(code) for code in members])
        pairs = [_line(_score(share, pool.codes, members), positive) for share in (pool.raw, fitted)]
        plot_reliability(*pairs, axis=axis)
        axis.set(xlabel=f"probability of {aim}", ylabel=f"share that is {aim}")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _line(score: np.ndarray, right: np.ndarray) -> dict[str, list[float]]:
    bins = metrics.equal_mass_bins(score, 10)
    rows = [bins == number for number in np.unique(bins)]
    return {
        "confidence": [float(score[row].mean()) for row in rows],
        "accuracy": [float(right[row].mean()) for row in rows],
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--parts", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folds = read_folds(options, 1, Console(stderr=True, width=120))
    pool = pool_folds(folds)
    found, fitted = report(pool, parts=options.parts, repeats=options.repeats, seed=options.seed)
    bundles = {str(number): part.bundle.sha256 for number, part in folds.items()}
    found = {"method": options.method, "folds": sorted(folds), "bundles": bundles, **found}
    write(options, "pooled", found, lines(found), plot(pool, fitted.probability))


if __name__ == "__main__":
    main()
