"""One image from file to answer in a warm process, against the usual OpenCV + Keras way, and where the time goes.

    python benchmarks/one_image.py [--repeats 20]

Three files made from an example: 180 px, 600 x 450 px and 4000 x 3000 px (a phone's 12 megapixels) JPEG. The usual way
decodes the whole file with OpenCV, resizes it and calls a Keras Lite0 of the same size. dermlens also calibrates,
judges novelty and quality, and says what remains possible.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from measure import REPEATS, classifiers, in_turn, save, spread, times_faster, with_goal
from PIL import Image

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "images" / "MEL_ISIC_0000029.jpg"
FILES = {"180 px": (180, 180), "600 x 450 px": (600, 450), "12 megapixels": (4000, 3000)}
GOALS = {"12 megapixels": 4.0}


def made(folder: Path) -> dict[str, Path]:
    """Write the example at the three sizes, with some sensor noise: a smooth picture would be too quickly decoded."""
    rng, found = np.random.default_rng(0), {}
    for name, size in FILES.items():
        pixels = np.asarray(Image.open(EXAMPLE).convert("RGB").resize(size, Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
        found[name] = folder / f"{size[0]}.jpg"
        Image.fromarray(noisy).save(found[name], quality=90)
    return found


def stages(predictor: Any, path: Path, repeats: int) -> dict[str, float]:
    """Median milliseconds of reading, decoding, resizing, network, and the rest of an answer."""
    from dermlens.data.framing import frame
    from dermlens.data.images import decode
    from dermlens.inference.runtime import Runtime

    runtime = Runtime(predictor.bundle.graph_path)
    raw, spec = path.read_bytes(), predictor.bundle.input_spec
    decoded = decode(raw, spec=spec)
    pixels = frame(decoded, spec)[None]
    took = in_turn(
        {
            "read": path.read_bytes,
            "decode": lambda: decode(raw, spec=spec),
            "resize": lambda: frame(decoded, spec),
            "network": lambda: runtime.run(pixels),
            "whole": lambda: predictor.predict(path),
        },
        repeats=repeats,
    )
    found = {name: spread(values)["median"] for name, values in took.items()}
    found["calibration, novelty, quality and the rest"] = found["whole"] - sum(
        found[name] for name in ("read", "decode", "resize", "network")
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    from dermlens import Predictor

    predictor = Predictor()
    ratios: dict[str, Any] = {}
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = made(Path(folder))
        for name, path in files.items():  # before TensorFlow is there, whose threads would be counted in
            details[f"{name}, stages, ms"] = stages(predictor, path, options.repeats)
            details[f"{name}, file, kB"] = path.stat().st_size / 1000
        usual, quick = keras_ways()
        for name, path in files.items():
            took = in_turn(
                {
                    "dermlens": lambda p=path: predictor.predict(p),
                    "tf.function": lambda p=path: quick(p),
                    "model.predict": lambda p=path: usual(p),
                },
                repeats=options.repeats,
            )
            details[f"{name}, ms"] = {key: spread(values) for key, values in took.items()}
            for other in ("tf.function", "model.predict"):
                ratio = times_faster(took["dermlens"], took[other])
                goal = GOALS.get(name) if other == "model.predict" else None
                ratios[f"{name}, OpenCV + {other} / dermlens"] = with_goal(ratio, goal) if goal else ratio
            time.sleep(0.1)
    save("one_image", ratios, details)


def keras_ways() -> tuple[Any, Any]:
    from dermlens.networks.backend import load_tensorflow

    load_tensorflow()
    import tensorflow as tf

    model, _ = classifiers("lite0")
    call = tf.function(lambda x: model(x, training=False), jit_compile=False)

    def pixels(path: Path) -> np.ndarray:
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        return cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA)[None].astype(np.float32)

    return (lambda path: model.predict(pixels(path), verbose=0)), (lambda path: call(tf.constant(pixels(path))).numpy())


if __name__ == "__main__":
    main()
