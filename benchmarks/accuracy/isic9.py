"""ISIC-9 by itself: trained on its own Train from ImageNet weights, scored on its official Test.

The set contradicts itself and its Test is known from its Train, so it stands here in two trainings and three tests:

- Train as it stands, or repaired (labels by the ISIC reference, contradictions out, and no picture, near copy or lesion
  of the Test);
- (a) Test as it stands, all 118 images under their given labels; (b) the Test of the repair, under corrected labels;
  (c) the images that are neither contradicted nor denied nor known from Train (picture, near copy or lesion).

A model of the Train as it stands has met a part of (a) and (b). Nothing is chosen on the Test. Each training is a run
folder and resumes where it was stopped.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import CONSOLE
from benchmarks.accuracy.protocol import INSIDE
from benchmarks.folds import train_once
from benchmarks.report import markdown
from dermlens.evaluation.bootstrap import paired_difference
from dermlens.evaluation.scores import score

TRAINS = ("as it stands", "repaired")
TESTS = {"as_it_stands": "(a) as it stands", "repaired": "(b) repaired", "clean": "(c) clean"}
METHODS: dict[str, dict[str, Any]] = {
    "head": {"fine_tune": "head", "head_epochs": 30},
    "top": {"fine_tune": "top", "cut_block": 7, "views": 6, "epochs": 8},
}
PROBE = "linear probe"
CHOICES = {"methods": tuple(METHODS)}


def run(*, data: Path, runs: Path, methods: tuple[str, ...] = tuple(METHODS)) -> dict[str, Any]:
    """Train what is not there yet, and return the figures by Train, method and test."""
    plan = make_plan(data, runs)
    for method in methods:
        for train in TRAINS:
            folder = folder_of(runs, method, train)
            train_once(folder, train_isic9, str(data), str(runs), method, train)
    return {
        train: {method: scores(folder_of(runs, method, train), method, plan) for method in methods} for train in TRAINS
    }


def folder_of(runs: Path, method: str, train: str) -> Path:
    """Return the run folder of a method on a Train."""
    return runs / f"{method}_{train.replace(' ', '_')}"


def make_plan(data: Path, runs: Path) -> list[dict[str, Any]]:
    """Audit the set once and note of each image whose training and whose test it is in; kept in `plan.json`."""
    path = runs / "plan.json"
    if path.is_file():
        plan: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return plan
    from benchmarks.audit.repair_gain import clean_test
    from dermlens.audit.embed import Embedder
    from dermlens.audit.run import run_audit
    from dermlens.data.records import lesion_groups
    from dermlens.networks.embedder import VERSION, embedder_graph

    reference, quiet = data / "isic_reference.csv", Console(file=io.StringIO())
    embedder = Embedder(embedder_graph(quiet), VERSION)
    found = run_audit(_read(data), reference=reference, embedder=embedder, console=quiet)
    records, kin = found.dataset.records, lesion_groups(found.dataset.records, found.hashes)
    tested = {kin[i] for i, record in enumerate(records) if record.split == "test"}
    near = {i for p in found.pairs for i in (p.first, p.second) if records[p.first].split != records[p.second].split}
    clean = set(clean_test(found))
    plan = []
    for i, (record, row) in enumerate(zip(records, found.repair().rows, strict=True)):
        learns = record.split == "train"
        plan.append(
            {
                "image": record.image,
                "given": record.diagnosis,
                "corrected": row.diagnosis,
                "lesion": kin[i],
                "learns_as_it_stands": learns,
                "learns_repaired": learns and row.included and kin[i] not in tested and i not in near,
                "as_it_stands": not learns,
                "repaired": not learns and row.included,
                "clean": i in clean,
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plan) + "\n", encoding="utf-8")
    return plan


def _read(data: Path) -> Any:
    from dermlens.data.manifest import read_dataset

    return read_dataset(data / "isic9", reference=data / "isic_reference.csv", frame_aspect=4 / 3)


def train_isic9(data: str, runs: str, method: str, train: str) -> None:
    """Train one method on one Train in this process; its test role is the whole official Test."""
    from dermlens.audit.findings import hash_records
    from dermlens.networks.backend import load_tensorflow
    from dermlens.training.split import assign_roles

    dataset, plan = _read(Path(data)), make_plan(Path(data), Path(runs))
    repaired = train == "repaired"
    records = [
        replace(record, split=None, diagnosis=row["corrected"] if repaired else row["given"])
        for record, row in zip(dataset.records, plan, strict=True)
        if row["learns_repaired" if repaired else "learns_as_it_stands"]
    ]
    roles = assign_roles(records, hash_records(records), fractions=INSIDE, seed=0)
    learned = [replace(record, split=role) for record, role in zip(records, roles, strict=True)]
    tested = tested_under(dataset.records, plan, {record.diagnosis for record in learned})
    load_tensorflow()
    from dermlens.training.recipe import make_recipe
    from dermlens.training.run import About
    from dermlens.training.run import train as train_model

    train_model(
        replace(dataset, records=(*learned, *tested)),
        folder_of(Path(runs), method, train),
        make_recipe(METHODS[method]),
        About(name=f"ISIC-9, {method}, Train {train}"),
        allow_leakage=not repaired,
        console=CONSOLE,
    )


def tested_under(records: Sequence[Any], plan: Sequence[Mapping[str, Any]], classes: set[str]) -> list[Any]:
    """Return the whole official Test, each image under a class that the training knows.

    The repaired Train has no seborrheic keratosis, and a training refuses a test of a class that it cannot learn. The
    labels that count are those of the plan, in `scores`.
    """
    tested = []
    for record, row in zip(records, plan, strict=True):
        if record.split == "test":
            known = [row[key] for key in ("given", "corrected") if row[key] in classes] or sorted(classes)
            tested.append(replace(record, diagnosis=known[0]))
    return tested


def scores(folder: Path, method: str, plan: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return test -> method or probe -> figures of one finished training."""
    with (folder / "test_predictions.csv").open(newline="", encoding="utf-8") as file:
        answers = {row["image"]: row for row in csv.DictReader(file)}
    learned = sorted(name[2:] for name in next(iter(answers.values())) if name.startswith("p_"))
    asked = {
        row[key] for row in plan for key, test in (("given", "as_it_stands"), ("corrected", "repaired")) if row[test]
    }
    codes = sorted({*learned, *asked})  # what the training has no image of is never answered
    result: dict[str, Any] = {}
    for test in TESTS:
        rows = [row for row in plan if row[test] and row["image"] in answers]
        truth = np.array([codes.index(row["given"] if test == "as_it_stands" else row["corrected"]) for row in rows])
        lesions = [row["lesion"] for row in rows]
        decided = {}
        result[test] = {"images": len(rows)}
        for name, kind, column in ((method, "p", "decision"), (PROBE, "q", "probe_decision")):
            chosen = [answers[row["image"]] for row in rows]
            shares = np.array([[float(row.get(f"{kind}_{code}", 0.0)) for code in codes] for row in chosen])
            decided[name] = np.array([codes.index(row[column]) for row in chosen])
            found = score(truth, shares / shares.sum(axis=1, keepdims=True), decided[name], lesions, codes)
            result[test][name] = {key: found[key] for key in ("accuracy", "balanced_accuracy", "macro_auc")}
        result[test]["minus_probe"] = paired_difference(truth, decided[method], decided[PROBE], lesions)
    return result


def table(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return a line for each Train and method (the probe once): balanced accuracy by test."""
    first = next(iter(next(iter(found.values())).values()))
    header = ["Train", "method", *(f"{name}, {first[test]['images']} images" for test, name in TESTS.items())]
    rows = []
    for train, methods in found.items():
        for name, result in [(PROBE, next(iter(methods.values()))), *methods.items()]:
            rows.append([train, name, *(result[test][name]["balanced_accuracy"] for test in TESTS)])
    return markdown(header, rows)
