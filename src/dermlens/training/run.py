"""A folder of labelled images becomes a model.

audit -> split -> probe -> head -> fine-tune over the cached trunk -> export -> calibrate -> test -> bundle
"""

from __future__ import annotations

import datetime
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import openvino as ov
from rich.console import Console

from dermlens.audit.findings import summary
from dermlens.data.images import InputSpec
from dermlens.data.manifest import manifest_sha256
from dermlens.data.records import Dataset, data_fingerprint
from dermlens.diagnoses import display_name
from dermlens.errors import StorageError
from dermlens.evaluation.bootstrap import paired_difference
from dermlens.evaluation.calibration import MIN_LESIONS, choose_rule, fit_calibration
from dermlens.evaluation.scores import score
from dermlens.inference.bundle import write_bundle
from dermlens.inference.decision import Calibration, DecisionRule, decide, probabilities
from dermlens.reporting.plots import plot_history
from dermlens.training.backbones import Backbone, backbone, build_backbone, split_at_block
from dermlens.training.card import model_card, versions
from dermlens.training.export import check_export, compile_graph, to_openvino
from dermlens.training.fit import History, classifier, fine_tune, fit_head
from dermlens.training.lineage import LEARNED_FROM, check_overlap, seen_by_weights
from dermlens.training.material import Material, prepare
from dermlens.training.memory import keep_freed_memory
from dermlens.training.outputs import (
    print_report,
    save_keras,
    seen_by_role,
    write_audit,
    write_history,
    write_predictions,
    write_split,
)
from dermlens.training.pipeline import effective_prior, plain_view
from dermlens.training.probe import Probe, fit_probe
from dermlens.training.recipe import Recipe
from dermlens.training.split import ROLES, role_table
from dermlens.training.trunk import BATCH, plain_outputs, trunk_cache

LEAKING = ("same_image_across_split", "lesion_across_split", "patient_across_split")
MIN_CLASSES = 2


@dataclass(frozen=True)
class About:
    """What a bundle says of itself beyond what the training measures."""

    name: str
    version: str = "1.0.0"
    scope: str = ""
    modality: str = "unknown"
    weights_licence: str = "that of the training images; see their source"
    data_sources: tuple[str, ...] = ()
    not_tested_on: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


def train(
    dataset: Dataset,
    out: Path,
    recipe: Recipe,
    about: About,
    *,
    allow_leakage: bool = False,
    console: Console | None = None,
    isic_ids_of_lesion: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Train a model and return its bundle folder, `out/bundle`.

    Args:
        dataset: from `read_dataset`; roles already set in its records are kept.
        out: the run folder; a feature cache found there is reused.
        allow_leakage: train although pictures or lesions cross the split; the bundle is marked leaky.
        isic_ids_of_lesion: other ISIC ids of the same lesions, so that they count as seen as well.
    Raises:
        LeakageError, DataError, RecipeError, WeightsError, StorageError: with the remedy.
    """
    console = console or Console(stderr=True)
    started = time.monotonic()
    keep_freed_memory()
    row = backbone(recipe.backbone)
    spec = InputSpec(size_px=recipe.size_px or row.input_size_px, framing=recipe.framing)  # type: ignore[arg-type]
    material = prepare(dataset, recipe, allow_leakage=allow_leakage, console=console)
    known = seen_by_weights(recipe.weights)
    if known is not None:
        material = check_overlap(material, known, allow_leakage=allow_leakage, console=console)
    _prepare_folder(out, recipe, material)
    network = _Network.build(row, recipe, spec, len(material.codes), console)
    run = _Run(out, recipe, spec, material, network, console)
    probe, head_features = run.probe()
    history = run.fine_tune(head_features)
    seen = seen_by_role(material, isic_ids_of_lesion or {})
    if known is not None:
        seen[LEARNED_FROM] = known
    return run.finish(about, probe, history, dataset, seen, started)


def _prepare_folder(out: Path, recipe: Recipe, material: Material) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        recipe.save(out / "recipe.json")
        write_split(out / "split.csv", material)
        write_audit(out / "audit.json", material)
    except OSError as error:
        raise StorageError(
            f"The run folder {out} cannot be written: {error.strerror or error}.",
            remedy="Choose another --out, or free some space.",
        ) from error


@dataclass(frozen=True)
class _Network:
    """The frozen trunk, the classifier over its features, and the whole of them, sharing their layers."""

    row: Backbone
    trunk: keras.Model
    classifier: keras.Model
    whole: keras.Model
    cut_block: int
    weights_id: str

    @classmethod
    def build(cls, row: Backbone, recipe: Recipe, spec: InputSpec, classes: int, console: Console) -> _Network:
        keras.utils.set_random_seed(recipe.seed)
        named = {"pretrained": row.weights, "none": "none"}
        weights = named.get(recipe.weights) or Path(recipe.weights)
        full = build_backbone(row.name, size_px=spec.size_px, weights=weights)
        trunk, top = split_at_block(full, recipe.cut_block)
        model = classifier(top, classes, recipe.dropout, recipe.seed)
        whole = keras.Model(full.inputs, model(trunk(full.inputs[0])), name=f"dermlens_{row.name}")
        digest = hashlib.sha256(repr((row.name, recipe.cut_block)).encode())
        for array in trunk.get_weights():
            digest.update(np.ascontiguousarray(array).tobytes())
        console.print(
            f"{row.name} from {weights} weights; blocks after {recipe.cut_block} are trained "
            f"({sum(int(np.prod(v.shape)) for v in model.trainable_variables) / 1e6:.1f} M parameters).",
            highlight=False,
        )
        return cls(row, trunk, model, whole, recipe.cut_block, digest.hexdigest())


@dataclass
class _Run:
    out: Path
    recipe: Recipe
    spec: InputSpec
    material: Material
    network: _Network
    console: Console

    def probe(self) -> tuple[Probe, tuple[np.ndarray, np.ndarray]]:
        """Fit the linear probe on frozen features; also returns (embeddings, labels) of train for the head."""
        compiled = compile_graph(to_openvino(self.network.whole), batch=BATCH)
        material = self.material
        embeddings = plain_outputs(
            compiled, material.records, self.spec, output=1, console=self.console, what="Frozen features"
        )
        parts = {role: (embeddings[material.rows(role)], material.labels[material.rows(role)]) for role in ROLES}
        fitted = fit_probe(parts["train"], parts["select"], len(material.codes))
        self.probe_test = fitted.probabilities(parts["test"][0])
        return fitted, parts["train"]

    def fine_tune(self, head_features: tuple[np.ndarray, np.ndarray]) -> History:
        recipe, material, network = self.recipe, self.material, self.network
        classes = len(material.codes)
        fit_head(network.classifier, *head_features, recipe, classes)
        trunk = to_openvino(network.trunk)
        cached = {}
        for role, views in (("train", recipe.views), ("select", 0)):
            rows = material.rows(role)
            cached[role] = trunk_cache(
                self.out / "cache" / role,
                trunk,
                material.pick(rows),
                [material.hashes[i] for i in rows],
                self.spec,
                view_count=views,
                seed=recipe.seed,
                weights_id=network.weights_id,
                console=self.console,
                what=f"Trunk features, {role}",
            )
        history = fine_tune(
            network.classifier,
            (cached["train"], material.labels[material.rows("train")]),
            (cached["select"][:, 0], material.labels[material.rows("select")]),
            recipe,
            classes,
            self.console,
            on_best=self._keep,
        )
        write_history(self.out / "history.csv", history)
        plot_history(history.rows, self.out / "history.png")
        return history

    def _keep(self) -> None:
        """Save the model as it is; a full disk is told at once but does not end the training."""
        try:
            save_keras(self.network.whole, self.out / "model.keras")
        except StorageError as error:
            self.console.print(f"Warning: {error} Training goes on.", style="yellow", highlight=False)

    def finish(
        self,
        about: About,
        probe: Probe,
        history: History,
        dataset: Dataset,
        seen: dict[str, dict[str, list[str]]],
        started: float,
    ) -> Path:
        graph = to_openvino(self.network.whole)
        material = self.material
        sample = np.stack([plain_view(r, self.spec) for r in material.pick(material.rows("test")[:8])])
        agreement = check_export(self.network.whole, graph, sample)
        compiled = compile_graph(graph, batch=BATCH)
        logits = {
            role: plain_outputs(
                compiled,
                material.pick(material.rows(role)),
                self.spec,
                output=0,
                console=self.console,
                what=role,
            )
            for role in ("calibrate", "test")
        }
        calibration, rule = self._calibrate(logits["calibrate"])
        metrics, probe_metrics = self._measure(logits["test"], calibration, rule)
        card = self._card(about, calibration, rule, metrics, probe_metrics, probe, history, dataset)
        card["training"]["minutes"] = round((time.monotonic() - started) / 60, 1)
        card["training"]["export_difference"] = agreement
        dense = self.network.classifier.get_layer("logits")
        write_bundle(
            self.out / "bundle",
            card,
            head=tuple(np.asarray(w) for w in dense.get_weights()),  # type: ignore[arg-type]
            seen=seen,
            write_graph=lambda path: ov.save_model(graph, path, compress_to_fp16=False),
            model_card=model_card(card),
        )
        print_report(card, self.out, self.console)
        return self.out / "bundle"

    def _calibrate(self, logits: np.ndarray) -> tuple[Calibration, DecisionRule]:
        material, recipe = self.material, self.recipe
        rows = material.rows("calibrate")
        groups = material.groups(rows)
        prior, training_prior = material.lesion_prior(), self._training_prior()
        if len(set(groups)) < MIN_LESIONS:
            self.console.print(
                f"Only {len(set(groups))} lesions to calibrate on (at least {MIN_LESIONS} are needed): "
                "the probabilities are left uncalibrated.",
                highlight=False,
            )
            fitted = Calibration(1.0, prior, training_prior)
        else:
            fitted = fit_calibration(logits, material.labels[rows], groups, prior=prior, training_prior=training_prior)
        probability = probabilities(logits, fitted)
        if recipe.decision_rule == "largest_probability":
            return fitted, DecisionRule("largest_probability", 0.0)
        return fitted, choose_rule(probability, fitted, material.labels[rows])

    def _training_prior(self) -> tuple[float, ...]:
        labels = self.material.labels[self.material.rows("train")]
        prior = effective_prior(labels, len(self.material.codes), self.recipe.class_balance)
        return tuple(float(p) for p in prior)

    def _measure(
        self, logits: np.ndarray, calibration: Calibration, rule: DecisionRule
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        material = self.material
        rows = material.rows("test")
        truth, groups = material.labels[rows], material.groups(rows)
        probability = probabilities(logits, calibration)
        decision = decide(probability, calibration, rule)
        metrics = score(truth, probability, decision, groups, material.codes, seed=self.recipe.seed)
        probe_decision = self.probe_test.argmax(axis=1)
        probe = score(truth, self.probe_test, probe_decision, groups, material.codes, seed=self.recipe.seed)
        probe_metrics = {name: probe[name] for name in ("accuracy", "balanced_accuracy", "macro_auc")}
        probe_metrics["model_minus_probe_balanced_accuracy"] = paired_difference(
            truth, decision, probe_decision, groups, seed=self.recipe.seed
        )
        write_predictions(self.out / "test_predictions.csv", material, rows, probability, decision, probe_decision)
        return metrics, probe_metrics

    def _card(
        self,
        about: About,
        calibration: Calibration,
        rule: DecisionRule,
        metrics: dict[str, Any],
        probe_metrics: dict[str, Any],
        probe: Probe,
        history: History,
        dataset: Dataset,
    ) -> dict[str, Any]:
        material, row = self.material, self.network.row
        best = history.rows[history.best_epoch]
        names = [display_name(code) for code in material.codes]
        scope = (
            about.scope or f"Reads images like those it was trained on, of {len(names)} classes: {', '.join(names)}."
        )
        return {
            "name": about.name,
            "version": about.version,
            "created": datetime.date.today().isoformat(),
            "scope": scope,
            "modality": about.modality,
            "classes": [{"code": c, "name": n} for c, n in zip(material.codes, names, strict=True)],
            "input": self.spec.as_dict(),
            "backbone": {
                "name": row.name,
                "title": row.title,
                "weights": self.recipe.weights,
                "licence": row.licence,
            },
            "precision": {"policy": "f32", "gate": None},
            "calibration": calibration.as_dict(),
            "decision_rule": rule.as_dict(),
            "recipe": self.recipe.as_dict(),
            "data": {
                "fingerprint": data_fingerprint(material.records, material.hashes),
                "images": len(material.records),
                "unreadable": list(material.unreadable),
                "roles": role_table(material.records, list(material.roles)),
                "sources": list(about.data_sources) or [dataset.layout],
                "notes": list(dataset.notes),
                "manifest_sha256": manifest_sha256(dataset),
                "audit": summary(material.findings),
                "leaky": material.leaky,
                "not_tested_on": list(about.not_tested_on),
            },
            "training": {
                "epochs_done": len(history.rows) - 1,
                "best_epoch": history.best_epoch,
                "interrupted": history.interrupted,
                "select_balanced_accuracy": best["select_balanced_accuracy"],
            },
            "metrics": {"split": "test role, images whose lesions the model never saw", **metrics},
            "probe": {"regularisation_c": probe.strength, **probe_metrics},
            "licence": {"code": "Apache-2.0", "weights": about.weights_licence},
            "versions": versions(),
            **about.extra,
        }
