"""The gallery of failures: the gravest errors of an evaluation, with what spoke for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dermlens.diagnoses import display_name
from dermlens.evaluation.trust_report import Answers
from dermlens.inference.explain import Explanation
from dermlens.inference.trust import grave_codes
from dermlens.reporting.evaluation_page import Part, Shot
from dermlens.reporting.terminal import neighbours_words

GALLERY = 12
NEIGHBOURS = 3
Explain = Callable[[int], Explanation]


def gallery(answers: Answers, names: Sequence[str], explain: Explain) -> Part:
    """Return the gravest errors with their heat maps; `names` (n,) and `explain` as in `report.write_report`."""
    shots = []
    examples = answers.bundle.examples() if answers.bundle.has_examples else None
    for row in gravest(answers):
        explanation = explain(row)
        truth, given = (answers.bundle.codes[int(c)] for c in (answers.y_true[row], answers.decision[row]))
        share = answers.probability[row, answers.decision[row]]
        label = f"{display_name(truth)}, called {display_name(given)} ({share:.0%}), {answers.predictions[row].status}"
        embedding = answers.predictions[row].embedding
        near = () if examples is None or embedding is None else examples.nearest(embedding, NEIGHBOURS)
        note = f"Nearest in training: {neighbours_words(near)}" if near else ""
        shots.append(Shot((explanation.image, explanation.overlay()), label, names[row], note))
    return Part(
        "failures",
        "Where it fails",
        [
            "The gravest errors: malignant or premalignant lesions called benign, the surest first, then other errors. "
            "On the right, what spoke for the diagnosis that it gave."
            + (" Below, the training lesions most like it to the network, with their diagnosis." if examples else "")
        ],
        shots=shots,
        note="" if shots else "It made no errors here.",
    )


def gravest(answers: Answers, most: int = GALLERY) -> list[int]:
    """Return the rows of the gravest errors: what is malignant called benign first, then the surest ones."""
    wrong = np.flatnonzero(~answers.right)
    grave = [answers.bundle.codes.index(code) for code in grave_codes(answers.bundle.codes)]
    missed = np.isin(answers.y_true[wrong], grave) & ~np.isin(answers.decision[wrong], grave)
    sure = answers.probability[wrong, answers.decision[wrong]]
    order = np.lexsort((-sure, ~missed))
    return [int(row) for row in wrong[order][:most]]
