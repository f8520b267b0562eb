"""The layouts a data set may have on disk, each read into the same records: class folders and five kinds of table.

What a table calls its columns is one row of `TABLES`; the code below is the same for all of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from dermlens.data.images import IMAGE_EXTENSIONS
from dermlens.data.records import SPLIT_NAMES, Dataset, Record, domain_of, isic_id_of
from dermlens.data.tables import (
    ImageIndex,
    Row,
    Table,
    cell,
    is_hidden,
    is_image,
    need_columns,
    number,
    read_header,
    read_table,
    shown,
)
from dermlens.diagnoses import normalise
from dermlens.errors import DataError

MANIFEST_NAME = "manifest.csv"
MANIFEST_COLUMNS = tuple(field.name for field in fields(Record) if field.name not in ("path", "isic_id"))
ONE_HOT_CODES = ("MEL", "NV", "BCC", "AK", "AKIEC", "BKL", "DF", "VASC", "SCC", "UNK")
_TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".tab", "")
_LEFT_OUT = ("0", "false", "no")
_REMEDY_FOLDERS = "Make one folder of images for each diagnosis, or write a manifest.csv with columns image, diagnosis."


@dataclass(frozen=True)
class TableLayout:
    """What one kind of table calls its columns.

    `every_copy`: an image may be in several subfolders; each copy is a record and the subfolder its source.
    `lesion_prefix`: put before lesion ids that are bare numbers, to distinguish them from other collections'.
    `licence`: of all its pictures, where the collection has one and the table does not say it.
    """

    name: str
    image: str
    diagnosis: str
    age: str = "age_approx"
    sex: str = "sex"
    site: str = "anatom_site"
    every_copy: bool = False
    lesion_prefix: str = ""
    licence: str | None = None


MANIFEST = TableLayout("manifest", "image", "diagnosis")
TABLES = (
    TableLayout("HAM10000", "image_id", "dx", age="age", site="localization", every_copy=True, licence="CC BY-NC 4.0"),
    TableLayout("PAD-UFES-20", "img_id", "diagnostic", age="age", sex="gender", site="region", lesion_prefix="PAD_"),
    TableLayout("ISIC 2020", "image_name", "diagnosis", site="anatom_site_general_challenge"),
    MANIFEST,
)
ONE_HOT = TableLayout("ISIC 2018/2019 ground truth", "image", "diagnosis", site="anatom_site_general")


def read_layout(path: Path, images: Path | None = None, *, labels: Collection[str] | None = None) -> Dataset:
    """Recognise the layout of a folder or CSV file and read it; see `manifest.read_dataset`.

    Args:
        labels: None where every image must have a diagnosis. Else all images of a folder count, those in a folder with
            one of these names have it as their diagnosis, and a missing diagnosis is "".
    """
    if path.is_file():
        if path.suffix.lower() not in _TABLE_SUFFIXES:
            raise DataError(
                f"{path} is a {path.suffix} file. Allowed: a folder of images or a CSV file.",
                remedy="Pass the folder that holds the class folders, or a CSV with the columns image, diagnosis.",
                code="not_a_dataset",
            )
        return _read_table_layout(path, images or path.parent, labels is None)
    table, others = _table_in(path, labels is None)
    if table is not None:
        return _read_table_layout(table, images or path, labels is None)
    dataset = _read_folders(path) if labels is None else _read_all_images(path, labels)
    notes = (f"Tables not used, since their columns are not known: {shown(others)}.",) if others else ()
    return replace(dataset, notes=(*dataset.notes, *notes))


# Tables


def _table_in(folder: Path, labelled: bool) -> tuple[Path | None, list[str]]:
    """Return the table that describes a folder's images, or None, and the names of tables that do not."""
    tables = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and (path.suffix.lower() == ".csv" or path.name == "HAM10000_metadata")
    ]
    for path in tables:
        if path.name.lower() == MANIFEST_NAME:
            return path, []
    known = [path for path in tables if _layout_of(read_header(path)) not in (None, MANIFEST)]
    if len(known) > 1 and labelled:
        raise DataError(
            f"{folder} holds {len(known)} tables that name diagnoses: {shown([p.name for p in known])}.",
            remedy="Pass the CSV file that you mean instead of the folder.",
            code="several_tables",
        )
    return (known[0] if len(known) == 1 else None), [path.name for path in tables]


def _layout_of(columns: Sequence[str]) -> TableLayout | None:
    for layout in TABLES:
        if layout.image in columns and layout.diagnosis in columns:
            return layout
    if "image" in columns and len(_one_hot_columns(columns)) > 1:
        return ONE_HOT
    return None


def _read_table_layout(path: Path, root: Path, labelled: bool) -> Dataset:
    table = read_table(path)
    layout = _layout_of(table.columns)
    if layout is None and not labelled:
        layout = next((known for known in TABLES if known.image in table.columns), None)
    if layout is None:
        need_columns(table, "image", *(["diagnosis"] if labelled else []))
    layout = layout or MANIFEST
    if layout is ONE_HOT:
        table = _with_metadata(_from_one_hot(table))
    table, notes = _included(table)
    pairs, unlisted = _find_images(table, layout, root)
    _refuse_repeats(table, [image for image, _ in pairs])
    records = tuple(_record(table, layout, row, root, image, labelled) for image, row in pairs)
    if not records:
        raise DataError(f"{path} has no rows.", remedy="Add a row for each image.", code="no_images")
    if unlisted:
        notes.append(f"{unlisted} images below {root} are in no row of {path.name} and are left out.")
    merged = _merged_names(row.get(layout.diagnosis, "") for _, row in pairs)
    return Dataset(root, layout.name, records, (*notes, *merged))


def _find_images(table: Table, layout: TableLayout, root: Path) -> tuple[list[tuple[Path, Row]], int]:
    """Return (image below root, row) pairs in the table's order, and how many images are in no row."""
    index: ImageIndex | None = None
    found: list[tuple[Path, Row]] = []
    missing: list[str] = []
    for row in table.rows:
        name = row.get(layout.image, "")
        if name and not layout.every_copy and Path(name).suffix and (root / name).is_file():
            found.append((Path(name), row))
            continue
        index = index or ImageIndex.build(root)
        copies = index.find(name)
        if len(copies) > 1 and not layout.every_copy:
            raise DataError(
                f"{table.path} names {name!r}, which may be {shown([copy.as_posix() for copy in copies])}.",
                remedy="Write the image's path with folder and extension.",
                code="ambiguous_image",
            )
        if not copies:
            missing.append(name)
        found += [(copy, row) for copy in copies]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(table.rows)} images in {table.path} are not below {root}: {shown(missing)}.",
            remedy="Add the files, pass the folder that holds them as images, or remove their rows from the table.",
            code="missing_files",
        )
    unlisted = len(set(index.paths) - {image for image, _ in found}) if index else 0
    return found, unlisted


def _record(table: Table, layout: TableLayout, row: Row, root: Path, image: Path, labelled: bool) -> Record:
    lesion, sex = cell(row, "lesion_id"), cell(row, layout.sex)
    source = (image.parent.name or root.name) if layout.every_copy else cell(row, "source")
    return Record(
        path=root / image,
        image=image.as_posix(),
        diagnosis=_diagnosis(table, layout, row) if labelled or row.get(layout.diagnosis) else "",
        lesion_id=layout.lesion_prefix + lesion if lesion else None,
        patient_id=cell(row, "patient_id"),
        split=_split(table, row),
        age_approx=number(table, row, layout.age),
        sex=sex.lower() if sex else None,
        anatom_site=cell(row, layout.site),
        source=source,
        frame_aspect=number(table, row, "frame_aspect"),
        isic_id=isic_id_of(image.stem),
        dx_type=cell(row, "dx_type"),
        fitzpatrick=cell(row, "fitzpatrick") or cell(row, "fitspatrick"),  # PAD-UFES-20 spells it so
        skin_tone=cell(row, "skin_tone", "skin_tone_class"),  # the second is MILK10k's
        licence=cell(row, "licence", "license", "copyright_license") or layout.licence,  # the third is the archive's
        domain=domain_of(cell(row, "domain", "modality")),
    )


def _diagnosis(table: Table, layout: TableLayout, row: Row) -> str:
    text = row.get(layout.diagnosis, "")
    if not text:
        raise DataError(
            f"{table.path} has no diagnosis for {row.get(layout.image)!r}. Every image needs one.",
            remedy="Fill in the cell or take the row out.",
            code="no_diagnosis",
        )
    return normalise(text)


def _split(table: Table, row: Row) -> str | None:
    text = cell(row, "split")
    if text is None:
        return None
    if text.lower() not in SPLIT_NAMES:
        raise DataError(
            f"{table.path} has the split {text!r}. Allowed: {', '.join(SPLIT_NAMES)} or nothing.",
            remedy="Correct the column split.",
            code="bad_split",
        )
    return SPLIT_NAMES[text.lower()]


def _included(table: Table) -> tuple[Table, list[str]]:
    """Leave out the rows that a repaired manifest marks with `included` = 0, and say how many and why."""
    included: list[Row] = []
    left_out: list[Row] = []
    for row in table.rows:
        (left_out if row.get("included", "").lower() in _LEFT_OUT else included).append(row)
    if not left_out:
        return table, []
    reasons = Counter(row.get("reason", "").partition(":")[0] or "no reason given" for row in left_out)
    why = f" ({', '.join(f'{n} {reason}' for reason, n in reasons.most_common())})" if table.has("reason") else ""
    note = f"{len(left_out)} images are marked as not included in {table.path.name}{why}."
    return replace(table, rows=tuple(included)), [note]


def _one_hot_columns(columns: Sequence[str]) -> list[str]:
    return [code for code in ONE_HOT_CODES if code.lower() in columns]


def _from_one_hot(table: Table) -> Table:
    """Return the table with a column `diagnosis` in place of a column of 0 and 1 for each class."""
    codes = _one_hot_columns(table.columns)
    rows = []
    for row in table.rows:
        ones = [code for code in codes if (number(table, row, code.lower()) or 0) > 0.5]
        if len(ones) != 1:
            raise DataError(
                f"{table.path} gives {row['image']!r} {len(ones)} classes. Allowed: one 1 among {', '.join(codes)}.",
                remedy="Correct the row; a table of predictions is no ground truth.",
                code="bad_csv",
            )
        rows.append({"image": row["image"], "diagnosis": ones[0]})
    return Table(table.path, ("image", "diagnosis"), tuple(rows))


def _with_metadata(table: Table) -> Table:
    """Add what metadata tables beside a ground truth know of its images (ISIC's *Metadata*, *LesionGroupings*)."""
    known: defaultdict[str, Row] = defaultdict(dict)
    for path in sorted(table.path.parent.glob("*.csv")):
        if path != table.path and any(word in path.name.lower() for word in ("metadata", "lesiongrouping")):
            other = read_table(path)
            for row in other.rows if other.has("image") else ():
                known[row["image"]].update(row)
    return replace(table, rows=tuple({**known[row["image"]], **row} for row in table.rows))


def _refuse_repeats(table: Table, images: Sequence[Path]) -> None:
    repeated = [image.as_posix() for image, count in Counter(images).items() if count > 1]
    if repeated:
        raise DataError(
            f"{table.path} names {len(repeated)} images more than once: {shown(repeated)}.",
            remedy="Keep one row for each image.",
            code="listed_twice",
        )


# Folders


def _read_folders(folder: Path) -> Dataset:
    root = _unwrapped(folder)
    index = _images_below(root)
    depth = 2 if _has_split_folders(root, index.paths) else 1
    inside = [path for path in index.paths if len(path.parts) > depth]
    if not inside:
        raise DataError(
            f"{root} holds {len(index.paths)} images but no class folders.", remedy=_REMEDY_FOLDERS, code="no_classes"
        )
    records = tuple(
        Record(
            path=root / path,
            image=path.as_posix(),
            diagnosis=normalise(path.parts[depth - 1]),
            split=SPLIT_NAMES[path.parts[0].lower()] if depth > 1 else None,
            isic_id=isic_id_of(path.stem),
        )
        for path in inside
    )
    notes = [*_folder_notes(root, depth, index, inside), *_merged_names(p.parts[depth - 1] for p in inside)]
    return Dataset(root, "split and class folders" if depth > 1 else "class folders", records, tuple(notes))


def _read_all_images(root: Path, labels: Collection[str]) -> Dataset:
    records = []
    for path in _images_below(root).paths:
        names = [normalise(name) for name in reversed(path.parent.parts)]
        label = next((name for name in names if name in labels), "")
        records.append(Record(root / path, path.as_posix(), label, isic_id=isic_id_of(path.stem)))
    return Dataset(root, "images", tuple(records))


def _images_below(root: Path) -> ImageIndex:
    index = ImageIndex.build(root)
    if not index.paths:
        raise DataError(
            f"{root} holds no images ({index.other_files} other files). "
            f"Images end in {', '.join(sorted(IMAGE_EXTENSIONS))}.",
            remedy=_REMEDY_FOLDERS,
            code="no_images",
        )
    return index


def _unwrapped(folder: Path) -> Path:
    """Step down while a folder holds nothing but one folder of folders, as unpacked archives often do."""
    while True:
        visible = [p for p in folder.iterdir() if not is_hidden(p.name)]
        below = [p for p in visible if p.is_dir()]
        if len(below) != 1 or any(map(is_image, visible)) or below[0].name.lower() in SPLIT_NAMES:
            return folder
        inner = [p for p in below[0].iterdir() if not is_hidden(p.name)]
        if any(map(is_image, inner)) or not any(p.is_dir() for p in inner):
            return folder
        folder = below[0]


def _has_split_folders(root: Path, paths: Iterable[Path]) -> bool:
    top = sorted({path.parts[0] for path in paths if len(path.parts) > 1})
    splits = [name for name in top if name.lower() in SPLIT_NAMES]
    if splits and len(splits) < len(top):
        others = [name for name in top if name not in splits]
        raise DataError(
            f"{root} mixes the split folders {', '.join(splits)} with the folders {shown(others)}.",
            remedy="Put all class folders into split folders (Train, Test), or none.",
            code="mixed_folders",
        )
    return bool(splits)


def _folder_notes(root: Path, depth: int, index: ImageIndex, inside: Sequence[Path]) -> list[str]:
    notes = []
    loose = len(index.paths) - len(inside)
    if loose:
        notes.append(f"{loose} images are outside the class folders and are left out.")
    if index.other_files:
        notes.append(f"{index.other_files} files are no images and are left out.")
    full = {root.joinpath(*path.parts[:depth]) for path in inside}
    empty = [
        path.relative_to(root).as_posix()
        for path in sorted(root.glob("/".join("*" * depth)))
        if path.is_dir() and path not in full and not any(map(is_hidden, path.relative_to(root).parts))
    ]
    if empty:
        notes.append(f"{len(empty)} class folders hold no images: {shown(empty)}.")
    return notes


def _merged_names(names: Iterable[str]) -> list[str]:
    """Say which different names were read as one diagnosis."""
    by_code: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        by_code[normalise(name)].add(name)
    return [
        f"Read as one diagnosis, {code}: {', '.join(sorted(found))}."
        for code, found in sorted(by_code.items())
        if len({name.casefold() for name in found}) > 1
    ]
