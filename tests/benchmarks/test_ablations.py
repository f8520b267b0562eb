"""A changed setting is compared in pairs with the recipe, and takes over features only by a link."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy.ablations import Answers, compared, link_features, table, with_earlier

CODES = ("BKL", "MEL", "NV")


def answers(seed: int, wrong: float) -> Answers:
    """Return 300 lesions, a share of them named wrongly, in an order of their own."""
    truth = np.random.default_rng(0).choice(3, 300)
    rng = np.random.default_rng(seed)
    decision = np.where(rng.random(300) < wrong, (truth + 1) % 3, truth)
    order = rng.permutation(300)
    rows = {
        "truth": truth[order],
        "decision": decision[order],
        "lesion": np.array([f"L{i:03}" for i in range(300)])[order],
        "codes": np.array(CODES),
    }
    return Answers(rows, 0.1 + 0.7 * np.eye(3)[decision[order]])


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
        "recipe": {"what": "the recipe", "minutes": 3.0, "calibrate": same, "test": same},
        "focal": {"what": "focal loss", "minutes": 4.0, "calibrate": less, "test": less},
    }
    header, _, recipe_row, focal_row = table(found).splitlines()
    assert "minus recipe" in header and "**the recipe** |  |" in recipe_row
    assert f"{less['minus_recipe']['value']:.3f} [" in focal_row


def test_variants_of_an_earlier_table_stay_behind_their_own_recipe() -> None:
    def row(score: float) -> dict[str, object]:
        return {"test": score}

    first = {"recipe": row(0.1), "focal": row(0.11), "lite1": row(0.12)}
    second = with_earlier({"recipe": row(0.2), "focal": row(0.21), "lite2": row(0.22)}, first)
    values = {name: made["test"] for name, made in second.items()}
    assert values == {"recipe": 0.2, "focal": 0.21, "lite2": 0.22, "recipe, 2": 0.1, "lite1": 0.12}
    third = with_earlier({"recipe": row(0.3), "lite2": row(0.32)}, second)
    assert list(third) == ["recipe", "lite2", "recipe, 2", "focal", "recipe, 3", "lite1"]
    assert [third[name]["test"] for name in ("recipe, 2", "recipe, 3")] == [0.2, 0.1]
    none_left = with_earlier({"recipe": row(0.4), "lite1": row(0.42)}, second)
    assert list(none_left) == ["recipe", "lite1", "recipe, 2", "focal", "lite2"]


def test_variants_of_the_same_recipe_come_together() -> None:
    earlier = {"recipe": {"test": 1}, "focal": {"test": 2}}
    assert list(with_earlier({"recipe": {"test": 1}, "lite1": {"test": 3}}, earlier)) == ["recipe", "focal", "lite1"]


def test_features_are_linked_once_and_never_written_over(tmp_path: Path) -> None:
    source = tmp_path / "base" / "cache" / "train"
    source.mkdir(parents=True)
    (source / "features.npy").write_bytes(b"features")
    (source / "features.json").write_text("{}")
    out = tmp_path / "variant"
    link_features(tmp_path / "base", out)
    linked = out / "cache" / "train"
    assert linked.joinpath("features.npy").samefile(source / "features.npy")
    assert not linked.joinpath("features.json").samefile(source / "features.json"), "its state is the variant's own"
    linked.joinpath("features.npy").unlink()  # as a variant with another trunk does
    assert (source / "features.npy").read_bytes() == b"features"
    link_features(tmp_path / "base", out)
    assert not linked.joinpath("features.npy").exists()
    assert not (out / "cache" / "select").exists()
