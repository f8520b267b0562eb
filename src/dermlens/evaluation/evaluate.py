"""A model and labelled images -> honest scores: only lesions that the model has not seen are counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from dermlens.audit.findings import basic_findings, hash_records, summary
from dermlens.bundle.bundle import Bundle
from dermlens.data.images import Pixels, load_image
from dermlens.data.manifest import manifest_sha256
from dermlens.data.records import Dataset, Record, data_fingerprint, lesions
from dermlens.diagnoses import DISCLAIMER, map_label
from dermlens.errors import DataError, os_errors
from dermlens.evaluation.baselines import compare_on, lines_of
from dermlens.evaluation.controls import run_controls
from dermlens.evaluation.report import write_report
from dermlens.evaluation.scores import score
from dermlens.evaluation.subgroups import groups_of, skin_tone_sentence, subgroups, typology_angle
from dermlens.evaluation.trust_sections import Answers, answers_of, calibration, trust_sections
from dermlens.files import write_csv, write_text
from dermlens.inference.prediction import Prediction
from dermlens.inference.predictor import DECODE_THREADS, Predictor
from dermlens.reporting.progress import track
from dermlens.text import figure

ANY_SIZE = 2**40  # the answer was given, so the limits were kept
FILES = {"report.html": "the report, for people", "metrics.json": "every figure", "predictions.csv": "every image"}


@dataclass(frozen=True)
class Row:
    """One image of the data set: its status, the reason for it and, where it was scored, the answer.

    Attributes:
        diagnosis: the class of the model that the label means, None where it has none.
        lesion: a name for its lesion, the same for all its images.
        status: "scored", "set_aside", "class_not_in_model" or "error".
    """

    record: Record
    diagnosis: str | None
    lesion: str
    status: str
    reason: str = ""
    answer: Prediction | None = None

    @property
    def is_scored(self) -> bool:
        """Whether its answer counts."""
        return self.status == "scored"


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
    """Score `predictor` on `dataset`, print the main figures, and write the files named in `FILES` to `out`.

    Args:
        controls: also test the effect of artefacts and of a hidden lesion; takes about twelve times as long.

    Returns:
        True when an image could not be read; its row in predictions.csv gives the reason.
    Raises:
        DataError: no image can be scored. StorageError: `out` cannot be written.
    """
    bundle, records = predictor.bundle, _records(dataset, split)
    for note in dataset.notes:
        console.print(note, highlight=False, markup=False)
    with track("Reading and hashing", len(records), console) as advance:
        hashes = hash_records(records, progress=advance)
    findings = summary(basic_findings(records, hashes))
    rows = _answer(predictor, _sort(bundle, records, hashes), console)
    with _writing(out):
        write_csv(out / "predictions.csv", _table(rows, bundle.codes))
    counts = _counts(bundle, rows, hashes)
    _print_counts(counts, findings, console)
    scored = [
        (row, digest, row.answer) for row, digest in zip(rows, hashes, strict=True) if row.is_scored and row.answer
    ]
    if not scored:
        raise _nothing_to_score(bundle, counts, out)
    chosen = [row.record for row, _, _ in scored]
    answers = answers_of(
        bundle,
        [answer for _, _, answer in scored],
        [row.diagnosis or "" for row, _, _ in scored],
        [row.lesion for row, _, _ in scored],
    )
    report = {
        **_about(predictor, dataset, split, seed),
        "counts": counts,
        "audit": findings,
        "leaky": bundle.leaky,
        "fingerprint": data_fingerprint(records, hashes),
        **_figures(answers, chosen, [digest for _, digest, _ in scored], seed=seed, controls=controls, console=console),
    }
    with _writing(out):
        write_text(out / "metrics.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_report(
        out / "report.html",
        report,
        answers,
        [record.image for record in chosen],
        lambda i: predictor.explain(chosen[i].path, name=chosen[i].image, frame_aspect=chosen[i].frame_aspect),
    )
    _print_metrics(report, out, console)
    return bool(counts["unreadable"])


def _records(dataset: Dataset, split: str | None) -> list[Record]:
    records = [r for r in dataset.records if split is None or r.split == split]
    if not records:
        found = sorted({str(r.split) for r in dataset.records})
        raise DataError(
            f"No images in split {split!r}. The data set has {', '.join(found)}.",
            remedy="Choose one of these, or leave --split out.",
        )
    return records


def _about(predictor: Predictor, dataset: Dataset, split: str | None, seed: int) -> dict[str, Any]:
    """Return what was measured: the model, the data and how."""
    bundle = predictor.bundle
    return {
        "schema": "dermlens/metrics/2",
        "model": {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256},
        "data": str(dataset.root),
        "manifest_sha256": manifest_sha256(dataset),
        "notes": list(dataset.notes),
        "split": split,
        "seed": seed,
        "views": predictor.views,
    }


def _figures(
    answers: Answers,
    records: Sequence[Record],
    hashes: Sequence[str | None],
    *,
    seed: int,
    controls: bool,
    console: Console,
) -> dict[str, Any]:
    """Return every figure of the scored images."""
    truth, decision, lesion_numbers = answers.y_true, answers.decision, answers.lesions
    scores = score(
        truth,
        answers.probability,
        decision,
        lesion_numbers.tolist(),
        answers.bundle.codes,
        mix=answers.mix,
        seed=seed,
    )
    trust = _trust(answers, records, seed=seed, controls=controls, console=console)
    baselines = compare_on(answers.bundle, list(hashes), truth, decision, lesion_numbers, seed=seed)
    return {**scores, **trust, "baselines": baselines}


def _sort(bundle: Bundle, records: Sequence[Record], hashes: Sequence[str | None]) -> list[Row]:
    """Return what is to be done with each image, before any is answered."""
    seen = bundle.seen()

    def row(record: Record, digest: str | None, lesion: str) -> Row:
        label = map_label(record.diagnosis, bundle.codes)
        if reason := seen.reason(digest, record.lesion_id, record.isic_id):
            return Row(record, label, lesion, "set_aside", reason)
        if label is None:
            return Row(record, None, lesion, "class_not_in_model", f"the model has no class {record.diagnosis}")
        return Row(record, label, lesion, "scored")

    return [row(*each) for each in zip(records, hashes, map(str, lesions(records, hashes)), strict=True)]


def _answer(predictor: Predictor, rows: Sequence[Row], console: Console) -> list[Row]:
    """Answer the images to be scored; one that cannot be read becomes an error."""
    chosen = [row.record for row in rows if row.status == "scored"]
    answers = predictor.predict_many(
        [record.path for record in chosen],
        names=[record.image for record in chosen],
        frame_aspects=[record.frame_aspect for record in chosen],
    )
    result = []
    with track("Predicting", len(chosen), console) as advance:
        for row in rows:
            if row.status == "scored":
                answer = next(answers)
                row = replace(row, answer=answer)
                if answer.error:
                    row = replace(row, status="error", reason=answer.error["message"])
                advance(1)
            result.append(row)
    return result


def _counts(bundle: Bundle, rows: Sequence[Row], hashes: Sequence[str | None]) -> dict[str, Any]:
    tested_on = bundle.seen(("test",))
    scored = [(row.record, digest) for row, digest in zip(rows, hashes, strict=True) if row.status == "scored"]
    set_aside = Counter(row.reason for row in rows if row.status == "set_aside")
    return {
        "images": len(rows),
        "scored": len(scored),
        "set_aside_as_seen": sum(set_aside.values()),
        "set_aside_by_reason": dict(set_aside),
        "class_not_in_model": dict(Counter(row.record.diagnosis for row in rows if row.status == "class_not_in_model")),
        "unreadable": sum(row.status == "error" for row in rows),
        "of_the_models_own_test": sum(tested_on.reason(h, r.lesion_id, r.isic_id) is not None for r, h in scored),
        "scored_without_lesion_id": sum(not (record.lesion_id or record.isic_id) for record, _ in scored),
    }


def _trust(
    answers: Answers, records: Sequence[Record], *, seed: int, controls: bool, console: Console
) -> dict[str, Any]:
    """Return the part of the report beyond `scores.score`."""
    bundle = answers.bundle

    def load(row: int) -> Pixels:
        record = records[row]
        return load_image(
            record.path, bundle.input_spec, frame_aspect=record.frame_aspect, max_bytes=ANY_SIZE, max_pixels=ANY_SIZE
        )

    groups = []
    with track("Skin tone", len(records), console) as advance, ThreadPoolExecutor(DECODE_THREADS) as pool:
        angles = pool.map(lambda row: typology_angle(load(row)), range(len(records)))
        for record, angle in zip(records, angles, strict=True):
            groups.append(groups_of(record, angle))
            advance(1)
    table = subgroups(groups, answers, seed=seed)
    return {
        "calibration": calibration(answers, seed=seed),
        **trust_sections(answers, seed=seed),
        "subgroups": table,
        "skin_tone": skin_tone_sentence(table),
        "controls": run_controls(
            bundle, load, answers.y_true, answers.lesions, mix=answers.mix, seed=seed, console=console
        )
        if controls
        else None,
    }


def _nothing_to_score(bundle: Bundle, counts: Mapping[str, Any], out: Path) -> DataError:
    unknown = counts["class_not_in_model"]
    names = f" ({', '.join(sorted(unknown))})" if unknown else ""
    return DataError(
        f"Nothing is left to score: of {counts['images']} images the model has seen {counts['set_aside_as_seen']}, "
        f"{sum(unknown.values())} are of classes that it does not have{names}, {counts['unreadable']} are unreadable.",
        remedy=f"Give images of other lesions, with the model's class names ({', '.join(bundle.codes)}); "
        f"{out / 'predictions.csv'} gives the reason for each image.",
        code="nothing_to_score",
    )


def _table(rows: Sequence[Row], codes: Sequence[str]) -> Iterator[Sequence[object]]:
    """Yield the rows of predictions.csv, its header first."""
    header = ("image", "lesion_id", "label", "diagnosis", "status", "reason", "decision")
    yield [*header, *(f"p_{code}" for code in codes), "answer_status", "advice", "prediction_set"]
    for row in rows:
        record, answer = row.record, row.answer
        cells = [record.image, record.lesion_id or "", record.diagnosis, row.diagnosis or "", row.status, row.reason]
        if answer is None or answer.error:
            yield [*cells, *[""] * (len(codes) + 4)]
            continue
        shares = [f"{answer.probabilities[code]:.6f}" for code in codes]
        advice = answer.advice.code if answer.advice else ""
        yield [*cells, answer.diagnosis_code, *shares, answer.status, advice, " ".join(answer.prediction_set or ())]


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    with os_errors(f"The evaluation could not be written to {out}", "Free some space or choose another --out."):
        yield


def _print_counts(counts: Mapping[str, Any], findings: Sequence[str], console: Console) -> None:
    say = partial(console.print, highlight=False, markup=False)
    for line in findings:
        say(f"Audit: {line}")
    reasons = ", ".join(f"{n} {reason}" for reason, n in counts["set_aside_by_reason"].items())
    say(
        f"{counts['images']} images: {counts['scored']} scored, {counts['set_aside_as_seen']} left out because the "
        f"model has seen them{f' ({reasons})' if reasons else ''}, {sum(counts['class_not_in_model'].values())} of "
        f"classes that it does not have, {counts['unreadable']} unreadable."
    )


def _print_metrics(report: Mapping[str, Any], out: Path, console: Console) -> None:
    say = partial(console.print, highlight=False, markup=False)
    if report["leaky"]:
        say("LEAKY model: trained with images or lesions of its own test split.", style="red")
    for name in ("balanced_accuracy", "accuracy", "macro_auc", "ece"):
        say(f"  {name.replace('_', ' '):18} {figure(report[name])}")
    for code, row in report["per_class"].items():
        say(f"  {code:18} sensitivity {figure(row['sensitivity'])}, n = {row['n']}")
    ok, rejected = report["status"]["ok"], report["status"]["rejected"]
    say(
        f"  {'status ok':18} {ok['share']['value'] * 100:.1f} % of the images, accuracy {figure(ok['accuracy'])}; "
        f"rejected {rejected['share']['value'] * 100:.1f} %"
    )
    for line in lines_of(report["baselines"]):
        say(line, soft_wrap=True)
    say(f"In {out}: " + ", ".join(f"{name} ({what})" for name, what in FILES.items()))
    say(DISCLAIMER, style="bold")
