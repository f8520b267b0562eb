"""The page of answers: self-contained, says what it is, escapes what it is given."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import tiny
from dermlens import Predictor
from dermlens.diagnoses import DISCLAIMER
from dermlens.errors import StorageError
from dermlens.inference.judge import ADVICE, SYMBOLS, Reason
from dermlens.inference.prediction import Prediction
from dermlens.reporting import page as page_module
from dermlens.reporting.page import write_page
from dermlens.reporting.proven import Proven


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    return Predictor(tiny.write(tmp_path / "b"))


def test_the_page_shows_every_answer_once_and_loads_nothing_from_elsewhere(
    predictor: Predictor, tmp_path: Path
) -> None:
    good, bad = tmp_path / "<i>red.png", tmp_path / "bad.jpg"
    cv2.imwrite(str(good), tiny.colour("RED")[:, :, ::-1])
    bad.write_text("no image")
    write_page(list(predictor.predict_many([good, bad])), predictor.bundle, tmp_path / "deep" / "page.html")
    page = (tmp_path / "deep" / "page.html").read_text("utf-8")
    assert page.count("<article") == 2
    assert page.count("data:image/jpeg;base64,") == 1
    assert page.count(DISCLAIMER) == 1 and predictor.bundle.scope in page
    assert "<i>red.png" not in page and "&lt;i&gt;red.png" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "{{" not in page and "{%" not in page


@pytest.fixture(scope="module")
def grave(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A model with malignant classes and limits."""
    changes = {"calibrate": tiny.known(), "test": tiny.known(), **tiny.named("SCC", "BKL", "MEL")}
    return Predictor(tiny.write(tmp_path_factory.mktemp("m") / "b", **changes))


def written(answers: list[Prediction], predictor: Predictor, tmp_path: Path, **options: Any) -> str:
    write_page(answers, predictor.bundle, tmp_path / "page.html", **options)
    return (tmp_path / "page.html").read_text("utf-8")


def test_a_card_says_diagnosis_percentage_and_advice_before_the_details(grave: Predictor, tmp_path: Path) -> None:
    answer = replace(grave.predict(tiny.colour("RED")), prediction_set=("MEL", "SCC"))
    page = written([answer], grave, tmp_path)
    places = [page.index(words) for words in ("<h2>mel 9", 'class="advice refer"><p>▲ Refer', "<table", "<details>")]
    assert places == sorted(places)
    assert page.index("Cannot be ruled out: mel, scc.") < places[-1] < page.index("ICD-10 C43")
    assert "▲ Refer to a specialist: 1" in page and page.count("if all three diagnoses were equally common") == 1
    assert page.count("Referral is advised when") == 1 and "beforeprint" in page


@pytest.mark.parametrize("code", ADVICE)
def test_every_advice_has_its_colour_and_its_symbol(grave: Predictor, tmp_path: Path, code: str) -> None:
    status = "rejected" if code in ("retake", "see_clinician") else "ok"
    advice = Reason(code, "Do <this>. And why.")
    answer = replace(grave.predict(tiny.colour("RED")), status=status, advice=advice)
    page = written([answer], grave, tmp_path)
    assert f'class="advice {code}"><p>{SYMBOLS[code]} Do &lt;this&gt;</p>' in page and "<p>And why.</p>" in page
    assert f".{code} {{ --tone:" in page and f"{SYMBOLS[code]} {ADVICE[code]}: 1" in page
    assert ("<table" in page) == (code != "retake")
    assert ("not to be relied on" in page) == (code == "see_clinician")
    assert ("I can’t tell" in page) == (status == "rejected")


def test_an_uncertain_card_names_the_next_diagnosis(grave: Predictor, tmp_path: Path) -> None:
    answer = replace(grave.predict(tiny.colour("RED")), status="uncertain", why="It cannot decide.")
    assert "<small>or " in written([answer], grave, tmp_path)
    assert "<small>or " not in written([replace(answer, status="ok")], grave, tmp_path)


def test_proven_diagnoses_stand_on_the_card(grave: Predictor, tmp_path: Path) -> None:
    answers = [replace(grave.predict(tiny.colour("RED")), image=name) for name in ("a.png", "b.png", "c.png")]
    page = written(answers, grave, tmp_path, proven=Proven({"a": "MEL", "b": "NV"}))
    assert page.count("Proven: ") == 2 and "✓ right" in page and "✗ wrong" in page
    assert "1 of 2 first diagnoses are right" in page
    assert "Proven: " not in written(answers, grave, tmp_path)


def test_the_picture_is_framed_as_the_model_saw_it(predictor: Predictor, tmp_path: Path) -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, :6] = image[:, -6:] = 255  # the sides, which un-squashing to 2:1 and the centre square cut away
    cv2.imwrite(str(tmp_path / "a.png"), image)
    whites = []
    for aspect in (None, 2.0):
        write_page([predictor.predict(tmp_path / "a.png", frame_aspect=aspect)], predictor.bundle, tmp_path / "p.html")
        code = re.search(r"base64,([^\"]+)", (tmp_path / "p.html").read_text("utf-8"))
        assert code is not None
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(code[1]), np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        whites.append(float((picture > 200).mean()))
    assert whites[0] > 0.2 and whites[1] < 0.01


def test_uncalibrated_probabilities_are_not_called_calibrated(tmp_path: Path) -> None:
    fit = {"fitted": False, "reason": "too few", "lesions": 3}
    predictor = Predictor(tiny.write(tmp_path / "b", calibration_fit=fit))
    write_page([predictor.predict(tiny.colour("RED"))], predictor.bundle, tmp_path / "page.html")
    assert "NOT calibrated" in (tmp_path / "page.html").read_text("utf-8")


def test_a_leaky_model_is_marked(tmp_path: Path) -> None:
    predictor = Predictor(tiny.write(tmp_path / "b", data={"leaky": True}))
    write_page([predictor.predict(tiny.colour("RED"))], predictor.bundle, tmp_path / "page.html")
    assert "LEAKY: " in (tmp_path / "page.html").read_text("utf-8")


def test_without_a_screen_no_text_browser_takes_over_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(page_module.webbrowser, "open", lambda uri: opened.append(uri) or True)
    monkeypatch.setattr(page_module.sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not page_module.open_in_browser(tmp_path / "page.html") and not opened
    monkeypatch.setenv("DISPLAY", ":0")
    assert page_module.open_in_browser(tmp_path / "page.html") and opened[0].startswith("file://")


def test_a_place_that_cannot_be_written_is_one_clear_error(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        write_page([], predictor.bundle, tmp_path / "file" / "page.html")
