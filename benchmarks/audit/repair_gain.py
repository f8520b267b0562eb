"""What a repair gains: the nine-class ISIC set as it is beside its repaired list, same recipe, seeds and clean test.

The recipe is a linear head on frozen ImageNet Lite0 embeddings (a logistic regression, its strength chosen by balanced
accuracy on a fifth of the training lesions, drawn by seed, and then fitted on all). The repair is the audit's, with
the reference. Both models are scored on the test images that stand under one diagnosis only, that the reference does
not deny, and whose picture, lesion and near duplicates are not in Train. A second test, of other images: HAM10000
lesions that are not in ISIC-9. There benign keratosis is one class, so that "seborrheic keratosis" is a right answer
for it, too; classes with fewer than 20 lesions there are left out, since one lesion would weigh as much as a thousand
of another class. Intervals: 95 %, from a bootstrap over lesions within their class, both models on the same lesions,
over the mean of the seeds.
"""

from __future__ import annotations

import io
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from benchmarks import CONSOLE
from benchmarks.report import markdown
from dermlens.audit.embed import Embedder, embed
from dermlens.audit.facts import read_facts
from dermlens.audit.labels import contradictions
from dermlens.audit.run import run_audit
from dermlens.audit.verdict import Audit
from dermlens.data.manifest import read_dataset
from dermlens.data.records import Record, lesion_groups, picture_groups
from dermlens.evaluation.bootstrap import lesion_index, resample_weights
from dermlens.networks.embedder import VERSION, embedder_graph

STRENGTHS = (0.0003, 0.001, 0.003, 0.01)
ROUNDS = 5000
MIN_LESIONS = 20
MEASURES = ("accuracy", "balanced accuracy")
SIDES = ("as it is", "repaired", "difference")


def run(*, data: Path, seeds: int = 5) -> dict[str, Any]:
    """Return accuracy and balanced accuracy of both models on both tests, and the differences in pairs."""
    reference = data / "isic_reference.csv"
    embedder = Embedder(embedder_graph(CONSOLE), VERSION)
    dataset = read_dataset(data / "isic9", reference=reference, frame_aspect=4 / 3)
    quiet = Console(file=io.StringIO())
    found = run_audit(dataset, reference=reference, embedder=embedder, console=quiet)
    vectors = embed(dataset.records, found.facts, embedder)[0].astype(np.float32)
    lesions = np.array(lesion_groups(dataset.records, found.hashes))
    given = np.array([r.diagnosis for r in dataset.records])
    rows = found.repair().rows
    corrected = np.array([row.diagnosis for row in rows])
    learned = np.array([r.split == "train" for r in dataset.records])
    used = learned & np.array([row.included for row in rows])
    test = np.array(clean_test(found))
    tests = {
        "clean test images of ISIC-9": Images(vectors[test], given[test], lesions[test]),
        "HAM10000 lesions that are not in ISIC-9": _others(
            data, dataset.records, embedder, set(corrected[used].tolist())
        ),
    }
    as_is = _right(Images(vectors[learned], given[learned], lesions[learned]), list(tests.values()), seeds)
    repaired = _right(Images(vectors[used], corrected[used], lesions[used]), list(tests.values()), seeds)
    return {
        "training_images": {"as it is": int(learned.sum()), "repaired": int(used.sum())},
        "seeds": seeds,
        "tests": {
            name: _compared(images, *hits) for (name, images), *hits in zip(tests.items(), as_is, repaired, strict=True)
        },
    }


@dataclass(frozen=True)
class Images:
    """Embeddings with diagnoses and lesion numbers, row by row; `same` names answers that count as another."""

    vectors: np.ndarray
    labels: np.ndarray
    lesions: np.ndarray
    same: dict[str, str] = field(default_factory=dict)


def _fit(train: Images, seed: int) -> tuple[StandardScaler, LogisticRegression]:
    """Fit the head; the strength is chosen on lesions left out, and the head fitted again on all."""
    rng = np.random.default_rng(seed)
    every = np.unique(train.lesions)
    left_out = np.isin(train.lesions, rng.choice(every, len(every) // 5, replace=False))
    scores_of = {}
    for strength in STRENGTHS:
        scaler, head = _fit_head(train.vectors[~left_out], train.labels[~left_out], strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            answers = head.predict(scaler.transform(train.vectors[left_out]))
            scores_of[strength] = float(balanced_accuracy_score(train.labels[left_out], answers))
    return _fit_head(train.vectors, train.labels, max(STRENGTHS, key=scores_of.__getitem__))


def _fit_head(vectors: np.ndarray, labels: np.ndarray, strength: float) -> tuple[StandardScaler, LogisticRegression]:
    scaler = StandardScaler().fit(vectors)
    head = LogisticRegression(C=strength, class_weight="balanced", max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        head.fit(scaler.transform(vectors), labels)
    return scaler, head


def _right(train: Images, tests: list[Images], seeds: int) -> list[np.ndarray]:
    """Return for each test how often each image is classified rightly, averaged over the seeds."""
    hits = [np.zeros(len(test.labels)) for test in tests]
    for seed in range(seeds):
        with threadpool_limits(1):
            scaler, head = _fit(train, seed)
        for hit, test in zip(hits, tests, strict=True):
            answers = head.predict(scaler.transform(test.vectors))
            hit += np.array([test.same.get(code, code) for code in answers]) == test.labels
    return [hit / seeds for hit in hits]


def _scores(hit: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return accuracy and balanced accuracy over the classes that have weight."""
    shares = [
        float((hit * weights)[labels == code].sum() / weights[labels == code].sum())
        for code in np.unique(labels)
        if weights[labels == code].sum()
    ]
    return float((hit * weights).sum() / weights.sum()), float(np.mean(shares))


def _compared(test: Images, as_is: np.ndarray, repaired: np.ndarray) -> dict[str, Any]:
    """Return both models and their difference, with paired intervals."""
    classes = np.unique(test.labels, return_inverse=True)[1]
    lesions = lesion_index(test.lesions.tolist(), len(test.labels))

    def figures(weights: np.ndarray) -> list[float]:
        one, other = _scores(as_is, test.labels, weights), _scores(repaired, test.labels, weights)
        return [*one, *other, other[0] - one[0], other[1] - one[1]]

    blocks = resample_weights(classes, lesions, resamples=ROUNDS, seed=0)
    drawn = [figures(weights) for block in blocks for weights in block]
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0).tolist()
    cells = [
        {"value": value, "low": a, "high": b}
        for value, a, b in zip(figures(np.ones(len(lesions))), low, high, strict=True)
    ]
    counts = dict(zip(*(part.tolist() for part in np.unique(test.labels, return_counts=True)), strict=True))
    found = {measure: dict(zip(SIDES, cells[place::2], strict=True)) for place, measure in enumerate(MEASURES)}
    return {"images": len(lesions), "lesions": int(lesions.max()) + 1, "classes": counts, **found}


def clean_test(found: Audit) -> list[int]:
    """Return the test images that are neither contradicted nor denied nor known from Train."""
    records, hashes = found.dataset.records, found.hashes
    pictures = picture_groups(records, hashes)
    spoiled = {pictures[i] for group in contradictions(records, pictures) for i in group}
    kin = lesion_groups(records, hashes)
    learned = {kin[i] for i, r in enumerate(records) if r.split == "train"}
    near = {i for p in found.pairs for i in (p.first, p.second) if records[p.first].split != records[p.second].split}
    rows = found.repair().rows
    return [
        i
        for i, r in enumerate(records)
        if r.split == "test" and pictures[i] not in spoiled and kin[i] not in learned and i not in near
        if rows[i].included and rows[i].diagnosis == r.diagnosis
    ]


def _code_of(record: Record) -> str:
    """Return the diagnosis under the name that ISIC-9 has for it."""
    return "PBK" if record.diagnosis == "BKL" else record.diagnosis


def _others(data: Path, own: tuple[Record, ...], embedder: Embedder, codes: set[str]) -> Images:
    """Return HAM10000 images of lesions that are not in ISIC-9, under the reference's diagnoses."""
    reference = data / "isic_reference.csv"
    dataset = read_dataset(data / "ham10000", reference=reference, task="isic2019")
    lesions, pictures = {r.lesion_id for r in own}, {r.isic_id for r in own}
    kept = [
        r
        for r in dataset.records
        if r.lesion_id not in lesions
        and r.isic_id not in pictures
        and r.source == "images_224"
        and _code_of(r) in codes
    ]
    lesions_of: defaultdict[str, set[str | None]] = defaultdict(set)
    for r in kept:
        lesions_of[_code_of(r)].add(r.lesion_id)
    kept = [r for r in kept if len(lesions_of[_code_of(r)]) >= MIN_LESIONS]
    facts = read_facts(kept)
    numbers = lesion_groups(kept, [fact.sha256 for fact in facts])
    vectors, _ = embed(kept, facts, embedder)
    return Images(vectors.astype(np.float32), np.array([_code_of(r) for r in kept]), np.array(numbers), {"SK": "PBK"})


def table(found: Mapping[str, Any]) -> str:
    """Return two lines for each test."""
    rows = [
        [f"{name}: {test['images']:,} of {test['lesions']:,} lesions", measure, *test[measure].values()]
        for name, test in found["tests"].items()
        for measure in MEASURES
    ]
    images = found["training_images"]
    header = ["test", "", *(f"{side}, {images[side]:,} images" if side in images else side for side in SIDES)]
    return markdown(header, rows)
