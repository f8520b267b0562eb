"""Figures for each group: is the model as good for old and young, all sites and sources, light and dark skin?

A group below `MIN_LESIONS` lesions is named and not scored: its figure would be mostly chance. Where skin tone is not
recorded it is estimated from the image's border, as the individual typology angle (Kinyanjui et al. 2020,
arXiv:1910.13268). Dermatoscopes change colours, so the estimate is rough and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from dermlens.bundle.limits import grave_codes, mix_weights
from dermlens.data.records import Record
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import no_figure, sampled_figure, weightings
from dermlens.evaluation.metrics import Bools, Floats
from dermlens.evaluation.trust_sections import Answers

MIN_LESIONS = 20
MIN_OF_KIND = 10  # malignant or premalignant lesions, and others
MEASURES = (
    *("accuracy", "balanced_accuracy", "auc", "referral_sensitivity", "referral_specificity"),
    *("ece", "brier", "log_loss", "coverage", "ok", "accuracy_ok", "rejected"),
)
DARK_TONES = ("brown", "dark")
_AGES = ((30, "under 30"), (45, "30 to 44"), (60, "45 to 59"), (75, "60 to 74"))
_OLDEST, _DARKEST = "75 and over", "dark"
_FEW = "too few lesions of one kind"
_TONES = ((55, "very light"), (41, "light"), (28, "intermediate"), (10, "tan"), (-30, "brown"))

_ORDER = [*(name for _, name in _AGES), _OLDEST, *(name for _, name in _TONES), _DARKEST]


def typology_angle(pixels: npt.NDArray[np.uint8]) -> float:
    """Return the individual typology angle of the skin around a lesion, in degrees; above 55 is very light.

    The skin is the brighter half of the rim of the inscribed circle, so lesion and dark corners do not count.

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
    """Return the group of one image on every axis that is known."""
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


def subgroups(groups: Sequence[Mapping[str, str]], answers: Answers, *, seed: int = 0) -> dict[str, Any]:
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
        axes[axis] = {name: _score(answers.part(values == name), seed) for name in names}
    return axes


def skin_tone_sentence(table: Mapping[str, Any]) -> str:
    """Say whether the model was validated on dark skin: only where enough such lesions were scored."""
    types = table.get("skin type (Fitzpatrick)", {})
    dark_types = [row for name, row in types.items() if _is_dark_type(name)]
    known = sum(row["n_lesions"] for row in dark_types if row["accuracy"]["value"] is not None)
    if known:
        return f"It was scored on {known} lesions of recorded Fitzpatrick types 5 and 6; the table shows how well."
    if types:
        return (
            "This model was not validated on dark skin: Fitzpatrick types are recorded; "
            f"{sum(row['n_lesions'] for row in dark_types)} lesions of types 5 and 6, too few to score. "
            "Do not rely on the model there."
        )
    tones = table.get("skin tone (estimated)", {})
    dark = sum(tones[tone]["n_lesions"] for tone in DARK_TONES if tone in tones)
    scored = [tone for tone in DARK_TONES if tone in tones and tones[tone]["accuracy"]["value"] is not None]
    if scored:
        return (
            f"{dark} lesions seem to be on brown or dark skin, estimated from the image's colour alone; "
            "without recorded skin tones this is no validation on dark skin."
        )
    return (
        "This model was not validated on dark skin: skin tone is not recorded. A rough estimate from the image's "
        f"colour finds {dark} lesions on brown or dark skin. Do not rely on the model there."
    )


def _is_dark_type(name: str) -> bool:
    """Whether a recorded Fitzpatrick type is 5 or 6, in digits or Roman, also behind a word such as "type"."""
    words = name.upper().replace("-", " ").split()
    return bool(words) and words[-1] in ("5", "6", "56", "5.0", "6.0", "V", "VI")


def _score(part: Answers, seed: int) -> dict[str, Any]:
    count = len(np.unique(part.lesions))
    row: dict[str, Any] = {"n": len(part.y_true), "n_lesions": count}
    if count < MIN_LESIONS:
        few = f"fewer than {MIN_LESIONS} lesions"
        return row | {name: no_figure(few) for name in MEASURES} | {"sensitivity": {}}
    truth, numbers = part.y_true, np.unique(part.lesions, return_inverse=True)[1].astype(np.int64)
    weights = weightings(truth, numbers, seed=seed)
    counts = metrics.class_counts(truth, part.decision, len(part.bundle.codes), weights)
    shares = metrics.sensitivity(counts)
    return {
        **row,
        "accuracy": sampled_figure(metrics.accuracy(counts), reason=_FEW, lesions=count),
        "balanced_accuracy": sampled_figure(metrics.balanced_accuracy(counts, np.unique(truth)), reason=_FEW),
        **_separation(part, weights),
        **_probabilities(part, weights, count),
        **_answers(part, weights, count),
        "sensitivity": {
            code: sampled_figure(shares[:, c], reason=_FEW, lesions=of_class)
            for c, code in enumerate(part.bundle.codes)
            if (of_class := len(np.unique(part.lesions[truth == c]))) >= MIN_OF_KIND
        },
    }


def _separation(part: Answers, weights: Floats) -> dict[str, Any]:
    """How malignant and premalignant lesions are distinguished from others: ranked, and at the referral threshold."""
    names = ("auc", "referral_sensitivity", "referral_specificity")
    grave, referred = part.places(grave_codes(part.bundle.codes)), part.referred
    positive = np.isin(part.y_true, grave)
    sides = [len(np.unique(part.lesions[side])) for side in (positive, ~positive)]
    if min(sides) < MIN_OF_KIND:
        return {name: no_figure(_FEW) for name in names}
    score = part.probability[:, grave].sum(axis=1)
    auc = sampled_figure(metrics.area(metrics.roc(positive, score, weights)), reason=_FEW)
    if referred is None:
        return {names[0]: auc, **{name: no_figure("no referral in this bundle") for name in names[1:]}}
    pairs = ((positive, referred), (~positive, ~referred))
    rates = [metrics.share(side & right, side, weights) for side, right in pairs]
    figures = [sampled_figure(rate, reason=_FEW, lesions=n) for rate, n in zip(rates, sides, strict=True)]
    return dict(zip(names, (auc, *figures), strict=True))


def _probabilities(part: Answers, weights: Floats, count: int) -> dict[str, Any]:
    """Calibration error (of enough lesions), Brier score and log loss, at the case mix."""
    mixed = mix_weights(part.y_true, part.lesions, part.limits.shares)
    weights = weights * mixed
    if count < metrics.MIN_ECE_IMAGES:
        ece = no_figure(f"fewer than {metrics.MIN_ECE_IMAGES} lesions")
    else:
        confidence, correct = metrics.top_label(part.y_true, part.probability)
        bins = metrics.equal_mass_bins(confidence, weights=mixed)
        ece = sampled_figure(metrics.calibration_error(confidence, correct, bins, weights), reason=_FEW)
    losses = {"brier": metrics.squared_errors, "log_loss": metrics.log_errors}
    return {"ece": ece} | {
        name: sampled_figure(metrics.mean_loss(loss(part.y_true, part.probability), weights), reason=_FEW)
        for name, loss in losses.items()
    }


def _answers(part: Answers, weights: Floats, count: int) -> dict[str, Any]:
    """Coverage of the prediction sets, shares of the statuses, and accuracy where the status is ok."""

    def share(chosen: Bools | None) -> dict[str, Any]:
        if chosen is None:
            return no_figure("no prediction sets in this bundle")
        return sampled_figure(metrics.mean_loss(chosen.astype(np.float64), weights), reason=_FEW, lesions=count)

    ok, inside = part.status == "ok", part.inside
    return {
        "coverage": share(None if inside is None else inside[np.arange(len(ok)), part.y_true]),
        "ok": share(ok),
        "rejected": share(part.status == "rejected"),
        "accuracy_ok": sampled_figure(
            metrics.share(ok & part.right, ok, weights),
            reason="no image is ok",
            lesions=len(np.unique(part.lesions[ok])),
        ),
    }


def _place(name: str) -> tuple[int, str]:
    """Return the order of a group in its table: ages and tones by size, all others by name."""
    return (_ORDER.index(name), name) if name in _ORDER else (len(_ORDER), name)


def _age_band(age: float | None) -> str | None:
    if age is None:
        return None
    return next((name for limit, name in _AGES if age < limit), _OLDEST)
