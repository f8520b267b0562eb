"""The nearest training lesions of the embedded model: are they those of the whole embedding, and do they agree with it?

    DERMLENS_DATA=/path/to/data python benchmarks/nearest_examples.py [--out DIR] [--seed 0]

For each image of a test lesion: how many of the five training lesions that the index of 64 float16 numbers finds are
among the five that the whole embedding finds; whether the nearest one has the true diagnosis; and how many of the five
have the diagnosis that the model gives, apart for right and for wrong answers. Intervals: 95 %, from a bootstrap over
lesions within their diagnosis.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from embedded import embedded_roles
from rich.console import Console

from dermlens.bundle.bundle import MODELS_DIR, load_bundle
from dermlens.bundle.nearest import place_of
from dermlens.bundle.novelty import normalised
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import resample_weights, sampled_figure
from dermlens.evaluation.fit_trust import Labelled, first_of_lesion, index_of, look
from dermlens.inference.runtime import Runtime
from dermlens.text import figure

K = 5
RESAMPLES = 1000


def nearest_rows(places: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return the rows of the K most similar places of each query, (m, K); all of length 1."""
    return np.argsort(-(queries @ places.T), axis=1, kind="stable")[:, :K]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/nearest_examples"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console = Console(stderr=True, width=120)
    bundle = load_bundle(MODELS_DIR / "default")
    runtime = Runtime(bundle.graph_path)
    roles = embedded_roles(bundle, console)
    known, rows = roles["train"], first_of_lesion(roles["train"].lesions)
    part = Labelled([known.records[i] for i in rows], known.y_true[rows], known.lesions[rows])
    train = look(bundle, runtime, part, console, "train")
    test = look(bundle, runtime, roles["test"], console, "test")
    index = index_of(train.embedding, train.y_true, list(part.records), bundle.codes)
    small = nearest_rows(index.places.astype(np.float64), place_of(test.embedding, index.mean, index.components))
    mean = normalised(train.embedding).mean(0)
    whole, queries = (normalised(normalised(e) - mean) for e in (train.embedding, test.embedding))
    full = nearest_rows(whole, queries)
    lesions = np.unique(test.lesions, return_inverse=True)[1].astype(np.int64)
    weights = np.concatenate(
        [np.ones((1, len(lesions))), *resample_weights(test.y_true, lesions, resamples=RESAMPLES, seed=options.seed)]
    )

    def share(values: np.ndarray, among: np.ndarray | None = None) -> dict[str, Any]:
        found = metrics.mean_loss(values.astype(np.float64), weights if among is None else weights * among)
        return sampled_figure(found, reason="no images")

    right = test.decision == test.y_true
    called = train.y_true[small]
    figures = {
        "of the five, also among the five of the whole embedding": share(
            np.array([len(set(a) & set(b)) / K for a, b in zip(small, full, strict=True)])
        ),
        "nearest one has the true diagnosis": share(called[:, 0] == test.y_true),
        "the model's answer is right": share(right),
        "of the five, with the model's diagnosis, right answers": share(
            (called == test.decision[:, None]).mean(1), right
        ),
        "of the five, with the model's diagnosis, wrong answers": share(
            (called == test.decision[:, None]).mean(1), ~right
        ),
    }
    report = {
        "model": {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256},
        "seed": options.seed,
        "training_lesions": len(train.y_true),
        "test_images": len(lesions),
        "test_lesions": int(lesions.max()) + 1,
        "figures": figures,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "nearest_examples.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{len(train.y_true)} training lesions; {len(lesions)} test images of {lesions.max() + 1} lesions")
    for name, row in figures.items():
        print(f"| {name} | {figure(row)} |")


if __name__ == "__main__":
    main()
