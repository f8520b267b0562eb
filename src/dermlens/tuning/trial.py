"""One recipe tried on the train and select roles: a score, epoch by epoch, and never a look at calibrate or test.

The images of the other roles are dropped before anything is computed. Trunk features are kept in a folder for each cut
and shared by all trials; each trial starts from the pretrained weights again.

How the trials of a search end, whoever tries them: this process one by one, or many side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console

from dermlens.inference.runtime import batch_for, compile_graph
from dermlens.networks.openvino import to_openvino
from dermlens.training.checkpoint import assign, values_of
from dermlens.training.device import devices
from dermlens.training.features import Engine, local, plain_outputs, trunk_cache
from dermlens.training.feed import EVAL_BATCH, EVAL_BATCH_PIXELS, Feed, from_arrays, from_images
from dermlens.training.fit import History, Stage, fine_tuning, fit, head_training
from dermlens.training.material import Material
from dermlens.training.network import Network, Stem, in_float32, open_backbone, with_head
from dermlens.training.recipe import Recipe
from dermlens.training.split import assign_folds
from dermlens.training.views import decoded
from dermlens.training.watch import Watch

Report = Callable[[int, float], None]
"""Called after each epoch with its number over all folds and the score so far; raises to end the trial."""


class Interrupted(Exception):
    """Ctrl-C ended a trial between two steps."""


def learnable(material: Material) -> Material:
    """Return the material without the images of calibrate and test."""
    rows = np.flatnonzero(np.isin(material.roles, ("train", "select")))
    return replace(
        material,
        records=tuple(material.records[i] for i in rows),
        hashes=tuple(material.hashes[i] for i in rows),
        roles=material.roles[rows],
        labels=material.labels[rows],
    )


@dataclass(frozen=True)
class Fold:
    """Rows of the material that are learned from and scored on."""

    train: np.ndarray
    select: np.ndarray


def folds_of(material: Material, count: int, seed: int) -> list[Fold]:
    """Return the folds: the split's own train and select for one, else a partition that cuts through no lesion."""
    if count == 1:
        return [Fold(material.rows("train"), material.rows("select"))]
    place = np.array(assign_folds(material.records, material.hashes, folds=count, seed=seed))
    return [Fold(np.flatnonzero(place != fold), np.flatnonzero(place == fold)) for fold in range(count)]


@dataclass
class Bench:
    """What trials share.

    Attributes:
        material: from `learnable`.
        out: folder of the caches.
        embeddings: of all images by the network as it was pretrained, float32 (n, d); computed where None.
        engine: who computes trunk features.
    """

    material: Material
    folds: Sequence[Fold]
    out: Path
    console: Console
    embeddings: np.ndarray | None = None
    engine: Engine = local

    def score(self, recipe: Recipe, report: Report) -> float:
        """Train as the recipe says, once for each fold, and return the mean balanced accuracy of the epochs kept, 0..1.

        Raises:
            Interrupted: Ctrl-C. What `report` raises ends the trial too.
        """
        stem, network = self._opened(recipe)
        start = values_of(network.whole.weights)
        if self.embeddings is None:
            self.embeddings = self._embed(stem, network, recipe)
        best: list[float] = []
        for number, fold in enumerate(self.folds):
            assign(network.whole.weights, start)
            epochs = 1 + (recipe.head_epochs if recipe.fine_tune == "head" else recipe.epochs)

            def told(epoch: int, score: float, number: int = number, epochs: int = epochs) -> None:
                report(number * epochs + epoch, float(np.mean([*best, score])))

            best.append(self._fold(stem, network, recipe, fold, told))
        return float(np.mean(best))

    def prepare(self, recipe: Recipe) -> None:
        """Compute what all trials with the cut of this recipe share, so that other processes find it."""
        stem, network = self._opened(recipe)
        if self.embeddings is None:
            self.embeddings = self._embed(stem, network, recipe)
        if recipe.fine_tune == "top" and recipe.views:
            self._features(stem, network, recipe)
        elif recipe.fine_tune != "head":
            self._pixels(stem)

    def _opened(self, recipe: Recipe) -> tuple[Stem, Network]:
        keras.backend.clear_session()
        keras.utils.set_random_seed(recipe.seed)
        stem = open_backbone(recipe)
        return stem, with_head(stem, recipe, len(self.material.codes))

    def _embed(self, stem: Stem, network: Network, recipe: Recipe) -> np.ndarray:
        with in_float32(network.whole, recipe.precision):
            graph = compile_graph(to_openvino(network.whole), batch=batch_for(recipe.size_px))
        records = self.material.records
        return plain_outputs(graph, records, stem.spec, output=1, console=self.console, what="Frozen features")

    def _fold(self, stem: Stem, network: Network, recipe: Recipe, fold: Fold, told: Report) -> float:
        """Train the head, then the blocks, on one fold and return the best score of the last stage."""
        embeddings, labels = self.embeddings, self.material.labels
        if embeddings is None:
            raise Interrupted
        only = recipe.fine_tune == "head"
        stage = head_training(recipe, embeddings[fold.train])
        feed = from_arrays(
            embeddings[fold.train][:, None], labels[fold.train], embeddings[fold.select], labels[fold.select]
        )
        history = self._fit(network.head, feed, stage, recipe, told if only else None)
        if only or not recipe.epochs:
            return history.kept_score
        stage = fine_tuning(recipe)
        cached = recipe.fine_tune == "top" and recipe.views
        model = network.classifier if cached else network.whole
        feed = self._feed(stem, network, recipe, fold)
        return self._fit(model, feed, stage, recipe, told, devices(recipe)).kept_score

    def _fit(
        self,
        model: keras.Model,
        feed: Feed,
        stage: Stage,
        recipe: Recipe,
        told: Report | None,
        spread: Sequence[str] = (),
    ) -> History:
        watch = _Reporting(self.material.codes, told)
        history = fit(model, feed, stage, recipe, self.material.codes, watch, devices=spread)
        if history.interrupted:
            raise Interrupted
        return history

    def _feed(self, stem: Stem, network: Network, recipe: Recipe, fold: Fold) -> Feed:
        material, labels = self.material, self.material.labels
        if recipe.fine_tune == "full" or not recipe.views:
            pixels = self._pixels(stem)
            return from_images(
                material.pick(fold.train),
                [material.hashes[i] for i in fold.train],
                labels[fold.train],
                material.pick(fold.select),
                labels[fold.select],
                stem.spec,
                seed=recipe.seed,
                artefacts=recipe.artefacts,
                batch=min(EVAL_BATCH_PIXELS, 2 * recipe.batch_size),
                source=lambda row: pixels(int(fold.train[row])),
            )
        features = self._features(stem, network, recipe)
        chosen = np.ascontiguousarray(features[fold.select, 0])
        scored = min(EVAL_BATCH, 2 * recipe.batch_size)
        feed = from_arrays(features, labels[fold.train], chosen, labels[fold.select], batch=scored)
        return replace(feed, load=lambda draw: features[fold.train[draw.rows], draw.views])

    def _pixels(self, stem: Stem) -> Callable[[int], np.ndarray]:
        """Row of the material -> what its views start from, decoded once for all trials at one size."""
        folder = self.out / "cache" / f"pixels-{stem.spec.size_px}"
        return decoded(folder, self.material.records, self.material.hashes, stem.spec, self.console)

    def _features(self, stem: Stem, network: Network, recipe: Recipe) -> np.ndarray:
        with in_float32(network.trunk, recipe.precision):
            trunk = to_openvino(network.trunk)
        return trunk_cache(
            self.out / "cache" / f"cut-{recipe.cut_block}",
            trunk,
            self.material.records,
            self.material.hashes,
            stem.spec,
            view_count=recipe.views,
            seed=recipe.seed,
            weights_id=stem.trunk_id,
            console=self.console,
            artefacts=recipe.artefacts,
            what=f"Trunk features below block {recipe.cut_block + 1}",
            engine=self.engine,
        )


class _Reporting(Watch):
    """Prints nothing; hands the score of the best epoch so far on after each epoch."""

    def __init__(self, codes: Sequence[str], told: Report | None) -> None:
        super().__init__(Console(quiet=True), codes)
        self._told, self._so_far = told, -math.inf

    @contextmanager
    def stage(self, name: str, images: int, *, step: int = 0) -> Iterator[Callable[[int, float], None]]:
        yield lambda done, loss: None

    def epoch(self, name: str, row: Mapping[str, float], *, better: bool) -> None:
        if better:
            self._so_far = row["select_balanced_accuracy"]
        if self._told is not None:
            self._told(int(row["epoch"]), self._so_far)


@dataclass(frozen=True)
class Ended:
    """How a trial ended: one of WORDS, "complete" with its score, 0..1; `seconds` of work."""

    how: str
    score: float | None = None
    seconds: float = 0.0

    @property
    def words(self) -> str:
        """The end in words for a person."""
        return WORDS[self.how] if self.score is None else f"{self.score:.3f}"


WORDS = {
    "complete": "complete",
    "pruned": "ended early, below the median of the others",
    "diverged": "diverged",
    "lost": "ended every worker that tried it; it counts for nothing",
}

Heard = Callable[[int, int, float], bool]
"""Takes the number of a trial, an epoch and the score so far; says whether the trial shall end."""

Trials = Callable[
    [Any, Iterator[tuple[int, Recipe]], Heard, Callable[[], bool]], Generator[tuple[int, Ended], None, None]
]
"""Takes a `Bench`, numbered recipes, who hears of each epoch, and whether to stop; gives the ends as they come."""
