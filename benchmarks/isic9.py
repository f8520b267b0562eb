"""ISIC-9 by itself: trained on its own Train from ImageNet weights, scored on its official Test. Run by `accuracy.py`.

    python benchmarks/accuracy.py --data DATA --out runs/accuracy --isic9 --methods head top

The set contradicts itself and its Test is known from its Train, so it stands here in two trainings and three tests:

- Train as it stands, or repaired (labels by the ISIC reference, contradictions out, and no picture, near copy or lesion
  of the Test);
- (a) Test as it stands, all 118 images under their given labels; (b) the Test of the repair, under corrected labels;
  (c) the images that are neither contradicted nor denied nor known from Train (picture, near copy or lesion).

A model of the Train as it stands has met a part of (a) and (b). Nothing is chosen on the Test. Each training is a run
folder in `--out/isic9` and goes on where it was stopped. Writes `isic9.json` and `isic9.md`.
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
from accuracy_table import figure_of, start_run

TRAINS = ("as it stands", "repaired")
TESTS = {"as_it_stands": "(a) as it stands", "repaired": "(b) repaired", "clean": "(c) clean"}
METHODS: dict[str, dict[str, Any]] = {
    "head": {"fine_tune": "head", "head_epochs": 30},
    "top": {"fine_tune": "top", "cut_block": 7, "views": 6, "epochs": 8},
}
INSIDE = {"train": 0.83, "select": 0.07, "calibrate": 0.10}


def folder_of(out: Path, method: str, train: str) -> Path:
    return out / "isic9" / f"{method}, Train {train}".replace(" ", "_").replace(",", "")


def make_plan(data: Path, out: Path) -> list[dict[str, Any]]:
    """Audit the set once and note of each image whose training and whose test it is in; kept in `isic9/plan.json`."""
    path = out / "isic9" / "plan.json"
    if path.is_file():
        return json.loads(path.read_text())
    from repair_gain import clean_test  # beside this file
    from rich.console import Console

    from dermlens.audit.embed import Embedder
    from dermlens.audit.run import run_audit
    from dermlens.data.records import lesion_groups
    from dermlens.networks.embedder import VERSION, embedder_graph

    reference, quiet = data / "isic_reference.csv", Console(file=io.StringIO())
    embedder = Embedder(embedder_graph(quiet), VERSION)
    found = run_audit(read(data), reference=reference, cache=out / "isic9" / "audit", embedder=embedder, console=quiet)
    records, kin = found.dataset.records, lesion_groups(found.dataset.records, found.hashes)
    tested = {kin[i] for i, record in enumerate(records) if record.split == "test"}
    near = {i for pair in found.pairs for i in (pair.first, pair.second) if crosses(records, pair.first, pair.second)}
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
    path.write_text(json.dumps(plan) + "\n")
    return plan


def crosses(records: Sequence[Any], first: int, second: int) -> bool:
    return records[first].split != records[second].split


def read(data: Path) -> Any:
    from dermlens.data.manifest import read_dataset

    return read_dataset(data / "isic9", reference=data / "isic_reference.csv", frame_aspect=4 / 3)


def run_isic9(data: Path, out: Path, method: str, train: str) -> None:
    """Train one method on one Train in this process; its test role is the whole official Test."""
    from rich.console import Console

    from dermlens.audit.findings import hash_records
    from dermlens.networks.backend import load_tensorflow
    from dermlens.training.split import assign_roles

    dataset, plan = read(data), make_plan(data, out)
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
        folder_of(out, method, train),
        make_recipe(METHODS[method]),
        About(name=f"ISIC-9, {method}, Train {train}"),
        allow_leakage=not repaired,
        console=Console(width=140),
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


def scores(out: Path, method: str, train: str, plan: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return test -> method or probe -> figures of one finished training."""
    from dermlens.evaluation.bootstrap import paired_difference
    from dermlens.evaluation.scores import score

    folder = folder_of(out, method, train)
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
        for name, kind, column in ((method, "p", "decision"), ("linear probe", "q", "probe_decision")):
            chosen = [answers[row["image"]] for row in rows]
            shares = np.array([[float(row.get(f"{kind}_{code}", 0.0)) for code in codes] for row in chosen])
            decided[name] = np.array([codes.index(row[column]) for row in chosen])
            found = score(truth, shares / shares.sum(axis=1, keepdims=True), decided[name], lesions, codes)
            result[test][name] = {key: found[key] for key in ("accuracy", "balanced_accuracy", "macro_auc")}
        result[test]["minus_probe"] = paired_difference(truth, decided[method], decided["linear probe"], lesions)
    return result


def write_isic9(out: Path) -> list[str]:
    """Write what the finished trainings show and return the lines of the table."""
    plan_file = out / "isic9" / "plan.json"
    if not plan_file.is_file():
        return []
    plan = json.loads(plan_file.read_text())
    found = {
        train: {
            method: scores(out, method, train, plan)
            for method in METHODS
            if (folder_of(out, method, train) / "test_predictions.csv").is_file()
        }
        for train in TRAINS
    }
    lines = table(found)
    (out / "isic9.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "isic9.md").write_text("\n".join(lines) + "\n")
    return lines


def table(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Return the Markdown table: a line for each Train and method (the probe once), accuracy and balanced by test."""
    header = ["Train", "method"]
    for test, name in TESTS.items():
        images = next((s[test]["images"] for methods in found.values() for s in methods.values()), 0)
        header += [f"{name}, {images} images: accuracy", "balanced accuracy"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for train, methods in found.items():
        rows = [("linear probe", next(iter(methods.values())))] if methods else []
        for name, result in [*rows, *methods.items()]:
            cells = [
                figure_of(result[test][name][measure])
                for test in TESTS
                for measure in ("accuracy", "balanced_accuracy")
            ]
            lines.append(f"| {train} | {name} | " + " | ".join(cells) + " |")
    return lines


lines = table  # as the documents' test calls what each benchmark puts into them


def run_all(options: Any, script: Path) -> None:
    """Run what is asked for and not there yet, each training in a process of its own, and print the table."""
    make_plan(options.data, options.out)
    for method in [name for name in options.methods if name in METHODS]:
        for train in TRAINS:
            folder = folder_of(options.out, method, train)
            command = ["--data", str(options.data), "--out", str(options.out), "--one-isic9", method, train]
            start_run(folder, script, command, f"ISIC-9, {method}, Train {train}")
