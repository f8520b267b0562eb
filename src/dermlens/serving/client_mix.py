"""The case mix that a client asks for: read from text, never from a file, and answered from the logits of one pass."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

from dermlens.bundle.case_mix import EQUAL, TRAINING, CaseMix, equal_mix, parse_mix
from dermlens.errors import UsageError
from dermlens.inference.explain import Explanation
from dermlens.inference.prediction import Prediction
from dermlens.inference.predictor import Predictor
from dermlens.serving.problems import Problem
from dermlens.text import one_line

OWN = "own"  # what an answer calls the shares that came with the request
MAX_DETAIL = 400  # characters of what is wrong: the text of the client is in it


class MixDesk:
    """States answers at the case mix of a request. Limits are computed for one new mix at a time."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._lock = threading.Lock()

    def read(self, given: str | None) -> CaseMix | None:
        """Return the mix that a parameter means, None where it is left out.

        Raises:
            Problem: (`case_mix`) it is no case mix of the model's classes.
        """
        text = (given or "").strip()
        bundle = self._predictor.bundle
        if text in ("", TRAINING, EQUAL):
            return {"": None, TRAINING: bundle.card.training_mix, EQUAL: equal_mix(bundle.codes)}[text]
        try:
            return parse_mix(text, OWN, bundle.codes)
        except UsageError as error:
            classes = f" The classes are {', '.join(bundle.codes)}."
            raise Problem("case_mix", one_line(error.message)[:MAX_DETAIL] + classes) from None

    def restate(self, answers: Sequence[Prediction], mix: CaseMix) -> list[Prediction]:
        """Return the answers of the predictor at another mix."""
        with self._lock:
            return [self._predictor.at_mix(answer, mix) for answer in answers]

    def explain(self, image: bytes, code: str | None, mix: CaseMix | None, *, name: str) -> Explanation:
        """Explain a class, or the diagnosis at `mix`. Raises ImageError, UsageError."""
        found = self._predictor.explain(image, code, name=name)
        if mix is None:
            return found
        (answer,) = self.restate([found.prediction], mix)
        if code is None and answer.diagnosis_code != found.code:
            found = self._predictor.explain(image, answer.diagnosis_code, name=name)
        return replace(found, prediction=answer)
