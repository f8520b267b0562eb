"""Proven diagnoses, from a table that a person keeps, beside the answers: right or wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dermlens.data.tables import Row, Table, cell, read_table
from dermlens.diagnoses import display_name, normalise, to_isic2019
from dermlens.errors import UsageError
from dermlens.inference.prediction import Prediction

IMAGE_COLUMNS = ("image", "image_id", "isic_id", "img_id", "image_name", "file", "filename", "file_name")
DIAGNOSIS_COLUMNS = ("proven", "proven_diagnosis", "diagnosis", "dx", "diagnostic")
EITHER = {"AKIEC": ("AK", "SCC")}  # one name for several diagnoses
MARKS = {True: "✓", False: "✗", None: ""}


@dataclass(frozen=True)
class Verdict:
    """A proven diagnosis beside an answer; `right` is None where the answer cannot be compared with it."""

    code: str
    name: str
    right: bool | None


@dataclass(frozen=True)
class Proven:
    """What was proven for the images of a table, by file name (and folders, where the table gives them)."""

    codes: Mapping[str, str]

    def of(self, answer: Prediction) -> Verdict | None:
        """Return what was proven for the image of an answer; None where the table does not name it."""
        found = next((self.codes[name] for name in _names(answer.image) if name in self.codes), None)
        if found is None or answer.error is not None:
            return None
        known = answer.probabilities
        code = found if found in known else to_isic2019(found) or found
        unclear = code not in known and answer.diagnosis_code in EITHER.get(code, ())
        right = None if answer.status == "rejected" or unclear else code == answer.diagnosis_code
        return Verdict(code if code in known else found, display_name(found), right)

    def summary(self, answers: Sequence[Prediction]) -> str:
        """Say how many answers are right; "" where none can be compared."""
        verdicts = [verdict.right for answer in answers if (verdict := self.of(answer))]
        compared = [right for right in verdicts if right is not None]
        if not compared:
            return ""
        return f"Compared with the proven diagnosis, {sum(compared)} of {len(compared)} first diagnoses are right."


def read_proven(path: Path) -> Proven:
    """Read a CSV file of image and proven diagnosis.

    Raises:
        UsageError: there is no such file, a column is missing, or an image has two diagnoses (code `proven`).
        DataError: it is no CSV file.
    """
    if not path.is_file():
        raise _wrong(f"--proven {path} is no file.")
    table = read_table(path)
    image, diagnosis = _column(table, IMAGE_COLUMNS, "the image"), _column(table, DIAGNOSIS_COLUMNS, "the diagnosis")
    codes: dict[str, str] = {}
    for row in table.rows:
        name, proven = _cells(row, image, diagnosis)
        if name is None or proven is None:
            continue
        code = normalise(proven)
        if codes.setdefault(name, code) != code:
            raise _wrong(f"--proven {path} has two diagnoses for {name}: {codes[name]} and {code}.")
    return Proven(codes)


def _cells(row: Row, image: str, diagnosis: str) -> tuple[str | None, str | None]:
    name = cell(row, image)
    return None if name is None else PurePosixPath(name.replace("\\", "/")).as_posix(), cell(row, diagnosis)


def _column(table: Table, known: Sequence[str], what: str) -> str:
    found = next((name for name in known if name in table.columns), None)
    if found is None:
        raise _wrong(f"--proven {table.path} has no column for {what}: got {', '.join(table.columns)}.")
    return found


def _names(image: str) -> list[str]:
    """Return what a table may call an image: its path, or the end of it, with and without extension."""
    parts = PurePosixPath(Path(image).as_posix()).parts
    ends = [PurePosixPath(*parts[start:]) for start in range(len(parts))]
    return [str(name) for end in ends for name in (end, end.with_suffix(""))]


def _wrong(message: str) -> UsageError:
    remedy = f"Give a CSV file with the columns {IMAGE_COLUMNS[0]} (file name) and {DIAGNOSIS_COLUMNS[2]}."
    return UsageError(message, remedy=remedy, code="proven")
