"""The trust facts of a finished bundle, fitted again on the images of its training; nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console

from dermlens.audit.findings import hash_records
from dermlens.bundle.bundle import HASH_CHARS, Bundle, load_bundle, rewrite_bundle
from dermlens.data.records import Dataset, lesions
from dermlens.errors import DataError
from dermlens.evaluation.fit_trust import Labelled
from dermlens.inference.runtime import Runtime
from dermlens.reporting.progress import track
from dermlens.training.finish import trust_facts
from scripts.default_model.recipe import ABOUT, RECIPE

ROLES = ("train", "select", "calibrate", "test")


def refit_facts(folder: Path, dataset: Dataset, console: Console, *, neighbours: bool = ABOUT.neighbours) -> None:
    """Fit the trust facts of the bundle at `folder` again and replace the bundle; its network and scores stay.

    Raises:
        DataError: the images of its training are not in the data set.
        StorageError: the bundle cannot be written; it is unchanged.
    """
    bundle = load_bundle(folder)
    roles = roles_of(bundle, dataset, console)
    runtime = Runtime(bundle.graph_path)
    facts, arrays = trust_facts(bundle, runtime, roles, neighbours=neighbours, seed=RECIPE.seed, console=console)
    card = bundle.card.with_trust(facts)
    if not neighbours:
        card = msgspec.structs.replace(card, data=msgspec.structs.replace(card.data, unreadable=()))
    rewrite_bundle(folder, card, arrays)


def roles_of(bundle: Bundle, dataset: Dataset, console: Console) -> dict[str, Labelled]:
    """Return the images of the data set by the role that they have in the bundle's `seen.json`.

    Raises:
        DataError: no image has the role train, or none has the role calibrate.
    """
    seen = json.loads((bundle.folder / "seen.json").read_text(encoding="utf-8"))
    role_of = {content: role for role in ROLES for content in seen.get(role, {}).get("content_hashes", ())}
    with track("Reading and hashing", len(dataset.records), console) as advance:
        hashes = hash_records(dataset.records, progress=advance)
    numbers = lesions(dataset.records, hashes)
    found = np.array([role_of.get((digest or "")[:HASH_CHARS], "") for digest in hashes])
    labels = np.array([bundle.codes.index(r.diagnosis) if r.diagnosis in bundle.codes else -1 for r in dataset.records])
    result = {}
    for role in ROLES:
        rows = np.flatnonzero((found == role) & (labels >= 0))
        result[role] = Labelled([dataset.records[i] for i in rows], labels[rows], np.array(numbers, np.int64)[rows])
        console.print(f"{role}: {len(rows)} images", highlight=False)
    if not len(result["train"].records) or not len(result["calibrate"].records):
        raise DataError(
            f"The data set has {len(result['train'].records)} images that the model was trained on and "
            f"{len(result['calibrate'].records)} that it was calibrated on. Both are needed.",
            remedy="Give the data set that the model was made from, unchanged.",
            code="not_its_data",
        )
    return result
