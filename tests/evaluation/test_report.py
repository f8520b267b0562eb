"""The report: self-contained, says in words what the figures say, explains the gravest errors."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from rich.console import Console

import tiny
from dermlens import Predictor
from dermlens.bundle.bundle import NEIGHBOURS_FILE, load_bundle
from dermlens.data.manifest import read_dataset
from dermlens.data.records import Record
from dermlens.evaluation.checklist import MISSING, checklist
from dermlens.evaluation.evaluate import evaluate
from dermlens.evaluation.fit_trust import index_of
from dermlens.evaluation.report import verdict, worst_errors
from dermlens.evaluation.trust_sections import Answers, error_by_chance


def paint(folder: Path) -> Path:
    """25 noisy images of each colour, three of each class under another name."""
    rng = np.random.default_rng(0)
    for place, code in enumerate(tiny.CODES):
        (folder / code).mkdir(parents=True)
        for index in range(25):
            shown = tiny.CODES[(place + 1) % 3] if index < 3 else code
            image = np.clip(tiny.colour(shown) + rng.normal(0, 9, (40, 40, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / code / f"{index}<b>.png"), image[:, :, ::-1])
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Predictor, Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("report")
    predictor = Predictor(tiny.write(root / "b"))
    data = read_dataset(paint(root / "data"))
    quiet = Console(file=io.StringIO())
    evaluate(predictor, data, root / "out", split=None, seed=0, console=quiet, controls=True)
    return predictor, root / "out", json.loads((root / "out" / "metrics.json").read_text())


def test_the_page_needs_nothing_from_outside_and_every_link_has_its_target(
    done: tuple[Predictor, Path, dict[str, Any]],
) -> None:
    page = (done[1] / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "<script" not in page and "@import" not in page
    targets = set(re.findall(r'<section id="(\w+)"', page))
    assert set(re.findall(r'href="#(\w+)"', page)) <= targets and len(targets) == 14
    assert page.count("75 of 75 images have no lesion or ISIC id") == 2
    assert "0<b>.png" not in page and "0&lt;b&gt;.png" in page
    assert ("not a diagnosis" in page and "not validated on dark skin" in page) or "no validation on dark skin" in page


def test_a_model_with_limits_says_why_it_does_not_answer_and_what_other_thresholds_would_do(tmp_path: Path) -> None:
    examples = Path(__file__).resolve().parents[2] / "examples" / "images"
    (tmp_path / "data" / "NV").mkdir(parents=True)
    shutil.copy(examples / "NV_ISIC_0000019.jpg", tmp_path / "data" / "NV")
    cv2.imwrite(str(tmp_path / "data" / "NV" / "blank.png"), np.full((224, 224, 3), 150, np.uint8))
    quiet, data = Console(file=io.StringIO()), read_dataset(tmp_path / "data")
    evaluate(Predictor("default"), data, tmp_path / "out", split=None, seed=0, console=quiet)
    report, page = (json.loads((tmp_path / "out" / "metrics.json").read_text()), (tmp_path / "out" / "report.html"))
    assert report["status"]["reasons"]["blank"] == 1
    assert report["status"]["reason_words"]["blank"] == "The picture is nearly one colour."
    assert "All of these images are of one class" in page.read_text()
    assert "<td>blank</td>" in page.read_text() and "The picture is nearly one colour." in page.read_text()
    rows = report["novelty"]["by_threshold"]
    assert [row["kept"] for row in rows] == sorted(row["kept"] for row in rows) and sum(r["in_use"] for r in rows) == 1


def test_the_gallery_names_the_training_lesions_nearest_to_each_failure(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "b")
    pictures = np.array([tiny.colour(code).mean((0, 1)) for code in tiny.CODES])
    records = [Record(Path(code), f"<{code}>.png", code) for code in tiny.CODES]
    tiny.add(folder, {NEIGHBOURS_FILE: index_of(pictures, np.arange(3), records, tiny.CODES).arrays()})
    quiet = Console(file=io.StringIO())
    evaluate(Predictor(folder), read_dataset(paint(tmp_path / "data")), tmp_path, split=None, seed=0, console=quiet)
    page = (tmp_path / "report.html").read_text()
    called = re.findall(r"<figcaption><b>\w+, called (\w+) ", page)
    nearest = re.findall(r"<span>Nearest in training: &lt;(\w+)&gt;.png \w+ [01]\.\d\d, ", page)
    assert len(called) == 9 and [n.lower() for n in nearest] == [c.lower() for c in called], (
        "each looks like that colour"
    )


def test_without_an_index_the_gallery_names_none(done: tuple[Predictor, Path, dict[str, Any]]) -> None:
    assert "Nearest in training" not in (done[1] / "report.html").read_text()


def test_the_verdict_says_what_the_figures_say(done: tuple[Predictor, Path, dict[str, Any]]) -> None:
    report = done[2]
    words = " ".join(verdict(report))
    assert report["accuracy"]["value"] == pytest.approx(0.88) and "88 %" in words
    assert "dark skin" in words and "too few images" in words
    assert "The artefact with the largest effect is" in words and "where chance is 0.33" in words
    unnamed = "75 of 75 images have no lesion or ISIC id"
    assert unnamed in words and report["counts"]["scored_without_lesion_id"] == 75
    named = verdict({**report, "counts": {**report["counts"], "scored_without_lesion_id": 3}})
    assert named[0].startswith("On unseen lesions the model")
    calibrated = " ".join(verdict({**report, "n": 500}))
    assert "how often that class is correct" in calibrated, "it is measured on the most probable class"
    found = report["calibration"]
    for ece, chance, said in (
        (0.04, 0.06, "roughly what they say"),
        (0.045, 0.06, "may or may not be well calibrated"),
        (0.07, 0.08, "may or may not be well calibrated"),
        (0.07, 0.06, "are not well calibrated"),
    ):
        value = {"value": ece, "low": 0.0, "high": ece + 0.01}
        at_mix = {**found["at"]["equal"], "chance": {"mean": 0.03, "high": chance}}
        at_mix["after"] = {**at_mix["after"], "ece": value, "ece_debiased": value}
        made = {**found, "at": {**found["at"], "equal": at_mix}}
        assert said in " ".join(verdict({**report, "n": 500, "calibration": made}))
    leaky = verdict({**report, "leaky": True, "controls": None})
    assert leaky[0].startswith("LEAKY") and "--controls" in leaky[-1]


def test_the_verdict_names_the_group_with_the_lowest_sensitivity(done: tuple[Predictor, Path, dict[str, Any]]) -> None:
    def words(**groups: dict[str, float | None]) -> str:
        point = {"name": "malignant_95", "codes": ["MEL"], "sensitivity": rate(0.9), "specificity": rate(0.6)}
        rows = {axis: {name: {"referral_sensitivity": rate(v)} for name, v in g.items()} for axis, g in groups.items()}
        made = {"operating_points": [point], "referral": "malignant_95", "subgroups": rows}
        return " ".join(verdict({**done[2], **made}))

    def rate(value: float | None) -> dict[str, float | None]:
        return {"value": value, "low": None if value is None else value - 0.1, "high": value}

    found = words(age={"under 30": None, "30 to 44": 0.8, "45 to 59": 0.95}, source={"a": 0.1})
    assert "sensitivity 90 % (80 to 90 %), specificity 60 % (50 to 60 %) on unseen lesions, for melanoma." in found
    assert "lowest for 30 to 44 (age): 80 % (70 to 80 %)" in found, "a source is no group of people"
    assert "is lowest" not in words(age={"30 to 44": 0.8}), "one group is not less than another"
    assert "is lowest" not in words(age={"30 to 44": 1.0, "60 to 74": 1.0}), "all of all is no lowest"


def test_what_chance_explains_is_not_put_down_to_the_surroundings_of_the_lesion(
    done: tuple[Predictor, Path, dict[str, Any]],
) -> None:
    def words(chance: float, **reached: float | None) -> str:
        hidden = {"lesion erased": {"balanced_accuracy": reached, "chance": chance}}
        return " ".join(verdict({**done[2], "controls": {**done[2]["controls"], "without_lesion": hidden}}))

    assert "surroundings of the lesion" in words(0.25, value=0.5, low=0.4, high=0.6)
    for chance, value, low in ((1.0, 1.0, None), (0.25, 0.3, 0.2), (0.25, 0.25, None), (0.125, 0.38, None)):
        assert "surroundings of the lesion" not in words(
            chance, value=value, low=low, high=None if low is None else 0.4
        )


def test_metrics_hold_all_that_the_page_tells(done: tuple[Predictor, Path, dict[str, Any]]) -> None:
    report = done[2]
    assert report["prediction_sets"] is None and report["novelty"] is None, "they are not fitted in the tiny bundle"
    assert (
        report["status"]["ok"]["n"] == report["status"]["all"]["n"] == report["n"] and not report["status"]["reasons"]
    )
    assert report["case_mix"] == report["calibration"]["case_mix"] == "equal"
    assert set(report["calibration"]["at"]) == {"equal", "training"}
    for at_mix in report["calibration"]["at"].values():
        assert at_mix["after"]["log_loss"] != at_mix["before"]["log_loss"]
        assert at_mix["after"]["ece_debiased"]["value"] <= at_mix["after"]["ece"]["value"]
    here = report["calibration"]["at"]["equal"]
    by_class = here["after"]["classwise_reliability"]
    assert set(by_class) == set(tiny.CODES) and sum(by_class["RED"]["images"]) == 75
    assert len(by_class["RED"]["images"]) == 5, "five of the class are expected in each bin"
    assert set(here["before"]["classwise_ece"]) == set(tiny.CODES) and "decision_rules" not in report
    assert sum(row["n"] for row in report["advice"].values()) == report["n"]
    assert report["advice"]["not_assessed"] == {"n": report["n"], "grave": 0}, "no colour is malignant"
    assert set(report["controls"]["artefacts"]) >= {"ink marks", "ruler", "hair"}
    assert len(report["fingerprint"]) == 64


def test_on_few_lesions_perfect_probabilities_show_an_error_too() -> None:
    confidence = np.random.default_rng(1).uniform(0.3, 1.0, 2000)

    def chance(confidence: np.ndarray, lesions: np.ndarray) -> dict[str, float]:
        return error_by_chance(confidence, lesions, np.full(len(confidence), 1 / len(confidence)), seed=0)

    few, many = (chance(confidence[:n], np.arange(n)) for n in (100, 2000))
    assert 0.05 < few["mean"] < few["high"] and many["mean"] < few["mean"] / 3
    alike = chance(confidence[:100].repeat(4), np.arange(400) // 4)
    apart = chance(confidence[:100].repeat(4), np.arange(400))
    assert alike["mean"] > 1.2 * apart["mean"], "four pictures of one lesion are not four lesions"
    uneven = np.where(np.arange(2000) < 100, 0.9 / 100, 0.1 / 1900)
    assert error_by_chance(confidence, np.arange(2000), uneven, seed=0)["mean"] > 2 * many["mean"], "few count most"


def test_figures_are_not_broken_over_lines(done: tuple[Predictor, Path, dict[str, Any]]) -> None:
    page = (done[1] / "report.html").read_text()
    assert re.search(r'<td class="figure">0\.880 \[', page) and '<td class="figure">RED' not in page


def test_what_nobody_recorded_is_marked_missing(done: tuple[Predictor, Path, dict[str, Any]]) -> None:
    predictor, _, report = done
    rows = {item: (where, answer) for item, where, answer in checklist(predictor.bundle.card, report)}
    assert len(rows) == 34
    assert rows["Artefacts in the images"][0] == "controls"
    assert (
        rows["Histology behind malignant labels"][0] == MISSING
        and rows["Images that are no such lesions"][0] == MISSING
    )
    without = {item: where for item, where, _ in checklist(predictor.bundle.card, {**report, "controls": None})}
    assert without["Artefacts in the images"] == MISSING
    assert rows["Test from elsewhere"][0] == "data"
    kept = "Separation of training and test"
    assert rows[kept][0] == MISSING, "of the tiny model's lesions nothing is known"
    for known, where in ((1.0, "data"), (0.95, "data"), (0.2, MISSING)):
        data = msgspec.structs.replace(predictor.bundle.card.data, lesions_known=known)
        told = checklist(msgspec.structs.replace(predictor.bundle.card, data=data), report)
        assert {item: place for item, place, _ in told}[kept] == where
    known = {**report["counts"], "of_the_models_own_test": 3}
    own = {item: where for item, where, _ in checklist(predictor.bundle.card, {**report, "counts": known})}
    assert own["Test from elsewhere"] == MISSING, "a test split of the same data set is no outside test"


def test_a_missed_malignancy_comes_before_a_surer_harmless_error(tmp_path: Path) -> None:
    bundle = load_bundle(tiny.write(tmp_path / "b", **tiny.named("DF", "MEL", "NV")))
    probability = np.array([[0.9, 0.05, 0.05], [0.1, 0.2, 0.7], [0.1, 0.8, 0.1], [0.1, 0.3, 0.6]])
    answers = Answers(
        bundle=bundle,
        mix=bundle.case_mix,
        y_true=np.array([2, 1, 1, 1]),
        lesions=np.arange(4),
        probability=probability,
        decision=probability.argmax(1),
        logits=np.log(probability),
        predictions=[],
    )
    assert worst_errors(answers) == [1, 3, 0]
    assert worst_errors(answers, most=1) == [1]
