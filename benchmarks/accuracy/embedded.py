"""The embedded model on its test images, beside the simplest answers: from its bundle, measured when it was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.report import markdown, model_of
from benchmarks.roles import embedded_bundle
from dermlens.bundle.bundle import MODELS_DIR
from dermlens.text import figure

STATUSES = ("ok", "uncertain", "rejected")


def run() -> dict[str, Any]:
    """Return what the bundle says of the test role."""
    card = json.loads((MODELS_DIR / "default" / "bundle.json").read_text(encoding="utf-8"))
    metrics, baselines, measured = card["metrics"], card["baselines"], card["trust"]["measured"]
    bundle = embedded_bundle()
    limits = bundle.limits(bundle.case_mix)
    keys = ("n_lesions", "auc", "sensitivity", "sensitivity_at_90_specificity")
    return {
        "model": model_of(bundle),
        "images": metrics["n"],
        "lesions": metrics["n_lesions"],
        **{key: metrics[key] for key in ("balanced_accuracy", "accuracy", "macro_auc", "ece")},
        "per_class": {code: {key: row[key] for key in keys} for code, row in metrics["per_class"].items()},
        "majority_class": baselines["majority_class"],
        "methods": baselines["methods"],
        "model_minus": baselines["model_minus"],
        "status": {name: measured["status"][name] for name in STATUSES},
        "coverage": measured["prediction_sets"]["coverage"],
        "mean_size": measured["prediction_sets"]["mean_size"],
        "by_class": measured["prediction_sets"]["per_class"],
        "advice": measured["advice"],
        "case_mix": metrics["case_mix"],
        "operating_points": [point.as_dict() for point in limits.points],
        "referral": None if limits.referral is None else limits.referral.name,
        "minutes": card["training"]["minutes"],
    }


def table(found: Mapping[str, Any]) -> str:
    """Set the model beside the linear probe and the most common class, and list its other figures."""
    names = {"model": "embedded model", "linear_probe": "linear probe", "majority": f"always {found['majority_class']}"}
    rows = [[what, found["methods"][name]] for name, what in names.items()]
    rows += [[f"model minus {names[name]}", gain] for name, gain in found["model_minus"].items()]
    beside = markdown(
        ["", "balanced accuracy", "accuracy"],
        [[what, row["balanced_accuracy"], row["accuracy"]] for what, row in rows],
    )
    melanoma = found["per_class"]["MEL"]
    rare = ", ".join(
        f"{code} {figure(row['sensitivity'], 2)} ({row['n_lesions']} lesions)"
        for code, row in found["per_class"].items()
        if row["n_lesions"] < 30
    )
    return (
        f"Version {found['model']['version']} on {found['images']:,} test images of {found['lesions']:,} lesions that "
        f"this network was not trained, selected or calibrated on.\n\n{beside}\n\n"
        f"AUC, mean of the classes, {figure(found['macro_auc'])}; melanoma AUC {figure(melanoma['auc'])}, at 90 % "
        f"specificity sensitivity {figure(melanoma['sensitivity_at_90_specificity'])}; expected calibration error "
        f"if all diagnoses were equally common {figure(found['ece'])}. Sensitivity of the rare classes: {rare}."
    )


def headline(found: Mapping[str, Any]) -> str:
    """Return the three figures of the first page."""
    probe, point = found["methods"]["linear_probe"]["balanced_accuracy"], referral_point(found)
    return "\n".join(
        (
            f"- balanced accuracy **{figure(found['balanced_accuracy'])}** over eight diagnoses; a linear probe on "
            f"frozen ImageNet features: {figure(probe)}",
            f"- melanoma against the rest: AUC **{figure(found['per_class']['MEL']['auc'])}**",
            f"- referral to a specialist: sensitivity **{figure(point['sensitivity'])}**, specificity "
            f"{figure(point['specificity'])}",
            "",
            f"{found['images']} test images of {found['lesions']} lesions that it was not trained or calibrated on; "
            "95 % intervals over lesions. Two settings of its recipe were chosen on experiments that included 1,022 of "
            "these lesions, so the figures may be slightly too good.",
        )
    )


def status(found: Mapping[str, Any]) -> str:
    """Return what each status is worth, and the prediction sets."""
    rows = [[f"`{name}`", f"{row['share']:.1%}", f"{row['accuracy']:.3f}"] for name, row in found["status"].items()]
    rows.append(["all", "100.0%", f"{found['accuracy']['value']:.3f}"])
    advice = ", ".join(f"`{code}` {n}" for code, n in found["advice"].items())
    return (
        f"{markdown(['status', 'share of the test images', 'accuracy'], rows)}\n\n"
        f"What cannot be ruled out holds the truth for {figure(found['coverage'])} of the lesions, averaged over the "
        f"diagnoses (aim 0.90), and for {figure(found['by_class']['MEL']['coverage'])} of the melanomas, with "
        f"{found['mean_size']:.2f} diagnoses on average. Advice: {advice}."
    )


def referral(found: Mapping[str, Any]) -> str:
    """Return the operating points, the one in use first."""
    points = sorted(found["operating_points"], key=lambda point: point["name"] != found["referral"])
    header = ["operating point", "classes", "threshold", "sensitivity", "specificity"]
    rows = [
        [
            f"{point['name']} (in use)" if point["name"] == found["referral"] else point["name"],
            " ".join(point["codes"]),
            f"{point['threshold']:.3f}",
            *(point[key] for key in ("sensitivity", "specificity")),
        ]
        for point in points
    ]
    return markdown(header, rows)


def referral_point(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the operating point that `predict` follows."""
    point: Mapping[str, Any] = next(p for p in found["operating_points"] if p["name"] == found["referral"])
    return point
