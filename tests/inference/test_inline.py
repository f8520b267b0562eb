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


def test_a_rejected_image_shows_no_probabilities(answers: Answers) -> None:
    rejected = replace(answers[0], status="rejected")
    assert "I can’t tell" in rejected._repr_html_() and "%</td>" not in rejected._repr_html_()
    assert "%</td>" in answers[0]._repr_html_()


def test_a_referral_is_shown(answers: Answers) -> None:
    for advised, times in ((True, 1), (False, 0)):
        answer = replace(answers[0], referral={"advised": advised})
        assert answer._repr_html_().count("specialist") == Answers([answer])._repr_html_().count("specialist") == times


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
