"""A changed setting is compared in pairs with the recipe, and takes over features only by a link."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ablations import Answers, compared, lend_features, lines, plot, with_earlier

CODES = ("BKL", "MEL", "NV")


def answers(seed: int, wrong: float) -> Answers:
    """Return 300 lesions, a share of them named wrongly, in an order of their own."""
    truth = np.random.default_rng(0).choice(3, 300)
    rng = np.random.default_rng(seed)
    decision = np.where(rng.random(300) < wrong, (truth + 1) % 3, truth)
    order = rng.permutation(300)
    table = {
        "truth": truth[order],
        "decision": decision[order],
        "lesion": np.array([f"L{i:03}" for i in range(300)])[order],
        "codes": np.array(CODES),
    }
    return Answers(table, 0.1 + 0.7 * np.eye(3)[decision[order]])


def test_a_worse_variant_is_worse_by_what_it_gets_wrong() -> None:
    recipe, worse = answers(1, 0.1), answers(2, 0.4)
    same, less = compared(recipe, recipe), compared(worse, recipe)
    assert same["minus_recipe"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert -0.45 < less["minus_recipe"]["value"] < -0.15 and less["minus_recipe"]["high"] < 0
    assert less["log_loss"]["value"] > same["log_loss"]["value"]
    truth = recipe.table["truth"] == CODES.index("MEL")
    hits = recipe.table["decision"][truth] == CODES.index("MEL")
    assert same["melanoma_sensitivity"]["value"] == pytest.approx(hits.mean())
    found = {
        "recipe": {"what": "the recipe", "machine": "A", "minutes": 3.0, "calibrate": same, "test": same},
        "focal": {"what": "focal loss", "machine": "A", "minutes": 4.0, "calibrate": less, "test": less},
    }
    assert sum(line.startswith("|") for line in lines(found)) == 4
    assert plot(found).startswith(b"\x89PNG")


def test_variants_of_an_earlier_table_stay_behind_their_own_recipe() -> None:
    def row(machine: str, minutes: int) -> dict[str, object]:
        return {"machine": machine, "minutes": minutes}

    found = {"recipe": row("B", 1), "focal": row("B", 2)}
    earlier = {"recipe": row("A", 3), "focal": row("A", 4), "lite1": row("A", 5)}
    both = with_earlier(found, earlier)
    assert {name: made["minutes"] for name, made in both.items()} == {
        "recipe": 1,
        "focal": 2,
        "recipe, A": 3,
        "lite1": 5,
    }
    assert with_earlier({"recipe": row("C", 6)}, both).keys() == {"recipe", "recipe, B", "focal", "recipe, A", "lite1"}
    assert with_earlier({"recipe": row("C", 6), "lite1": row("C", 7)}, both).keys() == {
        "recipe",
        "lite1",
        "recipe, B",
        "focal",
    }


def test_features_are_linked_once_and_never_written_over(tmp_path: Path) -> None:
    source = tmp_path / "base" / "cache" / "train"
    source.mkdir(parents=True)
    (source / "features.npy").write_bytes(b"features")
    (source / "features.json").write_text("{}")
    out = tmp_path / "variant"
    lend_features(tmp_path / "base", out)
    lent = out / "cache" / "train"
    assert lent.joinpath("features.npy").samefile(source / "features.npy")
    assert not lent.joinpath("features.json").samefile(source / "features.json"), "its state is the variant's own"
    lent.joinpath("features.npy").unlink()  # as a variant with another trunk does
    assert (source / "features.npy").read_bytes() == b"features"
    lend_features(tmp_path / "base", out)
    assert not lent.joinpath("features.npy").exists()
    assert not (out / "cache" / "select").exists()
