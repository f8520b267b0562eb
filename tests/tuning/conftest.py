"""What the tests of the search share: twenty small images of two classes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dermlens.data.manifest import read_dataset
from dermlens.data.records import Dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, colour in {"rash": (220, 120, 120), "healthy": (230, 200, 180)}.items():
        (folder / name).mkdir()
        for index in range(10):
            image = np.clip(np.array(colour) + rng.normal(0, 12, (72, 96, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"{index}.png"), image[:, :, ::-1])
    return read_dataset(folder)
