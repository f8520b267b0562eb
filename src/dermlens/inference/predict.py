"""Predictor: image -> Prediction. The one place where pixels, network, calibration and decision rule meet."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.data.images import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS, load_image
from dermlens.errors import DermlensError, ImageError
from dermlens.inference.bundle import Bundle, find_bundle, load_bundle
from dermlens.inference.decision import decide, probabilities
from dermlens.inference.runtime import BATCH, Runtime

SCHEMA = "dermlens/prediction/1"
DECODE_THREADS = min(8, os.cpu_count() or 2)
DISCLAIMER = "For research and decision support only; not a diagnosis."

ImageSource = str | Path | bytes | np.ndarray | ImageError
"""An ImageError stands for an image that could not be fetched; its answer says why."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    `probabilities` are calibrated and ordered as the bundle's classes; `diagnosis_code` follows the bundle's decision
    rule and may differ from the largest probability. When `status` is "error" everything but `image`, `model` and
    `error` is empty. `logits` float32 (classes,) and `embedding` float32 (d,) are kept for programs.
    """

    image: str
    status: str
    diagnosis_code: str | None
    diagnosis_name: str | None
    probability: float | None
    probabilities: dict[str, float]
    decision_rule: str
    model: dict[str, str]
    elapsed_ms: float
    error: dict[str, str] | None = None
    logits: np.ndarray | None = None
    embedding: np.ndarray | None = None
    frame_aspect: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `dermlens predict --json` prints."""
        diagnosis = None
        if self.diagnosis_code is not None:
            diagnosis = {"code": self.diagnosis_code, "name": self.diagnosis_name}
        return {
            "schema": SCHEMA,
            "image": self.image,
            "status": self.status,
            "diagnosis": diagnosis,
            "probability": None if self.probability is None else round(self.probability, 6),
            "probabilities": {code: round(p, 6) for code, p in self.probabilities.items()},
            "decision_rule": self.decision_rule,
            "model": self.model,
            "elapsed_ms": round(self.elapsed_ms, 2),
            "error": self.error,
        }

    def top(self, k: int) -> list[tuple[str, float]]:
        """Return the k most probable classes as (code, probability), largest first."""
        return sorted(self.probabilities.items(), key=lambda item: -item[1])[:k]


class Predictor:
    """Loads a model once and answers for images.

    >>> from dermlens import Predictor
    >>> predictor = Predictor("default")
    >>> answer = predictor.predict("examples/images/MEL_ISIC_0000029.jpg")  # doctest: +SKIP
    >>> answer.diagnosis_code, answer.probability                            # doctest: +SKIP

    Args:
        model: a name from `dermlens models`, a run folder or a bundle folder.
        threads: processor threads of the network, and at most so many that decode; all cores when None.
        max_bytes, max_pixels: limits on one image, checked before it is decoded.
    """

    def __init__(
        self,
        model: str | Path = "default",
        *,
        threads: int | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        self.bundle: Bundle = load_bundle(find_bundle(model))
        self._runtime = Runtime(self.bundle.graph_path, precision=self.bundle.precision, threads=threads)
        self._decode_threads = min(DECODE_THREADS, threads or DECODE_THREADS)
        self._limits = {"max_bytes": max_bytes, "max_pixels": max_pixels}
        self._model = {"name": self.bundle.name, "version": self.bundle.version, "sha256": self.bundle.sha256}

    def predict(self, image: ImageSource, *, name: str | None = None, frame_aspect: float | None = None) -> Prediction:
        """Answer for one image: a path, encoded bytes or a uint8 RGB array (height, width, 3).

        A bad image does not raise: the Prediction has status "error" and says why.

        Args:
            name: what to call the image in the answer; its path when None.
            frame_aspect: width / height of the camera frame, for a file that was squashed to another shape.
        """
        return next(self.predict_many([image], names=None if name is None else [name], frame_aspects=[frame_aspect]))

    def predict_many(
        self,
        images: Iterable[ImageSource],
        *,
        names: Iterable[str] | None = None,
        frame_aspects: Iterable[float | None] | None = None,
    ) -> Iterator[Prediction]:
        """Answer for many images, lazily and in order, one Prediction for each input, bad ones included.

        Images are read and decoded in background threads while the network runs; at most a few batches are in memory.
        """
        jobs = _jobs(images, names, frame_aspects)
        with ThreadPoolExecutor(max_workers=self._decode_threads, thread_name_prefix="dermlens-decode") as pool:
            waiting = self._submit(pool, jobs)
            while waiting:
                following = self._submit(pool, jobs)
                yield from self._answer(waiting)
                waiting = following

    def _submit(self, pool: ThreadPoolExecutor, jobs: Iterator[_Job]) -> list[tuple[str, Future[_Pixels]]]:
        return [(job.name, pool.submit(self._load, job)) for job in islice(jobs, BATCH)]

    def _load(self, job: _Job) -> _Pixels:
        start = time.perf_counter()
        try:
            if isinstance(job.image, ImageError):
                raise job.image
            pixels = load_image(job.image, self.bundle.input_spec, frame_aspect=job.frame_aspect, **self._limits)
            error = None
        except ImageError as caught:
            pixels, error = None, caught
        return _Pixels(pixels, error, (time.perf_counter() - start) * 1000, job.frame_aspect)

    def _answer(self, batch: list[tuple[str, Future[_Pixels]]]) -> list[Prediction]:
        loaded = [(name, future.result()) for name, future in batch]
        good = [item.pixels for _, item in loaded if item.pixels is not None]
        answers: Iterator[Prediction] = iter(())
        share_ms = 0.0
        if good:
            start = time.perf_counter()
            answers = iter(self._classify(np.stack(good)))
            share_ms = (time.perf_counter() - start) * 1000 / len(good)
        result = []
        for name, item in loaded:
            if item.error is not None:
                result.append(self._failed(name, item))
            else:
                result.append(
                    replace(
                        next(answers),
                        image=name,
                        elapsed_ms=item.elapsed_ms + share_ms,
                        frame_aspect=item.frame_aspect,
                    )
                )
        return result

    def _classify(self, pixels: np.ndarray) -> Iterator[Prediction]:
        outputs = self._runtime.run(pixels)
        bundle = self.bundle
        probability = probabilities(outputs.logits, bundle.calibration)
        decisions = decide(probability, bundle.calibration, bundle.decision_rule)
        for row, decision in enumerate(decisions):
            by_code = {code: float(p) for code, p in zip(bundle.codes, probability[row], strict=True)}
            yield Prediction(
                image="",
                status="ok",
                diagnosis_code=bundle.codes[decision],
                diagnosis_name=bundle.names[decision],
                probability=by_code[bundle.codes[decision]],
                probabilities=by_code,
                decision_rule=bundle.decision_rule.kind,
                model=self._model,
                elapsed_ms=0.0,
                logits=outputs.logits[row],
                embedding=outputs.embedding[row],
            )

    def _failed(self, name: str, item: _Pixels) -> Prediction:
        error: DermlensError | None = item.error
        return Prediction(
            image=name,
            status="error",
            diagnosis_code=None,
            diagnosis_name=None,
            probability=None,
            probabilities={},
            decision_rule=self.bundle.decision_rule.kind,
            model=self._model,
            elapsed_ms=item.elapsed_ms,
            error=None if error is None else error.as_dict(),
        )


@dataclass(frozen=True)
class _Job:
    image: ImageSource
    name: str
    frame_aspect: float | None


@dataclass(frozen=True)
class _Pixels:
    pixels: np.ndarray | None
    error: ImageError | None
    elapsed_ms: float
    frame_aspect: float | None


def _jobs(
    images: Iterable[ImageSource], names: Iterable[str] | None, frame_aspects: Iterable[float | None] | None
) -> Iterator[_Job]:
    name_of = iter(names) if names is not None else None
    aspect_of = iter(frame_aspects) if frame_aspects is not None else None
    for image in images:
        name = next(name_of) if name_of is not None else _name(image)
        yield _Job(image, name, next(aspect_of) if aspect_of is not None else None)


def _name(image: ImageSource) -> str:
    if isinstance(image, (str, Path)):
        return str(image)
    if isinstance(image, ImageError):
        return "<missing>"
    return "<bytes>" if isinstance(image, bytes) else "<array>"
