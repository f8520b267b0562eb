"""What limits the accuracy: classes joined before the decision, groups beside their mix, errors, and few lesions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy import limits
from benchmarks.accuracy.limits import (
    Seen,
    confusions,
    first_two,
    groups,
    headline,
    merged,
    spread,
    standard_error,
    ways_of_diagnosis,
)

CODES = ("AK", "MEL", "NV", "SCC")
PRIOR = (0.1, 0.2, 0.5, 0.2)


def seen(truth: list[int], shares: list[tuple[float, ...]], decision: list[int] | None = None, **changes: Any) -> Seen:
    probability, n = np.array(shares), len(truth)
    facts = {
        "fold": np.zeros(n, int),
        "source": np.array(["a"] * n),
        "isic_id": np.array([f"ISIC_{i:07}" for i in range(n)]),
        **changes,
    }
    decided = np.array(decision) if decision is not None else probability.argmax(axis=1)
    return Seen(CODES, np.array(truth), decided, probability, **facts)


def test_ak_and_scc_are_joined_at_the_equal_mix_of_three() -> None:
    one = seen([0, 3, 1], [(0.2, 0.35, 0.05, 0.4), (0.05, 0.35, 0.2, 0.4), (0.05, 0.6, 0.3, 0.05)])
    found = merged(one)
    assert found.codes == ("MEL", "NV", "AK+SCC") and found.truth.tolist() == [2, 2, 0]
    np.testing.assert_allclose(found.probability[0], np.array([0.35, 0.05, 0.3]) / 0.7)
    assert found.decision.tolist() == [0, 0, 0], "0.3 for each of the two is less than 0.35: two classes are one now"
    assert headline(one, np.array([True, False, False]))["seven classes, lesions of HAM10000 only"]["lesions"] == 1


def test_the_first_two_follow_the_order_of_the_probabilities() -> None:
    assert first_two(seen([0, 1, 2, 3], [(0.2, 0.3, 0.45, 0.05)] * 4)).tolist() == [False, True, True, False]


def test_a_group_is_set_beside_what_its_mix_of_classes_gives() -> None:
    """Half of the nevi and all melanomas are right; group b holds the nevi that are wrong, c a fair mix."""
    truth, decision, source = [], [], []
    for name, code, right, count in (("a", 2, True, 20), ("b", 2, False, 30), ("c", 2, True, 20), ("c", 2, False, 10)):
        truth, decision = truth + [code] * count, decision + [code if right else 1] * count
        source += [name] * count
    truth, decision, source = truth + [1] * 20, decision + [1] * 20, source + ["c"] * 20
    found = groups(seen(truth, [PRIOR] * 100, decision), np.array(source))
    assert found["b"]["accuracy"]["value"] == 0 and found["b"]["expected"]["value"] == pytest.approx(0.5)
    assert found["a"]["difference"]["value"] == pytest.approx(0.5) and found["a"]["difference"]["low"] > 0
    assert found["c"]["expected"]["value"] == pytest.approx((30 * 0.5 + 20) / 50)
    assert found["c"]["lesions"] == 50 and found["c"]["melanomas"] == 20 and found["a"]["melanomas"] == 0


def test_confusions_share_the_errors_and_the_lost_balanced_accuracy() -> None:
    """AK: 5 of 10 called SCC. NV: 10 of 40 called MEL. No other error."""
    truth = [0] * 10 + [2] * 40 + [1] * 10 + [3] * 10
    decision = [3] * 5 + [0] * 5 + [1] * 10 + [2] * 30 + [1] * 10 + [3] * 10
    found = confusions(seen(truth, [PRIOR] * 70, decision))
    assert found["AK, SCC"]["AK called SCC"] == 5 and found["AK, SCC"]["SCC called AK"] == 0
    assert found["AK, SCC"]["share_of_errors"]["value"] == pytest.approx(5 / 15)
    assert found["MEL, NV"]["share_of_errors"]["value"] == pytest.approx(10 / 15)
    assert found["AK, SCC"]["share_of_lost_balanced_accuracy"]["value"] == pytest.approx(0.5 / 0.75)
    assert "BKL, MEL" not in found


def test_the_standard_error_is_that_of_drawn_lesions() -> None:
    recall, lesions = np.array([0.5, 0.8, 0.9]), np.array([12, 40, 300])
    drawn = np.random.default_rng(0).binomial(lesions, recall, (20000, 3)) / lesions
    assert standard_error(recall, lesions) == pytest.approx(drawn.mean(axis=1).std(), rel=0.03)
    truth = [0] * 12 + [1] * 40 + [2] * 100 + [3] * 12
    decision = [0] * 6 + [3] * 6 + [1] * 30 + [2] * 10 + [2] * 90 + [1] * 10 + [3] * 12
    fold = np.arange(164) % 2
    found = spread(seen(truth, [PRIOR] * 164, decision, fold=fold))
    assert len(found["by_fold"]) == 2 and found["standard_error_of_a_fold"] > found["standard_error_of_all"]
    assert found["share_of_variance"]["AK"] > 0.7 and found["share_of_variance"]["SCC"] == 0
    widths = found["half_width_by_rarest"]
    assert widths["12"] == pytest.approx(1.96 * found["standard_error_of_all"])
    assert widths["50"] / widths["200"] == pytest.approx(2)


def test_the_way_of_diagnosis_is_looked_up_by_isic_id(tmp_path: Path) -> None:
    (tmp_path / "ham10000").mkdir()
    (tmp_path / "isic_reference.csv").write_text("isic_id,dx_type\nISIC_1,\nISIC_2,histo\n")
    (tmp_path / "ham10000" / "HAM10000_metadata.csv").write_text("image_id,dx_type\nISIC_3,follow_up\n")
    ways, ham = ways_of_diagnosis(np.array(["ISIC_1", "ISIC_2", "ISIC_3", ""]), tmp_path)
    assert ways.tolist() == ["unknown", "histo", "follow_up", "unknown"] and ham.tolist() == [False, False, True, False]


def kept_fold(number: int, **changes: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """40 lesions whose shares are drawn; the prior of the rule differs from fold to fold."""
    rng, prior = np.random.default_rng(number), np.array(PRIOR if number == 0 else PRIOR[::-1])
    shares = rng.dirichlet(np.ones(len(CODES)), 40)
    table = {
        "truth": np.arange(40) % 4,
        "decision": (shares / prior).argmax(axis=1),  # the first at the equal mix
        "probability": shares,
        "lesion": np.array([f"L{number}-{i:02}" for i in range(40)]),
        "source": np.array(["isic9"] * 40),
        "isic_id": np.array([f"ISIC_000000{i % 10}" for i in range(40)]),
        "codes": np.array(CODES),
    }
    rule = {"kind": "prior_adjusted", "strength": 1.0, "prior": prior.tolist(), "bias": [0.0] * 4, **changes}
    return table, {"rule": rule, "minutes": 1.0, "peak_gb": 1.0}


def test_kept_folds_become_a_table_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ham10000").mkdir()
    (tmp_path / "isic_reference.csv").write_text("isic_id,dx_type\n")
    (tmp_path / "ham10000" / "HAM10000_metadata.csv").write_text("image_id,dx_type\nISIC_0000001,histo\n")
    monkeypatch.setattr(limits, "read_method", lambda method: {n: kept_fold(n) for n in range(2)})
    found = json.loads(json.dumps(limits.run(data=tmp_path, method="top")))
    text = limits.table(found)
    assert text.startswith("80 lesions, one image each, of 2 of 5 folds of `top`.")
    assert "| unknown | 72 |" in text and "| histo | 8 |" in text and "scatters by 0." in text
    assert limits.figures(found)["limits.png"].startswith(b"\x89PNG")


def test_folds_are_read_at_the_equal_mix_whichever_they_were_stated_for() -> None:
    table, cost = kept_fold(0, bias=[0.3, 0.0, 0.0, 0.0])
    old = limits.read("top", {0: (table, cost)})
    at = table["probability"] / PRIOR / np.exp([0.3, 0, 0, 0])
    np.testing.assert_allclose(old.probability, at / at.sum(axis=1, keepdims=True))
    now = limits.read("top", {0: (table, {"shares": [0.25] * 4})})
    np.testing.assert_allclose(now.probability, table["probability"])


def test_folds_without_a_case_mix_or_of_other_classes_are_refused() -> None:
    table, cost = kept_fold(3)
    with pytest.raises(SystemExit, match="Fold 3 of 'top' does not say at which case mix"):
        limits.read("top", {3: (table, {**cost, "rule": {}})})
    other = {**table, "codes": np.array(CODES[::-1])}
    with pytest.raises(SystemExit, match="differ in their classes"):
        limits.read("top", {0: kept_fold(0), 1: (other, cost)})
