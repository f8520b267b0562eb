"""refit: a finished bundle gets its trust facts from its own data, and says so when it is given other data."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny
from dermlens import Predictor
from dermlens.bundle.bundle import HASH_CHARS, add_baselines, load_bundle
from dermlens.data.images import content_hash
from dermlens.evaluation.baselines import HeldOut, read_held_out
from dermlens.training.refit import main

ROLES = {"train": 60, "calibrate": 60, "test": 30}


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """A tiny bundle that remembers which of the images had which role, and their folder."""
    rng = np.random.default_rng(0)
    seen: dict[str, dict[str, list[str]]] = {}
    for role, n in ROLES.items():
        hashes = []
        for index in range(n):
            code = tiny.CODES[index % 3]
            path = tmp_path / "data" / code / f"{role}{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.clip(tiny.colour(code) + rng.normal(0, 25, (40, 40, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(path), pixels)
            hashes.append(content_hash(path.read_bytes())[:HASH_CHARS])
        seen[role] = {"content_hashes": hashes, "lesion_ids": [], "isic_ids": []}
    # the colours are swapped by cv2, so RED and BLUE change places: a model that errs on them
    data = {"fingerprint": "0" * 64, "leaky": False, "unreadable": ["Jane_Doe/broken.jpg"]}
    return tiny.write(tmp_path / "b", seen=seen, data=data, **CARD), tmp_path / "data"


CARD = {
    "backbone": {"title": "tiny", "licence": "none"},
    "recipe": {"weights": "none", "cut_block": 0},
    "created": "2026-01-01",
    "training": {"minutes": 0, "best_epoch": 0},
    "metrics": {"n": 31, "balanced_accuracy": {"value": 0.9, "low": 0.8, "high": 1.0}, "per_class": {}},
    "probe": {},
}


def test_facts_are_fitted_from_the_roles_the_bundle_remembers(
    made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, data = made
    monkeypatch.setattr(
        "dermlens.training.refit.model_card", lambda card: f"# {card['trust']['fitted_on']['lesions']}\n"
    )
    assert main([str(folder), "--data", str(data)]) == 0
    predictor = Predictor(folder)
    facts = predictor.bundle.card["trust"]
    assert facts["fitted_on"]["images"] == 60 and facts["fitted_on"]["training_images"] == 60
    assert facts["measured"]["role"] == "test" and facts["measured"]["images"] == 30 and facts["fitted_in_s"] >= 0
    assert (folder / "MODEL_CARD.md").read_text() == "# 60\n"
    answer = predictor.predict(tiny.colour("GREEN"))
    assert answer.prediction_set is not None and answer.novelty is not None
    assert facts["neighbours"] == {"lesions": 60}
    near = predictor.neighbours(answer, 3)
    assert [n.diagnosis for n in near] == ["GREEN"] * 3 and near[0].image.startswith("train")
    assert main([str(folder), "--data", str(data), "--no-neighbours"]) == 0
    bundle = Predictor(folder).bundle
    assert not bundle.has_examples and bundle.card["data"]["unreadable"] == []


def test_other_data_are_refused_and_the_bundle_stays(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = made
    before = (folder / "bundle.json").read_bytes()
    other = tmp_path / "other"
    for code in ("RED", "GREEN"):
        (other / code).mkdir(parents=True)
        cv2.imwrite(str(other / code / "a.png"), tiny.colour(code))
    assert main([str(folder), "--data", str(other)]) == 2
    assert "0 images that the model was trained on" in capsys.readouterr().err.replace("\n", " ")
    assert (folder / "bundle.json").read_bytes() == before


def test_the_calibration_is_fitted_again_when_asked(
    made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = made
    before = load_bundle(folder)
    monkeypatch.setattr("dermlens.training.refit.model_card", lambda card: "# tiny\n")
    monkeypatch.setattr("dermlens.training.recalibrate.model_card", lambda card: "# tiny\n")
    assert main([str(folder), "--data", str(data), "--calibrate"]) == 2
    assert "The data hold 30 of the 31 images that the model was tested on" in " ".join(capsys.readouterr().err.split())
    assert load_bundle(folder).sha256 == before.sha256, "a failure leaves the bundle whole"
    told = {**before.card, "metrics": {**before.card["metrics"], "n": 30}}
    add_baselines(folder, told, held_out(folder, data).arrays(), "# tiny\n")
    assert main([str(folder), "--data", str(data), "--calibrate"]) == 0
    after = load_bundle(folder)
    fit = after.card["calibration_fit"]
    assert after.calibration.temperature != before.calibration.temperature
    assert fit["lesions"] == 60 and fit["bias"]["parts"] == 5 and (fit["bias"]["reason"] is None) == fit["fitted"]
    assert any(after.calibration.bias) == fit["bias"]["kept"]
    assert after.card["metrics"]["n"] == 30 and after.card["metrics"]["ece"] is not None
    held = read_held_out(after)
    assert (held.model == held.truth).mean() == after.card["metrics"]["accuracy"]["value"]
    assert after.card["probe"]["model_minus_probe_balanced_accuracy"]["value"] > 0
    assert after.card["files"]["graph.bin"] == before.card["files"]["graph.bin"]
    with pytest.raises(SystemExit):
        main([str(folder), "--data", str(data), "--calibrate", "--only-baselines"])


def held_out(folder: Path, data: Path) -> HeldOut:
    """Baselines whose decisions are all wrong, in another order than the data set's."""
    seen = json.loads((folder / "seen.json").read_text())["test"]["content_hashes"]
    label = {content_hash(p.read_bytes())[:HASH_CHARS]: tiny.CODES.index(p.parent.name) for p in data.rglob("*.png")}
    hashes = tuple(reversed(seen))
    truth = np.array([label[digest] for digest in hashes])
    return HeldOut(hashes, np.arange(30), truth, (truth + 1) % 3, (truth + 2) % 3, 0)
