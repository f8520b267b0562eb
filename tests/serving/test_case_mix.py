"""The case mix of a request: how answers follow it, and what is no case mix."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from dermlens import Predictor
from dermlens.bundle.case_mix import CaseMix, make_mix
from dermlens.serving.client_mix import MixDesk
from dermlens.serving.problems import Problem

Client = Callable[..., TestClient]
PREDICT = "/api/v1/predictions"
EXPLAIN = "/api/v1/explanations"
CODES = ("NV", "BKL", "MEL")
JSON_MIX = '{"NV": 8, "bkl": 1, "MEL": 1}'
CSV_MIX = "code,share\nNV,8\nBKL,1\nMEL,1\n"


def ask(api: TestClient, image: bytes, mix: str | None, path: str = PREDICT, *, by_query: bool = False) -> Any:
    given = {} if mix is None else {"params" if by_query else "data": {"case_mix": mix}}
    return api.post(path, files={"image": image}, headers={"accept": "application/json"}, **given)


@pytest.mark.parametrize("by_query", [True, False])
@pytest.mark.parametrize("text", [JSON_MIX, CSV_MIX, json.dumps({"name": "x", "shares": json.loads(JSON_MIX)})])
def test_an_answer_is_stated_at_the_shares_that_came_with_it(
    client: Client, clinic: Predictor, red: bytes, text: str, by_query: bool
) -> None:
    answer = ask(client(clinic), red, text, by_query=by_query).json()
    expected = clinic.at_mix(clinic.predict(red), make_mix("own", {"NV": 8, "BKL": 1, "MEL": 1}, CODES)).as_dict()
    own = {"image", "elapsed_ms"}
    assert {k: v for k, v in answer.items() if k not in own} == {k: v for k, v in expected.items() if k not in own}
    assert answer["case_mix"] == {"name": "own", "shares": {"NV": 0.8, "BKL": 0.1, "MEL": 0.1}}


def test_a_name_is_enough_and_without_one_the_server_chooses(client: Client, clinic: Predictor, red: bytes) -> None:
    api = client(clinic)
    training = ask(api, red, "training").json()
    assert training["case_mix"] == {"name": "training", "shares": {"NV": 0.2, "BKL": 0.3, "MEL": 0.5}}
    assert (
        ask(api, red, None).json()["case_mix"]["name"] == ask(api, red, "equal").json()["case_mix"]["name"] == "equal"
    )
    assert training["probability"] > ask(api, red, "equal").json()["probability"], "melanoma is common there"
    assert training["referral"]["threshold"] != ask(api, red, "equal").json()["referral"]["threshold"]


def test_every_image_of_a_request_follows_and_a_bad_one_keeps_its_row(
    client: Client, clinic: Predictor, pictures: list[bytes]
) -> None:
    files = [("image", picture) for picture in (pictures[0], b"no image", pictures[2])]
    rows = client(clinic).post(PREDICT, files=files, data={"case_mix": CSV_MIX}).json()["predictions"]
    assert [row["status"] for row in rows] == ["ok", "error", "ok"]
    assert {row["case_mix"]["name"] for row in rows} == {"own"}


def test_an_explanation_is_of_the_diagnosis_at_that_mix(client: Client, clinic: Predictor, red: bytes) -> None:
    api = client(clinic)
    rare = json.dumps({"NV": 9998, "BKL": 1, "MEL": 1})
    found = ask(api, red, rare, EXPLAIN).json()
    assert found["code"] == found["prediction"]["diagnosis"]["code"] == "NV"
    assert found["prediction"]["case_mix"]["name"] == "own"
    named = api.post(
        f"{EXPLAIN}?code=MEL", files={"image": red}, data={"case_mix": rare}, headers={"accept": "application/json"}
    )
    assert named.json()["code"] == "MEL" and named.json()["prediction"]["diagnosis"]["code"] == "NV"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"NV": 1, "BKL": 1}', "no share for MEL"),
        ('{"NV": 1, "BKL": 1, "MEL": 1, "XY": 1}', "'XY', which is no class"),
        ('{"NV": 1, "BKL": 1, "MEL": 0}', "MEL 0"),
        ('{"NV": 1, "BKL": 1, "MEL": -1}', "MEL -1"),
        ('{"NV": 1, "BKL": 1, "MEL": true}', "MEL True"),
        ('{"NV": 1, "BKL": 1, "MEL": NaN}', "MEL nan"),
        ('{"NV": 1e308, "BKL": 1e308, "MEL": 1}', "NV 1e+308"),
        (f'{{"NV": 1, "BKL": 1, "MEL": {"9" * 400}}}', "MEL 999"),
        ('{"\\ud800": 1, "\\ud800 ": 1}', "twice"),
        ("[" * 4000, "neither CSV nor JSON"),
        ("NV,1\nBKL", "a row has no share"),
        ("Equal", "neither CSV nor JSON"),
    ],
)
@pytest.mark.parametrize("path", [PREDICT, EXPLAIN])
def test_what_is_no_case_mix_is_a_problem_that_names_the_codes(
    client: Client, clinic: Predictor, red: bytes, path: str, text: str, words: str
) -> None:
    response = ask(client(clinic), red, text, path)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "case_mix")
    assert words in problem["detail"] and "NV, BKL, MEL" in problem["detail"] and len(problem["detail"]) < 500


def test_no_file_of_the_server_is_read(
    client: Client, clinic: Predictor, red: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mix.csv"
    path.write_text(CSV_MIX)
    monkeypatch.chdir(tmp_path)
    for name in (str(path), "mix.csv", "./mix.csv", path.as_uri()):
        assert ask(client(clinic), red, name).json()["code"] == "case_mix"


@pytest.mark.parametrize("by_query", [True, False])
def test_a_long_case_mix_is_refused(client: Client, clinic: Predictor, red: bytes, by_query: bool) -> None:
    response = ask(client(clinic), red, "NV,1\n" * 1000, by_query=by_query)
    assert (response.status_code, response.json()["code"]) == (422, "bad_parameter")


@given(st.text(max_size=80) | st.dictionaries(st.sampled_from(CODES), st.floats() | st.integers()).map(json.dumps))
def test_any_text_is_a_mix_or_a_problem(clinic: Predictor, text: str) -> None:
    try:
        found: object = MixDesk(clinic).read(text)
    except Problem as problem:
        found = problem.response() and problem.code
    assert found in (None, "case_mix") or isinstance(found, CaseMix)


def test_many_mixes_at_once(client: Client, clinic: Predictor, red: bytes) -> None:
    """More of them than a bundle keeps the limits of, from several clients."""
    api = client(clinic)

    def shares(n: int) -> float:
        text = json.dumps({"NV": 1, "BKL": 1, "MEL": 1 + n})
        return float(ask(api, red, text).json()["case_mix"]["shares"]["MEL"])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(shares, range(80))) == [round((1 + n) / (3 + n), 6) for n in range(80)]


def test_the_model_states_its_mixes_and_its_operating_points(client: Client, clinic: Predictor, tmp_path: Path) -> None:
    facts = client(clinic).get("/api/v1/model").json()
    assert facts["case_mix"]["name"] == "equal" and facts["training_mix"]["shares"]["MEL"] == 0.5
    assert [point["name"] for point in facts["operating_points"]][:2] == ["malignant_95", "malignant_90"]
    file = tmp_path / "clinic.csv"
    file.write_text(CSV_MIX)
    elsewhere = client(Predictor(clinic.bundle.folder, case_mix=str(file))).get("/api/v1/model").json()
    assert elsewhere["case_mix"]["name"] == "clinic.csv"
    assert elsewhere["operating_points"][0]["threshold"] != facts["operating_points"][0]["threshold"]
