"""A model's limits fitted to a site: on its own lesions, measured on others, nothing lost on the way."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

import tiny
from dermlens import Predictor
from dermlens.bundle import bundle as bundle_module
from dermlens.bundle.bundle import HASH_CHARS, MODELS_DIR, TRUST_FILE, Bundle, load_bundle
from dermlens.bundle.case_mix import equal_mix
from dermlens.bundle.limits import measure_sets
from dermlens.bundle.probabilities import probabilities
from dermlens.data.images import content_hash
from dermlens.data.manifest import read_dataset
from dermlens.data.records import Dataset
from dermlens.errors import DataError, StorageError, UsageError
from dermlens.evaluation.calibration import fit_calibration
from dermlens.evaluation.fit_trust import fit_novelty
from dermlens.evaluation.scores import score
from dermlens.evaluation.site import Wishes, fit_to_site
from dermlens.evaluation.site_data import hold_out

CODES = ("NV", "BKL", "MEL")  # for blue, green and red
COLOUR = dict(zip(CODES, tiny.CODES, strict=True))
CASES = {"NV": 90, "BKL": 60, "MEL": 60}


def paint(folder: Path, cases: dict[str, int], *, seed: int = 0, wrong: int = 6) -> Path:
    """Write noisy plain colours, a folder for each class; every `wrong`th is of the next class's colour."""
    rng, codes = np.random.default_rng(seed), list(COLOUR)
    for code, n in cases.items():
        (folder / code).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            shown = code if code not in codes or i % wrong else codes[(codes.index(code) + 1) % 3]
            colour = tiny.colour(COLOUR.get(shown, "RED"))
            pixels = np.clip(colour * rng.uniform(0.5, 1.0) + rng.normal(0, 25, (40, 40, 3)), 0, 255)
            cv2.imwrite(str(folder / code / f"{i}.png"), pixels.astype(np.uint8)[:, :, ::-1])
    return folder


def model(folder: Path, *codes: str, **changes: Any) -> Path:
    """Write a tiny model that knows its limits."""
    changes |= tiny.named(*codes) if codes else {}
    tiny.write(folder, calibrate=tiny.known(), test=tiny.known(seed=1), **changes)
    rng, classes = np.random.default_rng(0), np.arange(160) % 3
    embedding = (rng.normal(60, 20, (160, 3)) + 120 * np.eye(3)[classes]).astype(np.float32)
    novelty = fit_novelty(embedding[:120], classes[:120], embedding[120:], np.arange(40))
    assert novelty is not None
    facts = load_bundle(folder).card.trust.as_dict()
    facts |= {"novelty": novelty.as_dict(), "prediction_sets": {"method": "probability", "level": 0.9}}
    return tiny.add(folder, {TRUST_FILE: novelty.arrays()}, facts)


@pytest.fixture
def source(tmp_path: Path) -> Bundle:
    return load_bundle(model(tmp_path / "source", *CODES))


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("site") / "clinic", CASES)


def fitted(
    source: Bundle, data: Path | Dataset, out: Path, words: io.StringIO | None = None, **wishes: Any
) -> tuple[Bundle, int]:
    dataset = read_dataset(data) if isinstance(data, Path) else data
    console = Console(file=words or io.StringIO(), width=200)
    return fit_to_site(source, dataset, out, Wishes(**wishes), console=console)


def test_the_new_model_is_whole_and_says_where_its_limits_come_from(
    source: Bundle, clinic: Path, tmp_path: Path
) -> None:
    words = io.StringIO()
    new, unreadable = fitted(source, clinic, tmp_path / "new", words)
    site = new.card.site
    assert site is not None and unreadable == 0
    assert (new.name, new.version) == ("new", "0.0.1+site")
    assert (site.data, site.seed, site.model.sha256) == ("clinic", 0, source.sha256)
    assert site.lesions == {"NV": (54, 36), "BKL": (36, 24), "MEL": (36, 24)} and site.absent == ()
    assert (site.lesions_fitted, site.lesions_held_out) == (126, 84)
    assert len(new.lesions["calibrate"].classes) == 126 and len(new.lesions["test"].classes) == 84
    assert new.calibration.temperature != source.calibration.temperature
    assert new.trust.novelty is not None and source.trust.novelty is not None
    assert new.trust.novelty.threshold != source.trust.novelty.threshold
    np.testing.assert_array_equal(new.trust.novelty.components, source.trust.novelty.components)
    assert (new.folder / "baselines.npz").read_bytes() == (source.folder / "baselines.npz").read_bytes()
    assert new.card.trust.fitted_on is not None and new.card.trust.fitted_on["lesions"] == 126
    assert new.card.trust.measured is not None and new.card.trust.measured.lesions == 84
    card, shown = (new.folder / "MODEL_CARD.md").read_text(), words.getvalue()
    assert "## Fitted to a site" in card and source.sha256 in card and site.fingerprint[:16] in card
    for text in (card, shown):
        assert "126 lesions of clinic" in text and "referral: sensitivity" in text
    assert "fitted to clinic: 126 lesions, measured on 84 others" in str(bundle_facts(new))
    assert Predictor(new.folder).predict(tiny.colour("RED")).advice is not None


def bundle_facts(bundle: Bundle) -> dict[str, str]:
    from dermlens.bundle.card_text import fact_lines

    return fact_lines(bundle.facts())


def test_the_stored_figures_are_those_of_the_new_bundle(source: Bundle, clinic: Path, tmp_path: Path) -> None:
    new, _ = fitted(source, clinic, tmp_path / "new", sensitivity=0.9)
    assert new.card.site is not None
    held, mix = new.lesions["test"], new.case_mix
    for bundle, figures in ((source, new.card.site.before), (new, new.card.site.after)):
        limits = bundle.limits(mix)
        probability = probabilities(held.logits, bundle.calibration, mix.of(CODES))
        decision, groups = probability.argmax(axis=1), held.lesions.tolist()
        scored = score(held.classes, probability, decision, groups, CODES, mix=mix)
        for name in ("balanced_accuracy", "accuracy", "ece"):
            assert getattr(figures, name)["value"] == scored[name]["value"], name
            assert getattr(figures, name)["low"] == scored[name]["low"], name
        inside = limits.sets(probability)
        assert inside is not None and figures.mean_size is not None
        sets = measure_sets(inside, held, CODES, mix.of(CODES))
        assert figures.coverage == sets["coverage"]
        assert figures.mean_size["value"] == pytest.approx(sets["mean_size"])
        paths = held_out_paths(new, clinic)
        answers = list(Predictor(bundle.folder).predict_many(paths))
        for status, figure in figures.status.items():
            assert figure["value"] == pytest.approx(np.mean([answer.status == status for answer in answers]))
    point = new.limits(mix).referral
    assert point is not None and point.aimed_at == 0.9
    after = new.card.site.after
    assert (after.sensitivity, after.specificity) == (point.sensitivity, point.specificity)
    assert after.referral_threshold == point.threshold


def held_out_paths(new: Bundle, data: Path) -> list[Path]:
    hashes = set(json.loads((new.folder / "seen.json").read_text())["test"]["content_hashes"])
    return [path for path in sorted(data.rglob("*.png")) if content_hash(path.read_bytes())[:HASH_CHARS] in hashes]


def test_what_was_fitted_on_counts_as_seen_and_what_was_held_out_does_not(
    source: Bundle, clinic: Path, tmp_path: Path
) -> None:
    new, _ = fitted(source, clinic, tmp_path / "new", held_out=0.6)
    seen = new.seen()
    new_to_it = [path for path in clinic.rglob("*.png") if not seen.reason(content_hash(path.read_bytes()), None, None)]
    assert sorted(new_to_it) == sorted(held_out_paths(new, clinic)) and len(new_to_it) == 126
    again, _ = fitted(new, clinic, tmp_path / "again")
    assert again.card.site is not None
    assert again.card.site.images.seen == 84 and again.card.site.images.own_test == 126
    assert again.version == "0.0.1+site"


def table(path: Path, data: Path, ids: Callable[[int], tuple[str, str]]) -> Path:
    """Write a manifest of a painted folder with lesion and patient ids by the number of the image."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "diagnosis", "lesion_id", "patient_id"])
        for number, image in enumerate(sorted(data.rglob("*.png"))):
            rows.writerow([image, image.parent.name, *ids(number)])
    return path


def test_no_patient_is_on_both_sides(source: Bundle, clinic: Path, tmp_path: Path) -> None:
    manifest = table(tmp_path / "m.csv", clinic, lambda i: (f"L{i // 2}", f"P{i // 4}"))
    new, _ = fitted(source, manifest, tmp_path / "new", held_out=0.2)
    seen = json.loads((new.folder / "seen.json").read_text())
    sides = [{int(name[1:]) // 2 for name in seen[role]["lesion_ids"]} for role in ("calibrate", "test")]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert new.card.site is not None and new.card.site.lesions_fitted + new.card.site.lesions_held_out == 105
    assert new.card.site.manifest_sha256 is not None


def test_a_lesion_with_one_known_image_is_left_out_whole(clinic: Path, tmp_path: Path) -> None:
    first, second = sorted((clinic / "NV").glob("*.png"))[:2]
    known = {"content_hashes": [content_hash(first.read_bytes())[:HASH_CHARS]], "lesion_ids": [], "isic_ids": []}
    source = load_bundle(model(tmp_path / "source", *CODES, seen={"select": known}))
    names = [path.name for path in sorted(clinic.rglob("*.png"))]
    manifest = table(tmp_path / "m.csv", clinic, lambda i: (f"{i // 2}" if names[i] else "", ""))
    new, _ = fitted(source, manifest, tmp_path / "new", held_out=0.2)
    site = new.card.site
    assert site is not None and site.images.seen == 2
    hashes = {h for of in json.loads((new.folder / "seen.json").read_text()).values() for h in of["content_hashes"]}
    assert content_hash(second.read_bytes())[:HASH_CHARS] not in hashes


def test_images_that_cannot_be_used_are_counted_and_named(source: Bundle, tmp_path: Path) -> None:
    data = paint(tmp_path / "clinic", {**CASES, "rash": 3})
    (data / "MEL" / "broken.png").write_bytes(b"\x89PNG broken")
    words = io.StringIO()
    new, unreadable = fitted(source, data, tmp_path / "new", words)
    assert unreadable == 1 and "1 unreadable (MEL/broken.png)" in words.getvalue()
    assert "3 of classes that it does not have (3 rash)" in words.getvalue()
    assert new.card.site is not None and new.card.site.images.class_not_in_model == {"rash": 3}


def test_a_missing_class_bends_no_temperature(source: Bundle, clinic: Path, tmp_path: Path) -> None:
    data, words = paint(tmp_path / "two", {"NV": 70, "MEL": 70}, wrong=5), io.StringIO()
    new, _ = fitted(source, data, tmp_path / "new", words)
    site, known = new.card.site, new.lesions["calibrate"]
    assert site is not None and site.absent == ("BKL",) and set(site.lesions) == {"NV", "MEL"}
    assert "There are no lesions of BKL" in words.getvalue() and "no lesions of BKL" in str(new.card.calibration_fit)
    columns = [0, 2]
    alone = fit_calibration(
        known.logits[:, columns], known.classes // 2, known.lesions, shares=(0.5, 0.5), training_prior=(0.5, 0.5)
    )
    assert new.calibration.temperature == pytest.approx(alone.temperature)
    assert new.calibration.bias == (0.0, 0.0, 0.0)
    assert new.limits(new.case_mix).referral is not None


def test_a_model_without_malignant_classes_gets_no_operating_point(tmp_path: Path) -> None:
    source = load_bundle(model(tmp_path / "source"))
    data = paint(tmp_path / "data", {"NV": 50, "BKL": 50, "MEL": 50})
    for code, colour in COLOUR.items():
        (data / code).rename(data / colour)
    words = io.StringIO()
    new, _ = fitted(source, data, tmp_path / "new", words)
    assert new.card.site is not None and new.card.site.after.sensitivity is None
    assert new.limits(new.case_mix).referral is None and new.card.trust.prediction_sets is not None
    assert new.calibration.temperature != source.calibration.temperature
    assert "No operating point: no class of the model is malignant" in words.getvalue()


def test_another_case_mix_becomes_the_models_own(source: Bundle, clinic: Path, tmp_path: Path) -> None:
    mix = tmp_path / "ours.json"
    mix.write_text('{"NV": 8, "BKL": 1, "MEL": 1}')
    new, _ = fitted(source, clinic, tmp_path / "new", case_mix=str(mix))
    assert new.case_mix.name == "ours.json" and new.case_mix.shares["NV"] == pytest.approx(0.8)
    assert new.card.site is not None and source.case_mix == equal_mix(CODES)
    referral = source.limits(new.case_mix).referral
    assert referral is not None and new.card.site.before.referral_threshold == referral.threshold
    assert "if the diagnoses were as common as in ours.json" in (new.folder / "MODEL_CARD.md").read_text()


def test_the_same_data_in_any_order_give_the_same_split() -> None:
    rng = np.random.default_rng(0)
    groups, classes = np.arange(90) // 2, np.arange(90) // 2 % 3
    hashes = [content_hash(bytes([i])) for i in range(90)]
    held, order = hold_out(groups, classes, hashes, 0.4, seed=3), rng.permutation(90)
    turned = hold_out(groups[order], classes[order], [hashes[i] for i in order], 0.4, seed=3)
    np.testing.assert_array_equal(held[order], turned)
    assert [int(held[classes == c].sum()) for c in range(3)] == [12, 12, 12]
    assert not np.array_equal(held, hold_out(groups, classes, hashes, 0.4, seed=4))


@pytest.mark.parametrize(
    ("cases", "code", "said"),
    [
        ({"NV": 60, "BKL": 60}, "no_malignant", "classes (MEL); they have NV 60, BKL 60"),
        (
            {"NV": 60, "MEL": 30},
            "too_few_lesions",
            "18 malignant or premalignant lesions (MEL 18) and 36 other lesions",
        ),
        ({"NV": 12, "BKL": 12, "MEL": 60}, "too_few_lesions", "and 14 other lesions (NV 7, BKL 7)"),
        ({"rash": 30}, "nothing_to_fit", "30 are of classes that it does not have (rash)"),
    ],
)
def test_too_few_lesions_are_an_error_with_codes_and_counts(
    cases: dict[str, int], code: str, said: str, source: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as error:
        fitted(source, paint(tmp_path / "data", cases), tmp_path / "new")
    assert error.value.code == code and said in error.value.message
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("wish", [{"sensitivity": 0.4}, {"sensitivity": 1.0}, {"held_out": 0.0}, {"held_out": 0.95}])
def test_a_share_out_of_its_range_is_refused(
    wish: dict[str, float], source: Bundle, clinic: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="Allowed are"):
        fitted(source, clinic, tmp_path / "new", **wish)


def test_a_place_that_is_taken_is_refused_before_any_work(source: Bundle, clinic: Path, tmp_path: Path) -> None:
    nothing = Dataset(tmp_path, "folders", ())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "bundle.json").mkdir()
    other = tiny.write(tmp_path / "other")
    for out, code in (
        (source.folder, "out_is_model"),
        (source.folder / "new", "out_is_model"),
        (tmp_path, "out_is_model"),
        (tmp_path / "notes", "out_exists"),
    ):
        with pytest.raises(UsageError) as error:
            fitted(source, nothing, out, overwrite=True)
        assert error.value.code == code
    with pytest.raises(UsageError, match="already holds a model"):
        fitted(source, nothing, other)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        fitted(source, nothing, tmp_path / "file" / "new")
    new, _ = fitted(source, clinic, other, overwrite=True)
    assert new.card.site is not None and new.name == "other"


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
def test_a_stop_loses_nothing(
    failure: type[BaseException], source: Bundle, clinic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny.write(tmp_path / "other")
    before = {path: path.read_bytes() for folder in (other, source.folder) for path in folder.iterdir()}

    def stop(*_: object) -> None:
        raise failure

    monkeypatch.setattr(bundle_module, "_complete", stop)
    with pytest.raises(StorageError if failure is OSError else failure):
        fitted(source, clinic, other, overwrite=True)
    assert {path: path.read_bytes() for folder in (other, source.folder) for path in folder.iterdir()} == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.data
@pytest.mark.long
def test_the_embedded_model_rejects_less_and_misses_less_on_another_clinics_pictures(
    data_dir: Path, tmp_path: Path
) -> None:
    with (data_dir / "msk" / "msk.csv").open(newline="") as file:
        rows = [[row["image"], row["isic2019"], row["lesion_id"], row["isic_id"]] for row in csv.DictReader(file)]
    with (tmp_path / "msk.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "diagnosis", "lesion_id", "isic_id"], *rows])
    dataset = read_dataset(tmp_path / "msk.csv", images=data_dir / "msk")
    new, unreadable = fitted(load_bundle(MODELS_DIR / "default"), dataset, tmp_path / "new")
    site = new.card.site
    assert site is not None and unreadable == 0 and site.images.seen > 300
    assert site.absent == ("AK", "BCC", "DF", "SCC", "VASC") and not any(new.calibration.bias)
    before, after = site.before, site.after
    assert after.status["rejected"]["value"] < 0.1 < before.status["rejected"]["value"]
    assert before.coverage is not None and after.coverage is not None
    assert before.coverage["value"] < after.coverage["value"] and after.coverage["high"] >= 0.9
    assert after.ece["value"] < before.ece["value"]
    assert after.sensitivity is not None and after.sensitivity["high"] >= 0.95
