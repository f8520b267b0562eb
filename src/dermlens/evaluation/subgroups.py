"""Every group on its own: does the model serve old and young, all sites and sources, light and dark skin alike?

A group below `MIN_LESIONS` lesions is named and not scored: its figure would say more about chance than about people.
Skin tone is estimated from the picture's border where it is not recorded, as the individual typology angle (Kinyanjui
et al. 2020, arXiv:1910.13268); dermatoscopes change colours, so the estimate is rough and marked as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from dermlens.data.records import Record
from dermlens.evaluation import weighted
from dermlens.evaluation.bootstrap import resample_weights, sampled_figure
from dermlens.evaluation.weighted import Floats, Ints

MIN_LESIONS = 20
RESAMPLES = 1000
DARK_TONES = ("brown", "dark")
_AGES = ((30, "under 30"), (45, "30 to 44"), (60, "45 to 59"), (75, "60 to 74"))
_OLDEST, _DARKEST = "75 and over", "dark"
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


def subgroups(
    groups: Sequence[Mapping[str, str]], y_true: Ints, decision: Ints, watched: Floats, positive: Ints, lesions: Ints
) -> dict[str, Any]:
    """Score every group of every axis.

    Args:
        groups: for each image its group by axis, from `groups_of`.
        watched: (n,) probability of what `positive` (n,) marks: malignant or premalignant.
        lesions: (n,) lesion numbers.

    Returns:
        axis -> group -> `{"n", "n_lesions", "accuracy", "balanced_accuracy", "auc"}`; a group of fewer than 20 lesions
        has null figures and a `reason`.
    """
    axes: dict[str, Any] = {}
    for axis in dict.fromkeys(axis for row in groups for axis in row):
        values = np.array([row.get(axis, "") for row in groups])
        names = [name for name in sorted(set(values.tolist()), key=_place) if name]
        if len(names) < 2 and not axis.startswith("skin"):
            continue
        axes[axis] = {
            name: _score(*(part[values == name] for part in (y_true, decision, watched, positive, lesions)))
            for name in names
        }
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


def _score(truth: Ints, decision: Ints, watched: Floats, positive: Ints, lesions: Ints) -> dict[str, Any]:
    count = len(np.unique(lesions))
    row: dict[str, Any] = {"n": len(truth), "n_lesions": count}
    if count < MIN_LESIONS:
        blocked = {"value": None, "low": None, "high": None, "reason": f"fewer than {MIN_LESIONS} lesions"}
        return row | {"accuracy": blocked, "balanced_accuracy": blocked, "auc": blocked}
    numbers = np.unique(lesions, return_inverse=True)[1].astype(np.int64)
    blocks = list(resample_weights(truth, numbers, resamples=RESAMPLES, seed=0))
    weights = np.concatenate([np.ones((1, len(truth))), *blocks])
    counts = weighted.class_counts(truth, decision, int(max(truth.max(), decision.max())) + 1, weights)
    balanced: Floats = weighted.sensitivity(counts)[:, np.unique(truth)].mean(axis=1)
    enough = min(len(np.unique(lesions[positive == side])) for side in (0, 1)) >= MIN_LESIONS // 2
    auc = weighted.area(weighted.roc(positive == 1, watched, weights)) if enough else np.full(len(weights), np.nan)
    few = "too few lesions of one kind"
    return row | {
        "accuracy": sampled_figure(weighted.accuracy(counts), reason=few, lesions=count),
        "balanced_accuracy": sampled_figure(balanced, reason=few),
        "auc": sampled_figure(auc, reason=few),
    }


def _place(name: str) -> tuple[int, str]:
    """Where a group stands in its table: ages and tones by size, all else by name."""
    return (_ORDER.index(name), name) if name in _ORDER else (len(_ORDER), name)


def _age_band(age: float | None) -> str | None:
    if age is None:
        return None
    return next((name for limit, name in _AGES if age < limit), _OLDEST)
