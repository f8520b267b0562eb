"""Near-duplicate search: recall on changed copies of HAM10000 images, and what else it takes for the same picture.

    DERMLENS_DATA=/path/to/data python benchmarks/near_duplicates.py [--copies 300] [--seed 0]

Each change is made to the same images and searched for among all of HAM10000. Hard negatives are the real second
views: other photographs of a lesion, which are no copies. A pair that is found counts as right when it is an image
and its own changed copy, or when HAM10000 itself says that both show one lesion.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from dermlens.audit.duplicates import near_duplicates
from dermlens.audit.facts import ImageFacts, facts_of, read_facts
from dermlens.data.manifest import read_dataset
from dermlens.data.records import Record


def crop(share: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return a change that keeps the middle of an image, `share` of each side."""

    def change(image: np.ndarray) -> np.ndarray:
        edge_y, edge_x = (round(side * (1 - share) / 2) for side in image.shape[:2])
        return image[edge_y : image.shape[0] - edge_y, edge_x : image.shape[1] - edge_x]

    return change


def tilted(image: np.ndarray, degrees: float = 5) -> np.ndarray:
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REFLECT)


CHANGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "recompressed, quality 30": (lambda image: image, 30),
    "half the size": (lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), 90),
    "squashed to 4:3": (lambda image: cv2.resize(image, (224, 168), interpolation=cv2.INTER_AREA), 90),
    "quarter turn": (lambda image: np.rot90(image), 90),
    "mirrored": (lambda image: image[:, ::-1], 90),
    "turned by 5 degrees": (tilted, 90),
    "cropped to 95 %": (crop(0.95), 90),
    "cropped to 90 %": (crop(0.9), 90),
    "cropped to 80 %": (crop(0.8), 90),
    "brighter, warmer": (lambda im: np.clip(im * np.array([0.95, 1.05, 1.12]) + 6, 0, 255).astype(np.uint8), 90),
    "grey": (lambda image: cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR), 90),
}


def changed(record: Record, change: str, folder: Path) -> ImageFacts:
    alter, quality = CHANGES[change]
    path = folder / "changed.jpg"
    pixels = np.ascontiguousarray(alter(cv2.imread(str(record.path))))
    cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return facts_of(Record(path, record.image, record.diagnosis))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = os.environ.get("DERMLENS_DATA")
    if not data:
        print("Not run: it needs DERMLENS_DATA, the folder with ham10000/.")
        return
    records = list(read_dataset(Path(data) / "ham10000").records)
    facts = read_facts(records)
    start = time.perf_counter()
    own = near_duplicates(facts)
    seconds = time.perf_counter() - start
    large = [i for i, record in enumerate(records) if record.source == "images_224"]
    chosen = sorted(np.random.default_rng(options.seed).choice(large, options.copies, replace=False).tolist())
    same_lesion = sum(records[p.first].lesion_id == records[p.second].lesion_id for p in own)
    views: dict[str | None, int] = {}
    for record in records:
        views[record.lesion_id] = views.get(record.lesion_id, 0) + 1
    second_views = sum(n * (n - 1) // 2 for lesion, n in views.items() if lesion)
    print(f"{len(records)} images as they are, compared in {seconds:.1f} s: {len(own)} pairs found, {same_lesion} of")
    print(f"them of one lesion (of {second_views} pairs of real second views, {same_lesion / second_views:.1%} are")
    print(f"taken for the same picture), {len(own) - same_lesion} of lesions that HAM10000 tells apart.\n")
    print("| change | recall | pairs with another lesion | precision |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for change in CHANGES:
            copies = [changed(records[i], change, Path(folder)) for i in chosen]
            found = [p for p in near_duplicates([*copies, *facts]) if p.first < len(chosen) <= p.second]
            pairs = [(chosen[p.first], p.second - len(chosen)) for p in found]
            right = sum(one == other for one, other in pairs)
            wrong = sum(records[one].lesion_id != records[other].lesion_id for one, other in pairs)
            precision = f"{right / (right + wrong):.3f}" if right + wrong else "-"
            print(f"| {change} | {right / len(chosen):.3f} | {wrong} | {precision} |", flush=True)


if __name__ == "__main__":
    main()
