"""Predictor: image -> Prediction. The one place where pixels, network, calibration and limits meet."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.bundle.bundle import Bundle, find_bundle, load_bundle
from dermlens.bundle.card_text import fact_lines, warnings
from dermlens.bundle.case_mix import CaseMix
from dermlens.bundle.limits import Limits, order_of
from dermlens.bundle.nearest import Neighbour, TrainingExamples
from dermlens.bundle.probabilities import probabilities
from dermlens.bundle.quality import Quality, measure
from dermlens.data.images import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS, load_image
from dermlens.errors import ImageError, UsageError
from dermlens.inference.explain import Explanation, explain
from dermlens.inference.judge import Reason, Scope, judge
from dermlens.inference.notebook import in_notebook
from dermlens.inference.prediction import Prediction
from dermlens.inference.runtime import Outputs, Run, Runtime, check_views, run_views
from dermlens.text import nearest

DECODE_THREADS = min(8, os.cpu_count() or 2)  # for callers that decode in threads of their own
AHEAD = 3  # groups of images begun for each thread, so that one slow group does not hold up the others
PIXELS_AT_ONCE = 100_000_000  # by their headers: eight photographs of 12 megapixels, or two of the largest allowed

ImageSource = str | Path | bytes | np.ndarray | ImageError
"""An ImageError stands for an image that could not be fetched; its answer says why."""


class Predictor:
    """Loads a model once and answers for images.

    Examples:
        >>> from dermlens import Predictor
        >>> predictor = Predictor("default")
        >>> answer = predictor.predict("examples/images/MEL_ISIC_0000029.jpg")  # doctest: +SKIP
        >>> answer.diagnosis_code, answer.probability  # doctest: +SKIP

    Args:
        model: a name from `dermlens models`, a run folder or a bundle folder.
        threads: how many processor threads the network runs on; all cores when None.
        max_bytes: of one image, checked before it is read.
        max_pixels: width x height of one image, checked before it is decoded.
        views: test-time views whose probabilities are averaged: 1, 2, 4 or 8 quarter turns and mirror images.
        case_mix: how common each diagnosis is beforehand: "equal", "training", the name of a CSV or JSON file of code
            and share, a mapping of them, or a `CaseMix`; the model's own when None.

    Raises:
        BundleError: there is no such model, or it is damaged. UsageError: views or case mix are none.
    """

    def __init__(
        self,
        model: str | Path = "default",
        *,
        threads: int | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        views: int = 1,
        case_mix: str | Mapping[str, float] | CaseMix | None = None,
    ) -> None:
        self.views = check_views(views)
        self.bundle: Bundle = load_bundle(find_bundle(model))
        self._scope = Scope(self.bundle.codes, self.bundle.trust, self.bundle.card.modality)
        self._limits_now = self.bundle.limits(self.bundle.mix(case_mix))
        self._runtime = Runtime(self.bundle.graph_path, threads=threads)
        self._workers = self._runtime.lanes + 1  # one more, so that a core is not idle while another reads a file
        self._bounds = {"max_bytes": max_bytes, "max_pixels": max_pixels}
        self._pixels = PixelBudget(PIXELS_AT_ONCE)
        self._head: tuple[np.ndarray, np.ndarray] | None = None
        self._examples: TrainingExamples | None = None
        self._model = {"name": self.bundle.name, "version": self.bundle.version, "sha256": self.bundle.sha256}

    def predict(
        self, image: ImageSource, *, name: str | None = None, frame_aspect: float | None = None, neighbours: int = 0
    ) -> Prediction:
        """Answer for one image: a path, encoded bytes or a uint8 RGB array (height, width, 3).

        A bad image does not raise: the Prediction has status "error" and says why.

        Args:
            name: what to call the image in the answer; its path when None.
            frame_aspect: width / height of the camera frame, for a file that was squashed to another shape.
            neighbours: how many of the most similar training lesions to name.

        Raises:
            BundleError: neighbours are asked for and the bundle has no index of its training lesions.
        """
        names = None if name is None else [name]
        answer = next(self.predict_many([image], names=names, frame_aspects=[frame_aspect]))
        return replace(answer, neighbours=self.neighbours(answer, neighbours)) if neighbours else answer

    def predict_many(
        self,
        images: Iterable[ImageSource],
        *,
        names: Iterable[str] | None = None,
        frame_aspects: Iterable[float | None] | None = None,
    ) -> Iterator[Prediction]:
        """Answer for many images, lazily and in order, one Prediction for each input, bad ones included.

        Images are read, decoded and answered in background threads, a few in each; no more than that are in memory.
        """
        return (answered.prediction for answered in self._run_many(_jobs(images, names, frame_aspects)))

    def neighbours(self, answer: Prediction, count: int) -> tuple[Neighbour, ...]:
        """Name the training lesions that the image of an answer resembles most; none for an image that was not read.

        Raises:
            BundleError: the bundle has no index of its training lesions.
        """
        if self._examples is None:
            self._examples = self.bundle.examples()
        return () if answer.embedding is None else self._examples.nearest(answer.embedding, count)

    def explain(
        self, image: ImageSource, code: str | None = None, *, name: str | None = None, frame_aspect: float | None = None
    ) -> Explanation:
        """Answer for one image and say which parts of it are evidence for a class.

        Args:
            code: the class to explain; the diagnosis when None.

        Raises:
            ImageError: the image cannot be read. UsageError: the model has no such class.
        """
        self._check_code(code)
        jobs = _jobs([image], None if name is None else [name], [frame_aspect])
        answered = next(self._run_many(jobs, explaining=True))
        if answered.error is not None:
            raise answered.error
        explanation = self._explanation(answered, code)
        if explanation is None:
            raise UsageError("The image gave no answer to explain.", remedy="Try another image.")
        return explanation

    def explain_many(
        self,
        images: Iterable[ImageSource],
        *,
        names: Iterable[str] | None = None,
        frame_aspects: Iterable[float | None] | None = None,
    ) -> Iterator[tuple[Prediction, Explanation | None]]:
        """Like `predict_many`, each answer with the explanation of its diagnosis; None where there is no answer."""
        for answered in self._run_many(_jobs(images, names, frame_aspects), explaining=True):
            yield answered.prediction, self._explanation(answered, None)

    @property
    def case_mix(self) -> CaseMix:
        """The mix at which it answers."""
        return self._limits_now.mix

    def at_mix(self, answer: Prediction, case_mix: str | Mapping[str, float] | CaseMix | None) -> Prediction:
        """Return an answer of this predictor at another case mix, without running the network again.

        Raises:
            UsageError: (code `case_mix`) it is no mix of the model's classes; (code `model`) it is not its answer.
        """
        if answer.model != self._model:
            raise UsageError("The answer is of another model.", remedy="Give answers of this Predictor.", code="model")
        limits = self.bundle.limits(self.bundle.mix(case_mix))
        if answer.logits is None or answer.look is None:
            return replace(answer, case_mix=limits.mix)
        novelty = self.bundle.trust.novelty
        score = None if novelty is None or answer.embedding is None else novelty.score(answer.embedding[None]).item()
        probability = probabilities(answer.logits[None], self.bundle.calibration, limits.shares)[0]
        fields = self._fields(limits, probability, score, answer.look)
        kept = answer.heatmap if fields["diagnosis_code"] == answer.diagnosis_code else None
        return replace(answer, heatmap=kept, **fields)

    def _repr_html_(self) -> str:
        facts = self.bundle.facts()
        return in_notebook(
            title=f"{self.bundle.name} {self.bundle.version}", facts=fact_lines(facts), warnings=warnings(facts)
        )

    def _check_code(self, code: str | None) -> None:
        if code is not None and code not in self.bundle.codes:
            raise UsageError(
                f"The model has no class {code!r}.{nearest(code, self.bundle.codes)} It has "
                f"{', '.join(self.bundle.codes)}.",
                remedy="Give one of those codes, or none for the diagnosis.",
                code="unknown_class",
            )

    def _explanation(self, answered: _Answered, code: str | None) -> Explanation | None:
        prediction, code = answered.prediction, code or answered.prediction.diagnosis_code
        if answered.pixels is None or answered.feature_map is None or code is None:
            return None
        self._head = self._head or self.bundle.head()
        where = (code, self.bundle.codes.index(code))
        return explain(prediction, answered.pixels, answered.feature_map, self._head, *where)

    def _run_many(self, jobs: Iterator[_Job], *, explaining: bool = False) -> Iterator[_Answered]:
        """Answer in threads, each of which decodes a few images, runs the network on them and judges: a core each."""
        runtime = self._runtime
        first = list(islice(jobs, runtime.worthwhile + 1))
        if len(first) < 2:
            yield from self._answer(first, runtime.run, explaining)
            return
        few = len(first) <= runtime.worthwhile
        size, run = (1, runtime.run) if few else (runtime.images_a_pass, runtime.run_beside)
        jobs, groups = chain(first, jobs), iter(lambda: list(islice(jobs, size)), [])
        with ThreadPoolExecutor(max_workers=self._workers, thread_name_prefix="dermlens-answer") as pool:
            begun = (pool.submit(self._answer, group, run, explaining) for group in groups)
            waiting = deque(islice(begun, AHEAD * self._workers))
            try:
                while waiting:
                    answered = waiting.popleft().result()
                    waiting.extend(islice(begun, 1))
                    yield from answered
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _load(self, job: _Job) -> _Pixels:
        start = time.perf_counter()
        try:
            if isinstance(job.image, ImageError):
                raise job.image
            spec, hold = self.bundle.input_spec, self._pixels.hold
            pixels = load_image(job.image, spec, frame_aspect=job.frame_aspect, hold=hold, **self._bounds)
            error = None
        except ImageError as caught:
            pixels, error = None, caught
        return _Pixels(pixels, error, (time.perf_counter() - start) * 1000)

    def _answer(self, jobs: list[_Job], run: Run, explaining: bool) -> list[_Answered]:
        loaded = [self._load(job) for job in jobs]
        good = [item.pixels for item in loaded if item.pixels is not None]
        start = time.perf_counter()
        outputs = run_views(run, np.stack(good), self.views) if good else None
        found = self._classify(np.stack(good), outputs) if outputs else []
        answers = zip(found, outputs.feature_map if outputs else (), strict=True)
        share_ms = (time.perf_counter() - start) * 1000 / max(1, len(good))
        answered = []
        for job, item in zip(jobs, loaded, strict=True):
            if item.pixels is None:
                answered.append(_Answered(self._failed(job.name, item), item.error))
                continue
            answer, feature_map = next(answers)
            took = item.elapsed_ms + share_ms
            answer = replace(answer, image=job.name, elapsed_ms=took, frame_aspect=job.frame_aspect)
            answered.append(_Answered(answer, None, *((item.pixels, feature_map) if explaining else ())))
        return answered

    def _classify(self, pixels: np.ndarray, outputs: Outputs) -> list[Prediction]:
        bundle, limits, novelty = self.bundle, self._limits_now, self.bundle.trust.novelty
        probability = probabilities(outputs.logits, bundle.calibration, limits.shares)
        scores = [None] * len(pixels) if novelty is None else novelty.score(outputs.embedding).tolist()
        return [
            Prediction(
                image="",
                model=self._model,
                elapsed_ms=0.0,
                views=self.views,
                logits=outputs.logits[row],
                embedding=outputs.embedding[row],
                look=look,
                **self._fields(limits, probability[row], score, look),
            )
            for row, (score, look) in enumerate(zip(scores, map(measure, pixels), strict=True))
        ]

    def _fields(self, limits: Limits, probability: np.ndarray, novelty: float | None, look: Quality) -> dict[str, Any]:
        """Return the fields of an answer that depend on the case mix."""
        bundle = self.bundle
        order = order_of(probability[None])[0]
        return {
            "diagnosis_code": bundle.codes[order[0]],
            "diagnosis_name": bundle.names[order[0]],
            "probability": float(probability[order[0]]),
            "probabilities": {bundle.codes[c]: float(probability[c]) for c in order},
            "case_mix": limits.mix,
            **judge(self._scope, limits, probability, novelty, look),
        }

    def _failed(self, name: str, item: _Pixels) -> Prediction:
        return Prediction(
            image=name,
            status="error",
            why="" if item.error is None else item.error.message,
            diagnosis_code=None,
            diagnosis_name=None,
            probability=None,
            probabilities={},
            case_mix=self.case_mix,
            model=self._model,
            elapsed_ms=item.elapsed_ms,
            error=None if item.error is None else item.error.as_dict(),
            reasons=() if item.error is None else (Reason(item.error.code, item.error.message),),
        )


@dataclass(frozen=True)
class _Answered:
    """An answer with what it was made from, where there was something to read."""

    prediction: Prediction
    error: ImageError | None
    pixels: np.ndarray | None = None
    feature_map: np.ndarray | None = None


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
    return "<missing>" if isinstance(image, ImageError) else "<bytes>" if isinstance(image, bytes) else "<array>"


class PixelBudget:
    """Lets threads decode up to a number of pixels at one time; a larger image waits until it is alone."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._held == 0 or self._held + pixels <= self.pixels)
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()
