"""One reading of a file: hash, header, looks and the perceptual hash in its eight symmetries."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import pictures
from dermlens.audit.facts import (
    SYMMETRIES,
    facts_of,
    perceptual_codes,
    quality_findings,
    quantisation_of,
    read_facts,
    thumbnail,
    turned,
)
from dermlens.data.images import content_hash
from dermlens.data.records import Record


def record(path: Path) -> Record:
    return Record(path, path.name, "NV")


def test_facts_of_a_file(tmp_path: Path) -> None:
    path = pictures.save(tmp_path / "a.jpg", pictures.lesion(1))
    facts = facts_of(record(path))
    assert (facts.format, facts.width_px, facts.height_px) == ("JPEG", 160, 120)
    assert facts.sha256 == content_hash(path.read_bytes()) and facts.error is None
    assert facts.size_bytes == path.stat().st_size
    assert len(facts.codes) == SYMMETRIES
    assert facts.quality is not None and 100 < facts.quality.brightness < 200


def test_a_file_that_cannot_be_read_keeps_its_place(tmp_path: Path) -> None:
    good = pictures.save(tmp_path / "a.png", pictures.lesion(1))
    (tmp_path / "b.png").write_bytes(good.read_bytes()[:200])
    steps: list[int] = []
    names = ("a.png", "b.png", "gone.png")
    facts = read_facts([record(tmp_path / n) for n in names], progress=steps.append)
    assert [f.sha256 is None for f in facts] == [False, True, True]
    assert [bool(f.error) for f in facts] == [False, True, True]
    assert sum(steps) == 3


@pytest.mark.parametrize("symmetry", range(SYMMETRIES))
def test_the_codes_are_those_of_the_turned_picture(symmetry: int, tmp_path: Path) -> None:
    thumb = thumbnail(record(pictures.save(tmp_path / "a.png", pictures.lesion(4))))
    assert thumb is not None and thumb.shape == (32, 32) and thumbnail(record(tmp_path / "gone.png")) is None
    seen = perceptual_codes(np.ascontiguousarray(turned(thumb, symmetry)))[0]
    assert int(np.bitwise_count(perceptual_codes(thumb)[symmetry] ^ seen)) <= 1


def test_quantisation_tells_qualities_apart_and_not_pictures(tmp_path: Path) -> None:
    def tables(seed: int, quality: int) -> str:
        return quantisation_of(pictures.save(tmp_path / "q.jpg", pictures.lesion(seed), quality).read_bytes())

    assert tables(1, 90) == tables(2, 90) != tables(1, 60)
    assert quantisation_of(b"\xff\xd8") == ""
    quantisation_of(b"\xff\xd8\xff\xdb\x00")  # cut off inside a table: no error


def test_looks(tmp_path: Path) -> None:
    dark, white, sharp, soft = (
        facts_of(record(pictures.save(tmp_path / f"{number}.png", image)))
        for number, image in enumerate(
            (
                np.full((80, 80, 3), 5, np.uint8),
                np.full((80, 80, 3), 255, np.uint8),
                pictures.lesion(1),
                cv2.GaussianBlur(pictures.lesion(1), (0, 0), 12),
            )
        )
    )
    assert dark.quality and white.quality and sharp.quality and soft.quality
    assert dark.quality.dark_share == 1 and dark.dark_corners == 4 and dark.quality.sharpness == 0
    assert white.quality.bright_share == 1 and white.dark_corners == 0 and white.border_rgb == (255, 255, 255)
    assert sharp.quality.sharpness > 2 * soft.quality.sharpness
    assert sharp.shows_something and not white.shows_something


BAD = {
    "near_uniform": np.full((160, 160, 3), 120, np.uint8),
    "blurred": cv2.GaussianBlur(pictures.lesion(3, (160, 160)), (0, 0), 6),
    "dark": (pictures.lesion(3, (160, 160)) * 0.2).astype(np.uint8),
    "overexposed": np.clip(pictures.lesion(3, (160, 160)) * 1.9, 0, 255).astype(np.uint8),
    "extreme_shape": pictures.lesion(3, (40, 300)),
}


@pytest.mark.parametrize("kind", BAD)
def test_each_fault_is_told_by_its_name(kind: str, tmp_path: Path) -> None:
    path = pictures.save(tmp_path / "a.png", BAD[kind])
    records = [Record(path, "a.png", "NV")]
    kinds = [finding.kind for finding in quality_findings(records, read_facts(records))]
    assert kinds == [kind]


def test_a_good_picture_and_an_unreadable_one_have_no_fault_here(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"")
    pictures.save(tmp_path / "a.png", pictures.lesion(3, (160, 160)))
    records = [Record(tmp_path / name, name, "NV") for name in ("a.png", "b.png")]
    assert quality_findings(records, read_facts(records)) == []
