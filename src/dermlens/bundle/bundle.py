"""A model as a folder: the graph and everything that is needed to use it correctly.

    graph.xml, graph.bin   OpenVINO graph: uint8 (n, h, w, 3) -> logits, embedding, feature_map
    head.npz               weights (d, classes) and bias (classes,) of the last layer, for class activation maps
    trust.npz              what images like those of the training look like (absent where too few were known)
    lesions.npz            logits, class and lesion of the calibrate and test images: what limits are computed from
    neighbours.npz         where one image of each training lesion is, and its name (absent where not asked for)
    baselines.npz          what model and linear probe said of each test image
    seen.json              what the model has learned from, by role: content hashes, lesion ids, ISIC ids
    bundle.json            labels, input, calibration, case mix, metrics, licences, SHA-256 of the other files
    MODEL_CARD.md          the same, for people

Nothing that predicting needs is an option, a constant or a file name. A damaged file is noticed when it is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dermlens.bundle.card import Card, damaged, read_card, write_card
from dermlens.bundle.card_text import model_card, model_facts
from dermlens.bundle.case_mix import CaseMix, make_mix, read_mix
from dermlens.bundle.limits import ROLES, Lesions, Limits, fit_limits
from dermlens.bundle.nearest import TrainingExamples
from dermlens.bundle.probabilities import Calibration
from dermlens.bundle.trust import Trust
from dermlens.data.images import InputSpec
from dermlens.errors import BundleError, StorageError
from dermlens.files import atomic_folder, sha256_of_file
from dermlens.text import nearest

ROLES_LEARNED_FROM = ("train", "select", "calibrate", "weights")  # weights: what the starting weights have met
CARD, MODEL_CARD, GRAPH, HEAD, SEEN = "bundle.json", "MODEL_CARD.md", "graph.xml", "head.npz", "seen.json"
TRUST_FILE, NEIGHBOURS_FILE, BASELINES_FILE = "trust.npz", "neighbours.npz", "baselines.npz"
LESIONS_FILE = "lesions.npz"
FILES = {GRAPH, "graph.bin", HEAD, SEEN, BASELINES_FILE, LESIONS_FILE}  # those that every bundle has
MODELS_DIR = Path(__file__).resolve().parent.parent / "models"
MOST_MIXES = 64  # whose limits are kept
HASH_CHARS = 32  # 128 bits of the SHA-256 are enough to recognise a file and halve the size of seen.json

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Seen:
    """What a model knows by heart, as sets of identifiers, one set for each kind."""

    content_hashes: frozenset[str]
    lesion_ids: frozenset[str]
    isic_ids: frozenset[str]

    def reason(self, content_hash: str | None, lesion_id: str | None, isic_id: str | None) -> str | None:
        """Say why an image counts as seen, or return None when it is new to the model."""
        if content_hash is not None and content_hash[:HASH_CHARS] in self.content_hashes:
            return "same image"
        if lesion_id is not None and lesion_id in self.lesion_ids:
            return "same lesion"
        if isic_id is not None and isic_id in self.isic_ids:
            return "same ISIC id or lesion"
        return None


@dataclass(frozen=True)
class Bundle:
    """A loaded and checked bundle; `card` is the whole of bundle.json."""

    folder: Path
    card: Card
    sha256: str  # of bundle.json, which has those of the other files
    trust: Trust
    lesions: Mapping[str, Lesions]  # of the roles calibrate and test

    def mix(self, given: str | Mapping[str, float] | CaseMix | None) -> CaseMix:
        """Return the case mix that is meant: its own where None is given.

        Raises:
            UsageError: (code `case_mix`) it is none of the model's classes, or `given` names nothing.
        """
        if isinstance(given, str):
            return read_mix(given, self.codes, self.card.training_mix)
        if isinstance(given, Mapping):
            return make_mix("own", given, self.codes)
        return self.case_mix if given is None else make_mix(given.name, given.shares, self.codes)

    def limits(self, mix: CaseMix) -> Limits:
        """Return what answers are judged by at a case mix of its classes; those of the last mixes are kept."""
        key: tuple[str | float, ...] = (mix.name, *mix.of(self.codes))
        found = self._limits.get(key)
        if found is None:
            found = limits_of(self.card, self.lesions, mix)
            if len(self._limits) >= MOST_MIXES:  # a server may be asked for any number of them
                self._limits.clear()
            self._limits[key] = found
        return found

    def model_card(self) -> str:
        """Return the model card as Markdown."""
        return model_card(self.card, self.limits(self.case_mix).points)

    @cached_property
    def _limits(self) -> dict[tuple[str | float, ...], Limits]:
        return {}

    @cached_property
    def codes(self) -> tuple[str, ...]:
        """The codes of the classes, in the order of the network's outputs."""
        return tuple(each.code for each in self.card.classes)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.card.classes)

    @cached_property
    def input_spec(self) -> InputSpec:
        return self.card.input.spec()

    @property
    def calibration(self) -> Calibration:
        return self.card.calibration

    @property
    def case_mix(self) -> CaseMix:
        return self.card.case_mix

    @property
    def modality(self) -> str:
        return self.card.modality

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def version(self) -> str:
        return self.card.version

    @property
    def scope(self) -> str:
        return self.card.scope

    @property
    def leaky(self) -> bool:
        """Whether training and test shared images or lesions."""
        return self.card.data.leaky

    @property
    def calibrated(self) -> bool:
        """Whether there was enough to fit a calibration on."""
        return self.card.calibration_fit.fitted

    @property
    def graph_path(self) -> Path:
        return self.folder / GRAPH

    @property
    def has_examples(self) -> bool:
        """Whether it knows the names of its training lesions."""
        return NEIGHBOURS_FILE in self.card.files

    def file_names(self) -> list[str]:
        """Return the names of all its files, sorted; BundleError where one is more than a name."""
        names = sorted({CARD, *self.card.files})
        for name in names:
            check_file_name(name)
        return names

    def copy_to(self, folder: Path) -> None:
        """Copy the files that its card lists, and no others, into a folder; links are read, not copied."""
        for name in self.file_names():
            shutil.copyfile(self.folder / name, folder / name)

    def facts(self) -> dict[str, Any]:
        """Return what to know of the model, ready for JSON; see `card_text.model_facts`."""
        size = sum(path.stat().st_size for path in self.folder.iterdir())
        return {**model_facts(self.card), "sha256": self.sha256, "size_mb": round(size / 1e6, 1)}

    def head(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the last layer: weights float32 (d, classes) and bias float32 (classes,)."""
        arrays = _arrays(self.folder / HEAD)
        return arrays["weights"], arrays["bias"]

    def examples(self) -> TrainingExamples:
        """Return the index of the training lesions, read anew at each call.

        Raises:
            BundleError: the bundle has none, or it is damaged.
        """
        if not self.has_examples:
            raise BundleError(
                f"The model {self.name!r} does not know its nearest training examples: {self.folder} has no "
                f"{NEIGHBOURS_FILE}.",
                remedy="Train the model again, without --no-neighbours.",
                code="no_neighbours",
            )
        path = self.folder / NEIGHBOURS_FILE
        try:
            return TrainingExamples.read(_arrays(path), self.codes)
        except (KeyError, TypeError, ValueError, OSError, BundleError) as error:
            raise damaged(f"{path}: an array is missing or wrong ({error!r})") from error

    def seen(self, roles: tuple[str, ...] = ROLES_LEARNED_FROM) -> Seen:
        """Return what the model, or the weights it started from, learned from in the given roles."""
        by_role = json.loads((self.folder / SEEN).read_text(encoding="utf-8"))

        def union(kind: str) -> frozenset[str]:
            return frozenset(item for role in roles if role in by_role for item in by_role[role][kind])

        return Seen(union("content_hashes"), union("lesion_ids"), union("isic_ids"))


def check_file_name(name: str) -> None:
    """Raise BundleError for a name that could lead out of the bundle's folder."""
    if not _PLAIN.fullmatch(name):
        raise BundleError(
            f"The bundle holds a file called {name!r}. Allowed are names of letters, digits, '.', '_' and '-', "
            "without folders.",
            remedy="Do not use it: dermlens writes no such bundles.",
            code="bundle_unsafe",
        )


def load_bundle(folder: str | Path) -> Bundle:
    """Load a bundle folder and check every file against its SHA-256.

    Raises:
        BundleError: a file or field is missing, unknown, changed, unreadable or from a newer version of dermlens.
    """
    folder = Path(folder)
    try:
        raw = (folder / CARD).read_bytes()
    except OSError as error:
        raise BundleError(
            f"No model bundle at {folder}: {error.strerror or error}. A bundle is a folder with {CARD}.",
            remedy="Give a name from `dermlens models`, a run folder or a bundle folder.",
            code="bundle_missing",
        ) from error
    card = read_card(raw, str(folder / CARD))
    _check_files(folder, card.files)
    try:
        arrays = _arrays(folder / TRUST_FILE) if TRUST_FILE in card.files else {}
        trust = Trust.read(card.trust, arrays)
    except (KeyError, TypeError, ValueError, BundleError) as error:
        raise damaged(f"{folder / TRUST_FILE}: an array is missing or wrong ({error!r})") from error
    return Bundle(folder, card, hashlib.sha256(raw).hexdigest(), trust, _lesions(folder, len(card.classes)))


def limits_of(card: Card, lesions: Mapping[str, Lesions], mix: CaseMix) -> Limits:
    """Return what answers are judged by at a case mix, from the stored lesions."""
    codes, facts = [each.code for each in card.classes], card.trust
    rule, sensitivity = facts.prediction_sets, facts.sensitivity
    return fit_limits(mix, codes, card.calibration, lesions, rule=rule, sensitivity=sensitivity)


def _lesions(folder: Path, n_classes: int) -> dict[str, Lesions]:
    try:
        arrays = _arrays(folder / LESIONS_FILE)
        found = {role: Lesions.read(arrays, role) for role in ROLES}
    except (KeyError, TypeError, ValueError, OSError, BundleError) as error:
        raise damaged(f"{folder / LESIONS_FILE}: an array is missing or wrong ({error!r})") from error
    if any(each.logits.shape[1] != n_classes for each in found.values()):
        raise damaged(f"{folder / LESIONS_FILE}: its logits are not of {n_classes} classes")
    return found


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _check_files(folder: Path, files: Mapping[str, str]) -> None:
    if missing := sorted(FILES - set(files)):
        raise damaged(f"{folder / CARD}: `files` lacks {', '.join(missing)}")
    for name, expected in files.items():
        path = folder / name
        try:
            actual = sha256_of_file(path)
        except OSError as error:
            raise damaged(f"{path}: the file is missing or unreadable") from error
        if actual != expected:
            raise damaged(f"{path}: its SHA-256 is {actual[:12]}…, recorded was {expected[:12]}…")


def write_bundle(
    folder: Path,
    card: Card,
    *,
    head: tuple[np.ndarray, np.ndarray],
    seen: Mapping[str, Mapping[str, list[str]]],
    write_graph: Callable[[Path], None],
    arrays: Mapping[str, Arrays],
) -> None:
    """Write a whole bundle beside its final place, then move it there, so that a failure leaves the old one whole.

    Args:
        card: of `card.make_card`; its `files` are written anew.
        head: weights (d, classes) and bias (classes,).
        seen: role -> {"content_hashes", "lesion_ids", "isic_ids"} -> sorted identifiers.
        write_graph: called with the path of graph.xml, writes it and graph.bin.
        arrays: by file (`baselines.npz`, `lesions.npz`, `trust.npz`, `neighbours.npz`) and name; a file without arrays
            is left out.

    Raises:
        StorageError: no space or no permission; the previous bundle is untouched.
    """
    with _staged(folder) as staging:
        write_graph(staging / GRAPH)
        np.savez(staging / HEAD, weights=head[0], bias=head[1])
        (staging / SEEN).write_text(json.dumps(seen, separators=(",", ":")) + "\n", encoding="utf-8")
        _complete(staging, card, arrays)


def rewrite_bundle(folder: Path, card: Card, arrays: Mapping[str, Arrays]) -> None:
    """Give a bundle another card and other arrays; a file that is not in `arrays` stays, one without arrays goes.

    Raises:
        StorageError: no space or no permission; the bundle is untouched.
    """
    with _staged(folder) as staging:
        shutil.copytree(folder, staging, dirs_exist_ok=True)
        _complete(staging, card, arrays)


def derive_bundle(
    bundle: Bundle,
    folder: Path,
    card: Card,
    *,
    seen: Mapping[str, Mapping[str, list[str]]],
    arrays: Mapping[str, Arrays],
) -> None:
    """Write a bundle with the network of another one to `folder`; a file that is not in `arrays` is that of the other.

    Raises:
        StorageError: no space or no permission; what was in `folder` is untouched.
    """
    with _staged(folder) as staging:
        bundle.copy_to(staging)
        (staging / SEEN).write_text(json.dumps(seen, separators=(",", ":")) + "\n", encoding="utf-8")
        _complete(staging, card, arrays)


def _complete(folder: Path, card: Card, arrays: Mapping[str, Arrays]) -> None:
    """Write the arrays, the model card and, last, bundle.json with the SHA-256 of all of them."""
    for name, values in arrays.items():
        (folder / name).unlink(missing_ok=True)
        if values:
            np.savez_compressed(folder / name, allow_pickle=False, **values)
    points = limits_of(card, _lesions(folder, len(card.classes)), card.case_mix).points
    (folder / MODEL_CARD).write_text(model_card(card, points), encoding="utf-8")
    (folder / CARD).unlink(missing_ok=True)
    files = {path.name: sha256_of_file(path) for path in sorted(folder.iterdir())}
    (folder / CARD).write_bytes(write_card(msgspec.structs.replace(card, files=files)))


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Give a folder beside `folder` to write to; when all went well it takes the place of `folder`."""
    try:
        with atomic_folder(folder) as staging:
            yield staging
    except (OSError, RuntimeError) as error:  # OpenVINO raises a RuntimeError when the disk is full
        raise StorageError(
            f"The model bundle could not be written to {folder}: {getattr(error, 'strerror', None) or error}.",
            remedy="Free some space or choose another folder; what was there before is unchanged.",
        ) from error


def find_bundle(model: str | Path) -> Path:
    """Return the bundle folder that MODEL means: an embedded name, an added one, a run folder or a bundle folder.

    Raises:
        BundleError: nothing is there.
    """
    if isinstance(model, str) and (MODELS_DIR / model / "bundle.json").is_file():
        return MODELS_DIR / model
    if isinstance(model, str) and model in user_models():
        return user_models_dir() / model
    path = Path(model)
    for candidate in (path, path / "bundle"):
        if (candidate / "bundle.json").is_file():
            return candidate
    names = [*embedded_models(), *user_models()]
    beside = [str(each.parent.parent) for each in path.parent.glob("*/bundle/bundle.json")]
    raise BundleError(
        f"No model {str(model)!r}.{nearest(str(model), [*names, *beside])} Models here: {', '.join(names) or 'none'}; "
        "a run folder holds bundle/bundle.json.",
        remedy="Run `dermlens models` for the names, or give the folder that `dermlens train --out` wrote.",
        code="bundle_missing",
    )


def embedded_models() -> list[str]:
    """Return the names of the models that came with the package, sorted."""
    return sorted(p.parent.name for p in MODELS_DIR.glob("*/bundle.json"))


def user_models_dir() -> Path:
    """Return the folder of the models that were added: DERMLENS_MODELS, or one in the user's data folder."""
    own = os.environ.get("DERMLENS_MODELS")
    if own:
        return Path(own)
    from platformdirs import user_data_path

    return user_data_path("dermlens", appauthor=False) / "models"


def user_models() -> list[str]:
    """Return the names of the models that were added, sorted; one being written does not count."""
    return sorted(p.parent.name for p in user_models_dir().glob("[!.]*/bundle.json"))
