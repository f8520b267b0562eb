"""Near duplicates: the same picture recompressed, resized, turned, mirrored or recoloured, found by perceptual hash.

Every pair within `MAX_BITS` of each other in any of the eight symmetries is a candidate; it counts as near duplicate
when the two thumbnails, brought to the same symmetry, also correlate. The second step distinguishes a changed copy from
another photograph of a lesion, which the hash alone does not.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dermlens.audit.facts import SYMMETRIES, Grey, ImageFacts, first_of_each, thumbnail, turned
from dermlens.audit.findings import Finding
from dermlens.audit.geometry import Overlay
from dermlens.data.records import Record, group_connected, members
from dermlens.reporting.progress import Advance

MAX_BITS = 10
MIN_CORRELATION = 0.98
_THREADS = 2
_MAX_ROWS, _MAX_COMPARED = 512, 8_000_000  # at once: 64 MB, however many images there are


@dataclass(frozen=True)
class NearPair:
    """Two images, `first < second`, that show the same picture; turning `first` by `symmetry` gives `second`.

    A pair found by its embedding has an `overlay`, how the two lie over each other, and -1 `bits`.
    """

    first: int
    second: int
    symmetry: int
    bits: int
    correlation: float
    overlay: Overlay | None = None


def near_duplicates(
    records: Sequence[Record],
    facts: Sequence[ImageFacts],
    *,
    max_bits: int = MAX_BITS,
    min_correlation: float = MIN_CORRELATION,
    progress: Advance | None = None,
) -> list[NearPair]:
    """Return the pairs of different files that show the same picture.

    Of files that are byte for byte the same only the first is compared.

    Args:
        records, facts: n images.
    """
    chosen = first_of_each([fact.sha256 or "" for fact in facts], facts)
    if len(chosen) < 2:
        return []
    codes = np.array([facts[i].codes for i in chosen], np.uint64)
    pairs: list[NearPair] = []
    thumbs: dict[int, Grey | None] = {}
    step = max(1, min(_MAX_ROWS, _MAX_COMPARED // len(chosen)))
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(chosen), step):
            found = _candidates(codes, start, start + step, max_bits)
            missing = sorted({place for pair in found for place in pair[:2]} - thumbs.keys())
            thumbs.update(zip(missing, pool.map(thumbnail, [records[chosen[i]] for i in missing]), strict=True))
            for row, column, symmetry, bits in found:
                correlation = _correlation(thumbs[row], thumbs[column], symmetry)
                if correlation >= min_correlation:
                    pairs.append(NearPair(chosen[row], chosen[column], symmetry, bits, correlation))
            if progress is not None:
                progress(min(step, len(chosen) - start))
    return pairs


def group_near(groups: Sequence[Hashable], pairs: Sequence[NearPair]) -> list[int]:
    """Join groups that near duplicates connect: n numbers, equal in one group or pair, directly or through others."""
    return group_connected([(group,) for group in groups], [(pair.first, pair.second) for pair in pairs])


def near_groups(pairs: Sequence[NearPair], hashes: Sequence[str | None]) -> list[list[int]]:
    """Return the groups of two or more different files that near pairs connect; copies of a file are in its group."""
    groups = members(group_near(hashes, pairs))
    return [group for group in groups if len({hashes[i] for i in group}) > 1]


def near_findings(
    records: Sequence[Record], groups: Sequence[Sequence[int]], pairs: Sequence[NearPair], hashes: Sequence[str | None]
) -> list[Finding]:
    """Return one finding for each group: an error where its labels differ, else a note."""
    place = {index: number for number, group in enumerate(groups) for index in group}
    lowest: dict[int, NearPair] = {}
    for pair in pairs:
        number = place[pair.first]
        if number not in lowest or pair.correlation < lowest[number].correlation:
            lowest[number] = pair
    return [_finding(records, group, lowest[number], hashes) for number, group in enumerate(groups)]


def _finding(records: Sequence[Record], group: Sequence[int], pair: NearPair, hashes: Sequence[str | None]) -> Finding:
    chosen = [records[i] for i in group]
    labels = sorted({record.diagnosis for record in chosen})
    evidence = f"{len({hashes[i] for i in group})} different files show the same picture{_how(pair)}"
    if len(labels) > 1:
        evidence += f", labelled {', '.join(labels)}."
        remedy = "Pass a reference that knows the diagnosis, or leave all of them out."
        return Finding.of("near_duplicates_contradicting", chosen, evidence, remedy)
    return Finding.of("near_duplicates", chosen, f"{evidence}.", "Keep one of them.")


def _how(pair: NearPair) -> str:
    if pair.overlay is None:
        turned = ", one of them turned or mirrored" if pair.symmetry else ""
        return f"{turned} ({pair.bits} of 63 bits differ, correlation {pair.correlation:.3f})"
    lies = pair.overlay
    scale = max(lies.scale, 1 / lies.scale)
    changes = ", mirrored" if lies.mirrored else ""
    changes += f", enlarged {scale:.2f} times" if scale > 1.02 else ""
    changes += f", tilted by {abs(lies.angle_deg):.0f} degrees" if abs(lies.angle_deg) >= 1 else ""
    return f"{changes} (found by its embedding, laid over each other: correlation {pair.correlation:.3f})"


def _candidates(codes: npt.NDArray[np.uint64], start: int, stop: int, max_bits: int) -> list[tuple[int, int, int, int]]:
    """Return (row, column, symmetry, bits) for near pairs of rows start to stop with later ones, nearest symmetry."""
    block, rest = codes[start:stop], codes[start + 1 :, 0]
    best = np.full((len(block), len(rest)), 64, np.uint8)
    which = np.zeros_like(best)
    for symmetry in range(SYMMETRIES):
        bits = np.bitwise_count(block[:, symmetry, None] ^ rest[None, :])
        closer = bits < best
        best[closer], which[closer] = bits[closer], symmetry
    found = []
    for row, column in zip(*np.nonzero(best <= max_bits), strict=True):
        if column >= row:  # column 0 is the record after the block's first
            found.append((start + int(row), start + 1 + int(column), int(which[row, column]), int(best[row, column])))
    return found


def _correlation(one: Grey | None, other: Grey | None, symmetry: int) -> float:
    if one is None or other is None:  # the file has changed since its facts were read
        return 0.0
    a, b = turned(one, symmetry).astype(np.float64).ravel(), other.astype(np.float64).ravel()
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else 0.0
