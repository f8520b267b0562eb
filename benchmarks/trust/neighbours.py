"""The nearest training lesions of the embedded model: are they those of the whole embedding, and do they agree with it?

For each image of a test lesion: how many of the five training lesions that the index of 64 float16 numbers finds are
among the five that the whole embedding finds; whether the nearest one has the true diagnosis; and how many of the five
have the diagnosis that the model gives, apart for right and for wrong answers. Intervals: 95 %, from a bootstrap over
lesions within their diagnosis.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import CONSOLE
from benchmarks.report import markdown, model_of
from benchmarks.roles import embedded_bundle, embedded_roles
from dermlens.bundle.nearest import place_of
from dermlens.bundle.novelty import normalised
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import resample_weights, sampled_figure
from dermlens.evaluation.fit_trust import Labelled, first_of_lesion, index_of, run_model
from dermlens.inference.runtime import Runtime

K = 5
RESAMPLES = 1000


def run(*, data: Path, seed: int = 0) -> dict[str, Any]:
    """Return the shares of the test images."""
    bundle = embedded_bundle()
    runtime = Runtime(bundle.graph_path)
    roles = embedded_roles(bundle, data)
    known, rows = roles["train"], first_of_lesion(roles["train"].lesions)
    part = Labelled([known.records[i] for i in rows], known.y_true[rows], known.lesions[rows])
    train = run_model(bundle, runtime, part, CONSOLE, "train")
    test = run_model(bundle, runtime, roles["test"], CONSOLE, "test")
    index = index_of(train.embedding, train.y_true, list(part.records), bundle.codes)
    small = _nearest(index.places.astype(np.float64), place_of(test.embedding, index.mean, index.components))
    mean = normalised(train.embedding).mean(0)
    whole, queries = (normalised(normalised(e) - mean) for e in (train.embedding, test.embedding))
    full = _nearest(whole, queries)
    lesions = np.unique(test.lesions, return_inverse=True)[1].astype(np.int64)
    blocks = resample_weights(test.y_true, lesions, resamples=RESAMPLES, seed=seed)
    weights = np.concatenate([np.ones((1, len(lesions))), *blocks])

    def share(values: np.ndarray, among: np.ndarray | None = None) -> dict[str, Any]:
        found = metrics.mean_loss(values.astype(np.float64), weights if among is None else weights * among)
        return sampled_figure(found, reason="no images")

    right, called = test.decision == test.y_true, train.y_true[small]
    agree = (called == test.decision[:, None]).mean(1)
    same = np.array([len(set(a) & set(b)) / K for a, b in zip(small, full, strict=True)])
    return {
        "model": model_of(bundle),
        "seed": seed,
        "training_lesions": len(train.y_true),
        "test_images": len(lesions),
        "figures": {
            "of the five, also among the five of the whole embedding": share(same),
            "the nearest one has the true diagnosis": share(called[:, 0] == test.y_true),
            "the model's answer is right": share(right),
            "of the five, with the model's diagnosis, where it is right": share(agree, right),
            "of the five, with the model's diagnosis, where it is wrong": share(agree, ~right),
        },
    }


def _nearest(places: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return the rows of the K most similar places of each query, (m, K); all of length 1."""
    return np.argsort(-(queries @ places.T), axis=1, kind="stable")[:, :K]


def table(found: Mapping[str, Any]) -> str:
    """Return a line for each share."""
    header = [f"{found['training_lesions']:,} training lesions, {found['test_images']:,} test images", "share"]
    return markdown(header, [[name, row] for name, row in found["figures"].items()])
