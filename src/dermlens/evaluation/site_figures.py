"""What a model with its limits reaches on a site's labelled images: one half of the table of `dermlens calibrate`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from dermlens.bundle.case_mix import make_mix
from dermlens.bundle.limits import Limits, grave_codes, is_referred, measure_sets, mix_weights, weighted_share
from dermlens.bundle.site import SHARES, SiteFigures
from dermlens.bundle.trust import Trust
from dermlens.evaluation.bootstrap import sampled_figure, weightings
from dermlens.evaluation.fit_trust import Calibrated, Sample, judge_sample
from dermlens.evaluation.metrics import Bools, mean_loss
from dermlens.evaluation.scores import score
from dermlens.text import Figure


def site_figures(
    model: Calibrated, trust: Trust, limits: Limits, sample: Sample, present: Sequence[str], *, seed: int
) -> SiteFigures:
    """Measure a model with its limits on labelled images.

    Args:
        sample: answered by that model.
        present: the classes that have lesions at the site.
    """
    codes, groups = model.codes, sample.lesions.tolist()
    mix, shares = model.case_mix, limits.shares
    scored = score(sample.y_true, sample.probability, sample.decision, groups, codes, mix=mix, seed=seed)
    judged = judge_sample(model, trust, limits, sample)
    status = np.array([each["status"] for each in judged])
    drawn = weightings(sample.y_true, sample.lesions, seed=seed)
    mixed = drawn * mix_weights(sample.y_true, sample.lesions, shares)
    everyone = len(np.unique(sample.lesions))

    def on(side: Bools, hits: Bools) -> Figure:
        weights = mix_weights(sample.y_true[side], sample.lesions[side], shares)
        return weighted_share(hits[side], weights, sample.lesions[side])

    inside, point, coverage, size = limits.sets(sample.probability), limits.referral, None, None
    if inside is not None:
        coverage = measure_sets(inside, sample.known, codes, shares)["coverage"]
        size = sampled_figure(mean_loss(inside.sum(axis=1).astype(np.float64), mixed), reason="no lesions")
    advised = np.array([each["referral"]["advised"] is True for each in judged], np.bool_)
    grave = np.isin(sample.y_true, [codes.index(code) for code in grave_codes(codes)])
    at_point: dict[str, Figure | None] = dict.fromkeys(("sensitivity", "specificity", "grave_sent", "others_sent"))
    if point is not None:
        columns = [codes.index(code) for code in point.codes]
        referred = is_referred(sample.probability, columns, point.threshold)
        at_point = {
            "sensitivity": on(grave, referred),
            "specificity": on(~grave, ~referred),
            "grave_sent": on(grave, advised),
            "others_sent": on(~grave, advised),
        }
    figures = {
        **{name: scored[name] for name in ("balanced_accuracy", "accuracy")},
        "ece": _error_among(model, sample, present, seed),
        "coverage": coverage,
        "mean_size": size,
        **at_point,
        "status": {
            name: sampled_figure(mean_loss((status == name) * 1.0, drawn), reason="no images", lesions=everyone)
            for name in SHARES
        },
        "temperature": model.calibration.temperature,
        "referral_threshold": None if point is None else point.threshold,
        "novelty_threshold": None if trust.novelty is None else trust.novelty.threshold,
    }
    return msgspec.convert(figures, SiteFigures)


def _error_among(model: Calibrated, sample: Sample, present: Sequence[str], seed: int) -> Figure:
    """Return the calibration error among the classes that have lesions, at the case mix of these."""
    columns = np.array([model.codes.index(code) for code in present], np.int64)
    probability = sample.probability[:, columns] / sample.probability[:, columns].sum(axis=1, keepdims=True)
    truth, decision = np.searchsorted(columns, sample.y_true), probability.argmax(axis=1)
    mix = make_mix(model.case_mix.name, {code: model.case_mix.shares[code] for code in present}, present)
    ece: Figure = score(truth, probability, decision, sample.lesions.tolist(), present, mix=mix, seed=seed)["ece"]
    return ece
