"""From a folder of images to a bundle that answers: the whole chain, small, with the real network."""

from __future__ import annotations

import _thread
import csv
import io
import json
import threading
from dataclasses import replace
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
from rich.console import Console

from dermlens import Predictor
from dermlens.bundle.bundle import load_bundle
from dermlens.data.images import content_hash
from dermlens.data.manifest import read_dataset
from dermlens.data.records import Dataset
from dermlens.errors import DataError, LeakageError, RecipeError, StorageError, UsageError
from dermlens.evaluation.baselines import read_held_out
from dermlens.networks.efficientnet import backbone
from dermlens.training import batch_memory, finish
from dermlens.training import features as features_module
from dermlens.training import features as trunk_module
from dermlens.training import run as run_module
from dermlens.training.device import resolve
from dermlens.training.feed import Feed
from dermlens.training.recipe import Recipe, make_recipe, read_state, write_state
from dermlens.training.run import About, train
from dermlens.training.views import Draw

SMALL = Recipe(
    fine_tune="top",
    size_px=64,
    views=1,
    epochs=2,
    head_epochs=5,
    batch_size=16,
    train=0.4,
    select=0.2,
    calibrate=0.2,
    test=0.2,
)
CLASSES = {"nevus": (150, 90, 60), "a rash": (220, 120, 120), "healthy": (230, 200, 180)}


def paint(folder: Path, per_class: int = 24, seed: int = 0) -> Path:
    """Write images of three classes that differ in colour; each file is unique."""
    rng = np.random.default_rng(seed)
    for name, colour in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            noise = rng.normal(0, 12, (72, 96, 3))
            image = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"{index}.png"), image[:, :, ::-1])
    return folder


@pytest.fixture(scope="module")
def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, quiet: Console) -> Path:
    base = tmp_path_factory.mktemp("run")
    data = paint(base / "data")
    (data / "nevus" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much more")
    train(read_dataset(data), base / "out", SMALL, About(name="colours"), console=quiet)
    return base


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
    with (run / "out" / "split.csv").open(newline="") as file:
        learned = next(row for row in csv.DictReader(file) if row["role"] == "train")
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
    held = read_held_out(bundle)
    with (run / "out" / "test_predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bundle.codes[i] for i in held.probe] == [row["probe_decision"] for row in rows]
    assert [bundle.codes[i] for i in held.model] == [row["decision"] for row in rows]
    assert all(abs(sum(float(row[f"q_{code}"]) for code in bundle.codes) - 1) < 1e-4 for row in rows)
    assert bundle.card.baselines.words[0] in (bundle.folder / "MODEL_CARD.md").read_text("utf-8")


def test_every_image_has_a_role_and_seen_matches_it(run: Path) -> None:
    with (run / "out" / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 73
    assert {row["role"] for row in rows} == {"train", "select", "calibrate", "test", "unreadable"}
    bundle = load_bundle(run / "out" / "bundle")
    learned = bundle.seen()
    for row in rows:
        if row["role"] != "unreadable":
            digest = content_hash((run / "data" / row["image"]).read_bytes())
            assert (learned.reason(digest, None, None) is not None) == (row["role"] != "test")


def test_the_run_keeps_recipe_history_and_plot(run: Path) -> None:
    kept = make_recipe(json.loads((run / "out" / "recipe.json").read_text()))
    assert kept == resolve(SMALL, backbone("lite0")) and kept.fine_tune == "top" and kept.cut_block == 7
    with (run / "out" / "history.csv").open(newline="") as file:
        assert [float(row["epoch"]) for row in csv.DictReader(file)] == [0, 1, 2]
    assert (run / "out" / "history.png").read_bytes().startswith(b"\x89PNG")


def test_the_cache_holds_what_the_bundles_pixel_path_gives(run: Path) -> None:
    """The unaugmented view in the training cache is the same tensor that a prediction sees."""
    with (run / "out" / "split.csv").open(newline="") as file:
        trained = [row["image"] for row in csv.DictReader(file) if row["role"] == "train"]
    features = np.load(run / "out" / "cache" / "train" / "features.npy", mmap_mode="r")
    model = keras.models.load_model(run / "out" / "model.keras")
    trunk = next(layer for layer in model.layers if isinstance(layer, keras.Model) and layer.name != "classifier")
    from dermlens.data.images import load_image

    spec = load_bundle(run / "out" / "bundle").input_spec
    for index in (0, len(trained) - 1):
        pixels = load_image(run / "data" / trained[index], spec)
        expected = np.asarray(trunk(pixels[None].astype(np.float32), training=False))[0]
        np.testing.assert_allclose(features[index, 0], expected, atol=0.02, rtol=0.01)


def test_leakage_is_refused_and_marked_when_allowed(tmp_path: Path, quiet: Console) -> None:
    data = tmp_path / "data"
    paint(data / "Train", per_class=12)
    paint(data / "Test", per_class=6, seed=1)
    (data / "Test" / "nevus" / "copy.png").write_bytes((data / "Train" / "nevus" / "0.png").read_bytes())
    dataset = read_dataset(data)
    with pytest.raises(LeakageError, match="The split leaks"):
        train(dataset, tmp_path / "out", SMALL, About(name="x"), console=quiet)
    bundle = train(
        dataset,
        tmp_path / "out",
        replace(SMALL, epochs=1),
        About(name="x"),
        console=quiet,
        allow_leakage=True,
    )
    assert load_bundle(bundle).leaky
    card = (bundle / "MODEL_CARD.md").read_text("utf-8")
    assert "LEAKY" in card and "too good" in card
    assert "no lesion is in two roles" not in card and "had no part in training" not in card


def test_leakage_that_only_the_dealing_of_roles_shows_is_refused(tmp_path: Path, quiet: Console) -> None:
    """One lesion has an image with a split and one without, tied through its patient to the other side."""
    records = list(read_dataset(paint(tmp_path / "data", per_class=12)).records)
    records[0] = replace(records[0], lesion_id="L1", split="train")
    records[1] = replace(records[1], lesion_id="L1", patient_id="P1")
    records[2] = replace(records[2], patient_id="P1", split="test")
    dataset = replace(read_dataset(tmp_path / "data"), records=tuple(records))
    with pytest.raises(LeakageError, match="more than one role"):
        train(dataset, tmp_path / "out", SMALL, About(name="x"), console=quiet)


def test_one_class_is_an_error_with_a_remedy(tmp_path: Path, quiet: Console) -> None:
    data = paint(tmp_path / "data", per_class=6)
    dataset = read_dataset(data)
    only = replace(dataset, records=tuple(r for r in dataset.records if r.diagnosis == "NV"))
    with pytest.raises(DataError, match="At least two"):
        train(only, tmp_path / "out", SMALL, About(name="x"), console=quiet)


@pytest.mark.long
def test_ctrl_c_keeps_the_best_model_so_far_and_resume_trains_on(tmp_path: Path) -> None:
    data = paint(tmp_path / "data", per_class=12)
    told = io.StringIO()
    real = run_module._over_trunk

    def cached(run: object) -> Feed:
        feed, calls = real(run), iter(range(1000))  # type: ignore[arg-type]

        def load(draw: Draw) -> np.ndarray:
            if next(calls) == 2:
                _thread.interrupt_main()  # as Ctrl-C does, but with no frame on a signal stack (pyproject.toml)
            return feed.load(draw)

        return replace(feed, load=load)

    def trained(**options: bool) -> Path:
        console = Console(file=told, width=200)
        return train(read_dataset(data), tmp_path / "out", recipe, About(name="x"), console=console, **options)

    recipe = replace(SMALL, epochs=4, batch_size=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "_over_trunk", cached)
        card = load_bundle(trained()).card
    assert card.training.interrupted is True
    assert card.training.epochs_done < 4
    assert Predictor(tmp_path / "out").predict(data / "nevus" / "0.png").status != "error"
    card = load_bundle(trained(resume=True)).card
    assert card.training.interrupted is False and card.training.epochs_done == 4
    assert "Fine-tuning goes on after step" in told.getvalue()
    assert not (tmp_path / "out" / "checkpoint.npz").exists()
    trained(resume=True)
    assert "This run is finished" in told.getvalue()
    unnamed = train(read_dataset(data), tmp_path / "out", recipe, About("x", neighbours=False), resume=True)
    assert not load_bundle(unnamed).has_examples and read_state(tmp_path / "out")["neighbours"] is False
    recipe = replace(recipe, epochs=5)
    with pytest.raises(UsageError, match="other images, weights, settings"):
        trained(resume=True)


def test_resume_without_a_run_says_so(tmp_path: Path, quiet: Console) -> None:
    data = read_dataset(paint(tmp_path / "data", 8))
    with pytest.raises(UsageError, match="no run"):
        train(data, tmp_path / "out", SMALL, About(name="x"), resume=True, console=quiet)


@pytest.mark.parametrize(("mode", "views"), [("head", 1), ("full", 1), ("top", 0)], ids=["head", "full", "fresh views"])
def test_the_other_modes_give_a_bundle_too(mode: str, views: int, tmp_path: Path, quiet: Console) -> None:
    data = paint(tmp_path / "data", 12)
    recipe = replace(SMALL, fine_tune=mode, views=views, epochs=1)
    bundle = train(read_dataset(data), tmp_path / "out", recipe, About(name=mode), console=quiet)
    card = load_bundle(bundle).card
    assert card.recipe["fine_tune"] == mode
    assert card.training.export_difference < 1e-3
    assert not (tmp_path / "out" / "cache" / "train").exists()
    assert Predictor(bundle).predict(data / "nevus" / "0.png").status != "error"


def test_two_classes_and_one_without_select_images_of_its_own_kind(tmp_path: Path, quiet: Console) -> None:
    """A binary set of no ISIC diagnosis, with a metadata table of odd values."""
    folder = paint(tmp_path / "data", 12)
    rows = [
        f"{p.relative_to(folder)},{'monkeypox' if p.parent.name == 'a rash' else 'other'},{age},?,"
        for p, age in zip(sorted(folder.rglob("*.png")), ["85+", "", "nan", "-3"] * 9, strict=True)
    ]
    table = tmp_path / "labels.csv"
    table.write_text("image,diagnosis,age,sex,site\n" + "\n".join(rows) + "\n")
    bundle = train(
        read_dataset(table, images=folder),
        tmp_path / "out",
        replace(SMALL, fine_tune="head"),
        About(name="pox"),
        console=quiet,
    )
    assert load_bundle(bundle).codes == ("monkeypox", "other")


def test_a_batch_beyond_the_memory_is_refused_before_anything_is_computed(
    tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_memory, "free_bytes", lambda: 10**8)
    with pytest.raises(RecipeError, match="are free"):
        train(read_dataset(paint(tmp_path / "data", 8)), tmp_path / "out", SMALL, About(name="x"), console=quiet)
    assert not (tmp_path / "out" / "cache").exists()


def test_a_full_disk_is_reported_before_the_cache_is_written(
    tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(trunk_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="are free"):
        train(read_dataset(paint(tmp_path / "data", 8)), tmp_path / "out", SMALL, About(name="x"), console=quiet)


@pytest.mark.long
def test_an_older_caches_state_cannot_vouch_for_another_one(
    tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 0 is complete, seed 1 is interrupted at once, seed 0 again must compute its features anew."""
    data = read_dataset(paint(tmp_path / "data", 24))
    about, recipe = About(name="x"), replace(SMALL, epochs=1)
    train(data, tmp_path / "out", recipe, about, console=quiet)
    path = tmp_path / "out" / "cache" / "train" / "features.npy"
    first = np.load(path)

    def interrupted(*args: object, **options: object) -> np.ndarray:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(features_module, "run_batches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "out", replace(recipe, seed=1), about, console=quiet, overwrite=True)
    train(data, tmp_path / "out", recipe, about, console=quiet, overwrite=True)
    np.testing.assert_array_equal(np.load(path), first)


def test_what_stops_after_fine_tuning_goes_on_from_the_tuned_model(
    tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_dataset(paint(tmp_path / "data", 12))

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finish, "_calibrate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "out", SMALL, About(name="x"), console=quiet)
    assert not (tmp_path / "out" / "bundle").exists()
    tuned = (tmp_path / "out" / "model.keras").read_bytes()
    state = read_state(tmp_path / "out")
    write_state(tmp_path / "out", {**state, "minutes": 600.0})
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "fit", interrupted)
        bundle = train(data, tmp_path / "out", SMALL, About(name="x"), console=quiet)
    card = load_bundle(bundle).card.training
    assert card.epochs_done == 2 and card.minutes > 600 > state["minutes"] > 0, "what it had cost counts, too"
    assert (tmp_path / "out" / "model.keras").read_bytes() == tuned
    _another_run_stands_there_only_when_wanted(data, tmp_path / "out", quiet, interrupted, monkeypatch)


def _another_run_stands_there_only_when_wanted(
    data: Dataset, out: Path, quiet: Console, interrupted: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run there is kept; replaced and stopped before its bundle, the new one is not taken for finished."""
    other = replace(SMALL, fine_tune="head", head_epochs=3)
    before = (out / "recipe.json").read_bytes()
    with pytest.raises(UsageError, match="holds a run of other images"):
        train(data, out, other, About(name="y"), console=quiet)
    squashed = replace(data, records=tuple(replace(r, frame_aspect=1.5) for r in data.records))
    with pytest.raises(UsageError, match="of other images"):
        train(squashed, out, SMALL, About(name="x"), console=quiet, resume=True)
    assert (out / "recipe.json").read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr(finish, "_calibrate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(data, out, other, About(name="y"), console=quiet, overwrite=True)
    bundle = train(data, out, other, About(name="y"), console=quiet, resume=True)
    assert load_bundle(bundle).name == "y"


def test_plots_and_tables_that_cannot_be_written_do_not_cost_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = io.StringIO()

    def no_space(*args: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("plot_history", "write_history", "write_predictions"):
        monkeypatch.setattr(finish, name, no_space)
    data = read_dataset(paint(tmp_path / "data", 12))
    bundle = train(
        data, tmp_path / "out", replace(SMALL, epochs=0), About(name="x"), console=Console(file=told, width=200)
    )
    assert load_bundle(bundle).name == "x"
    assert told.getvalue().count("Warning: [Errno 28]") == 3
    assert "history.png" not in told.getvalue()


@pytest.mark.long
def test_a_half_filled_cache_is_continued_and_another_recipes_is_not_used(
    tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
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
    for module in (features_module, trunk_module):
        monkeypatch.setattr(module, "CHUNK", 4)
    monkeypatch.setattr(trunk_module, "FLUSH_EVERY", 4)
    data = read_dataset(paint(tmp_path / "data", 24))
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "out", SMALL, About(name="x"), console=quiet)
    before = len(made)
    train(data, tmp_path / "out", replace(SMALL, epochs=1), About(name="x"), console=quiet)
    with (tmp_path / "out" / "split.csv").open(newline="") as file:
        roles = [row["role"] for row in csv.DictReader(file)]
    assert before < len(made) < before + roles.count("train"), "the finished part was not made again"
    again = len(made)
    train(data, tmp_path / "out", replace(SMALL, epochs=1, views=2), About(name="x"), console=quiet, overwrite=True)
    assert len(made) - again == roles.count("train"), "another number of views is another cache"
