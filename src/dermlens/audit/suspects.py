"""Labels that are likely wrong: confident learning on what a linear probe says of images that it was not fitted on.

The probe is fitted on embeddings of a network that never saw these labels, in folds that never cut through a lesion or
a group of near duplicates. cleanlab (Northcutt et al. 2021, doi 10.1613/jair.1.12125) then asks which labels the probe
denies more firmly than is usual for their class. A suspect is a reason to look, never a correction.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from dermlens.audit.findings import Finding
from dermlens.data.records import Record

VERSION = "2"
FOLDS = 5
MAX_IMAGES = 50_000
MAX_SUSPECTS = 0.1  # of the images: beyond that a list of suspects helps nobody
_COMPONENTS = 200
_STRENGTH = 0.001
_REMEDY = "Look at it, or have it looked at; a repair never changes a label for this reason."


@dataclass(frozen=True)
class Suspect:
    """One image whose label the probe denies.

    Attributes:
        image: its index.
        suggested: the diagnosis that the probe finds likeliest.
        score: probability of the given label, out of fold: 0 (denied) to 1.
    """

    image: int
    suggested: str
    score: float


def label_suspects(
    records: Sequence[Record],
    vectors: npt.NDArray[np.float16],
    keys: Sequence[str],
    groups: Sequence[int],
    *,
    seed: int = 0,
) -> list[Suspect]:
    """Return the images whose label is likely wrong, the likeliest first; of a copied file each copy.

    Args:
        records: n images.
        vectors, keys: from `embed`; images without a key are passed over, as are classes of fewer than 5 groups.
        groups: n numbers, equal for images that must stay in one fold.
    """
    chosen = _usable(records, keys, groups, seed)
    names = sorted({records[i].diagnosis for i in chosen})
    if len(names) < 2:
        return []
    labels = np.array([names.index(records[i].diagnosis) for i in chosen])
    told = out_of_fold(vectors[chosen], labels, np.array([groups[i] for i in chosen]), len(names), seed=seed)
    return [Suspect(chosen[place], names[to], score) for place, to, score in ranked(labels, told)]


def out_of_fold(
    vectors: npt.NDArray[np.float16],
    labels: npt.NDArray[np.int64],
    groups: npt.NDArray[Any],
    classes: int,
    *,
    seed: int,
) -> npt.NDArray[np.float64]:
    """Return probabilities (n, classes) of a linear probe, each row by one that saw no image of its group."""
    result = np.full((len(labels), classes), 1e-6)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings(), threadpool_limits(1):  # small products: on a busy machine threads only wait
        warnings.simplefilter("ignore", UserWarning)  # a rare class may miss a fold
        warnings.simplefilter("ignore", ConvergenceWarning)
        for train, test in folds.split(vectors, labels, groups):
            parts = min(_COMPONENTS, vectors.shape[1], len(train))
            probe = make_pipeline(
                StandardScaler(),
                PCA(parts, svd_solver="randomized", random_state=seed),
                LogisticRegression(C=_STRENGTH, max_iter=200),
            )
            probe.fit(vectors[train].astype(np.float32), labels[train])
            result[np.ix_(test, probe.classes_)] = probe.predict_proba(vectors[test].astype(np.float32))
    result /= result.sum(axis=1, keepdims=True)
    return result


def ranked(labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]) -> list[tuple[int, int, float]]:
    """Return (row, likelier class, score) of likely label errors, the likeliest first."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    issues = find_label_issues(labels, probabilities, filter_by="prune_by_noise_rate", n_jobs=1)
    scores = get_label_quality_scores(labels, probabilities, method="self_confidence")
    best = probabilities.argmax(axis=1)
    rows = [int(row) for row in np.flatnonzero(issues & (best != labels))]
    rows.sort(key=lambda row: (scores[row], row))
    return [
        (row, int(best[row]), round(float(scores[row]), 6)) for row in rows[: max(1, int(MAX_SUSPECTS * len(labels)))]
    ]


def suspect_findings(records: Sequence[Record], suspects: Sequence[Suspect]) -> list[Finding]:
    """Return one finding for each suspect, in order."""
    return [
        Finding(
            "label_suspect",
            "warning",
            (records[s.image].image,),
            f"Labelled {records[s.image].diagnosis}; it looks like {s.suggested} to a probe that never saw its lesion "
            f"(score {s.score:.3f}, 0 is the most doubtful; {place} of {len(suspects)}).",
            _REMEDY,
            (records[s.image].diagnosis,),
            (records[s.image].split or "",),
            (s.suggested,),
        )
        for place, s in enumerate(suspects, start=1)
    ]


def suspects_by_pair(records: Sequence[Record], suspects: Sequence[Suspect]) -> dict[str, int]:
    """Count suspects by given and suggested label: {"NV->MEL": 12}."""
    return dict(Counter(f"{records[s.image].diagnosis}->{s.suggested}" for s in suspects).most_common())


def _usable(records: Sequence[Record], keys: Sequence[str], groups: Sequence[int], seed: int) -> list[int]:
    known = [i for i, key in enumerate(keys) if key]
    if len(known) > MAX_IMAGES:
        known = sorted(np.random.default_rng(seed).choice(known, MAX_IMAGES, replace=False).tolist())
    size = Counter(code for code, _ in {(records[i].diagnosis, groups[i]) for i in known})
    return [i for i in known if size[records[i].diagnosis] >= FOLDS]
