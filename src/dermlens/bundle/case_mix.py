"""How common each diagnosis is among the lesions that are photographed: what probabilities are stated for.

The default is the equal mix: every diagnosis is as likely beforehand, so that the probabilities are what the picture
itself says. Another mix is Bayes' rule; see `probabilities.probabilities`.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dermlens.bundle.probabilities import PRIOR_SUM_TOLERANCE, Facts
from dermlens.diagnoses import normalise
from dermlens.errors import UsageError, os_errors
from dermlens.text import nearest

EQUAL, TRAINING = "equal", "training"
ALLOWED = "Allowed are equal, training, or a CSV or JSON file with a share above 0 for each class"
MAX_MIX_BYTES = 1_000_000
MAX_SHARE = 1e15  # a count may stand for a share; a number that no sum can hold may not
_NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


class CaseMix(Facts, frozen=True):
    """How common each class is beforehand.

    Attributes:
        name: "equal", "training" (the shares of the lesions in the training data), or the name of the file.
        shares: code -> share; above 0, sum 1.

    Raises:
        UsageError: (code `case_mix`) a share is not above 0, or the sum is not 1.
    """

    name: str
    shares: dict[str, float]

    def __post_init__(self) -> None:
        wrong = {code: share for code, share in self.shares.items() if not (math.isfinite(share) and share > 0)}
        if wrong:
            listed = ", ".join(f"{code} {share}" for code, share in wrong.items())
            raise _wrong(f"The case mix {self.name!r} has a share that is not above 0: {listed}.")
        if abs(math.fsum(self.shares.values()) - 1) > PRIOR_SUM_TOLERANCE:
            raise _wrong(f"The shares of the case mix {self.name!r} must have the sum 1: got {self.shares}.")

    def of(self, codes: Sequence[str]) -> tuple[float, ...]:
        """Return the shares in the order of `codes`, which must be its own."""
        return tuple(self.shares[code] for code in codes)


def equal_mix(codes: Sequence[str]) -> CaseMix:
    """Return the mix in which every class is as likely as any other."""
    return CaseMix(EQUAL, dict.fromkeys(codes, 1 / len(codes)))


def make_mix(name: str, shares: Mapping[str, float], codes: Sequence[str]) -> CaseMix:
    """Return the mix of a model's classes in which `shares` (or counts, or percentages) are brought to the sum 1.

    Raises:
        UsageError: (code `case_mix`) a code that the model does not have, a class without a share, a share that is no
            number above 0.
    """
    given = {_code(name, codes): share for name, share in shares.items()}
    if len(given) < len(shares):
        raise _wrong(f"The case mix {name!r} names a class twice: {', '.join(shares)}.", codes)
    if unknown := [code for code in given if code not in codes]:
        hint = nearest(unknown[0], codes)
        raise _wrong(f"The case mix {name!r} has {unknown[0]!r}, which is no class of the model.{hint}", codes)
    if missing := [code for code in codes if code not in given]:
        raise _wrong(f"The case mix {name!r} has no share for {', '.join(missing)}.", codes)
    wrong = {code: share for code, share in given.items() if not _is_share(share)}
    if wrong:
        listed = ", ".join(f"{code} {share!r}" for code, share in wrong.items())
        raise _wrong(f"The case mix {name!r} has a share that is no number above 0: {listed}.", codes)
    total = math.fsum(given.values())
    return CaseMix(name, {code: float(given[code]) / total for code in codes})


def read_mix(given: str, codes: Sequence[str], training: CaseMix) -> CaseMix:
    """Return the mix that `equal`, `training` or the name of a CSV or JSON file means.

    Args:
        codes: the classes of the model; training: the mix of its training data.

    Raises:
        UsageError: (code `case_mix`) there is no such file, or it is no case mix of these classes.
    """
    if given in (EQUAL, TRAINING):
        return equal_mix(codes) if given == EQUAL else training
    path = Path(given)
    if not path.is_file():
        raise _wrong(f"There is no case mix {given!r}.{nearest(given, (EQUAL, TRAINING))}", codes)
    with os_errors(f"The case mix {given} cannot be read", ALLOWED + ".", UsageError):
        if path.stat().st_size > MAX_MIX_BYTES:
            raise _wrong(f"The case mix {given} has more than {MAX_MIX_BYTES:,} bytes.", codes)
        raw = path.read_bytes()
    return parse_mix(raw, path.name, codes)


def parse_mix(raw: bytes | str, name: str, codes: Sequence[str]) -> CaseMix:
    """Return the mix in the text of a CSV (code, share) or JSON (`{"MEL": 0.1, ...}`) file. Raises UsageError."""
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8-sig")
        shares = _from_json(text) if text.lstrip().startswith(("{", "[")) else _from_csv(text)
    except (ValueError, RecursionError, csv.Error) as error:
        raise _wrong(f"The case mix {name!r} is neither CSV nor JSON of codes and shares ({error}).", codes) from None
    return make_mix(f"{name} (a file)" if name in (EQUAL, TRAINING) else name, shares, codes)


def mix_words(mix: CaseMix) -> str:
    """Say for which case mix percentages are meant, as the end of a sentence."""
    n = len(mix.shares)
    if mix.name == EQUAL:
        number = _NUMBERS[n] if n < len(_NUMBERS) else str(n)
        return f"if {'both' if n == 2 else f'all {number}'} diagnoses were equally common"
    if mix.name == TRAINING:
        return "if the diagnoses were as common as in the training data"
    return f"if the diagnoses were as common as in {mix.name}"


def _code(name: Any, codes: Sequence[str]) -> str:
    text = str(name).strip()
    by_case = {code.casefold(): code for code in codes}
    return text if text in codes else by_case.get(text.casefold(), normalise(text))


def _is_share(share: Any) -> bool:
    number = isinstance(share, int | float) and not isinstance(share, bool)
    return number and 0 < share <= MAX_SHARE


def _from_json(text: str) -> dict[str, Any]:
    found = json.loads(text, object_pairs_hook=_once)
    if isinstance(found, dict) and isinstance(found.get("shares"), dict):
        found = found["shares"]  # as an answer states its mix
    if not isinstance(found, dict):
        raise ValueError("an object of code and share is needed")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _from_csv(text: str) -> dict[str, Any]:
    rows = [row for row in csv.reader(text.splitlines()) if any(cell.strip() for cell in row)]
    if rows and [cell.strip().lower() for cell in rows[0][:2]] in (["code", "share"], ["diagnosis", "share"]):
        rows = rows[1:]
    shares: dict[str, Any] = {}
    for row in rows:
        if len(row) < 2:
            raise ValueError(f"a row has no share: {','.join(row)[:40]!r}")
        if row[0].strip() in shares:
            raise ValueError(f"{row[0].strip()[:40]!r} stands there twice")
        shares[row[0].strip()] = float(row[1])
    return shares


def _wrong(message: str, codes: Sequence[str] = ()) -> UsageError:
    classes = f" ({', '.join(codes)})" if codes else ""
    return UsageError(message, remedy=f"{ALLOWED}{classes}.", code="case_mix")
