"""The six collections that the embedded model is made from, read into records, each with its own labels.

Each lies in a folder of the data folder, as its publisher packs it or as the tables of our own extracts say. Every
record has a domain, and an image name that begins with the name of its collection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from dermlens.data.manifest import read_dataset
from dermlens.data.records import CLOSE_UP, DERMOSCOPIC, Dataset, Record, domain_of
from dermlens.data.tables import ImageIndex, Row, Table, cell, number, read_table
from dermlens.diagnoses import normalise
from dermlens.errors import DataError

FRAME_ASPECT = 4 / 3  # an ISIC-9 file is the full 4:3 frame, squashed to a square

HAM10000, MSK, MILK10K, PAD, BCN = ORIGINS = ("HAM10000", "MSK", "MILK10k", "PAD-UFES-20", "BCN_20000")
"""The archives that the pictures come from; ISIC-9 is made of the first two."""

LICENCES = {
    HAM10000: "CC BY-NC 4.0",
    MSK: "CC BY-NC 4.0",
    MILK10K: "CC BY-NC",
    PAD: "CC BY 4.0",
    BCN: "CC BY-NC 4.0",
}

_HAM_IDS = range(24_306, 36_065)  # with those of the ISIC 2018 test
_BCN_IDS = range(53_453, 73_255)
_ISIC_ID = re.compile(r"ISIC_(\d{7})")
_MILK_CLASSES = ("AKIEC", "BCC", "BEN_OTH", "BKL", "DF", "INF", "MAL_OTH", "MEL", "NV", "SCCKA", "VASC")


def read_sources(data: Path, names: Sequence[str] | None = None) -> Dataset:
    """Read collections below a folder; labels are as each collection gives them, as codes of `diagnoses.csv`.

    Args:
        data: the folder that holds them.
        names: folders out of `READERS`; by default all.

    Raises:
        DataError: a collection or its table is not there.
    """
    records: list[Record] = []
    for name in names or READERS:
        found = READERS[name](data)
        records += (replace(r, image=f"{name}/{r.image}", source=r.source or name) for r in found)
    return Dataset(data, "sources", tuple(records))


def origin_of(record: Record) -> str:
    """Return which of the `ORIGINS` a record's picture was first published in; ISIC-9 is divided by ISIC id."""
    folder = record.image.partition("/")[0]
    if folder != "isic9":
        return {"ham10000": HAM10000, "msk": MSK, "milk10k": MILK10K, "pad": PAD, "bcn84": BCN}[folder]
    return _archive(record.isic_id)


def _archive(isic_id: str | None) -> str:
    """Return the archive of a picture of ISIC 2019: the ids of HAM10000 and BCN_20000 are two ranges."""
    number_ = int((isic_id or "ISIC_0")[5:])
    return HAM10000 if number_ in _HAM_IDS else BCN if number_ in _BCN_IDS else MSK


def _ham10000(data: Path) -> list[Record]:
    return [replace(r, domain=DERMOSCOPIC) for r in read_dataset(data / "ham10000").records]


def _isic9(data: Path) -> list[Record]:
    """Read ISIC-9; its split is not kept, since 33 of its test images share a lesion with its training."""
    records = []
    for record in read_dataset(data / "isic9", frame_aspect=FRAME_ASPECT).records:
        known = _ISIC_ID.match(record.path.stem)  # some have a second copy, "ISIC_0025509(1).jpg"
        isic_id = known.group() if known else None
        records.append(replace(record, isic_id=isic_id, split=None, source="isic9", domain=DERMOSCOPIC))
    return records


def _of_isic2019(name: str, origin: str) -> Callable[[Path], list[Record]]:
    """Return a reader of a part of ISIC 2019: our extract `name/name.csv`, else ISIC 2019 whole in `isic2019/`."""

    def read(data: Path) -> list[Record]:
        extract = data / name / ("bcn84.csv" if name == "bcn84" else f"{name}.csv")
        if extract.is_file():
            return _from_table(read_table(extract), data / name, "isic2019", origin)
        records = read_dataset(data / "isic2019").records
        chosen = [r for r in records if _archive(r.isic_id) == origin]
        return [replace(r, domain=DERMOSCOPIC, licence=LICENCES[origin]) for r in chosen]

    return read


def _milk10k(data: Path) -> list[Record]:
    """Read MILK10k with its 11 classes: our extract `milk10k.csv`, or the tables of the ISIC 2025 challenge."""
    folder = data / "milk10k"
    extract = folder / "milk10k.csv"
    table = read_table(extract) if extract.is_file() else _published_milk10k(folder)
    return _from_table(table, folder, "milk10k", MILK10K)


def _published_milk10k(folder: Path) -> Table:
    """Join the ground truth by lesion, the metadata by picture and, where it is there, the supplement."""
    truth_path, meta_path = (folder / f"MILK10k_Training_{what}.csv" for what in ("GroundTruth", "Metadata"))
    truth, meta = read_table(truth_path), read_table(meta_path)
    supplement = folder / "MILK10k_Training_Supplement.csv"
    further = {r["isic_id"]: r for r in read_table(supplement).rows} if supplement.is_file() else {}
    classes = {
        row["lesion_id"]: code
        for row in truth.rows
        for code in _MILK_CLASSES
        if (number(truth, row, code.lower()) or 0) > 0.5
    }
    index = ImageIndex.build(folder)
    rows = []
    for row in meta.rows:
        files = index.find(row["isic_id"])
        if not files:
            _raise_missing(meta_path, row["isic_id"])
        joined = {**further.get(row["isic_id"], {}), **row}
        joined |= {"image": files[0].as_posix(), "milk10k": classes.get(row["lesion_id"], "")}
        rows.append(joined)
    return Table(meta_path, (*meta.columns, "image", "milk10k"), tuple(rows))


def _pad(data: Path) -> list[Record]:
    """Read PAD-UFES-20; a lesion is named by patient and number, "PAT_46_881", as in the names of its pictures."""
    records = []
    for record in read_dataset(data / "pad").records:
        number_ = (record.lesion_id or "").removeprefix("PAD_").rpartition("_")[2]
        lesion = f"{record.patient_id}_{number_}" if number_ else None
        skin_type = record.fitzpatrick.partition(".")[0] if record.fitzpatrick else None  # "3.0" in the table
        records.append(replace(record, lesion_id=lesion, fitzpatrick=skin_type, domain=CLOSE_UP, licence=LICENCES[PAD]))
    return records


def _from_table(table: Table, root: Path, label: str, origin: str) -> list[Record]:
    """Return the records of one of our extracts, which name columns as the ISIC archive does."""
    return [_record(table, row, root, label, origin) for row in table.rows]


def _record(table: Table, row: Row, root: Path, label: str, origin: str) -> Record:
    sex = cell(row, "sex")
    path = root / row["image"]
    if not path.is_file():
        _raise_missing(table.path, row["image"])
    return Record(
        path=path,
        image=row["image"],
        diagnosis=normalise(row[label]),
        lesion_id=cell(row, "lesion_id"),
        patient_id=cell(row, "patient_id"),
        age_approx=number(table, row, "age_approx"),
        sex=sex.lower() if sex else None,
        anatom_site=cell(row, "anatom_site", "site"),
        isic_id=row["isic_id"],
        dx_type=cell(row, "diagnosis_confirm_type"),
        skin_tone=cell(row, "skin_tone", "skin_tone_class"),
        licence=LICENCES[origin],
        domain=domain_of(cell(row, "modality", "image_type")) or DERMOSCOPIC,
    )


def _raise_missing(table: Path, name: str) -> None:
    raise DataError(
        f"{table} names {name!r}, which is not below {table.parent}. Every picture of a table is needed.",
        remedy="Unpack the pictures beside the table.",
        code="missing_files",
    )


READERS: dict[str, Callable[[Path], Iterable[Record]]] = {
    "ham10000": _ham10000,
    "isic9": _isic9,
    "msk": _of_isic2019("msk", MSK),
    "milk10k": _milk10k,
    "pad": _pad,
    "bcn84": _of_isic2019("bcn84", BCN),
}
"""Each collection by the name of its folder."""
