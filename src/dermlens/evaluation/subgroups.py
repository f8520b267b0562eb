"""Every group on its own: does the model serve old and young, all sites and sources, light and dark skin alike?

A group below `MIN_LESIONS` lesions is named and not scored: its figure would say more about chance than about people.
Skin tone is estimated from the picture's border where it is not recorded, as the individual typology angle (Kinyanjui
et al. 2020, arXiv:1910.13268); dermatoscopes change colours, so the estimate is rough and marked as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from dermlens.bundle.trust import grave_codes
from dermlens.data.records import Record
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import resample_weights, sampled_figure
from dermlens.evaluation.metrics import Bools, Floats, Ints
from dermlens.evaluation.trust_figures import Answers

MIN_LESIONS = 20
MIN_OF_KIND = 10  # lesions with, and without, what is looked for
MIN_FOR_ECE = 100  # with fewer even perfect probabilities seem off
MEASURES = (
    *("accuracy", "balanced_accuracy", "auc", "referral_sensitivity", "referral_specificity"),
    *("ece", "brier", "log_loss", "coverage", "ok", "accuracy_ok", "rejected"),
)
RESAMPLES = 1000
DARK_TONES = ("brown", "dark")
_AGES = ((30, "under 30"), (45, "30 to 44"), (60, "45 to 59"), (75, "60 to 74"))
_OLDEST, _DARKEST = "75 and over", "dark"
_FEW = "too few lesions of one kind"
_TONES = ((55, "very light"), (41, "light"), (28, "intermediate"), (10, "tan"), (-30, "brown"))

_ORDER = [*(name for _, name in _AGES), _OLDEST, *(name for _, name in _TONES), _DARKEST]


def typology_angle(pixels: npt.NDArray[np.uint8]) -> float:
    """Return the individual typology angle of the skin around a lesion, in degrees; above 55 is very light.

    The skin is taken from the rim of the inscribed circle, the brighter half of it, so that lesion and dark corners
    have no say.

    Args:
        pixels: uint8 RGB (size, size, 3) as the network sees it.
    """
    small = cv2.resize(pixels, (96, 96), interpolation=cv2.INTER_AREA)
    y, x = np.indices((96, 96)) - 47.5
    radius = np.hypot(x, y) / 48
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)[(radius > 0.75) & (radius < 0.95)]
    skin = lab[lab[:, 0] >= np.median(lab[:, 0])]
    light, _, yellow = np.median(skin, axis=0)
    return float(np.degrees(np.arctan2(light - 50, yellow)))


def tone_of(angle: float) -> str:
    """Return the name of the skin tone that an angle means (Chardon et al. 1991)."""
    return next((name for limit, name in _TONES if angle > limit), _DARKEST)


def groups_of(record: Record, angle: float | None) -> dict[str, str]:
    """Return the group of one image on every axis that is known for it."""
    known = {
        "age": _age_band(record.age_approx),
        "sex": record.sex,
        "site": record.anatom_site,
        "source": record.source,
        "diagnosed by": record.dx_type,
        "skin type (Fitzpatrick)": record.fitzpatrick,
        "skin tone (estimated)": None if angle is None else tone_of(angle),
    }
    return {axis: value for axis, value in known.items() if value}


@dataclass(frozen=True, eq=False)
class Scored:
    """What is known of n scored images.

    Attributes:
        y_true, decision, lesions: (n,) classes, and lesion numbers.
        probability: (n, classes), calibrated.
        codes: the classes' names.
        grave: places of the malignant and premalignant classes.
        status: (n,) "ok", "uncertain" or "rejected".
        referred: (n,) whether a specialist is advised; None for a bundle without an operating point.
        covered: (n,) whether the prediction set holds the truth; None for a bundle without sets.
    """

    y_true: Ints
    decision: Ints
    lesions: Ints
    probability: Floats
    codes: tuple[str, ...]
    grave: tuple[int, ...]
    status: npt.NDArray[np.str_]
    referred: Bools | None = None
    covered: Bools | None = None

    def part(self, rows: Bools) -> Scored:
        """Return the chosen images alone."""
        names = ("y_true", "decision", "lesions", "probability", "referred", "covered", "status")
        found = {name: getattr(self, name) for name in names}
        return replace(self, **{name: values[rows] for name, values in found.items() if values is not None})


def scored_of(answers: Answers) -> Scored:
    """Return what the answers of an evaluation say of each image."""
    bundle, trust = answers.bundle, answers.bundle.trust
    grave = tuple(bundle.codes.index(code) for code in grave_codes(bundle.codes))
    point, covered, referred = trust.operating_point, None, None
    if trust.sets is not None:
        pairs = zip(answers.predictions, answers.y_true, strict=True)
        covered = np.array([bundle.codes[c] in (p.prediction_set or ()) for p, c in pairs])
    if point is not None:
        columns = [bundle.codes.index(code) for code in point.codes]
        referred = answers.probability[:, columns].sum(axis=1) >= point.threshold
    return Scored(
        answers.y_true,
        answers.decision,
        answers.lesions,
        answers.probability,
        bundle.codes,
        grave,
        status=np.array([p.status for p in answers.predictions]),
        referred=referred,
        covered=covered,
    )


def subgroups(groups: Sequence[Mapping[str, str]], scored: Scored, *, seed: int = 0) -> dict[str, Any]:
    """Score every group of every axis.

    Args:
        groups: for each image its group by axis, from `groups_of`.

    Returns:
        axis -> group -> `{"n", "n_lesions", "sensitivity": {code: ...}, ...}` with one figure for each of `MEASURES`.
        What rests on too few lesions is null, with a `reason`.
    """
    axes: dict[str, Any] = {}
    for axis in dict.fromkeys(axis for row in groups for axis in row):
        values = np.array([row.get(axis, "") for row in groups])
        names = [name for name in sorted(set(values.tolist()), key=_place) if name]
        if len(names) < 2 and not axis.startswith("skin"):
            continue
        axes[axis] = {name: _score(scored.part(values == name), seed) for name in names}
    return axes


def skin_tone_sentence(table: Mapping[str, Any]) -> str:
    """Say whether the model was validated on dark skin; it never was unless enough such lesions were scored."""
    types = table.get("skin type (Fitzpatrick)", {})
    dark_types = [row for name, row in types.items() if _is_dark_type(name)]
    known = sum(row["n_lesions"] for row in dark_types if row["accuracy"]["value"] is not None)
    if known:
        return f"It was scored on {known} lesions of recorded Fitzpatrick types 5 and 6; see the table for how well."
    if types:
        return (
            "This model was not validated on dark skin: Fitzpatrick types are recorded; "
            f"{sum(row['n_lesions'] for row in dark_types)} lesions of types 5 and 6, too few to score. "
            "Do not rely on it there."
        )
    tones = table.get("skin tone (estimated)", {})
    dark = sum(tones[tone]["n_lesions"] for tone in DARK_TONES if tone in tones)
    scored = [tone for tone in DARK_TONES if tone in tones and tones[tone]["accuracy"]["value"] is not None]
    if scored:
        return (
            f"{dark} lesions seem to lie on brown or dark skin, by an estimate from the picture's colour alone; "
            "without recorded skin tones this is no validation on dark skin."
        )
    return (
        "This model was not validated on dark skin: skin tone is not recorded, and by a rough estimate from the "
        f"picture's colour {dark} lesions lie on brown or dark skin. Do not rely on it there."
    )


def _is_dark_type(name: str) -> bool:
    """Whether a recorded Fitzpatrick type is 5 or 6, in digits or Roman, also behind a word such as "type"."""
    words = name.upper().replace("-", " ").split()
    return bool(words) and words[-1] in ("5", "6", "56", "5.0", "6.0", "V", "VI")


def _score(part: Scored, seed: int) -> dict[str, Any]:
    count = len(np.unique(part.lesions))
    row: dict[str, Any] = {"n": len(part.y_true), "n_lesions": count}
    if count < MIN_LESIONS:
        blocked = unknown(f"fewer than {MIN_LESIONS} lesions")
        return row | {name: dict(blocked) for name in MEASURES} | {"sensitivity": {}}
    truth, numbers = part.y_true, np.unique(part.lesions, return_inverse=True)[1].astype(np.int64)
    weights = np.concatenate(
        [np.ones((1, len(truth))), *resample_weights(truth, numbers, resamples=RESAMPLES, seed=seed)]
    )
    counts = metrics.class_counts(truth, part.decision, len(part.codes), weights)
    shares = metrics.sensitivity(counts)
    balanced: Floats = shares[:, np.unique(truth)].mean(axis=1)
    return (
        row
        | {
            "accuracy": sampled_figure(metrics.accuracy(counts), reason=_FEW, lesions=count),
            "balanced_accuracy": sampled_figure(balanced, reason=_FEW),
        }
        | _separation(part, weights)
        | _probabilities(part, weights, count)
        | _answers(part, weights, count)
        | {
            "sensitivity": {
                code: sampled_figure(shares[:, c], reason=_FEW, lesions=of_class)
                for c, code in enumerate(part.codes)
                if (of_class := len(np.unique(part.lesions[truth == c]))) >= MIN_OF_KIND
            }
        }
    )


def _separation(part: Scored, weights: Floats) -> dict[str, Any]:
    """How malignant and premalignant lesions are told from others: ranked, and at the threshold of referral."""
    names = ("auc", "referral_sensitivity", "referral_specificity")
    positive = np.isin(part.y_true, part.grave)
    sides = [len(np.unique(part.lesions[side])) for side in (positive, ~positive)]
    if min(sides) < MIN_OF_KIND:
        return {name: unknown(_FEW) for name in names}
    score = part.probability[:, list(part.grave)].sum(axis=1)
    auc = sampled_figure(metrics.area(metrics.roc(positive, score, weights)), reason=_FEW)
    if part.referred is None:
        return {names[0]: auc, **{name: unknown("no referral in this bundle") for name in names[1:]}}
    rates = [
        metrics.ratio(weights @ (side & right).astype(np.float64), weights @ side.astype(np.float64))
        for side, right in ((positive, part.referred), (~positive, ~part.referred))
    ]
    figures = [sampled_figure(rate, reason=_FEW, lesions=n) for rate, n in zip(rates, sides, strict=True)]
    return dict(zip(names, (auc, *figures), strict=True))


def _probabilities(part: Scored, weights: Floats, count: int) -> dict[str, Any]:
    """Calibration error (of enough lesions), Brier score and log loss."""
    if count < MIN_FOR_ECE:
        ece = unknown(f"fewer than {MIN_FOR_ECE} lesions")
    else:
        confidence, correct = metrics.top_label(part.y_true, part.probability)
        bins = metrics.equal_mass_bins(confidence)
        ece = sampled_figure(metrics.calibration_error(confidence, correct, bins, weights), reason=_FEW)
    losses = {"brier": metrics.squared_errors, "log_loss": metrics.log_errors}
    return {"ece": ece} | {
        name: sampled_figure(metrics.mean_loss(loss(part.y_true, part.probability), weights), reason=_FEW)
        for name, loss in losses.items()
    }


def _answers(part: Scored, weights: Floats, count: int) -> dict[str, Any]:
    """Coverage of the prediction sets, shares of the statuses, and accuracy where the status is ok."""

    def share(chosen: Bools | None) -> dict[str, Any]:
        if chosen is None:
            return unknown("no prediction sets in this bundle")
        return sampled_figure(metrics.mean_loss(chosen.astype(np.float64), weights), reason=_FEW, lesions=count)

    ok, right = part.status == "ok", part.decision == part.y_true
    return {
        "coverage": share(part.covered),
        "ok": share(ok),
        "rejected": share(part.status == "rejected"),
        "accuracy_ok": sampled_figure(
            metrics.ratio(weights @ (ok & right).astype(np.float64), weights @ ok.astype(np.float64)),
            reason="no image is ok",
            lesions=len(np.unique(part.lesions[ok])),
        ),
    }


def unknown(reason: str) -> dict[str, Any]:
    """Return a figure that cannot be told, with its reason."""
    return {"value": None, "low": None, "high": None, "reason": reason}


def _place(name: str) -> tuple[int, str]:
    """Where a group stands in its table: ages and tones by size, all else by name."""
    return (_ORDER.index(name), name) if name in _ORDER else (len(_ORDER), name)


def _age_band(age: float | None) -> str | None:
    if age is None:
        return None
    return next((name for limit, name in _AGES if age < limit), _OLDEST)
