"""The embedded model: sound, small, honest about itself, blind to nothing it is asked, and right on easy cases."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from rich.console import Console

from dermlens import Predictor
from dermlens.bundle.bundle import MODELS_DIR
from dermlens.data.manifest import read_dataset
from dermlens.diagnoses import ISIC2019
from dermlens.evaluation.baselines import compare_test_answers, read_test_answers
from dermlens.evaluation.evaluate import evaluate

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples" / "images"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor("default")


def test_it_is_small_and_has_no_keras_copy() -> None:
    files = list((MODELS_DIR / "default").iterdir())
    assert sum(p.stat().st_size for p in files) <= 20_000_000
    assert {p.name for p in files} == {
        "MODEL_CARD.md",
        "baselines.npz",
        "bundle.json",
        "graph.bin",
        "graph.xml",
        "head.npz",
        "lesions.npz",
        "neighbours.npz",
        "seen.json",
        "trust.npz",
    }


def test_card_states_scope_roles_metrics_limits_and_licence(predictor: Predictor) -> None:
    card = predictor.bundle.card
    assert predictor.bundle.codes == ISIC2019
    assert "dermoscopic" in card.scope and card.modality == "dermoscopy"
    assert card.licence.weights.startswith("CC BY-NC") and card.licence.code == "Apache-2.0"
    assert card.data.not_tested_on and card.data.leaky is False
    assert set(card.data.roles) == set(ISIC2019)
    assert card.training.minutes <= 90
    text = (MODELS_DIR / "default" / "MODEL_CARD.md").read_text("utf-8")
    for words in ("dermoscopic", "not a diagnosis", "Not tested on", "linear probe", "source of an image alone"):
        assert words in text


def test_it_beats_the_linear_probe(predictor: Predictor) -> None:
    difference = predictor.bundle.card.probe.model_minus_probe_balanced_accuracy
    assert difference["low"] > 0


def test_no_lesion_stands_in_two_roles() -> None:
    seen = json.loads((MODELS_DIR / "default" / "seen.json").read_text())
    assert set(seen) == {"train", "select", "calibrate", "test"}
    for kind in ("content_hashes", "lesion_ids", "isic_ids"):
        everything = [item for role in seen.values() for item in role[kind]]
        assert len(everything) == len(set(everything)) > 0


def test_examples_were_not_learned_from(predictor: Predictor) -> None:
    seen = predictor.bundle.seen()
    with (EXAMPLES / "LICENCES.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert seen.reason(None, None, row["isic_id"]) is None


def test_every_example_gets_a_calibrated_answer(predictor: Predictor) -> None:
    for answer in predictor.predict_many(sorted(EXAMPLES.glob("*.jpg"))):
        assert answer.status in ("ok", "uncertain")
        assert answer.prediction_set and answer.novelty and answer.quality and answer.malignant_probability is not None
        assert answer.referral is not None and answer.referral["operating_point"] == "malignant_95"
        assert sum(answer.probabilities.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket", "page", "brick"])
def test_what_is_no_dermoscopy_is_rejected(predictor: Predictor, name: str) -> None:
    answer = predictor.predict(getattr(skimage.data, name)())
    assert answer.status == "rejected" and answer.reasons[0].code in ("no_lesion", "unfamiliar")


def test_its_limits_reach_what_was_asked_for(predictor: Predictor) -> None:
    measured = predictor.bundle.card.trust.measured
    assert measured.role == "test"
    assert measured.status["rejected"].share <= 0.15, "at least 85 % of held-out lesions are not rejected"
    assert measured.status["ok"].accuracy > measured.accuracy + 0.05
    sets = measured.prediction_sets
    assert sets["coverage"]["high"] >= 0.9, "averaged over the diagnoses"
    assert all(row["coverage"]["high"] >= 0.8 for row in sets["per_class"].values())
    point = predictor.bundle.limits(predictor.case_mix).referral
    assert point is not None and point.sensitivity["high"] >= point.aimed_at


def test_it_keeps_what_model_and_probe_said_of_its_test(predictor: Predictor) -> None:
    bundle = predictor.bundle
    stored = read_test_answers(bundle)
    assert stored is not None and len(stored.hashes) == bundle.card.metrics.n
    found = compare_test_answers(stored, bundle.codes, seed=0)
    for name, row in (("model", bundle.card.metrics), ("linear_probe", bundle.card.probe)):
        score = found["methods"][name]["balanced_accuracy"]["value"]
        assert score == pytest.approx(row.balanced_accuracy["value"], abs=1e-9)
    assert list(bundle.card.baselines.words) == found["words"] and found["better_than_probe"]
    assert (bundle.folder / "baselines.npz").stat().st_size < 60_000


def test_activation_map_contract_on_real_images(predictor: Predictor) -> None:
    """Spatial mean of feature_map times the head's weights plus bias equals the logits within 1e-4 in float32."""
    from dermlens.data.images import load_image

    paths = sorted(EXAMPLES.glob("*.jpg"))
    outputs = predictor._runtime.run(np.stack([load_image(p, predictor.bundle.input_spec) for p in paths]))
    weights, bias = predictor.bundle.head()
    np.testing.assert_allclose(outputs.feature_map.mean(axis=(1, 2)) @ weights + bias, outputs.logits, atol=1e-4)


def test_predicting_never_loads_tensorflow_or_keras() -> None:
    program = (
        "import sys\nfrom dermlens.cli import main\n"
        f"try:\n    main(['predict', {str(EXAMPLES)!r}, '--json'])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert 'openvino' in loaded and not loaded & {'tensorflow', 'keras', 'sklearn', 'pandas', 'matplotlib'}"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(list(EXAMPLES.glob("*.jpg")))


@pytest.mark.data
def test_the_cards_figures_come_back_from_the_test_lesions(
    predictor: Predictor, data_dir: Path, tmp_path: Path
) -> None:
    """evaluate on all of HAM10000 sets aside what was learned and finds the test role again."""
    dataset = read_dataset(
        data_dir / "ham10000", reference=data_dir / "isic_reference.csv", task="isic2019", frame_aspect=None
    )
    evaluate(predictor, dataset, tmp_path, split=None, seed=0, console=Console(file=io.StringIO()))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    seen = json.loads((MODELS_DIR / "default" / "seen.json").read_text())
    assert metrics["counts"]["set_aside_as_seen"] > 8000
    with (tmp_path / "predictions.csv").open(newline="") as file:
        scored = {row["lesion_id"] for row in csv.DictReader(file) if row["status"] == "scored"}
    assert scored <= set(seen["test"]["lesion_ids"])
    card = predictor.bundle.card.metrics.balanced_accuracy
    assert card["low"] - 0.02 <= metrics["balanced_accuracy"]["value"] <= card["high"] + 0.02


@pytest.mark.data
def test_most_of_isic9_is_set_aside_as_seen(predictor: Predictor, data_dir: Path, tmp_path: Path) -> None:
    dataset = read_dataset(data_dir / "isic9", frame_aspect=4 / 3)
    evaluate(predictor, dataset, tmp_path, split=None, seed=0, console=Console(file=io.StringIO()))
    counts = json.loads((tmp_path / "metrics.json").read_text())["counts"]
    assert counts["images"] == 2359 and counts["set_aside_as_seen"] > counts["images"] / 2
