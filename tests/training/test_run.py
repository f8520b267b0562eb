"""From a folder of images to a bundle that answers: the whole chain once a mode, its stages over a tiny network."""

from __future__ import annotations

import _thread
import csv
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest

from dermlens import Predictor
from dermlens.audit.run import run_audit
from dermlens.bundle.bundle import load_bundle
from dermlens.bundle.card import Card
from dermlens.data.images import content_hash, load_image
from dermlens.data.manifest import read_dataset
from dermlens.data.records import Dataset
from dermlens.errors import DataError, LeakageError, RecipeError, StorageError, UsageError
from dermlens.evaluation import fit_model
from dermlens.evaluation.baselines import read_test_answers
from dermlens.evaluation.evaluate import evaluate
from dermlens.networks.efficientnet import backbone
from dermlens.training import caches, device, finish
from dermlens.training import features as features_module
from dermlens.training import run as run_module
from dermlens.training.checkpoint import Checkpoint, read_state, write_state
from dermlens.training.device import resolve
from dermlens.training.feed import Draw, Feed
from dermlens.training.network import load_keras
from dermlens.training.recipe import make_recipe
from dermlens.training.run import About, train
from runs import CLASSES, SMALL, console, paint, printed, with_tiny_network

ABOUT = About(name="x")
TINY = replace(SMALL, size_px=32, head_epochs=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A true training of the upper blocks: its `data`, and its run folder `out`."""
    base = tmp_path_factory.mktemp("run")
    data = paint(base / "data")
    (data / "nevus" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much more")
    train(read_dataset(data), base / "out", SMALL, About(name="colours"), console=console())
    return base


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("pictures") / "data", 12)


@pytest.fixture
def data(pictures: Path) -> Dataset:
    return read_dataset(pictures)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with_tiny_network(monkeypatch)
    yield
    keras.backend.clear_session()


def split_rows(out: Path) -> list[dict[str, str]]:
    with (out / "split.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def interrupt(*args: object, **settings: object) -> None:
    raise KeyboardInterrupt


# --- one true training a mode -------------------------------------------------------------------------------------


def test_the_model_learns_the_classes_and_predicts_from_the_bundle(run: Path) -> None:
    bundle = load_bundle(run / "out" / "bundle")
    assert bundle.codes == ("NV", "a rash", "healthy")
    assert bundle.card.metrics.balanced_accuracy["value"] > 0.9
    assert bundle.card.data.unreadable == ("broken.jpg",)
    answer = Predictor(run / "out").predict(run / "data" / "a rash" / "0.png")
    assert answer.diagnosis_code == "a rash"
    card = (run / "out" / "bundle" / "MODEL_CARD.md").read_text("utf-8")
    assert card.startswith("# colours 1.0.0") and "names the nearest of" in card


def test_a_training_image_is_its_own_nearest_training_example(run: Path) -> None:
    learned = next(row for row in split_rows(run / "out") if row["role"] == "train")
    near = Predictor(run / "out").predict(run / "data" / learned["image"], neighbours=2).neighbours
    assert (
        near is not None and near[0].image == Path(learned["image"]).name and near[0].diagnosis == learned["diagnosis"]
    )
    assert near[0].similarity > 0.99 and near[0].similarity >= near[1].similarity


def test_keras_model_and_bundle_give_the_same_logits(run: Path) -> None:
    model = keras.models.load_model(run / "out" / "model.keras", safe_mode=True)
    predictor = Predictor(run / "out")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    logits, embedding, feature_map = model(pixels[None].astype(np.float32), training=False)
    answer = predictor.predict(pixels)
    np.testing.assert_allclose(answer.logits, np.asarray(logits)[0], atol=1e-3)
    np.testing.assert_allclose(answer.embedding, np.asarray(embedding)[0], atol=1e-3)
    weights, bias = predictor.bundle.head()
    np.testing.assert_allclose(np.asarray(feature_map).mean((1, 2)) @ weights + bias, np.asarray(logits), atol=1e-4)


def test_the_bundle_has_the_decisions_of_the_probe(run: Path) -> None:
    bundle = load_bundle(run / "out" / "bundle")
    stored = read_test_answers(bundle)
    with (run / "out" / "test_predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bundle.codes[i] for i in stored.probe] == [row["probe_decision"] for row in rows]
    assert [bundle.codes[i] for i in stored.model] == [row["decision"] for row in rows]
    assert all(abs(sum(float(row[f"q_{code}"]) for code in bundle.codes) - 1) < 1e-4 for row in rows)
    assert bundle.card.baselines.words[0] in (bundle.folder / "MODEL_CARD.md").read_text("utf-8")


def test_every_image_has_a_role_and_seen_matches_it(run: Path) -> None:
    rows = split_rows(run / "out")
    assert len(rows) == 73
    assert {row["role"] for row in rows} == {"train", "select", "calibrate", "test", "unreadable"}
    learned = load_bundle(run / "out" / "bundle").seen()
    for row in rows:
        if row["role"] != "unreadable":
            digest = content_hash((run / "data" / row["image"]).read_bytes())
            assert (learned.reason(digest, None, None) is not None) == (row["role"] != "test")


def test_the_run_has_recipe_history_and_plot(run: Path) -> None:
    saved = make_recipe(json.loads((run / "out" / "recipe.json").read_text()))
    assert saved == resolve(SMALL, backbone("lite0")) and saved.fine_tune == "top" and saved.cut_block == 7
    with (run / "out" / "history.csv").open(newline="") as file:
        assert [float(row["epoch"]) for row in csv.DictReader(file)] == [0, 1, 2]
    assert (run / "out" / "history.png").read_bytes().startswith(b"\x89PNG")


def test_the_cache_holds_what_the_bundles_pixel_path_gives(run: Path) -> None:
    """The unaugmented view in the training cache is the same tensor that a prediction sees."""
    trained = [row["image"] for row in split_rows(run / "out") if row["role"] == "train"]
    features = np.load(run / "out" / "cache" / "train" / "features.npy", mmap_mode="r")
    model = keras.models.load_model(run / "out" / "model.keras")
    trunk = next(layer for layer in model.layers if isinstance(layer, keras.Model) and layer.name != "classifier")
    spec = load_bundle(run / "out" / "bundle").input_spec
    for index in (0, len(trained) - 1):
        pixels = load_image(run / "data" / trained[index], spec)
        expected = np.asarray(trunk(pixels[None].astype(np.float32), training=False))[0]
        np.testing.assert_allclose(features[index, 0], expected, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("mode", ["head", "full"])
def test_the_other_modes_give_a_bundle_too(mode: str, tmp_path: Path, data: Dataset, pictures: Path) -> None:
    recipe = replace(SMALL, fine_tune=mode, epochs=1, size_px=32)
    bundle = train(data, tmp_path, recipe, About(name=mode), console=console())
    card = load_bundle(bundle).card
    assert card.recipe["fine_tune"] == mode
    assert card.training.export_difference < 1e-3
    assert not (tmp_path / "cache" / "train").exists()
    assert Predictor(bundle).predict(pictures / "nevus" / "0.png").status != "error"


@pytest.mark.long
def test_a_hundred_classes_are_trained_and_answered(tmp_path: Path) -> None:
    """Names that are no diagnosis of ISIC, and metadata columns, one of them unknown."""
    names = [f"Klasse {i}: Ärzte/Nägel?" for i in range(100)]
    rng, folder = np.random.default_rng(0), tmp_path / "data"
    folder.mkdir()
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "diagnosis", "age", "sex", "site", "camera"])
        for number, name in enumerate(names):
            colour = rng.integers(40, 220, 3)
            for index in range(6):
                image = np.clip(colour + rng.normal(0, 15, (36, 36, 3)), 0, 255).astype(np.uint8)
                cv2.imwrite(str(folder / f"{number}_{index}.png"), image)
                writer.writerow([f"{number}_{index}.png", name, ["", "45", "n/a"][index % 3], "f", "hand", "phone"])
    recipe = replace(SMALL, fine_tune="head", size_px=32, head_epochs=2, batch_size=32)
    train(read_dataset(folder / "labels.csv"), tmp_path / "run", recipe, About(name="any"), console=console())
    assert set(load_bundle(tmp_path / "run" / "bundle").codes) == set(names)
    answer = Predictor(tmp_path / "run").predict(folder / "1_0.png")
    assert answer.status != "error" and answer.diagnosis_code in names
    assert sum(probability for _, probability in answer.top(len(names))) > 0.99999
    assert (tmp_path / "run" / "history.png").is_file()


# --- stages, over a tiny network -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny")
def test_features_of_fresh_views_need_no_cache(tmp_path: Path, data: Dataset) -> None:
    card = load_bundle(train(data, tmp_path, replace(TINY, views=0), ABOUT, console=console())).card
    assert card.training.epochs_done == 2 and not (tmp_path / "cache" / "train").exists()


@pytest.mark.usefixtures("tiny")
def test_a_case_mix_that_does_not_fit_is_refused_before_the_training(tmp_path: Path, data: Dataset) -> None:
    mix, told = tmp_path / "mix.csv", console()
    mix.write_text("NV,1\nhealthy,1\n")
    with pytest.raises(UsageError, match="no share for a rash"):
        train(data, tmp_path / "out", replace(TINY, case_mix=str(mix)), ABOUT, console=told)
    assert not (tmp_path / "out").exists() and "probe" not in printed(told)


@pytest.mark.usefixtures("tiny")
def test_another_case_mix_changes_the_bundle_and_trains_nothing_again(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    mix, out = tmp_path / "mix.csv", tmp_path / "out"
    mix.write_text("NV,1\nhealthy,2\na rash,7\n")
    before = load_bundle(train(data, out, TINY, ABOUT, console=console()))
    assert before.case_mix.name == "equal"
    monkeypatch.setattr(run_module, "fit", None)  # nothing is trained
    for _ in range(2):
        recipe = replace(TINY, case_mix=str(mix))
        after = load_bundle(train(data, out, recipe, ABOUT, resume=True, console=(told := console())))
        assert after.case_mix.name == "mix.csv" and after.case_mix.shares["a rash"] == pytest.approx(0.7)
    assert "This run is finished" in printed(told)
    np.testing.assert_array_equal(before.head()[0], after.head()[0])


@pytest.mark.usefixtures("tiny")
def test_the_bundle_is_written_once(tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Card] = []
    real = finish.write_bundle

    def counted(folder: Path, card: Card, **parts: object) -> None:
        assert not folder.exists()
        written.append(card)
        real(folder, card, **parts)  # type: ignore[arg-type]

    monkeypatch.setattr(finish, "write_bundle", counted)
    bundle = load_bundle(train(data, tmp_path, TINY, ABOUT, console=console()))
    assert len(written) == 1 and bundle.trust is not None and bundle.has_examples
    assert {**bundle.card.as_dict(), "files": {}} == {**written[0].as_dict(), "files": {}}


@pytest.mark.usefixtures("tiny")
def test_leakage_is_refused_and_marked_when_allowed(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    paint(folder / "Train", per_class=12)
    paint(folder / "Test", per_class=6, seed=1)
    (folder / "Test" / "nevus" / "copy.png").write_bytes((folder / "Train" / "nevus" / "0.png").read_bytes())
    dataset = read_dataset(folder)
    with pytest.raises(LeakageError, match="The split leaks"):
        train(dataset, tmp_path / "out", TINY, ABOUT, console=console())
    bundle = train(dataset, tmp_path / "out", replace(TINY, epochs=1), ABOUT, console=console(), allow_leakage=True)
    assert load_bundle(bundle).leaky
    card = (bundle / "MODEL_CARD.md").read_text("utf-8")
    assert "LEAKY" in card and "too good" in card
    assert "no lesion is in two roles" not in card and "had no part in training" not in card


@pytest.mark.usefixtures("tiny")
def test_leakage_that_only_the_dealing_of_roles_shows_is_refused(tmp_path: Path, data: Dataset) -> None:
    """One lesion has an image with a split and one without, tied through its patient to the other side."""
    records = list(data.records)
    records[0] = replace(records[0], lesion_id="L1", split="train")
    records[1] = replace(records[1], lesion_id="L1", patient_id="P1")
    records[2] = replace(records[2], patient_id="P1", split="test")
    with pytest.raises(LeakageError, match="more than one role"):
        train(replace(data, records=tuple(records)), tmp_path, TINY, ABOUT, console=console())


@pytest.mark.usefixtures("tiny")
def test_one_class_is_an_error_with_a_remedy(tmp_path: Path, data: Dataset) -> None:
    only = replace(data, records=tuple(r for r in data.records if r.diagnosis == "NV"))
    with pytest.raises(DataError, match="At least two"):
        train(only, tmp_path, TINY, ABOUT, console=console())


@pytest.mark.usefixtures("tiny")
def test_two_classes_and_one_without_select_images_of_its_own_kind(tmp_path: Path, pictures: Path) -> None:
    """A binary set of no ISIC diagnosis, with a metadata table of odd values."""
    rows = [
        f"{p.relative_to(pictures)},{'monkeypox' if p.parent.name == 'a rash' else 'other'},{age},?,"
        for p, age in zip(sorted(pictures.rglob("*.png")), ["85+", "", "nan", "-3"] * 9, strict=True)
    ]
    table = tmp_path / "labels.csv"
    table.write_text("image,diagnosis,age,sex,site\n" + "\n".join(rows) + "\n")
    dataset = read_dataset(table, images=pictures)
    bundle = train(dataset, tmp_path / "out", replace(TINY, fine_tune="head"), ABOUT, console=console())
    assert load_bundle(bundle).codes == ("monkeypox", "other")


@pytest.mark.usefixtures("tiny")
def test_a_batch_beyond_the_memory_is_refused_where_it_was_given_and_else_chosen(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was chosen is noted, so that the run resumes with it whatever is free then."""
    monkeypatch.setattr(device, "fixed_bytes", lambda model: 1000)
    monkeypatch.setattr(device, "bytes_per_image", lambda model: 100)
    monkeypatch.setattr(device, "free_bytes", lambda: 1000 + 100 * 21)
    with pytest.raises(RecipeError, match="batch_size 64") as caught:
        train(data, tmp_path, replace(TINY, batch_size=64), ABOUT, console=console())
    assert "batch_size=21" in str(caught.value.remedy) and not (tmp_path / "cache").exists()
    said, automatic = console(), replace(TINY, batch_size=0)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path, automatic, ABOUT, console=said)
    assert "batch_size is 16: the largest multiple of 8" in printed(said)
    chosen = make_recipe(json.loads((tmp_path / "recipe.json").read_text()))
    assert chosen.batch_size == read_state(tmp_path)["batch_size"] == 16
    for free, again in ((10**9, automatic), (1000 + 100 * 9, replace(TINY, batch_size=16))):  # the second as --resume
        monkeypatch.setattr(device, "free_bytes", lambda free=free: free)
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "finish", interrupt)
            with pytest.raises(KeyboardInterrupt):
                train(data, tmp_path, again, ABOUT, console=said, resume=True)
        assert read_state(tmp_path)["batch_size"] == 16
    assert printed(said).count("batch_size is") == 1 and "already finished" in printed(said)
    write_state(tmp_path, {name: value for name, value in read_state(tmp_path).items() if name != "history"})
    for again in (automatic, replace(TINY, batch_size=16)):
        with pytest.raises(RecipeError, match=r"batch_size 16 needs about .*Free some memory"):
            train(data, tmp_path, again, ABOUT, console=said, resume=True)


@pytest.mark.usefixtures("tiny")
def test_a_full_disk_is_reported_before_the_cache_is_written(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(caches.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="are free"):
        train(data, tmp_path, TINY, ABOUT, console=console())


@pytest.mark.usefixtures("tiny")
def test_plots_and_tables_that_cannot_be_written_do_not_cost_the_bundle(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*args: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("plot_history", "write_csv"):
        monkeypatch.setattr(finish, name, no_space)
    said = console()
    bundle = train(data, tmp_path, replace(TINY, epochs=0), ABOUT, console=said)
    assert load_bundle(bundle).name == "x"
    assert printed(said).count("Warning: [Errno 28]") == 3
    assert "history.png" not in printed(said)


@pytest.mark.usefixtures("tiny")
def test_images_that_vanish_during_the_training_are_an_error_and_nothing_is_lost(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(pictures, tmp_path / "data")
    out, real = tmp_path / "out", run_module.finish

    def without_one(*args: object, **settings: object) -> Path:
        gone = next(row["image"] for row in split_rows(out) if row["role"] == "calibrate")
        (folder / gone).rename(tmp_path / "gone.png")
        try:
            return real(*args, **settings)  # type: ignore[arg-type]
        finally:
            (tmp_path / "gone.png").rename(folder / gone)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "finish", without_one)
        patch.setattr(fit_model, "MIN_LESIONS", 2)
        with pytest.raises(DataError, match="cannot be read now"):
            train(read_dataset(folder), out, TINY, ABOUT, console=console())
    said = console()
    assert load_bundle(train(read_dataset(folder), out, TINY, ABOUT, console=said)).name == "x"
    assert "already finished" in printed(said)


# --- a run that stops resumes --------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("mode", "views"), [("head", 1), ("top", 1), ("top", 0), ("full", 1)])
def test_a_training_that_is_killed_at_a_checkpoint_ends_at_the_same_bits(
    mode: str, views: int, tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Again and again; `test_kill.py` does so with true processes."""
    recipe = replace(TINY, fine_tune=mode, views=views, batch_size=8, mixup=0.2)
    monkeypatch.setattr(run_module, "finish", lambda candidate, out, *args, **settings: out)  # no bundle
    straight = train(data, tmp_path / "straight", recipe, ABOUT, console=console())
    monkeypatch.setattr(Checkpoint, "due", lambda self: True)
    real, said = Checkpoint.save, console()
    for kill_at in (2, 3, None):
        count = iter(range(1, 1000))

        def save(self: Checkpoint, *state: object, kill_at: int | None = kill_at, count: Iterator[int] = count) -> bool:
            real(self, *state)  # type: ignore[arg-type]
            if next(count) == kill_at:
                raise Killed
            return True

        monkeypatch.setattr(Checkpoint, "save", save)
        try:
            train(data, tmp_path / "killed", recipe, ABOUT, console=said, resume=kill_at != 2)
        except Killed:
            continue
    assert printed(said).count("resumes after step") == 2
    for one, other in zip(*(load_keras(out).get_weights() for out in (straight, tmp_path / "killed")), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("tiny")
def test_ctrl_c_gives_the_best_model_so_far_and_resume_trains_on(
    tmp_path: Path, data: Dataset, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, recipe = console(), replace(TINY, epochs=4, batch_size=8)
    real = run_module._trunk_feed

    def interrupted(run: object) -> Feed:
        feed, calls = real(run), iter(range(1000))  # type: ignore[arg-type]

        def load(draw: Draw) -> np.ndarray:
            if next(calls) == 2:
                _thread.interrupt_main()  # as Ctrl-C does, but with no frame on a signal stack (pyproject.toml)
            return feed.load(draw)

        return replace(feed, load=load)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_trunk_feed", interrupted)
        card = load_bundle(train(data, tmp_path, recipe, ABOUT, console=said)).card
    assert card.training.interrupted is True and card.training.epochs_done < 4
    assert Predictor(tmp_path).predict(pictures / "nevus" / "0.png").status != "error"
    card = load_bundle(train(data, tmp_path, recipe, ABOUT, console=said, resume=True)).card
    assert card.training.interrupted is False and card.training.epochs_done == 4
    assert "Fine-tuning resumes after step" in printed(said)
    assert not (tmp_path / "checkpoint.npz").exists()
    train(data, tmp_path, recipe, ABOUT, console=said, resume=True)
    assert "This run is finished" in printed(said)
    unnamed = train(data, tmp_path, recipe, About("x", neighbours=False), resume=True, console=said)
    assert not load_bundle(unnamed).has_examples and read_state(tmp_path)["neighbours"] is False
    with pytest.raises(UsageError, match="other images, weights, settings"):
        train(data, tmp_path, replace(recipe, epochs=5), ABOUT, console=said, resume=True)


@pytest.mark.usefixtures("tiny")
def test_resume_without_a_run_says_so(tmp_path: Path, data: Dataset) -> None:
    with pytest.raises(UsageError, match="no run"):
        train(data, tmp_path, TINY, ABOUT, resume=True, console=console())


@pytest.mark.usefixtures("tiny")
def test_what_stops_after_fine_tuning_resumes_from_the_trained_network(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(finish, "_calibrate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path, TINY, ABOUT, console=console())
    assert not (tmp_path / "bundle").exists()
    tuned = (tmp_path / "model.keras").read_bytes()
    state = read_state(tmp_path)
    write_state(tmp_path, {**state, "minutes": 600.0})
    assert state["minutes"] > 0
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "fit", interrupt)
        bundle = train(data, tmp_path, TINY, ABOUT, console=console())
    card = load_bundle(bundle).card.training
    assert card.epochs_done == 2 and 600 <= card.minutes < 601, "what it had cost counts, too"
    assert (tmp_path / "model.keras").read_bytes() == tuned
    _another_run_replaces_it_only_when_wanted(data, tmp_path, monkeypatch)


def _another_run_replaces_it_only_when_wanted(data: Dataset, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run there stays; replaced and stopped before its bundle, the new one does not count as finished."""
    other = replace(TINY, fine_tune="head")
    before = (out / "recipe.json").read_bytes()
    with pytest.raises(UsageError, match="holds a run of other images"):
        train(data, out, other, About(name="y"), console=console())
    squashed = replace(data, records=tuple(replace(r, frame_aspect=1.5) for r in data.records))
    with pytest.raises(UsageError, match="of other images"):
        train(squashed, out, TINY, ABOUT, console=console(), resume=True)
    assert (out / "recipe.json").read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr(finish, "_calibrate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(data, out, other, About(name="y"), console=console(), overwrite=True)
    bundle = train(data, out, other, About(name="y"), console=console(), resume=True)
    assert load_bundle(bundle).name == "y"


@pytest.mark.usefixtures("tiny")
def test_an_older_caches_note_cannot_vouch_for_another_one(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 0 is complete, seed 1 is interrupted at once, seed 0 again must compute its features again."""
    recipe = replace(TINY, epochs=1)
    train(data, tmp_path, recipe, ABOUT, console=console())
    path = tmp_path / "cache" / "train" / "features.npy"
    first = np.load(path)
    with monkeypatch.context() as patch:
        patch.setattr(features_module, "run_batches", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path, replace(recipe, seed=1), ABOUT, console=console(), overwrite=True)
    train(data, tmp_path, recipe, ABOUT, console=console(), overwrite=True)
    np.testing.assert_array_equal(np.load(path), first)


@pytest.mark.usefixtures("tiny")
def test_a_half_filled_cache_is_continued_and_another_recipes_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real, lock = features_module.views, threading.Lock()

    def counted(record: object, *args: object, **options: object) -> np.ndarray:
        with lock:
            if options["count"]:
                made.append(record.image)  # type: ignore[attr-defined]
            stop = len(made) == 25
        if stop:
            raise KeyboardInterrupt
        return real(record, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(features_module, "views", counted)
    for module in (features_module, caches):
        monkeypatch.setattr(module, "CHUNK", 4)
    monkeypatch.setattr(caches, "FLUSH_EVERY", 4)
    data, out = read_dataset(paint(tmp_path / "data", 24)), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(data, out, TINY, ABOUT, console=console())
    before = len(made)
    train(data, out, replace(TINY, epochs=1), ABOUT, console=console())
    learned = [row["role"] for row in split_rows(out)].count("train")
    assert before < len(made) < before + learned, "the finished part was not made again"
    again = len(made)
    train(data, out, replace(TINY, epochs=1, views=2), ABOUT, console=console(), overwrite=True)
    assert len(made) - again == learned, "another number of views is another cache"


def test_classes_called_by_numbers_go_through_the_whole_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For audit, training, evaluation and prediction "0" and "1" are names; for scikit-learn they were numbers."""
    with_tiny_network(monkeypatch)
    folder = paint(tmp_path / "data")
    for number, name in enumerate(CLASSES):
        (folder / name).rename(folder / str(number))
    dataset = read_dataset(folder)
    found = run_audit(dataset, console=console())
    assert found.shortcuts is not None and set(found.classes) == {"0", "1", "2"}
    bundle = train(dataset, tmp_path / "run", TINY, ABOUT, console=console())
    predictor = Predictor(bundle)
    assert predictor.bundle.codes == ("0", "1", "2")
    answer = predictor.predict(folder / "1" / "0.png")
    assert answer.diagnosis_code in predictor.bundle.codes and answer.advice is not None
    evaluate(predictor, dataset, tmp_path / "scores", split=None, seed=0, console=console())
    assert set(json.loads((tmp_path / "scores" / "metrics.json").read_text())["per_class"]) == {"0", "1", "2"}
