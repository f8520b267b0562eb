"""Answers on terminals of any width: one line a picture, and what to do below, once for all pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

import tiny
from dermlens import Predictor
from dermlens.diagnoses import DISCLAIMER
from dermlens.inference.judge import ADVICE, SYMBOLS, Reason, spoken
from dermlens.inference.prediction import Prediction
from dermlens.reporting.answers import ADVICE_STYLE, common_folder, shortened, show
from dermlens.reporting.proven import Proven

LONG = "IMG_20260101_a_long_name_of_the_患者_left_forearm_{}.png"
TEXTS = {
    "retake": Reason("retake", "Take the picture again, or have the lesion seen."),
    "see_clinician": Reason("see_clinician", "Have a clinician see the lesion. The model cannot judge this picture."),
    "refer": Reason("refer", "Refer to a specialist (malignant or premalignant: 61.0 %; the limit is 20.0 %)."),
    "no_referral": Reason(
        "no_referral",
        "No referral by this picture alone (malignant or premalignant: 7.0 %; the limit is 20.0 %; on unseen lesions "
        "its sensitivity is 98 %, its specificity 68 %). But melanoma cannot be ruled out: have the lesion seen.",
    ),
    "not_assessed": Reason("not_assessed", "No advice on referral: the model has no malignant class."),
}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    named = tiny.named("SCC", "BKL", "MEL")
    return Predictor(tiny.write(tmp_path_factory.mktemp("m") / "b", calibrate=tiny.known(), test=tiny.known(), **named))


@pytest.fixture(scope="module")
def kinds(predictor: Predictor) -> dict[str, Prediction]:
    """Return an answer for each advice, and one that is uncertain."""
    answer = predictor.predict(tiny.colour("RED"))
    shares = {"SCC": 0.47, "MEL": 0.44, "BKL": 0.09}
    answer = replace(answer, probabilities=shares, probability=0.47, diagnosis_code="SCC")
    answer = replace(answer, diagnosis_name="scc", malignant_probability=0.61, reasons=())
    status = {"retake": "rejected", "see_clinician": "rejected"}
    found = {
        code: replace(answer, image=f"shots/{LONG.format(code)}", status=status.get(code, "ok"), advice=text)
        for code, text in TEXTS.items()
    }
    why = "It cannot decide between squamous cell carcinoma and melanoma."
    doubt = replace(found["refer"], image=f"shots/{LONG.format('doubt')}", status="uncertain", why=why)
    return {**found, "doubt": doubt}


def told(
    answers: Sequence[Prediction], predictor: Predictor, width: int, *, top: int = 3, proven: Proven | None = None
) -> list[str]:
    file = io.StringIO()
    show(answers, predictor.bundle, top=top, console=Console(file=file, width=width), proven=proven)
    return file.getvalue().splitlines()


@pytest.mark.parametrize(
    ("names", "folder"),
    [
        (["a/b/x.png", "a/b/y.png"], "a/b/"),
        (["a/x.png", "b/y.png"], ""),
        (["a/x.png"], "a/"),
        (["/a/b/x.png", "/a/c/d/y.png", "/a/z.png"], "/a/"),
        (["/a/x.png", "/b/y.png"], ""),
        (["ab/x.png", "ac/y.png"], ""),
        (["x.png", "y.png"], ""),
    ],
)
def test_a_folder_that_all_share_is_said_once(names: list[str], folder: str) -> None:
    assert common_folder(names) == folder


@pytest.mark.parametrize("width", [60, 66, 72, 80, 110, 140, 200])
@pytest.mark.parametrize("proven", [None, Proven({LONG.format("refer"): "BCC", LONG.format("doubt"): "SCC"})])
def test_one_line_a_picture_says_status_diagnosis_percentage_and_advice(
    kinds: dict[str, Prediction], predictor: Predictor, width: int, proven: Proven | None
) -> None:
    lines = told(list(kinds.values()), predictor, width, proven=proven)
    assert max(map(cell_len, lines)) <= width
    assert lines[0] == "in shots/" and lines[1].startswith("imag")
    for line, answer in zip(lines[2:], kinds.values(), strict=False):
        assert answer.advice is not None and answer.status in line
        assert f"{SYMBOLS[answer.advice.code]} {ADVICE[answer.advice.code]}" in line
        shown = "47 %" in line and ("SCC" in line or "scc" in line)
        assert shown == (answer.advice.code != "retake")
        assert (" ? " in line) == (answer.advice.code == "see_clinician")
    assert lines[8] == ""


def test_an_uncertain_answer_names_the_next_where_there_is_room(
    kinds: dict[str, Prediction], predictor: Predictor
) -> None:
    assert "or mel 44 %" in told([kinds["doubt"]], predictor, 110)[2]
    assert "or" not in told([kinds["refer"]], predictor, 110)[2].split()


def test_a_wide_terminal_shows_bars_and_what_cannot_be_ruled_out(
    kinds: dict[str, Prediction], predictor: Predictor
) -> None:
    answers = [replace(kinds[code], image=f"{code}.png", prediction_set=("SCC", "MEL")) for code in ("refer", "doubt")]
    narrow, wide = told(answers, predictor, 60), told(answers, predictor, 140)
    assert "█" not in " ".join(narrow)
    assert "█" in wide[1] and "SCC MEL" in wide[1] and "MEL 44 %  BKL 9 %" in wide[1]
    assert "BKL 9 %" in wide[2] and "MEL 44 %" not in wide[2], "what stands after the “or” is not said twice"
    assert "BKL" not in told(answers, predictor, 140, top=2)[1]


def test_every_advice_has_a_symbol_a_colour_and_words_of_its_own() -> None:
    assert set(ADVICE) == set(SYMBOLS) == set(ADVICE_STYLE) == set(TEXTS)
    assert len(set(SYMBOLS.values())) == len(ADVICE) == len(set(ADVICE_STYLE.values()))


def test_what_to_do_is_said_once_for_all_pictures_the_gravest_first(
    kinds: dict[str, Prediction], predictor: Predictor
) -> None:
    again = [replace(answer, image=f"shots/again_{code}") for code, answer in kinds.items()]
    text = " ".join(line.strip() for line in told([*kinds.values(), *again], predictor, 200)[14:])
    places = []
    for code, advice in TEXTS.items():
        first, rest = spoken(advice)
        assert text.count(f"{SYMBOLS[code]} {first}") == 1 and rest in text and f"again_{code}" in text
        places.append((list(ADVICE_STYLE).index(code), text.index(f"{SYMBOLS[code]} {first}")))
    assert [place for _, place in sorted(places)] == sorted(place for _, place in places)
    assert text.count("Uncertain: It cannot decide between squamous cell carcinoma and melanoma.") == 1
    assert "(61 %)" in text and "the limit is" not in text and text.count(DISCLAIMER) == 1
    assert text.count("if all three diagnoses were equally common") == 1
    assert text.count("not to be relied on") == 1


def test_no_referral_is_said_to_be_by_this_picture_alone(kinds: dict[str, Prediction], predictor: Predictor) -> None:
    plain = Reason("no_referral", "No referral by this picture alone (malignant or premalignant: 1.0 %).")
    lines = told([replace(kinds["no_referral"], advice=plain)], predictor, 200)
    assert "○ No referral by this picture alone." in [line.strip() for line in lines]


def test_real_answers_of_a_model_with_limits_are_told(predictor: Predictor) -> None:
    answers = list(predictor.predict_many([tiny.colour(code) for code in tiny.CODES] + [b"broken"], names="abcd"))
    text = " ".join(told(answers, predictor, 80))
    assert "▲ Refer to a specialist" in text and "Referral is advised when" in text and "specificity" in text
    assert "3 answered, 1 failed." in text and "error: " in text


def test_proven_diagnoses_are_right_or_wrong_in_words_for_all(
    kinds: dict[str, Prediction], predictor: Predictor
) -> None:
    proven = Proven({LONG.format("refer"): "SCC", LONG.format("no_referral"): "MEL", LONG.format("retake"): "SCC"})
    lines = told(list(kinds.values()), predictor, 60, proven=proven)
    by_code = dict(zip(kinds, lines[2:], strict=False))
    assert "✓ SCC" in by_code["refer"] and "✗ MEL" in by_code["no_referral"]
    assert "SCC" in by_code["retake"] and "✓" not in by_code["retake"], "what is not answered is neither"
    assert "✓" not in by_code["doubt"] and "✗" not in by_code["doubt"]
    assert "1 of 2 first diagnoses are right" in " ".join(" ".join(lines).split())


def test_names_are_cut_in_the_middle_to_what_still_tells_them_apart() -> None:
    names = [f"lesion_{index}_of_the_left_forearm_in_january.jpg" for index in range(3)]
    assert len(set(shortened(names, 14))) == 3
    assert shortened(["short.png"], 14) == ["short.png"]
    for name in shortened(["写真写真写真写真写真.png", *names], 11):
        assert cell_len(name) <= 11 and "…" in name


def test_a_diagnosis_with_a_long_name_of_its_own_still_fits_60_columns(
    kinds: dict[str, Prediction], predictor: Predictor
) -> None:
    code = "a rash of a very long name that nobody knows"
    answer = replace(kinds["refer"], diagnosis_code=code, probabilities={code: 1.0}, probability=1.0)
    line = told([answer], predictor, 60)[2]
    assert "100 %" in line and "▲ Refer to a specialist" in line and "…" in line and cell_len(line) <= 60


def test_a_name_with_a_line_break_stays_on_its_line(kinds: dict[str, Prediction], predictor: Predictor) -> None:
    assert "a b.png" in told([replace(kinds["refer"], image="a\n\x1bb.png")], predictor, 80)[1]


def test_a_terminal_without_such_characters_gets_others(kinds: dict[str, Prediction], predictor: Predictor) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    answers = [replace(answer, image=f"{code}.png") for code, answer in kinds.items()]
    show(answers, predictor.bundle, top=3, console=Console(file=file, width=140))
    file.flush()
    assert b"! Refer to a specialist" in raw.getvalue() and b"o No referral" in raw.getvalue()


def test_nothing_is_printed_for_nothing_but_errors(predictor: Predictor) -> None:
    answers = list(predictor.predict_many([b"broken"], names=["x"]))
    text = "\n".join(told(answers, predictor, 80))
    assert "0 answered, 1 failed." in text and DISCLAIMER not in text
