"""Predictor: one answer for every input, in order, calibrated, bad ones included."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny
from dermlens import Predictor
from dermlens.bundle.probabilities import probabilities
from dermlens.inference.predictor import AHEAD
from dermlens.inference.runtime import BATCH, Runtime


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(tiny.write(tmp_path_factory.mktemp("model") / "b"))


def test_path_bytes_and_array_give_the_same_answer(predictor: Predictor, tmp_path: Path) -> None:
    image = tiny.colour("GREEN")
    path = tmp_path / "green.png"
    cv2.imwrite(str(path), image[:, :, ::-1])
    answers = [predictor.predict(source) for source in (path, str(path), path.read_bytes(), image)]
    assert {a.diagnosis_code for a in answers} == {"GREEN"}
    assert len({json.dumps(a.probabilities) for a in answers}) == 1


def test_probabilities_and_diagnosis_follow_the_bundle(predictor: Predictor) -> None:
    answer = predictor.predict(tiny.colour("RED"))
    expected = probabilities(answer.logits[None], predictor.bundle.calibration, (1 / 3,) * 3)[0]  # type: ignore[index]
    np.testing.assert_allclose([answer.probabilities[code] for code in tiny.CODES], expected)
    assert list(answer.probabilities.values()) == sorted(expected, reverse=True)
    assert answer.probability == answer.probabilities["RED"]
    assert sum(answer.probabilities.values()) == pytest.approx(1)


def test_many_answers_come_in_order_one_for_each_input(predictor: Predictor, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("not an image")
    rng = np.random.default_rng(0)
    names = [str(rng.choice(tiny.CODES)) for _ in range(3 * BATCH + 5)]
    inputs: list[object] = [tiny.colour(name) for name in names]
    inputs[7] = bad
    inputs[BATCH] = tmp_path / "missing.png"
    answers = list(predictor.predict_many(inputs))  # type: ignore[arg-type]
    assert len(answers) == len(inputs)
    for index, (name, answer) in enumerate(zip(names, answers, strict=True)):
        if index in (7, BATCH):
            assert answer.status == "error"
            assert answer.error is not None and answer.error["remedy"]
            assert answer.diagnosis_code is None and answer.probabilities == {}
        else:
            assert answer.diagnosis_code == name


def test_a_batch_answers_like_single_images(predictor: Predictor) -> None:
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (50, 70, 3), dtype=np.uint8) for _ in range(BATCH + 3)]
    together = list(predictor.predict_many(images))
    for image, answer in zip(images, together, strict=True):
        np.testing.assert_allclose(predictor.predict(image).logits, answer.logits, atol=1e-5)


def test_inputs_are_read_lazily(predictor: Predictor) -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield tiny.colour("BLUE")

    stream = predictor.predict_many(endless())  # type: ignore[arg-type]
    assert next(stream).diagnosis_code == "BLUE"
    stream.close()  # type: ignore[attr-defined]
    assert taken <= (AHEAD * predictor._workers + 1) * predictor._runtime.images_a_pass


def test_the_activation_map_contract(predictor: Predictor) -> None:
    """Spatial mean of feature_map times the head's weights plus bias equals the logits."""
    pixels = np.random.default_rng(2).integers(0, 256, (3, tiny.SIZE_PX, tiny.SIZE_PX, 3), dtype=np.uint8)
    outputs = Runtime(predictor.bundle.graph_path).run(pixels)
    weights, bias = predictor.bundle.head()
    np.testing.assert_allclose(outputs.feature_map.mean(axis=(1, 2)) @ weights + bias, outputs.logits, atol=1e-4)


def test_the_json_object_has_the_promised_fields(predictor: Predictor) -> None:
    good = predictor.predict(tiny.colour("RED"), name="a.png").as_dict()
    bad = predictor.predict(b"", name="b.png").as_dict()
    fields = [
        "schema",
        "image",
        "status",
        "why",
        "advice",
        "diagnosis",
        "probability",
        "probabilities",
        "case_mix",
    ]
    fields += ["prediction_set", "malignant_probability", "referral", "reasons", "novelty", "quality"]
    fields += ["model", "elapsed_ms", "error"]
    assert list(good) == fields == list(bad)
    assert good["schema"] == "dermlens/prediction/2"
    assert good["diagnosis"] == {"code": "RED", "name": "red"} and good["error"] is None and good["image"] == "a.png"
    assert bad["status"] == "error" and bad["diagnosis"] is None and set(bad["error"]) == {"code", "message", "remedy"}
    assert set(good["model"]) == {"name", "version", "sha256"}
    json.dumps([good, bad], allow_nan=False)
