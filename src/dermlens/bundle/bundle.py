"""The artefact: a folder with the graph and everything needed to use it correctly.

    graph.xml, graph.bin   OpenVINO graph: uint8 (n, h, w, 3) -> logits, embedding, feature_map
    head.npz               weights (d, classes) and bias (classes,) of the last layer, for class activation maps
    trust.npz              what images like those of the training look like (absent where too few were known)
    neighbours.npz         where one image of each training lesion lies, and its name (absent where not asked for)
    baselines.npz          what model and linear probe said of each test image
    seen.json              what the model has learned from, by role: content hashes, lesion ids, ISIC ids
    bundle.json            labels, input, calibration, decision rule, metrics, licences, SHA-256 of the other files
    MODEL_CARD.md          the same, for people

Nothing needed to predict is a flag, a constant or a file name. A damaged file is noticed on load.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dermlens.bundle.decision import Calibration, DecisionRule
from dermlens.bundle.nearest import TrainingExamples
from dermlens.bundle.trust import Trust
from dermlens.data.images import InputSpec
from dermlens.errors import BundleError, DermlensError, StorageError
from dermlens.files import atomic_folder, sha256_of_file

SCHEMA = "dermlens/bundle/1"
ROLES_LEARNED_FROM = ("train", "select", "calibrate", "weights")  # weights: what the starting weights have met
TRUST_FILE, NEIGHBOURS_FILE, BASELINES_FILE = "trust.npz", "neighbours.npz", "baselines.npz"
FILES = {"graph.xml", "graph.bin", "head.npz", "seen.json", BASELINES_FILE}
_WHAT_IT_IS = ("name", "version", "created", "scope", "modality", "classes", "licence", "versions")
_HOW_IT_ANSWERS = ("input", "backbone", "calibration", "calibration_fit", "decision_rule", "trust")
_HOW_IT_WAS_MADE = ("recipe", "data", "training", "metrics", "probe", "baselines")
FIELDS = _WHAT_IT_IS + _HOW_IT_ANSWERS + _HOW_IT_WAS_MADE  # of bundle.json; all are needed
MODELS_DIR = Path(__file__).resolve().parent.parent / "models"


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


HASH_CHARS = 32  # 128 bits of the SHA-256 are enough to recognise a file and halve the size of seen.json


@dataclass(frozen=True)
class Bundle:
    """A loaded and checked bundle; `card` is the whole of bundle.json."""

    folder: Path
    card: dict[str, Any]
    sha256: str
    codes: tuple[str, ...]
    names: tuple[str, ...]
    input_spec: InputSpec
    calibration: Calibration
    decision_rule: DecisionRule
    name: str
    version: str
    scope: str  # what the model reads and what it does not
    leaky: bool  # training and test shared images or lesions
    calibrated: bool  # False where there was too little to fit a temperature on
    trust: Trust

    @property
    def graph_path(self) -> Path:
        return self.folder / "graph.xml"

    def head(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the last layer: weights float32 (d, classes) and bias float32 (classes,)."""
        with np.load(self.folder / "head.npz", allow_pickle=False) as arrays:
            return arrays["weights"], arrays["bias"]

    @property
    def has_examples(self) -> bool:
        """Whether it knows the names of its training lesions."""
        return NEIGHBOURS_FILE in self.card["files"]

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
            with np.load(path, allow_pickle=False) as arrays:
                return TrainingExamples.read(dict(arrays), self.codes)
        except (KeyError, TypeError, ValueError, OSError, BundleError) as error:
            raise _damaged(path, f"an array is missing or wrong ({error!r})") from error

    def seen(self, roles: tuple[str, ...] = ROLES_LEARNED_FROM) -> Seen:
        """Return what the model, or the weights it started from, learned from in the given roles."""
        by_role = json.loads((self.folder / "seen.json").read_text(encoding="utf-8"))

        def union(kind: str) -> frozenset[str]:
            return frozenset(item for role in roles if role in by_role for item in by_role[role][kind])

        return Seen(union("content_hashes"), union("lesion_ids"), union("isic_ids"))


def load_bundle(folder: str | Path) -> Bundle:
    """Load a bundle folder and check every file against its SHA-256.

    Raises:
        BundleError: a file or field is missing, changed, unreadable or from a newer version of dermlens.
    """
    folder = Path(folder)
    path = folder / "bundle.json"
    try:
        raw = path.read_bytes()
        card = json.loads(raw)
    except OSError as error:
        raise BundleError(
            f"No model bundle at {folder}: {error.strerror or error}. A bundle is a folder with bundle.json.",
            remedy="Give a name from `dermlens models`, a run folder or a bundle folder.",
            code="bundle_missing",
        ) from error
    except ValueError as error:
        raise _damaged(path, f"it is not JSON ({error})") from error
    if not isinstance(card, dict) or card.get("schema") != SCHEMA:
        got = card.get("schema") if isinstance(card, dict) else type(card).__name__
        raise BundleError(
            f"{path} has schema {got!r}. This version of dermlens reads {SCHEMA!r}.",
            remedy="Upgrade dermlens, or train the model again.",
            code="bundle_version",
        )
    if missing := [name for name in FIELDS if name not in card]:
        raise _damaged(path, f"it lacks {', '.join(missing)}")
    _check_files(folder, card.get("files"))
    try:
        return Bundle(
            folder=folder,
            card=card,
            sha256=hashlib.sha256(raw).hexdigest(),
            codes=tuple(c["code"] for c in card["classes"]),
            names=tuple(c["name"] for c in card["classes"]),
            input_spec=InputSpec.from_dict(card["input"]),
            calibration=Calibration.from_dict(card["calibration"]),
            decision_rule=DecisionRule.from_dict(card["decision_rule"]),
            name=str(card["name"]),
            version=str(card["version"]),
            scope=str(card["scope"]),
            leaky=bool(card["data"]["leaky"]),
            calibrated=bool(card["calibration_fit"]["fitted"]),
            trust=Trust.read(card, _trust_arrays(folder, card["files"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError, DermlensError) as error:
        raise _damaged(path, f"a field is missing or wrong ({error!r})") from error


def _trust_arrays(folder: Path, files: Mapping[str, str]) -> dict[str, npt.NDArray[np.floating]]:
    if TRUST_FILE not in files:
        return {}
    with np.load(folder / TRUST_FILE, allow_pickle=False) as arrays:
        return dict(arrays)


def _check_files(folder: Path, files: Any) -> None:
    if not isinstance(files, dict) or not set(files) >= FILES:
        raise _damaged(folder / "bundle.json", f"it must list the files {', '.join(sorted(FILES))}")
    for name, expected in files.items():
        path = folder / name
        try:
            actual = sha256_of_file(path)
        except OSError as error:
            raise _damaged(path, "the file is missing or unreadable") from error
        if actual != expected:
            raise _damaged(path, f"its SHA-256 is {actual[:12]}…, recorded was {expected[:12]}…")


def _damaged(path: Path, why: str) -> BundleError:
    return BundleError(
        f"The model bundle is damaged: {path}: {why}.",
        remedy="Copy the bundle again, reinstall dermlens, or export the model anew from its run.",
        code="bundle_damaged",
    )


def write_bundle(
    folder: Path,
    card: dict[str, Any],
    *,
    head: tuple[np.ndarray, np.ndarray],
    seen: Mapping[str, Mapping[str, list[str]]],
    write_graph: Callable[[Path], None],
    model_card: str,
    arrays: Mapping[str, Mapping[str, npt.NDArray[Any]]],
) -> None:
    """Write a whole bundle beside its final place, then move it there, so that a failure leaves the old one whole.

    Args:
        card: bundle.json without `schema` and `files`, which are added here.
        head: weights (d, classes) and bias (classes,).
        seen: role -> {"content_hashes", "lesion_ids", "isic_ids"} -> sorted identifiers.
        write_graph: called with the path of graph.xml, writes it and graph.bin.
        model_card: the text of MODEL_CARD.md.
        arrays: file name -> arrays of that `.npz`; a file without arrays is left out.
    Raises:
        StorageError: no space or no permission; the previous bundle is untouched.
    """
    with _staged(folder) as staging:
        write_graph(staging / "graph.xml")
        np.savez(staging / "head.npz", weights=head[0], bias=head[1])
        (staging / "seen.json").write_text(json.dumps(seen, separators=(",", ":")) + "\n", encoding="utf-8")
        for name, named in arrays.items():
            if named:
                np.savez_compressed(staging / name, allow_pickle=False, **named)
        (staging / "MODEL_CARD.md").write_text(model_card, encoding="utf-8")
        _write_card(staging, card)


def _write_card(folder: Path, card: Mapping[str, Any]) -> None:
    files = {p.name: sha256_of_file(p) for p in sorted(folder.iterdir())}
    whole = {**card, "schema": SCHEMA, "files": files}
    text = json.dumps({"schema": SCHEMA, **whole}, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "bundle.json").write_text(text + "\n", encoding="utf-8")


def add_trust(
    folder: Path,
    card: dict[str, Any],
    arrays: Mapping[str, npt.NDArray[np.float32]],
    model_card: str,
    examples: TrainingExamples | None = None,
) -> None:
    """Give a bundle another card, the arrays of its novelty score, the index of its training lesions; all else stays.

    Args:
        card: the whole of bundle.json; `schema` and `files` are written anew.
        arrays: for `trust.npz`; none leaves the file out.
        examples: for `neighbours.npz`; None leaves the file out.

    Raises:
        StorageError: no space or no permission; the bundle is untouched.
    """
    kept = {} if examples is None else examples.arrays()
    _rewrite(folder, card, {TRUST_FILE: arrays, NEIGHBOURS_FILE: kept}, model_card)


def add_baselines(folder: Path, card: dict[str, Any], arrays: Mapping[str, npt.NDArray[Any]], model_card: str) -> None:
    """Give a bundle another card and its `baselines.npz`; all else stays.

    Raises:
        StorageError: no space or no permission; the bundle is untouched.
    """
    _rewrite(folder, card, {BASELINES_FILE: arrays}, model_card)


def _rewrite(
    folder: Path,
    card: Mapping[str, Any],
    files: Mapping[str, Mapping[str, npt.NDArray[Any]]],
    model_card: str,
) -> None:
    with _staged(folder) as staging:
        shutil.copytree(folder, staging, dirs_exist_ok=True)
        (staging / "bundle.json").unlink()
        for name, arrays in files.items():
            (staging / name).unlink(missing_ok=True)
            if arrays:
                np.savez_compressed(staging / name, allow_pickle=False, **arrays)
        (staging / "MODEL_CARD.md").write_text(model_card, encoding="utf-8")
        _write_card(staging, card)


def copy_bundle(source: Path, target: Path) -> None:
    """Copy a bundle; a failure leaves what stood at the target.

    Raises:
        StorageError: no space or no permission.
    """
    with _staged(target) as staging:
        shutil.copytree(source, staging, dirs_exist_ok=True)


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Give a folder beside `folder` to write to; when all went well it takes the place of `folder`."""
    try:
        with atomic_folder(folder) as staging:
            yield staging
    except (OSError, RuntimeError) as error:  # OpenVINO tells a full disk by a RuntimeError
        raise StorageError(
            f"The model bundle could not be written to {folder}: {getattr(error, 'strerror', None) or error}.",
            remedy="Free some space or choose another folder; what stood there before is unchanged.",
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
    names = ", ".join([*embedded_models(), *user_models()]) or "none"
    raise BundleError(
        f"No model {str(model)!r}. Models here: {names}; a run folder holds bundle/bundle.json.",
        remedy="Run `dermlens models` for the names, or give the folder that `dermlens train --out` wrote.",
        code="bundle_missing",
    )


def embedded_models() -> list[str]:
    """Return the names of the models that came with the package, sorted."""
    return sorted(p.parent.name for p in MODELS_DIR.glob("*/bundle.json"))


def user_models_dir() -> Path:
    """Return the folder of the models that were added: DERMLENS_MODELS, or one in the XDG data folder."""
    own = os.environ.get("DERMLENS_MODELS")
    if own:
        return Path(own)
    xdg = os.environ.get("XDG_DATA_HOME", "")
    return (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".local" / "share") / "dermlens" / "models"


def user_models() -> list[str]:
    """Return the names of the models that were added, sorted; one being written does not count."""
    return sorted(p.parent.name for p in user_models_dir().glob("[!.]*/bundle.json"))
