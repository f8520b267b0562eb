"""An audit for people: the summary on the terminal, and a self-contained page with the pictures side by side."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import cv2
from rich.console import Console

from dermlens.audit.detectors import WORDS
from dermlens.audit.findings import Finding, repair_command, summary
from dermlens.audit.repair import Repair
from dermlens.audit.verdict import Audit, as_json, ceiling_text
from dermlens.data.images import InputSpec, load_image
from dermlens.data.records import Dataset, Record
from dermlens.diagnoses import DISCLAIMER, display_name
from dermlens.errors import ImageError, os_errors
from dermlens.files import write_text
from dermlens.html import data_uri, write_page
from dermlens.reporting.plots import classes_png, rates_png, shares_png

MAX_EXHIBITS = 12
MAX_TILES = 4
_THUMBNAIL = InputSpec(size_px=160, framing="pad")
_JPEG_QUALITY = 82

T = TypeVar("T")

_TITLES = {
    "unreadable": ("Unreadable images", "They are left out of every training and test."),
    "contradicting_labels": (
        "One picture, two diagnoses",
        "The same file has different diagnoses. Whatever a model answers, it is wrong for one of them.",
    ),
    "near_duplicates_contradicting": (
        "One picture in different files, two diagnoses",
        "The files differ, the picture is the same: recompressed, resized, turned or recoloured.",
    ),
    "lesion_under_two_diagnoses": (
        "One lesion, two diagnoses",
        "Different photographs of one lesion have different diagnoses.",
    ),
    "label_against_reference": ("Labels that the reference contradicts", "The reference has the confirmed diagnosis."),
    "same_image_across_split": (
        "The same picture in training and test",
        "The model has seen these test pictures in training: the test measures memory.",
    ),
    "lesion_across_split": (
        "The same lesion in training and test",
        "The test shows another photograph of a lesion from training.",
    ),
    "patient_across_split": (
        "The same patient in training and test",
        "The model has seen this patient's skin, light and camera in training.",
    ),
    "near_duplicate_across_split": (
        "Nearly the same picture in training and test",
        "Inferred from how the pictures look; no metadata confirms it.",
    ),
    "shared_with_other_data": (
        "Shared with the other data set",
        "A model trained on one of the two sets has seen these.",
    ),
    "label_suspect": (
        "Labels to check",
        "A simple classifier that never saw these lesions finds another diagnosis much more likely. It is often wrong, "
        "so this is only a list of the images to look at first.",
    ),
    "identical_images": ("Copies", "The same file more than once, with one diagnosis; one copy is enough."),
    "near_duplicates": ("Near copies", "The same picture in different files, with one diagnosis."),
    "class_too_small": (
        "Classes too small to learn",
        "A model cannot learn these, and a test cannot show that it did.",
    ),
    "class_hard_to_score": ("Classes too small to score", "Their scores are hardly better than chance."),
    "class_imbalance": ("Imbalance", "Accuracy alone rewards a model that ignores the rare classes."),
    "source_shortcut": (
        "Shortcuts",
        "The class can be predicted without the lesion: a model may learn the camera instead of the disease.",
    ),
    "artefact_by_class": (
        "Hair, rulers, ink and dark corners",
        "What is beside the lesion differs between the classes: a model may learn it instead of the disease.",
    ),
    "near_uniform": ("Nothing on the picture", "Nearly one colour."),
    "blurred": ("Out of focus", "Hardly any detail."),
    "dark": ("Too dark", "Large parts are nearly black."),
    "overexposed": ("Overexposed", "Large parts are white."),
    "extreme_shape": ("Extreme size or shape", "Very small or very long pictures."),
}


def print_audit(audit: Audit, console: Console) -> None:
    """Print the verdict and one line for each kind of finding."""
    lines = [f"  {line}" for line in summary(audit.findings)]
    for line in [*audit.verdict(), *([""] if lines else []), *lines]:
        console.print(line, highlight=False, markup=False)


def print_repair(repair: Repair, manifest: Path, dataset: Dataset, console: Console) -> None:
    """Print what was repaired and how to train on it."""
    lines = [*_repair_lines(repair), f"Written: {manifest}"]
    if any(row.included for row in repair.rows):
        words = ["dermlens", "train", str(manifest), "--images", str(dataset.root), "--out", "runs/repaired"]
        lines.append(f"Train on it: {shlex.join(words)}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def write_audit(audit: dict[str, Any], path: Path) -> None:
    """Write `Audit.as_dict()` as JSON.

    Raises:
        StorageError: it cannot be written.
    """
    with os_errors(f"The audit could not be written to {path}", "Choose another --out, or free some space."):
        write_text(path, as_json(audit))


def write_report(audit: Audit, repair: Repair, path: Path, *, manifest: Path | None) -> None:
    """Write the page; the repair was made where it was written to `manifest`, else it is offered.

    Raises:
        StorageError: it cannot be written.
    """
    done = [f"The repair was written to {manifest}."] if manifest else ["Not repaired yet. A repair would do this:"]
    closing = [] if manifest else [f"Run: {repair_command(audit.dataset)}"]
    write_page(
        path,
        "audit.html",
        data=f"{audit.dataset.origin or audit.dataset.root}: {audit.counts['images']} images, {audit.dataset.layout}; "
        f"{f'reference {audit.reference}' if audit.reference else 'no reference'}",
        verdict=audit.verdict(),
        figures=_figures(audit),
        sections=_sections(audit),
        plots=[(data_uri(png), text) for png, text in _plots(audit)],
        repair=[*done, *_repair_lines(repair), *closing],
        notes=audit.dataset.notes,
        disclaimer=DISCLAIMER,
    )


def _repair_lines(repair: Repair) -> list[str]:
    counts = repair.counts()
    reasons, changed = counts["excluded_by_reason"], counts["relabelled_by_pair"]
    lines = [f"{counts['included']} of {counts['images']} images are used; no image file is changed."]
    if isinstance(changed, dict) and changed:
        lines.append(f"Labels corrected: {', '.join(f'{n} {pair}' for pair, n in changed.items())}.")
    copies = sum(not row.included and row.diagnosis != row.record.diagnosis for row in repair.rows)
    if copies:
        lines.append(f"{copies} more had a wrong label; they are left out, since another copy or the test has them.")
    if isinstance(reasons, dict) and reasons:
        lines.append(f"Left out: {', '.join(f'{n} {why}' for why, n in reasons.items())}.")
    return lines + [f"The class {code} is dropped: {why}." for code, why in repair.dropped.items()]


def _figures(audit: Audit) -> dict[str, str]:
    counts = audit.counts
    near, leaked = counts["contradicting_only_by_near_copies"], counts["test_images_leaked_only_by_near_duplicate"]
    figures = {
        "images": f"{counts['images']:,}",
        "pictures with two diagnoses": f"{counts['contradicting_images']:,}{_more(near, 'in different files')}",
        "pictures with identical copies": f"{counts['exact_duplicate_groups']:,}",
        "pictures with near copies": f"{counts['near_duplicate_groups']:,}",
        "unreadable": f"{counts['unreadable']:,}",
    }
    if counts["label_suspects"] is not None:
        figures["labels to check"] = f"{counts['label_suspects']:,}"
    if audit.ceiling is not None:
        known = f"{counts['test_images_leaked_any']} of {counts['test_images']}{_more(leaked, 'by their looks')}"
        figures |= {
            "test images that are also in training": known,
            "best possible test accuracy of a model that fits its training labels": ceiling_text(audit),
        }
    if counts["labels_against_reference"]:
        figures["labels that the reference contradicts"] = f"{counts['labels_against_reference']['disagree']:,}"
    return figures


def _more(number: int, how: str) -> str:
    return f", {number:,} more {how} (inferred)" if number else ""


def _sections(audit: Audit) -> list[dict[str, Any]]:
    records = {record.image: record for record in audit.dataset.records}
    thumbnail = cache(_thumbnail)
    sections = []
    for kind, group in groupby(audit.findings, key=lambda finding: finding.kind):
        findings = list(group)
        title, meaning = _TITLES[kind]
        mixed = _in_turn(findings, [frozenset(finding.labels) for finding in findings])
        shown = findings if kind == "label_suspect" else mixed  # suspects are ranked already
        exhibits = [_exhibit(finding, records, thumbnail) for finding in shown[:MAX_EXHIBITS]]
        sections.append(
            {
                "title": title,
                "severity": findings[0].severity,
                "summary": summary(findings)[0],
                "meaning": f"{meaning} {findings[0].remedy}",
                "exhibits": exhibits,
                "more": len(findings) - len(exhibits),
            }
        )
    return sections


def _in_turn(things: Sequence[T], keys: Sequence[Hashable]) -> list[T]:
    """Return the things so that those of each key come in turn: the first of every key, then the second."""
    seen: Counter[Hashable] = Counter()
    turns = []
    for key in keys:
        turns.append(seen[key])
        seen[key] += 1
    return [things[i] for i in sorted(range(len(things)), key=lambda i: turns[i])]


def _exhibit(finding: Finding, records: dict[str, Record], thumbnail: Callable[[Path], str]) -> dict[str, Any]:
    """Show pictures of each diagnosis and side in turn, so that both sides of a finding are seen."""
    labels = finding.labels or ("",) * len(finding.images)
    suggested = finding.suggested or ("",) * len(finding.images)
    own = [
        (records[image], _caption(label, other, records[image].split))
        for image, label, other in zip(finding.images, labels, suggested, strict=True)
        if image in records
    ]
    chosen = _in_turn(own, [caption for _, caption in own])[:MAX_TILES]
    tiles = [{"picture": thumbnail(r.path), "label": caption, "name": r.image} for r, caption in chosen]
    return {"text": finding.evidence, "tiles": tiles, "more": len(finding.images) - len(tiles) if tiles else 0}


def _thumbnail(path: Path) -> str:
    try:
        pixels = load_image(path, _THUMBNAIL)
    except ImageError:
        return ""
    _, code = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return data_uri(code.tobytes(), "image/jpeg")


def _caption(label: str, suggested: str, split: str | None) -> str:
    given = display_name(label) + (f" ({split})" if split else "")
    return f"given: {given}; suggested: {display_name(suggested)}" if suggested else given


def _plots(audit: Audit) -> list[tuple[bytes, str]]:
    plots = [(classes_png({code: row["by_split"] for code, row in audit.classes.items()}), "Images of each class")]
    shortcuts = audit.shortcuts
    if shortcuts and shortcuts.probes:
        scores = {probe.family.replace("_", " "): probe.balanced_accuracy for probe in shortcuts.probes}
        text = (
            "How well facts of the file alone predict the class (balanced accuracy over folds; accuracy "
            f"{shortcuts.probes[0].accuracy:.2f} with all of them, {shortcuts.majority_accuracy:.2f} by always naming "
            "the most common class)"
        )
        chance = ("chance", shortcuts.chance_balanced_accuracy)
        plots.append((shares_png(scores, "balanced accuracy", chance), text))
    rates = {
        WORDS[name]: {code: (rate.share, rate.low, rate.high) for code, rate in found.by_class.items()}
        for name, found in audit.artefacts.items()
        if any(rate.share for rate in found.by_class.values())
    }
    if rates:
        text = "Hair, rulers, ink and dark corners: share of the lesions of each class, with 95 % intervals"
        plots.append((rates_png(rates), text))
    return plots
