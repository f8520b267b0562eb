"""Features on a Ray cluster of two nodes: the bits of one process, whatever dies on the way."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops
from rich.console import Console

from dermlens.cluster import features as ray_module
from dermlens.cluster.features import ray_features
from dermlens.data.images import InputSpec
from dermlens.data.records import Record
from dermlens.errors import DermlensError, ImageError, UsageError
from dermlens.training import features as features_module
from dermlens.training.caches import trunk_cache
from dermlens.training.features import CHUNK, Engine, FeatureSpec, Images, local_engine, plain_outputs
from ray_nodes import workers

import psutil  # isort: skip  # inside Ray: found once Ray is imported

pytestmark = pytest.mark.xdist_group("ray")

SIZE_PX, N = 48, 3 * CHUNK + 5
SPEC = FeatureSpec(InputSpec(size_px=SIZE_PX), view_count=2, seed=3, artefacts=0.3)
SILENT = Console(file=io.StringIO())


@pytest.fixture(scope="module")
def graph() -> ov.Model:
    """uint8 (n, 48, 48, 3) -> (n, 24, 6, 6): three convolutions, whose sums round."""
    rng = np.random.default_rng(0)
    pixels = ops.parameter([-1, SIZE_PX, SIZE_PX, 3], ov.Type.u8, name="pixels")
    x = ops.transpose(ops.convert(pixels, ov.Type.f32), [0, 3, 1, 2])
    for channels_in, channels in ((3, 16), (16, 24), (24, 24)):
        kernel = rng.normal(0, 0.3 / channels_in, (channels, channels_in, 3, 3)).astype(np.float32)
        x = ops.relu(ops.convolution(x, kernel, [2, 2], [1, 1], [1, 1], [1, 1]))
    return ov.Model([ops.result(x)], [pixels], "trunk")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(N):
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(40, 220, (60, 70, 3)).astype(np.uint8))
    records = [Record(path=folder / f"{i}.png", image=f"{i}.png", diagnosis="NV") for i in range(N)]
    return Images(records, [f"{i + 1:064x}" for i in range(N)])


def cache(folder: Path, graph: ov.Model, images: Images, engine: Engine, console: Console = SILENT) -> np.ndarray:
    spec = replace(SPEC, dtype="float16")
    return np.array(trunk_cache(folder, graph, images, spec, weights_id="w", console=console, engine=engine))


def float32(graph: ov.Model, images: Images, engine: Engine) -> np.ndarray:
    """Return the outputs for all views as the network gives them."""
    with closing(engine(graph, images, SPEC, range(0, N, CHUNK))) as found:
        parts = {start: np.array(part) for start, part in found}
    return np.concatenate([parts[start] for start in sorted(parts)])


def test_two_nodes_give_the_float32_bits_of_one_process(two_nodes: str, graph: ov.Model, images: Images) -> None:
    here = float32(graph, images, local_engine)
    assert here.dtype == np.float32 and here.shape == (N, 3, 24, 6, 6) and (here != here.astype(np.float16)).any()
    np.testing.assert_array_equal(float32(graph, images, ray_features(two_nodes)), here)


def test_a_killed_worker_costs_nothing(two_nodes: str, graph: ov.Model, images: Images, tmp_path: Path) -> None:
    killed: list[int] = []

    def engine(*job: Any) -> Any:
        for item in ray_features(two_nodes)(*job):
            if not killed:
                victim = workers()[0]
                killed.append(victim.pid)
                victim.kill()
            yield item

    found = cache(tmp_path / "ray", graph, images, engine)
    assert killed and not psutil.pid_exists(killed[0])
    np.testing.assert_array_equal(found, cache(tmp_path / "local", graph, images, local_engine))
    state = json.loads((tmp_path / "ray" / "features.json").read_text())
    assert state == json.loads((tmp_path / "local" / "features.json").read_text()), "either engine takes it as its own"


def test_images_that_a_node_does_not_see_are_sent(
    two_nodes: str, graph: ov.Model, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_module, "_witness", lambda images: ("/not/here.png", 1))
    sent: list[int] = []
    real = ray_module._bytes_of

    def counted(chunk: Images) -> list[bytes]:
        sent.append(len(chunk.records))
        return real(chunk)

    monkeypatch.setattr(ray_module, "_bytes_of", counted)
    wanted = replace(SPEC, view_count=0)
    told: dict[str, Any] = {"console": SILENT, "what": "x"}
    found = plain_outputs(graph, images, wanted, engine=ray_features(two_nodes), **told)
    assert sum(sent) == N
    np.testing.assert_array_equal(found, plain_outputs(graph, images, wanted, engine=local_engine, **told))


def test_chunks_may_come_in_any_order_and_ctrl_c_keeps_those_without_a_gap(
    graph: ov.Model, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*job: Any) -> Any:
        found = list(local_engine(*job))
        yield from (found[1], found[0], found[3])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path / "cache", graph, images, stopped)
    assert json.loads((tmp_path / "cache" / "features.json").read_text())["done"] == 2 * CHUNK
    computed: list[int] = []
    real = features_module.outputs

    def counted(compiled: Any, pixels: list[np.ndarray], wanted: FeatureSpec) -> np.ndarray:
        computed.append(len(pixels))
        return real(compiled, pixels, wanted)

    monkeypatch.setattr(features_module, "outputs", counted)
    found = cache(tmp_path / "cache", graph, images, local_engine)
    assert computed == [CHUNK, N - 3 * CHUNK]
    np.testing.assert_array_equal(found, cache(tmp_path / "whole", graph, images, local_engine))


def test_chunks_that_never_come_are_told(graph: ov.Model, images: Images, tmp_path: Path) -> None:
    def lossy(*job: Any) -> Any:
        yield from list(local_engine(*job))[:-1]

    with pytest.raises(DermlensError, match=f"for {3 * CHUNK} of {N} images"):
        cache(tmp_path / "cache", graph, images, lossy)
    told: dict[str, Any] = {"console": SILENT, "what": "x"}
    with pytest.raises(DermlensError, match=f"for {3 * CHUNK} of {N} images"):
        plain_outputs(graph, images, replace(SPEC, view_count=0), engine=lossy, **told)


@pytest.mark.long
def test_ctrl_c_ends_the_workers_and_the_other_engine_goes_on(
    two_nodes: str, graph: ov.Model, images: Images, tmp_path: Path
) -> None:
    def stopped(*job: Any) -> Any:
        with closing(ray_features(two_nodes)(*job)) as found:
            yield next(found)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path / "cache", graph, images, stopped)
    for process in workers():
        process.wait(60)
    found = cache(tmp_path / "cache", graph, images, local_engine)
    np.testing.assert_array_equal(found, cache(tmp_path / "whole", graph, images, local_engine))


@pytest.mark.long
def test_an_image_that_cannot_be_read_is_told_as_in_one_process(
    two_nodes: str, graph: ov.Model, images: Images, tmp_path: Path
) -> None:
    gone = [*images.records]
    gone[40] = replace(gone[40], path=tmp_path / "gone.png")
    with pytest.raises(ImageError, match="gone"):
        cache(tmp_path / "cache", graph, Images(gone, images.hashes), ray_features(two_nodes))


@pytest.mark.long
def test_what_ends_every_worker_is_told(two_nodes: str, graph: ov.Model, images: Images) -> None:
    engine = ray_features(two_nodes)
    wanted = deadly()(SPEC.input, SPEC.view_count, SPEC.seed)
    with pytest.raises(DermlensError, match="ended their worker 4 times") as caught:
        list(engine(graph, images, wanted, [0]))
    assert caught.value.code == "worker_died"


def deadly() -> type[FeatureSpec]:
    """Return a class that Ray carries to its processes by value, since tests are no package there."""

    class Deadly(FeatureSpec):
        def pixels(self, record: Record, digest: str) -> np.ndarray:
            import os

            os._exit(9)

    return Deadly


def test_a_cluster_that_is_not_there_is_an_error(no_cluster: None, graph: ov.Model, images: Images) -> None:
    with pytest.raises(UsageError, match="does not answer"):
        list(ray_features("127.0.0.1:1")(graph, images, SPEC, [0]))


def test_workers_load_neither_tensorflow_nor_scikit_learn() -> None:
    program = "import sys, dermlens.cluster.features; print(*{'tensorflow', 'keras', 'sklearn'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout.strip() == ""
