"""A recipe is chosen on select and calibrate: each calibrated by the other, compared in pairs, never by the test."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import choice
import numpy as np
import pytest
from choice import ALONE, BOTH, earlier_rows, joined, lines, mean_difference, row_of, told

from dermlens.bundle.bundle import MODELS_DIR, load_bundle
from dermlens.bundle.decision import Calibration, DecisionRule
from dermlens.evaluation.fit_trust import Labelled

PRIOR = (0.1, 0.3, 0.6)


def bundle(kind: str = "prior_adjusted") -> Any:
    return SimpleNamespace(calibration=Calibration(1.0, PRIOR, PRIOR), decision_rule=DecisionRule(kind, 1.0))


def role(seed: int, n: int = 60) -> tuple[Labelled, np.ndarray]:
    """Return images of three classes, two of each lesion, and logits that say most of the classes rightly."""
    rng = np.random.default_rng(seed)
    lesions = np.arange(n) // 2 + 1000 * seed
    truth = (np.arange(n) // 2) % 3
    return Labelled([], truth, lesions), (2 * np.eye(3)[truth] + rng.normal(0, 1.5, (n, 3))).astype(np.float32)


def both() -> tuple[dict[str, Labelled], dict[str, np.ndarray]]:
    made = {"select": role(1), "calibrate": role(2)}
    return {name: part for name, (part, _) in made.items()}, {name: logits for name, (_, logits) in made.items()}


def test_each_role_has_the_temperature_that_the_other_gives() -> None:
    roles, logits = both()
    plain = told(bundle(), logits, roles)
    louder = told(bundle(), {**logits, "calibrate": 3 * logits["calibrate"]}, roles)
    assert (np.abs(plain.loss - louder.loss)[:60] > 0.01).mean() > 0.9, "select is calibrated on calibrate"
    assert louder.loss[60:].mean() > plain.loss[60:].mean() + 0.1, "calibrate is not calibrated on itself"


@pytest.mark.parametrize(("kind", "weighed"), [("prior_adjusted", PRIOR), ("largest_probability", (1, 1, 1))])
def test_each_network_decides_by_its_own_rule(kind: str, weighed: tuple[float, ...]) -> None:
    roles, logits = both()
    made = told(bundle(kind), logits, roles)
    np.testing.assert_array_equal(made.decision, (made.probability / weighed).argmax(axis=1))


def test_a_network_is_compared_in_pairs_over_lesions() -> None:
    roles, logits = both()
    truth, lesions = joined(roles, "y_true"), joined(roles, "lesions")
    base = told(bundle(), logits, roles)
    same = row_of(base, base, truth, lesions, 1)
    assert same["log_loss_minus_embedded"]["value"] == 0 and same["minus_embedded"]["value"] == 0
    clearer = {name: part + 2 * np.eye(3, dtype=np.float32)[roles[name].y_true] for name, part in logits.items()}
    better = row_of(told(bundle(), clearer, roles), base, truth, lesions, 1)
    assert better["log_loss"] < same["log_loss"] and better["melanoma_auc"] > same["melanoma_auc"]
    assert better["log_loss_minus_embedded"]["high"] < 0 < better["minus_embedded"]["low"]
    assert better["log_loss_minus_embedded"]["value"] == pytest.approx(better["log_loss"] - same["log_loss"])
    assert "log_loss_minus_embedded" not in row_of(base, None, truth, lesions, 1)


def test_the_images_of_a_lesion_are_drawn_together() -> None:
    values, truth = np.repeat([0.0, 1.0] * 20, 5), np.zeros(200, int)
    alone = mean_difference(values, truth, np.arange(200))
    together = mean_difference(values, truth, np.repeat(np.arange(40), 5))
    assert together["value"] == alone["value"] == 0.5
    assert together["high"] - together["low"] > 1.8 * (alone["high"] - alone["low"])


def test_a_bundle_that_learned_from_a_select_lesion_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened = {}
    for name, train, select in (("embedded", ["a"], ["b", "c"]), ("moved", ["a", "b"], ["c"])):
        (tmp_path / name).mkdir()
        seen = {"train": train, "select": select, "calibrate": ["d"], "test": ["e"]}
        text = json.dumps({key: {"content_hashes": values} for key, values in seen.items()})
        (tmp_path / name / "seen.json").write_text(text, encoding="utf-8")
        opened[name] = SimpleNamespace(folder=tmp_path / name, version="1")
    monkeypatch.setattr(choice, "load_bundle", lambda path: opened.get(path.name, opened["embedded"]))
    monkeypatch.setattr(sys, "argv", ["choice.py", "--data", str(tmp_path), "--others", "a=moved"])
    with pytest.raises(SystemExit, match="a had another split"):
        choice.main()


def test_a_bundle_without_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["choice.py", "--others", "runs/a/bundle"])
    with pytest.raises(SystemExit, match="Give each bundle a name"):
        choice.main()


def test_a_bundle_that_is_not_there_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["choice.py", "--others", f"a={tmp_path / 'nowhere'}"])
    with pytest.raises(SystemExit, match="No model bundle at"):
        choice.main()


def test_rows_of_an_earlier_table_are_kept_for_the_same_embedded_model_only(tmp_path: Path) -> None:
    path, model = tmp_path / "choice.json", {"name": "default", "version": "1", "sha256": "f"}
    assert earlier_rows(None, model) == earlier_rows(path, model) == {}
    path.write_text(json.dumps({"model": model, "networks": {"a": {"minutes": 1}}}), encoding="utf-8")
    assert earlier_rows(path, model) == {"a": {"minutes": 1}}
    with pytest.raises(SystemExit, match="another embedded model"):
        earlier_rows(path, {**model, "version": "2"})


def test_the_table_has_two_rows_a_network_and_no_difference_to_itself() -> None:
    figures = {"log_loss": 0.5, "balanced_accuracy": 0.7, "accuracy": 0.8, "macro_auc": 0.95, "melanoma_auc": 0.9}
    pair = {"value": -0.01, "low": -0.03, "high": 0.02}
    compared = {**figures, "log_loss_minus_embedded": pair, "minus_embedded": pair}
    networks = {
        "embedded, 1": {"minutes": 41.7, "roles": {BOTH: figures, ALONE: figures}},
        "other": {"minutes": 38.9, "roles": {BOTH: compared, ALONE: compared}},
    }
    table = lines({"lesions": {BOTH: [10, 7], ALONE: [4, 3]}, "networks": networks})
    assert table[0] == "Lesions: select and calibrate 10 images of 7, calibrate 4 images of 3."
    assert table[4] == "| embedded, 1 | select and calibrate | 0.500 |  | 0.700 |  | 0.800 | 0.950 | 0.900 | 42 |"
    cells = [cell.strip() for cell in table[-1].split("|")]
    assert cells[1:3] == ["", ALONE] and cells[4] == cells[6] == "-0.010 [-0.030, 0.020]" and cells[10] == ""


def test_the_committed_table_compares_with_the_model_that_is_embedded() -> None:
    found = json.loads((Path(choice.__file__).parent / "results" / "choice.json").read_text(encoding="utf-8"))
    embedded = load_bundle(MODELS_DIR / "default")
    assert found["model"] == {"name": embedded.name, "version": embedded.version, "sha256": embedded.sha256}
