"""The training loop: it learns, ends at the best averaged weights, and goes on from a checkpoint bit for bit."""

from __future__ import annotations

import _thread
import io
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

from dermlens.errors import WeightsError
from dermlens.reporting.plots import kept_epoch
from dermlens.training import fit as fit_module
from dermlens.training.checkpoint import Checkpoint, values_of
from dermlens.training.feed import Draw, Feed, from_arrays
from dermlens.training.fit import History, Stage, fine_tuning, fit, head_training
from dermlens.training.network import classifier
from dermlens.training.recipe import Recipe
from dermlens.training.watch import Watch

RECIPE = Recipe(batch_size=16, dropout=0.2, mixup=0.2, batch_norm="updated", precision="float32")
STAGE = Stage("tune", 3, 1e-2, mixup=0.2, salt=1)
CODES = ("A", "B", "C")
SILENT = Console(file=io.StringIO())


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    features = keras.Input((4, 4, 6))
    x = keras.layers.Conv2D(8, 3, padding="same", name="conv")(features)
    x = keras.layers.BatchNormalization(name="norm")(x)
    top = keras.Model(features, keras.layers.ReLU(name="relu")(x))
    return classifier(top, 3, RECIPE.dropout, 0)


def toy(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cached features of three classes that differ in one channel each, float16 (n, 2 views, 4, 4, 6)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    features = rng.normal(0, 0.5, (n, 2, 4, 4, 6))
    features[np.arange(n), :, :, :, labels] += 2
    return features.astype(np.float16), labels


def feed(n: int = 96) -> Feed:
    select, labels = toy(48, 1)
    return from_arrays(*toy(n, 0), select[:, 0], labels)


def trained(
    stage: Stage = STAGE, recipe: Recipe = RECIPE, checkpoint: Checkpoint | None = None, source: Feed | None = None
) -> tuple[keras.Model, History]:
    model = network()
    saved = checkpoint.load() if checkpoint else None
    return model, fit(model, source or feed(), stage, recipe, CODES, Watch(SILENT, CODES), checkpoint, saved)


def logits(model: keras.Model) -> np.ndarray:
    return np.asarray(model(toy(48, 1)[0][:, 0].astype(np.float32), training=False)[0])


def test_training_learns_and_ends_at_the_best_epochs_weights() -> None:
    model, history = trained()
    scores = [row["select_balanced_accuracy"] for row in history.rows]
    assert len(scores) == 4 and max(scores) > 0.9 > scores[0]
    assert history.best_epoch == kept_epoch(history.rows)
    found = (logits(model).argmax(axis=1) == toy(48, 1)[1]).mean()
    assert found == pytest.approx(scores[history.best_epoch], abs=0.03)


def test_the_epoch_with_the_best_auc_is_kept_even_where_another_decides_better(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([(0.5, 0.9, 1.0), (0.9, 0.6, 0.5), (0.9, 0.5, 0.4), (0.8, 0.7, 0.3)])  # AUC, balanced accuracy, loss
    met: list[np.ndarray] = []

    def scores(loop: fit_module._Loop) -> dict[str, float]:
        met.append(logits(loop.model))
        return dict(zip(("select_macro_auc", "select_balanced_accuracy", "select_loss"), next(told), strict=True))

    monkeypatch.setattr(fit_module._Loop, "_scores", scores)
    model, history = trained()
    assert (history.best_epoch, history.best_score) == (2, 0.5)
    np.testing.assert_allclose(logits(model), met[2], rtol=1e-5)
    assert all(np.abs(met[2] - other).max() > 1e-3 for other in (met[0], met[1], met[3]))


def test_each_epoch_tells_the_recall_of_each_class() -> None:
    _, history = trained()
    row = history.rows[-1]
    recalls = [row[f"select_recall_{code}"] for code in CODES]
    assert np.mean(recalls) == pytest.approx(row["select_balanced_accuracy"])


def test_the_averaged_weights_are_scored_and_training_goes_on_with_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[float] = []
    real = fit_module._Loop.score_epoch

    def noted(self: fit_module._Loop, epoch: int, extra: dict[str, float]) -> None:
        if epoch:
            live = self.kept_for_test[-1]  # type: ignore[attr-defined]
            scored.append(float(np.abs(self.model.get_layer("conv").get_weights()[0] - live).max()))
        real(self, epoch, extra)

    before = fit_module._Loop._end_epoch

    def remembered(self: fit_module._Loop, rate: float) -> None:
        self.kept_for_test = [self.model.get_layer("conv").get_weights()[0]]  # type: ignore[attr-defined]
        before(self, rate)
        again = self.model.get_layer("conv").get_weights()[0]
        np.testing.assert_array_equal(again, self.kept_for_test[-1])  # type: ignore[attr-defined]

    monkeypatch.setattr(fit_module._Loop, "score_epoch", noted)
    monkeypatch.setattr(fit_module._Loop, "_end_epoch", remembered)
    trained()
    assert len(scored) == 3 and min(scored) > 1e-4, "other weights than those of the last step were scored"


@pytest.mark.parametrize("stop_after", [1, 6, 7, 17])
def test_a_training_that_stops_anywhere_goes_on_to_the_same_bits(
    stop_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, straight = trained()
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz", "key", SILENT, every_s=0.0)

    class Killed(Exception):
        pass

    real = fit_module._Loop.save
    count = iter(range(1, 1000))

    def save(self: fit_module._Loop) -> None:
        real(self)
        if next(count) == stop_after:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(fit_module._Loop, "save", save)
        patch.setattr(Checkpoint, "due", lambda self: True)
        with pytest.raises(Killed):
            trained(checkpoint=checkpoint)
    assert checkpoint.path.is_file()
    resumed, history = trained(checkpoint=checkpoint)
    for one, other in zip(values_of(whole.variables), values_of(resumed.variables), strict=True):
        np.testing.assert_array_equal(one, other)
    name = "select_loss"
    assert [row[name] for row in history.rows] == [row[name] for row in straight.rows]
    assert history.best_epoch == straight.best_epoch


def test_early_stopping_gives_its_reason() -> None:
    _, history = trained(replace(STAGE, epochs=30, learning_rate=0.0, patience=2))
    assert len(history.rows) == 3 and history.best_epoch == 0
    assert history.stopped is not None
    assert "after epoch 2: no improvement in 2 epochs since epoch 0" in history.stopped


def test_ctrl_c_ends_between_two_steps_with_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz", "key", SILENT)
    source = feed()
    calls = iter(range(1000))

    def load(draw: Draw) -> np.ndarray:
        if next(calls) == 8:
            _thread.interrupt_main()  # as Ctrl-C does, but with no frame on a signal stack (pyproject.toml)
        return source.load(draw)

    _, history = trained(checkpoint=checkpoint, source=replace(source, load=load))
    assert history.interrupted and 1 <= len(history.rows) < 4
    saved = checkpoint.load()
    assert saved is not None and 0 < saved.values["step"] < 18
    again, finished = trained(checkpoint=checkpoint)
    np.testing.assert_array_equal(logits(again), logits(trained()[0]))
    assert not finished.interrupted


def test_a_loss_that_is_not_finite_ends_the_training_with_its_remedy() -> None:
    with pytest.raises(WeightsError, match="diverged"):
        trained(replace(STAGE, learning_rate=float("inf")))


def test_an_error_while_batches_are_made_ends_the_training() -> None:
    features, labels = toy(48, 0)
    short = from_arrays(features[:10], labels, features[:, 0], labels)
    with pytest.raises(IndexError):
        trained(source=short)


def test_a_training_that_diverges_later_keeps_its_best_epoch(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz", "key", SILENT, every_s=0.0)
    source = feed()
    calls = iter(range(1000))

    def load(draw: Draw) -> np.ndarray:
        inputs = source.load(draw)
        return inputs * np.float16(np.nan) if next(calls) == 14 else inputs

    model, history = trained(checkpoint=checkpoint, source=replace(source, load=load))
    assert history.stopped is not None and "diverged" in history.stopped and history.best_epoch == 2
    assert np.isfinite(logits(model)).all()
    saved = checkpoint.load()
    assert saved is None or all(np.isfinite(a).all() for a in saved.arrays["model"])


def test_a_training_that_had_ended_early_is_not_trained_on(tmp_path: Path) -> None:
    """Ctrl-C arrives in the very epoch after which nothing would follow."""
    stage = replace(STAGE, epochs=30, learning_rate=0.0, patience=2)
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz", "key", SILENT, every_s=0.0)
    real = fit_module._Loop._exhausted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module._Loop, "_exhausted", lambda self: False)
        patch.setattr(fit_module._Loop, "_interrupted", fit_module._Loop.save)
        seen = iter(range(100))
        patch.setattr(fit_module, "defer_interrupt", lambda notice: nullcontext(Stopping(lambda: next(seen) >= 11)))
        trained(stage, checkpoint=checkpoint)
    assert fit_module._Loop._exhausted is real
    _, history = trained(stage, checkpoint=checkpoint)
    assert history.stopped is not None and len(history.rows) == 3


class Stopping:
    """Asked to stop when the function says so."""

    def __init__(self, now: Callable[[], bool]) -> None:
        self._now = now

    @property
    def requested(self) -> bool:
        return self._now()


def test_the_head_learns_slower_from_features_of_large_spread_and_waits_only_where_nothing_follows() -> None:
    recipe = Recipe(fine_tune="head", head_epochs=7, head_learning_rate=1e-3, patience=4)
    narrow, wide = np.full((10, 2), 0.5), np.array([[-5.0], [5.0]] * 10)
    assert head_training(recipe, narrow) == Stage("head", 7, 1e-3, mixup=0.0, salt=0, patience=4)
    assert head_training(replace(recipe, fine_tune="top"), wide) == Stage("head", 7, 2e-4, mixup=0.0, salt=0)
    assert fine_tuning(replace(recipe, epochs=3, learning_rate=0.1, mixup=0.3)) == Stage("tune", 3, 0.1, 0.3, 1, 4)
