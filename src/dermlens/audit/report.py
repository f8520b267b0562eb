"""An audit in words: the verdict, the summary on the terminal, and the page."""

from __future__ import annotations

import html
import shlex
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console

from dermlens.audit.detectors import WORDS
from dermlens.audit.findings import Finding, repair_command, summary
from dermlens.audit.page import Exhibit, Section, Tile, write_audit_page
from dermlens.audit.repair import Repair
from dermlens.audit.run import Audit
from dermlens.data.records import Dataset, Record
from dermlens.diagnoses import display_name
from dermlens.errors import UsageError
from dermlens.reporting.plots import classes_png, rates_png, shares_png

_CROSSING = ("same_image_across_split", "lesion_across_split", "patient_across_split", "near_duplicate_across_split")
MAX_EXHIBITS = 12
MAX_TILES = 4

_TITLES = {
    "unreadable": ("Unreadable images", "They are left out of every training and test."),
    "contradicting_labels": (
        "One picture, two diagnoses",
        "The very same file is filed under different diagnoses; whatever a model answers, one of the two is wrong.",
    ),
    "near_duplicates_contradicting": (
        "One picture in different files, two diagnoses",
        "The files differ, the picture is the same: recompressed, resized, turned or recoloured.",
    ),
    "lesion_under_two_diagnoses": (
        "One lesion, two diagnoses",
        "Different photographs of one lesion carry different diagnoses.",
    ),
    "label_against_reference": ("Labels that the reference denies", "The reference has the confirmed diagnosis."),
    "same_image_across_split": (
        "The same picture in training and test",
        "A test with pictures that the model has learned measures memory.",
    ),
    "lesion_across_split": (
        "The same lesion in training and test",
        "The test shows another photograph of a lesion that the model has learned.",
    ),
    "patient_across_split": (
        "The same patient in training and test",
        "Skin, light and camera of a patient are known to the model.",
    ),
    "near_duplicate_across_split": (
        "Nearly the same picture in training and test",
        "Inferred from how the pictures look; no metadata says so.",
    ),
    "shared_with_other_data": (
        "Shared with the other data set",
        "A model that learned one of the two sets has seen these.",
    ),
    "label_suspect": (
        "Labels to look at again",
        "A simple classifier that never saw these lesions finds another diagnosis far likelier; it is often wrong "
        "itself, so these are the images to look at first.",
    ),
    "identical_images": ("Copies", "The same file more than once, under one diagnosis; one copy is enough."),
    "near_duplicates": ("Near copies", "The same picture in different files, under one diagnosis."),
    "class_too_small": ("Classes too small to learn", "A model cannot learn these, nor can a test show that it did."),
    "class_hard_to_score": ("Classes too small to score", "Their scores are little more than chance."),
    "class_imbalance": ("Imbalance", "Accuracy alone rewards a model that ignores the rare classes."),
    "source_shortcut": (
        "Shortcuts",
        "The class can be told without looking at the lesion: a model may learn the camera and not the disease.",
    ),
    "artefact_by_class": (
        "Hair, rulers, ink and dark corners",
        "What stands beside the lesion differs between the classes: a model may learn it instead of the disease.",
    ),
    "near_uniform": ("Nothing on the picture", "Nearly one colour."),
    "blurred": ("Out of focus", "Hardly any detail."),
    "dark": ("Too dark", "Large parts are nearly black."),
    "overexposed": ("Overexposed", "Large parts are white."),
    "extreme_shape": ("Extreme size or shape", "Very small or very long pictures."),
}


def failing(wanted: Sequence[str], kinds: Sequence[str]) -> frozenset[str]:
    """Return the kinds on which `--fail-on` fails; `any` means all of them."""
    unknown = [kind for kind in wanted if kind not in (*kinds, "any")]
    if unknown:
        raise UsageError(
            f"--fail-on {unknown[0]!r} is no kind of finding. Allowed: any, {', '.join(kinds)}.",
            remedy="Choose one of them.",
        )
    return frozenset(kinds) if "any" in wanted else frozenset(wanted)


def verdict(audit: Audit) -> list[str]:
    """Return three sentences that a clinician understands: the labels, the test, what to do."""
    return [_on_labels(audit), _on_test(audit), _advice(audit)]


def print_audit(audit: Audit, console: Console) -> None:
    """Print the verdict and one line for each kind of finding."""
    for sentence in verdict(audit):
        console.print(sentence, highlight=False, markup=False)
    lines = summary(audit.findings)
    if lines:
        console.print()
    for line in lines:
        console.print(f"  {line}", highlight=False, markup=False)


def as_html(audit: Audit) -> str:
    """Return the verdict and the summary for a notebook."""
    told = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in verdict(audit))
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in summary(audit.findings))
    return f'<div class="dermlens">{told}<ul>{lines}</ul></div>'


def print_repair(repair: Repair, manifest: Path, dataset: Dataset, console: Console) -> None:
    """Print what was repaired and how to train on it."""
    for line in [*_repaired(repair), f"Written: {manifest}"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if not any(row.included for row in repair.rows):
        return
    words = ["dermlens", "train", str(manifest), "--images", str(dataset.root), "--out", "runs/repaired"]
    command = shlex.join(words)
    console.print(f"Train on it: {command}", highlight=False, markup=False, soft_wrap=True)


def write_report(audit: Audit, repair: Repair, path: Path, *, manifest: Path | None) -> None:
    """Write the page; the repair is told as done where it was written to `manifest`, else as offered."""
    done = [f"The repair was written to {manifest}."] if manifest else ["Not repaired yet. A repair would do this:"]
    closing = [] if manifest else [f"Run: {repair_command(audit.dataset)}"]
    write_audit_page(
        path,
        data=f"{audit.dataset.origin or audit.dataset.root}: {audit.counts['images']} images, {audit.dataset.layout}"
        + (f"; reference {audit.reference}" if audit.reference else "; no reference"),
        verdict=verdict(audit),
        figures=_figures(audit),
        sections=_sections(audit),
        plots=_plots(audit),
        repair=[*done, *_repaired(repair), *closing],
        notes=audit.dataset.notes,
    )


def _on_labels(audit: Audit) -> str:
    counts = audit.counts
    number = counts["contradicting_images"]
    against = counts["labels_against_reference"]
    denied = ""
    if against:
        wrong = against["disagree"]
        denied = f"; the reference denies the diagnosis of {wrong} images" if wrong else "; the reference denies none"
    near = counts["contradicting_only_by_near_copies"]
    if not number and near:
        return f"{near} {_pictures(near)} under two diagnoses, in different files (inferred){denied}."
    if not number:
        return f"No picture of {counts['different_pictures']:,} stands under two diagnoses{denied}."
    pairs = ", ".join(f"{n} as {' and '.join(map(display_name, p.split('/')))}" for p, n in _pairs(audit).items())
    more = f", {near} more in different files (inferred)" if near else ""
    known = f"{number} of {counts['different_pictures']:,} pictures stand under two diagnoses at once ({pairs})"
    return f"{known}{more}{denied}."


def _pictures(number: int) -> str:
    return "picture stands" if number == 1 else "pictures stand"


def _pairs(audit: Audit) -> dict[str, int]:
    pairs: dict[str, int] = audit.counts["contradictions_by_pair"]
    return pairs


def _on_test(audit: Audit) -> str:
    counts, unseen = audit.counts, _unseen(audit)
    if audit.ceiling is None:
        crossing = sum(finding.kind in _CROSSING for finding in audit.findings)
        if crossing:
            return f"{crossing} pictures, lesions or patients stand on both sides of its split, which is then no test."
        rest = f", but {unseen}" if unseen else ""
        return (
            f"The data set has no test of its own, so nothing leaks into one; a split must keep lesions together{rest}."
        )
    leaked, test = counts["test_images_leaked_any"], counts["test_images"]
    ceiling = f"a model that learns the training labels exactly is right on at most {_ceiling(audit)} of it"
    near = counts["test_images_leaked_only_by_near_duplicate"]
    if not leaked and near:
        return f"{near} of the {test} test images look like copies of training images (inferred); {ceiling}."
    if not leaked and unseen:
        return f"As far as file bytes and looks tell, none of the {test} test images is known from training; {unseen}."
    if not leaked:
        return f"None of the {test} test images is known from training; {ceiling}."
    more = f", and {near} more look like copies of training images (inferred)" if near else ""
    return (
        f"{leaked} of the {test} test images show a picture, lesion or patient that is also in training{more}, so a "
        f"score on this test cannot be believed, and {ceiling}."
    )


def _unseen(audit: Audit) -> str:
    """Return what no one can see without lesion ids, "" where every image has one."""
    without, images = audit.counts["images_without_lesion_id"], audit.counts["images"]
    if not without:
        return ""
    return f"{without:,} of {images:,} images carry no lesion id, so other views of a lesion cannot be recognised"


def _ceiling(audit: Audit) -> str:
    """Return the most that can be reached, with what near copies make of it where that is less."""
    certain, inferred = audit.ceiling or 0.0, audit.inferred_ceiling or 0.0
    if inferred == certain:
        return f"{certain * 100:.1f} %"
    if certain == 1:
        return f"{inferred * 100:.1f} % (near copies counted as the same picture, inferred)"
    return f"{certain * 100:.1f} % ({inferred * 100:.1f} % with near copies counted as the same picture, inferred)"


def _advice(audit: Audit) -> str:
    errors = any(finding.severity == "error" for finding in audit.findings)
    shortcut = any(finding.kind == "source_shortcut" for finding in audit.findings)
    warning = "; do not trust the model on images of another source before it was tested there" if shortcut else ""
    if errors:
        return f"Do not train on it as it is: repair it first and train on the repaired list{warning}."
    if _unseen(audit):
        return f"Nothing that was found speaks against training on it as it is{warning}."
    return f"It can be trained on as it is{warning}."


def _repaired(repair: Repair) -> list[str]:
    counts = repair.counts()
    out, changed = counts["excluded_by_reason"], counts["relabelled_by_pair"]
    lines = [f"{counts['included']} of {counts['images']} images are used; no image file is touched."]
    if isinstance(changed, dict) and changed:
        lines.append(f"Labels corrected: {', '.join(f'{n} {pair}' for pair, n in changed.items())}.")
    copies = sum(not row.included and row.diagnosis != row.record.diagnosis for row in repair.rows)
    if copies:
        lines.append(f"{copies} more had a wrong label; they are left out, since another copy or the test has them.")
    if isinstance(out, dict) and out:
        lines.append(f"Left out: {', '.join(f'{n} {why}' for why, n in out.items())}.")
    lines += [f"The class {code} is dropped: {why}." for code, why in repair.dropped.items()]
    return lines


def _figures(audit: Audit) -> dict[str, str]:
    counts = audit.counts
    near, leaked = counts["contradicting_only_by_near_copies"], counts["test_images_leaked_only_by_near_duplicate"]
    figures = {
        "images": f"{counts['images']:,}",
        "pictures under two diagnoses": f"{counts['contradicting_images']:,}{_more(near, 'in different files')}",
        "pictures with identical copies": f"{counts['exact_duplicate_groups']:,}",
        "pictures with near copies": f"{counts['near_duplicate_groups']:,}",
        "unreadable": f"{counts['unreadable']:,}",
    }
    if counts["label_suspects"] is not None:
        figures["labels to look at again"] = f"{counts['label_suspects']:,}"
    if audit.ceiling is not None:
        known = f"{counts['test_images_leaked_any']} of {counts['test_images']}{_more(leaked, 'by their looks')}"
        figures |= {
            "test images known from training": known,
            "most that a model which fits its training labels can reach on the test": _ceiling(audit),
        }
    if counts["labels_against_reference"]:
        figures["labels that the reference denies"] = f"{counts['labels_against_reference']['disagree']:,}"
    return figures


def _more(number: int, how: str) -> str:
    return f", {number:,} more {how} (inferred)" if number else ""


def _sections(audit: Audit) -> list[Section]:
    records = {record.image: record for record in audit.dataset.records}
    sections = []
    for kind, group in groupby(audit.findings, key=lambda finding: finding.kind):
        findings = list(group)
        title, meaning = _TITLES[kind]
        shown = findings if kind == "label_suspect" else _mixed(findings)  # suspects are ranked already
        exhibits = tuple(_exhibit(finding, records) for finding in shown[:MAX_EXHIBITS])
        (line,) = summary(findings)
        more = max(0, len(findings) - MAX_EXHIBITS)
        sections.append(Section(title, findings[0].severity, line, f"{meaning} {findings[0].remedy}", exhibits, more))
    return sections


def _mixed(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings so that those of each combination of diagnoses come in turn."""
    turn: Counter[frozenset[str]] = Counter()
    turns = []
    for finding in findings:
        labels = frozenset(finding.labels)
        turns.append(turn[labels])
        turn[labels] += 1
    return [findings[i] for i in sorted(range(len(findings)), key=lambda i: (turns[i], i))]


def _exhibit(finding: Finding, records: dict[str, Record]) -> Exhibit:
    """Show pictures of each diagnosis and side in turn, so that both sides of a finding are seen."""
    labels = finding.labels or ("",) * len(finding.images)
    hints = finding.suggested or ("",) * len(finding.images)
    chosen = [
        (record, _caption(label, hint, record.split))
        for image, label, hint in zip(finding.images, labels, hints, strict=True)
        if (record := records.get(image)) is not None
    ]
    turn: Counter[str] = Counter()
    turns = []
    for _, text in chosen:
        turns.append(turn[text])
        turn[text] += 1
    order = sorted(range(len(chosen)), key=lambda i: (turns[i], i))[:MAX_TILES]
    tiles = tuple(Tile(chosen[i][0].path, chosen[i][1], chosen[i][0].image) for i in order)
    return Exhibit(finding.evidence, tiles, max(0, len(finding.images) - len(tiles)) if tiles else 0)


def _caption(label: str, hint: str, split: str | None) -> str:
    side = f" ({split})" if split else ""
    return (
        f"given: {display_name(label)}{side}; suggested: {display_name(hint)}" if hint else display_name(label) + side
    )


def _plots(audit: Audit) -> list[tuple[bytes, str]]:
    plots = [(classes_png({code: row["by_split"] for code, row in audit.classes.items()}), "Images of each class")]
    shortcuts = audit.shortcuts
    if shortcuts and shortcuts.probes:
        scores = {probe.family.replace("_", " "): probe.balanced_accuracy for probe in shortcuts.probes}
        text = (
            "How well the class is told from facts of the file alone (balanced accuracy over folds; accuracy "
            f"{shortcuts.probes[0].accuracy:.2f} with all of them, {shortcuts.majority_accuracy:.2f} by always naming "
            "the commonest class)"
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
