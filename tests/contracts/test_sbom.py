"""What people install has licences that are known and that the project takes; an SBOM is cut down to it."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.check

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "scripts" / "sbom.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("extra", ["core", "serve", "batch", "train", "export", "scale", "tune", "hub"])
def test_every_licence_is_known_and_taken(sbom: ModuleType, extra: str) -> None:
    found = {}
    for name in sorted(sbom.pinned(extra)):
        try:
            found[name] = sbom.licence(distribution(name))
        except PackageNotFoundError:
            found[name] = "not installed"
    assert {name: said for name, said in found.items() if said == "not installed" or not sbom.taken(said)} == {}


def test_licences_are_judged(sbom: ModuleType) -> None:
    for said in ("MIT", "Apache-2.0 WITH LLVM-exception", "MPL-2.0", "GPL-3.0 with GCC Runtime exception"):
        assert sbom.taken(said), said
    for said in ("", "AGPL-3.0", "GPL-3.0-or-later", "CC-BY-NonCommercial", "SSPL-1.0"):
        assert not sbom.taken(said), said


def test_an_sbom_is_cut_down_to_what_is_installed_and_its_edges(sbom: ModuleType) -> None:
    bom = {
        "metadata": {"component": {"bom-ref": "root"}},
        "components": [{"name": name, "bom-ref": name.lower()} for name in ("NumPy", "pytest", "rich")],
        "dependencies": [{"ref": "root", "dependsOn": ["numpy", "pytest"]}, {"ref": "pytest"}, {"ref": "rich"}],
    }
    found = sbom.cut_down(bom, {"numpy", "rich"})
    assert [part["name"] for part in found["components"]] == ["NumPy", "rich"]
    assert found["dependencies"] == [{"ref": "root", "dependsOn": ["numpy"]}, {"ref": "rich"}]
