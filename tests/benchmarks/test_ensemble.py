"""Several methods together: the same lesions in one order, class shares counted elsewhere, mean, vote and hindsight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ensemble
import numpy as np
import pytest
from ensemble import ANY, VOTE, compared, join, vote
from kept_folds import write_fold

CODES = ("MEL", "NV")
TRUTH = [0] * 10 + [1] * 30
SURE = [0.9] * 5 + [0.1] * 5 + [0.1] * 30  # five of ten melanomas, all nevi
BOLD = [0.15] * 5 + [0.9] * 5 + [0.9] * 6 + [0.15] * 24  # the other five, and six nevi too many
ELSEWHERE = [0] * 10 + [1] * 40


def fold(truth: list[int], melanoma: list[float], *, turned: bool = False, name: str = "L") -> dict[str, np.ndarray]:
    share = np.array(melanoma)
    found = {
        "truth": np.array(truth),
        "probability": np.stack([share, 1 - share], axis=1),
        "decision": np.where(share > 0.2, 0, 1),
        "lesion": np.array([f"{name}{number:02}" for number in range(len(truth))]),
    }
    if turned:
        found = {key: column[::-1] for key, column in found.items()}
    return found | {"codes": np.array(CODES)}


def kept(**methods: dict[int, Any]) -> dict[str, dict[int, Any]]:
    return {name: {number: (each, {}) for number, each in folds.items()} for name, folds in methods.items()}


def two() -> dict[str, dict[int, Any]]:
    other = fold(ELSEWHERE, [0.5] * 50, name="M")
    return kept(a={0: fold(TRUTH, SURE), 1: other}, b={0: fold(TRUTH, BOLD, turned=True)}, c={1: other})


def test_lesions_stand_in_one_order_and_shares_are_counted_in_the_other_folds() -> None:
    joined = join(two(), ["a", "b"])
    assert joined.folds == (0,) and joined.truth.tolist() == TRUTH
    np.testing.assert_allclose(joined.prior, np.tile([0.2, 0.8], (40, 1)), err_msg="each lesion of fold 1 counts once")
    np.testing.assert_allclose(joined.probability["b"][:, 0], BOLD)
    assert joined.decision["b"].tolist() == [0 if share > 0.2 else 1 for share in BOLD]


def test_each_of_two_common_folds_takes_the_shares_of_the_other() -> None:
    first, second = fold(TRUTH, SURE), fold(ELSEWHERE, [0.5] * 50, name="M")
    joined = join(kept(a={0: first, 1: second}, b={1: second, 0: first}), ["a", "b"])
    assert joined.folds == (0, 1) and len(joined.truth) == 90
    np.testing.assert_allclose(joined.prior[[0, -1], 0], [0.2, 0.25])


def test_the_mean_the_vote_and_hindsight() -> None:
    found = compared(join(two(), ["a", "b"]), "a")
    assert list(found) == ["a", "b", "mean of the 2", VOTE, ANY]
    assert found["a"]["accuracy"]["value"] == pytest.approx(35 / 40) and "difference" not in found["a"]
    assert found["b"]["accuracy"]["value"] == pytest.approx(29 / 40), "as it was served"
    mean = found["mean of the 2"]
    assert mean["melanoma_sensitivity"]["value"] == 1 and mean["accuracy"]["value"] == pytest.approx(34 / 40)
    assert mean["difference"]["value"] == pytest.approx(0.9 - 0.75)
    assert found[VOTE]["accuracy"] == mean["accuracy"], "two who differ: the mean decides"
    assert found[ANY]["accuracy"]["value"] == 1 and "log_loss" not in found[ANY]


def test_probabilities_are_averaged_and_not_their_logarithms() -> None:
    """Melanoma 0.001 and 0.5: their mean of 0.25 is above the share of 0.2, their geometric mean far below."""
    other = fold(ELSEWHERE, [0.5] * 50, name="M")
    joined = join(
        kept(a={0: fold([0, 1], [0.001, 0.1]), 1: other}, b={0: fold([0, 1], [0.5, 0.1])}),
        ["a", "b"],
    )
    assert compared(joined, "a")["mean of the 2"]["accuracy"]["value"] == 1


def test_the_majority_wins_the_vote_whatever_the_mean_says() -> None:
    said = [np.array([0, 1, 0]), np.array([0, 2, 1]), np.array([1, 0, 1])]
    assert vote(said, np.array([[0.1, 0.9, 0], [0.3, 0.3, 0.4], [0.6, 0.4, 0]])).tolist() == [0, 2, 1]


def test_a_lesion_that_all_get_wrong_stays_wrong_in_the_last_row() -> None:
    joined = join(
        kept(a={0: fold(TRUTH, [0.1] * 40), 1: fold([0, 1], [0.5] * 2)}, b={0: fold(TRUTH, BOLD)}), ["a", "b"]
    )
    assert compared(joined, "a")[ANY]["accuracy"]["value"] == pytest.approx(35 / 40)


ONE = fold([0, 1], [0.5, 0.5])


@pytest.mark.parametrize(
    ("folds", "methods", "message"),
    [
        ({"a": {0: ONE}}, ["a"], "Name two or more"),
        ({"a": {0: ONE}}, ["a", "a"], "Name two or more"),
        ({}, ["a", "b"], "Nothing is kept of a, b: there is nothing"),
        ({"a": {0: ONE}}, ["a", "b"], "Nothing is kept of b: there is a"),
        ({"a": {0: ONE}, "b": {1: ONE}}, ["a", "b"], "a, b have no fold in common"),
        ({"a": {0: ONE}, "b": {0: ONE}}, ["a", "b"], "The folds besides 0 do not hold every class"),
        ({"a": {0: ONE}, "b": {0: fold([1, 1], [0.5] * 2)}}, ["a", "b"], "Fold 0 of 'b' and of 'a' do not hold"),
        ({"a": {0: ONE}, "b": {0: fold([0, 1, 1], [0.5] * 3)}}, ["a", "b"], "cut from different data"),
    ],
)  # fmt: skip
def test_what_cannot_be_joined_is_refused(folds: dict[str, Any], methods: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        join(kept(**folds), methods)


def test_kept_folds_become_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, folds in two().items():
        for number, (each, _) in folds.items():
            write_fold(tmp_path, name, number, each, {})

    def run(*more: str) -> None:
        monkeypatch.setattr("sys.argv", ["ensemble.py", f"--kept={tmp_path}", f"--out={tmp_path}", *more])
        ensemble.main()

    with pytest.raises(SystemExit, match="--against b is not among --methods a"):
        run("--methods", "a", "--against=b")
    run("--methods", "a", "b", "--against=a")
    text = (tmp_path / "ensemble.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert "40 lesions, one image each, of 1 of 5 folds (0)." in text
    heads, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:])
    mean = dict(zip(heads, next(row for row in rows if row[0] == "mean of the 2"), strict=True))
    values = {name: cell.split()[0] for name, cell in mean.items()}
    assert values["balanced accuracy"] == "0.900" and values["minus `a`"] == "0.150" and values["accuracy"] == "0.850"
    assert values["melanoma sensitivity"] == "1.000" and 0 < float(values["log loss"]) < 1
