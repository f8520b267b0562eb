"""`bundle.json` as a typed record: what every field is, checked when it is read, by the name of its place.

A damaged card gives one error that names the field's path, what was expected there and, for an unknown field, the
nearest known one. Tables of figures stay mappings, since each measure has the same form: see `text.Figure`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NotRequired, TypedDict, get_args, get_type_hints

import msgspec

from dermlens.bundle.case_mix import CaseMix
from dermlens.bundle.probabilities import Calibration, Facts
from dermlens.bundle.site import Site
from dermlens.bundle.trust import TrustFacts
from dermlens.data.images import InputSpec
from dermlens.errors import BundleError, DermlensError
from dermlens.text import Figure, nearest, one_line

SCHEMA = "dermlens/bundle/3"
RECIPE_FIELDS = ("backbone", "weights", "fine_tune", "precision")  # those that a bundle is read for
RECIPE_SETTINGS = (  # all of `training.recipe.Recipe`, which this floor may not import
    *(*RECIPE_FIELDS, "schema", "size_px", "framing", "cut_block", "batch_norm", "layer_decay", "views", "epochs"),
    *("head_epochs", "batch_size", "learning_rate", "head_learning_rate", "weight_decay", "clip_norm", "warmup_share"),
    *("ema_decay", "artefacts", "label_smoothing", "dropout", "class_balance", "mixup", "loss", "focal_gamma"),
    *("noise_q", "logit_adjustment", "patience", "train", "select", "calibrate", "test", "case_mix"),
    *("deterministic", "devices", "threads", "seed"),
)


class Class(Facts, frozen=True):
    """One class, in the order of the network's outputs."""

    code: str
    name: str


class Input(Facts, frozen=True):
    """How images are prepared: the fields of `data.images.InputSpec`."""

    size_px: int
    interpolation: str
    framing: str

    def __post_init__(self) -> None:
        self.spec()

    def spec(self) -> InputSpec:
        """Return the specification; raises UsageError where it makes no sense."""
        return InputSpec.from_dict(self.as_dict())


class Backbone(Facts, frozen=True):
    """The network that was fine-tuned, and the licence of its starting weights."""

    name: str
    title: str
    weights: str
    licence: str


class BiasTest(TypedDict):
    """Whether a bias for each class helped, see `evaluation.calibration.BiasTest`."""

    kept: bool
    reason: str | None
    log_loss_temperature: float | None
    log_loss_bias: float | None
    gain: float | None
    standard_error: float | None
    parts: int
    repeats: int
    seed: int


class CalibrationFit(Facts, frozen=True):
    """What the calibration was fitted on; `reason` says why there is none."""

    fitted: bool
    reason: str | None
    lesions: int
    bias: BiasTest | None


class Data(Facts, frozen=True):
    """The images of the training: `roles` is class -> role -> (images, lesions)."""

    fingerprint: str
    manifest_sha256: str | None
    images: int
    images_unreadable: int
    unreadable: tuple[str, ...]
    lesions_known: float
    roles: dict[str, dict[str, tuple[int, int]]]
    sources: tuple[str, ...]
    notes: tuple[str, ...]
    audit: tuple[str, ...]
    leaky: bool
    not_tested_on: tuple[str, ...]


class Training(Facts, frozen=True):
    """How the training went."""

    epochs_done: int
    best_epoch: int
    interrupted: bool
    stopped: str | None
    select_balanced_accuracy: float
    minutes: float
    export_difference: float
    select_macro_auc: float | None = None


class ClassFigures(TypedDict):
    """The figures of one class against all others."""

    n: int
    n_lesions: int
    sensitivity: Figure
    specificity: Figure
    auc: Figure
    sensitivity_at_90_specificity: NotRequired[Figure]


class Metrics(Facts, frozen=True):
    """The figures on the test role."""

    split: str
    n: int
    n_lesions: int
    classes: tuple[str, ...]
    interval: dict[str, int | float | str]
    accuracy: Figure
    balanced_accuracy: Figure
    macro_auc: Figure
    ece: Figure
    brier: Figure
    log_loss: Figure
    case_mix: str
    per_class: dict[str, ClassFigures]
    confusion_matrix: dict[str, str | list[str | list[int | float]]]


class Probe(Facts, frozen=True):
    """The linear probe on the same images."""

    accuracy: Figure
    balanced_accuracy: Figure
    macro_auc: Figure
    model_minus_probe_balanced_accuracy: Figure
    regularisation_c: float
    converged: bool
    strength_at_edge: bool


class MethodFigures(TypedDict):
    """The figures of one way to answer; `sensitivity` by class."""

    balanced_accuracy: Figure
    accuracy: Figure
    sensitivity: dict[str, Figure]


class Baselines(Facts, frozen=True):
    """Model, probe and majority class side by side, see `evaluation.baselines`; `words` sum it up."""

    lesions: int
    majority_class: str
    methods: dict[str, MethodFigures]
    model_minus: dict[str, dict[str, Figure]]
    better_than_probe: bool | None
    words: tuple[str, ...]


class Licence(Facts, frozen=True):
    """The licences of the code and of the weights."""

    code: str
    weights: str


class SourceAlone(Facts, frozen=True):
    """How well the source of an image alone predicts its class."""

    balanced_accuracy: float
    chance: float
    share_of_class_by_source: dict[str, dict[str, float]]
    sentence: str


class Card(Facts, frozen=True):
    """The whole of `bundle.json`.

    Attributes:
        scope: what the model reads and what it does not.
        case_mix: the model's own: what its probabilities are stated for unless another one is asked for.
        training_mix: how common each class is among the lesions of the training data.
        recipe: the settings of `training.recipe.Recipe`.
        site: where the limits come from, if they were fitted again to a site's own lesions.
        files: the other files of the bundle and their SHA-256.
    """

    schema: str
    name: str
    version: str
    created: str
    scope: str
    modality: str
    classes: tuple[Class, ...]
    input: Input
    backbone: Backbone
    calibration: Calibration
    calibration_fit: CalibrationFit
    case_mix: CaseMix
    training_mix: CaseMix
    recipe: dict[str, bool | int | float | str]
    data: Data
    training: Training
    metrics: Metrics
    probe: Probe
    licence: Licence
    versions: dict[str, str]
    baselines: Baselines
    trust: TrustFacts
    source_alone: SourceAlone | None = None
    site: Site | None = None
    files: dict[str, str] = {}  # noqa: RUF012  msgspec makes a new one for each card

    def __post_init__(self) -> None:
        if len(self.classes) != (n := len(self.calibration.training_prior)):
            raise ValueError(f"{len(self.classes)} classes, but a calibration of {n}")
        codes = {each.code for each in self.classes}
        if any(set(mix.shares) != codes for mix in (self.case_mix, self.training_mix)):
            raise ValueError("a case mix is of other classes than the model")
        if missing := [name for name in RECIPE_FIELDS if name not in self.recipe]:
            raise ValueError(f"`recipe` lacks {', '.join(missing)}")
        if unknown := sorted(set(self.recipe) - set(RECIPE_SETTINGS)):
            raise ValueError(f"`recipe` has an unknown setting {unknown[0]}.{nearest(unknown[0], RECIPE_SETTINGS)}")

    def with_trust(self, facts: Mapping[str, Any]) -> Card:
        """Return the card with another `trust` object."""
        return make_card({**self.as_dict(), "trust": facts})


def make_card(values: Mapping[str, Any]) -> Card:
    """Return the card that plain values mean; `schema` and `files` are added.

    Raises:
        BundleError: a field is missing, unknown or of another type.
    """
    return _checked(lambda: msgspec.convert({"schema": SCHEMA, **values}, Card), "The card")


def read_card(raw: bytes, place: str) -> Card:
    """Return the card in the bytes of a `bundle.json`.

    Raises:
        BundleError: it is of another schema, or damaged; `place` says in the message where it is.
    """
    try:
        schema = msgspec.json.decode(raw, type=_Schema).schema
    except msgspec.ValidationError:
        schema = None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise damaged(f"{place}: it is not JSON ({error})") from error
    if schema != SCHEMA:
        raise BundleError(
            f"{place} has schema {schema!r}. This version of dermlens reads {SCHEMA!r}.",
            remedy="Upgrade dermlens, or train the model again.",
            code="bundle_version",
        )
    return _checked(lambda: msgspec.json.decode(raw, type=Card), place)


def write_card(card: Card) -> bytes:
    """Return the bytes of `bundle.json`; an infinite limit is null."""
    return msgspec.json.format(msgspec.json.encode(card), indent=1) + b"\n"


def damaged(why: str) -> BundleError:
    """Return the error for a bundle that was changed or cut off."""
    return BundleError(
        f"The model bundle is damaged: {(why := one_line(why)).rstrip('.')}{'' if why.endswith('?') else '.'}",
        remedy="Copy the bundle again, reinstall dermlens, or train the model again.",
        code="bundle_damaged",
    )


class _Schema(msgspec.Struct):
    schema: Any = None


def _checked(read: Callable[[], Card], place: str) -> Card:
    try:
        return read()
    except (msgspec.MsgspecError, RecursionError) as error:
        raise damaged(f"{place}: {_explained(str(error))}") from error
    except DermlensError as error:
        raise damaged(f"{place}: {error.message}") from error


def _explained(said: str) -> str:
    """Say with the field's whole path what msgspec found, and for an unknown field which one is like it."""
    what, _, where = said.partition(" - at `$")
    path = where.rstrip("`").lstrip(".")
    if field := re.search(r"missing required field `(\w+)`", what):
        return f"it lacks {'.'.join(filter(None, (path, field[1])))}"
    if field := re.search(r"unknown field `(.*)`", what):
        known = [name for kind in _structs_at(path) for name in kind.__struct_fields__]
        return f"it has an unknown field {'.'.join(filter(None, (path, field[1])))}.{nearest(field[1], known)}"
    return f"{path}: {what}" if path else what


def _structs_at(path: str) -> list[type[Facts]]:
    """Return what can be at a path such as `trust.operating_points[0]`: one kind of object, or none."""
    found: list[type[Facts]] = [Card]
    for name in filter(None, re.sub(r"\[.*?\]", "", path).split(".")):
        found = [kind for each in found for kind in _structs_in(get_type_hints(each).get(name))]
    return found


def _structs_in(hint: Any) -> list[type[Facts]]:
    if isinstance(hint, type) and issubclass(hint, Facts):
        return [hint]
    return [kind for part in get_args(hint) for kind in _structs_in(part)]
