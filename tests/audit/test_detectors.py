"""Artefacts: each detector sees what is drawn and nothing on plain skin; rates, tests and findings by class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import pictures
from dermlens.audit.detectors import (
    NAMES,
    artefact_findings,
    artefact_rates,
    artefacts_of,
    read_artefacts,
)
from dermlens.audit.facts import ImageFacts, read_facts
from dermlens.data.records import Record


def skin(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = np.full((224, 224, 3), (215, 170, 150), np.uint8)
    cv2.circle(image, (112, 112), 40, (120, 70, 50), -1)
    image = cv2.GaussianBlur(image, (0, 0), 5).astype(float) + rng.normal(0, 3, (224, 224, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def with_hair(image: np.ndarray) -> np.ndarray:
    for x in (20, 60, 150):
        cv2.line(image, (x, 10), (x + 50, 200), (60, 40, 30), 2, cv2.LINE_AA)
    return image


def with_ruler(image: np.ndarray) -> np.ndarray:
    for x in range(4, 224, 11):
        cv2.line(image, (x, 0), (x, 12), (30, 30, 30), 1)
    return image


def with_ink(image: np.ndarray) -> np.ndarray:
    return cv2.circle(image, (30, 190), 12, (70, 40, 190), -1)


def with_dark_corners(image: np.ndarray) -> np.ndarray:
    inside = cv2.circle(np.zeros((224, 224), np.uint8), (112, 112), 118, 1, -1)
    return (image * inside[..., None]).astype(np.uint8)


DRAWN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "hair": with_hair,
    "ruler": with_ruler,
    "ink": with_ink,
    "dark_corners": with_dark_corners,
}


@pytest.mark.parametrize("name", NAMES)
def test_each_detector_sees_what_is_drawn(name: str) -> None:
    seen = dict(zip(NAMES, artefacts_of(DRAWN[name](skin())), strict=True))
    assert seen == {other: other == name for other in NAMES}


@pytest.mark.parametrize("seed", range(5))
def test_plain_skin_has_none(seed: int) -> None:
    assert artefacts_of(skin(seed)) == (False,) * len(NAMES)
    assert artefacts_of(np.full((224, 224, 3), 130, np.uint8)) == (False,) * len(NAMES)


def test_a_blue_lesion_is_no_ink() -> None:
    image = skin()
    cv2.circle(image, (112, 112), 35, (60, 60, 150), -1)
    assert not artefacts_of(image)[NAMES.index("ink")]


def made(n: int, share: dict[str, float]) -> tuple[list[Record], list[ImageFacts], dict[str, tuple[bool, ...]]]:
    rng = np.random.default_rng(0)
    records = [Record(Path(f"{i}"), f"{i}", "MEL" if i % 2 else "NV") for i in range(n)]
    facts = [ImageFacts(str(i)) for i in range(n)]
    seen = {str(i): (False, bool(rng.random() < share[r.diagnosis]), False, False) for i, r in enumerate(records)}
    return records, facts, seen


def test_rates_that_differ_are_reported_and_equal_ones_are_not() -> None:
    records, facts, seen = made(400, {"MEL": 0.5, "NV": 0.1})
    rates = artefact_rates(records, facts, seen, range(400))
    rate = rates["ruler"].by_class["MEL"]
    assert rate.lesions == 200 and rate.low < 0.5 < rate.high and rate.low < rate.share < rate.high
    (finding,) = artefact_findings(rates)
    assert finding.kind == "artefact_by_class" and "A ruler on" in finding.evidence and "MEL" in finding.evidence
    assert artefact_findings(artefact_rates(*made(400, {"MEL": 0.3, "NV": 0.3}), range(400))) == []
    assert artefact_findings(artefact_rates(*made(24, {"MEL": 0.5, "NV": 0.1}), range(24))) == []


def test_images_of_one_lesion_count_once() -> None:
    records, facts, seen = made(400, {"MEL": 0.5, "NV": 0.1})
    rates = artefact_rates(records, facts, seen, [i // 8 for i in range(400)])
    assert rates["ruler"].by_class["MEL"].lesions == 50
    assert artefact_rates([], [], {}, [])["hair"].p_value == 1


def test_read_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DERMLENS_CACHE", str(tmp_path / "cache"))
    for number, image in enumerate((skin(), with_hair(skin()), with_hair(skin()))):
        pictures.save(tmp_path / f"{number}.png", image)
    (tmp_path / "broken.png").write_bytes(b"no")
    records = [Record(path, path.name, "NV") for path in sorted(tmp_path.glob("*.png"))]
    facts, steps = read_facts(records), list[int]()
    found = read_artefacts(records, facts, cache=True, progress=steps.append)
    assert sorted(row[0] for row in found.values()) == [False, True] and sum(steps) == 2
    gone = [Record(Path("gone"), r.image, r.diagnosis) for r in records]
    assert read_artefacts(gone, facts, cache=True) == found and read_artefacts(gone, facts) == {}
