"""Where the limits of a model come from that was fitted to a site's own lesions, and what they give there.

Written by `dermlens.evaluation.site`. The network is that of another model; temperature, sets, operating point, novelty
and quality are the site's. The figures are those of lesions that were held out, of both models, at the same case mix.
"""

from __future__ import annotations

from dermlens.bundle.probabilities import Facts
from dermlens.text import Figure, figure

MARK = "site"  # in the version of such a model: 1.3.0+site
SHARES = ("ok", "uncertain", "rejected")
_LABELS = {
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "ece": "calibration error (ECE)",
    "coverage": "true class not ruled out",
    "mean_size": "classes not ruled out",
    "sensitivity": "referral: sensitivity",
    "specificity": "referral: specificity",
    "grave_sent": "malignant sent to a person",
    "others_sent": "others sent to a person",
}


class Origin(Facts, frozen=True):
    """The model that the network comes from."""

    name: str
    version: str
    sha256: str


class SiteImages(Facts, frozen=True, omit_defaults=False):
    """What became of the images that were given.

    Attributes:
        seen: left out, since the model has learned from their lesions.
        own_test: of the fitted and held-out ones, those of the lesions that the model was tested on in its training.
        class_not_in_model: left out, by diagnosis.
    """

    given: int
    fitted: int
    held_out: int
    seen: int
    own_test: int
    unreadable: int
    class_not_in_model: dict[str, int]


class SiteFigures(Facts, frozen=True, omit_defaults=False):
    """What one model reaches on the held-out lesions, with 95 % intervals; null where it has no such limit.

    Attributes:
        ece: the calibration error at the case mix, among the classes that have lesions.
        coverage, mean_size: how often the true class cannot be ruled out, and how many classes cannot, at the mix.
        sensitivity, specificity: of the operating point that answers follow, at the mix, whatever the status.
        grave_sent, others_sent: of the malignant or premalignant lesions and of the others, at the mix, the share with
            the advice `refer` or `see_clinician`.
        status: the share of the images by status.
        temperature, referral_threshold, novelty_threshold: the limits themselves.
    """

    balanced_accuracy: Figure
    accuracy: Figure
    ece: Figure
    coverage: Figure | None
    mean_size: Figure | None
    sensitivity: Figure | None
    specificity: Figure | None
    grave_sent: Figure | None
    others_sent: Figure | None
    status: dict[str, Figure]
    temperature: float
    referral_threshold: float | None
    novelty_threshold: float | None


class Site(Facts, frozen=True, omit_defaults=False):
    """The `site` object of `bundle.json`.

    Attributes:
        data: the name of the data set; fingerprint, manifest_sha256: which one it was.
        created: the day on which the limits were fitted.
        model: the model that they replace the limits of.
        held_out: the share of the lesions that was asked for; seed: of the split and of the intervals.
        lesions: class -> how many were fitted on and held out.
        absent: the classes without lesions here.
        before, after: the figures of the model as it came and of this one, on the same lesions.
    """

    data: str
    fingerprint: str
    manifest_sha256: str | None
    created: str
    model: Origin
    held_out: float
    seed: int
    images: SiteImages
    lesions: dict[str, tuple[int, int]]
    absent: tuple[str, ...]
    lesions_fitted: int
    lesions_held_out: int
    before: SiteFigures
    after: SiteFigures


def site_version(version: str) -> str:
    """Return the version of a model that was fitted to a site."""
    return f"{version.partition('+')[0]}+{MARK}"


def site_rows(site: Site) -> list[tuple[str, str, str]]:
    """Return the figures side by side: what it is, of the model as it came, of this one."""
    before, after = site.before, site.after
    rows = [(label, _words(getattr(before, name)), _words(getattr(after, name))) for name, label in _LABELS.items()]
    rows += [(f"status {name}", _words(before.status[name]), _words(after.status[name])) for name in SHARES]
    for name in ("temperature", "referral_threshold", "novelty_threshold"):
        rows.append((name.replace("_", " "), _number(getattr(before, name)), _number(getattr(after, name))))
    return rows


def site_sentences(site: Site) -> list[str]:
    """Say where the limits come from."""
    model, images = site.model, site.images
    counted = ", ".join(f"{code} {fitted} + {held}" for code, (fitted, held) in site.lesions.items())
    found = [
        f"The network is that of {model.name} {model.version} (SHA-256 {model.sha256}); nothing was trained.",
        f"The limits were fitted on {site.lesions_fitted} lesions of {site.data} and measured on "
        f"{site.lesions_held_out} others (fitted + held out: {counted}; seed {site.seed}; data fingerprint "
        f"{site.fingerprint[:16]}).",
    ]
    if site.absent:
        found.append(
            f"There are no lesions of {', '.join(site.absent)}: no class has a bias, and in fits and figures the case "
            "mix is that of the other classes, brought to the sum 1. Temperature and calibration error are those among "
            "the other classes. How well the limits hold for the missing ones is not known."
        )
    if images.own_test:
        found.append(
            f"{images.own_test} of the images show lesions that {model.name} was tested on in its training: they "
            "taught it nothing."
        )
    return found


def _words(value: Figure | None) -> str:
    return "none" if value is None else figure(value)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
