"""One recipe tried on the train and select roles: a score after each epoch, and never a look at calibrate or test.

The images of the other roles are dropped before anything is computed. All trials share the trunk features of a cut;
each trial starts from the pretrained weights again.
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

from dermlens.training.caches import pixel_cache, trunk_cache
from dermlens.training.checkpoint import assign, values_of
from dermlens.training.device import devices
from dermlens.training.features import Engine, FeatureSpec, local_engine
from dermlens.training.feed import EVAL_BATCH, Feed, from_arrays, from_images
from dermlens.training.fit import Stage, fine_tuning, fit, head_training
from dermlens.training.material import Material
from dermlens.training.network import Network, Stem, add_head, embed, export_graph, open_backbone
from dermlens.training.recipe import Recipe
from dermlens.training.split import assign_folds
from dermlens.training.watch import Watch

Report = Callable[[int, float], None]
"""Called after each epoch with its number over all folds and the score so far; raises to end the trial."""


class Interrupted(Exception):
    """Ctrl-C ended a trial between two steps."""


def train_and_select(material: Material) -> Material:
    """Return the material without the images of calibrate and test."""
    rows = np.flatnonzero(np.isin(material.roles, ("train", "select")))
    images = material.images(rows)
    return replace(
        material,
        records=tuple(images.records),
        hashes=tuple(images.hashes),
        roles=material.roles[rows],
        labels=material.labels[rows],
    )


@dataclass(frozen=True)
class Fold:
    """Rows of the material to learn from and to score on."""

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
        material: from `train_and_select`.
        out: folder of the caches.
        embeddings: of all images by the network as it was pretrained, float32 (n, d); computed where None.
        engine: computes trunk features.
    """

    material: Material
    folds: Sequence[Fold]
    out: Path
    console: Console
    embeddings: np.ndarray | None = None
    engine: Engine = local_engine

    def score(self, recipe: Recipe, report: Report) -> float:
        """Train as the recipe says, once for each fold, and return the mean balanced accuracy of the best epochs, 0..1.

        Raises:
            Interrupted: Ctrl-C. What `report` raises ends the trial too.
        """
        stem, network, embeddings = self._open(recipe)
        start = values_of(network.whole.weights)
        epochs = 1 + (recipe.head_epochs if recipe.fine_tune == "head" else recipe.epochs)
        best: list[float] = []
        for number, fold in enumerate(self.folds):
            assign(network.whole.weights, start)

            def after_epoch(epoch: int, score: float, number: int = number) -> None:
                report(number * epochs + epoch, float(np.mean([*best, score])))

            best.append(self._train(stem, network, embeddings, recipe, fold, after_epoch))
        return float(np.mean(best))

    def prepare(self, recipe: Recipe) -> None:
        """Compute what all trials with the cut of this recipe share, so that other processes find it."""
        stem, network, _ = self._open(recipe)
        if recipe.fine_tune == "top" and recipe.views:
            self._features(stem, network, recipe)
        elif recipe.fine_tune != "head":
            self._pixels(stem)

    def _open(self, recipe: Recipe) -> tuple[Stem, Network, np.ndarray]:
        keras.backend.clear_session()
        keras.utils.set_random_seed(recipe.seed)
        stem = open_backbone(recipe)
        network = add_head(stem, recipe, len(self.material.codes))
        if self.embeddings is None:
            self.embeddings = embed(stem, network, self.material.images(), recipe, local_engine, self.console)
        return stem, network, self.embeddings

    def _train(
        self, stem: Stem, network: Network, embeddings: np.ndarray, recipe: Recipe, fold: Fold, after_epoch: Report
    ) -> float:
        """Train the head, then the blocks, on one fold and return the best score of the last stage."""
        labels, head_only = self.material.labels, recipe.fine_tune == "head"
        feed = from_arrays(
            embeddings[fold.train][:, None], labels[fold.train], embeddings[fold.select], labels[fold.select]
        )
        stage = head_training(recipe, embeddings[fold.train])
        score = self._fit(network.head, feed, stage, recipe, after_epoch if head_only else None)
        if head_only or not recipe.epochs:
            return score
        model = network.classifier if recipe.fine_tune == "top" and recipe.views else network.whole
        feed = self._feed(stem, network, recipe, fold)
        return self._fit(model, feed, fine_tuning(recipe), recipe, after_epoch, devices(recipe))

    def _fit(
        self,
        model: keras.Model,
        feed: Feed,
        stage: Stage,
        recipe: Recipe,
        after_epoch: Report | None,
        spread: Sequence[str] = (),
    ) -> float:
        codes = self.material.codes
        history = fit(model, feed, stage, recipe, codes, _ReportingWatch(codes, after_epoch), devices=spread)
        if history.interrupted:
            raise Interrupted
        return history.best_score

    def _feed(self, stem: Stem, network: Network, recipe: Recipe, fold: Fold) -> Feed:
        material, labels = self.material, self.material.labels
        if recipe.fine_tune == "full" or not recipe.views:
            pixels = self._pixels(stem)
            return from_images(
                material, fold.train, fold.select, stem.spec, recipe, lambda place: pixels(int(fold.train[place]))
            )
        features = self._features(stem, network, recipe)
        plain, batch = np.ascontiguousarray(features[fold.select, 0]), min(EVAL_BATCH, 2 * recipe.batch_size)
        feed = from_arrays(features, labels[fold.train], plain, labels[fold.select], batch=batch)
        return replace(feed, load=lambda draw: features[fold.train[draw.rows], draw.views])

    def _pixels(self, stem: Stem) -> Callable[[int], np.ndarray]:
        """Row of the material -> what its views start from, decoded once for all trials at one size."""
        folder = self.out / "cache" / f"pixels-{stem.spec.size_px}"
        return pixel_cache(folder, self.material.images(), stem.spec, self.console)

    def _features(self, stem: Stem, network: Network, recipe: Recipe) -> np.ndarray:
        return trunk_cache(
            self.out / "cache" / f"cut-{recipe.cut_block}",
            export_graph(network.trunk, recipe.precision),
            self.material.images(),
            FeatureSpec(stem.spec, recipe.views, recipe.seed, recipe.artefacts, dtype="float16"),
            weights_id=stem.trunk_id,
            console=self.console,
            what=f"Trunk features below block {recipe.cut_block + 1}",
            engine=self.engine,
        )


class _ReportingWatch(Watch):
    """Prints nothing; reports the score of the best epoch so far after each epoch."""

    def __init__(self, codes: Sequence[str], after_epoch: Report | None) -> None:
        super().__init__(Console(quiet=True), codes)
        self._after_epoch, self._best_score = after_epoch, -math.inf

    @contextmanager
    def stage(self, name: str, images: int, *, step: int = 0) -> Iterator[Callable[[int, float], None]]:
        yield lambda done, loss: None

    def epoch(self, name: str, row: Mapping[str, float], *, better: bool) -> None:
        if better:
            self._best_score = row["select_balanced_accuracy"]
        if self._after_epoch is not None:
            self._after_epoch(int(row["epoch"]), self._best_score)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: one of WORDS, "complete" with its score, 0..1; `seconds` of work."""

    how: str
    score: float | None = None
    seconds: float = 0.0


WORDS = {
    "complete": "complete",
    "pruned": "ended early, below the median of the others",
    "diverged": "diverged",
    "lost": "ended every worker that tried it; it does not count",
}

OnEpoch = Callable[[int, int, float], bool]
"""Takes the number of a trial, an epoch and the score so far; says whether the trial shall end."""

Trials = Callable[
    [Any, Iterator[tuple[int, Recipe]], OnEpoch, Callable[[], bool]], Generator[tuple[int, Outcome], None, None]
]
"""Takes a `Bench`, numbered recipes, what to call after each epoch and whether to stop; gives outcomes as they come."""
