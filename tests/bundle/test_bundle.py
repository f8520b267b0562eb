"""The artefact: what is written is what is read, and damage is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

import tiny
from dermlens.bundle import bundle as bundles
from dermlens.bundle.bundle import MODELS_DIR, find_bundle, load_bundle
from dermlens.bundle.card import RECIPE_SETTINGS, Card, make_card, write_card
from dermlens.bundle.card_text import model_card
from dermlens.errors import BundleError, StorageError
from dermlens.training.recipe import Recipe


def test_a_written_bundle_loads_with_all_it_holds(tmp_path: Path) -> None:
    seen = {
        "train": {"content_hashes": ["a" * 32], "lesion_ids": ["L1"], "isic_ids": []},
        "test": {"lesion_ids": ["L9"]},
    }
    bundle = load_bundle(tiny.write(tmp_path / "b", seen=seen))
    assert bundle.codes == tiny.CODES
    assert bundle.input_spec.size_px == tiny.SIZE_PX
    assert bundle.calibration.temperature == 2.0
    weights, bias = bundle.head()
    np.testing.assert_array_equal(weights, tiny.WEIGHTS)
    np.testing.assert_array_equal(bias, tiny.BIAS)
    known = bundle.seen()
    assert known.reason("a" * 64, None, None) == "same image"
    assert known.reason("b" * 64, "L1", None) == "same lesion"
    assert known.reason("b" * 64, "L9", "ISIC_0000001") is None, "test lesions were not learned from"


@pytest.mark.parametrize("name", ["graph.bin", "graph.xml", "head.npz", "seen.json", "baselines.npz", "MODEL_CARD.md"])
def test_one_changed_byte_in_any_file_is_noticed(tmp_path: Path, name: str) -> None:
    path = tiny.write(tmp_path / "b") / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=name) as caught:
        load_bundle(tmp_path / "b")
    assert caught.value.code == "bundle_damaged"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda folder: (folder / "graph.bin").unlink(), "bundle_damaged"),
        (lambda folder: (folder / "baselines.npz").unlink(), "bundle_damaged"),
        (lambda folder: (folder / "bundle.json").unlink(), "bundle_missing"),
        (lambda folder: (folder / "bundle.json").write_text("{"), "bundle_damaged"),
        (lambda folder: (folder / "bundle.json").write_text("[]"), "bundle_version"),
        (lambda folder: _edit_bytes(folder), "bundle_damaged"),
        (lambda folder: _insert(folder, b"[" * 5000 + b"]" * 5000), "bundle_damaged"),
        (lambda folder: _edit(folder, schema="dermlens/bundle/1"), "bundle_version"),
        (lambda folder: _edit(folder, schema="dermlens/bundle/9"), "bundle_version"),
        (lambda folder: _edit(folder, files=None), "bundle_damaged"),
        (lambda folder: _edit(folder, classes=[{}]), "bundle_damaged"),
        (lambda folder: _edit(folder, calibration={}), "bundle_damaged"),
        (lambda folder: _edit(folder, input={"size_px": "big"}), "bundle_damaged"),
        (lambda folder: _edit(folder, trust=None), "bundle_damaged"),
        (lambda folder: _edit(folder, data={}), "bundle_damaged"),
        (lambda folder: _edit(folder, calibration_fit=None), "bundle_damaged"),
        (lambda folder: _edit(folder, files={"graph.xml": "0" * 64}), "bundle_damaged"),
    ],
)
def test_every_damage_is_a_bundle_error_with_a_remedy(tmp_path: Path, change: object, code: str) -> None:
    folder = tiny.write(tmp_path / "b")
    change(folder)  # type: ignore[operator]
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    assert caught.value.remedy
    assert caught.value.code == code


def _edit_bytes(folder: Path) -> None:
    path = folder / "bundle.json"
    path.write_bytes(path.read_bytes().replace(b"Reads plain", b"Reads \xff\xfe", 1))


def _insert(folder: Path, value: bytes) -> None:
    path = folder / "bundle.json"
    path.write_bytes(path.read_bytes().replace(b'"scope":', b'"x": ' + value + b', "scope":', 1))


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", [f.name for f in msgspec.structs.fields(Card) if f.required and f.name != "schema"])
def test_a_missing_field_is_named(tmp_path: Path, name: str) -> None:
    path = tiny.write(tmp_path / "b") / "bundle.json"
    card = json.loads(path.read_text())
    del card[name]
    path.write_text(json.dumps(card))
    with pytest.raises(BundleError, match=f"it lacks {name}") as caught:
        load_bundle(tmp_path / "b")
    assert caught.value.code == "bundle_damaged"


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("licence",), "MIT", "licence: Expected `object`"),
        (("licence", "weights"), ["MIT"], r"licence\.weights: Expected `str`, got `array`"),
        (("metrics", "accuracy"), "0.9", "metrics.accuracy: Expected `object`"),
        (("metrics", "accuracy", "low"), "0.8", r"metrics\.accuracy\.low: Expected `float \| null`"),
        (("metrics", "per_class"), {"MEL": 1}, "metrics.per_class"),
        (("metrics", "n"), "many", "metrics.n: Expected `int`"),
        (("data", "sources"), "ISIC", "data.sources: Expected `array`"),
        (("data", "imges"), 3, r"unknown field data\.imges\. Did you mean 'images'\?"),
        (("calibraton",), {}, r"unknown field calibraton\. Did you mean 'calibration'\?"),
        (("classes",), [{"code": "RED", "name": "red", "prior": 1}], r"field classes\[0\]\.prior\. Copy"),
        (("trust", "thresholds"), 1, r"unknown field trust\.thresholds\. Copy"),
        (("precision",), "f32", r"unknown field precision\. Copy"),
        (("data", "image"), 3, r"field data\.image\. Did you mean 'images'\? Copy"),
        (("recipe", "epoch"), 3, r"unknown setting epoch\. Did you mean 'epochs'\? Copy"),
        (("baselines", "methods"), {"majority": 1}, r"baselines\.methods\[\.\.\.\]: Expected `object`"),
        (("trust", "prediction_sets"), {"level": 0.9}, r"it lacks trust\.prediction_sets\.method"),
        (("case_mix", "shares"), {"RED": 1.0}, "a case mix is of other classes than the model"),
        (("input", "size_px"), 3, "must be|size_px"),
        (("classes",), [], "0 classes, but a calibration of 3"),
        (("recipe",), {}, "`recipe` lacks backbone"),
        (("scope",), ["all"], "scope: Expected `str`"),
    ],
)
def test_a_wrong_or_unknown_field_is_named_with_its_place(
    tmp_path: Path, place: tuple[str, ...], value: object, said: str
) -> None:
    path = tiny.write(tmp_path / "b") / "bundle.json"
    card = json.loads(path.read_text())
    *parents, last = place
    where = card
    for name in parents:
        where = where[name]
    where[last] = value
    path.write_text(json.dumps(card))
    with pytest.raises(BundleError, match=said) as caught:
        load_bundle(tmp_path / "b")
    assert caught.value.code == "bundle_damaged" and str(path) in caught.value.message


def test_the_settings_of_a_recipe_are_those_of_trainings() -> None:
    assert set(RECIPE_SETTINGS) == set(Recipe().as_dict())


def test_facts_that_make_no_model_card_are_a_bundle_error() -> None:
    facts = load_bundle(MODELS_DIR / "default").card.as_dict()
    facts["trust"]["measured"]["prediction_sets"]["coverage"] = None
    with pytest.raises(BundleError, match="make no model card") as caught:
        model_card(make_card(facts), ())
    assert caught.value.code == "bundle_damaged"


def test_the_card_of_the_embedded_model_comes_back_as_it_is() -> None:
    raw = (MODELS_DIR / "default" / "bundle.json").read_bytes()
    assert write_card(load_bundle(MODELS_DIR / "default").card) == raw


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("basic_ios::clear: No space")])
def test_a_failed_write_leaves_the_old_bundle_whole(tmp_path: Path, error: Exception) -> None:
    folder = tiny.write(tmp_path / "b", version="1")

    def no_space(path: Path) -> None:
        path.write_bytes(b"half")
        raise error  # OpenVINO raises RuntimeError

    with pytest.raises(StorageError, match="No space"):
        bundles.write_bundle(
            folder,
            make_card(tiny.card(version="2")),
            head=(tiny.WEIGHTS, tiny.BIAS),
            seen={},
            write_graph=no_space,
            arrays={},
        )
    assert load_bundle(folder).version == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["b"], "no half-written folder stays behind"


def test_a_rewritten_bundle_keeps_what_it_is_not_given(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "b", seen={"train": {"content_hashes": ["a"], "lesion_ids": [], "isic_ids": []}})
    tiny.add(folder, {bundles.TRUST_FILE: {"mean": np.zeros(3)}})
    tiny.add(folder, {bundles.NEIGHBOURS_FILE: {"mean": np.zeros(3)}, bundles.TRUST_FILE: {}})
    bundle = load_bundle(folder)
    assert {"neighbours.npz", "baselines.npz"} <= set(bundle.card.files) and "trust.npz" not in bundle.card.files
    assert bundle.seen().content_hashes == {"a"}


def test_a_new_bundle_replaces_the_old_one(tmp_path: Path) -> None:
    tiny.write(tmp_path / "b", version="1")
    assert load_bundle(tiny.write(tmp_path / "b", version="2")).version == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_run_folder_and_a_bundle_folder_both_mean_the_bundle(tmp_path: Path) -> None:
    tiny.write(tmp_path / "run" / "bundle")
    assert find_bundle(tmp_path / "run") == tmp_path / "run" / "bundle"
    assert find_bundle(str(tmp_path / "run" / "bundle")) == tmp_path / "run" / "bundle"
    with pytest.raises(BundleError, match="No model 'nothing'"):
        find_bundle("nothing")
    with pytest.raises(BundleError, match=r"No model 'defualt'\. Did you mean 'default'\?"):
        find_bundle("defualt")
    with pytest.raises(BundleError, match=r"Did you mean .*/run'\?"):
        find_bundle(str(tmp_path / "rum"))
