"""case_mix.py: what may be given for a case mix, what is refused, and its words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dermlens.bundle.case_mix import CaseMix, equal_mix, make_mix, mix_words, parse_mix, read_mix
from dermlens.errors import UsageError

CODES = ("MEL", "NV", "BKL")
TRAINING = CaseMix("training", {"MEL": 0.1, "NV": 0.7, "BKL": 0.2})


def test_the_words_equal_and_training_need_no_file(tmp_path: Path) -> None:
    assert read_mix("equal", CODES, TRAINING) == equal_mix(CODES)
    assert read_mix("training", CODES, TRAINING) is TRAINING


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("clinic.csv", "code,share\nMEL,0.2\nNV,0.5\nBKL,0.3\n"),
        ("clinic.csv", "\ufeffMEL, 2\nNV,5\n\nBKL,3\n"),
        ("clinic.csv", "diagnosis,share\nmelanoma,20\nnevus,50\nbkl,30\n"),
        ("clinic.json", '{"MEL": 0.2, "NV": 0.5, "BKL": 0.3}'),
        ("clinic.json", '{"name": "ours", "shares": {"MEL": 2, "NV": 5, "BKL": 3}}'),
    ],
)
def test_files_of_shares_counts_or_percentages(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    mix = read_mix(str(tmp_path / name), CODES, TRAINING)
    assert mix.name == name
    assert mix.of(CODES) == pytest.approx((0.2, 0.5, 0.3))
    assert mix_words(mix) == f"if the diagnoses were as common as in {name}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("MEL,1\nNV,1\n", "no share for BKL"),
        ("MEL,1\nNV,1\nBKL,0\n", "BKL 0.0"),
        ("MEL,1\nNV,1\nBKL,-2\n", "BKL -2"),
        ("MEL,1\nNV,1\nBKL,nan\n", "BKL nan"),
        ("MEL,1\nNV,1\nBKL,1\nBCC,1\n", "'BCC', which is no class of the model"),
        ("MEL,1\nNV,1\nBKL,1\nnevus,1\n", "names a class twice"),
        ("MEL,1\nMEL,1\n", "twice"),
        ("MEL\n", "no share"),
        ("MEL,much\n", "neither CSV nor JSON"),
        ('{"MEL": "1", "NV": 1, "BKL": 1}', "MEL '1'"),
        ('{"MEL": true, "NV": 1, "BKL": 1}', "MEL True"),
        ("[1, 2, 3]", "an object of code and share"),
        ('{"MEL": 1', "neither CSV nor JSON"),
        ("[" * 100_000, "neither CSV nor JSON"),
        ("", "no share for MEL, NV, BKL"),
    ],
)
def test_what_is_no_mix_is_refused_with_what_is_allowed(text: str, says: str) -> None:
    with pytest.raises(UsageError, match="case mix") as caught:
        parse_mix(text, "clinic", CODES)
    assert says in caught.value.message
    assert caught.value.code == "case_mix" and "MEL, NV, BKL" in (caught.value.remedy or "")


def test_a_file_cannot_pass_for_one_of_the_words() -> None:
    assert parse_mix("MEL,1\nNV,1\nBKL,1\n", "training", CODES).name == "training (a file)"


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no case mix 'equl'. Did you mean 'equal'\?"):
        read_mix("equl", CODES, TRAINING)
    (tmp_path / "picture.csv").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UsageError, match="neither CSV nor JSON"):
        read_mix(str(tmp_path / "picture.csv"), CODES, TRAINING)
    with pytest.raises(UsageError, match="no case mix"):
        read_mix(str(tmp_path), CODES, TRAINING)


def test_a_mix_in_a_bundle_is_checked() -> None:
    for shares in ({"A": 0.5, "B": 0.6}, {"A": 1.0, "B": 0.0}, {"A": float("nan"), "B": 1.0}):
        with pytest.raises(UsageError):
            CaseMix("equal", shares)
    assert json.loads(json.dumps(TRAINING.as_dict())) == {"name": "training", "shares": TRAINING.shares}


def test_words() -> None:
    assert mix_words(equal_mix("ab")) == "if both diagnoses were equally common"
    assert mix_words(equal_mix("abcdefgh")) == "if all eight diagnoses were equally common"
    assert mix_words(equal_mix([str(n) for n in range(100)])) == "if all 100 diagnoses were equally common"
    assert mix_words(TRAINING) == "if the diagnoses were as common as in the training data"
    assert make_mix("x", {"mel": 1, "nv": 1, "bkl": 2}, CODES).shares["BKL"] == 0.5
