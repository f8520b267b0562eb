"""The facts of a model in words: the same for the terminal, a notebook and the model card."""

from __future__ import annotations

from pathlib import Path

import tiny
from dermlens.bundle.bundle import MODELS_DIR, load_bundle
from dermlens.bundle.card import make_card
from dermlens.bundle.card_text import fact_lines, model_card, model_facts, warnings


def test_what_to_know_is_in_the_lines(tmp_path: Path) -> None:
    bundle = load_bundle(tiny.write(tmp_path / "b"))
    lines = fact_lines(bundle.facts())
    assert lines["SHA-256"] == bundle.sha256 and "weights CC0" in lines["licence"]
    assert lines["balanced accuracy"].startswith("0.900 [0.800, 1.000] on 30 images of 30 lesions")
    assert warnings(bundle.facts()) == ["It does not know its limits: it answers every image."]
    embedded = load_bundle(MODELS_DIR / "default").facts()
    assert "CC BY-NC 4.0" in fact_lines(embedded)["licence"] and "melanoma AUC 0." in " ".join(
        fact_lines(embedded).values()
    )
    assert warnings(embedded) == []


def test_a_leaky_or_uncalibrated_model_is_called_so() -> None:
    fit = {"fitted": False, "reason": "3 lesions"}
    card = make_card(tiny.card(data={"leaky": True}, calibration_fit=fit))
    assert [words.split()[0] for words in warnings(model_facts(card))] == ["LEAKY:", "Its", "It"]
    assert "**LEAKY" in model_card(card, ()) and "NOT calibrated (3 lesions)" in model_card(card, ())


def test_the_embedded_models_card_is_what_its_facts_say() -> None:
    bundle = load_bundle(MODELS_DIR / "default")
    text = (bundle.folder / "MODEL_CARD.md").read_text("utf-8")
    assert text == bundle.model_card()
    for heading in ("Data and roles", "Results on the test role", "Against the simplest answers", "Knowing its limits"):
        assert f"## {heading}" in text
