"""A model and labelled images -> honest scores: only lesions that the model has not seen are counted."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dermlens.audit.findings import audit, hash_records, summary
from dermlens.bundle.bundle import Bundle, Seen
from dermlens.data.images import Pixels, load_image
from dermlens.data.manifest import manifest_sha256
from dermlens.data.records import Dataset, Record, data_fingerprint, lesions
from dermlens.diagnoses import DISCLAIMER, ISIC2019, to_isic2019
from dermlens.errors import DataError, StorageError
from dermlens.evaluation.baselines import compare_on, lines_of
from dermlens.evaluation.controls import run_controls
from dermlens.evaluation.metrics import Ints
from dermlens.evaluation.report import write_report
from dermlens.evaluation.scores import score
from dermlens.evaluation.subgroups import groups_of, scored_of, skin_tone_sentence, subgroups, typology_angle
from dermlens.evaluation.trust_figures import Answers, answers_of, calibration, decision_rules, trust_sections
from dermlens.inference.explain import Explanation
from dermlens.inference.prediction import Prediction
from dermlens.inference.predictor import DECODE_THREADS, Predictor
from dermlens.reporting.progress import track
from dermlens.text import figure

ANY_SIZE = 2**40  # the answer was given, so the limits were kept
FILES = {
    "report.html": "all of it, to be read",
    "metrics.json": "every figure",
    "predictions.csv": "every image",
}


@dataclass(frozen=True)
class Row:
    """One image of the data set: what became of it and, when it was read, the answer."""

    record: Record
    diagnosis: str | None
    group: str
    status: str
    reason: str
    answer: Prediction | None = None


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    out: Path,
    *,
    split: str | None,
    seed: int,
    console: Console,
    controls: bool = False,
) -> bool:
    """Score `predictor` on `dataset`, print the main figures, and write to `out` what stands in `FILES`.

    Args:
        controls: also test what artefacts and missing lesions do to the answers; takes some twelve times as long.

    Returns:
        True when some image could not be read; its row in predictions.csv says why.
    Raises:
        DataError: nothing is left to score. StorageError: `out` cannot be written.
    """
    bundle = predictor.bundle
    records = [r for r in dataset.records if split is None or r.split == split]
    if not records:
        found = sorted({str(r.split) for r in dataset.records})
        raise DataError(
            f"No images in split {split!r}. The data set has {', '.join(found)}.",
            remedy="Give one of those, or none.",
        )
    for note in dataset.notes:
        console.print(note, highlight=False)
    with track("Reading and hashing", len(records), console) as advance:
        hashes = hash_records(records, progress=advance)
    findings = summary(audit(records, hashes))
    numbers, seen = lesions(records, hashes), bundle.seen()
    rows = [
        _sort(bundle, record, digest, f"lesion {number}", seen)
        for record, digest, number in zip(records, hashes, numbers, strict=True)
    ]
    rows = _answer(predictor, rows, console)
    scored = [row for row in rows if row.status == "scored"]
    _write_predictions(out, rows, bundle.codes)
    aside = Counter(row.reason for row in rows if row.status == "set_aside")
    counts: dict[str, Any] = {
        "images": len(records),
        "scored": len(scored),
        "set_aside_as_seen": sum(aside.values()),
        "set_aside_by_reason": dict(aside),
        "class_not_in_model": dict(Counter(row.record.diagnosis for row in rows if row.status == "class_not_in_model")),
        "unreadable": sum(row.status == "error" for row in rows),
        "of_the_models_own_test": _own_test(bundle, rows, hashes),
        "scored_without_lesion_id": sum(not (row.record.lesion_id or row.record.isic_id) for row in scored),
    }
    _print_counts(counts, findings, console)
    if not scored:
        raise _nothing_to_score(bundle, counts, out)
    metrics = _metrics(bundle, scored, seed)
    report: dict[str, Any] = {
        "schema": "dermlens/metrics/1",
        "model": _model(bundle),
        "data": str(dataset.root),
        "manifest_sha256": manifest_sha256(dataset),
        "notes": list(dataset.notes),
        "split": split,
        "seed": seed,
        "views": predictor.views,
    }
    fingerprint = data_fingerprint(records, hashes)
    report |= {"counts": counts, "audit": findings, "leaky": bundle.leaky, "fingerprint": fingerprint, **metrics}
    answers = answers_of(
        bundle, [a for row in scored if (a := row.answer)], [row.diagnosis or "" for row in scored], _lesions(scored)
    )
    report |= _trust(answers, [row.record for row in scored], seed=seed, controls=controls, console=console)
    digests = [digest for row, digest in zip(rows, hashes, strict=True) if row.status == "scored"]
    report["baselines"] = compare_on(bundle, digests, answers.y_true, answers.decision, answers.lesions, seed=seed)
    _write_json(out / "metrics.json", report)
    names = [row.record.image for row in scored]
    write_report(out / "report.html", report, answers, names, lambda i: _explain(predictor, scored[i].record))
    _print_metrics(bundle, report, out, console)
    return bool(counts["unreadable"])


def _trust(
    answers: Answers, records: Sequence[Record], *, seed: int, controls: bool, console: Console
) -> dict[str, Any]:
    """Return what the report says beyond `scores.score`."""
    spec, bundle = answers.bundle.input_spec, answers.bundle

    def load(row: int) -> Pixels:
        return load_image(
            records[row].path, spec, frame_aspect=records[row].frame_aspect, max_bytes=ANY_SIZE, max_pixels=ANY_SIZE
        )

    groups = []
    with track("Skin tone", len(records), console) as advance, ThreadPoolExecutor(DECODE_THREADS) as pool:
        for record, angle in zip(
            records, pool.map(lambda row: typology_angle(load(row)), range(len(records))), strict=True
        ):
            groups.append(groups_of(record, angle))
            advance(1)
    table = subgroups(groups, scored_of(answers), seed=seed)
    return {
        "calibration": calibration(answers, seed=seed),
        "decision_rules": decision_rules(answers),
        **trust_sections(answers, seed=seed),
        "subgroups": table,
        "skin_tone": skin_tone_sentence(table),
        "controls": run_controls(bundle, load, answers.y_true, answers.lesions, seed=seed, console=console)
        if controls
        else None,
    }


def _explain(predictor: Predictor, record: Record) -> Explanation:
    return predictor.explain(record.path, name=record.image, frame_aspect=record.frame_aspect)


def _lesions(rows: Sequence[Row]) -> Ints:
    """Number the lesions of the scored images, (n,)."""
    return np.unique([row.group for row in rows], return_inverse=True)[1].astype(np.int64)


def _nothing_to_score(bundle: Bundle, counts: dict[str, Any], out: Path) -> DataError:
    strangers = counts["class_not_in_model"]
    return DataError(
        f"Nothing is left to score: of {counts['images']} images {counts['set_aside_as_seen']} are known to the model, "
        f"{sum(strangers.values())} are of classes that it does not have"
        f"{' (' + ', '.join(sorted(strangers)) + ')' if strangers else ''}, {counts['unreadable']} are unreadable.",
        remedy=f"Give images of other lesions, named as the model names them ({', '.join(bundle.codes)}); "
        f"{out / 'predictions.csv'} says why each was left out.",
        code="nothing_to_score",
    )


def _own_test(bundle: Bundle, rows: Sequence[Row], hashes: Sequence[str | None]) -> int:
    """How many scored images are of the test role that the model's own data set was split into."""
    seen = bundle.seen(("test",))
    pairs = zip(rows, hashes, strict=True)
    return sum(
        row.status == "scored" and seen.reason(digest, row.record.lesion_id, row.record.isic_id) is not None
        for row, digest in pairs
    )


def map_label(diagnosis: str, codes: Sequence[str]) -> str | None:
    """Return the class of the model that a label means, or None; to a model of the ISIC 2019 classes SK is BKL."""
    if diagnosis in codes:
        return diagnosis
    if set(codes) <= set(ISIC2019):
        parent = to_isic2019(diagnosis)
        return parent if parent in codes else None
    return None


def _sort(bundle: Bundle, record: Record, digest: str | None, group: str, seen: Seen) -> Row:
    label = map_label(record.diagnosis, bundle.codes)
    reason = seen.reason(digest, record.lesion_id, record.isic_id)
    if reason is not None:
        return Row(record, label, group, "set_aside", reason)
    if label is None:
        return Row(record, None, group, "class_not_in_model", f"the model has no class {record.diagnosis}")
    return Row(record, label, group, "scored", "")


def _answer(predictor: Predictor, rows: list[Row], console: Console) -> list[Row]:
    chosen = [row for row in rows if row.status == "scored"]
    answers = predictor.predict_many(
        [row.record.path for row in chosen],
        names=[row.record.image for row in chosen],
        frame_aspects=[row.record.frame_aspect for row in chosen],
    )
    result = []
    with track("Predicting", len(chosen), console) as advance:
        for row in rows:
            if row.status != "scored":
                result.append(row)
                continue
            answer = next(answers)
            status, reason = ("error", answer.error["message"]) if answer.error else ("scored", "")
            result.append(Row(row.record, row.diagnosis, row.group, status, reason, answer))
            advance(1)
    return result


def _metrics(bundle: Bundle, scored: Sequence[Row], seed: int) -> dict[str, Any]:
    codes = bundle.codes
    truth = np.array([codes.index(row.diagnosis or "") for row in scored])
    probability = np.array([[row.answer.probabilities[c] for c in codes] for row in scored if row.answer])
    decision = np.array([codes.index(row.answer.diagnosis_code or "") for row in scored if row.answer])
    return score(truth, probability, decision, [row.group for row in scored], codes, seed=seed)


def _model(bundle: Bundle) -> dict[str, str]:
    return {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256}


def _write_predictions(out: Path, rows: Sequence[Row], codes: Sequence[str]) -> None:
    def cells(row: Row) -> list[Any]:
        answer = row.answer
        ok = answer is not None and answer.error is None
        shares = [f"{answer.probabilities[c]:.6f}" if ok and answer else "" for c in codes]
        decided = answer.diagnosis_code if ok and answer else ""
        record = row.record
        return [
            record.image,
            record.lesion_id or "",
            record.diagnosis,
            row.diagnosis or "",
            row.status,
            row.reason,
            decided,
            *shares,
            *([answer.status, " ".join(answer.prediction_set or ())] if ok and answer else ["", ""]),
        ]

    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "predictions.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            header = ["image", "lesion_id", "label", "diagnosis", "status", "reason", "decision"]
            writer.writerow([*header, *(f"p_{c}" for c in codes), "answer_status", "prediction_set"])
            writer.writerows(cells(row) for row in rows)
    except OSError as error:
        raise _storage(out, error) from error


def _write_json(path: Path, report: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise _storage(path, error) from error


def _storage(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"The evaluation could not be written to {path}: {error.strerror or error}.",
        remedy="Free some space or choose another --out.",
    )


def _print_counts(counts: dict[str, Any], findings: Sequence[str], console: Console) -> None:
    for line in findings:
        console.print(f"Audit: {line}", highlight=False)
    reasons = ", ".join(f"{n} {reason}" for reason, n in counts["set_aside_by_reason"].items())
    console.print(
        f"{counts['images']} images: {counts['scored']} scored, "
        f"{counts['set_aside_as_seen']} set aside as seen by the model{f' ({reasons})' if reasons else ''}, "
        f"{sum(counts['class_not_in_model'].values())} of classes it does not have, "
        f"{counts['unreadable']} unreadable.",
        highlight=False,
    )


def _print_metrics(bundle: Bundle, metrics: dict[str, Any], out: Path, console: Console) -> None:
    if bundle.leaky:
        console.print(
            "LEAKY model: trained with images or lesions of its own test split.", style="red", highlight=False
        )
    for name in ("balanced_accuracy", "accuracy", "macro_auc", "ece"):
        console.print(f"  {name.replace('_', ' '):18} {figure(metrics[name])}", highlight=False)
    for code, row in metrics["per_class"].items():
        console.print(f"  {code:18} sensitivity {figure(row['sensitivity'])}, n = {row['n']}", highlight=False)
    status = metrics["status"]
    console.print(
        f"  {'sure (status ok)':18} {status['ok']['share']['value']:.1%} of the images, accuracy "
        f"{figure(status['ok']['accuracy'])}; rejected {status['rejected']['share']['value']:.1%}",
        highlight=False,
    )
    for line in lines_of(metrics["baselines"]):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"In {out}: " + ", ".join(f"{name} ({what})" for name, what in FILES.items()), highlight=False)
    console.print(DISCLAIMER, style="bold", highlight=False)
