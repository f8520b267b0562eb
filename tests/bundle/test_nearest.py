"""The nearest training lesions: found, named, kept in the bundle, and missed clearly where there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny
from dermlens import Predictor
from dermlens.bundle.bundle import NEIGHBOURS_FILE, load_bundle
from dermlens.bundle.nearest import TrainingExamples
from dermlens.data.records import Record
from dermlens.errors import BundleError, UsageError
from dermlens.evaluation.fit_trust import index_of

CODES = ("A", "B")


def embeddings(n: int, seed: int = 0) -> np.ndarray:
    """Spread over 40 of 200 directions, all with a large part in common, as after a rectifier."""
    rng = np.random.default_rng(seed)
    return np.hstack([rng.normal(0, 1, (n, 40)), np.zeros((n, 160))]) + 3


def record(number: int) -> Record:
    named = number % 2 == 0
    return Record(
        path=Path(f"{number}.jpg"),
        image=f"photos/é{number}.jpg",
        diagnosis=CODES[number % 2],
        isic_id=f"ISIC_{number:07d}" if named else None,
        lesion_id=f"L{number}" if named else None,
        licence="CC-0" if named else None,
    )


@pytest.fixture(scope="module")
def index() -> TrainingExamples:
    return index_of(embeddings(300), np.arange(300) % 2, [record(i) for i in range(300)], CODES)


def cosine(vectors: np.ndarray, one: np.ndarray) -> np.ndarray:
    """The cosine of each row of length 1, less the mean row, with `one`: what the index stands for."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    centred, other = unit - unit.mean(0), one / np.linalg.norm(one) - unit.mean(0)
    similarity: np.ndarray = centred @ other / np.linalg.norm(centred, axis=1) / np.linalg.norm(other)
    return similarity


def test_the_nearest_are_those_of_the_whole_embedding(index: TrainingExamples) -> None:
    vectors, query = embeddings(300), embeddings(1, 9)[0]
    expected = cosine(vectors, query)
    order = np.argsort(-expected)[:5]
    found = index.nearest(query, 5)
    assert [n.image for n in found] == [record(int(i)).isic_id or Path(record(int(i)).image).name for i in order]
    np.testing.assert_allclose([n.similarity for n in found], expected[order], atol=5e-3)


def test_a_training_picture_finds_itself_with_all_that_is_known_of_it(index: TrainingExamples) -> None:
    named, unnamed = (index.nearest(embeddings(300)[row], 1)[0] for row in (42, 7))
    assert (named.image, named.lesion_id, named.licence, named.diagnosis) == ("ISIC_0000042", "L42", "CC-0", "A")
    assert (unnamed.image, unnamed.lesion_id, unnamed.licence, unnamed.diagnosis) == ("é7.jpg", None, None, "B")
    assert named.similarity == pytest.approx(1, abs=2e-3) and named.source is None


def test_what_comes_back_from_the_arrays_answers_the_same(index: TrainingExamples) -> None:
    again = TrainingExamples.read(index.arrays(), CODES)
    query = embeddings(1, 5)[0]
    assert again.nearest(query, 20) == index.nearest(query, 20)
    assert len(index.nearest(query, 1000)) == 300
    with pytest.raises(UsageError, match="neighbours is 0"):
        index.nearest(query, 0)


@pytest.mark.parametrize(
    "change", [{"places": np.zeros((3, 40), np.float16)}, {"diagnosis": np.full(300, 2, np.int16)}]
)
def test_arrays_that_do_not_fit_together_are_told(index: TrainingExamples, change: dict[str, np.ndarray]) -> None:
    with pytest.raises(BundleError, match="does not fit together"):
        TrainingExamples.read({**index.arrays(), **change}, CODES)


def test_seven_thousand_lesions_take_about_a_megabyte(tmp_path: Path) -> None:
    n = 7000
    vectors = np.random.default_rng(0).random((n, 160), np.float32)
    numbered = [Record(Path("x"), "x.jpg", "RED", lesion_id=f"HAM_{i:07d}", isic_id=f"ISIC_{i:07d}") for i in range(n)]
    folder = tiny.write(tmp_path / "b")
    examples = index_of(vectors, np.zeros(n, np.int64), numbered, tiny.CODES)
    tiny.add(folder, {NEIGHBOURS_FILE: examples.arrays()})
    assert (folder / NEIGHBOURS_FILE).stat().st_size < 1.2e6


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    """The tiny model with one training lesion of each colour."""
    folder = tiny.write(tmp_path / "b")
    pictures = np.array([tiny.colour(code).mean((0, 1)) for code in tiny.CODES])
    records = [Record(Path(code), f"{code}.png", code, source="paint") for code in tiny.CODES]
    tiny.add(folder, {NEIGHBOURS_FILE: index_of(pictures, np.arange(3), records, tiny.CODES).arrays()})
    return Predictor(folder)


def test_predict_names_them_only_when_asked(predictor: Predictor) -> None:
    picture = tiny.colour("GREEN")
    assert "neighbours" not in predictor.predict(picture).as_dict()
    first, second = predictor.predict(picture, neighbours=2).as_dict()["neighbours"]
    assert (first["image"], first["diagnosis"], first["source"]) == ("GREEN.png", "GREEN", "paint")
    assert first["similarity"] == pytest.approx(1, abs=1e-3) and second["similarity"] < 0.5
    assert predictor.predict(b"no image", neighbours=2).as_dict()["neighbours"] == []


def test_a_bundle_without_them_says_how_to_get_them(tmp_path: Path) -> None:
    predictor = Predictor(tiny.write(tmp_path / "b"))
    with pytest.raises(BundleError, match=r"no neighbours\.npz") as caught:
        predictor.predict(tiny.colour("RED"), neighbours=1)
    assert "Train the model again" in caught.value.remedy and caught.value.code == "no_neighbours"


def test_a_changed_byte_is_noticed_and_a_wrong_array_too(predictor: Predictor) -> None:
    folder = predictor.bundle.folder
    whole = (folder / NEIGHBOURS_FILE).read_bytes()
    np.savez(folder / NEIGHBOURS_FILE, mean=np.zeros(3))
    with pytest.raises(BundleError, match=r"neighbours\.npz"):
        load_bundle(folder)
    with pytest.raises(BundleError, match="an array is missing"):
        predictor.bundle.examples()
    (folder / NEIGHBOURS_FILE).write_bytes(whole)
    assert load_bundle(folder).examples().texts["image"] == [f"{code}.png" for code in tiny.CODES]
