"""The usual student recipe, as a baseline for `accuracy.py`.

The whole network at Adam 1e-3 with Dense(256) before the softmax, random shift, zoom, shear and horizontal flip, no
class balance, no calibration, the last epoch kept. Same backbone, ImageNet weights and pixel path as dermlens, so that
only the recipe differs.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import keras
import numpy as np

from dermlens.data.images import InputSpec
from dermlens.data.records import Record
from dermlens.networks.efficientnet import build_backbone
from dermlens.training.views import plain_view

EPOCHS, BATCH, SIZE_PX = 5, 32, 224


class Views(keras.utils.PyDataset):
    """Shuffled batches of augmented images, as ImageDataGenerator made them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: int) -> None:
        super().__init__()
        self._images, self._targets = images, np.eye(classes, dtype=np.float32)[labels]
        self._rng = np.random.default_rng(0)
        self.on_epoch_end()

    def __len__(self) -> int:
        return -(-len(self._images) // BATCH)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self._order[index * BATCH : (index + 1) * BATCH]
        return np.stack([self._changed(self._images[i]) for i in rows]).astype(np.float32), self._targets[rows]

    def on_epoch_end(self) -> None:
        self._order = self._rng.permutation(len(self._images))

    def _changed(self, image: np.ndarray) -> np.ndarray:
        shift = self._rng.uniform(-0.1, 0.1, 2) * SIZE_PX
        zoom, shear = self._rng.uniform(0.9, 1.1, 2), self._rng.uniform(-0.1, 0.1)
        linear = np.array([[zoom[0], shear], [0, zoom[1]]])
        centre = np.full(2, (SIZE_PX - 1) / 2)
        matrix = np.hstack([linear, (centre + shift - linear @ centre)[:, None]])
        image = cv2.warpAffine(image, matrix, (SIZE_PX, SIZE_PX), borderMode=cv2.BORDER_REPLICATE)
        return image[:, ::-1] if self._rng.random() < 0.5 else image


def train_student(records: Sequence[Record], out: Path) -> None:
    """Train on the roles train, select and calibrate together and write `split.csv` and `test_predictions.csv`."""
    keras.utils.set_random_seed(0)
    codes = sorted({record.diagnosis for record in records})
    train = [record for record in records if record.split != "test"]
    test = [record for record in records if record.split == "test"]
    spec = InputSpec(size_px=SIZE_PX)
    backbone = build_backbone("lite0", size_px=SIZE_PX, weights="lite")
    x = keras.layers.GlobalAveragePooling2D()(backbone.outputs[0])
    x = keras.layers.Dense(256, activation="relu")(x)
    model = keras.Model(backbone.inputs[0], keras.layers.Dense(len(codes), activation="softmax")(x))
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    labels = np.array([codes.index(record.diagnosis) for record in train])
    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(lambda record: plain_view(record, spec), train)))
        plain = np.stack(list(pool.map(lambda record: plain_view(record, spec), test)))
    model.fit(Views(images, labels, len(codes)), epochs=EPOCHS, verbose=2)
    probability = model.predict(plain.astype(np.float32), batch_size=BATCH, verbose=0)
    with (out / "split.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "source"])
        writer.writerows([record.image, record.source] for record in records)
    with (out / "test_predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "lesion_id", "diagnosis", "decision", "probe_decision", *(f"p_{c}" for c in codes)])
        for record, row in zip(test, probability, strict=True):
            decision = codes[int(row.argmax())]
            shares = (f"{share:.6f}" for share in row)
            writer.writerow([record.image, record.lesion_id, record.diagnosis, decision, decision, *shares])
