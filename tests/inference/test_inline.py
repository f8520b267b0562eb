"""What a notebook shows: escaped, self-contained, with the warning once; and answers as a frame."""

from __future__ import annotations

import builtins
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tiny
from dermlens import Answers, Predictor
from dermlens.diagnoses import DISCLAIMER
from dermlens.errors import MissingExtraError
from dermlens.inference.judge import ADVICE, SYMBOLS, Reason

HOSTILE = '<script>alert("x")</script>.png'
OUTSIDE = re.compile(r"""(src|href)\s*=\s*["'](?!data:)|url\(|@import|<script""", re.IGNORECASE)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(tiny.write(tmp_path_factory.mktemp("model") / "b", scope="Reads <b>colours</b>."))


@pytest.fixture(scope="module")
def answers(predictor: Predictor) -> Answers:
    sources: list[Any] = [tiny.colour("RED"), b"no image", tiny.colour("BLUE")]
    return Answers(predictor.predict_many(sources, names=[HOSTILE, "bad & broken", "b"]))


def test_everything_shown_is_escaped_self_contained_and_warns_once(predictor: Predictor, answers: Answers) -> None:
    explained = predictor.explain(tiny.colour("RED"), name=HOSTILE)
    for shown in (predictor, answers, answers[0], answers[1], explained):
        text = shown._repr_html_()
        assert text.count(DISCLAIMER) == 1
        assert not OUTSIDE.search(text), text[:500]
        assert "<b>colours" not in text
    assert "&lt;script&gt;" in answers[0]._repr_html_() and "&lt;script&gt;" in explained._repr_html_()
    assert explained._repr_html_().count("data:image/png;base64,") == 2
    assert predictor.bundle.sha256 in predictor._repr_html_()


def test_a_picture_to_take_again_shows_no_probabilities(answers: Answers) -> None:
    again = replace(answers[0], status="rejected", advice=Reason("retake", "Take the picture again."))
    assert "no answer" in again._repr_html_() and "%</td>" not in again._repr_html_()
    assert "%</td>" in answers[0]._repr_html_()


def test_an_unfamiliar_picture_shows_them_marked(answers: Answers) -> None:
    unfamiliar = replace(answers[0], status="rejected", advice=Reason("see_clinician", "Have it seen."), why="Odd.")
    for text in (unfamiliar._repr_html_(), Answers([unfamiliar])._repr_html_()):
        assert "not to be relied on" in text and "Odd." in text and "◆ Have a clinician see it" in text
    assert "not to be relied on" not in answers[0]._repr_html_()


@pytest.mark.parametrize("code", ADVICE)
def test_every_advice_has_symbol_and_words_and_the_mix_is_said_once(answers: Answers, code: str) -> None:
    answer = replace(answers[0], advice=Reason(code, "What to do."))
    for text in (answer._repr_html_(), Answers([answer, answer])._repr_html_()):
        assert f"{SYMBOLS[code]} {ADVICE[code]}" in text
        assert text.count("if all three diagnoses were equally common") == 1
    assert "What to do." in answer._repr_html_()


def test_an_uncertain_answer_names_two(answers: Answers) -> None:
    doubt = replace(answers[0], status="uncertain", why="It cannot decide between the two.")
    for text in (doubt._repr_html_(), Answers([doubt])._repr_html_()):
        assert " or " in text and "It cannot decide" in text


def test_only_the_first_answers_of_many_are_shown(answers: Answers) -> None:
    text = Answers([*answers] * 20)._repr_html_()
    assert text.count("<tr>") == 51 and "… and 10 more." in text


def test_answers_become_a_frame_with_a_row_for_each_bad_ones_included(answers: Answers) -> None:
    frame = answers.to_frame(embedding=True)
    assert list(frame.status) == [answer.status for answer in answers]
    assert list(frame.image) == [HOSTILE, "bad & broken", "b"]
    assert frame.diagnosis_code[0] == "RED" and frame.error_code[1] and not isinstance(frame.probability_RED[1], str)
    assert np.isnan(frame.probability_RED[1])
    np.testing.assert_array_equal(frame.embedding[0], answers[0].embedding)
    assert "embedding" not in answers.to_frame() and "probability_BLUE" in answers.to_frame()
    assert answers.to_dicts()[2] == answers[2].as_dict()
    assert len(Answers().to_frame()) == 0


def test_without_pandas_the_error_says_what_to_do(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_pandas(name: str, *args: Any, **options: Any) -> Any:
        if name == "pandas":
            raise ModuleNotFoundError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        answers.to_frame()
