"""Every setting of a training, in one frozen record that is saved beside the run."""

from __future__ import annotations

import difflib
import json
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dermlens.errors import RecipeError, os_errors
from dermlens.files import write_text

SCHEMA = "dermlens/recipe/1"
FREE = ("devices", "case_mix")
"""Settings that do not decide about the weights: a run resumes with others."""


def _between(low: float, default: float, high: float) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


def _one_of(*choices: str, default: str) -> Any:
    return field(default=default, metadata={"choices": choices})


@dataclass(frozen=True)
class Recipe:
    """Settings of a training; the defaults suit a folder of some hundreds to ten thousand images on a laptop.

    Attributes:
        backbone: a name from `networks/family.py`.
        weights: "pretrained" (the real ImageNet weights of the backbone: "imagenet" or "lite"), "none" (random), the
            path of a weight file, or the folder of an earlier run.
        size_px: side of the square that the network sees; 0 takes the backbone's own.
        framing: how a non-square image becomes square, see `InputSpec`.
        fine_tune: "head" trains the last layer alone over frozen features, "top" the upper blocks over cached trunk
            features, "full" the whole network on fresh views; "auto" takes top on a processor, and full on a GPU or
            over random weights.
        cut_block: with "top", blocks up to this one are frozen and computed once, the later ones are trained; -1
            chooses by the backbone. `--unfreeze BLOCK` names the first block that is trained instead.
        batch_norm: "frozen" leaves batch normalisation as it was pretrained, which fine-tuning needs on small
            data; "updated" trains it and follows the batches; "auto" updates only where weights start at random.
        layer_decay: each block learns at this share of the rate of the block above it; 1 gives all the same rate.
        views: with "top", augmented views of each training image in the cache, beside the plain one; 0 keeps no
            cache and computes fresh views in every epoch.
        epochs: in one epoch as many images are drawn, by class balance and with replacement, as there are to train
            on; each in one random view.
        head_epochs: epochs of the head alone over the frozen features, before fine-tuning.
        batch_size: images in a step; 0 takes 64, or, where the memory is too small for it, the largest multiple of 8
            that fits.
        learning_rate, head_learning_rate: peak rates of AdamW; warm-up, then cosine to zero.
        weight_decay: decoupled weight decay of AdamW, not applied to biases and normalisation.
        clip_norm: largest norm of all gradients together; 0 does not clip.
        warmup_share: share of the steps in which the rate rises from zero.
        ema_decay: decay of the averaged weights, the ones that are evaluated and kept.
        artefacts: share of the augmented views into which a dark rim, hair, ink or a ruler is drawn, so that the
            network learns to ignore them; without effect on "head", which sees only plain views.
        label_smoothing: share of the target spread over all classes.
        dropout: before the last layer.
        class_balance: 0 draws images as they come, 1 draws all classes equally often.
        mixup: alpha of the beta distribution that mixes pairs of training inputs; 0 switches it off.
        loss: "cross_entropy", "focal" or "generalised_cross_entropy"; `training/step.py` says when to use which.
        focal_gamma: how much the focal loss neglects easy images.
        noise_q: of the generalised cross-entropy: near 0 it is cross-entropy, at 1 it tolerates most wrong labels.
        logit_adjustment: share of the log prior that training adds to the logits (Menon et al. 2021); an
            alternative to `class_balance`, which should then be 0.
        patience: training stops after so many epochs without a better one on select; 0 never stops early.
        train, select, calibrate, test: shares of the lesions in the four roles.
        case_mix: for which case mix the model states its probabilities by default: "equal", "training", or the name
            of a CSV or JSON file of code and share.
        precision: "float32", "mixed_float16" or "mixed_bfloat16"; "auto" takes float32 on a processor, and on a GPU
            whichever a short trial finds faster.
        deterministic: use operations that give the same bits each time on one machine.
        devices: with "full", GPUs of this machine that share each batch; 0 takes all that TensorFlow sees.
        threads: processor threads of TensorFlow; 0 takes all. The same bits need the same number.
        seed: of the split, the views, the sampling and the dropout.
    """

    backbone: str = "lite0"
    weights: str = "pretrained"
    size_px: int = _between(0, 0, 1024)
    framing: str = _one_of("centre_crop", "squash", "pad", default="centre_crop")
    fine_tune: str = _one_of("auto", "head", "top", "full", default="auto")
    cut_block: int = _between(-1, -1, 128)
    batch_norm: str = _one_of("auto", "frozen", "updated", default="auto")
    layer_decay: float = _between(0.1, 1.0, 1.0)
    views: int = _between(0, 6, 64)
    epochs: int = _between(0, 10, 1000)
    head_epochs: int = _between(1, 20, 1000)
    batch_size: int = _between(0, 0, 4096)
    learning_rate: float = _between(0.0, 2e-4, 1.0)
    head_learning_rate: float = _between(0.0, 3e-3, 1.0)
    weight_decay: float = _between(0.0, 0.02, 1.0)
    clip_norm: float = _between(0.0, 1.0, 1000.0)
    warmup_share: float = _between(0.0, 0.1, 0.9)
    ema_decay: float = _between(0.0, 0.995, 0.99999)
    artefacts: float = _between(0.0, 0.0, 1.0)
    label_smoothing: float = _between(0.0, 0.05, 0.9)
    dropout: float = _between(0.0, 0.3, 0.9)
    class_balance: float = _between(0.0, 0.7, 1.0)
    mixup: float = _between(0.0, 0.2, 10.0)
    loss: str = _one_of("cross_entropy", "focal", "generalised_cross_entropy", default="cross_entropy")
    focal_gamma: float = _between(0.0, 2.0, 10.0)
    noise_q: float = _between(0.01, 0.7, 1.0)
    logit_adjustment: float = _between(0.0, 0.0, 2.0)
    patience: int = _between(0, 5, 1000)
    train: float = _between(0.05, 0.66, 1.0)
    select: float = _between(0.01, 0.09, 0.9)
    calibrate: float = _between(0.01, 0.10, 0.9)
    test: float = _between(0.01, 0.15, 0.9)
    case_mix: str = "equal"
    precision: str = _one_of("auto", "float32", "mixed_float16", "mixed_bfloat16", default="auto")
    deterministic: bool = True
    devices: int = _between(0, 0, 64)
    threads: int = _between(0, 0, 1024)
    seed: int = _between(0, 0, 2**31 - 1)

    def __post_init__(self) -> None:
        for one in fields(self):
            value, low, high = getattr(self, one.name), one.metadata.get("low"), one.metadata.get("high")
            if low is not None and not low <= value <= high:
                raise RecipeError(
                    f"Recipe setting {one.name} is {value}. Allowed is {low} to {high}.",
                    remedy=f"Set {one.name} within that range.",
                )
            choices = one.metadata.get("choices", (value,))
            if value not in choices:
                raise RecipeError(
                    f"Recipe setting {one.name} is {value!r}. Allowed is one of {', '.join(choices)}.",
                    remedy=f"Set {one.name} to one of them.",
                )
        total = sum(self.fractions.values())
        if abs(total - 1) > 1e-6:
            raise RecipeError(
                f"The shares train + select + calibrate + test add up to {total:.4g}. They must add up to 1.",
                remedy="Change one of the four shares in the recipe.",
            )

    @property
    def fractions(self) -> dict[str, float]:
        """Shares of the lesions by role; they add up to 1."""
        return {"train": self.train, "select": self.select, "calibrate": self.calibrate, "test": self.test}

    def as_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    def save(self, path: Path) -> None:
        """Write the resolved recipe as JSON; OSError leaves an older one as it was."""
        write_text(path, json.dumps(self.as_dict(), indent=1) + "\n")


def make_recipe(settings: dict[str, Any], *, base: Recipe | None = None) -> Recipe:
    """Return `base` (the defaults when None) with `settings` put over it.

    Raises:
        RecipeError: an unknown setting (the nearest names are given), a value of the wrong type or out of range.
    """
    types = {f.name: type(getattr(Recipe(), f.name)) for f in fields(Recipe)}
    clean: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "schema":
            _check_schema(value)
            continue
        if name not in types:
            near = difflib.get_close_matches(name, types, n=3, cutoff=0.5) or sorted(types)
            raise RecipeError(
                f"Unknown recipe setting {name!r}. The nearest known ones are {', '.join(near)}.",
                remedy="Correct the name, or remove the line.",
            )
        kind = types[name]
        number = kind is float and isinstance(value, int) and not isinstance(value, bool)
        if not number and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)):
            raise RecipeError(
                f"Recipe setting {name} is {value!r}. It must be of type {kind.__name__}.",
                remedy=f"Give {name} a value like {getattr(Recipe(), name)!r}.",
            )
        clean[name] = float(value) if number else value
    return replace(base or Recipe(), **clean)


def _check_schema(value: object) -> None:
    if value != SCHEMA:
        raise RecipeError(
            f"The recipe has schema {value!r}. This version of dermlens reads {SCHEMA!r}.",
            remedy="Upgrade dermlens, or remove the line and see which settings are unknown.",
            code="recipe_version",
        )


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the settings of a TOML recipe (or of the JSON one that a run saved)."""
    try:
        with os_errors(f"The recipe {path} cannot be read", "Give an existing TOML file.", RecipeError):
            text = path.read_text(encoding="utf-8")
        settings = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise RecipeError(
            f"The recipe {path} is not valid: {error}.", remedy="Write lines such as `epochs = 10`."
        ) from error
    if not isinstance(settings, dict):
        raise RecipeError(f"The recipe {path} holds no settings.", remedy="Write lines such as `epochs = 10`.")
    return settings


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """Read `name=value` pairs as TOML values; text needs no quotes.

    Raises:
        RecipeError: a pair without `=`.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise RecipeError(
                f"--set got {pair!r}. It takes name=value.", remedy="Write for example --set learning_rate=0.0005."
            )
        try:
            settings[name.strip()] = tomllib.loads(f"value = {text.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            settings[name.strip()] = text.strip()
    return settings
