"""Novelty: does the embedded model notice what is not dermoscopy, and does it accept the lesions that it knows?

Known: the test role of the embedded model, lesions that it never met. Strange: pictures that come with scikit-image,
scikit-learn and Matplotlib, whole and in crops; `--extra` names a folder with more everyday pictures (for the committed
figures: those in the PyPI packages gradio 4.39.0, ultralytics 8.4.190 and face_recognition 1.3.0). The kind of score
and its 64 directions were chosen on the `select` role and the bundled pictures; the extra pictures and the test role
had no part in that. Every score is fitted on the same training images, and every threshold on the calibrate role, 95 %
of whose lesions are accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import skimage
import sklearn
from sklearn.metrics import roc_auc_score

from benchmarks import CONSOLE
from benchmarks.report import markdown, model_of
from benchmarks.roles import embedded_roles
from dermlens import Predictor
from dermlens.bundle.novelty import Novelty, normalised
from dermlens.data.images import IMAGE_EXTENSIONS, decode, load_image
from dermlens.evaluation.fit_trust import ACCEPTED_SHARE, Labelled, Sample, fit_novelty, run_model, sample_per_class
from dermlens.inference.runtime import Runtime

SKIMAGE = Path(skimage.__file__).parent / "data"
SKLEARN = Path(sklearn.__file__).parent / "datasets" / "images"
MATPLOTLIB = Path(matplotlib.__file__).parent / "mpl-data" / "sample_data"
EVERYDAY = (
    *("coffee.png", "camera.png", "clock_motion.png", "astronaut.png", "color.png", "motorcycle_left.png"),
    *("motorcycle_right.png", "rocket.jpg", "chelsea.png", "coins.png", "horse.png", "logo.png"),
)
BUNDLED = {
    "everyday": [
        *(SKIMAGE / name for name in EVERYDAY),
        *(SKLEARN / name for name in ("flower.jpg", "china.jpg")),
        *(MATPLOTLIB / name for name in ("grace_hopper.jpg", "Minduka_Present_Blue_Pack.png", "logo2.png")),
    ],
    "texture": [SKIMAGE / name for name in ("gravel.png", "brick.png", "grass.png")],
    "histology, retina, cells": [SKIMAGE / name for name in ("ihc.png", "retina.jpg", "cell.png")],
    "sky": [SKIMAGE / name for name in ("moon.png", "hubble_deep_field.jpg")],
    "text": [SKIMAGE / name for name in ("text.png", "page.png")],
}
CROPS = (1.0, 0.6, 0.3)
THRESHOLDS = (0.9, 0.95, 0.99)
SPOILED = 150
OURS = "ours"
RIVALS = {
    "ViM": "ViM (Wang 2022)",
    "10th neighbour": "10th neighbour (Sun 2022)",
    "Mahalanobis": "Mahalanobis (Lee 2018)",
    "relative": "relative Mahalanobis (Ren 2021)",
    "energy": "energy (Liu 2020)",
}

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


def run(*, data: Path, extra: Path | None = None, seed: int = 0) -> dict[str, Any]:
    """Return AUROC and share accepted by kind of picture and score, and what other thresholds do."""
    predictor = Predictor("default")
    bundle, trust = predictor.bundle, predictor.bundle.trust
    if trust is None or trust.novelty is None:
        raise SystemExit("The embedded model has no novelty score. Train it again: make train-default")
    novelty = trust.novelty
    runtime = Runtime(bundle.graph_path)
    roles = embedded_roles(bundle, data)
    rows = sample_per_class(roles["train"].y_true, seed=seed)
    train = run_model(bundle, runtime, _pick(roles["train"], rows), CONSOLE, "train")
    calibrate, test = (run_model(bundle, runtime, roles[role], CONSOLE, role) for role in ("calibrate", "test"))
    drawn = np.random.default_rng(seed).choice(len(roles["test"].records), SPOILED, replace=False)
    lesions = [
        load_image(record.path, bundle.input_spec, frame_aspect=record.frame_aspect)
        for record in (roles["test"].records[i] for i in drawn)
    ]
    outputs, rejected = {}, {}
    for kind, images in _strange(extra, lesions, seed).items():
        answers = list(predictor.predict_many(images))
        seen = [(a.embedding, a.logits) for a in answers if a.embedding is not None and a.logits is not None]
        if len(seen) < len(answers):
            raise SystemExit(f"{len(answers) - len(seen)} pictures of {kind!r} cannot be read.")
        outputs[kind] = (np.stack([e for e, _ in seen]), np.stack([lg for _, lg in seen]))
        rejected[kind] = float(np.mean([a.status == "rejected" for a in answers]))
    weights, bias = bundle.head()
    methods = {}
    for name, score in {OURS: lambda e, _: novelty.score(e), **_rivals(train, weights)}.items():
        own, known = (score(s.embedding, s.embedding @ weights + bias) for s in (calibrate, test))
        threshold = float(np.quantile(own, ACCEPTED_SHARE))
        methods[name] = {k: _auc_and_rate(known, score(e, lg), threshold) for k, (e, lg) in outputs.items()}
        methods[name]["known lesions"] = {"n": len(known), "accepted": float(np.mean(known <= threshold))}
    return {
        "model": model_of(bundle),
        "seed": seed,
        "methods": methods,
        "rejected_in_all": rejected,
        "by_threshold": list(_by_threshold(novelty, calibrate, test, outputs)),
        "forgotten_diagnosis": _forgotten(bundle.codes, train, calibrate, test),
    }


# --- pictures --------------------------------------------------------------------------------------------------


def _strange(extra: Path | None, lesions: list[np.ndarray], seed: int) -> dict[str, list[np.ndarray]]:
    kinds = {kind: [c for path in paths for c in _crops(decode(path))] for kind, paths in BUNDLED.items()}
    if extra is not None:
        paths = [path for path in sorted(extra.iterdir()) if path.suffix.lower() in IMAGE_EXTENSIONS]
        kinds["everyday, fresh"] = [c for path in paths for c in _crops(decode(path))]
    return {**kinds, **_made(seed), **_spoiled(lesions)}


def _crops(image: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the middle square, and four corners at 60 and 30 % of its side."""
    height, width = image.shape[:2]
    for share in CROPS:
        side = int(min(height, width) * share)
        if side < 40:
            continue
        tops, lefts = ([(height - side) // 2], [(width - side) // 2])
        if share < 1:
            tops, lefts = ([0, height - side], [0, width - side])
        yield from (image[y : y + side, x : x + side] for y in tops for x in lefts)


def _made(seed: int) -> dict[str, list[np.ndarray]]:
    """Return pictures that nobody took: noise, smooth noise, one colour."""
    rng = np.random.default_rng(seed)
    smooth = [
        cv2.resize(rng.integers(0, 256, (n, n, 3)).astype(np.uint8), (224, 224), interpolation=cv2.INTER_CUBIC)
        for n in (3, 6, 12, 24, 48)
        for _ in range(4)
    ]
    colours = ((0, 0, 0), (255,) * 3, (128,) * 3, (200, 150, 130), (150, 90, 60), (255, 0, 0), (0, 0, 255))
    return {
        "noise": [rng.integers(0, 256, (224, 224, 3)).astype(np.uint8) for _ in range(10)] + smooth,
        "blank": [np.full((224, 224, 3), colour, np.uint8) for colour in colours],
    }


def _spoiled(lesions: list[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Return lesions that can no longer be read."""
    k = lesions[0].shape[0] // 8
    return {
        "lesion, blurred by 8 px": [cv2.GaussianBlur(p, (0, 0), 8) for p in lesions],
        "lesion, blurred by 4 px": [cv2.GaussianBlur(p, (0, 0), 4) for p in lesions],
        "lesion, corner eighth only": [p[:k, :k] for p in lesions],
        "lesion, middle quarter only": [p[3 * k : 5 * k, 3 * k : 5 * k] for p in lesions],
        "lesion, inverted colours": [255 - p for p in lesions],
    }


def _pick(images: Labelled, rows: np.ndarray) -> Labelled:
    return Labelled([images.records[i] for i in rows], images.y_true[rows], images.lesions[rows])


# --- scores ----------------------------------------------------------------------------------------------------


def _rivals(train: Sample, head: np.ndarray) -> dict[str, Score]:
    """Return score functions of (embedding, logits), high is novel; fitted on the same images as ours."""
    x = train.embedding.astype(np.float64)
    mean = x.mean(0)
    values, vectors = np.linalg.eigh(np.cov((x - mean).T))
    top = vectors[:, ::-1][:, :64]
    whiten = top / np.sqrt(values[::-1][:64])
    z = (x - mean) @ whiten
    means = np.stack([z[train.y_true == c].mean(0) for c in np.unique(train.y_true)])
    within = np.linalg.inv(np.cov((z - means[np.unique(train.y_true, return_inverse=True)[1]]).T))
    bank = normalised(z)

    def mahalanobis(e: np.ndarray, _: np.ndarray) -> np.ndarray:
        difference = ((e - mean) @ whiten)[:, None] - means
        nearest: np.ndarray = np.einsum("nck,kl,ncl->nc", difference, within, difference).min(1)
        return nearest

    def relative(e: np.ndarray, logits: np.ndarray) -> np.ndarray:
        difference: np.ndarray = mahalanobis(e, logits) - (((e - mean) @ whiten) ** 2).sum(1)
        return difference

    def neighbour(e: np.ndarray, _: np.ndarray) -> np.ndarray:
        likeness: np.ndarray = np.sort(normalised((e - mean) @ whiten) @ bank.T, axis=1)[:, -10]
        return 1 - likeness

    def residual(e: np.ndarray) -> np.ndarray:
        centred = e - mean
        length: np.ndarray = np.sqrt(np.maximum((centred**2).sum(1) - ((centred @ top) ** 2).sum(1), 0))
        return length

    def energy(_: np.ndarray, logits: np.ndarray) -> np.ndarray:
        peak = logits.max(1)
        free: np.ndarray = -(peak + np.log(np.exp(logits - peak[:, None]).sum(1)))
        return free

    alpha = (x @ head).max(1).mean() / residual(x).mean()
    return {
        RIVALS["Mahalanobis"]: mahalanobis,
        RIVALS["relative"]: relative,
        RIVALS["10th neighbour"]: neighbour,
        RIVALS["energy"]: energy,
        RIVALS["ViM"]: lambda e, logits: alpha * residual(e) + energy(e, logits),
    }


def _auc_and_rate(known: np.ndarray, novel: np.ndarray, threshold: float) -> dict[str, float | int]:
    truth = np.r_[np.zeros(len(known)), np.ones(len(novel))]
    auc = float(roc_auc_score(truth, np.r_[known, novel]))
    return {"n": len(novel), "auroc": auc, "accepted": float(np.mean(novel <= threshold))}


def _by_threshold(
    novelty: Novelty, calibrate: Sample, test: Sample, outputs: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> Iterator[dict[str, float]]:
    """Yield what is accepted, and with which accuracy, when another share of the calibration lesions is accepted."""
    everyday = np.concatenate([e for kind, (e, _) in outputs.items() if kind.startswith("everyday")])
    scored, right = novelty.score(test.embedding), test.decision == test.y_true
    for share in THRESHOLDS:
        threshold = float(np.quantile(novelty.score(calibrate.embedding), share))
        accepted = scored <= threshold
        yield {
            "calibration_lesions": share,
            "threshold": threshold,
            "test_lesions": float(accepted.mean()),
            "accuracy": float(right[accepted].mean()),
            "everyday": float(np.mean(novelty.score(everyday) <= threshold)),
        }


def _forgotten(codes: tuple[str, ...], train: Sample, calibrate: Sample, test: Sample) -> dict[str, Any]:
    """Forget one diagnosis in the statistics at a time; the network itself had learned from it all the same."""
    result = {}
    for c, code in enumerate(codes):
        learned, fitted = train.y_true != c, calibrate.y_true != c
        novelty = fit_novelty(
            train.embedding[learned], train.y_true[learned], calibrate.embedding[fitted], calibrate.lesions[fitted]
        )
        if novelty is not None:
            score = novelty.score(test.embedding)
            result[code] = _auc_and_rate(score[test.y_true != c], score[test.y_true == c], novelty.threshold)
    return result


# --- table -----------------------------------------------------------------------------------------------------


def table(found: Mapping[str, Any]) -> str:
    """Return a line for each kind of picture, and a line for each threshold."""
    methods, rejected = found["methods"], found["rejected_in_all"]
    rows = [
        [
            kind,
            methods[OURS][kind]["n"],
            f"{methods[OURS][kind]['auroc']:.3f}",
            f"{methods[OURS][kind]['accepted']:.0%}",
            f"{share:.0%}",
            *(f"{methods[name][kind]['auroc']:.3f}" for name in RIVALS.values()),
        ]
        for kind, share in rejected.items()
    ]
    kinds = ["kind", "n", "AUROC", "accepted by novelty alone", "rejected by all checks together", *RIVALS]
    thresholds = [
        [
            f"{row['calibration_lesions']:.1%}",
            f"{row['threshold']:.2f}",
            f"{row['test_lesions']:.1%}",
            f"{row['accuracy']:.3f}",
            f"{row['everyday']:.1%}",
        ]
        for row in found["by_threshold"]
    ]
    forgotten = found["forgotten_diagnosis"]
    accepted = [row["accepted"] for row in forgotten.values()]
    return (
        f"{markdown(kinds, rows)}\n\nThe last columns: AUROC of other scores. What another threshold accepts:\n\n"
        + markdown(["calibration lesions", "threshold", "test lesions", "accuracy on them", "everyday"], thresholds)
        + "\n\nOne diagnosis at a time forgotten by the statistics (the network had learned from it): AUROC "
        + ", ".join(f"{code} {row['auroc']:.2f}" for code, row in forgotten.items())
        + f"; {min(accepted):.0%} to {max(accepted):.0%} are accepted. This is no way to notice an unknown disease."
    )
