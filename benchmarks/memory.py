"""What a training step needs in memory, against what `training/batch_memory.py` says before it starts.

    python benchmarks/memory.py [--rows lite0 b0] [--sizes 224] [--batches 8 32]

Each step runs in a process of its own, of a network with random weights on random pixels; the peak of its resident
memory, less what TensorFlow, the network and its weights took before, is compared with the estimate. A share above 1
means that the estimate is too low.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys

STEP = """
import json, resource, sys
from dermlens.networks.backend import load_tensorflow
load_tensorflow()
import numpy as np
from dermlens.training import batch_memory
from dermlens.networks.efficientnet import backbone
from dermlens.training.device import resolve
from dermlens.training.step import make_step
from dermlens.training.network import open_backbone, with_head
from dermlens.training.optimiser import averaged, make_optimiser
from dermlens.networks.backend import keep_freed_memory
from dermlens.training.recipe import Recipe

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

name, size, batch, mode, norm = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]
keep_freed_memory()
row = backbone(name)
recipe = resolve(Recipe(backbone=name, weights="none", size_px=size, fine_tune=mode, batch_size=batch,
                        batch_norm=norm), row)
network = with_head(open_backbone(recipe), recipe, 8)
model = network.whole if mode == "full" else network.classifier
before = peak()
optimiser, ema = make_optimiser(model, recipe), averaged(model)
step = make_step(model, recipe, optimiser, ema, np.arange(batch) % 8, 8)
x = np.random.default_rng(0).random((batch, *model.inputs[0].shape[1:]), np.float32)
y, mix = np.eye(8, dtype=np.float32)[np.arange(batch) % 8], np.ones(batch, np.float32)
for _ in range(3):
    step(x, y, mix, np.float32(1e-4)).numpy()
estimate = batch_memory.fixed_bytes(model) + batch * batch_memory.bytes_per_image(model)
print(json.dumps({"backbone": name, "size_px": size, "batch": batch, "mode": mode, "batch_norm": norm,
                  "measured_gb": round((peak() - before) / 1e9, 3), "estimate_gb": round(estimate / 1e9, 3),
                  "measured_of_estimate": round((peak() - before) / estimate, 2)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=["lite0", "b0"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[224])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--modes", nargs="+", default=["top", "full"])
    parser.add_argument("--batch-norm", nargs="+", choices=["frozen", "updated"], default=["frozen"])
    options = parser.parse_args()
    lists = (options.rows, options.sizes, options.batches, options.modes, options.batch_norm)
    for row, size, batch, mode, norm in itertools.product(*lists):
        command = [sys.executable, "-c", STEP, row, str(size), str(batch), mode, norm]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{row} at {size} px, batch {batch}, {mode}, {norm} failed:\n{done.stderr[-2000:]}")
        print(done.stdout.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
