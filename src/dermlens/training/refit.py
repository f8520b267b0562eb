"""Fit what a bundle knows of its own limits, on a bundle that is finished; nothing is trained again.

    python -m dermlens.training.refit MODEL --data DATA [--images DIR] [--reference CSV] [--frame-aspect W/H]
                                      [--no-neighbours] [--calibrate]
    python -m dermlens.training.refit default --data DATA --as-default [--only-baselines]

A bundle that was made before the linear probe's test predictions were kept gets them too: the probe is fitted again.
MODEL is a run folder, a bundle folder or an embedded name. DATA holds the images that it was trained from; the roles
they had are read from the bundle's `seen.json` by content. `--as-default` reads DATA as `default_model` does. The
bundle then also names its training lesions (`predict --neighbours`); `--no-neighbours` leaves their names out.
`--calibrate` first fits temperature and biases again, and measures the test role with them (`recalibrate.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from dermlens.audit.findings import hash_records
from dermlens.bundle.bundle import (
    HASH_CHARS,
    Bundle,
    add_baselines,
    add_trust,
    copy_bundle,
    find_bundle,
    load_bundle,
)
from dermlens.bundle.card_text import model_card
from dermlens.data.manifest import read_dataset
from dermlens.data.records import Dataset, lesions
from dermlens.errors import DataError, DermlensError
from dermlens.evaluation.baselines import compare_held_out, read_held_out
from dermlens.evaluation.fit_trust import Labelled, fit_examples, fit_trust
from dermlens.reporting.progress import track

ROLES = ("train", "select", "calibrate", "test")


def refit(
    folder: Path,
    roles: dict[str, Labelled],
    *,
    seed: int,
    console: Console,
    neighbours: bool = True,
) -> Path:
    """Fit the trust facts of the bundle at `folder` and write them into it, with its card.

    Args:
        neighbours: also keep the names of the training lesions and where they lie; otherwise no image is named.

    Raises:
        StorageError: it cannot be written; the bundle is untouched.
    """
    started = time.monotonic()
    bundle = load_bundle(folder)
    facts, arrays = fit_trust(bundle, roles, seed=seed, console=console)
    examples = fit_examples(bundle, roles["train"], seed=seed, console=console) if neighbours else None
    facts["neighbours"] = None if examples is None else {"lesions": len(examples.places)}
    facts["fitted_in_s"] = round(time.monotonic() - started, 1)
    card = {**bundle.card, "trust": facts}
    if not neighbours:
        card["data"] = {**card["data"], "unreadable": []}
    add_trust(folder, card, arrays, model_card(card), examples)
    return folder


def complete(folder: Path, roles: dict[str, Labelled], *, seed: int, console: Console) -> bool:
    """Give a bundle the baselines that it lacks; say why where they cannot be made.

    Returns:
        True when the bundle has them now.

    Raises:
        StorageError: they cannot be written; the bundle is untouched.
    """
    from dermlens.training.held_out import refit_baselines

    bundle = load_bundle(folder)
    if read_held_out(bundle) is not None:
        return True
    try:
        held = refit_baselines(bundle, roles, console)
    except (DermlensError, KeyError) as error:
        why = f"the card has no {error}" if isinstance(error, KeyError) else str(error)
        console.print(f"No linear probe to compare with: {why}", style="yellow", highlight=False, soft_wrap=True)
        return False
    card = {**bundle.card, "baselines": compare_held_out(held, bundle.codes, seed=seed)}
    add_baselines(folder, card, held.arrays(), model_card(card))
    return True


def roles_of(bundle: Bundle, dataset: Dataset, console: Console) -> dict[str, Labelled]:
    """Find the images of the data set in the bundle's `seen.json`.

    Raises:
        DataError: the images of the train or the calibrate role are not there.
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
            f"The data hold {len(result['train'].records)} images that the model was trained on and "
            f"{len(result['calibrate'].records)} that it was calibrated on. Both are needed.",
            remedy="Give the data set that the model was made from, unchanged.",
            code="not_its_data",
        )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--frame-aspect", type=float)
    parser.add_argument("--as-default", action="store_true", help="read DATA as the embedded model's data set")
    parser.add_argument("--no-neighbours", action="store_true", help="keep no names of training images")
    parser.add_argument("--only-baselines", action="store_true", help="leave the trust facts as they are")
    parser.add_argument("--calibrate", action="store_true", help="fit temperature and biases again")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.calibrate and options.only_baselines:
        parser.error("--calibrate changes the trust facts: leave --only-baselines out")
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 140)
    try:
        bundle = load_bundle(find_bundle(options.model))
        dataset = _dataset(options, console)
        roles = roles_of(bundle, dataset, console)
        whole = complete(bundle.folder, roles, seed=options.seed, console=console)
        if not options.only_baselines:
            _refit(bundle, roles, options, console)
        elif not whole:
            return 2
    except DermlensError as error:
        console.print(f"Error: {error}", style="red", highlight=False)
        return 2
    console.print(f"Fitted: {bundle.folder}", highlight=False)
    return 0


def _refit(bundle: Bundle, roles: dict[str, Labelled], options: argparse.Namespace, console: Console) -> None:
    """Work on a copy, so that a bundle never has new probabilities and old thresholds."""
    with tempfile.TemporaryDirectory(prefix="dermlens-refit-") as place:
        copy = Path(place) / "bundle"
        copy_bundle(bundle.folder, copy)
        if options.calibrate:
            from dermlens.training.recalibrate import recalibrate

            recalibrate(copy, roles, seed=options.seed, console=console)
        kept = not options.no_neighbours
        refit(copy, roles, seed=options.seed, console=console, neighbours=kept)
        copy_bundle(copy, bundle.folder)


def _dataset(options: argparse.Namespace, console: Console) -> Dataset:
    if options.as_default:
        from dermlens.training.default_model import default_dataset

        return default_dataset(options.data, console)
    return read_dataset(
        options.data, images=options.images, reference=options.reference, frame_aspect=options.frame_aspect
    )


if __name__ == "__main__":
    raise SystemExit(main())
