"""From a model and its images by role to its trust facts: fitted on calibrate, measured on test; training lesions."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

import tiny
from dermlens import Predictor
from dermlens.bundle.bundle import LESIONS_FILE, TRUST_FILE, Bundle, load_bundle
from dermlens.bundle.limits import ROLES, Lesions, no_lesions
from dermlens.bundle.nearest import TrainingExamples
from dermlens.data.records import Record
from dermlens.evaluation import fit_trust as module
from dermlens.evaluation.fit_trust import (
    Labelled,
    choose_sets,
    first_of_lesion,
    fit_examples,
    fit_trust,
    limits_for,
    most_per_class,
)
from dermlens.inference.judge import ADVICE
from dermlens.inference.runtime import Runtime

GRAVE = tiny.named("BCC", "MEL", "NV")
QUIET = Console(file=io.StringIO())


def images(folder: Path, n: int, seed: int) -> Labelled:
    """Noisy plain colours, one lesion each; every tenth is of another colour than its label."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    records, labels = [], []
    for i in range(n):
        label = i % 3
        code = tiny.CODES[label if i % 10 else (label + 1) % 3]
        pixels = np.clip(tiny.colour(code) * rng.uniform(0.6, 1.0) + rng.normal(0, 25, (40, 40, 3)), 0, 255)
        path = folder / f"{i}.png"
        cv2.imwrite(str(path), pixels.astype(np.uint8)[:, :, ::-1])
        records.append(Record(path=path, image=path.name, diagnosis=tiny.CODES[label]))
        labels.append(label)
    return Labelled(records, np.array(labels), np.arange(n))


def fitted(bundle: Bundle, roles: Mapping[str, Labelled]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    return fit_trust(bundle, Runtime(bundle.graph_path), roles, seed=0, console=QUIET)


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Labelled]:
    root = tmp_path_factory.mktemp("roles")
    return {
        role: images(root / role, n, seed)
        for seed, (role, n) in enumerate({"train": 120, "calibrate": 150, "test": 90}.items())
    }


def test_a_bundle_learns_its_limits_and_predict_applies_them(tmp_path: Path, roles: dict[str, Labelled]) -> None:
    folder = tiny.write(tmp_path / "b")
    facts, arrays = fitted(load_bundle(folder), roles)
    assert facts["fitted_on"] == {"role": "calibrate", "images": 150, "lesions": 150, "training_images": 120}
    assert facts["measured"]["role"] == "test" and facts["measured"]["images"] == 90
    assert facts["measured"]["prediction_sets"]["coverage"]["value"] >= 0.8
    tiny.add(folder, arrays, facts)
    predictor = Predictor(folder)
    answers = list(predictor.predict_many([r.path for r in roles["test"].records]))
    bundle, measured = load_bundle(folder), facts["measured"]
    assert bundle.limits(bundle.case_mix).referral is None, "no colour is malignant"
    assert measured["advice"] == {
        code: n for code in ADVICE if (n := sum(a.advice is not None and a.advice.code == code for a in answers))
    }
    assert sum(measured["advice"].values()) == 90
    shares = measured["status"]
    for status in ("ok", "uncertain", "rejected"):
        assert np.mean([a.status == status for a in answers]) == pytest.approx(shares[status]["share"])
    assert all(a.prediction_set and a.diagnosis_code in a.prediction_set and a.novelty for a in answers)
    strange = predictor.predict(np.full((40, 40, 3), (255, 255, 0), np.uint8) - tiny.colour("RED") // 9)
    assert strange.novelty is not None and strange.novelty["score"] > np.median([a.novelty["score"] for a in answers])


def known(arrays: Mapping[str, dict[str, Any]]) -> dict[str, Lesions]:
    return {role: Lesions.read(arrays[LESIONS_FILE], role) for role in ROLES}


def test_the_test_role_has_no_part_in_the_fit(tmp_path: Path, roles: dict[str, Labelled]) -> None:
    bundle = load_bundle(tiny.write(tmp_path / "b", **GRAVE))
    other = {**roles, "test": images(tmp_path / "other", 60, 99)}
    (one, first), (two, second) = (fitted(bundle, r) for r in (roles, other))
    limits = [limits_for(bundle, known(arrays), facts) for facts, arrays in ((one, first), (two, second))]
    for each in limits:
        names = [point.name for point in each.points]
        assert names == ["malignant_95", "malignant_90", "melanoma_95", "melanoma_90"]
        assert each.referral is each.points[0]
    assert len({(each.set_limit, each.min_confidence, *(p.threshold for p in each.points)) for each in limits}) == 1
    assert {**one, "measured": None} == {**two, "measured": None} and one["measured"] != two["measured"]
    low = [each.points[0].sensitivity["low"] for each in limits]
    assert low[0] != low[1], "what they reach was measured on other lesions"
    for name, values in first[TRUST_FILE].items():
        np.testing.assert_array_equal(values, second[TRUST_FILE][name])


def test_the_select_role_chooses_the_kind_of_sets_and_nothing_else(tmp_path: Path, roles: dict[str, Labelled]) -> None:
    bundle = load_bundle(tiny.write(tmp_path / "b"))
    without, arrays = fitted(bundle, roles)
    chosen, again = fitted(bundle, {**roles, "select": images(tmp_path / "select", 60, 5)})
    assert without["prediction_sets"] == {"method": "probability", "level": 0.9, "lengths": None}
    lengths = chosen["prediction_sets"]["lengths"]
    assert set(lengths) == {"probability", "cumulative"} and min(lengths.values()) >= 1
    assert chosen["prediction_sets"]["method"] == min(lengths, key=lengths.__getitem__)
    for name in ("novelty", "quality", "fitted_on"):
        assert without[name] == chosen[name]
    for name, values in arrays[LESIONS_FILE].items():
        np.testing.assert_array_equal(values, again[LESIONS_FILE][name])
    assert choose_sets(bundle, no_lesions(3), known(arrays)["test"]) is None


def test_too_few_lesions_leave_the_facts_empty_and_the_bundle_whole(tmp_path: Path, roles: dict[str, Labelled]) -> None:
    def few(labelled: Labelled, n: int) -> Labelled:
        return Labelled(labelled.records[:n], labelled.y_true[:n], labelled.lesions[:n])

    folder = tiny.write(tmp_path / "b")
    small = {"train": few(roles["train"], 12), "calibrate": few(roles["calibrate"], 9), "test": few(roles["test"], 0)}
    facts, arrays = fitted(load_bundle(folder), small)
    assert facts["prediction_sets"] is None and facts["novelty"] is None and arrays[TRUST_FILE] == {}
    assert facts["measured"]["role"] == "calibrate" and facts["measured"]["prediction_sets"] is None
    tiny.add(folder, arrays, facts)
    bundle = load_bundle(folder)
    assert bundle.limits(bundle.case_mix).min_confidence == 0.0
    answer = Predictor(folder).predict(roles["test"].records[0].path)
    assert answer.prediction_set is None and answer.novelty is None and answer.quality is not None


def test_without_test_lesions_a_threshold_claims_nothing(tmp_path: Path, roles: dict[str, Labelled]) -> None:
    folder = tiny.write(tmp_path / "b", **GRAVE)
    without_test = {role: roles[role] for role in ("train", "calibrate")}
    facts, arrays = fitted(load_bundle(folder), without_test)
    assert facts["measured"]["role"] == "calibrate"
    tiny.add(folder, arrays, facts)
    bundle = load_bundle(folder)
    point = bundle.limits(bundle.case_mix).referral
    assert point is not None and point.threshold > 0
    assert point.sensitivity["value"] is None and point.specificity["value"] is None
    answers = [Predictor(folder).predict(record.path) for record in roles["test"].records[:9]]
    words = [a.advice.text for a in answers if a.advice is not None and a.advice.code == "no_referral"]
    assert words and all("not measured on other lesions" in each for each in words)


def test_no_calibration_images_at_all_is_no_failure(tmp_path: Path, roles: dict[str, Labelled]) -> None:
    none = Labelled([], np.zeros(0, np.int64), np.zeros(0, np.int64))
    bundle = load_bundle(tiny.write(tmp_path / "b"))
    facts, arrays = fitted(bundle, {**roles, "calibrate": none, "test": none})
    assert facts["measured"] is None and facts["prediction_sets"] is None and arrays[TRUST_FILE] == {}
    facts, _ = fitted(bundle, {**roles, "calibrate": none})
    assert facts["measured"]["role"] == "test" and facts["measured"]["prediction_sets"] is None
    json.dumps(facts, allow_nan=False)


def test_an_unreadable_image_is_left_out(tmp_path: Path, roles: dict[str, Labelled]) -> None:
    calibrate = roles["calibrate"]
    gone = Record(path=tmp_path / "gone.png", image="gone.png", diagnosis="RED")
    records = [gone, *calibrate.records[1:]]
    changed = {**roles, "calibrate": Labelled(records, calibrate.y_true, calibrate.lesions)}
    facts, _ = fitted(load_bundle(tiny.write(tmp_path / "b")), changed)
    assert facts["fitted_on"]["images"] == 149


def test_adding_facts_leaves_graph_and_memory_as_they_were(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "b", seen={"train": {"content_hashes": ["a"], "lesion_ids": [], "isic_ids": []}})
    before = load_bundle(folder)
    tiny.add(folder, {TRUST_FILE: {"mean": np.zeros(3, np.float32)}})
    after = load_bundle(folder)
    assert after.seen() == before.seen() and "trust.npz" in after.card.files
    for name in ("graph.bin", "graph.xml", "head.npz", "seen.json"):
        assert after.card.files[name] == before.card.files[name]


def test_the_first_image_of_each_lesion_is_taken() -> None:
    assert first_of_lesion(np.array([7, 7, 2, 9, 2, 7])).tolist() == [0, 2, 3]


def test_common_classes_are_thinned_out_and_rare_ones_kept_whole() -> None:
    y = np.repeat([0, 1, 2], [1000, 300, 10])
    most = most_per_class(y, 500)
    assert most == 245 and sum(min(int(n), most) for n in np.bincount(y)) == 500
    assert most_per_class(y, 5000) >= 1000


def painted(folder: Path, n: int) -> Labelled:
    """Two views of each of n lesions, colour by colour; the first file of lesion 1 cannot be read."""
    folder.mkdir(parents=True)
    records = []
    for row in range(2 * n):
        code = tiny.CODES[row // 2 % 3]
        path = folder / f"{row}.png"
        cv2.imwrite(str(path), tiny.colour(code)[:, :, ::-1])
        records.append(Record(path=path, image=f"{code}/Jane_Doe/{path.name}", diagnosis=code))
    (folder / "2.png").write_text("no image")
    return Labelled(records, np.arange(2 * n) // 2 % 3, np.arange(2 * n) // 2)


def examples(folder: Path, train: Labelled) -> TrainingExamples | None:
    bundle = load_bundle(tiny.write(folder / "b"))
    return fit_examples(bundle, Runtime(bundle.graph_path), train, seed=0, console=QUIET)


def test_the_index_names_what_could_be_read_without_its_folder(tmp_path: Path) -> None:
    index = examples(tmp_path, painted(tmp_path / "in", 6))
    assert index is not None
    assert list(index.texts["image"]) == [f"{row}.png" for row in (0, 4, 6, 8, 10)]
    assert index.diagnosis.tolist() == [0, 2, 0, 1, 2]


def test_too_many_lesions_are_thinned_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_EXAMPLES", 3)
    index = examples(tmp_path, painted(tmp_path / "in", 9))
    assert index is not None and 2 <= len(index.places) <= 3
    assert len(set(index.diagnosis.tolist())) == len(index.diagnosis)


def test_without_a_readable_image_there_is_none(tmp_path: Path) -> None:
    gone = Labelled([Record(tmp_path / "x.png", "x.png", "RED")], np.array([2]), np.array([0]))
    assert examples(tmp_path, gone) is None
