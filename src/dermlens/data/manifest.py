"""Data sets read and written: `read_dataset` for any layout, the reference's diagnoses and lesions, `write_manifest`.

How each layout is read is in `layouts.py`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from dermlens.data.images import content_hash
from dermlens.data.layouts import MANIFEST_COLUMNS, MANIFEST_NAME, read_layout
from dermlens.data.records import Dataset, Record
from dermlens.data.tables import Row, Table, cell, need_columns, number, read_table
from dermlens.diagnoses import DIAGNOSES, normalise, to_isic2019
from dermlens.errors import DataError, UsageError

Task = Literal["as_is", "isic2019"]


def read_dataset(
    path: str | Path,
    *,
    images: Path | None = None,
    reference: Path | None = None,
    task: Task = "as_is",
    frame_aspect: float | None = None,
) -> Dataset:
    """Read the records of a data set; no image is opened.

    The layout is recognised: a folder per class; Train/Test or train/val/test above class folders; a CSV file, or a
    folder with `manifest.csv`, with the columns `image`, `diagnosis` and optionally those of `MANIFEST_COLUMNS`;
    HAM10000; ISIC 2018/2019 one-hot ground truth with its metadata beside it; ISIC 2020; PAD-UFES-20. Names of
    diagnoses are normalised (`diagnoses.normalise`), unknown ones stay as given.

    Args:
        path: a folder or a CSV file.
        images: the folder that a table's image names are looked for in; the table's own folder by default.
        reference: CSV with `isic_id`, `isic2019_diagnosis` and optionally `lesion_id, age_approx, sex, anatom_site`.
            What it knows of an image is filled in where the data set says nothing.
        task: "as_is" keeps the labels; "isic2019" replaces them by the reference's, maps the rest to the eight
            classes, and leaves out what has no such class; `notes` counts all three.
        frame_aspect: width / height of the camera frame, for records whose table does not say; None for square
            pixels.

    Returns:
        The data set; records in the order of the table, or sorted by path.

    Raises:
        UsageError: `path`, `images` or `reference` does not exist, or `task` is unknown.
        DataError: no images, no class folders, missing columns or files, and other faults; `code` names which.
    """
    if task not in get_args(Task):
        raise UsageError(f"The task is {task!r}. Allowed: {', '.join(get_args(Task))}.", remedy="Choose one of them.")
    dataset = _read(path, images)
    records, notes = list(dataset.records), list(dataset.notes)
    if frame_aspect is not None:
        records = [r if r.frame_aspect else replace(r, frame_aspect=frame_aspect) for r in records]
    table = _read_reference(reference) if reference is not None else None
    if table is not None:
        records, more = _attach(records, table)
        notes += more
    if task == "isic2019":
        records, more = _as_isic2019(records, _by_isic_id(table) if table is not None else {})
        notes += more
    return replace(dataset, records=tuple(records), notes=tuple(notes), reference=reference)


def read_pictures(path: str | Path, *, reference: Path | None = None, classes: Collection[str] = ()) -> Dataset:
    """Read pictures that need no labels, to compare them with a data set; no image is opened.

    Args:
        path: a CSV file that names images, or a folder; without a table of a known kind every image below it counts.
        reference: as for `read_dataset`.
        classes: names of folders that count as the diagnosis of their images, beside the known diagnoses.

    Returns:
        The data set; a record without a diagnosis has "".
    """
    dataset = _read(path, None, {*DIAGNOSES, *classes})
    if reference is None:
        return dataset
    records, notes = _attach(dataset.records, _read_reference(reference))
    return replace(dataset, records=tuple(records), notes=(*dataset.notes, *notes), reference=reference)


def isic_ids_of_lesions(reference: Path) -> dict[str, list[str]]:
    """Return lesion id -> all ISIC ids that a reference CSV gives for it."""
    result: dict[str, list[str]] = {}
    for isic_id, row in _by_isic_id(_read_reference(reference)).items():
        lesion = cell(row, "lesion_id")
        if lesion:
            result.setdefault(lesion, []).append(isic_id)
    return result


def manifest_row(record: Record, root: Path) -> dict[str, object]:
    """Return the manifest's row of a record, by column; the image relative to `root`, "" for what is not known."""
    values = {name: getattr(record, name) for name in MANIFEST_COLUMNS}
    full = Path(os.path.abspath(record.path))
    values["image"] = full.relative_to(root).as_posix() if full.is_relative_to(root) else full.as_posix()
    return {name: "" if value is None else value for name, value in values.items()}


def manifest_sha256(dataset: Dataset) -> str | None:
    """Return the SHA-256 of the manifest that a data set was read from; None for other layouts."""
    if dataset.layout != "manifest" or dataset.origin is None:
        return None
    path = dataset.origin if dataset.origin.is_file() else dataset.origin / MANIFEST_NAME
    return content_hash(path.read_bytes()) if path.is_file() else None


def read_reference(path: Path) -> dict[str, str]:
    """Return the reference's diagnosis by ISIC id, normalised; images without a diagnosis are left out.

    Raises:
        UsageError: it does not exist. DataError: columns are missing, or it is no table.
    """
    rows = _by_isic_id(_read_reference(path))
    stated = {name: cell(row, "isic2019_diagnosis") for name, row in rows.items()}
    return {name: normalise(text) for name, text in stated.items() if text}


def _existing(path: Path) -> Path:
    full = Path(os.path.abspath(path.expanduser()))
    if not full.exists():
        raise UsageError(
            f"{path} does not exist. A folder of images or a CSV file is needed.",
            remedy="Check the path.",
            code="not_found",
        )
    return full


def _read(path: str | Path, images: Path | None, labels: Collection[str] | None = None) -> Dataset:
    root = _existing(Path(path))
    try:
        dataset = read_layout(root, _existing(images) if images is not None else None, labels=labels)
    except OSError as error:
        raise DataError(
            f"{error.filename or root} cannot be read: {error.strerror or error}.",
            remedy="Check that you may read the folder and its files.",
            code="cannot_read",
        ) from error
    return replace(dataset, origin=root)


def _read_reference(path: Path) -> Table:
    table = read_table(_existing(path))
    need_columns(table, "isic_id", "isic2019_diagnosis")
    return table


def _by_isic_id(reference: Table) -> dict[str, Row]:
    return {row["isic_id"]: row for row in reference.rows}


def _attach(records: Sequence[Record], reference: Table) -> tuple[list[Record], list[str]]:
    """Fill in lesion id, age, sex and site from the reference where a record has none."""
    rows = _by_isic_id(reference)
    result, lesions = [], 0
    for record in records:
        row = rows.get(record.isic_id or "", {})
        filled = replace(
            record,
            lesion_id=record.lesion_id or cell(row, "lesion_id"),
            age_approx=number(reference, row, "age_approx") if record.age_approx is None else record.age_approx,
            sex=record.sex or cell(row, "sex"),
            anatom_site=record.anatom_site or cell(row, "anatom_site"),
            dx_type=record.dx_type or cell(row, "dx_type"),
        )
        lesions += filled.lesion_id != record.lesion_id
        result.append(filled)
    known = sum((r.isic_id or "") in rows for r in records)
    return result, [f"The reference has {known} of {len(records)} images and adds {lesions} lesion ids."]


def _as_isic2019(records: Sequence[Record], reference: Mapping[str, Row]) -> tuple[list[Record], list[str]]:
    """Give every record its ISIC 2019 class: the reference's, else that of its own label, else it is left out."""
    result: list[Record] = []
    changed: Counter[tuple[str, str]] = Counter()
    left_out: Counter[str] = Counter()
    for record in records:
        stated = to_isic2019(normalise(reference.get(record.isic_id or "", {}).get("isic2019_diagnosis", "")))
        own = to_isic2019(record.diagnosis)
        code = stated or own
        if code is None:
            left_out[record.diagnosis] += 1
            continue
        if code != own:
            changed[record.diagnosis, code] += 1
        result.append(replace(record, diagnosis=code))
    notes = []
    if changed:
        pairs = ", ".join(f"{n} {before} to {after}" for (before, after), n in sorted(changed.items()))
        notes.append(f"{changed.total()} labels are replaced by the reference's: {pairs}.")
    if left_out:
        names = ", ".join(f"{n} {name}" for name, n in sorted(left_out.items()))
        notes.append(f"{left_out.total()} images are left out, since they have no ISIC 2019 class: {names}.")
    if not result:
        raise DataError(
            f"None of the {len(records)} images has an ISIC 2019 class.",
            remedy="Use the task as_is, or pass a reference that knows these images.",
            code="no_images",
        )
    return result, notes
