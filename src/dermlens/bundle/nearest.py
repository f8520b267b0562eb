"""Which lesions of the training does an image resemble most? By name only: the bundle stores no images.

It stores, for one image of each training lesion, where its embedding lies in the 64 directions in which the embeddings
of training images vary most (float16, about 130 bytes per image). Similarity is the cosine of the angle between two of
these places, seen from the mean training image: 1 for the same image, about 0 for two that have nothing in common.
Resemblance to the network is no proof: it shows what an answer is based on, as a case book does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dermlens.bundle.novelty import Floats, normalised
from dermlens.errors import BundleError, UsageError

TEXTS = ("image", "lesion_id", "source", "licence")
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Neighbour:
    """One training lesion: `image` is its ISIC id where it has one, else the file's name; unknown is None.

    `diagnosis` is a class code, as the training data have it; `similarity` is -1 to 1.
    """

    image: str
    diagnosis: str
    similarity: float
    lesion_id: str | None = None
    source: str | None = None
    licence: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `predict --json --neighbours` prints."""
        return {**asdict(self), "similarity": round(self.similarity, 4)}


@dataclass(frozen=True, eq=False)
class TrainingExamples:
    """Where the training lesions lie, and what they are.

    Attributes:
        codes: the classes of the model.
        mean: (d,) of the embeddings at length 1.
        components: (k, d), rows orthonormal.
        places: (n, k) float16, rows of length 1.
        diagnosis: (n,) classes.
        texts: for each of `TEXTS` n entries, "" where it is not known.
    """

    codes: tuple[str, ...]
    mean: npt.NDArray[np.floating]
    components: npt.NDArray[np.floating]
    places: npt.NDArray[np.float16]
    diagnosis: npt.NDArray[np.integer]
    texts: Mapping[str, Sequence[str]]

    def nearest(self, embedding: npt.NDArray[np.floating], count: int) -> tuple[Neighbour, ...]:
        """Return the `count` most similar training lesions (all, where there are fewer), the nearest first.

        Args:
            embedding: (d,), as the graph gives it.
            count: 1 or more.
        """
        if count < 1:
            raise UsageError(f"The number of neighbours is {count}. Allowed is 1 or more.", remedy="Ask for 5.")
        place = place_of(embedding[None], self.mean, self.components)[0]
        similarity = self.places.astype(np.float32) @ place.astype(np.float32)
        order = np.argsort(-similarity, kind="stable")[:count]
        return tuple(self._neighbour(int(row), float(similarity[row])) for row in order)

    def _neighbour(self, row: int, similarity: float) -> Neighbour:
        image, lesion, source, licence = (self.texts[name][row] for name in TEXTS)
        return Neighbour(
            image=image,
            diagnosis=self.codes[int(self.diagnosis[row])],
            similarity=max(-1.0, min(1.0, similarity)),
            lesion_id=lesion or None,
            source=source or None,
            licence=licence or None,
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return what is stored in `neighbours.npz`; text as UTF-8 bytes."""
        texts = {
            name: np.array([text.encode("utf-8", "backslashreplace") for text in self.texts[name]]) for name in TEXTS
        }
        return {
            "mean": self.mean.astype(np.float32),
            "components": self.components.astype(np.float16),
            "places": self.places.astype(np.float16),
            "diagnosis": self.diagnosis.astype(np.int16),
            **texts,
        }

    @classmethod
    def read(cls, arrays: Arrays, codes: tuple[str, ...]) -> TrainingExamples:
        """Read what `arrays` wrote.

        Raises:
            BundleError: the arrays do not fit together. KeyError, UnicodeDecodeError: they are damaged.
        """
        mean, components = arrays["mean"].astype(np.float32), arrays["components"].astype(np.float32)
        places, diagnosis = arrays["places"], arrays["diagnosis"]
        texts = {name: [bytes(text).decode("utf-8") for text in arrays[name].tolist()] for name in TEXTS}
        n, k = places.shape
        lengths = {len(diagnosis), *(len(column) for column in texts.values())}
        whole = components.shape == (k, len(mean)) and lengths == {n}
        if not whole or (n and not 0 <= int(diagnosis.min()) <= int(diagnosis.max()) < len(codes)):
            raise BundleError(
                f"The index of training lesions does not fit together: {n} lesions of {k} numbers.",
                remedy="Train the model again.",
                code="bad_value",
            )
        return cls(codes, mean, components, places, diagnosis, texts)


def place_of(
    embedding: npt.NDArray[np.floating], mean: npt.NDArray[np.floating], components: npt.NDArray[np.floating]
) -> Floats:
    """Return where embeddings (n, d) lie, (n, k) at length 1."""
    return normalised((normalised(embedding) - mean) @ components.T)
