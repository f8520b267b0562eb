"""The same bytes give the same tensor in training, evaluation, prediction and on the command line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import tiny
from dermlens import Predictor, cli
from dermlens.data.images import InputSpec
from dermlens.data.manifest import read_dataset
from dermlens.evaluation.evaluate import evaluate
from dermlens.inference.runtime import Outputs, Runtime
from dermlens.training.views import plain_view, views


@pytest.fixture
def reached_the_network(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Collect every image that any code hands to the network."""
    seen: list[np.ndarray] = []
    real = Runtime.run

    def spy(self: Runtime, pixels: np.ndarray) -> Outputs:
        seen.extend(pixels.copy())
        return real(self, pixels)

    monkeypatch.setattr(Runtime, "run", spy)
    return seen


@pytest.mark.parametrize(("suffix", "orientation"), [(".jpg", 1), (".jpg", 6), (".png", 1), (".webp", 1)])
def test_the_same_bytes_give_the_same_tensor_everywhere(
    tmp_path: Path, reached_the_network: list[np.ndarray], suffix: str, orientation: int
) -> None:
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for code in ("RED", "GREEN"):
        (tmp_path / "data" / code).mkdir(parents=True)
        pixels = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / code / f"a{suffix}", exif=exif)
    path = tmp_path / "data" / "RED" / f"a{suffix}"
    model = tiny.write(tmp_path / "b")
    predictor = Predictor(model)
    dataset = read_dataset(tmp_path / "data")
    (record,) = [r for r in dataset.records if r.path == path]
    spec = InputSpec(size_px=tiny.SIZE_PX)

    predictor.predict(path)
    predictor.predict(path.read_bytes())
    list(predictor.predict_many([path, path]))
    by_predictor, reached_the_network[:] = list(reached_the_network), []
    with pytest.raises(SystemExit):
        cli.main(["predict", str(path), "--model", str(model), "--json"])
    by_command, reached_the_network[:] = list(reached_the_network), []
    evaluate(predictor, dataset, tmp_path / "out", split=None, seed=0, console=Console(file=io.StringIO()))
    by_evaluation = reached_the_network
    by_training = [plain_view(record, spec), views(record, spec, count=1, seed=3, key="00" * 32)[0]]

    assert len(by_predictor) == 4 and len(by_command) == 1 and len(by_evaluation) >= 2
    for tensor in (*by_predictor, *by_command, *by_training):
        np.testing.assert_array_equal(tensor, by_predictor[0])
    (other,) = [plain_view(r, spec) for r in dataset.records if r.path != path]
    assert (other != by_predictor[0]).any(), "the other image is another tensor"
    known = [any(np.array_equal(tensor, one) for tensor in by_evaluation) for one in (by_predictor[0], other)]
    assert all(known), "in whatever order its threads come, the evaluation sees both images"
    for tensor in by_evaluation:  # the errors that the report explains among them
        assert any(np.array_equal(tensor, one) for one in (by_predictor[0], other))
