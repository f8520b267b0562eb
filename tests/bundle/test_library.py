"""Models of others: added by name, checked, shown with what to know of them; and the hub's layout."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import ModelCard

import tiny
from dermlens import Predictor
from dermlens.bundle.bundle import MODELS_DIR, Bundle, find_bundle, load_bundle, user_models, user_models_dir
from dermlens.bundle.hub import fetch, write_repository
from dermlens.bundle.library import add_model, known_digests, pack, remove_model
from dermlens.errors import BundleError, StorageError, UsageError


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DERMLENS_MODELS", str(tmp_path / "models"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "source")


def test_a_folder_or_a_packed_file_is_found_by_name(source: Path, tmp_path: Path) -> None:
    bundle = load_bundle(source)
    pack(bundle, tmp_path / "tiny.zip")
    (source / "notes.txt").write_text("not part of the bundle")
    assert add_model(str(source)).folder == user_models_dir() / "tiny"
    assert add_model(str(tmp_path / "tiny.zip"), name="packed", sha256=bundle.sha256.upper()).sha256 == bundle.sha256
    assert user_models() == ["packed", "tiny"]
    assert not (find_bundle("tiny") / "notes.txt").exists()
    shutil.rmtree(source)
    assert Predictor("packed").predict(tiny.colour("GREEN")).diagnosis_code == "GREEN"
    remove_model("packed")
    assert user_models() == ["tiny"] and [path.name for path in user_models_dir().iterdir()] == ["tiny"]
    with pytest.raises(UsageError, match="Added are: tiny"):
        remove_model("packed")


def test_names_are_not_taken_over(source: Path, tmp_path: Path) -> None:
    add_model(str(source))
    add_model(str(source))
    other = tiny.write(tmp_path / "other", version="0.0.2")
    with pytest.raises(UsageError, match="called 'tiny' already"):
        add_model(str(other))
    assert load_bundle(find_bundle("tiny")).version == "0.0.1"
    assert add_model(str(other), replace=True).version == "0.0.2"
    for name in ("default", "../up", "a/b", ".hidden", " "):
        with pytest.raises(UsageError, match=r"name|called"):
            add_model(str(other), name=name)
    assert user_models() == ["tiny"]


@pytest.mark.parametrize("replace", [False, True])
def test_what_is_no_model_is_not_replaced(source: Path, tmp_path: Path, replace: bool) -> None:
    run = user_models_dir() / "mine"
    tiny.write(run / "bundle")
    (run / "model.keras").write_text("weights")
    with pytest.raises(UsageError, match="is no model"):
        add_model(str(run), name="mine", replace=replace)
    assert sorted(path.name for path in run.iterdir()) == ["bundle", "model.keras"]


def test_a_damaged_model_is_replaced_and_stays_when_the_move_fails(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = add_model(str(source)).folder
    (target / "graph.bin").write_bytes(b"damaged")
    with monkeypatch.context() as patched:
        moves = iter([os.replace, refused, os.replace])
        patched.setattr(os, "replace", lambda old, new: next(moves)(old, new))
        with pytest.raises(StorageError, match="could not be added"):
            add_model(str(source))
    assert (target / "graph.bin").read_bytes() == b"damaged"
    assert add_model(str(source)).folder == target
    assert [path.name for path in user_models_dir().iterdir()] == ["tiny"]


def refused(old: Path, new: Path) -> None:
    raise OSError(28, "No space left on device")


def test_another_digest_is_not_added(source: Path) -> None:
    with pytest.raises(BundleError, match="asked for"):
        add_model(str(source), sha256="0" * 64)
    assert user_models() == [] and not any(user_models_dir().iterdir())


def test_a_digest_is_known_of_embedded_and_added_models(source: Path) -> None:
    digest = load_bundle(source).sha256
    embedded = load_bundle(MODELS_DIR / "default").sha256
    assert known_digests() == {embedded: "the model 'default' that came with dermlens"}
    add_model(str(source))
    assert known_digests()[digest] == "added before as 'tiny'"


@pytest.mark.parametrize("changes", [{"version": "1\n  known  yes"}, {"name": "tiny\x1b[2J"}])
def test_a_name_that_cannot_be_shown_is_not_kept(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(BundleError, match="is no name"):
        add_model(str(tiny.write(tmp_path / "bad", **changes)), name="bad")
    assert not any(user_models_dir().iterdir())


def test_half_a_surrogate_pair_is_no_text(source: Path) -> None:
    card = json.loads((source / "bundle.json").read_text())
    (source / "bundle.json").write_text(json.dumps({**card, "scope": "all \ud800"}))
    with pytest.raises(BundleError, match="it is not JSON"):
        add_model(str(source))


def test_a_model_is_shown_before_it_is_kept(source: Path) -> None:
    def show(bundle: Bundle) -> None:
        assert bundle.name == "tiny" and user_models() == []
        raise UsageError("seen", remedy="")

    with pytest.raises(UsageError, match="seen"):
        add_model(str(source), show=show)
    assert user_models() == []


def test_a_leaky_model_says_so_and_gives_the_hub_no_figures(tmp_path: Path) -> None:
    leaky = load_bundle(tiny.write(tmp_path / "leaky", data={"leaky": True}))
    write_repository(leaky, tmp_path / "repo")
    card = ModelCard.load(tmp_path / "repo" / "README.md")
    assert card.data.eval_results is None and "leaky" in card.data.tags


def cached_as_the_client_does(repository: Path, cache: Path) -> None:
    """Lay a repository out as huggingface_hub keeps what it has fetched: blobs, and a snapshot of links to them."""
    home, commit = cache / "models--owner--tiny", "0123456789" * 4
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (home / folder).mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    for number, path in enumerate(sorted(repository.iterdir())):
        shutil.copy(path, home / "blobs" / str(number))
        (home / "snapshots" / commit / path.name).symlink_to(Path("../../blobs") / str(number))


def test_a_repository_of_the_hub_is_added_without_a_network(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_repository(load_bundle(source), tmp_path / "repo")
    cached_as_the_client_does(tmp_path / "repo", tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    bundle = add_model("hf://owner/tiny")
    assert bundle.sha256 == load_bundle(source).sha256
    assert not any(path.is_symlink() for path in bundle.folder.iterdir())
    with pytest.raises(BundleError, match="could not be fetched"):
        add_model("hf://owner/unknown")
    with pytest.raises(UsageError, match="no model on a hub"):
        add_model("hf://owner")
    with pytest.raises(UsageError, match="not an empty folder"):
        write_repository(bundle, tmp_path / "repo")


def test_an_incomplete_cache_is_fetched_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    (broken / "graph.bin").unlink()
    asked = []

    def download(*, local_files_only: bool = False, **wanted: object) -> str:
        asked.append(local_files_only)
        return str(broken if local_files_only else source)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert fetch("hf://owner/tiny") == source and asked == [True, False]
    shutil.copy(source / "graph.bin", broken)
    assert fetch("hf://owner/tiny") == broken and asked == [True, False, True]


def test_the_hub_is_asked_for_every_file_of_a_bundle_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(*, allow_patterns: list[str], **wanted: object) -> str:
        asked.extend(allow_patterns)
        return str(MODELS_DIR / "default")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    fetch("hf://owner/tiny")
    assert set(asked) >= set(load_bundle(MODELS_DIR / "default").file_names())
    assert not any("*" in pattern for pattern in asked)


def test_the_card_is_one_that_the_hub_reads(tmp_path: Path) -> None:
    bundle = load_bundle(MODELS_DIR / "default")
    write_repository(bundle, tmp_path / "repo")
    card = ModelCard.load(tmp_path / "repo" / "README.md")
    facts = json.loads((MODELS_DIR / "default" / "bundle.json").read_text("utf-8"))
    assert card.data.license == "cc-by-nc-4.0" and card.data.library_name == "dermlens"
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values["balanced_accuracy"] == facts["metrics"]["balanced_accuracy"]["value"]
    assert f"# default {facts['version']}" in card.text and bundle.sha256 in card.text
