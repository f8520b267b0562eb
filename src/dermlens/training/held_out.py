"""The baselines of a finished bundle that came without them: the probe is fitted again on the images of its training.

The bundle remembers which images had which role, and its recipe which weights it started from; so the frozen features
and the probe can be made again. What the refitted probe reaches is compared with what the card says of the first one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console

from dermlens.audit.findings import hash_records
from dermlens.bundle.bundle import HASH_CHARS, Bundle
from dermlens.data.records import Record
from dermlens.errors import DataError
from dermlens.evaluation.baselines import HeldOut
from dermlens.evaluation.fit_trust import Labelled
from dermlens.evaluation.metrics import balanced_accuracy_score
from dermlens.inference.predictor import Predictor
from dermlens.training.probe import STRENGTHS, fit_probe
from dermlens.training.recipe import make_recipe

NEEDED = ("train", "select", "test")
SLACK = 0.02  # other versions of the packages round otherwise


def refit_baselines(bundle: Bundle, roles: Mapping[str, Labelled], console: Console) -> HeldOut:
    """Fit the probe again and return what it and the model say of the test role.

    Args:
        roles: of "train", "select" and "test".

    Raises:
        DataError: images of these roles are missing, or the probe is another one than that of the training.
        RecipeError, WeightsError: the network cannot be built as it was before training.
    """
    missing = [role for role in NEEDED if not len(roles[role].records)]
    if missing:
        raise DataError(
            f"The data hold no images of the role {', '.join(missing)}. The probe needs {', '.join(NEEDED)}.",
            remedy="Give the data set that the model was made from, unchanged.",
            code="not_its_data",
        )
    test = roles["test"]
    records = [record for role in NEEDED for record in roles[role].records]
    ends = np.cumsum([len(roles[role].records) for role in NEEDED])
    train, select, tested = np.split(_embeddings(bundle, records, console), ends[:-1])
    console.print("Fitting the linear probe ...", highlight=False)
    chosen = bundle.card["probe"]["regularisation_c"]  # stronger fits were tried after it and were no better
    strengths = [strength for strength in STRENGTHS if strength <= chosen] or STRENGTHS
    parts = ((train, roles["train"].y_true), (select, roles["select"].y_true))
    fitted = fit_probe(*parts, len(bundle.codes), strengths)
    probe = fitted.probabilities(tested).argmax(axis=1)
    _check(bundle.card, test.y_true, probe, console)
    return HeldOut(
        hashes=tuple(str(digest)[:HASH_CHARS] for digest in hash_records(test.records)),
        lesions=test.lesions,
        truth=test.y_true,
        model=_decisions(bundle, test.records),
        probe=probe,
        majority=int(np.bincount(roles["train"].y_true).argmax()),
        source="refit",
    )


def _embeddings(bundle: Bundle, records: Sequence[Record], console: Console) -> np.ndarray:
    """Return the embeddings of the network as it was before training, float32 (n, d)."""
    from dermlens.networks.backend import load_tensorflow

    load_tensorflow()
    from dermlens.inference.runtime import batch_for, compile_graph
    from dermlens.networks.openvino import to_openvino
    from dermlens.training.features import plain_outputs
    from dermlens.training.network import open_backbone, with_head

    spec = bundle.input_spec
    recipe = replace(
        make_recipe(bundle.card["recipe"]),
        size_px=spec.size_px,
        framing=spec.framing,
        fine_tune="head",  # what is trained makes no difference before training
        cut_block=1,
        batch_norm="frozen",
        precision="float32",
    )
    stem = open_backbone(recipe)
    whole = with_head(stem, recipe, len(bundle.codes)).whole
    compiled = compile_graph(to_openvino(whole), batch=batch_for(recipe.size_px))
    return plain_outputs(compiled, records, stem.spec, output=1, console=console, what="Frozen features")


def _decisions(bundle: Bundle, records: Sequence[Record]) -> np.ndarray:
    answers = Predictor(bundle.folder).predict_many(
        [record.path for record in records], frame_aspects=[record.frame_aspect for record in records]
    )
    return np.array([bundle.codes.index(answer.diagnosis_code or "") for answer in answers])


def _check(card: Mapping[str, Any], truth: np.ndarray, probe: np.ndarray, console: Console) -> None:
    before, now = card["probe"]["balanced_accuracy"]["value"], balanced_accuracy_score(truth, probe)
    console.print(
        f"The refitted probe reaches a balanced accuracy of {now:.3f}, that of the training reached {before:.3f}.",
        highlight=False,
    )
    if abs(now - before) > SLACK:
        raise DataError(
            f"The refitted probe reaches {now:.3f}, that of the training reached {before:.3f}: it is another one.",
            remedy="Give the data set that the model was made from, unchanged, read in the same way; "
            "or train the model again.",
            code="another_probe",
        )
