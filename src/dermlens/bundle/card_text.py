"""The facts of a model and their words, one source for every place that shows them.

`model_card` is MODEL_CARD.md (Mitchell et al. 2019). `model_facts` are the few things to know before one trusts a model
that somebody else made: as JSON (`models --json`, the API), and by `fact_lines` and `warnings` in words (the terminal,
a notebook, `models add`).
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dermlens.bundle.card import Card, damaged
from dermlens.bundle.case_mix import mix_words
from dermlens.bundle.limits import OperatingPoint
from dermlens.bundle.site import site_rows, site_sentences
from dermlens.diagnoses import DISCLAIMER, display_name
from dermlens.html import render
from dermlens.text import figure, one_line, percent

PACKAGES = ("dermlens", "keras", "tensorflow", "openvino", "numpy", "scikit-learn", "opencv-python-headless", "pillow")
_PUBLIC = ("pretrained", "imagenet", "lite")
_STARTED = {**dict.fromkeys(_PUBLIC, "ImageNet weights"), "none": "random weights"}
_TRAINED = {"head": "the last layer trained", "full": "the whole network fine-tuned"}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide about a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def model_facts(card: Card) -> dict[str, Any]:
    """Return what to know before one trusts a model, ready for JSON."""
    data, metrics = card.data, card.metrics
    melanoma = metrics.per_class.get("MEL")
    return {
        "name": card.name,
        "version": card.version,
        "created": card.created,
        "scope": card.scope,
        "modality": card.modality,
        "case_mix": card.case_mix.name,
        "classes": [each.code for each in card.classes],
        "input": {"size_px": card.input.size_px, "framing": card.input.framing},
        "licence": card.licence.as_dict(),
        "weights_licence": card.licence.weights,
        "trained_on": list(data.sources),
        "images": data.images,
        "tested_on": {"images": metrics.n, "lesions": metrics.n_lesions},
        "not_tested_on": list(data.not_tested_on),
        "balanced_accuracy": metrics.balanced_accuracy,
        "melanoma_auc": melanoma and melanoma["auc"],
        "leaky": data.leaky,
        "calibrated": card.calibration_fit.fitted,
        "knows_its_limits": card.trust.novelty is not None,
        "site": card.site
        and {name: getattr(card.site, name) for name in ("data", "lesions_fitted", "lesions_held_out")},
    }


def fact_lines(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return what `model_facts` says as label -> text; what a card says cannot make a line of its own."""
    tested = facts["tested_on"]
    score = f"{figure(facts['balanced_accuracy'])} on {tested['images']} images of {tested['lesions']} lesions"
    melanoma = f"; melanoma AUC {figure(facts['melanoma_auc'])}" if facts["melanoma_auc"] else ""
    size = facts["input"]["size_px"]
    lines = {
        "reads": facts["scope"],
        "classes": ", ".join(class_words(code, display_name(code)) for code in facts["classes"]),
        "input": f"{size} x {size} px, framing {facts['input']['framing']}",
        "trained on": "; ".join(facts["trained_on"]) or f"{facts['images']} images of unnamed source",
        "balanced accuracy": f"{score}{melanoma} (measured by its maker)",
        "licence": f"weights {facts['licence']['weights']}; code {facts['licence']['code']}",
        "SHA-256": facts["sha256"],
    }
    if site := facts.get("site"):
        counts = f"{site['lesions_fitted']} lesions, measured on {site['lesions_held_out']} others"
        lines["limits"] = f"fitted to {site['data']}: {counts}"
    return {label: one_line(words) for label, words in lines.items()}


def warnings(facts: Mapping[str, Any]) -> list[str]:
    """Return what makes a model less dependable than others, a sentence each."""
    found = {
        "LEAKY: training and test shared images or lesions; its figures are too good.": facts["leaky"],
        "Its probabilities are NOT calibrated.": not facts["calibrated"],
        "It does not know its limits: it answers every image.": not facts["knows_its_limits"],
    }
    return [sentence for sentence, true in found.items() if true]


def class_words(code: str, name: str) -> str:
    """Return a class's name with its code, or the code alone where it has no other name."""
    return name if name == code else f"{name} ({code})"


def bias_words(test: Mapping[str, Any]) -> str:
    """Say in a sentence what `evaluation.calibration.BiasTest.as_dict` holds."""
    if test["reason"]:
        return f"No bias by class: {test['reason']}."
    return (
        f"A bias for each class is {'used' if test['kept'] else 'not used'}: on lesions that it was not fitted on, the "
        f"log loss is {test['log_loss_bias']:.4f} with it and {test['log_loss_temperature']:.4f} with the temperature "
        f"alone, {abs(test['gain']):.4f} {'less' if test['gain'] > 0 else 'more'} at a standard error of "
        f"{test['standard_error']:.4f}."
    )


def model_card(card: Card, points: Sequence[OperatingPoint]) -> str:
    """Return the model card as Markdown, from `templates/model_card.md`; BundleError where the facts do not fit.

    Args:
        points: the operating points at the model's case mix.
    """
    from jinja2 import TemplateError

    weights, mode = str(card.recipe["weights"]), str(card.recipe["fine_tune"])
    try:
        text = render(
            "model_card.md",
            card=card,
            started=_STARTED.get(weights, weights),
            public=weights in _PUBLIC,
            trained=_TRAINED.get(mode) or f"blocks after {card.recipe['cut_block']} fine-tuned",
            roles=("train", "select", "calibrate", "test"),
            compared=("balanced_accuracy", "accuracy", "macro_auc"),
            points=points,
            mix_words=mix_words,
            site_rows=site_rows,
            site_sentences=site_sentences,
            disclaimer=DISCLAIMER,
            bias_words=bias_words,
            class_words=class_words,
            figure=figure,
            percent=percent,
        )
    except (TemplateError, LookupError, TypeError, ValueError) as error:
        raise damaged(f"the facts of {one_line(card.name)!r} make no model card ({error})") from error
    return text.rstrip() + "\n"
