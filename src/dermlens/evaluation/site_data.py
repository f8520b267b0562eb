"""A site's labelled images, sorted: which of them limits may be fitted on, and which lesions are held out for figures.

Left out are the lesions that the model has learned from, whatever their role in it; its own test lesions taught it
nothing and stay. A lesion is never cut by the split, nor is a patient, where patients are known.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from dermlens.audit.findings import basic_findings, hash_records, summary
from dermlens.bundle.bundle import HASH_CHARS, Bundle
from dermlens.bundle.limits import MIN_LESIONS, aims
from dermlens.data.records import Dataset, Record, data_fingerprint, lesion_groups, lesions
from dermlens.diagnoses import map_label
from dermlens.errors import DataError
from dermlens.evaluation.fit_trust import Labelled
from dermlens.evaluation.metrics import Bools, Ints
from dermlens.reporting.progress import track

NAMED = 5  # unreadable images that a message names


@dataclass(frozen=True)
class SiteData:
    """The images that can be used, and what became of the others.

    Attributes:
        images: with class and lesion number; hashes: their content hashes.
        held: (n,) whether each image is held out.
        own_test: (n,) whether the model was tested on its lesion.
        seen: how many images are left out since the model has learned from their lesions.
        class_not_in_model: how many are left out by diagnosis; unreadable: the names of those that cannot be read.
    """

    images: Labelled
    hashes: tuple[str, ...]
    held: Bools
    own_test: Bools
    fingerprint: str
    seen: int
    class_not_in_model: dict[str, int]
    unreadable: tuple[str, ...]

    def counts(self, codes: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return how many lesions of each class are fitted on and held out; classes without lesions are left out."""
        found = {}
        for c, code in enumerate(codes):
            own = self.images.y_true == c
            fitted, held = (len(np.unique(self.images.lesions[own & side])) for side in (~self.held, self.held))
            if fitted or held:
                found[code] = (fitted, held)
        return found


def read_site(bundle: Bundle, dataset: Dataset, *, held_out: float, seed: int, console: Console) -> SiteData:
    """Sort the images of a site, say what was left out, and hold lesions out.

    Raises:
        DataError: no image is left.
    """
    records = dataset.records
    with track("Reading and hashing", len(records), console) as advance:
        hashes = hash_records(records, progress=advance)
    for line in summary(basic_findings(records, hashes)):
        console.print(f"Audit: {line}", soft_wrap=True)
    numbers, groups = np.array(lesions(records, hashes), np.int64), np.array(lesion_groups(records, hashes), np.int64)
    learned, tested = (_lesions_in(bundle, roles, records, hashes, numbers) for roles in (None, ("test",)))
    labels = [map_label(record.diagnosis, bundle.codes) for record in records]
    readable = np.array([digest is not None for digest in hashes])
    known = np.array([label is not None for label in labels])
    used = np.flatnonzero(readable & known & ~learned)
    classes = np.array([bundle.codes.index(labels[i] or "") for i in used], np.int64)
    chosen = [records[i] for i in used]
    digests = tuple((hashes[i] or "")[:HASH_CHARS] for i in used)
    found = SiteData(
        images=Labelled(chosen, classes, numbers[used]),
        hashes=digests,
        held=hold_out(groups[used], classes, digests, held_out, seed=seed),
        own_test=tested[used],
        fingerprint=data_fingerprint(records, hashes),
        seen=int((learned & readable).sum()),
        class_not_in_model=dict(Counter(records[i].diagnosis for i in np.flatnonzero(readable & ~known & ~learned))),
        unreadable=tuple(records[i].image for i in np.flatnonzero(~readable)),
    )
    _say(found, bundle, dataset, console)
    if not len(used):
        raise _nothing_left(found, bundle, len(records))
    return found


def _lesions_in(
    bundle: Bundle,
    roles: tuple[str, ...] | None,
    records: Sequence[Record],
    hashes: Sequence[str | None],
    numbers: Ints,
) -> Bools:
    """Return for each image whether one of its lesion's images had such a role; None: those that teach."""
    seen = bundle.seen() if roles is None else bundle.seen(roles)
    rows = zip(records, hashes, strict=True)
    one = np.array([seen.reason(digest, r.lesion_id, r.isic_id) is not None for r, digest in rows], np.bool_)
    return np.isin(numbers, numbers[one])


def hold_out(groups: Ints, classes: Ints, hashes: Sequence[str], share: float, *, seed: int) -> Bools:
    """Choose the images to hold out, (n,): that share of the groups of each class, the rarest class first.

    A group stays together. The order of the images does not matter. A class of two groups or more has one on each side.

    Args:
        groups: (n,) what belongs together; classes: (n,); hashes: n content hashes.
    """
    key: dict[int, str] = {}
    for group, digest in zip(groups.tolist(), hashes, strict=True):
        key[group] = min(digest, key.get(group, digest))
    of_class = {c: sorted(set(groups[classes == c].tolist()), key=key.__getitem__) for c in np.unique(classes).tolist()}
    held: dict[int, bool] = {}
    for c, members in sorted(of_class.items(), key=lambda item: (len(item[1]), item[0])):
        free = [group for group in members if group not in held]
        free.sort(key=lambda group: hashlib.sha256(f"{seed}:{c}:{key[group]}".encode()).digest())
        wanted = min(len(members) - 1, max(1, round(share * len(members))))
        left = max(0, wanted - sum(held.get(group, False) for group in members))
        held.update({group: place < left for place, group in enumerate(free)})
    return np.array([held[group] for group in groups.tolist()], np.bool_)


def check_enough(found: SiteData, bundle: Bundle, held_out: float) -> None:
    """Refuse too few lesions to fit on: 20 malignant or premalignant ones and 20 others, or 20 in all without such.

    Raises:
        DataError: none of the model's malignant classes (code `no_malignant`), `too_few_lesions`, `one_class`, or
            `nothing_held_out`.
    """
    counts, members = found.counts(bundle.codes), aims(bundle.codes).get("malignant", ())
    grave, others = ({c: n for c, n in counts.items() if (c in members) == side} for side in (True, False))
    needed = math.ceil(MIN_LESIONS / (1 - held_out))
    if members and not grave:
        raise DataError(
            f"The data have no lesion of the model's malignant or premalignant classes ({', '.join(members)}); they "
            f"have {_listed(others, whole=True)}. An operating point needs at least {MIN_LESIONS} to fit on.",
            remedy=f"Add about {needed} lesions of these classes, with these codes as their labels.",
            code="no_malignant",
        )
    sides = {"malignant or premalignant": grave, "other": others} if members else {"": counts}
    if any(sum(fitted for fitted, _ in side.values()) < MIN_LESIONS for side in sides.values()):
        said = " and ".join(
            f"{sum(fitted for fitted, _ in side.values())} {f'{name} ' if name else ''}lesions ({_listed(side)})"
            for name, side in sides.items()
        )
        raise DataError(
            f"Too few lesions to fit limits on: got {said}. At least {MIN_LESIONS}"
            f"{' of each kind' if members else ''} are needed beside those that are held out for the figures.",
            remedy=f"Add labelled lesions: with --held-out {held_out:g} about {needed}"
            f"{' of each kind' if members else ''}; or hold fewer out.",
            code="too_few_lesions",
        )

    if not found.held.any():
        raise DataError(
            "No lesion can be held out for the figures: all images belong to one lesion or patient.",
            remedy="Add lesions of other patients.",
            code="nothing_held_out",
        )
    if len(counts) < 2:
        raise DataError(
            f"All lesions are of one class: {_listed(counts, whole=True)}. Limits need lesions of two classes or more.",
            remedy=f"Add lesions of the model's other classes ({', '.join(bundle.codes)}).",
            code="one_class",
        )


def _listed(counts: dict[str, tuple[int, int]], *, whole: bool = False) -> str:
    named = ", ".join(f"{code} {fitted + held if whole else fitted}" for code, (fitted, held) in counts.items())
    return named or "none"


def names_of(images: Sequence[str]) -> str:
    """Return the first names of images, and how many more there are."""
    more = len(images) - NAMED
    return ", ".join(images[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _say(found: SiteData, bundle: Bundle, dataset: Dataset, console: Console) -> None:
    lines = list(dataset.notes)
    others = ", ".join(f"{n} {code}" for code, n in found.class_not_in_model.items())
    lines.append(
        f"{len(dataset.records)} images: {len(found.hashes)} used, {found.seen} left out because the model has learned "
        f"from their lesions, {sum(found.class_not_in_model.values())} of classes that it does not have"
        f"{f' ({others})' if others else ''}, {len(found.unreadable)} unreadable"
        f"{f' ({names_of(found.unreadable)})' if found.unreadable else ''}."
    )
    if any(record.split for record in dataset.records):
        lines.append("The split of the data set is not used: lesions are held out anew.")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _nothing_left(found: SiteData, bundle: Bundle, given: int) -> DataError:
    unknown = found.class_not_in_model
    names = f" ({', '.join(sorted(unknown))})" if unknown else ""
    return DataError(
        f"No lesions are left to fit on: of {given} images the model has learned from {found.seen}, "
        f"{sum(unknown.values())} are of classes that it does not have{names}, {len(found.unreadable)} are unreadable.",
        remedy=f"Give images of other lesions, with the model's class names ({', '.join(bundle.codes)}).",
        code="nothing_to_fit",
    )
