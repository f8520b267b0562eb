"""Calibration, prediction sets and referral on the pooled folds of the protocol, cross-fitted by lesion.

The test role of one split is too small for the rare classes; over five folds every lesion is tested once, by a network
that has not met it. Each fold's probabilities are those of its own bundle ("as served"), brought to the equal case mix
by Bayes' rule: its temperature was fitted on its calibrate role. They are pooled and calibrated a second time: one
temperature for all (a bias for each class besides, for comparison), then limits of the sets by both methods and
thresholds of referral, fitted on four fifths of the lesions and measured on the rest; in several repeats every lesion
is measured once a repeat by a fit that did not see it. Everything is averaged over the diagnoses, so that the rarest
has the same say. Coverage has Wilson's 95 % interval over lesions, all else a bootstrap's. It reads the kept folds.

The aims: calibration error at most 0.05 at the equal mix; coverage at least 90 %, of all and of melanomas; no class
whose interval lies under 80 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.folds import Kept, at_equal_mix, column, draws, mean_figure, read_method, source_of
from benchmarks.report import markdown
from dermlens.bundle.case_mix import equal_mix
from dermlens.bundle.limits import LEVEL, METHODS, SENSITIVITIES, Lesions, SetRule, aims, fit_limits, mix_weights
from dermlens.bundle.limits import weighted_share as share_of
from dermlens.bundle.probabilities import probabilities
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import debiased_error, sampled_figure
from dermlens.evaluation.calibration import fit_calibration
from dermlens.text import figure

ECE_AIM, CLASS_AIM = 0.05, 0.8
SERVED, FITTED, BIASED = (
    "as served",
    "then one temperature for all, cross-fitted",
    "then a temperature and biases by class, cross-fitted",
)


@dataclass(frozen=True)
class Pool:
    """All lesions in one order: `probability` (n, classes) as served, at the equal mix."""

    codes: tuple[str, ...]
    truth: np.ndarray
    probability: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """Return the weight of each lesion at the equal mix, (n,) with the sum 1."""
        return mix_weights(self.truth, np.arange(len(self.truth)), equal_mix(self.codes).of(self.codes))

    @property
    def at_their_mix(self) -> np.ndarray:
        """Return the shares of the classes among these lesions, (classes,)."""
        counts = np.bincount(self.truth, minlength=len(self.codes))
        shares: np.ndarray = np.maximum(counts, 1) / np.maximum(counts, 1).sum()
        return shares


@dataclass(frozen=True)
class Crossfit:
    """Means over the repeats, of fits that did not see the lesion; `inside`, `size` (n,) of the sets, by method."""

    probability: np.ndarray
    biased: np.ndarray
    inside: Mapping[str, np.ndarray]
    size: Mapping[str, np.ndarray]
    referred: Mapping[str, np.ndarray]
    thresholds: Mapping[str, list[float]]


def run(*, method: str = "embedded", parts: int = 5, repeats: int = 4, seed: int = 0) -> dict[str, Any]:
    """Return the figures of all kept folds of a method."""
    folds = read_method(method)
    found = report(pool_folds(method, folds), parts=parts, repeats=repeats, seed=seed)
    return {"method": method, "folds": sorted(folds), **found}


def pool_folds(method: str, folds: Mapping[int, Kept]) -> Pool:
    """Put the folds below each other, at the equal mix."""
    tables = {n: {**kept[0], "probability": at_equal_mix(method, n, kept)} for n, kept in folds.items()}
    codes = tuple(str(code) for code in next(iter(tables.values()))["codes"])
    return Pool(codes, column(tables, "truth"), column(tables, "probability"))


def crossfit(pool: Pool, *, parts: int, repeats: int, seed: int) -> Crossfit:
    """Fit on all parts of the lesions but one, measure on that one, for every part, in several repeats."""
    logits = np.log(np.maximum(pool.probability, 1e-30))
    mix, n = equal_mix(pool.codes), len(pool.truth)
    shares = mix.of(pool.codes)
    probability, biased = np.zeros_like(logits), np.zeros_like(logits)
    inside: dict[str, np.ndarray] = {method: np.zeros(n) for method in METHODS}
    size: dict[str, np.ndarray] = {method: np.zeros(n) for method in METHODS}
    referred: dict[str, np.ndarray] = {}
    thresholds: dict[str, list[float]] = {}
    for repeat in range(repeats):
        part = np.random.default_rng([seed, repeat]).integers(0, parts, n)
        for number in range(parts):
            known, new = (np.flatnonzero(side) for side in (part != number, part == number))
            given = logits[known], pool.truth[known]
            fit, with_bias = (
                fit_calibration(*given, shares=shares, training_prior=shares, bias=bias) for bias in (False, True)
            )
            p = probabilities(logits[new], fit, shares)
            probability[new] += p / repeats
            biased[new] += probabilities(logits[new], with_bias, shares) / repeats
            roles = {"calibrate": _lesions(logits, pool, known), "test": _lesions(logits, pool, new)}
            for method in METHODS:
                rule = SetRule(method)
                limits = fit_limits(mix, pool.codes, fit, roles, rule=rule, sensitivity=SENSITIVITIES[0])
                chosen = limits.sets(p)
                if chosen is not None:
                    inside[method][new] += chosen[np.arange(len(new)), pool.truth[new]] / repeats
                    size[method][new] += chosen.sum(axis=1) / repeats
            for point in limits.points:
                refer = _score(p, pool.codes, point.codes) >= point.threshold
                referred.setdefault(point.name, np.zeros(n))[new] += refer / repeats
                thresholds.setdefault(point.name, []).append(point.threshold)
    return Crossfit(probability, biased, inside, size, referred, thresholds)


def _lesions(logits: np.ndarray, pool: Pool, rows: np.ndarray) -> Lesions:
    return Lesions(logits[rows].astype(np.float32), pool.truth[rows], np.arange(len(rows)))


def _score(probability: np.ndarray, codes: tuple[str, ...], members: tuple[str, ...]) -> np.ndarray:
    total: np.ndarray = probability[:, [codes.index(code) for code in members]].sum(axis=1)
    return total


def calibrated(probability: np.ndarray, pool: Pool, weights: np.ndarray) -> dict[str, Any]:
    """Return ECE of the largest probability and of each aim's (such as melanoma), Brier and log loss.

    All at the equal mix, `ece_their_mix` at that of the lesions.

    Args:
        weights: (1 + resamples, n) of `draws`.
    """
    even = pool.weights

    def errors(score: np.ndarray, right: np.ndarray, mixed: np.ndarray) -> np.ndarray:
        bins = metrics.equal_mass_bins(score, weights=mixed)
        found: np.ndarray = metrics.calibration_error(score, right, bins, weights * mixed)
        return found

    first = errors(*metrics.top_label(pool.truth, probability), even)
    found = {name: of(first, reason="no lesions") for name, of in _ERRORS.items()}
    for aim, members in aims(pool.codes).items():
        positive = np.isin(pool.truth, [pool.codes.index(code) for code in members])
        found[f"ece_{aim}"] = sampled_figure(
            errors(_score(probability, pool.codes, members), positive, even), reason="no lesions"
        )
    at_mix = probability * pool.at_their_mix
    plain = metrics.top_label(pool.truth, at_mix / at_mix.sum(axis=1, keepdims=True))
    found["ece_their_mix"] = sampled_figure(errors(*plain, np.full(len(even), 1 / len(even))), reason="no lesions")
    return found | {
        "brier": mean_figure(metrics.squared_errors(pool.truth, probability), weights * even),
        "log_loss": mean_figure(metrics.log_errors(pool.truth, probability), weights * even),
    }


_ERRORS = {"ece": sampled_figure, "ece_debiased": debiased_error}


def coverage(inside: np.ndarray, size: np.ndarray, pool: Pool, weights: np.ndarray) -> dict[str, Any]:
    """Return coverage and mean size of the sets, averaged over the diagnoses and by class."""
    even = pool.weights

    def row(rows: np.ndarray) -> dict[str, Any]:
        share = share_of(inside[rows], even[rows], rows)
        return {
            "lesions": len(rows),
            "coverage": share,
            "mean_size": mean_figure(size[rows], (weights * even)[:, rows]),
        }

    by_class = {code: row(np.flatnonzero(pool.truth == c)) for c, code in enumerate(pool.codes)}
    return {"all": row(np.arange(len(inside))), **by_class}


def referral(fitted: Crossfit, pool: Pool, weights: np.ndarray) -> dict[str, Any]:
    """Return by operating point the sensitivity reached, the specificity that it costs, and the share referred."""
    members, weights = aims(pool.codes), weights * pool.weights
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
    melanoma = sets.get("MEL", {"lesions": 0})
    held = not melanoma["lesions"] or melanoma["coverage"]["high"] >= LEVEL
    return {
        f"calibration error at most {ECE_AIM}": ece <= ECE_AIM,
        f"coverage not shown to be under {LEVEL:.0%}": sets["all"]["coverage"]["high"] >= LEVEL and held,
        f"no class whose interval lies under {CLASS_AIM:.0%}": all(row["high"] >= CLASS_AIM for row in classes),
    }


def report(pool: Pool, *, parts: int, repeats: int, seed: int) -> dict[str, Any]:
    """Return the figures of a pool."""
    fitted, weights = crossfit(pool, parts=parts, repeats=repeats, seed=seed), draws(pool.truth, seed=seed)
    shares = {SERVED: pool.probability, FITTED: fitted.probability, BIASED: fitted.biased}
    calibration = {name: calibrated(share, pool, weights) for name, share in shares.items()}
    sets = {method: coverage(fitted.inside[method], fitted.size[method], pool, weights) for method in METHODS}
    shorter = min(METHODS, key=lambda method: float(sets[method]["all"]["mean_size"]["value"]))
    return {
        "lesions": len(pool.truth),
        "parts": parts,
        "repeats": repeats,
        "seed": seed,
        "calibration": calibration,
        "sets": sets,
        "shorter": shorter,
        "referral": referral(fitted, pool, weights),
        "verdict": verdict(calibration[SERVED]["ece"]["value"], sets[shorter]),
    }


def table(found: Mapping[str, Any]) -> str:
    """Return calibration, lists by class, referral, and which aims are reached."""
    first = next(iter(found["calibration"].values()))
    names = {
        "ece": "ECE, equal mix",
        "ece_debiased": "with less of what chance adds",
        "ece_their_mix": "ECE, mix of these lesions",
    }
    names = {key: name for key, name in names.items() if key in first}
    probability = [
        [name, *(row[key] for key in names), f"{row['log_loss']['value']:.3f}"]
        for name, row in found["calibration"].items()
    ]
    sets = [
        [name, row["lesions"], row["coverage"], f"{row['mean_size']['value']:.2f}" if row["lesions"] else "n/a"]
        for name, row in found["sets"][found["shorter"]].items()
    ]
    aims_said = "; ".join(f"{aim}: {'reached' if yes else 'missed'}" for aim, yes in found["verdict"].items())
    parts = [
        f"{source_of(found['method'], found['folds'], found['lesions'])} {aims_said[0].upper()}{aims_said[1:]}.",
        markdown(["probabilities", *names.values(), "log loss"], probability),
        markdown(["class", "lesions", f"list holds it (by the {found['shorter']})", "length"], sets),
    ]
    point = found["referral"].get("malignant_95")
    if point:
        parts.append(
            f"Referral (malignant_95): sensitivity {figure(point['sensitivity'])}, specificity "
            f"{figure(point['specificity'])}."
        )
    return "\n\n".join(parts)
