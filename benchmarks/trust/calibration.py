"""Calibration, prediction sets and referral on the pooled folds of the protocol, cross-fitted by lesion.

The test role of one split is too small for the rare classes; over five folds every lesion is tested once, by a network
that has not met it. Each fold's probabilities are those of its own bundle ("as served"): temperature, priors and, where
it has them, biases, fitted on its calibrate role. They are pooled and calibrated a second time: one temperature for all
(a bias for each class besides, for comparison), then class-conditional limits and thresholds of referral, fitted on
four fifths of the lesions and measured on the rest; in several repeats every lesion is measured once a repeat by a fit
that did not see it. Coverage has Wilson's 95 % interval over lesions, all else a bootstrap's. It reads the kept folds.

The aims: calibration error at most 0.03; coverage within two points of 90 %; no class whose interval lies under 80 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.folds import Kept, column, draws, mean_figure, read_method, source_of
from benchmarks.report import markdown
from dermlens.bundle.decision import DecisionRule, decide, probabilities
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import sampled_figure
from dermlens.evaluation.calibration import fit_calibration
from dermlens.evaluation.conformal import LEVEL, fit_sets
from dermlens.evaluation.thresholds import aims, fit_points
from dermlens.intervals import wilson_interval

ECE_AIM, COVERAGE_AIM, CLASS_AIM = 0.03, 0.02, 0.8
SERVED, FITTED, BIASED = (
    "as served",
    "then one temperature for all, cross-fitted",
    "then a temperature and biases by class, cross-fitted",
)


@dataclass(frozen=True)
class Pool:
    """All lesions in one order: `probability` (n, classes) as served; `prior` is the mean of the bundles'."""

    codes: tuple[str, ...]
    truth: np.ndarray
    probability: np.ndarray
    prior: tuple[float, ...]
    rule: DecisionRule


@dataclass(frozen=True)
class Crossfit:
    """Means over the repeats, of fits that did not see the lesion; `inside`, `size` (n,) of the sets."""

    probability: np.ndarray
    biased: np.ndarray
    inside: np.ndarray
    size: np.ndarray
    referred: Mapping[str, np.ndarray]
    thresholds: Mapping[str, list[float]]


def run(*, method: str = "embedded", parts: int = 5, repeats: int = 4, seed: int = 0) -> dict[str, Any]:
    """Return the figures of all kept folds of a method."""
    folds = read_method(method)
    found = report(pool_folds(folds), parts=parts, repeats=repeats, seed=seed)
    return {"method": method, "folds": sorted(folds), **found}


def pool_folds(folds: Mapping[int, Kept]) -> Pool:
    """Put the folds below each other."""
    tables, rules = {n: table for n, (table, _) in folds.items()}, [cost["rule"] for _, cost in folds.values()]
    prior = np.mean([rule["prior"] for rule in rules], axis=0)
    return Pool(
        codes=tuple(str(code) for code in next(iter(tables.values()))["codes"]),
        truth=column(tables, "truth"),
        probability=column(tables, "probability"),
        prior=tuple((prior / prior.sum()).tolist()),
        rule=DecisionRule(rules[0]["kind"], rules[0]["strength"]),
    )


def crossfit(pool: Pool, *, parts: int, repeats: int, seed: int) -> Crossfit:
    """Fit on all parts of the lesions but one, measure on that one, for every part, in several repeats."""
    logits = np.log(np.maximum(pool.probability, 1e-30))
    n, lesions = len(pool.truth), np.arange(len(pool.truth))
    probability, biased = np.zeros_like(logits), np.zeros_like(logits)
    inside, size = np.zeros(n), np.zeros(n)
    referred: dict[str, np.ndarray] = {}
    thresholds: dict[str, list[float]] = {}
    for repeat in range(repeats):
        part = np.random.default_rng([seed, repeat]).integers(0, parts, n)
        for number in range(parts):
            known, new = np.flatnonzero(part != number), np.flatnonzero(part == number)
            fit = fit_calibration(logits[known], pool.truth[known], prior=pool.prior, training_prior=pool.prior)
            p = probabilities(logits, fit)
            sets, _ = fit_sets(p[known], pool.truth[known], lesions[: len(known)], pool.prior)
            chosen = sets.apply(p[new], pool.prior, decide(p[new], fit, pool.rule))
            inside[new] += chosen[np.arange(len(new)), pool.truth[new]] / repeats
            size[new] += chosen.sum(axis=1) / repeats
            probability[new] += p[new] / repeats
            with_bias = fit_calibration(
                logits[known], pool.truth[known], prior=pool.prior, training_prior=pool.prior, bias=True
            )
            biased[new] += probabilities(logits[new], with_bias) / repeats
            for point in fit_points(p[known], pool.truth[known], lesions[: len(known)], pool.codes):
                refer = _score(p[new], pool.codes, tuple(point["codes"])) >= point["threshold"]
                referred.setdefault(point["name"], np.zeros(n))[new] += refer / repeats
                thresholds.setdefault(point["name"], []).append(point["threshold"])
    return Crossfit(probability, biased, inside, size, referred, thresholds)


def _score(probability: np.ndarray, codes: tuple[str, ...], members: tuple[str, ...]) -> np.ndarray:
    total: np.ndarray = probability[:, [codes.index(code) for code in members]].sum(axis=1)
    return total


def calibrated(probability: np.ndarray, pool: Pool, weights: np.ndarray) -> dict[str, Any]:
    """Return ECE of the largest probability and of each aim's (such as melanoma), Brier and log loss."""

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


def coverage(inside: np.ndarray, size: np.ndarray, pool: Pool, weights: np.ndarray) -> dict[str, Any]:
    """Return coverage and mean size of the sets, over all and by class."""

    def row(rows: np.ndarray) -> dict[str, Any]:
        value = float(np.mean(inside[rows])) if len(rows) else None
        low, high = (None, None) if value is None else wilson_interval(value, len(rows))
        share = {"value": value, "low": low, "high": high}
        return {"lesions": len(rows), "coverage": share, "mean_size": mean_figure(size[rows], weights[:, rows])}

    by_class = {code: row(np.flatnonzero(pool.truth == c)) for c, code in enumerate(pool.codes)}
    return {"all": row(np.arange(len(inside))), **by_class}


def referral(fitted: Crossfit, pool: Pool, weights: np.ndarray) -> dict[str, Any]:
    """Return by operating point the sensitivity reached, the specificity that it costs, and the share referred."""
    members = aims(pool.codes)
    found = {}
    for name, refer in fitted.referred.items():
        codes = members[name.rpartition("_")[0]]
        positive = np.isin(pool.truth, [pool.codes.index(code) for code in codes])
        found[name] = {
            "codes": list(codes),
            "positive_lesions": int(positive.sum()),
            "threshold": float(np.mean(fitted.thresholds[name])),
            "sensitivity": mean_figure(refer[positive], weights[:, positive]),
            "specificity": mean_figure(1 - refer[~positive], weights[:, ~positive]),
            "referred": mean_figure(refer, weights),
        }
    return found


def verdict(ece: float, sets: Mapping[str, Any]) -> dict[str, bool]:
    """Say of each aim whether it is reached; a class fails when its whole interval lies under 80 %."""
    classes = [row["coverage"] for name, row in sets.items() if name != "all" and row["lesions"]]
    return {
        f"calibration error at most {ECE_AIM}": ece <= ECE_AIM,
        f"coverage within two points of {LEVEL:.0%}": abs(sets["all"]["coverage"]["value"] - LEVEL) <= COVERAGE_AIM,
        f"no class whose interval lies under {CLASS_AIM:.0%}": all(row["high"] >= CLASS_AIM for row in classes),
    }


def report(pool: Pool, *, parts: int, repeats: int, seed: int) -> dict[str, Any]:
    """Return the figures of a pool."""
    fitted, weights = crossfit(pool, parts=parts, repeats=repeats, seed=seed), draws(pool.truth, seed=seed)
    shares = {SERVED: pool.probability, FITTED: fitted.probability, BIASED: fitted.biased}
    calibration = {name: calibrated(share, pool, weights) for name, share in shares.items()}
    sets = coverage(fitted.inside, fitted.size, pool, weights)
    return {
        "lesions": len(pool.truth),
        "parts": parts,
        "repeats": repeats,
        "seed": seed,
        "calibration": calibration,
        "sets": sets,
        "referral": referral(fitted, pool, weights),
        "verdict": verdict(calibration[SERVED]["ece"]["value"], sets),
    }


def table(found: Mapping[str, Any]) -> str:
    """Return calibration, sets by class, referral, and which aims are reached."""
    first = next(iter(found["calibration"].values()))
    names = {"ece": "ECE", "ece_melanoma": "ECE, melanoma"}
    names = {key: name for key, name in names.items() if key in first}
    probability = [
        [name, *(row[key] for key in names), f"{row['log_loss']['value']:.3f}"]
        for name, row in found["calibration"].items()
    ]
    sets = [
        [name, row["lesions"], row["coverage"], f"{row['mean_size']['value']:.2f}"]
        for name, row in found["sets"].items()
    ]
    points = [
        [name, f"{row['threshold']:.3f}", row["sensitivity"], row["specificity"], row["referred"]]
        for name, row in found["referral"].items()
    ]
    aims_said = "; ".join(f"{aim}: {'reached' if yes else 'missed'}" for aim, yes in found["verdict"].items())
    parts = [
        f"{source_of(found['method'], found['folds'], found['lesions'])} {aims_said[0].upper()}{aims_said[1:]}.",
        markdown(["probabilities", *names.values(), "log loss"], probability),
        markdown(["class", "lesions", "coverage of the sets", "mean size"], sets),
    ]
    if points:
        header = ["operating point", "mean threshold", "sensitivity", "specificity", "referred"]
        parts.append(markdown(header, points))
    return "\n\n".join(parts)
