"""What comes before the training in `train --fine-tune top`: hashing, embedding, the trunk cache; here and on Ray.

    python benchmarks/trunk_cost.py --images FOLDER [--count 256] [--views 6] [--ray]

Processor time hardly depends on what else the machine does. With `--ray` the same features are computed by two workers
of a local two-node cluster and compared bit by bit in float32; their processor time is that of their processes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "images"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))


def material(folder: Path, count: int) -> Any:
    """Return `count` images, the folder's over and over, with a name of its own for each."""
    from dermlens.batch.sources import is_image_name
    from dermlens.data.records import Record
    from dermlens.training.features import Images

    paths = sorted(path for path in folder.rglob("*") if is_image_name(path.name))
    records = [Record(path=paths[i % len(paths)], image=str(i), diagnosis="NV") for i in range(count)]
    return Images(records, [f"{i + 1:064x}" for i in range(count)])


def computed(engine: Any, graph: Any, images: Any, wanted: Any) -> tuple[np.ndarray, float, float]:
    """Return the features, and seconds of this process's processors and of the clock."""
    from dermlens.training.features import CHUNK

    began, processor = time.monotonic(), time.process_time()
    with closing(engine(graph, images, wanted, range(0, len(images.records), CHUNK))) as found:
        parts = {start: np.array(part) for start, part in found}
    took = time.process_time() - processor, time.monotonic() - began
    return np.concatenate([parts[start] for start in sorted(parts)]), *took


def on_two_nodes(graph: Any, images: Any, wanted: Any) -> tuple[np.ndarray, float]:
    """Return the features from Ray, and the processor time of its two workers in seconds, their start included."""
    from dermlens.cluster.features import ray_features
    from dermlens.training.features import CHUNK
    from ray_nodes import cluster_of_two, workers

    spent: dict[int, float] = {}
    with cluster_of_two() as (cluster, _):
        engine = ray_features(cluster.address, 2)
        parts = {}
        with closing(engine(graph, images, wanted, range(0, len(images.records), CHUNK))) as found:
            for start, part in found:
                parts[start] = np.array(part)
                spent |= {process.pid: sum(process.cpu_times()[:2]) for process in workers()}
    return np.concatenate([parts[start] for start in sorted(parts)]), sum(spent.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=EXAMPLES)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--backbone", default="lite0")
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    from dermlens.networks.backend import load_tensorflow

    load_tensorflow()
    import keras

    from dermlens.audit.findings import hash_records
    from dermlens.networks.efficientnet import backbone
    from dermlens.networks.openvino import to_openvino
    from dermlens.training.device import resolve
    from dermlens.training.features import Wanted, local
    from dermlens.training.network import open_backbone
    from dermlens.training.recipe import Recipe

    recipe = resolve(Recipe(backbone=options.backbone, fine_tune="top"), backbone(options.backbone))
    stem = open_backbone(recipe)
    graph, images = to_openvino(stem.trunk), material(options.images, options.count)
    wanted = Wanted(stem.spec, options.views, seed=0)
    computed(local, graph, images.chunk(0), wanted)  # loads what is loaded once
    features, processor_s, clock_s = computed(local, graph, images, wanted)
    count = options.count * (1 + options.views)
    found: dict[str, Any] = {
        "backbone": options.backbone,
        "cut_block": recipe.cut_block,
        "size_px": recipe.size_px,
        "views": count,
        "kb_a_view_in_float16": round(features[0, 0].size * 2 / 1000, 1),
        "processor_ms_a_view": round(1000 * processor_s / count, 2),
        "views_a_second_and_core": round(count / processor_s),
        "clock_views_a_second": round(count / clock_s),
    }
    began = time.process_time()
    hash_records(images.records)
    found["processor_ms_an_image_hashed"] = round(1000 * (time.process_time() - began) / options.count, 2)
    whole = to_openvino(keras.Model(stem.pixels, stem.top(stem.trunk(stem.pixels))))
    plain = Wanted(stem.spec, 0, seed=0)
    computed(local, whole, images.chunk(0), plain)
    _, processor_s, _ = computed(local, whole, images, plain)
    found["processor_ms_an_image_embedded"] = round(1000 * processor_s / options.count, 2)
    if options.ray:
        again, spent_s = on_two_nodes(graph, images, wanted)
        found["ray_same_float32_bits"] = bool(np.array_equal(features, again))
        found["ray_processor_ms_a_view"] = round(1000 * spent_s / count, 2)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
