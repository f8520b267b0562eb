"""A model -> a file for another runtime, written only when that runtime agrees with Keras on real images.

Keras is loaded only where it is needed: the embedded model, which comes without its Keras copy, is still exported to
OpenVINO, compared with its own graph.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermlens.bundle.bundle import Bundle, find_bundle, load_bundle
from dermlens.bundle.probabilities import probabilities
from dermlens.data.images import load_image
from dermlens.errors import UsageError, WeightsError, os_errors
from dermlens.export.formats import FORMATS, OUTPUTS, Format, facts, write_openvino
from dermlens.export.readback import Answer, read_back
from dermlens.files import replace_folder
from dermlens.inference.inputs import expand
from dermlens.inference.runtime import Runtime
from dermlens.networks.backend import AGREEMENT

MOST_IMAGES = 32
PACKAGE = Path(__file__).resolve().parents[1]
CLONE_EXAMPLES = PACKAGE.parents[1] / "examples" / "images"
ONE_EXAMPLE = PACKAGE / "serving" / "static" / "example.jpg"


@dataclass(frozen=True)
class Agreement:
    """How far a runtime is from its reference on the same images.

    Attributes:
        outputs: output -> largest difference as a share of the output's largest absolute value.
        probability: largest difference in a probability.
        same_diagnosis: images of `images` with the same diagnosis.
        reference: "Keras", or "the bundle's graph" where there is no Keras model.
    """

    outputs: dict[str, float]
    probability: float
    same_diagnosis: int
    images: int
    reference: str

    @property
    def worst(self) -> float:
        return max(self.outputs.values())


@dataclass(frozen=True)
class Exported:
    """A file, or the folder of a SavedModel, that has passed; `bytes` counts all of it."""

    path: Path
    bytes: int
    runtime: str
    facts: dict[str, str]
    agreement: Agreement


def default_images() -> list[str]:
    """Return the example images: the clone's, or the one that the package brings."""
    return [str(CLONE_EXAMPLES if CLONE_EXAMPLES.is_dir() else ONE_EXAMPLE)]


def export(
    model: str,
    name: str,
    out: Path | None = None,
    *,
    images: Sequence[str] = (),
    overwrite: bool = False,
    need: Callable[..., None] = lambda extra, *modules: None,
    say: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Export a model.

    Args:
        model: a run folder, a bundle folder, or the name of an embedded model.
        name: a format of `FORMATS`.
        out: where to; the model's name with the format's suffix in the working folder when None.
        images: files and folders to compare on, the first 32 of them; `default_images` when empty.
        overwrite: replace what stands there.
        need: called with the extra and modules that must be installed; raises MissingExtraError.
        say: called with a line before each step that takes a while.

    Raises:
        WeightsError: there is no Keras model, or the file differs from it by more than 1e-3; nothing is written.
        UsageError: something stands at `out`. BundleError, ImageError, StorageError: with the remedy.
    """
    chosen = FORMATS[name]
    bundle = load_bundle(find_bundle(model))
    keras_path = _find_keras(bundle)
    if chosen.keras and keras_path is None:
        raise _no_keras(model, chosen)
    need(chosen.extra, *chosen.modules)
    target = _target(out, bundle, chosen, overwrite)
    pixels = _pixels(images or default_images(), bundle)
    texts = facts(bundle, chosen)
    with _staged(target) as made:
        expected, reference = _make(bundle, chosen, keras_path, texts, made, pixels, say)
        say(f"Loading it with {chosen.runtime} in a process of its own ...")
        answer = read_back(name, made, pixels)
        agreement = compare(bundle, answer.outputs, expected, reference)
        _check(agreement, answer, texts, chosen)
    return Exported(target, _size(target), answer.runtime, texts, agreement)


def _make(
    bundle: Bundle,
    chosen: Format,
    keras_path: Path | None,
    texts: dict[str, str],
    made: Path,
    pixels: np.ndarray,
    say: Callable[[str], None],
) -> tuple[list[np.ndarray], str]:
    """Write the file to `made`; return what it has to answer, and whose answer that is."""
    served = Runtime(bundle.graph_path).run(pixels)
    graph = [served.logits, served.embedding, served.feature_map]
    if not chosen.keras:
        write_openvino(bundle.graph_path, texts, made)
        if keras_path is None or importlib.util.find_spec("tensorflow") is None:
            return graph, "the bundle's graph"
    say("Starting TensorFlow ...")
    from dermlens.networks.backend import load_tensorflow

    load_tensorflow()
    from dermlens.export.converters import convert, keras_outputs
    from dermlens.training.network import in_float32, load_keras

    precision = str(bundle.card.recipe["precision"])
    model = load_keras(str(keras_path))
    with in_float32(model, precision):
        expected = keras_outputs(model, pixels)
    _check_same_model(bundle, graph, expected, keras_path)
    if chosen.keras:
        say(f"Converting {keras_path} ...")
        convert(model, chosen.name, texts, made, precision=precision)
    return expected, "Keras"


def compare(bundle: Bundle, found: list[np.ndarray], expected: list[np.ndarray], reference: str) -> Agreement:
    """Compare the outputs of a runtime with the reference's, and what they mean after calibration."""
    outputs = {name: _difference(a, b) for name, a, b in zip(OUTPUTS, found, expected, strict=True)}
    if not np.isfinite(list(outputs.values())).all():
        return Agreement(outputs, float("nan"), 0, len(expected[0]), reference)
    mix = bundle.case_mix.of(bundle.codes)
    shares = [probabilities(logits, bundle.calibration, mix) for logits in (found[0], expected[0])]
    named = [share.argmax(axis=1) for share in shares]
    moved = float(np.abs(shares[0] - shares[1]).max())
    return Agreement(outputs, moved, int((named[0] == named[1]).sum()), len(named[0]), reference)


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / max(1e-6, float(np.abs(expected).max())))


def _check(agreement: Agreement, answer: Answer, texts: dict[str, str], chosen: Format) -> None:
    if not agreement.worst <= AGREEMENT:
        raise WeightsError(
            f"The exported {chosen.name} file differs from {agreement.reference} by {agreement.worst:.2g} of the "
            f"largest value. Allowed is {AGREEMENT}.",
            remedy="Nothing was written. Use the pinned versions in requirements/export.txt, or another format.",
            code="export_disagrees",
        )
    if answer.facts != texts:
        lost = sorted(name for name in texts if answer.facts.get(name) != texts[name])
        raise WeightsError(
            f"The exported {chosen.name} file lost what it has to say of itself: {', '.join(lost) or 'too much'}.",
            remedy="Nothing was written. Use the pinned versions in requirements/export.txt.",
            code="export_facts_lost",
        )


def _check_same_model(bundle: Bundle, graph: list[np.ndarray], expected: list[np.ndarray], path: Path | None) -> None:
    """Refuse a Keras model that is not the one that the bundle's calibration belongs to."""
    worst = max(_difference(a, b) for a, b in zip(graph, expected, strict=True))
    if not worst <= AGREEMENT:
        raise WeightsError(
            f"{path} is not the model in {bundle.folder}: they differ by {worst:.2g} of the largest value.",
            remedy="Finish that run by `dermlens train ... --resume`, or give the run that the bundle is of.",
            code="keras_mismatch",
        )


def _find_keras(bundle: Bundle) -> Path | None:
    """Return the Keras model beside a bundle: in its folder, or in the run folder around it."""
    places = (bundle.folder / "model.keras", bundle.folder.parent / "model.keras")
    return next((path for path in places if path.is_file()), None)


def _no_keras(model: str, chosen: Format) -> WeightsError:
    return WeightsError(
        f"--format {chosen.name} is made from the Keras model, and there is no model.keras beside {model!r}. "
        "The embedded model comes as an OpenVINO graph alone; `dermlens train` leaves model.keras in its run folder.",
        remedy="Give the folder of a run, or use --format openvino. The embedded model's Keras copy is made by "
        "`make train-default DERMLENS_DATA=...`, in runs/default.",
        code="keras_missing",
    )


def _target(out: Path | None, bundle: Bundle, chosen: Format, overwrite: bool) -> Path:
    path = out or Path(re.sub(r"[^\w.-]+", "_", bundle.name) + chosen.suffix)
    if path.name in ("", ".."):
        raise UsageError(f"--out {path} names no file.", remedy=f"For example --out model{chosen.suffix}.")
    if chosen.suffix.startswith(".") and path.suffix != chosen.suffix:
        raise UsageError(
            f"--out {path} does not end in {chosen.suffix}, which --format {chosen.name} needs.",
            remedy=f"Name it {path.with_suffix(chosen.suffix)}.",
        )
    taken = [each for each in _parts(path) if each.exists()]
    if taken and not overwrite:
        raise UsageError(
            f"{taken[0]} exists already. An export is not overwritten by default.",
            remedy="Choose another --out, or add --overwrite.",
        )
    for each in taken:
        if each.is_dir() and not _may_go(each, chosen):
            raise UsageError(
                f"{each} is a folder, and no earlier export. --overwrite replaces nothing else.",
                remedy="Choose another --out.",
            )
    return path


def _may_go(folder: Path, chosen: Format) -> bool:
    """Tell whether a folder is an export of the same kind, or empty; a run or a bundle is never taken for one."""
    inside = {path.name for path in folder.iterdir()}
    export = not chosen.suffix.startswith(".") and "saved_model.pb" in inside
    return not inside or (export and not inside & {"model.keras", "bundle", "bundle.json"})


def _parts(path: Path) -> list[Path]:
    """All that an export consists of: an OpenVINO graph has its weights beside it."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def _pixels(images: Sequence[str], bundle: Bundle) -> np.ndarray:
    paths = expand(images).paths[:MOST_IMAGES]
    return np.stack([load_image(path, bundle.input_spec) for path in paths])


def _size(path: Path) -> int:
    files = [path, *path.rglob("*")] if path.is_dir() else _parts(path)
    return sum(file.stat().st_size for file in files if file.is_file())


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """Give a path to write to; when all went well, what is there takes the place of what `target` was."""
    with os_errors(f"The export could not be written to {target}", "Free some space or choose another --out."):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".dermlens-export-", dir=target.parent) as folder:
            made = Path(folder) / target.name
            yield made
            for new, old in zip(_parts(made), _parts(target), strict=True):
                replace_folder(new, old) if new.is_dir() else new.replace(old)
