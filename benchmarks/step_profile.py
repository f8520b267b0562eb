"""Which operations a training step of the whole network spends its processor time on, by TensorFlow's own profiler.

    python benchmarks/step_profile.py [--backbone lite0] [--batch 32] [--steps 3]

The step of dermlens on a batch that is there already, with frozen batch norm as over pretrained weights (it is computed
inside the convolutions), and with batch norm that follows the batches, as the usual Keras step has it. Sums over
threads; a share of all operations. A bias or an activation that TensorFlow computes with a convolution counts as one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from measure import save
from training_speed import CLASSES, built, stepper  # both beside this file

GROUPS = {
    "depthwise convolutions, gradient to filter": ("DepthwiseConv2dNativeBackpropFilter",),
    "depthwise convolutions, gradient to input": ("DepthwiseConv2dNativeBackpropInput",),
    "depthwise convolutions, forward": ("DepthwiseConv2dNative",),
    "other convolutions, gradient to filter": ("Conv2DBackpropFilter",),
    "other convolutions, gradient to input": ("Conv2DBackpropInput",),
    "other convolutions, forward": ("Conv2D",),
    "activations, both ways": ("Relu6", "Relu6Grad", "Sigmoid", "SigmoidGrad"),
}
OTHER = "scaling, adding and the rest"


def operations(call: Any, steps: int) -> Counter[str]:
    """Return milliseconds of processor time a step by kind of operation."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        for _ in range(steps):
            call()
        tf.profiler.experimental.stop()
        space = xplane_pb2.XSpace()
        space.ParseFromString(next(Path(folder).rglob("*.xplane.pb")).read_bytes())
    found: Counter[str] = Counter()
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            name, colon, kind = plane.event_metadata[event.metadata_id].name.rpartition(":")
            if colon and kind[:1].strip() and not name.endswith(":"):  # "layer/operation:Kind"; others hold operations
                found[bare(kind)] += event.duration_ps / 1e9 / steps
    return found


def bare(kind: str) -> str:
    """Return the operation without what says who computes it, and that bias or activation are computed with it."""
    return kind.removeprefix("_MklNative").removeprefix("_").removeprefix("Fused")


def grouped(found: Counter[str]) -> dict[str, float]:
    """Return the share of each group in the time of all operations."""
    whole, kinds = sum(found.values()), {kind for group in GROUPS.values() for kind in group}
    shares = {name: sum(found[kind] for kind in group) / whole for name, group in GROUPS.items()}
    return {**shares, OTHER: sum(ms for kind, ms in found.items() if kind not in kinds) / whole}


def measured(name: str, batch_norm: str, batch: int, steps: int) -> dict[str, Any]:
    from dermlens.training.feed import from_arrays

    recipe, network = built(name, "full", batch, batch_norm)
    side, labels = recipe.size_px, np.arange(batch) % CLASSES
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 1, side, side, 3), dtype=np.uint8)
    feed = from_arrays(pixels, labels, pixels[:1, 0], labels[:1])
    _, (ready, source, _) = stepper(feed, recipe, network.whole)
    ready()
    found = operations(ready, steps)
    source.close()
    most = {kind: round(ms, 1) for kind, ms in found.most_common(10)}
    return {"processor ms a step": sum(found.values()), "share": grouped(found), "longest, ms": most}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="lite0")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    from dermlens.networks.backend import keep_freed_memory, load_tensorflow

    load_tensorflow()
    keep_freed_memory()
    details: dict[str, Any] = {"backbone": options.backbone, "batch": options.batch}
    for batch_norm in ("frozen", "updated"):
        key = f"batch norm {batch_norm}"
        details[key] = measured(options.backbone, batch_norm, options.batch, options.steps)
    save("step_profile", {}, details)


if __name__ == "__main__":
    main()
