"""What a repair gains: the 9-class ISIC set as it is beside its repaired list, same recipe and seeds, same clean test.

    DERMLENS_DATA=/path/to/data python benchmarks/repair_gain.py [--seeds 5]

The recipe is a linear head on frozen ImageNet Lite0 embeddings (a logistic regression, its strength chosen by balanced
accuracy on a fifth of the training lesions, drawn by seed, and then fitted on all). The repair is the audit's, with
the reference. Both models are scored on the test images that stand under one diagnosis only, that the reference does
not deny, and whose picture, lesion and near duplicates are not in Train. A second test, of other images: HAM10000
lesions that are not in ISIC-9. There benign keratosis is one class, so that "seborrheic keratosis" is a right answer
for it, too; classes with fewer than 20 lesions there are left out, since one lesion would weigh as much as a thousand
of another class.
Intervals: 95 %, from a bootstrap over lesions within their class (`evaluation/bootstrap.py`), both models on the same
lesions, over the mean of the seeds.
"""

from __future__ import annotations

import argparse
import io
import os
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from dermlens.audit.embed import Embedder, embed
from dermlens.audit.facts import read_facts
from dermlens.audit.labels import contradictions
from dermlens.audit.run import Audit, run_audit
from dermlens.data.manifest import read_dataset
from dermlens.data.records import Record, lesion_groups, picture_groups
from dermlens.evaluation.bootstrap import lesion_index, resample_weights
from dermlens.networks.embedder import VERSION, embedder_graph

STRENGTHS = (0.0003, 0.001, 0.003, 0.01)
ROUNDS = 5000
MIN_LESIONS = 20


@dataclass(frozen=True)
class Images:
    """Embeddings with diagnoses and lesion numbers, row by row; `same` names answers that count as another."""

    vectors: np.ndarray
    labels: np.ndarray
    lesions: np.ndarray
    same: dict[str, str] = field(default_factory=dict)


def fit(train: Images, seed: int) -> tuple[StandardScaler, LogisticRegression]:
    """Fit the head; the strength is chosen on lesions left out, and the head fitted again on all."""
    rng = np.random.default_rng(seed)
    every = np.unique(train.lesions)
    held = np.isin(train.lesions, rng.choice(every, len(every) // 5, replace=False))
    scores_of = {}
    for strength in STRENGTHS:
        scaler, head = fit_head(train.vectors[~held], train.labels[~held], strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            told = head.predict(scaler.transform(train.vectors[held]))
            scores_of[strength] = float(balanced_accuracy_score(train.labels[held], told))
    return fit_head(train.vectors, train.labels, max(STRENGTHS, key=scores_of.__getitem__))


def fit_head(vectors: np.ndarray, labels: np.ndarray, strength: float) -> tuple[StandardScaler, LogisticRegression]:
    scaler = StandardScaler().fit(vectors)
    head = LogisticRegression(C=strength, class_weight="balanced", max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        head.fit(scaler.transform(vectors), labels)
    return scaler, head


def right(train: Images, tests: list[Images], seeds: int) -> list[np.ndarray]:
    """Return for each test how often each image is told rightly, averaged over the seeds."""
    hits = [np.zeros(len(test.labels)) for test in tests]
    for seed in range(seeds):
        with threadpool_limits(1):
            scaler, head = fit(train, seed)
        for hit, test in zip(hits, tests, strict=True):
            told = head.predict(scaler.transform(test.vectors))
            hit += np.array([test.same.get(code, code) for code in told]) == test.labels
    return [hit / seeds for hit in hits]


def scores(hit: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return accuracy and balanced accuracy over the classes that have weight."""
    shares = [
        float((hit * weights)[labels == code].sum() / weights[labels == code].sum())
        for code in np.unique(labels)
        if weights[labels == code].sum()
    ]
    return float((hit * weights).sum() / weights.sum()), float(np.mean(shares))


def table(name: str, test: Images, as_is: np.ndarray, repaired: np.ndarray) -> None:
    """Print both models and their difference, with paired intervals."""
    classes = np.unique(test.labels, return_inverse=True)[1]
    lesions = lesion_index(test.lesions.tolist(), len(test.labels))
    rows = []
    for block in resample_weights(classes, lesions, resamples=ROUNDS, seed=0):
        for weights in block:
            one, other = scores(as_is, test.labels, weights), scores(repaired, test.labels, weights)
            rows.append([*one, *other, other[0] - one[0], other[1] - one[1]])
    ones = np.ones(len(lesions))
    one, other = scores(as_is, test.labels, ones), scores(repaired, test.labels, ones)
    figures = [*one, *other, other[0] - one[0], other[1] - one[1]]
    low, high = np.percentile(rows, (2.5, 97.5), axis=0)
    told = ", ".join(f"{code} {n}" for code, n in zip(*np.unique(test.labels, return_counts=True), strict=True))
    print(f"{name}: {len(lesions)} images of {lesions.max() + 1} lesions, {classes.max() + 1} classes ({told})\n")
    print("| | as it is | repaired | difference |\n|---|---|---|---|")
    for what, columns in (("accuracy", (0, 2, 4)), ("balanced accuracy", (1, 3, 5))):
        cells = [f"{figures[c]:.3f} [{low[c]:.3f}, {high[c]:.3f}]" for c in columns]
        print(f"| {what} | {' | '.join(cells)} |")
    print()


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


def code_of(record: Record) -> str:
    """Return the diagnosis under the name that ISIC-9 has for it."""
    return "PBK" if record.diagnosis == "BKL" else record.diagnosis


def others(data: Path, own: tuple[Record, ...], graph: Path, codes: set[str]) -> Images:
    """Return HAM10000 images of lesions that are not in ISIC-9, under the reference's diagnoses."""
    reference = data / "isic_reference.csv"
    dataset = read_dataset(data / "ham10000", reference=reference, task="isic2019")
    lesions, pictures = {r.lesion_id for r in own}, {r.isic_id for r in own}
    kept = [
        r
        for r in dataset.records
        if r.lesion_id not in lesions and r.isic_id not in pictures and r.source == "images_224" and code_of(r) in codes
    ]
    lesions_of: defaultdict[str, set[str | None]] = defaultdict(set)
    for r in kept:
        lesions_of[code_of(r)].add(r.lesion_id)
    kept = [r for r in kept if len(lesions_of[code_of(r)]) >= MIN_LESIONS]
    facts = read_facts(kept)
    numbers = lesion_groups(kept, [fact.sha256 for fact in facts])
    vectors, _ = embed(kept, facts, graph)
    return Images(vectors.astype(np.float32), np.array([code_of(r) for r in kept]), np.array(numbers), {"SK": "PBK"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cache", type=Path, help="the cache folder of an audit of ISIC-9, to save time")
    options = parser.parse_args()
    folder = os.environ.get("DERMLENS_DATA")
    if not folder:
        print("Not run: it needs DERMLENS_DATA, the folder with isic9/, ham10000/ and isic_reference.csv.")
        return
    data = Path(folder)
    reference = data / "isic_reference.csv"
    embedder = Embedder(embedder_graph(Console(stderr=True)), VERSION)
    dataset = read_dataset(data / "isic9", reference=reference, frame_aspect=4 / 3)
    quiet = Console(file=io.StringIO())
    found = run_audit(dataset, reference=reference, cache=options.cache, embedder=embedder, console=quiet)
    vectors = embed(dataset.records, found.facts, embedder.graph)[0].astype(np.float32)
    lesions = np.array(lesion_groups(dataset.records, found.hashes))
    given = np.array([r.diagnosis for r in dataset.records])
    rows = found.repair().rows
    corrected = np.array([row.diagnosis for row in rows])
    learned = np.array([r.split == "train" for r in dataset.records])
    used = learned & np.array([row.included for row in rows])
    test = np.array(clean_test(found))
    whole = Images(vectors[learned], given[learned], lesions[learned])
    repaired = Images(vectors[used], corrected[used], lesions[used])
    tests = [
        Images(vectors[test], given[test], lesions[test]),
        others(data, dataset.records, embedder.graph, set(corrected[used].tolist())),
    ]
    print(f"As it is {learned.sum()} training images, repaired {used.sum()}; seeds 0 to {options.seeds - 1}.\n")
    results = zip(
        ("Clean test images of ISIC-9", "HAM10000 lesions that are not in ISIC-9"),
        tests,
        right(whole, tests, options.seeds),
        right(repaired, tests, options.seeds),
        strict=True,
    )
    for name, images, as_is, after in results:
        table(name, images, as_is, after)


if __name__ == "__main__":
    main()
