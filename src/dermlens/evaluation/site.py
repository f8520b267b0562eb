"""A finished model and a site's labelled lesions -> the same network with limits of that site; nothing is trained.

Fitted on a part of the lesions: temperature (and biases where they help), the kind of sets, the operating point, the
threshold of novelty (its subspace stays) and the limits of quality. Measured on the others, beside the model as it
came.
"""

from __future__ import annotations

import datetime
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dermlens.bundle.bundle import CARD, LESIONS_FILE, SEEN, Bundle, derive_bundle, load_bundle
from dermlens.bundle.card import Card, make_card
from dermlens.bundle.card_text import bias_words
from dermlens.bundle.case_mix import CaseMix, mix_words
from dermlens.bundle.limits import (
    METHODS,
    MIN_LESIONS,
    ROLES,
    Lesions,
    Limits,
    SetMethod,
    grave_codes,
)
from dermlens.bundle.probabilities import Calibration
from dermlens.bundle.site import Origin, Site, SiteFigures, SiteImages, site_rows, site_sentences, site_version
from dermlens.bundle.trust import Trust, TrustFacts
from dermlens.data.manifest import manifest_sha256
from dermlens.data.records import Dataset
from dermlens.diagnoses import DISCLAIMER
from dermlens.errors import UsageError, os_errors
from dermlens.evaluation.calibration import SEPARATED, BiasTest, fit_calibration
from dermlens.evaluation.fit_model import Fit
from dermlens.evaluation.fit_trust import (
    ACCEPTED_SHARE,
    Calibrated,
    Labelled,
    Sample,
    choose_sets,
    fit_quality,
    lesion_quantile,
    limits_for,
    measure_answers,
    run_model,
)
from dermlens.evaluation.metrics import Bools, Ints
from dermlens.evaluation.site_data import SiteData, check_enough, names_of, read_site
from dermlens.evaluation.site_figures import site_figures
from dermlens.inference.runtime import Runtime
from dermlens.text import percent

PARTS = 5  # of the fitted lesions: each kind of sets is tried on lesions that did not fit it
SENSITIVITY, HELD_OUT = (0.5, 0.999), (0.1, 0.9)
REMEDY = "Choose another --out."


@dataclass(frozen=True)
class Wishes:
    """What a site may choose: the options of `dermlens calibrate`."""

    sensitivity: float = 0.95
    case_mix: str | None = None
    held_out: float = 0.4
    name: str | None = None
    seed: int = 0
    overwrite: bool = False

    def check(self) -> None:
        """Raise UsageError for a share out of its range."""
        for option, value, (low, high) in (
            ("sensitivity", self.sensitivity, SENSITIVITY),
            ("held_out", self.held_out, HELD_OUT),
        ):
            if not low <= value <= high:
                raise UsageError(
                    f"--{option.replace('_', '-')} is {value:g}. Allowed are {low:g} to {high:g}.",
                    remedy="Write 95 % as 0.95.",
                    code=option,
                )


def fit_to_site(bundle: Bundle, dataset: Dataset, out: Path, wishes: Wishes, *, console: Console) -> tuple[Bundle, int]:
    """Write to `out` the model with limits that are fitted to the lesions of a site, and show what they give.

    Returns:
        The new model, and how many images could not be read.

    Raises:
        UsageError: `out` or a wish is not allowed. DataError: too few lesions. StorageError: `out` cannot be written;
            what was there before is unchanged.
    """
    wishes.check()
    check_place(out, bundle, overwrite=wishes.overwrite)
    mix = bundle.mix(wishes.case_mix)
    found = read_site(bundle, dataset, held_out=wishes.held_out, seed=wishes.seed, console=console)
    check_enough(found, bundle, wishes.held_out)
    started = time.monotonic()
    before = Fit(bundle.codes, bundle.input_spec, bundle.calibration, mix, bundle.modality)
    found, samples = _answer(before, bundle, found, console)
    after = _fit(before, samples["calibrate"].known, wishes.seed, console)
    samples = {role: sample.answered_by(after) for role, sample in samples.items()}
    facts = _facts(after, bundle, samples, wishes)
    limits = limits_for(after, {role: sample.known for role, sample in samples.items()}, facts)
    trust = Trust.read(msgspec.convert(facts, TrustFacts), _novelty_arrays(bundle))
    test = samples["test"]
    present, seed = tuple(found.counts(bundle.codes)), wishes.seed
    figures = {
        "before": site_figures(before, bundle.trust, bundle.limits(mix), test.answered_by(before), present, seed=seed),
        "after": site_figures(after, trust, limits, test, present, seed=seed),
    }
    facts |= {
        "measured": measure_answers(after, samples, facts, _novelty_arrays(bundle)),
        "fitted_in_s": round(time.monotonic() - started, 1),
    }
    site = _site(bundle, dataset, found, wishes, figures)
    lesions = {name: array for role in ROLES for name, array in samples[role].known.arrays(role).items()}
    card = _card(bundle, after, facts, site, name=wishes.name or out.resolve().name)
    derive_bundle(bundle, out, card, seen=seen_with(bundle, found), arrays={LESIONS_FILE: lesions})
    _show(site, after.case_mix, limits, out, console)
    return load_bundle(out), len(found.unreadable)


def check_place(out: Path, bundle: Bundle, *, overwrite: bool) -> None:
    """Refuse a place for the new model before any work is done.

    Raises:
        UsageError: it is the model itself, within it, something that is no model, or a model without `overwrite`.
        StorageError: nothing can be written there.
    """
    full, own = out.resolve(), bundle.folder.resolve()
    if full == own or own in full.parents or full in own.parents:
        raise UsageError(f"--out {out} is the model itself, or its folder.", remedy=REMEDY, code="out_is_model")
    if out.exists() or out.is_symlink():
        only_files = out.is_dir() and all(path.is_file() for path in out.iterdir())
        if not (only_files and (out / CARD).is_file()):
            raise UsageError(f"--out {out} exists already and is no model folder.", remedy=REMEDY, code="out_exists")
        if not overwrite:
            remedy = "Choose another --out, or add --overwrite."
            raise UsageError(f"--out {out} already holds a model.", remedy=remedy, code="out_exists")
    with os_errors(f"The model could not be written to {out}", REMEDY):
        full.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=full.parent):
            pass


def _answer(model: Calibrated, bundle: Bundle, found: SiteData, console: Console) -> tuple[SiteData, dict[str, Sample]]:
    """Run the network over all images once; return the fitted lesions as "calibrate", the others as "test"."""
    images = found.images
    numbered = Labelled(images.records, images.y_true, np.arange(len(images.records)))
    whole = run_model(model, Runtime(bundle.graph_path), numbered, console, "Answering")
    rows = whole.lesions  # which images could be read
    if len(rows) < len(images.records):
        gone = tuple(images.records[i].image for i in np.setdiff1d(np.arange(len(images.records)), rows))
        console.print(f"{len(gone)} more images cannot be read: {names_of(gone)}.", soft_wrap=True)
        hashes = tuple(found.hashes[i] for i in rows)
        found = replace(found, unreadable=(*found.unreadable, *gone), images=images.pick(rows), hashes=hashes)
        found = replace(found, held=found.held[rows], own_test=found.own_test[rows])
    return found, {
        role: _part(whole, found.images.lesions, side)
        for role, side in zip(ROLES, (~found.held, found.held), strict=True)
    }


def _part(whole: Sample, lesions: np.ndarray, chosen: Bools) -> Sample:
    """Return some of the images, their lesions numbered from 0 as the bundle stores them."""
    names = ("y_true", "embedding", "probability", "decision", "logits")
    numbers = np.unique(lesions[chosen], return_inverse=True)[1].astype(np.int64)
    qualities = tuple(quality for quality, one in zip(whole.qualities, chosen.tolist(), strict=True) if one)
    return replace(
        whole, lesions=numbers, qualities=qualities, **{name: getattr(whole, name)[chosen] for name in names}
    )


def _fit(before: Fit, known: Lesions, seed: int, console: Console) -> Fit:
    """Fit temperature and biases; where they cannot be fitted, those of the model stay, and that is said."""
    present = np.unique(known.classes)
    every = len(present) == len(before.codes)
    fit = before.calibrated_on(known, seed=seed) if every else _temperature_among(before, known, present, seed)
    if fit.reason is not None:
        console.print(f"The temperature of the model stays: {fit.reason}.", style="yellow", soft_wrap=True)
        return replace(before, reason=fit.reason, lesions=fit.lesions)
    if fit.bias is not None:
        console.print(bias_words(fit.bias.as_dict()), soft_wrap=True)
    return fit


def _temperature_among(before: Fit, known: Lesions, present: Ints, seed: int) -> Fit:
    """Fit the temperature among the classes that have lesions.

    The others cannot be right here, whatever the picture: to count their probability would make the model too sure.
    """
    prior = np.array(before.calibration.training_prior)
    few = fit_calibration(
        known.logits[:, present],
        np.searchsorted(present, known.classes),
        known.lesions,
        shares=(1 / len(present),) * len(present),
        training_prior=prior[present] / prior[present].sum(),
    )
    missing = ", ".join(code for c, code in enumerate(before.codes) if c not in present)
    return replace(
        before,
        calibration=Calibration(few.temperature, before.calibration.training_prior),
        reason=SEPARATED if few.temperature == 1.0 else None,
        lesions=len(np.unique(known.lesions)),
        bias=BiasTest(False, f"there are no lesions of {missing}", seed=seed),
    )


def _facts(model: Calibrated, bundle: Bundle, samples: Mapping[str, Sample], wishes: Wishes) -> dict[str, Any]:
    """Return the `trust` object of the new model, but for what is measured."""
    fitted_on, old = samples["calibrate"], bundle.card.trust
    lesions, novelty = len(np.unique(fitted_on.lesions)), bundle.trust.novelty
    if novelty is not None and lesions >= MIN_LESIONS:
        threshold = lesion_quantile(novelty.score(fitted_on.embedding), fitted_on.lesions, ACCEPTED_SHARE)
        first = novelty.first_threshold or novelty.threshold  # what is no lesion at all was measured there
        novelty = replace(novelty, threshold=max(threshold, 1e-9), kept=ACCEPTED_SHARE, first_threshold=first)
    training = {name: n for name, n in (old.fitted_on or {}).items() if name == "training_images"}
    return {
        "fitted_on": {"role": "calibrate", "images": len(fitted_on.y_true), "lesions": lesions, **training},
        "prediction_sets": choose_site_sets(model, fitted_on.known, seed=wishes.seed),
        "sensitivity": wishes.sensitivity,
        "novelty": None if novelty is None else novelty.as_dict(),
        "quality": fit_quality(fitted_on.qualities).as_dict(),
        "measured": None,
        "neighbours": old.neighbours,
    }


def _novelty_arrays(bundle: Bundle) -> dict[str, Any]:
    return {} if bundle.trust.novelty is None else bundle.trust.novelty.arrays()


def choose_site_sets(model: Calibrated, known: Lesions, *, seed: int) -> dict[str, Any] | None:
    """Return the kind of sets whose lists are shorter on lesions that did not fit them, in five parts.

    None where there are fewer than 20 lesions. Where four parts hold fewer, the lesions that fitted them decide.
    """
    numbers = np.unique(known.lesions)
    dealt = dict(zip(np.random.default_rng(seed).permutation(numbers).tolist(), range(len(numbers)), strict=True))
    part = np.array([dealt[n] % PARTS for n in known.lesions.tolist()], np.int64)
    rules = [choose_sets(model, _rows(known, part != k), _rows(known, part == k)) for k in range(PARTS)]
    lengths = [rule["lengths"] for rule in rules if rule and rule.get("lengths")]
    rule = choose_sets(model, known, known)
    if rule is None or len(lengths) < PARTS:
        return rule
    means: dict[SetMethod, float] = {name: float(np.mean([of[name] for of in lengths])) for name in METHODS}
    return {**rule, "method": min(METHODS, key=lambda name: means[name]), "lengths": means}


def _rows(known: Lesions, chosen: Bools) -> Lesions:
    return Lesions(known.logits[chosen], known.classes[chosen], known.lesions[chosen])


def _site(
    bundle: Bundle, dataset: Dataset, found: SiteData, wishes: Wishes, figures: Mapping[str, SiteFigures]
) -> Site:
    counts, lesions = found.counts(bundle.codes), found.images.lesions
    fitted, held = (len(np.unique(lesions[side])) for side in (~found.held, found.held))
    return Site(
        data=(dataset.origin or dataset.root).name,
        fingerprint=found.fingerprint,
        manifest_sha256=manifest_sha256(dataset),
        created=datetime.date.today().isoformat(),
        model=Origin(bundle.name, bundle.version, bundle.sha256),
        held_out=wishes.held_out,
        seed=wishes.seed,
        images=SiteImages(
            given=len(dataset.records),
            fitted=int((~found.held).sum()),
            held_out=int(found.held.sum()),
            seen=found.seen,
            own_test=int(found.own_test.sum()),
            unreadable=len(found.unreadable),
            class_not_in_model=found.class_not_in_model,
        ),
        lesions=counts,
        absent=tuple(code for code in bundle.codes if code not in counts),
        lesions_fitted=fitted,
        lesions_held_out=held,
        before=figures["before"],
        after=figures["after"],
    )


def _card(bundle: Bundle, fit: Fit, facts: Mapping[str, Any], site: Site, *, name: str) -> Card:
    fields = fit.as_dict()
    if fit.reason is not None:  # the calibration is still that of the model
        fields["calibration_fit"] = bundle.card.calibration_fit.as_dict()
    own = {"name": name, "version": site_version(bundle.version), "trust": facts, "site": site.as_dict()}
    return make_card({**bundle.card.as_dict(), **fields, **own})


def seen_with(bundle: Bundle, found: SiteData) -> dict[str, dict[str, list[str]]]:
    """Return `seen.json` with the fitted images in the role calibrate and the held-out ones in the role test."""
    seen: dict[str, dict[str, list[str]]] = json.loads((bundle.folder / SEEN).read_text(encoding="utf-8"))
    fitted, held = (_identifiers(found, side) for side in (~found.held, found.held))
    old = {role: seen.get(role, {}) for role in ROLES}
    calibrate = {kind: ids.union(old["calibrate"].get(kind, ())) for kind, ids in fitted.items()}
    test = {kind: ids.union(old["test"].get(kind, ())) - fitted[kind] for kind, ids in held.items()}
    roles = {"calibrate": calibrate, "test": test}
    return {**seen, **{role: {kind: sorted(ids) for kind, ids in of.items()} for role, of in roles.items()}}


def _identifiers(found: SiteData, chosen: Bools) -> dict[str, set[str]]:
    records = [record for record, one in zip(found.images.records, chosen.tolist(), strict=True) if one]
    return {
        "content_hashes": {digest for digest, one in zip(found.hashes, chosen.tolist(), strict=True) if one},
        "lesion_ids": {record.lesion_id for record in records if record.lesion_id},
        "isic_ids": {record.isic_id for record in records if record.isic_id},
    }


def _show(site: Site, mix: CaseMix, limits: Limits, out: Path, console: Console) -> None:
    """Print the figures side by side, and what to do next."""
    for line in site_sentences(site):
        console.print(line, soft_wrap=True)
    console.print(f"Percentages, sets and referral are meant {mix_words(mix)}.", soft_wrap=True)
    table = Table("on the held-out lesions", "as it came", "fitted here", box=None, pad_edge=False, header_style="dim")
    for row in site_rows(site):
        table.add_row(*map(Text, row))
    console.print(table)
    if limits.referral is None:
        grave = grave_codes([*mix.shares])
        why = "every class of the model is" if grave else "no class of the model is"
        console.print(f"No operating point: {why} malignant or premalignant.", style="yellow", soft_wrap=True)
    before, after = (each.status["ok"]["value"] or 0.0 for each in (site.before, site.after))
    if after < before / 2:
        console.print(
            f"Only {percent(after)} of the answers are ok now ({percent(before)} before): at this case mix the model "
            "cannot tell these lesions apart. Try --case-mix with the shares of your own patients, or more lesions.",
            style="yellow",
            soft_wrap=True,
        )
    console.print(f"Written: {out}. Predict with it: dermlens predict IMAGE --model {out}", soft_wrap=True)
    console.print(DISCLAIMER, style="bold")
