"""The facts of a finished bundle, fitted again on the images of its training; nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dermlens.audit.findings import hash_records
from dermlens.bundle.bundle import BASELINES_FILE, HASH_CHARS, Bundle, load_bundle, rewrite_bundle
from dermlens.bundle.card import make_card
from dermlens.data.records import Dataset, lesions
from dermlens.errors import DataError
from dermlens.evaluation.baselines import AnswersOnTest, compare_test_answers, read_test_answers
from dermlens.evaluation.bootstrap import paired_difference
from dermlens.evaluation.fit_model import Fit
from dermlens.evaluation.fit_trust import Labelled, Sample, run_model
from dermlens.evaluation.scores import score
from dermlens.inference.runtime import Runtime
from dermlens.reporting.progress import track
from dermlens.training.finish import trust_facts
from scripts.default_model.recipe import ABOUT, RECIPE

ROLES = ("train", "select", "calibrate", "test")


def refit_facts(folder: Path, dataset: Dataset, console: Console, *, neighbours: bool = ABOUT.neighbours) -> None:
    """Fit calibration, limits and figures of the bundle at `folder` again and replace it; its network stays.

    Raises:
        DataError: the images of its training are not in the data set.
        StorageError: the bundle cannot be written; it is unchanged.
    """
    bundle, seed = load_bundle(folder), RECIPE.seed
    roles, digests = roles_of(bundle, dataset, console)
    runtime = Runtime(bundle.graph_path)
    old = Fit(bundle.codes, bundle.input_spec, bundle.calibration, bundle.case_mix, bundle.modality)
    fit = old.calibrated_on(run_model(old, runtime, roles["calibrate"], console, "Calibrate").known, seed=seed)
    facts, arrays = trust_facts(fit, runtime, roles, neighbours=neighbours, seed=seed, console=console)
    card = {**bundle.card.as_dict(), **fit.as_dict(), "trust": facts}
    if not neighbours:
        card["data"] = {**card["data"], "unreadable": []}
    if len(roles["test"].records):
        test = run_model(fit, runtime, roles["test"], console, "Test")
        answers = answers_again(read_test_answers(bundle), test, digests["test"])
        card |= figures(card, answers, test, fit, seed)
        arrays = {**arrays, BASELINES_FILE: answers.arrays()}
    rewrite_bundle(folder, make_card({name: value for name, value in card.items() if name != "schema"}), arrays)


def answers_again(before: AnswersOnTest, test: Sample, digests: list[str]) -> AnswersOnTest:
    """Return the stored answers on the test images with the decisions of the model as it is now."""
    if len(digests) != len(test.y_true):
        raise DataError("A test image cannot be read.", remedy="Bring it back, and run it again.", code="not_its_data")
    decision = dict(zip(digests, test.decision.tolist(), strict=True))
    model = [decision.get(digest, old) for digest, old in zip(before.hashes, before.model.tolist(), strict=True)]
    return replace(before, model=np.array(model, np.int64))


def figures(card: Mapping[str, Any], answers: AnswersOnTest, test: Sample, fit: Fit, seed: int) -> dict[str, Any]:
    """Return the fields of the card that follow from the answers on the test images."""
    groups = test.lesions.tolist()
    scored = score(test.y_true, test.probability, test.decision, groups, fit.codes, mix=fit.case_mix, seed=seed)
    pair = answers.truth, answers.model, answers.probe, answers.lesions.tolist()
    return {
        "metrics": {"split": "test role", **scored},
        "baselines": compare_test_answers(answers, fit.codes, seed=seed),
        "probe": {**card["probe"], "model_minus_probe_balanced_accuracy": paired_difference(*pair, seed=seed)},
    }


def roles_of(bundle: Bundle, dataset: Dataset, console: Console) -> tuple[dict[str, Labelled], dict[str, list[str]]]:
    """Return the images of the data set, and their content hashes, by the role that they have in `seen.json`.

    Raises:
        DataError: no image has the role train, or none has the role calibrate.
    """
    seen = json.loads((bundle.folder / "seen.json").read_text(encoding="utf-8"))
    role_of = {content: role for role in ROLES for content in seen.get(role, {}).get("content_hashes", ())}
    with track("Reading and hashing", len(dataset.records), console) as advance:
        digests = [(digest or "")[:HASH_CHARS] for digest in hash_records(dataset.records, progress=advance)]
    numbers = np.array(lesions(dataset.records, digests), np.int64)
    found = np.array([role_of.get(digest, "") for digest in digests])
    labels = np.array([bundle.codes.index(r.diagnosis) if r.diagnosis in bundle.codes else -1 for r in dataset.records])
    result, hashes = {}, {}
    for role in ROLES:
        rows = np.flatnonzero((found == role) & (labels >= 0))
        result[role] = Labelled([dataset.records[i] for i in rows], labels[rows], numbers[rows])
        hashes[role] = [digests[i] for i in rows]
        console.print(f"{role}: {len(rows)} images", highlight=False)
    if not len(result["train"].records) or not len(result["calibrate"].records):
        raise DataError(
            f"The data set has {len(result['train'].records)} images that the model was trained on and "
            f"{len(result['calibrate'].records)} that it was calibrated on. Both are needed.",
            remedy="Give the data set that the model was made from, unchanged.",
            code="not_its_data",
        )
    return result, hashes
