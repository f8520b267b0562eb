"""Several trainings from one start: the mean of their weights, kept one by one, and gone on with after a stop."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from dermlens.errors import RecipeError
from dermlens.networks.efficientnet import backbone
from dermlens.training.checkpoint import Saved
from dermlens.training.device import resolve
from dermlens.training.fit import History, Stage
from dermlens.training.members import Kept, fit_members, stage_of
from dermlens.training.recipe import Recipe

FIRST = Stage("tune", 3, 1e-3, 0.2, salt=1, patience=2)


class Trainings:
    """A training that adds its salt to the weights; says what it was asked for, and may be interrupted in one."""

    def __init__(self, model: keras.Model, interrupted_in: str = "", loss_of_mean: float = 0.1) -> None:
        self.model, self.interrupted_in, self.loss_of_mean = model, interrupted_in, loss_of_mean
        self.asked: list[tuple[str, bool]] = []
        self.stop_requested_in, self.stopped_in = "", ""

    def __call__(self, stage: Stage, saved: Saved | None) -> History:
        self.asked.append((stage.name, saved is not None))
        if stage.epochs:
            self.model.set_weights([w + stage.salt for w in self.model.get_weights()])
        loss = {"tune": 0.3, "tune2": 0.2, "mean": self.loss_of_mean}.get(stage.name, 0.4)
        rows = [
            {"epoch": float(i), "select_balanced_accuracy": 0.5, "select_loss": loss} for i in range(1 + stage.epochs)
        ]
        return History(
            rows,
            len(rows) - 1,
            stage.name == self.interrupted_in,
            "early" if stage.name == self.stopped_in else None,
            stage.name == self.stop_requested_in,
        )


@pytest.fixture
def model() -> keras.Model:
    inputs = keras.Input((2,))
    network = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    network.set_weights([np.ones((2, 2)), np.zeros(2)])
    return network


def test_the_mean_of_members_from_one_start_is_kept(model: keras.Model, tmp_path: Path) -> None:
    trainings = Trainings(model)
    history = fit_members(model, FIRST, 3, trainings, Kept(tmp_path, "run"), None)
    salts = [stage_of(FIRST, number).salt for number in range(3)]
    assert len(set(salts)) == 3
    np.testing.assert_allclose(model.get_weights()[0], 1 + np.mean(salts))
    assert [name for name, _ in trainings.asked] == ["tune", "tune2", "tune3", "mean"]
    assert len(history.rows) == 3 * 4 + 1 and history.best_epoch == 12
    assert [row["epoch"] for row in history.rows] == list(range(13))
    assert history.averaged == 3 and history.stopped is None


def test_a_mean_that_fits_worse_than_its_members_is_not_kept(model: keras.Model, tmp_path: Path) -> None:
    trainings = Trainings(model, loss_of_mean=0.31)
    trainings.stopped_in = "tune3"
    history = fit_members(model, FIRST, 3, trainings, Kept(tmp_path, "run"), None)
    np.testing.assert_allclose(model.get_weights()[0], 1 + stage_of(FIRST, 1).salt)
    assert history.best_epoch == 7 and history.averaged == 1 and history.stopped is not None
    assert "member 3 early" in history.stopped and "member 2 alone is kept" in history.stopped


def test_ctrl_c_at_the_end_of_a_member_ends_there_and_keeps_it(model: keras.Model, tmp_path: Path) -> None:
    trainings = Trainings(model)
    trainings.stop_requested_in = "tune2"
    history = fit_members(model, FIRST, 3, trainings, Kept(tmp_path, "run"), None)
    assert [name for name, _ in trainings.asked] == ["tune", "tune2", "mean"]
    assert history.interrupted and history.averaged == 2 and (tmp_path / "1.npz").exists()


def test_every_member_begins_with_the_same_state_of_its_dropout(tmp_path: Path) -> None:
    inputs = keras.Input((4,))
    network = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dropout(0.5, seed=1)(inputs)))
    states: list[np.ndarray] = []

    def trained(stage: Stage, saved: Saved | None) -> History:
        (seed,) = [v for v in network.variables if "seed" in v.path]
        states.append(np.array(seed))
        network(np.ones((1, 4), np.float32), training=True)
        row = {"epoch": 0.0, "select_balanced_accuracy": 0.5, "select_loss": 0.1}
        return History([row] * (1 + stage.epochs), stage.epochs)

    fit_members(network, FIRST, 2, trained, Kept(tmp_path, "run"), None)
    np.testing.assert_array_equal(states[0], states[1])


def test_a_stopped_run_goes_on_with_its_member_and_ends_at_the_same_bits(model: keras.Model, tmp_path: Path) -> None:
    start = model.get_weights()
    fit_members(model, FIRST, 3, Trainings(model), Kept(tmp_path / "straight", "run"), None)
    straight = model.get_weights()

    model.set_weights(start)
    stopped = fit_members(model, FIRST, 3, Trainings(model, "tune2"), Kept(tmp_path / "run", "run"), None)
    assert stopped.interrupted
    np.testing.assert_array_equal(model.get_weights()[0], start[0] + 1)  # what is finished: the first alone

    model.set_weights([np.full((2, 2), 9.0), np.ones(2)])
    again = Trainings(model)
    history = fit_members(model, FIRST, 3, again, Kept(tmp_path / "run", "run"), Saved("tune2", {}, {}))
    assert again.asked == [("tune2", True), ("tune3", False), ("mean", False)]
    assert not history.interrupted
    for found, expected in zip(model.get_weights(), straight, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_first_member_that_is_stopped_is_kept_as_far_as_it_came(model: keras.Model, tmp_path: Path) -> None:
    history = fit_members(model, FIRST, 2, Trainings(model, "tune"), Kept(tmp_path, "run"), None)
    assert history.interrupted and history.best_epoch == 3
    np.testing.assert_array_equal(model.get_weights()[0], np.full((2, 2), 2.0))
    assert not (tmp_path / "0.npz").exists()


def test_members_of_another_run_or_damaged_ones_are_trained_anew(model: keras.Model, tmp_path: Path) -> None:
    fit_members(model, FIRST, 2, Trainings(model), Kept(tmp_path, "run"), None)
    assert Kept(tmp_path, "run").read("0") is not None and Kept(tmp_path, "other").read("0") is None
    (tmp_path / "1.npz").write_bytes((tmp_path / "1.npz").read_bytes()[:-40])
    again = Trainings(model)
    fit_members(model, FIRST, 2, again, Kept(tmp_path, "run"), None)
    assert [name for name, _ in again.asked] == ["tune2", "mean"]


@pytest.mark.parametrize("settings", [{"fine_tune": "head"}, {"fine_tune": "top", "batch_norm": "updated"}])
def test_where_weights_cannot_be_averaged_it_is_said(settings: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="members is 3"):
        resolve(Recipe(members=3, **settings), backbone("lite0"))
