"""Novelty: does the embedded model notice what is no dermoscopy, and does it keep the lesions that it knows?

    DERMLENS_DATA=/path/to/data python benchmarks/novelty.py [--extra DIR] [--out DIR] [--seed 0]
    DERMLENS_DATA=/path/to/data python benchmarks/novelty.py --left-out VASC [--left-out DF]

Known: the test role of the embedded model, lesions that it never met. Strange: pictures that come with scikit-image,
scikit-learn and Matplotlib, whole and in crops; `--extra` names a folder with more everyday pictures (used for the
figures in docs/trust.md: those in the PyPI packages gradio 4.39.0, ultralytics 8.4.190 and face_recognition 1.3.0).
The kind of score and its 64 directions were chosen on the `select` role and the bundled pictures; the extra pictures
and the test role had no part in that. Every score is fitted on the same training images, and every threshold on the
calibrate role, 95 % of whose lesions are kept. Writes novelty.json and novelty.md. `--left-out` does something else: it
trains a small network without that diagnosis and says whether its lesions are noticed (`left_out.py`); left_out.json.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import skimage
import sklearn
from embedded import embedded_roles
from left_out import markdown as left_out_markdown
from left_out import without
from rich.console import Console
from sklearn.metrics import roc_auc_score

from dermlens import Predictor
from dermlens.bundle.novelty import normalised
from dermlens.data.images import IMAGE_EXTENSIONS, decode, load_image
from dermlens.diagnoses import ISIC2019
from dermlens.evaluation.fit_trust import KEPT, Labelled, Sample, fit_novelty, judged, look, sample_per_class
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
SHARES = (1.0, 0.6, 0.3)
THRESHOLDS = (0.8, 0.9, 0.95, 0.975, 0.99)

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


def crops(image: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the middle square, and four corners at 60 and 30 % of its side."""
    height, width = image.shape[:2]
    for share in SHARES:
        side = int(min(height, width) * share)
        if side < 40:
            continue
        tops, lefts = ([(height - side) // 2], [(width - side) // 2])
        if share < 1:
            tops, lefts = ([0, height - side], [0, width - side])
        yield from (image[y : y + side, x : x + side] for y in tops for x in lefts)


def made(seed: int) -> dict[str, list[np.ndarray]]:
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


def spoiled(pictures: list[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Return lesions that can no longer be read."""
    n = pictures[0].shape[0]
    k = n // 8
    return {
        "lesion, blurred by 8 px": [cv2.GaussianBlur(p, (0, 0), 8) for p in pictures],
        "lesion, blurred by 4 px": [cv2.GaussianBlur(p, (0, 0), 4) for p in pictures],
        "lesion, corner eighth only": [p[:k, :k] for p in pictures],
        "lesion, middle quarter only": [p[3 * k : 5 * k, 3 * k : 5 * k] for p in pictures],
        "lesion, upside down colours": [255 - p for p in pictures],
    }


def strange(extra: Path | None, pictures: list[np.ndarray], seed: int) -> dict[str, list[np.ndarray]]:
    kinds = {kind: [c for path in paths for c in crops(decode(path))] for kind, paths in BUNDLED.items()}
    if extra is not None:
        paths = [path for path in sorted(extra.iterdir()) if path.suffix.lower() in IMAGE_EXTENSIONS]
        kinds["everyday, fresh"] = [c for path in paths for c in crops(decode(path))]
    return {**kinds, **made(seed), **spoiled(pictures)}


def rivals(train: Sample, head: np.ndarray) -> dict[str, Score]:
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
        return np.einsum("nck,kl,ncl->nc", difference, within, difference).min(1)

    def relative(e: np.ndarray, logits: np.ndarray) -> np.ndarray:
        return mahalanobis(e, logits) - (((e - mean) @ whiten) ** 2).sum(1)

    def neighbour(e: np.ndarray, _: np.ndarray) -> np.ndarray:
        return 1 - np.sort(normalised((e - mean) @ whiten) @ bank.T, axis=1)[:, -10]

    def residual(e: np.ndarray) -> np.ndarray:
        centred = e - mean
        return np.sqrt(np.maximum((centred**2).sum(1) - ((centred @ top) ** 2).sum(1), 0))

    def energy(_: np.ndarray, logits: np.ndarray) -> np.ndarray:
        peak = logits.max(1)
        return -(peak + np.log(np.exp(logits - peak[:, None]).sum(1)))

    train_logits = x @ head
    alpha = train_logits.max(1).mean() / residual(x).mean()
    return {
        "Mahalanobis (Lee 2018)": mahalanobis,
        "relative Mahalanobis (Ren 2021)": relative,
        "10th neighbour (Sun 2022)": neighbour,
        "energy (Liu 2020)": energy,
        "ViM (Wang 2022)": lambda e, logits: alpha * residual(e) + energy(e, logits),
    }


def auc_and_rate(known: np.ndarray, novel: np.ndarray, threshold: float) -> dict[str, float | int]:
    truth = np.r_[np.zeros(len(known)), np.ones(len(novel))]
    auc = float(roc_auc_score(truth, np.r_[known, novel]))
    return {"n": len(novel), "auroc": auc, "accepted": float(np.mean(novel <= threshold))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extra", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/novelty"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--left-out", metavar="CODE", action="append", choices=ISIC2019, help="train without it")
    options = parser.parse_args()
    console = Console(stderr=True, width=120)
    if options.left_out:
        retrained(options, console)
        return
    predictor = Predictor("default")
    bundle, trust = predictor.bundle, predictor.bundle.trust
    runtime = Runtime(bundle.graph_path)
    roles = embedded_roles(bundle, console)
    known = roles["train"]
    rows = sample_per_class(known.y_true, seed=options.seed)
    train = look(bundle, runtime, pick(known, rows), console, "train")
    calibrate = look(bundle, runtime, roles["calibrate"], console, "calibrate")
    test = look(bundle, runtime, roles["test"], console, "test")
    spread = np.random.default_rng(options.seed).choice(len(roles["test"].records), 150, replace=False)
    pictures = [
        load_image(r.path, bundle.input_spec, frame_aspect=r.frame_aspect)
        for r in (roles["test"].records[i] for i in spread)
    ]
    kinds = strange(options.extra, pictures, options.seed)
    outputs, rejected = {}, {}
    for kind, images in kinds.items():
        answers = list(predictor.predict_many(images))
        outputs[kind] = (np.stack([a.embedding for a in answers]), np.stack([a.logits for a in answers]))
        rejected[kind] = float(np.mean([a.status == "rejected" for a in answers]))
    weights, bias = bundle.head()
    scores: dict[str, Score] = {"ours": lambda e, _: trust.novelty.score(e), **rivals(train, weights)}
    methods = {}
    for name, score in scores.items():
        own, held = (score(s.embedding, s.embedding @ weights + bias) for s in (calibrate, test))
        threshold = float(np.quantile(own, KEPT))
        methods[name] = {k: auc_and_rate(held, score(e, lg), threshold) for k, (e, lg) in outputs.items()}
        methods[name]["known lesions"] = {"n": len(held), "kept": float(np.mean(held <= threshold))}
    status, _ = judged(trust, bundle, test)
    right = test.decision == test.y_true
    scored = trust.novelty.score(test.embedding)
    report = {
        "model": {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256},
        "seed": options.seed,
        "methods": methods,
        "rejected_in_all": rejected,
        "by_threshold": list(by_threshold(trust.novelty, calibrate, test, scored, right, outputs)),
        "test": {
            "images": len(right),
            "accuracy": float(right.mean()),
            **{s: {"share": float(np.mean(status == s)), "accuracy": mean(right[status == s])} for s in STATUSES},
        },
        "held_out_diagnosis": held_out(bundle.codes, train, calibrate, test),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "novelty.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = markdown(report)
    (options.out / "novelty.md").write_text(text, encoding="utf-8")
    print(text)


STATUSES = ("ok", "uncertain", "rejected")


def retrained(options: argparse.Namespace, console: Console) -> None:
    """Train without each of the diagnoses and print what becomes of its lesions."""
    data = Path(os.environ["DERMLENS_DATA"])
    rows = [
        without(code, data, options.out / f"without_{code}", options.seed, console)
        for code in dict.fromkeys(options.left_out)
    ]
    (options.out / "left_out.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(left_out_markdown(rows))


def pick(images: Labelled, rows: np.ndarray) -> Labelled:
    return Labelled([images.records[i] for i in rows], images.y_true[rows], images.lesions[rows])


def mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def by_threshold(
    novelty: object, calibrate: Sample, test: Sample, scored: np.ndarray, right: np.ndarray, outputs: dict
) -> Iterator[dict[str, float]]:
    """Yield what is kept and what slips through when another share of the calibration lesions is kept."""
    everyday = np.concatenate([e for kind, (e, _) in outputs.items() if kind.startswith("everyday")])
    for kept in THRESHOLDS:
        threshold = float(np.quantile(novelty.score(calibrate.embedding), kept))
        accepted = scored <= threshold
        yield {
            "kept_in_calibration": kept,
            "threshold": threshold,
            "known_lesions_kept": float(accepted.mean()),
            "accuracy_on_kept": float(right[accepted].mean()),
            "everyday_accepted": float(np.mean(novelty.score(everyday) <= threshold)),
        }


def held_out(codes: tuple[str, ...], train: Sample, calibrate: Sample, test: Sample) -> dict[str, dict[str, float]]:
    """Forget one diagnosis in the statistics at a time; the network itself had learned from it all the same."""
    result = {}
    for c, code in enumerate(codes):
        keep, held = train.y_true != c, calibrate.y_true != c
        novelty = fit_novelty(
            train.embedding[keep], train.y_true[keep], calibrate.embedding[held], calibrate.lesions[held]
        )
        if novelty is None:
            continue
        score = novelty.score(test.embedding)
        result[code] = auc_and_rate(score[test.y_true != c], score[test.y_true == c], novelty.threshold)
    return result


def markdown(report: dict) -> str:
    kinds = list(report["rejected_in_all"])
    names = list(report["methods"])
    lines = ["| AUROC (accepted when 95 % of lesions are kept) | n | " + " | ".join(names) + " |"]
    lines += ["|---" * (2 + len(names)) + "|"]
    for kind in kinds:
        rows = [report["methods"][name][kind] for name in names]
        cells = " | ".join(f"{r['auroc']:.3f} ({r['accepted']:.0%})" for r in rows)
        lines.append(f"| {kind} | {rows[0]['n']} | {cells} |")
    lines += ["", "| kind | n | rejected by novelty or quality |", "|---|---|---|"]
    lines += [
        f"| {k} | {report['methods']['ours'][k]['n']} | {share:.1%} |" for k, share in report["rejected_in_all"].items()
    ]
    lines += ["", "| kept in calibration | threshold | test lesions kept | accuracy on them | everyday accepted |"]
    lines += ["|---|---|---|---|---|"]
    for r in report["by_threshold"]:
        lines.append(
            f"| {r['kept_in_calibration']:.1%} | {r['threshold']:.3f} | {r['known_lesions_kept']:.1%} | "
            f"{r['accuracy_on_kept']:.3f} | {r['everyday_accepted']:.1%} |"
        )
    test = report["test"]
    lines += ["", f"{test['images']} test images, accuracy on all {test['accuracy']:.3f}; by status: "]
    lines[-1] += ", ".join(f"{s} {test[s]['share']:.1%} (accuracy {test[s]['accuracy']:.3f})" for s in STATUSES) + "."
    lines += ["", "| diagnosis forgotten by the statistics | n | AUROC | accepted |", "|---|---|---|---|"]
    for code, r in report["held_out_diagnosis"].items():
        lines.append(f"| {code} | {r['n']} | {r['auroc']:.3f} | {r['accepted']:.0%} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
